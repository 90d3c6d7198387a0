//! HTTP/2 on both sides: frames, flow control and header compression are the `h2` crate's; this crate turns a stream
//! into what the request walk knows. A head becomes the HTTP/1.1 head it means and back, so that one strict parser
//! judges both versions and nothing can be read in two ways after a change of version.
//! Deliberately absent: server push, priorities, `CONNECT`.

mod server;
mod stream;
mod upstream;

use http::header::{CONTENT_LENGTH, COOKIE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

pub(crate) use server::serve;
pub(crate) use stream::Stream;
pub(crate) use upstream::{Connection, Exchange};

use crate::http1::{Fields, Header};

/// What a client of HTTP/2 with prior knowledge sends first (RFC 9113, 3.4); no request of HTTP/1.1 begins so.
pub(crate) const PREFACE_LINE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Bytes of one stream that may be on their way in one direction.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Streams of one client connection at a time.
const MOST_STREAMS: u32 = 128;
/// As many as all streams together: held requests, whose bodies wait unread, cannot starve the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MOST_STREAMS;
/// Bytes of one stream kept for a peer that takes them slowly.
const SEND_BUFFER: usize = 64 * 1024;

/// Writes a request's head as HTTP/1.1. `ended`: it has no body.
pub(crate) fn write_request(out: &mut Vec<u8>, parts: &Parts, ended: bool) {
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let Some(authority) = authority {
        push_field(out, HOST.as_str(), authority.as_bytes());
    }
    let (mut has_cookies, mut has_length) = (false, false);
    for (name, value) in &parts.headers {
        has_cookies |= name == COOKIE;
        has_length |= name == CONTENT_LENGTH;
        // A `Host` beside an authority that says something else stays, and is refused as the second.
        let said = name == HOST && authority.is_some_and(|authority| authority.as_bytes() == value.as_bytes());
        if name != COOKIE && !said {
            push_field(out, name.as_str(), value.as_bytes());
        }
    }
    if has_cookies {
        // One field in HTTP/1.1, whatever number here (RFC 9113, 8.2.3).
        out.extend_from_slice(b"cookie: ");
        for (index, cookie) in parts.headers.get_all(COOKIE).iter().enumerate() {
            out.extend_from_slice(if index > 0 { b"; " } else { b"" });
            out.extend_from_slice(cookie.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
    }
    if !ended && !has_length {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a response's head as HTTP/1.1.
fn write_response(out: &mut Vec<u8>, parts: &http::response::Parts) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.extend_from_slice(b" \r\n");
    write_fields(out, &parts.headers);
    out.extend_from_slice(b"\r\n");
}

fn write_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        push_field(out, name.as_str(), value.as_bytes());
    }
}

fn push_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The fields of a head for which `passes` holds.
fn field_map(fields: &Fields, bytes: &[u8], passes: impl Fn(&Header) -> bool) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(fields.headers.len());
    for header in fields.headers.iter().filter(|header| passes(header)) {
        append(&mut map, header.name.get(bytes), header.value.get(bytes));
    }
    map
}

/// The fields of lines `name: value`.
fn line_map(lines: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
        if let Some(colon) = memchr::memchr(b':', line) {
            append(&mut map, &line[..colon], line[colon + 1..].trim_ascii());
        }
    }
    map
}

/// Both parsers let only fields through that this one takes, too.
fn append(map: &mut HeaderMap, name: &[u8], value: &[u8]) {
    if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
        map.append(name, value);
    }
}
