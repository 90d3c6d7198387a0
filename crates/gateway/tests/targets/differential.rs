//! Two readers of one request: whatever the gateway accepts, a hyper server reads the same way, both in the bytes that
//! came and in the bytes that go on: method, target, host, fields, body, and where the next request begins. The gateway
//! may refuse more; it may not accept anything that is read differently.

use gateway::http1::{Framing, Kind, RequestHead, Version};
use gateway::proof::{self, Outcome, Passed};

use super::reader::{self, Seen};

/// The request behind the one that is looked at: whoever disagrees about the end of the first does not see it.
const NEXT: &[u8] = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n";

type Request = Seen<http::request::Parts>;

/// Any bytes as a request: head and body.
pub fn differential(bytes: &[u8]) {
    let Outcome::Whole(passed) = proof::request(bytes) else { return };
    // What http's types do not take hyper refuses, which is no other reading.
    let target = passed.head.path_and_query();
    let absolute = [b"http://", passed.head.authority(), target].concat();
    if http::Uri::try_from(target_of(target)).is_err() || http::Uri::try_from(absolute).is_err() {
        return;
    }
    let body = plain_body(&passed);
    let forwarded = reader::server(&[&passed.sent, NEXT].concat());
    let what = format!("forwarded as {}", passed.sent.escape_ascii());
    let [first, next] = &forwarded[..] else { panic!("{} requests, {what}", forwarded.len()) };
    assert_eq!(next.head.uri, "/next", "{what}");
    same(&passed.head, &body, first, &what);
    as_it_should_be_forwarded(&passed.head, first, &what);
    as_it_came(bytes, &passed, &body);
}

fn target_of(target: &[u8]) -> Vec<u8> {
    match target {
        [] | [b'?', ..] => [b"/", target].concat(),
        _ => target.to_vec(),
    }
}

/// The body the gateway read, without framing.
fn plain_body(passed: &Passed<RequestHead>) -> Vec<u8> {
    let mut rest = &passed.sent[passed.body_at..];
    if passed.head.framing() != Framing::Chunked {
        return rest.to_vec();
    }
    // Written by the gateway: no extensions, lower-case sizes.
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
}

/// Method, body, and framing.
fn same(head: &RequestHead, body: &[u8], seen: &Request, what: &str) {
    assert_eq!(seen.head.method.as_str().as_bytes(), head.method(), "{what}");
    assert_eq!(
        seen.body.as_deref().map(<[u8]>::escape_ascii).map(|text| text.to_string()),
        Some(body.escape_ascii().to_string()),
        "{what}"
    );
    let target = seen.head.uri.path_and_query().map_or("", |target| target.as_str());
    assert_eq!(target_of(target.as_bytes()), target_of(head.path_and_query()), "{what}");
}

/// Version, host, and fields: each once, none that belongs to one connection, none more than came.
fn as_it_should_be_forwarded(head: &RequestHead, seen: &Request, what: &str) {
    let fields = &seen.head.headers;
    assert_eq!(seen.head.version, http::Version::HTTP_11, "{what}");
    let hosts: Vec<&[u8]> = fields.get_all("host").iter().map(|host| host.as_bytes()).collect();
    let host: &[u8] = if head.authority().is_empty() { b"192.0.2.1:80" } else { head.authority() };
    assert_eq!(hosts, [host], "{what}");
    let lengths = fields.get_all("content-length").iter().count();
    assert_eq!(lengths, usize::from(head.fields.content_length.is_some()), "{what}");
    let codings: Vec<&[u8]> = fields.get_all("transfer-encoding").iter().map(|coding| coding.as_bytes()).collect();
    assert_eq!(codings.len(), usize::from(head.framing() == Framing::Chunked), "{what}");
    assert!(codings.iter().all(|coding| coding == b"chunked"), "{what}");
    assert_eq!(fields.contains_key("expect"), head.expects_continue(), "{what}");
    for own in ["x-forwarded-for", "x-forwarded-proto", "x-request-id", "traceparent"] {
        assert_eq!(fields.get_all(own).iter().count(), 1, "{own}, {what}");
    }
    assert_eq!(fields["x-forwarded-for"], "192.0.2.7", "{what}");
    for name in fields.keys() {
        assert!(!name.as_str().replace('_', "-").starts_with("seawall-"), "{name}, {what}");
    }
    let text = head.bytes();
    for field in &head.fields.headers {
        if field.kind != Kind::Other {
            continue;
        }
        let (name, value) = (field.name.get(text), field.value.get(text));
        let name = http::HeaderName::from_bytes(name).unwrap();
        let passed = fields.get_all(&name).iter().any(|passed| passed.as_bytes() == value);
        assert_eq!(passed, !head.fields.is_named(text, field.name), "{name}, {what}");
    }
    for name in seen.trailers.keys() {
        assert_eq!(Kind::of(name.as_str().as_bytes()), Kind::Other, "trailer {name}, {what}");
    }
}

/// hyper reads the client's own bytes as the gateway did.
fn as_it_came(bytes: &[u8], passed: &Passed<RequestHead>, body: &[u8]) {
    let came = [&bytes[..passed.used], NEXT].concat();
    let seen = reader::server(&came);
    let what = format!("came as {}", came.escape_ascii());
    let head = &passed.head;
    let Some(first) = seen.first() else { panic!("refused, {what}") };
    same(head, body, first, &what);
    let version = if head.version() == Version::Http10 { http::Version::HTTP_10 } else { http::Version::HTTP_11 };
    assert_eq!(first.head.version, version, "{what}");
    let others = seen.len() - 1;
    // hyper does not look into a `Connection` beyond ASCII; the gateway does, and closes where it says so.
    let connections = head.fields.headers.iter().filter(|field| field.kind == Kind::Connection);
    let looked_into = connections.into_iter().all(|field| field.value.get(head.bytes()).is_ascii());
    assert!(others <= 1 && (others == usize::from(head.keep_alive()) || !looked_into), "requests behind it, {what}");
    if let Some(next) = seen.get(1) {
        assert_eq!(next.head.uri, "/next", "{what}");
    }
}
