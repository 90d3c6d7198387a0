//! Read buffers of two sizes, and the spare ones of a worker: an idle connection holds none.
//! Below every read of the request walk. A connection begins with a small buffer; one that fills it gets a large one, so
//! that a large body costs few system calls, while many slow connections cost little memory. Deliberately absent: any
//! other size.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Bytes of a small buffer.
const SMALL_BYTES: usize = 16 * 1024;
/// Bytes of a large buffer, and of one step of any body: 64 KiB with a head before it.
pub(crate) const LARGE_BYTES: usize = 68 * 1024;
/// Spare small buffers kept per worker.
const SPARE_SMALL: usize = 512;
/// Spare large buffers kept per worker.
const SPARE_LARGE: usize = 64;
/// Large buffers in use per worker; whoever comes later goes on with a small one.
const MOST_LARGE: usize = 256;

/// A worker's buffers that nobody uses at the moment.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    small: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
    large_in_use: Rc<Cell<usize>>,
}

/// The right to a large buffer, given back when dropped.
#[derive(Debug)]
struct Grant(Rc<Cell<usize>>);

impl Drop for Grant {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Spares {
    fn take_small(&self) -> Vec<u8> {
        self.small.borrow_mut().pop().unwrap_or_else(|| vec![0; SMALL_BYTES])
    }

    fn take_large(&self) -> Option<(Vec<u8>, Grant)> {
        let in_use = self.large_in_use.get();
        (in_use < MOST_LARGE).then(|| {
            self.large_in_use.set(in_use + 1);
            let spare = self.large.borrow_mut().pop();
            (spare.unwrap_or_else(|| vec![0; LARGE_BYTES]), Grant(self.large_in_use.clone()))
        })
    }

    fn put(&self, bytes: Vec<u8>) {
        let (list, most) =
            if bytes.len() == LARGE_BYTES { (&self.large, SPARE_LARGE) } else { (&self.small, SPARE_SMALL) };
        let mut list = list.borrow_mut();
        if list.len() < most {
            list.push(bytes);
        }
    }

    /// Frees large buffers while nobody uses any.
    pub(crate) fn trim(&self) {
        if self.large_in_use.get() == 0 {
            self.large.take();
        }
    }
}

/// Bytes read and not yet used.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// The last read left no room: more is on its way.
    filled_up: bool,
    /// For a large buffer.
    grant: Option<Grant>,
}

impl Buffer {
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start >= SMALL_BYTES.max(self.bytes.len())
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
        self.fit(spares);
        let mut room = ReadBuf::new(&mut self.bytes[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut room) {
            Poll::Ready(Ok(())) => {
                let count = room.filled().len();
                self.filled_up = room.remaining() == 0;
                self.end += count;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Sees to memory of the right size with room at its end.
    fn fit(&mut self, spares: &Spares) {
        if self.bytes.is_empty() {
            self.bytes = spares.take_small();
        } else if self.filled_up && self.bytes.len() < LARGE_BYTES {
            if let Some((mut large, grant)) = spares.take_large() {
                let held = self.end - self.start;
                large[..held].copy_from_slice(&self.bytes[self.start..self.end]);
                spares.put(std::mem::replace(&mut self.bytes, large));
                (self.start, self.end, self.grant) = (0, held, Some(grant));
            }
        } else if !self.filled_up && self.is_empty() && self.bytes.len() == LARGE_BYTES {
            spares.put(std::mem::replace(&mut self.bytes, spares.take_small()));
            self.grant = None;
        }
        if self.end == self.bytes.len() {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
    }

    /// Gives the memory back if nothing is in it.
    pub(crate) fn release(&mut self, spares: &Spares) {
        if self.is_empty() && !self.bytes.is_empty() {
            spares.put(std::mem::take(&mut self.bytes));
            (self.filled_up, self.grant) = (false, None);
        }
    }

    /// Gives the memory back with whatever is in it.
    pub(crate) fn discard(&mut self, spares: &Spares) {
        (self.start, self.end) = (0, 0);
        self.release(spares);
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, LARGE_BYTES, MOST_LARGE, SMALL_BYTES, Spares};
    use std::task::{Context, Poll, Waker};

    fn fill(buffer: &mut Buffer, mut source: &[u8], spares: &Spares) -> usize {
        match buffer.poll_fill(&mut Context::from_waker(Waker::noop()), &mut source, spares) {
            Poll::Ready(read) => read.unwrap(),
            Poll::Pending => 0,
        }
    }

    #[test]
    fn it_grows_when_filled_and_shrinks_when_not() {
        let (spares, mut buffer, much) = (Spares::default(), Buffer::default(), vec![7; 1 << 20]);
        assert_eq!(fill(&mut buffer, &much, &spares), SMALL_BYTES);
        buffer.consume(SMALL_BYTES - 10);
        assert_eq!(fill(&mut buffer, &much, &spares), LARGE_BYTES - 10, "what was held stays in front");
        buffer.consume(LARGE_BYTES);
        assert_eq!(fill(&mut buffer, &much[..5], &spares), 5);
        buffer.consume(5);
        assert_eq!(fill(&mut buffer, &much, &spares), SMALL_BYTES, "small again");
        assert_eq!(spares.large_in_use.get(), 0);
        buffer.discard(&spares);
        assert!(buffer.bytes.is_empty());
    }

    #[test]
    fn large_ones_are_bounded_also_when_connections_are_lost() {
        let (spares, much) = (Spares::default(), vec![7; 1 << 20]);
        let grown = || {
            let mut buffer = Buffer::default();
            fill(&mut buffer, &much, &spares);
            buffer.consume(1);
            fill(&mut buffer, &much, &spares);
            buffer.bytes.len()
        };
        for _ in 0..3 * MOST_LARGE {
            assert_eq!(grown(), LARGE_BYTES, "each was dropped without being given back");
        }
        let held: Vec<_> = (0..MOST_LARGE).map(|_| spares.take_large()).collect();
        assert_eq!(grown(), SMALL_BYTES);
        drop(held);
        assert_eq!(grown(), LARGE_BYTES);
    }
}
