//! A request's head: method, target in its four forms, host, framing.
//! Read once per request; everything later in the walk points into its bytes. Buffers are kept between requests of
//! a connection. Deliberately absent: reading (the connection does) and what is forwarded (`heads.rs`).

use std::mem::MaybeUninit;

use super::fields::{Kind, refused};
use super::{Bad, Fields, Framing, Limits, MAX_HEADERS, Span, Version, is_token};

/// A request's head, parsed and judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    bytes: Vec<u8>,
    method: Span,
    path_and_query: Span,
    authority: Span,
    host: Span,
    version: Version,
    framing: Framing,
    expects_continue: bool,
    /// Its fields.
    pub fields: Fields,
}

impl Default for RequestHead {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            method: Span::default(),
            path_and_query: Span::default(),
            authority: Span::default(),
            host: Span::default(),
            version: Version::Http11,
            framing: Framing::None,
            expects_continue: false,
            fields: Fields::default(),
        }
    }
}

impl RequestHead {
    /// Parses a complete head that passed the line scan, reusing this value's buffers.
    ///
    /// # Errors
    /// What RFC 9112 forbids or leaves open to two readings.
    pub fn parse(&mut self, head: &[u8], limits: &Limits) -> Result<(), Bad> {
        self.bytes.clear();
        self.bytes.extend_from_slice(head);
        // A refused head must not leave parts of the one before it behind.
        (self.method, self.path_and_query, self.authority, self.host) = Default::default();
        let bytes = std::mem::take(&mut self.bytes);
        let result = self.read(&bytes, limits);
        self.bytes = bytes;
        result
    }

    fn read(&mut self, bytes: &[u8], limits: &Limits) -> Result<(), Bad> {
        let line_end = memchr::memchr(b'\r', bytes).ok_or(Bad::request("syntax"))?;
        request_line(&bytes[..line_end], limits)?;
        let mut table = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut []);
        match parsed.parse_with_uninit_headers(bytes, &mut table) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Bad::request("syntax")),
            Err(error) => return Err(refused(error)),
        }
        let method = parsed.method.unwrap_or_default().as_bytes();
        let target = parsed.path.unwrap_or_default().as_bytes();
        self.version = if parsed.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.method = Span::of(bytes, method);
        if parsed.headers.len() > limits.headers {
            return Err(Bad::with(431, "too-many-headers"));
        }
        self.fields.gather(bytes, parsed.headers)?;
        self.judge_host(bytes)?;
        self.judge_target(bytes, method, target)?;
        self.judge_framing(bytes)
    }

    fn judge_host(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        let mut hosts = self.fields.headers.iter().filter(|header| header.kind == Kind::Host);
        match (hosts.next(), hosts.next()) {
            (Some(_), Some(_)) => return Err(Bad::request("several-hosts")),
            (None, _) if self.version == Version::Http11 => return Err(Bad::request("no-host")),
            (None, _) => {}
            (Some(header), None) => {
                self.authority = header.value;
                self.host = Span::of(bytes, host_of(header.value.get(bytes)).ok_or(Bad::request("host"))?);
            }
        }
        Ok(())
    }

    fn judge_target(&mut self, bytes: &[u8], method: &[u8], target: &[u8]) -> Result<(), Bad> {
        if method == b"CONNECT" {
            return Err(Bad::with(501, "connect"));
        }
        if target.first() == Some(&b'/') {
            self.path_and_query = Span::of(bytes, target);
            return Ok(());
        }
        if target == b"*" {
            self.path_and_query = Span::of(bytes, target);
            return if method == b"OPTIONS" { Ok(()) } else { Err(Bad::request("target")) };
        }
        // Absolute form: its authority wins over Host (RFC 9112, 3.2.2).
        let scheme = [&b"http://"[..], b"https://"]
            .into_iter()
            .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
            .ok_or(Bad::request("target"))?;
        let rest = &target[scheme.len()..];
        let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
        let host = host_of(&rest[..end]).filter(|host| !host.is_empty()).ok_or(Bad::request("target"))?;
        self.authority = Span::of(bytes, &rest[..end]);
        self.host = Span::of(bytes, host);
        self.path_and_query = Span::of(bytes, &rest[end..]);
        Ok(())
    }

    fn judge_framing(&mut self, bytes: &[u8]) -> Result<(), Bad> {
        self.framing = match (self.fields.chunked, self.fields.content_length) {
            (true, _) if self.version == Version::Http10 => return Err(Bad::request("chunked-in-http-1.0")),
            (true, _) => Framing::Chunked,
            (false, Some(0)) | (false, None) => Framing::None,
            (false, Some(length)) => Framing::Length(length),
        };
        self.expects_continue = false;
        // HTTP/1.0 knows no Expect: it is ignored there (RFC 9110, 10.1.1).
        if self.version == Version::Http11 {
            for header in self.fields.headers.iter().filter(|header| header.kind == Kind::Expect) {
                if !header.value.get(bytes).eq_ignore_ascii_case(b"100-continue") {
                    return Err(Bad::with(417, "expect"));
                }
                self.expects_continue = self.framing != Framing::None;
            }
        }
        Ok(())
    }

    /// The head's bytes, which every span points into.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The method, as sent.
    pub fn method(&self) -> &[u8] {
        self.method.get(&self.bytes)
    }

    /// The target as an instance gets it: path and query, or `*`. Empty or beginning with `?` when an absolute
    /// target had no path: a `/` belongs before it.
    pub fn path_and_query(&self) -> &[u8] {
        self.path_and_query.get(&self.bytes)
    }

    /// The path alone, what routes are matched on. `*` counts as `/`.
    pub fn path(&self) -> &[u8] {
        let target = self.path_and_query();
        let path = &target[..memchr::memchr(b'?', target).unwrap_or(target.len())];
        if path.is_empty() || path == b"*" { b"/" } else { path }
    }

    /// Host and port as the client named them; empty if it did not.
    pub fn authority(&self) -> &[u8] {
        self.authority.get(&self.bytes)
    }

    /// The host without its port.
    pub fn host(&self) -> &[u8] {
        self.host.get(&self.bytes)
    }

    /// The client's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How the body ends.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Whether the client waits for 100 before its body.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Whether the client offers to speak something else on this connection. `h2c` is never passed on: what would be
    /// said there would be said past the gateway.
    pub fn wants_upgrade(&self) -> bool {
        let wanted = self.fields.first(Kind::Upgrade).map(|value| value.get(&self.bytes)).unwrap_or_default();
        let is_http2 = |token: &[u8]| token.trim_ascii().to_ascii_lowercase().starts_with(b"h2");
        self.fields.upgrade
            && self.version == Version::Http11
            && self.framing == Framing::None
            && !wanted.is_empty()
            && !wanted.split(|&byte| byte == b',').any(is_http2)
    }

    /// Whether the client wants to send another request afterwards.
    pub fn keep_alive(&self) -> bool {
        !self.fields.close && (self.version == Version::Http11 || self.fields.keep_alive)
    }
}

/// `method SP target SP version`, with exactly those two spaces.
fn request_line(line: &[u8], limits: &Limits) -> Result<(), Bad> {
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Bad::request("request-line"));
    };
    if method.is_empty() || method.len() > 64 || !method.iter().copied().all(is_token) {
        return Err(Bad::request("method"));
    }
    if target.len() > limits.target_bytes {
        return Err(Bad::with(414, "target-too-long"));
    }
    // `#` never reaches a server; `\`, `<` and `>` are read in two ways. Bytes beyond ASCII must be escaped.
    if target.is_empty()
        || !target.iter().all(|&byte| matches!(byte, 0x21..=0x7e) && !matches!(byte, b'#' | b'\\' | b'<' | b'>'))
    {
        return Err(Bad::request("target"));
    }
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Ok(()),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Err(Bad::with(505, "version"))
        }
        _ => Err(Bad::request("version")),
    }
}

/// The host of `host [":" port]`, if it is one: a name, an IPv4 address or a bracketed IPv6 address.
fn host_of(authority: &[u8]) -> Option<&[u8]> {
    let (host, port) = if authority.first() == Some(&b'[') {
        let end = memchr::memchr(b']', authority)?;
        let address = std::str::from_utf8(&authority[1..end]).ok()?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        (&authority[..=end], &authority[end + 1..])
    } else {
        let end = memchr::memchr(b':', authority).unwrap_or(authority.len());
        let allowed = |byte: &u8| {
            is_token(*byte) && !matches!(byte, b'^' | b'`' | b'|' | b'#') || matches!(byte, b'(' | b')' | b';' | b'=')
        };
        if !authority[..end].iter().all(allowed) {
            return None;
        }
        (&authority[..end], &authority[end..])
    };
    match port {
        [] => Some(host),
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            let number = digits.iter().fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
            // A port without a host names nothing.
            (number <= 65_535 && !host.is_empty()).then_some(host)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{RequestHead, host_of};
    use crate::http1::{Framing, Limits, Version};

    fn parse(head: &str) -> Result<RequestHead, crate::http1::Bad> {
        let mut request = RequestHead::default();
        request.parse(head.as_bytes(), &Limits::default()).map(|()| request)
    }

    #[test]
    fn target_forms() {
        for (line, authority, target, path) in [
            ("GET /a?b HTTP/1.1", "h:1", "/a?b", "/a"),
            ("GET //x HTTP/1.1", "h:1", "//x", "//x"),
            ("OPTIONS * HTTP/1.1", "h:1", "*", "/"),
            ("GET http://other:81/p?q HTTP/1.1", "other:81", "/p?q", "/p"),
            ("GET HTTP://other HTTP/1.1", "other", "", "/"),
            ("GET http://other?q HTTP/1.1", "other", "?q", "/"),
        ] {
            let request = parse(&format!("{line}\r\nHost: h:1\r\n\r\n")).unwrap();
            assert_eq!(request.authority(), authority.as_bytes(), "{line}");
            assert_eq!(request.path_and_query(), target.as_bytes(), "{line}");
            assert_eq!(request.path(), path.as_bytes(), "{line}");
        }
    }

    #[test]
    fn hosts() {
        for (authority, host) in [
            ("", Some("")),
            ("a.b", Some("a.b")),
            ("a_b:80", Some("a_b")),
            ("[::1]:8080", Some("[::1]")),
            ("127.0.0.1", Some("127.0.0.1")),
            ("a:", Some("a")),
            ("a:x", None),
            ("a:65536", None),
            (":80", None),
            ("a@b", None),
            ("a b", None),
            ("[::1", None),
            ("[x]", None),
            ("a/b", None),
            ("a,b", None),
        ] {
            assert_eq!(host_of(authority.as_bytes()), host.map(str::as_bytes), "{authority}");
        }
    }

    #[test]
    fn a_second_parse_starts_clean() {
        let mut request =
            parse("POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\n").unwrap();
        assert_eq!((request.framing(), request.keep_alive()), (Framing::Length(3), false));
        request.parse(b"GET /y HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &Limits::default()).unwrap();
        assert_eq!((request.framing(), request.keep_alive()), (Framing::None, true));
        assert_eq!((request.version(), request.authority(), request.path()), (Version::Http10, &b""[..], &b"/y"[..]));
    }
}
