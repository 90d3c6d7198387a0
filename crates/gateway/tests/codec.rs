//! The codec as a function: however bytes are cut on their way, they mean the same; and nothing makes it panic.
#![allow(clippy::unwrap_used)]

use gateway::http1::{Bad, Decoder, Framing, Limits, RequestHead, ResponseHead, Scanner};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

/// Scans a head that arrives in parts; its length or its refusal.
fn scan(bytes: &[u8], cuts: &[usize]) -> Result<Option<(usize, usize)>, Bad> {
    let mut scanner = Scanner::default();
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(bytes.len());
    for end in ends {
        if let Some(length) = scanner.advance(&bytes[..end], &Limits::default())? {
            return Ok(Some((scanner.skipped(), length)));
        }
    }
    Ok(None)
}

fn parse(bytes: &[u8], cuts: &[usize]) -> Result<Option<RequestHead>, Bad> {
    let Some((skipped, length)) = scan(bytes, cuts)? else { return Ok(None) };
    let mut head = RequestHead::default();
    head.parse(&bytes[skipped..length], &Limits::default()).map(|()| Some(head))
}

fn decode(bytes: &[u8], cuts: &[usize], framing: Framing) -> Result<(Vec<u8>, usize, bool), Bad> {
    let mut decoder = Decoder::new(framing, &Limits::default());
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    ends.sort_unstable();
    ends.push(bytes.len());
    let (mut at, mut body) = (0, Vec::new());
    for end in ends {
        while at < end && !decoder.ended() {
            let piece = decoder.next(&bytes[at..end])?;
            body.extend_from_slice(&bytes[at + piece.skip..at + piece.skip + piece.data]);
            at += piece.skip + piece.data;
        }
    }
    Ok((body, at, decoder.ended()))
}

fn field() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        "[A-Za-z][A-Za-z0-9_-]{0,15}",
        Just("Connection".to_owned()),
        Just("Content-Length".to_owned()),
        Just("Transfer-Encoding".to_owned()),
        Just("Host".to_owned()),
        Just("Expect".to_owned()),
    ];
    let value = prop_oneof!["[ -~]{0,30}", "[0-9]{1,3}", Just("chunked".to_owned()), Just("close".to_owned())];
    (name, "[ \t]{0,2}", value).prop_map(|(name, space, value)| format!("{name}:{space}{value}\r\n"))
}

/// Mostly good heads, so that properties are not only about refusals.
fn head() -> impl Strategy<Value = Vec<u8>> {
    let target = prop_oneof!["/[!-~]{0,20}", "http://[a-z]{1,8}(:[0-9]{1,4})?/[a-z?]{0,9}", Just("*".to_owned())];
    let method = prop_oneof![Just("GET".to_owned()), Just("POST".to_owned()), "[A-Z]{1,9}"];
    (method, target, "[01]", vec(field(), 0..6), any::<bool>()).prop_map(|(method, target, minor, fields, host)| {
        let host = if host { "Host: h\r\n" } else { "" };
        format!("{method} {target} HTTP/1.{minor}\r\n{host}{}\r\nnext", fields.concat()).into_bytes()
    })
}

/// A good head with some bytes replaced.
fn bent_head() -> impl Strategy<Value = Vec<u8>> {
    (head(), vec((any::<usize>(), any::<u8>()), 0..4)).prop_map(|(mut head, bends)| {
        for (at, byte) in bends {
            let at = at % head.len();
            head[at] = byte;
        }
        head
    })
}

fn chunks() -> impl Strategy<Value = Vec<u8>> {
    let chunk = (vec(any::<u8>(), 1..40), "(;[a-z=]{0,9})?").prop_map(|(data, extension)| {
        [format!("{:x}{extension}\r\n", data.len()).into_bytes(), data, b"\r\n".to_vec()].concat()
    });
    (vec(chunk, 0..6), "(X-[a-z]{1,5}: [a-z]{0,5}\r\n){0,2}")
        .prop_map(|(chunks, trailers)| [chunks.concat(), format!("0\r\n{trailers}\r\nnext").into_bytes()].concat())
}

proptest! {
    #[test]
    fn a_head_means_the_same_however_it_is_cut(bytes in bent_head(), cuts in vec(any::<usize>(), 0..8)) {
        let whole = parse(&bytes, &[]);
        prop_assert_eq!(parse(&bytes, &cuts), whole.clone());
        for cut in 0..bytes.len() {
            prop_assert_eq!(parse(&bytes, &[cut]), whole.clone(), "cut at {}", cut);
        }
    }

    #[test]
    fn chunks_mean_the_same_however_they_are_cut(
        mut bytes in chunks(), cuts in vec(any::<usize>(), 0..8), bend in proptest::option::of((any::<usize>(), any::<u8>()))
    ) {
        if let Some((at, byte)) = bend {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        let whole = decode(&bytes, &[], Framing::Chunked);
        prop_assert_eq!(decode(&bytes, &cuts, Framing::Chunked), whole.clone());
        for cut in 0..bytes.len() {
            prop_assert_eq!(decode(&bytes, &[cut], Framing::Chunked), whole.clone(), "cut at {}", cut);
        }
        if bend.is_none() {
            let (_, used, ended) = whole.unwrap();
            prop_assert_eq!((used, ended), (bytes.len() - 4, true), "what comes next is not touched");
        }
    }

    /// No head that passes has two readings of its length.
    #[test]
    fn an_accepted_head_is_framed_once(bytes in bent_head()) {
        if let Ok(Some(head)) = parse(&bytes, &[]) {
            let count = |name: &str| {
                head.fields.headers.iter().filter(|field| field.name.get(head.bytes()).eq_ignore_ascii_case(name.as_bytes())).count()
            };
            let (lengths, codings) = (count("content-length"), count("transfer-encoding"));
            assert!(lengths + codings <= 1, "{}", bytes.escape_ascii());
            assert!(count("host") <= 1);
            assert!(!head.bytes().contains(&0));
            let bare = head.bytes().windows(2).any(|pair| (pair[1] == b'\n') != (pair[0] == b'\r'));
            assert!(!bare, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn any_bytes_are_judged_without_panic(bytes in vec(any::<u8>(), 0..300), cuts in vec(any::<usize>(), 0..4)) {
        let _ = parse(&bytes, &cuts);
        let _ = decode(&bytes, &cuts, Framing::Chunked);
        if let Ok(Some((skipped, length))) = scan(&bytes, &cuts) {
            let _ = ResponseHead::default().parse(&bytes[skipped..length], false, &Limits::default());
        }
        let _ = ResponseHead::default().parse(&bytes, true, &Limits::default());
        let _ = RequestHead::default().parse(&bytes, &Limits::default());
    }
}
