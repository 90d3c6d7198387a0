//! Reads the cases of `http1.txt` and `http2.txt`; what their lines mean stands at the head of each.

use crate::frames;
use crate::readers::Seen;

/// One case.
pub struct Case {
    pub name: String,
    pub bytes: Vec<u8>,
    pub expected: Vec<Expected>,
}

/// What must happen, in order.
pub enum Expected {
    Seen(Seen),
    Refused {
        status: u16,
        word: String,
        begun: bool,
    },
    Closed,
    /// Of HTTP/2: reset, or answered with a status.
    Reset,
    Status(u16),
}

/// Cases of a file; `bytes` makes what is sent out of a case's lines.
pub fn read(text: &str, bytes: impl Fn(&[(char, &str)]) -> Vec<u8>) -> Vec<Case> {
    let cases = text.split("\n# ").skip(1);
    cases
        .map(|case| {
            let (name, rest) = case.split_once('\n').unwrap();
            let lines: Vec<(char, &str)> = rest.lines().filter_map(line).collect();
            let expected = lines.iter().filter_map(|(mark, rest)| expected(*mark, rest)).collect();
            Case { name: name.to_owned(), bytes: bytes(&lines), expected }
        })
        .collect()
}

/// A line's mark and what follows it and a space.
fn line(line: &str) -> Option<(char, &str)> {
    let mark = line.chars().next().filter(|mark| "|+^=!>.x".contains(*mark))?;
    Some((mark, line.get(2..).unwrap_or_default()))
}

fn expected(mark: char, rest: &str) -> Option<Expected> {
    Some(match mark {
        '>' => Expected::Seen(seen(rest)),
        '=' if !rest.contains(' ') => Expected::Status(rest.parse().unwrap()),
        '=' | '!' => {
            let (status, word) = rest.split_once(' ').unwrap();
            Expected::Refused { status: status.parse().unwrap(), word: word.to_owned(), begun: mark == '!' }
        }
        '.' => Expected::Closed,
        'x' => Expected::Reset,
        _ => return None,
    })
}

/// `METHOD TARGET HOST "BODY"`.
fn seen(line: &str) -> Seen {
    let mut words = line.splitn(4, ' ');
    let mut word = || words.next().unwrap();
    let (method, target, host, body) = (word().to_owned(), word().to_owned(), word().to_owned(), word());
    let body = unescaped(body.strip_prefix('"').unwrap().strip_suffix('"').unwrap());
    Seen { method, target, host, body }
}

/// Lines as they stand, a CR LF behind each unless it ends in `\`.
pub fn http1(lines: &[(char, &str)]) -> Vec<u8> {
    let lines = lines.iter().filter(|(mark, _)| *mark == '|');
    lines
        .flat_map(|(_, line)| match line.strip_suffix('\\') {
            Some(open) => unescaped(open),
            None => [unescaped(line), b"\r\n".to_vec()].concat(),
        })
        .collect()
}

/// Fields, data and trailers as frames of one stream.
pub fn http2(lines: &[(char, &str)]) -> Vec<u8> {
    let fields = |mark: char| {
        let lines = lines.iter().filter(move |(other, _)| *other == mark);
        lines
            .map(|(_, line)| {
                let (name, value) = line.split_once(' ').unwrap();
                (unescaped(name), unescaped(value))
            })
            .collect::<Vec<_>>()
    };
    let data = lines.iter().filter(|(mark, _)| *mark == '+').map(|(_, data)| unescaped(data)).collect();
    frames::request(&fields('|'), data, &fields('^'))
}

fn unescaped(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        out.push(match rest.next().unwrap() {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'\\' => b'\\',
            b'x' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => panic!("\\{} in {text}", other.escape_ascii()),
        });
    }
    out
}
