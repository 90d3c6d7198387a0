//! Chunked bodies, byte by byte: strict sizes, bounded extensions, bounded trailers.
//! Used by the body decoder in both directions. Chunks are cut open and wrapped anew, so that no reading of ours
//! and an instance's can differ. Deliberately absent: the meaning of extensions (dropped).

use super::{Bad, Limits, is_token};

/// Where in the chunked syntax the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the first digit or further digits of a size.
    Size {
        digits: u8,
    },
    /// Behind the size, within extensions.
    Extension,
    /// The size line's LF.
    SizeLf,
    /// Within a chunk: `left` bytes to go.
    Data,
    DataCr,
    DataLf,
    /// Within the trailer section.
    Trailers,
    End,
}

/// Decodes one chunked body.
#[derive(Debug, Clone)]
pub struct Chunked {
    state: State,
    left: u64,
    line: usize,
    trailers: Vec<u8>,
    trailer_line: usize,
    trailer_count: usize,
    chunk_line_bytes: usize,
    trailer_bytes: usize,
    most_trailers: usize,
}

/// Sizes of at most 15 hex digits: any real chunk, and no overflow anywhere.
const MAX_DIGITS: u8 = 15;

impl Chunked {
    /// A decoder at the body's first byte.
    pub fn new(limits: &Limits) -> Self {
        Self {
            state: State::Size { digits: 0 },
            left: 0,
            line: 0,
            trailers: Vec::new(),
            trailer_line: 0,
            trailer_count: 0,
            chunk_line_bytes: limits.chunk_line_bytes,
            trailer_bytes: limits.trailer_bytes,
            most_trailers: limits.headers,
        }
    }

    /// Takes framing bytes until data begins: `(framing, data)` lengths at the front of `input`.
    ///
    /// # Errors
    /// The first byte that breaks RFC 9112 7.1, or a bound.
    pub fn next(&mut self, input: &[u8]) -> Result<(usize, usize), Bad> {
        let mut at = 0;
        while at < input.len() {
            if self.state == State::Data {
                let data = self.left.min((input.len() - at) as u64) as usize;
                self.left -= data as u64;
                if self.left == 0 {
                    self.state = State::DataCr;
                }
                return Ok((at, data));
            }
            if self.state == State::End {
                break;
            }
            self.step(input[at])?;
            at += 1;
        }
        Ok((at, 0))
    }

    /// Whether the last byte of the body, trailers included, has been taken.
    pub fn ended(&self) -> bool {
        self.state == State::End
    }

    /// The trailer section's lines, each with its CRLF, once the body has ended.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn step(&mut self, byte: u8) -> Result<(), Bad> {
        match self.state {
            State::Size { digits } => return self.size(byte, digits),
            State::Extension => {
                self.line += 1;
                if self.line > self.chunk_line_bytes {
                    return Err(Bad::request("chunk-extension-too-long"));
                }
                match byte {
                    b'\r' => self.state = State::SizeLf,
                    b'\t' | 0x20..=0x7e | 0x80.. => {}
                    _ => return Err(Bad::request("chunk-extension")),
                }
            }
            State::SizeLf => {
                expect(byte, b'\n')?;
                self.line = 0;
                self.state = if self.left == 0 { State::Trailers } else { State::Data };
            }
            State::DataCr => {
                expect(byte, b'\r')?;
                self.state = State::DataLf;
            }
            State::DataLf => {
                expect(byte, b'\n')?;
                self.state = State::Size { digits: 0 };
            }
            State::Trailers => return self.trailer(byte),
            State::Data | State::End => {}
        }
        Ok(())
    }

    fn size(&mut self, byte: u8, digits: u8) -> Result<(), Bad> {
        let value = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b';' if digits > 0 => {
                self.state = State::Extension;
                return Ok(());
            }
            b'\r' if digits > 0 => {
                self.state = State::SizeLf;
                return Ok(());
            }
            _ => return Err(Bad::request("chunk-size")),
        };
        if digits == MAX_DIGITS {
            return Err(Bad::request("chunk-size"));
        }
        self.left = if digits == 0 { u64::from(value) } else { self.left << 4 | u64::from(value) };
        self.state = State::Size { digits: digits + 1 };
        Ok(())
    }

    fn trailer(&mut self, byte: u8) -> Result<(), Bad> {
        if self.trailers.len() >= self.trailer_bytes {
            return Err(Bad::with(431, "trailers-too-large"));
        }
        self.trailers.push(byte);
        if byte != b'\n' {
            return Ok(());
        }
        let line = &self.trailers[self.trailer_line..self.trailers.len() - 1];
        let Some((b'\r', line)) = line.split_last() else { return Err(Bad::request("bare-lf")) };
        if line.is_empty() {
            self.trailers.truncate(self.trailer_line);
            self.state = State::End;
            return Ok(());
        }
        let name = line.iter().position(|&byte| !is_token(byte)).unwrap_or(line.len());
        let controls = line.iter().any(|&byte| (byte < 0x20 && byte != b'\t') || byte == 0x7f);
        if name == 0 || line.get(name) != Some(&b':') || controls {
            return Err(Bad::request("trailer"));
        }
        self.trailer_line = self.trailers.len();
        self.trailer_count += 1;
        if self.trailer_count > self.most_trailers {
            // Parsers bound the number of fields, wherever they stand.
            return Err(Bad::with(431, "trailers-too-large"));
        }
        Ok(())
    }
}

fn expect(byte: u8, wanted: u8) -> Result<(), Bad> {
    if byte == wanted { Ok(()) } else { Err(Bad::request("chunk-framing")) }
}

#[cfg(test)]
mod tests {
    use super::Chunked;
    use crate::http1::Limits;

    fn decode(input: &[u8]) -> Result<(Vec<u8>, bool, Vec<u8>), &'static str> {
        let mut chunked = Chunked::new(&Limits::default());
        let (mut at, mut body) = (0, Vec::new());
        while at < input.len() && !chunked.ended() {
            let (skip, data) = chunked.next(&input[at..]).map_err(|bad| bad.why)?;
            body.extend_from_slice(&input[at + skip..at + skip + data]);
            at += skip + data;
        }
        Ok((body, chunked.ended(), chunked.trailers().to_vec()))
    }

    #[test]
    fn good_bodies() {
        for (input, body, trailers) in [
            ("0\r\n\r\n", "", ""),
            ("3\r\nabc\r\n0\r\n\r\n", "abc", ""),
            ("A;x=\"y;z\"\r\n0123456789\r\n00\r\n\r\n", "0123456789", ""),
            ("1\r\na\r\n1\r\nb\r\n0\r\nX: y\r\nZ: w\r\n\r\n", "ab", "X: y\r\nZ: w\r\n"),
        ] {
            let want = (body.as_bytes().to_vec(), true, trailers.as_bytes().to_vec());
            assert_eq!(decode(input.as_bytes()), Ok(want), "{input:?}");
        }
    }

    #[test]
    fn bad_bodies() {
        for input in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\n",
            "1 \r\n",
            "1\n",
            "1\r\nab",
            "1\r\na\n",
            "1000000000000000\r\n",
            ";x\r\n",
            "1;\0\r\n",
            "1;a\n",
            "0\r\nX\r\n",
            "0\r\n X: y\r\n",
            "0\r\nX : y\r\n",
            "0\r\nX: y\n",
            "0\r\n\n",
        ] {
            assert!(decode(input.as_bytes()).is_err(), "{input:?}");
        }
        assert_eq!(decode(format!("1;{}\r\n", "x".repeat(300)).as_bytes()), Err("chunk-extension-too-long"));
        assert_eq!(decode(format!("0\r\n{}", "x".repeat(5000)).as_bytes()), Err("trailers-too-large"));
        assert!(decode(format!("0\r\n{}\r\n", "x:\r\n".repeat(100)).as_bytes()).is_ok());
        assert_eq!(decode(format!("0\r\n{}", "x:\r\n".repeat(101)).as_bytes()), Err("trailers-too-large"));
    }
}
