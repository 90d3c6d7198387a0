//! How instances read the bytes they get: strictly, and as lenient ones do that were found in the wild. All must see the
//! same requests. Deliberately simple: whole input in, complete requests out, never an error.

/// A request as an instance sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub host: String,
    pub body: Vec<u8>,
}

/// Complete requests, and how many bytes are left.
type Read = (Vec<Seen>, usize);

/// Reads all the bytes of a connection.
type Reader = fn(&[u8]) -> Read;

/// Lenient ones, by what they do if a request says two things.
pub const LENIENT: [(&str, Reader); 4] = [
    ("one that lets chunks win", |bytes| read(bytes, Manner { lenient: true, ..Manner::default() })),
    ("one that lets the length win", |bytes| {
        read(bytes, Manner { lenient: true, length_wins: true, ..Manner::default() })
    }),
    ("one that lets the last field win", |bytes| {
        read(bytes, Manner { lenient: true, last_wins: true, ..Manner::default() })
    }),
    ("one that takes trailers for fields", |bytes| {
        read(bytes, Manner { lenient: true, last_wins: true, merges_trailers: true, ..Manner::default() })
    }),
];

/// By the letter of RFC 9112.
pub fn strict(bytes: &[u8]) -> Read {
    read(bytes, Manner::default())
}

#[derive(Clone, Copy, Default)]
struct Manner {
    /// LF ends a line, space may stand before a colon, folded lines go on, `_` is `-`, sizes and lengths are read as far
    /// as they are numbers, and anything with `chunked` in it means chunks.
    lenient: bool,
    length_wins: bool,
    last_wins: bool,
    merges_trailers: bool,
}

fn read(bytes: &[u8], manner: Manner) -> Read {
    let (mut at, mut seen) = (0, Vec::new());
    while at < bytes.len() {
        let Some((request, used)) = one(&bytes[at..], manner) else { break };
        seen.push(request);
        at += used;
    }
    (seen, bytes.len() - at)
}

/// The line at `at`, and where the next begins.
fn line(bytes: &[u8], at: usize, lenient: bool) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    if lenient {
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        return Some((rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]), at + end + 1));
    }
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    Some((&rest[..end], at + end + 2))
}

fn one(bytes: &[u8], manner: Manner) -> Option<(Seen, usize)> {
    let (first, at) = line(bytes, 0, manner.lenient)?;
    let first = String::from_utf8_lossy(first).into_owned();
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next().unwrap_or_default().to_owned());
    let (mut fields, at) = fields_at(bytes, at, manner)?;
    let value = |fields: &[(String, String)], name: &str| {
        let mut found = fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.trim().to_owned());
        if manner.last_wins { found.next_back() } else { found.next() }
    };
    let chunked = match value(&fields, "transfer-encoding") {
        Some(coding) if manner.lenient => coding.contains("chunked"),
        coding => coding.as_deref() == Some("chunked"),
    };
    let length = value(&fields, "content-length").map(|length| number(&length, 10, manner.lenient));
    let (body, end) = match length {
        Some(length) if manner.length_wins || !chunked => {
            (bytes.get(at..at.checked_add(length)?)?.to_vec(), at + length)
        }
        _ if chunked => {
            let (body, trailers_at) = chunks(bytes, at, manner)?;
            let (trailers, end) = fields_at(bytes, trailers_at, manner)?;
            if manner.merges_trailers {
                fields.extend(trailers);
            }
            (body, end)
        }
        _ => (Vec::new(), at),
    };
    let host = value(&fields, "host").unwrap_or_default();
    Some((Seen { method, target, host, body }, end))
}

/// Field lines up to an empty one, and where what follows begins.
fn fields_at(bytes: &[u8], mut at: usize, manner: Manner) -> Option<(Vec<(String, String)>, usize)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    loop {
        let (field, next) = line(bytes, at, manner.lenient)?;
        at = next;
        if field.is_empty() {
            return Some((fields, at));
        }
        let text = String::from_utf8_lossy(field).to_ascii_lowercase();
        match (text.starts_with([' ', '\t']), text.split_once(':')) {
            (true, _) if manner.lenient => {
                if let Some((_, value)) = fields.last_mut() {
                    value.push_str(&text);
                }
            }
            (_, Some((name, value))) if manner.lenient => {
                fields.push((name.trim().replace('_', "-"), value.to_owned()));
            }
            (_, Some((name, value))) => fields.push((name.to_owned(), value.to_owned())),
            (_, None) => {}
        }
    }
}

/// A number, or as much of the front as is one.
fn number(text: &str, base: u32, lenient: bool) -> usize {
    if !lenient {
        return usize::from_str_radix(text, base).unwrap_or(usize::MAX);
    }
    let text = text.trim().trim_start_matches('+').trim_start_matches("0x");
    let digits: String = text.chars().take_while(|digit| digit.is_digit(base)).collect();
    usize::from_str_radix(&digits, base).unwrap_or(0)
}

fn chunks(bytes: &[u8], mut at: usize, manner: Manner) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    loop {
        let (head, next) = line(bytes, at, manner.lenient)?;
        let head = String::from_utf8_lossy(head);
        let size = number(head.split(';').next().unwrap_or_default(), 16, manner.lenient);
        at = next;
        if size == 0 {
            break;
        }
        body.extend_from_slice(bytes.get(at..at.checked_add(size)?)?);
        // A lenient one looks at what should be an end of line as little as at the rest.
        at = line(bytes, at + size, manner.lenient)?.1;
    }
    Some((body, at))
}
