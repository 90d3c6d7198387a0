//! Read buffers of fixed size, and the spare ones of a worker: an idle connection holds none.
//! Below every read of the request walk; their size is what bounds memory per connection.
//! Deliberately absent: growth.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of one buffer, and of one step of any body.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;

/// Spare buffers kept per worker.
const SPARES: usize = 512;

/// A worker's buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Spares(RefCell<Vec<Vec<u8>>>);

/// Bytes read and not yet used.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == BUFFER_BYTES
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads once. `Ok(0)` is the end of the stream; a full buffer must not be filled.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        spares: &Spares,
    ) -> Poll<io::Result<usize>> {
        debug_assert!(!self.is_full());
        if self.bytes.is_empty() {
            self.bytes = spares.0.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        }
        if self.end == BUFFER_BYTES {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                self.end += count;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Gives the memory back if nothing is in it.
    pub(crate) fn release(&mut self, spares: &Spares) {
        if self.is_empty() && !self.bytes.is_empty() {
            let mut spares = spares.0.borrow_mut();
            let bytes = std::mem::take(&mut self.bytes);
            if spares.len() < SPARES {
                spares.push(bytes);
            }
        }
    }
}
