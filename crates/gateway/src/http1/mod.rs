//! HTTP/1.x as a sans-io codec: bytes in, heads and body pieces out, for requests and responses alike.
//! Serves the first and the last step of the request walk. A strict line scan comes first, then httparse cuts the
//! fields, then framing is judged once; what is doubtful is refused, never repaired.
//! Deliberately absent: sockets, routing, header policy.

pub mod body;
pub mod chunked;
pub mod fields;
pub mod request;
pub mod response;
pub mod scan;

pub use body::{Decoder, Piece};
pub(crate) use fields::GRPC_GRACE;
pub use fields::{Fields, Header, Kind};
pub use request::RequestHead;
pub use response::ResponseHead;
pub use scan::Scanner;

/// Why a head or a body was refused. `status` is what a client is told; a bad response becomes 502 whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad {
    /// The HTTP status for the client that sent it.
    pub status: u16,
    /// A short stable word for `Seawall-Reason` and the metric's label.
    pub why: &'static str,
}

impl Bad {
    pub(crate) const fn request(why: &'static str) -> Self {
        Self { status: 400, why }
    }

    pub(crate) const fn with(status: u16, why: &'static str) -> Self {
        Self { status, why }
    }
}

/// Most header fields of a head, whatever the limits say: the size of the table on the stack.
pub const MAX_HEADERS: usize = 128;

/// Bounds on what a peer may send before its body.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a whole head; beyond: 431.
    pub head_bytes: usize,
    /// Header fields, and as many trailer fields; beyond: 431. At most [`MAX_HEADERS`].
    pub headers: usize,
    /// Bytes of the request target; beyond: 414.
    pub target_bytes: usize,
    /// Bytes of one chunk-size line, extensions included.
    pub chunk_line_bytes: usize,
    /// Bytes of a trailer section.
    pub trailer_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head_bytes: 16_000, headers: 100, target_bytes: 8_000, chunk_line_bytes: 256, trailer_bytes: 4_096 }
    }
}

/// The two versions spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: closes unless told to stay, knows no chunks.
    Http10,
    /// HTTP/1.1.
    Http11,
}

/// How a message's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// So many bytes.
    Length(u64),
    /// Chunks, then perhaps trailers.
    Chunked,
    /// With the connection (responses only).
    UntilClose,
}

/// A part of a head's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Where `part`, a slice of `whole`, lies in it.
    pub(crate) fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(part.is_empty() || start + part.len() <= whole.len());
        if part.is_empty() {
            return Self::default();
        }
        Self { start: start as u32, end: (start + part.len()) as u32 }
    }

    /// The bytes meant.
    pub fn get(self, whole: &[u8]) -> &[u8] {
        &whole[self.start as usize..self.end as usize]
    }

    /// Whether nothing is meant.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// RFC 9110 `token` characters.
pub(crate) const fn is_token(byte: u8) -> bool {
    matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|'
        | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z')
}
