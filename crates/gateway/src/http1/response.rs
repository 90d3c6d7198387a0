//! A response's head as an instance sent it, parsed as strictly as a request's.
//! Read in the forward step; what is refused here becomes 502. Deliberately absent: what the client gets of it.

use std::mem::MaybeUninit;

use super::fields::refused;
use super::{Bad, Fields, Framing, Limits, MAX_HEADERS, Span, Version};

/// A response's head; spans point into the bytes it was parsed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100..=999.
    pub status: u16,
    /// The instance's version.
    pub version: Version,
    /// The words after the status, perhaps none.
    pub reason: Span,
    /// How the body ends.
    pub framing: Framing,
    /// Its fields.
    pub fields: Fields,
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self {
            status: 0,
            version: Version::Http11,
            reason: Span::default(),
            framing: Framing::None,
            fields: Fields::default(),
        }
    }
}

impl ResponseHead {
    /// Parses a complete head that passed the line scan; `to_head` says the request's method was HEAD.
    ///
    /// # Errors
    /// What RFC 9112 forbids or leaves open to two readings.
    pub fn parse(&mut self, bytes: &[u8], to_head: bool, limits: &Limits) -> Result<(), Bad> {
        let line_end = memchr::memchr(b'\r', bytes).ok_or(Bad::request("syntax"))?;
        status_line(&bytes[..line_end])?;
        let mut table = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut table) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Bad::request("syntax")),
            Err(error) => return Err(refused(error)),
        }
        if parsed.headers.len() > limits.headers {
            return Err(Bad::request("too-many-headers"));
        }
        self.status = parsed.code.unwrap_or_default();
        self.version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
        // httparse hides a reason with bytes beyond ASCII: take it from the line itself.
        self.reason = Span::of(bytes, bytes.get(13..line_end).unwrap_or_default());
        self.fields.gather(bytes, parsed.headers)?;
        self.framing = self.judge_framing(to_head)?;
        Ok(())
    }

    fn judge_framing(&self, to_head: bool) -> Result<Framing, Bad> {
        if self.fields.chunked && self.version == Version::Http10 {
            return Err(Bad::request("chunked-in-http-1.0"));
        }
        if to_head || matches!(self.status, 100..=199 | 204 | 304) {
            return Ok(Framing::None);
        }
        Ok(match (self.fields.chunked, self.fields.content_length) {
            (true, _) => Framing::Chunked,
            (false, Some(0)) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
            (false, None) => Framing::UntilClose,
        })
    }

    /// Whether the instance will take another request on this connection.
    pub fn keep_alive(&self) -> bool {
        self.framing != Framing::UntilClose
            && !self.fields.close
            && (self.version == Version::Http11 || self.fields.keep_alive)
    }
}

/// `HTTP/1.x SP 3DIGIT [SP reason]`.
fn status_line(line: &[u8]) -> Result<(), Bad> {
    let version_known = matches!(line.get(..9), Some(b"HTTP/1.1 " | b"HTTP/1.0 "));
    let status_known = line.get(9..12).is_some_and(|digits| digits.iter().all(u8::is_ascii_digit) && digits[0] != b'0');
    let ends_well = matches!(line.get(12), None | Some(b' '));
    if version_known && status_known && ends_well { Ok(()) } else { Err(Bad::request("status-line")) }
}

#[cfg(test)]
mod tests {
    use super::ResponseHead;
    use crate::http1::{Framing, Limits};

    #[test]
    fn framing_table() {
        for (head, to_head, framing, keep) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, Framing::Length(5), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Framing::None, true),
            ("HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", false, Framing::Chunked, true),
            ("HTTP/1.1 200 \r\n\r\n", false, Framing::UntilClose, false),
            ("HTTP/1.1 204 No\r\nContent-Length: 9\r\n\r\n", false, Framing::None, true),
            ("HTTP/1.1 304 ä\r\n\r\n", false, Framing::None, true),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", false, Framing::Length(1), false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", false, Framing::Length(1), true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false, Framing::None, false),
        ] {
            let mut response = ResponseHead::default();
            response.parse(head.as_bytes(), to_head, &Limits::default()).unwrap();
            assert_eq!((response.framing, response.keep_alive()), (framing, keep), "{head}");
        }
    }

    #[test]
    fn refusals() {
        for head in [
            "HTTP/1.2 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "http/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            let mut response = ResponseHead::default();
            assert!(response.parse(head.as_bytes(), false, &Limits::default()).is_err(), "{head}");
        }
    }
}
