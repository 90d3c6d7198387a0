//! A body's bytes within a stream, whatever its framing: what to drop, what to pass on, when it is over.
//! Used by the pumps of the forward step. Deliberately absent: buffers.

use super::chunked::Chunked;
use super::{Bad, Framing, Limits};

/// Finds the body in what is read.
#[derive(Debug, Clone)]
pub enum Decoder {
    /// So many bytes are left.
    Length(u64),
    /// In chunks.
    Chunked(Box<Chunked>),
    /// Everything until the end of the stream.
    UntilClose,
}

/// What stands at the front of some input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of framing, to be dropped.
    pub skip: usize,
    /// Bytes of body behind them.
    pub data: usize,
}

impl Decoder {
    /// A decoder for a body of this framing.
    pub fn new(framing: Framing, limits: &Limits) -> Self {
        match framing {
            Framing::None => Self::Length(0),
            Framing::Length(length) => Self::Length(length),
            Framing::Chunked => Self::Chunked(Box::new(Chunked::new(limits))),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Looks at the front of `input`; the caller then drops `skip + data` bytes.
    ///
    /// # Errors
    /// Broken chunks.
    pub fn next(&mut self, input: &[u8]) -> Result<Piece, Bad> {
        match self {
            Self::Length(left) => {
                let data = (*left).min(input.len() as u64) as usize;
                *left -= data as u64;
                Ok(Piece { skip: 0, data })
            }
            Self::Chunked(chunked) => chunked.next(input).map(|(skip, data)| Piece { skip, data }),
            Self::UntilClose => Ok(Piece { skip: 0, data: input.len() }),
        }
    }

    /// Whether every byte is body, none framing.
    pub fn is_plain(&self) -> bool {
        !matches!(self, Self::Chunked(_)) && !self.ended()
    }

    /// How many of the next `available` bytes are this body's, if it is plain.
    pub fn plain_bytes(&self, available: usize) -> usize {
        match self {
            Self::Length(left) => (*left).min(available as u64) as usize,
            Self::UntilClose => available,
            Self::Chunked(_) => 0,
        }
    }

    /// Whether the body is over.
    pub fn ended(&self) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => chunked.ended(),
            Self::UntilClose => false,
        }
    }

    /// Whether the end of the stream is the body's end.
    pub fn ends_with_stream(&self) -> bool {
        matches!(self, Self::UntilClose)
    }

    /// The trailers of an ended body.
    pub fn trailers(&self) -> &[u8] {
        match self {
            Self::Chunked(chunked) => chunked.trailers(),
            _ => &[],
        }
    }
}
