//! The shortest way: one key is written or read over HTTP/1.1, and the connection itself answers. What hyper does for any
//! request would cost more than everything behind it. The same checks and the same answers as by `hot.rs`, the same
//! tokenizer as hyper's. From the first request on that is not plainly one of these the connection is hyper's, who also
//! refuses what is no HTTP; whoever asks for other things now and then loses nothing but some speed.
//! Deliberately absent: bodies in chunks, expectations, upgrades, the end of a connection by a field.

use std::cell::RefCell;
use std::io::Write as _;
use std::ops::Range;
use std::pin::pin;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::Response;
use data::MAX_VALUE_BYTES;
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::authority::Peer;
use crate::hot::{self, Answers, key_of};
use crate::preface::Begun;

/// Fields of a plain request; one with more is hyper's.
const MAX_FIELDS: usize = 32;
/// Bytes of its head.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Room for the head of an answer.
const HEAD_BYTES: usize = 384;
/// A buffer that a large value has made larger is made small again.
const KEPT_BYTES: usize = 16 * 1024;
/// What a plain request has none of: they change how it is read, or what becomes of its connection.
const NOT_PLAIN: [HeaderName; 4] = [header::EXPECT, header::TRAILER, header::TRANSFER_ENCODING, header::UPGRADE];

/// A request whose head is here.
#[derive(PartialEq, Eq, Debug)]
struct Asked {
    key: Range<usize>,
    headers: HeaderMap,
    /// Where its value is; none for a read.
    value: Option<Range<usize>>,
    /// Where the next request begins.
    end: usize,
}

/// What a connection has said so far.
#[derive(PartialEq, Eq, Debug)]
enum Judged {
    Plain(Asked),
    /// It may become a plain request.
    Begun,
    /// It is not.
    Other,
}

/// Answers requests as long as they are plain. What it gives back has something else to ask; none, when the connection is
/// over: by its client, because no request came within `patience`, or because the API stops.
pub(crate) async fn serve(
    mut begun: Begun,
    peer: &Peer,
    answers: &Answers,
    patience: Duration,
    stopped: &mut watch::Receiver<bool>,
) -> Option<Begun> {
    let mut stop = pin!(stopped.wait_for(|stop| *stop));
    // It goes off once in a while and looks when the last answer was given: to set it for each request would cost more.
    let mut timer = pin!(tokio::time::sleep(patience));
    loop {
        let since = Instant::now();
        let asked = loop {
            match judge(&begun.read) {
                Judged::Plain(asked) => break asked,
                Judged::Begun => {}
                Judged::Other => return Some(begun),
            }
            tokio::select! {
                biased;
                count = begun.more() => if !matches!(count, Ok(1..)) { return None },
                () = timer.as_mut() => {
                    let until = since + patience;
                    if until <= Instant::now() {
                        return None;
                    }
                    timer.as_mut().reset(until);
                }
                // An error means the server's handle is gone, which is a stop as well.
                _ = stop.as_mut() => return None,
            }
        };
        let Some(context) = answers.hot(peer, &asked.headers) else { return Some(begun) };
        begun.read.reserve(asked.end.saturating_sub(begun.read.len()));
        while begun.read.len() < asked.end {
            // Some of a value that comes at all comes in time.
            if !matches!(tokio::time::timeout(patience, begun.more()).await, Ok(Ok(1..))) {
                return None;
            }
        }
        let key = std::str::from_utf8(&begun.read[asked.key]).unwrap_or_default();
        // A copy of its own: the store keeps it, and not the whole buffer.
        let value = asked.value.map(|value| Bytes::copy_from_slice(&begun.read[value]));
        let bytes = written(hot::answer_whole(context, key, &asked.headers, value).await).await?;
        begun.stream.write_all(&bytes).await.ok()?;
        begun.read.drain(..asked.end);
        begun.read.shrink_to(KEPT_BYTES);
    }
}

/// What the connection has to say next.
fn judge(read: &[u8]) -> Judged {
    let begins = |start: &str| read.iter().zip(start.as_bytes()).all(|(one, other)| one == other);
    if !begins("GET /api/v1/kv/") && !begins("PUT /api/v1/kv/") {
        return Judged::Other;
    }
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    match head.parse(&read[..read.len().min(MAX_HEAD_BYTES)]) {
        Ok(httparse::Status::Complete(length)) => asked(&head, read, length).map_or(Judged::Other, Judged::Plain),
        Ok(httparse::Status::Partial) if read.len() < MAX_HEAD_BYTES => Judged::Begun,
        Ok(httparse::Status::Partial) | Err(_) => Judged::Other,
    }
}

fn asked(head: &httparse::Request<'_, '_>, read: &[u8], length: usize) -> Option<Asked> {
    let key = head.path.and_then(key_of).filter(|key| key.bytes().all(is_plain))?;
    if head.version != Some(1) {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for field in &*head.headers {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    let only = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    only(header::HOST)?;
    // Some clients say what goes without saying.
    let stays = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"keep-alive");
    if NOT_PLAIN.iter().any(|name| headers.contains_key(name)) || !headers.get_all(header::CONNECTION).iter().all(stays)
    {
        return None;
    }
    let bytes: usize = match headers.contains_key(header::CONTENT_LENGTH) {
        true => only(header::CONTENT_LENGTH)?
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))?
            .parse()
            .ok()?,
        false => 0,
    };
    let end = length.checked_add(bytes)?;
    let value = match head.method? {
        "GET" if bytes == 0 => None,
        "PUT" if bytes <= MAX_VALUE_BYTES => Some(length..end),
        _ => return None,
    };
    let first = key.as_ptr().addr() - read.as_ptr().addr();
    Some(Asked { key: first..first + key.len(), headers, value, end })
}

/// Characters of a path that stand for themselves (RFC 3986, 3.3).
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte)
}

/// An answer as it is sent; none if its body fails, which none of these does.
async fn written(answer: Response) -> Option<Vec<u8>> {
    let (head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.ok()?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    let reason = head.status.canonical_reason().unwrap_or_default();
    // Writing to memory does not fail.
    let _ = write!(bytes, "HTTP/1.1 {} {reason}\r\n", head.status.as_str());
    for (name, value) in &head.headers {
        field(&mut bytes, name.as_str(), value.as_bytes());
    }
    if !head.headers.contains_key(header::CONTENT_LENGTH) {
        let _ = write!(bytes, "content-length: {}\r\n", body.len());
    }
    dated(|date| field(&mut bytes, "date", date.as_bytes()));
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body);
    Some(bytes)
}

fn field(bytes: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        bytes.extend_from_slice(part);
    }
}

/// The date as answers tell it, written once a second.
fn dated(tell: impl FnOnce(&str)) {
    thread_local! {
        static DATE: RefCell<(i64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = Timestamp::now();
    DATE.with_borrow_mut(|(second, text)| {
        if *second != now.as_second() {
            *second = now.as_second();
            *text = DateTimePrinter::new().timestamp_to_rfc9110_string(&now).unwrap_or_default();
        }
        tell(text);
    });
}

#[cfg(test)]
mod tests;
