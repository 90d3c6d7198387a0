//! A request of HTTP/2 written out as the HTTP/1.1 head it means: one head and nothing behind it, read by the gateway's
//! own parser as the same request, or refused. Input: a line of flags (`e`: no body), then method, authority and path,
//! a line each, then fields `name:value`; what the `h2` crate would not let through is left out.

use gateway::http1::{Framing, Limits, RequestHead, Scanner};
use gateway::proof;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};

/// Fields of a connection, which RFC 9113, 8.2.2, forbids and `h2` refuses.
const OF_A_CONNECTION: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

fn message(bytes: &[u8]) -> Option<(http::request::Parts, bool)> {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let ended = lines.next()?.contains(&b'e');
    let method = Method::from_bytes(lines.next()?).ok()?;
    let (authority, path) = (lines.next()?, lines.next()?);
    let mut uri = Uri::builder().path_and_query(path);
    if !authority.is_empty() {
        uri = uri.scheme("http").authority(authority);
    }
    let mut parts = Request::new(()).into_parts().0;
    (parts.method, parts.uri, parts.version) = (method, uri.build().ok()?, http::Version::HTTP_2);
    for line in lines {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let name = HeaderName::from_lowercase(&line[..colon]).ok()?;
        let value = HeaderValue::from_bytes(&line[colon + 1..]).ok()?;
        if OF_A_CONNECTION.contains(&name.as_str()) || (name == "te" && value != "trailers") {
            return None;
        }
        parts.headers.append(name, value);
    }
    Some((parts, ended))
}

/// Any bytes as such a request.
pub fn http2_head(bytes: &[u8]) {
    let Some((parts, ended)) = message(bytes) else { return };
    let text = proof::http1_head(&parts, ended);
    let what = text.escape_ascii();
    let (mut scanner, limits) = (Scanner::default(), Limits::default());
    let length = match scanner.advance(&text, &limits) {
        Ok(length) => length,
        Err(_) => return,
    };
    // Whatever stands in it, it is one head.
    assert_eq!((length, scanner.skipped()), (Some(text.len()), 0), "{what}");
    let mut head = RequestHead::default();
    if head.parse(&text, &limits).is_err() {
        return;
    }
    assert_eq!(head.method(), parts.method.as_str().as_bytes(), "{what}");
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    assert_eq!(head.path_and_query(), target.as_bytes(), "{what}");
    let host = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or(parts.headers.get("host").map(HeaderValue::as_bytes));
    assert_eq!(head.authority(), host.unwrap_or_default().trim_ascii(), "{what}");
    let length = parts.headers.get("content-length").map(|length| length.to_str().unwrap().trim().parse().unwrap());
    match (length, ended) {
        (None, true) | (Some(0), _) => assert_eq!(head.framing(), Framing::None, "{what}"),
        (None, false) => assert_eq!(head.framing(), Framing::Chunked, "{what}"),
        (Some(length), _) => assert_eq!(head.framing(), Framing::Length(length), "{what}"),
    }
    same_fields(&head, &parts.headers, &what.to_string());
}

/// Nothing comes in by the translation, and nothing is lost.
fn same_fields(head: &RequestHead, fields: &HeaderMap, what: &str) {
    let bytes = head.bytes();
    for field in &head.fields.headers {
        let (name, value) = (field.name.get(bytes), field.value.get(bytes));
        let made = matches!(name, b"host" | b"transfer-encoding" | b"cookie");
        let name = HeaderName::from_lowercase(name).unwrap();
        let known = fields.get_all(&name).iter().any(|known| known.as_bytes().trim_ascii() == value);
        assert!(made || known, "{name} came in: {what}");
    }
    for (name, value) in fields {
        let passes = |name: &HeaderName, value: &HeaderValue| {
            head.fields.headers.iter().any(|field| {
                let (one, other) = (field.value.get(bytes), value.as_bytes().trim_ascii());
                let whole = one == other
                    || name == "cookie" && (other.is_empty() || one.windows(other.len()).any(|part| part == other));
                field.name.get(bytes) == name.as_str().as_bytes() && whole
            })
        };
        assert!(passes(name, value), "{name} is lost: {what}");
    }
}
