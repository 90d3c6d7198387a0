//! The strict line scan before any parsing: where a head ends, and that every line of it is one beyond doubt.
//! First step of the codec. It refuses what lenient parsers disagree about: bare LF, bare CR, NUL and controls,
//! folded lines, a space before the colon. Deliberately absent: the meaning of any field.

use super::{Bad, Limits, is_token};

/// Finds the end of a head as bytes arrive; each byte is looked at once.
#[derive(Debug, Default, Clone)]
pub struct Scanner {
    line_start: usize,
    searched: usize,
    lines: usize,
    skipped: usize,
}

/// Bytes a head of a given shape may not hold.
fn has_control(line: &[u8]) -> bool {
    // Without early exit, so that the compiler makes it wide.
    line.iter().fold(false, |found, &byte| found | (byte < 0x20 && byte != b'\t') | (byte == 0x7f))
}

impl Scanner {
    /// Looks at `bytes` (from the head's first byte, growing between calls). `Some(length)` once the head is
    /// complete, its empty line included.
    ///
    /// # Errors
    /// The first line that breaks RFC 9112, or a limit.
    pub fn advance(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Bad> {
        while let Some(offset) = memchr::memchr(b'\n', &bytes[self.searched..]) {
            let lf = self.searched + offset;
            self.searched = lf + 1;
            let line = &bytes[self.line_start..lf];
            let Some((b'\r', line)) = line.split_last() else { return Err(Bad::request("bare-lf")) };
            if line.is_empty() {
                if self.lines == 0 {
                    // RFC 9112, 2.2: one empty line before a request is forgiven.
                    if self.skipped > 0 {
                        return Err(Bad::request("empty-lines"));
                    }
                    self.skipped = lf + 1;
                    self.line_start = lf + 1;
                    continue;
                }
                return if lf < limits.head_bytes + self.skipped {
                    Ok(Some(lf + 1))
                } else {
                    Err(Bad::with(431, "head-too-large"))
                };
            }
            if self.lines > 0 {
                check_field(line)?;
            }
            if has_control(line) {
                return Err(Bad::request(if line.contains(&b'\r') { "bare-cr" } else { "control-character" }));
            }
            self.lines += 1;
            if self.lines > limits.headers + 1 {
                return Err(Bad::with(431, "too-many-headers"));
            }
            self.line_start = lf + 1;
        }
        self.searched = bytes.len();
        self.check_rest(bytes, limits)
    }

    /// How many bytes to drop before the first line.
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Whether anything of a head has come; an empty line before it is nothing.
    pub fn begun(&self) -> bool {
        self.searched > self.skipped
    }

    /// The line still under way: refused early when it can no longer become good.
    fn check_rest(&self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Bad> {
        // A request line may hold a target, a method and a version.
        if self.lines == 0 && bytes.len() - self.line_start > limits.target_bytes + 64 {
            let line = &bytes[self.line_start..];
            // A method as long as that is no target that is too long.
            let long_target = line.iter().take(64).any(|&byte| byte == b' ');
            return Err(if long_target { Bad::with(414, "target-too-long") } else { Bad::request("method") });
        }
        if bytes.len() >= limits.head_bytes + self.skipped {
            return Err(Bad::with(431, "head-too-large"));
        }
        Ok(None)
    }
}

/// A field line is `token ":" value`; nothing may stand before or between.
fn check_field(line: &[u8]) -> Result<(), Bad> {
    let name = line.iter().position(|&byte| !is_token(byte)).unwrap_or(line.len());
    match line.get(name) {
        Some(b':') if name > 0 => Ok(()),
        Some(b' ' | b'\t') if name == 0 => Err(Bad::request("folded-line")),
        Some(b' ' | b'\t') => Err(Bad::request("space-before-colon")),
        Some(b'\r') => Err(Bad::request("bare-cr")),
        _ => Err(Bad::request("header-name")),
    }
}

#[cfg(test)]
mod tests {
    use super::Scanner;
    use crate::http1::Limits;

    #[test]
    fn a_head_is_found_at_any_split() {
        let head = b"\r\nGET / HTTP/1.1\r\nHost: a\r\nX: \xffy\tz\r\n\r\nrest";
        for split in 0..head.len() {
            let mut scanner = Scanner::default();
            let first = scanner.advance(&head[..split], &Limits::default()).unwrap();
            let found = first.or_else(|| scanner.advance(head, &Limits::default()).unwrap());
            assert_eq!(found, Some(head.len() - 4), "split at {split}");
            assert_eq!(scanner.skipped(), 2);
        }
    }

    #[test]
    fn refusals() {
        for (head, why) in [
            (&b"GET / HTTP/1.1\n\n"[..], "bare-lf"),
            (b"\n", "bare-lf"),
            (b"GET / HTTP/1.1\r\nA: b\rc\r\n\r\n", "bare-cr"),
            (b"GET / HTTP/1.1\r\nA\rb: c\r\n\r\n", "bare-cr"),
            (b"GET / HTTP/1.1\r\nA: b\0\r\n\r\n", "control-character"),
            (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", "folded-line"),
            (b"GET / HTTP/1.1\r\n A: b\r\n\r\n", "folded-line"),
            (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", "space-before-colon"),
            (b"GET / HTTP/1.1\r\n: b\r\n\r\n", "header-name"),
            (b"GET / HTTP/1.1\r\nA\r\n\r\n", "header-name"),
            (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", "empty-lines"),
        ] {
            let bad = Scanner::default().advance(head, &Limits::default()).unwrap_err();
            assert_eq!(bad.why, why, "{}", head.escape_ascii());
        }
    }
}
