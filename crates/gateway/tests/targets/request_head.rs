//! A request's head: means the same however it is cut, is framed once, and what goes on of it means the same again.

use gateway::http1::{Bad, Framing, Limits, RequestHead, Scanner, Version};
use gateway::proof::{self, Outcome};

use super::cuts;

fn read(bytes: &[u8], ends: &[usize]) -> Result<Option<(usize, RequestHead)>, Bad> {
    let (mut scanner, limits) = (Scanner::default(), Limits::default());
    for end in ends {
        if let Some(length) = scanner.advance(&bytes[..*end], &limits)? {
            let mut head = RequestHead::default();
            head.parse(&bytes[scanner.skipped()..length], &limits)?;
            return Ok(Some((length, head)));
        }
    }
    Ok(None)
}

/// Any bytes as the front of a connection.
pub fn request_head(bytes: &[u8]) {
    let whole = read(bytes, &[bytes.len()]);
    assert_eq!(read(bytes, &cuts::of(bytes)), whole, "cut, it means something else");
    let Ok(Some((length, head))) = whole else { return };
    let text = head.bytes();
    assert!(bytes[..length].ends_with(text), "the head is not what came");
    for at in 0..text.len() {
        let bare = (text[at] == b'\n') != (at > 0 && text[at - 1] == b'\r');
        let control = text[at] < 0x20 && !matches!(text[at], b'\t' | b'\r' | b'\n') || text[at] == 0x7f;
        assert!(!bare && !control, "byte {at} of {}", text.escape_ascii());
    }
    let count = |name: &[u8]| {
        let fields = head.fields.headers.iter();
        fields.filter(|field| field.name.get(text).eq_ignore_ascii_case(name)).count()
    };
    assert!(count(b"content-length") + count(b"transfer-encoding") <= 1 && count(b"host") <= 1);
    goes_on_the_same(&bytes[..length], &head);
}

/// The head an instance gets, read by the same parser, is the same request.
fn goes_on_the_same(bytes: &[u8], head: &RequestHead) {
    let body: &[u8] = match head.framing() {
        Framing::None => b"",
        Framing::Length(length @ ..=4096) => &[b'x'; 4096][..length as usize],
        Framing::Length(_) | Framing::UntilClose => return,
        Framing::Chunked => b"0\r\n\r\n",
    };
    let Outcome::Whole(passed) = proof::request(&[bytes, body].concat()) else {
        panic!("a head that passes and its body do not");
    };
    // The gateway's own fields make it larger than a client may send.
    let roomy = Limits { head_bytes: usize::MAX, headers: 128, ..Limits::default() };
    let mut again = RequestHead::default();
    again.parse(&passed.sent[..passed.body_at], &roomy).unwrap();
    assert_eq!(again.version(), Version::Http11);
    assert_eq!(again.method(), head.method());
    let target = match head.path_and_query() {
        target @ ([] | [b'?', ..]) => [b"/", target].concat(),
        target => target.to_vec(),
    };
    assert_eq!(again.path_and_query(), target);
    assert_eq!(again.path(), head.path());
    assert_eq!(again.framing(), head.framing());
    assert_eq!(again.expects_continue(), head.expects_continue());
    assert_eq!(again.wants_upgrade(), head.wants_upgrade());
    if head.authority().is_empty() {
        assert_eq!(again.authority(), b"192.0.2.1:80");
    } else {
        assert_eq!((again.authority(), again.host()), (head.authority(), head.host()));
    }
}
