//! The two ends a body is moved between, and how a client is answered: as bytes of HTTP/1.1 or as frames of HTTP/2.
//! Below the forward step. Everything later in the walk is the same for both: a request of HTTP/2 is written out as
//! the HTTP/1.1 head it means and read by the same strict parser, so that there is one reading of it and no other.
//! Deliberately absent: the frames (`http2/`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::carrier::Carrier;
use crate::http1::ResponseHead;
use crate::policy::HeaderEdits;

/// Where a body comes from.
pub(crate) trait Source: AsyncRead + Unpin {
    /// Whether it yields nothing but the body: chunks have been taken off, and a body without length ends with it.
    fn is_bare(&self) -> bool {
        false
    }

    /// Fields that came behind the body, one `name: value` line each; taken once, at its end.
    fn take_trailers(&mut self) -> Vec<u8> {
        Vec::new()
    }
}

/// Where a body goes.
pub(crate) trait Sink: AsyncWrite + Unpin {
    /// The body is complete. `trailers` are lines as in [`Source::take_trailers`]; HTTP/1.1 has written them already.
    fn poll_finish(&mut self, cx: &mut Context<'_>, _trailers: &[u8]) -> Poll<io::Result<()>> {
        Pin::new(self).poll_flush(cx)
    }
}

/// A client's side of one request or of many.
pub(crate) trait Front: Source + Sink {
    /// Whether it is one stream among others on its connection, and serves one request.
    const MULTIPLEXED: bool;

    /// Whether nobody waits for the answer: then nothing is done for it that others would have to wait for.
    const DISCARDED: bool = false;

    /// Whether the client is gone; `None` if only reading tells.
    fn poll_reset(&mut self, _cx: &mut Context<'_>) -> Option<Poll<()>> {
        None
    }

    /// Whether the client has reset its connection, for when reading cannot tell: what it sent before lies unread.
    fn is_broken(&self) -> bool {
        false
    }

    /// Sends a head in frames, edited. `ended`: no body follows.
    fn begin(&mut self, _head: &ResponseHead, _bytes: &[u8], _ended: bool, _edits: &HeaderEdits) -> io::Result<()> {
        Ok(())
    }
}

/// HTTP/1.x on a stream of bytes.
#[derive(Debug)]
pub(crate) struct Http1<S>(pub(crate) S);

impl<S: AsyncRead + AsyncWrite + Unpin> Source for Http1<S> {}
impl<S: AsyncRead + AsyncWrite + Unpin> Sink for Http1<S> {}
impl Front for Http1<Carrier> {
    const MULTIPLEXED: bool = false;

    fn is_broken(&self) -> bool {
        self.0.is_broken()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Http1<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, room)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
