//! A response: means the same however it is cut, and what a client gets of it is read by a hyper client as the gateway
//! read it: status, body and its end. The first byte says whether the request was HEAD and what the client speaks.

use gateway::http1::{Bad, Decoder, Framing, Limits, ResponseHead, Scanner, Version};
use gateway::proof::{self, Outcome, Passed};

use super::{cuts, reader};

fn read(bytes: &[u8], to_head: bool, ends: &[usize]) -> Result<Option<(usize, ResponseHead)>, Bad> {
    let (mut scanner, limits) = (Scanner::default(), Limits::default());
    for end in ends {
        if let Some(length) = scanner.advance(&bytes[..*end], &limits)? {
            let mut head = ResponseHead::default();
            head.parse(&bytes[scanner.skipped()..length], to_head, &limits)?;
            return Ok(Some((length, head)));
        }
    }
    Ok(None)
}

/// Any bytes as what an instance sends until it closes.
pub fn response_head(bytes: &[u8]) {
    let Some((&manner, bytes)) = bytes.split_first() else { return };
    let to_head = manner & 1 == 1;
    let version = if manner & 2 == 2 { Version::Http10 } else { Version::Http11 };
    let whole = read(bytes, to_head, &[bytes.len()]);
    assert_eq!(read(bytes, to_head, &cuts::of(bytes)), whole, "cut, it means something else");
    let Outcome::Whole(passed) = proof::response(bytes, to_head, version) else { return };
    if passed.head.status < 200 {
        return;
    }
    read_by_a_client(&passed, bytes, to_head);
}

fn read_by_a_client(passed: &Passed<ResponseHead>, bytes: &[u8], to_head: bool) {
    let what = passed.sent.escape_ascii();
    let Some(seen) = reader::client(&passed.sent, to_head) else { panic!("refused: {what}") };
    assert_eq!(seen.head.status.as_u16(), passed.head.status, "{what}");
    let body = body(passed, bytes);
    assert_eq!(seen.body, Some(body), "{what}");
    for name in ["seawall-reason", "keep-alive", "proxy-connection", "upgrade", "te"] {
        assert!(!seen.head.headers.contains_key(name), "{name}: {what}");
    }
    for name in ["content-length", "transfer-encoding"] {
        assert!(seen.head.headers.get_all(name).iter().count() <= 1, "{name}: {what}");
    }
}

/// The body as the decoder finds it in what the instance sent.
fn body(passed: &Passed<ResponseHead>, bytes: &[u8]) -> Vec<u8> {
    let head_bytes = bytes.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let framing = passed.head.framing;
    let mut decoder = Decoder::new(framing, &Limits::default());
    let (mut at, mut body) = (head_bytes, Vec::new());
    while at < bytes.len() && !decoder.ended() {
        let piece = decoder.next(&bytes[at..]).unwrap();
        body.extend_from_slice(&bytes[at + piece.skip..at + piece.skip + piece.data]);
        at += piece.skip + piece.data;
    }
    assert!(framing == Framing::UntilClose || at == passed.used, "used {} of {at}", passed.used);
    body
}
