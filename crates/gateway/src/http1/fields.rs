//! Header fields of one head: cut by httparse, named once, and judged where framing or connection depend on them.
//! Shared by requests and responses. Deliberately absent: what is forwarded (that is `heads.rs`' policy).

use std::time::Duration;

use guard::deadline::{asked_by_grpc, asked_in_ms};

use super::{Bad, Span};

/// Fields the gateway knows; everything else is passed on as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// End to end: passed on.
    Other,
    /// Of this connection only, or one of the names a gateway owns in disguise: dropped.
    Hop,
    /// `Host`.
    Host,
    /// `Connection`.
    Connection,
    /// `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Expect`.
    Expect,
    /// `X-Forwarded-For`.
    ForwardedFor,
    /// `Forwarded`: dropped.
    Forwarded,
    /// Any other `X-Forwarded-*`: passed on for trusted proxies only.
    ForwardedOther,
    /// `X-Forwarded-Proto`.
    ForwardedProto,
    /// `X-Forwarded-Host`.
    ForwardedHost,
    /// `Upgrade`.
    Upgrade,
    /// `TE`.
    Te,
    /// `X-Request-Id`.
    RequestId,
    /// `traceparent`.
    Traceparent,
    /// `tracestate`.
    Tracestate,
    /// `Seawall-*`.
    Seawall,
    /// `Accept`.
    Accept,
    /// `X-Request-Timeout-Ms`: how long the caller waits.
    TimeoutMs,
    /// `grpc-timeout`: the same.
    GrpcTimeout,
}

impl Kind {
    /// Recognises a field name, in any case.
    pub fn of(name: &[u8]) -> Self {
        let known = Self::exact(name);
        if known == Self::Other && name.contains(&b'_') {
            // CGI-like instances read `_` as `-`: a client must not bring our names in through that door. Of a longer
            // name only its begin can be one of ours.
            let mut dashed = [0; 32];
            for (to, from) in dashed.iter_mut().zip(name) {
                *to = if *from == b'_' { b'-' } else { *from };
            }
            return if Self::exact(&dashed[..name.len().min(32)]) == Self::Other { Self::Other } else { Self::Hop };
        }
        known
    }

    fn exact(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if name.len() >= 8 && name[..8].eq_ignore_ascii_case(b"seawall-") {
            return Self::Seawall;
        }
        match name.len() {
            2 if is("te") => Self::Te,
            4 if is("host") => Self::Host,
            6 if is("accept") => Self::Accept,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::Hop,
            9 if is("forwarded") => Self::Forwarded,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::Hop,
            10 if is("tracestate") => Self::Tracestate,
            11 if is("traceparent") => Self::Traceparent,
            12 if is("x-request-id") => Self::RequestId,
            12 if is("grpc-timeout") => Self::GrpcTimeout,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Hop,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("x-forwarded-host") => Self::ForwardedHost,
            16 if is("proxy-connection") => Self::Hop,
            17 if is("x-forwarded-proto") => Self::ForwardedProto,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            20 if is("x-request-timeout-ms") => Self::TimeoutMs,
            12.. if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Self::ForwardedOther,
            18 if is("proxy-authenticate") => Self::Hop,
            19 if is("proxy-authorization") => Self::Hop,
            _ => Self::Other,
        }
    }
}

/// One field of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Where its name lies.
    pub name: Span,
    /// Where its value lies, without space around it.
    pub value: Span,
    /// What it is.
    pub kind: Kind,
}

/// The fields of one head and what they say about the connection and the body.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Fields {
    /// In the order they came.
    pub headers: Vec<Header>,
    /// Names that `Connection` lists and that are not known: dropped with it.
    pub named: Vec<Span>,
    /// The one `Content-Length`.
    pub content_length: Option<u64>,
    /// The body is chunked.
    pub chunked: bool,
    /// `Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// `Connection: upgrade`.
    pub upgrade: bool,
    /// `TE: trailers`.
    pub te_trailers: bool,
    /// How long the caller waits in milliseconds, the least of what it says, and one more. Zero: it says nothing.
    waits_ms: u32,
}

impl Fields {
    /// Takes over the fields that httparse cut out of `bytes`.
    ///
    /// # Errors
    /// More than one length, a length that is no plain number, a coding other than `chunked`, both at once.
    pub fn gather(&mut self, bytes: &[u8], parsed: &[httparse::Header<'_>]) -> Result<(), Bad> {
        self.headers.clear();
        self.named.clear();
        (self.content_length, self.chunked, self.close, self.keep_alive) = (None, false, false, false);
        (self.upgrade, self.te_trailers, self.waits_ms) = (false, false, 0);
        for field in parsed {
            let kind = Kind::of(field.name.as_bytes());
            match kind {
                Kind::ContentLength => {
                    if self.content_length.is_some() {
                        return Err(Bad::request("several-content-lengths"));
                    }
                    self.content_length = Some(content_length(field.value)?);
                }
                Kind::TransferEncoding => {
                    if self.chunked {
                        return Err(Bad::request("several-transfer-encodings"));
                    }
                    transfer_encoding(field.value)?;
                    self.chunked = true;
                }
                Kind::Connection => self.connection(bytes, field.value),
                Kind::TimeoutMs => self.waits(asked_in_ms(field.value)),
                Kind::GrpcTimeout => self.waits(asked_by_grpc(field.value)),
                Kind::Te => {
                    let codings = field.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
                    self.te_trailers |= codings.into_iter().any(|coding| coding.eq_ignore_ascii_case(b"trailers"));
                }
                _ => {}
            }
            let name = Span::of(bytes, field.name.as_bytes());
            self.headers.push(Header { name, value: Span::of(bytes, field.value), kind });
        }
        if self.chunked && self.content_length.is_some() {
            return Err(Bad::request("length-and-chunked"));
        }
        Ok(())
    }

    /// The first field of a kind.
    pub fn first(&self, kind: Kind) -> Option<Span> {
        self.headers.iter().find(|header| header.kind == kind).map(|header| header.value)
    }

    /// Whether `Connection` names this field, so that it goes no further.
    pub fn is_named(&self, bytes: &[u8], name: Span) -> bool {
        !self.named.is_empty() && self.named.iter().any(|named| named.get(bytes).eq_ignore_ascii_case(name.get(bytes)))
    }

    /// How long the caller waits, the least of what it says.
    pub fn timeout(&self) -> Option<Duration> {
        self.waits_ms.checked_sub(1).map(|ms| Duration::from_millis(ms.into()))
    }

    /// One that is no time is passed over: it says nothing.
    fn waits(&mut self, asked: Option<Duration>) {
        let Some(asked) = asked else { return };
        let asked = u32::try_from(asked.as_millis()).unwrap_or(u32::MAX).saturating_add(1);
        self.waits_ms = if self.waits_ms == 0 { asked } else { self.waits_ms.min(asked) };
    }

    fn connection(&mut self, bytes: &[u8], value: &[u8]) {
        for token in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                self.named.push(Span::of(bytes, token));
            }
        }
    }
}

/// Digits only: no sign, no list, no space, no more than fits.
fn content_length(value: &[u8]) -> Result<u64, Bad> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Bad::request("content-length"));
    }
    let number = value.iter().fold(0_u64, |sum, digit| sum.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')));
    if number > i64::MAX as u64 { Err(Bad::request("content-length")) } else { Ok(number) }
}

fn transfer_encoding(value: &[u8]) -> Result<(), Bad> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = value.rsplit(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let last_is_chunked = codings.next().is_some_and(|last| last.eq_ignore_ascii_case(b"chunked"));
    let known = |coding: &[u8]| {
        [&b"gzip"[..], b"x-gzip", b"deflate", b"compress", b"x-compress"]
            .iter()
            .any(|name| coding.eq_ignore_ascii_case(name))
    };
    // A coding that exists but is not spoken here is 501 (RFC 9112, 6.1); anything else is a trick.
    if last_is_chunked && codings.all(known) {
        return Err(Bad::with(501, "transfer-encoding"));
    }
    Err(Bad::request("transfer-encoding"))
}

/// Maps httparse's refusal to a word of ours. The scan has refused most of it before.
pub(crate) fn refused(error: httparse::Error) -> Bad {
    match error {
        httparse::Error::TooManyHeaders => Bad::with(431, "too-many-headers"),
        httparse::Error::HeaderName => Bad::request("header-name"),
        httparse::Error::HeaderValue => Bad::request("header-value"),
        httparse::Error::Version => Bad::request("version"),
        httparse::Error::Status => Bad::request("status"),
        _ => Bad::request("syntax"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, content_length, transfer_encoding};

    #[test]
    fn names_in_any_case_and_in_disguise() {
        for (name, kind) in [
            ("HOST", Kind::Host),
            ("x-ForWarded-for", Kind::ForwardedFor),
            ("X-Forwarded-Port", Kind::ForwardedOther),
            ("x_forwarded_prefix", Kind::Hop),
            ("Seawall-Epoch", Kind::Seawall),
            ("seawall_epoch", Kind::Hop),
            ("X_Forwarded_For", Kind::Hop),
            ("Content_Length", Kind::Hop),
            ("Seawall-", Kind::Seawall),
            ("seawall_", Kind::Hop),
            ("X-Forwarded-", Kind::ForwardedOther),
            ("seawall_epoch_and_more_than_32_bytes", Kind::Hop),
            ("X-Forwarded-for_and_more_than_32_bytes", Kind::ForwardedOther),
            ("x_forwarded_for_and_more_than_32_bytes", Kind::Hop),
            ("a_name_of_more_than_32_bytes_of_its_own", Kind::Other),
            ("x_custom", Kind::Other),
            ("seawall", Kind::Other),
            ("Cookie", Kind::Other),
            ("X-Request-Timeout-Ms", Kind::TimeoutMs),
            ("x_request_timeout_ms", Kind::Hop),
            ("Grpc-Timeout", Kind::GrpcTimeout),
        ] {
            assert_eq!(Kind::of(name.as_bytes()), kind, "{name}");
        }
    }

    #[test]
    fn lengths() {
        for (text, want) in [("0", Some(0)), ("007", Some(7)), ("9223372036854775807", Some(i64::MAX as u64))] {
            assert_eq!(content_length(text.as_bytes()).ok(), want, "{text}");
        }
        for text in ["", "+1", "-1", "1,1", "1 ", "0x1", "1_0", "9223372036854775808", "99999999999999999999"] {
            assert!(content_length(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn codings() {
        for (text, status) in [
            ("chunked", None),
            ("Chunked", None),
            ("gzip, chunked", Some(501)),
            ("chunked, gzip", Some(400)),
            ("chunked, chunked", Some(400)),
            ("identity", Some(400)),
            ("", Some(400)),
            ("xchunked", Some(400)),
            ("\"chunked\"", Some(400)),
        ] {
            assert_eq!(transfer_encoding(text.as_bytes()).err().map(|bad| bad.status), status, "{text}");
        }
    }
}
