//! A chunked body: means the same however it is cut, and is read like the grammar of RFC 9112, 7.1, says.

use gateway::http1::{Bad, Decoder, Framing, Limits};

use super::cuts;

/// Body, bytes used, whether it ended, trailers.
type Read = Result<(Vec<u8>, usize, bool, Vec<u8>), Bad>;

fn decode(bytes: &[u8], ends: &[usize]) -> Read {
    let mut decoder = Decoder::new(Framing::Chunked, &Limits::default());
    let (mut at, mut body) = (0, Vec::new());
    for &end in ends {
        while at < end && !decoder.ended() {
            let piece = decoder.next(&bytes[at..end])?;
            assert!(piece.skip + piece.data > 0, "no progress at {at}");
            body.extend_from_slice(&bytes[at + piece.skip..at + piece.skip + piece.data]);
            at += piece.skip + piece.data;
        }
    }
    Ok((body, at, decoder.ended(), decoder.trailers().to_vec()))
}

/// The same by the grammar, of a whole body, in the plainest way; `None` for anything else.
fn by_the_grammar(bytes: &[u8]) -> Option<(Vec<u8>, usize, Vec<u8>)> {
    let line = |at: usize| {
        let end = at + bytes[at..].windows(2).position(|pair| pair == b"\r\n")?;
        Some((&bytes[at..end], end + 2))
    };
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let (head, next) = line(at)?;
        let size = head.split(|&byte| byte == b';').next()?;
        let digits = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
        let size = digits.then(|| usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()).flatten()?;
        if head.iter().any(|&byte| byte < 0x20 && byte != b'\t' || byte == 0x7f) {
            return None;
        }
        if size == 0 {
            at = next;
            break;
        }
        body.extend_from_slice(bytes.get(next..next.checked_add(size)?)?);
        at = next + size;
        if bytes.get(at..at + 2)? != b"\r\n" {
            return None;
        }
        at += 2;
    }
    let trailers_at = at;
    loop {
        let (field, next) = line(at)?;
        if field.is_empty() {
            return Some((body, next, bytes[trailers_at..at].to_vec()));
        }
        let colon = field.iter().position(|&byte| byte == b':')?;
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let clean = field.iter().all(|&byte| byte >= 0x20 && byte != 0x7f || byte == b'\t');
        if colon == 0 || !field[..colon].iter().all(token) || !clean {
            return None;
        }
        at = next;
    }
}

/// Any bytes as a chunked body and what follows it.
pub fn chunked(bytes: &[u8]) {
    let whole = decode(bytes, &[bytes.len()]);
    assert_eq!(decode(bytes, &cuts::of(bytes)), whole, "cut, it means something else");
    if let Ok((body, used, true, trailers)) = &whole {
        let want = by_the_grammar(bytes).expect("accepted against the grammar");
        assert_eq!((body, used, trailers), (&want.0, &want.1, &want.2), "read against the grammar");
    }
}
