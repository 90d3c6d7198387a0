//! Which version of HTTP a connection speaks: HTTP/2 without TLS begins with a preface that is no request (RFC 9113, 3.4).
//! What was read to find out is given back to whoever serves the connection. Deliberately absent: TLS, whose handshake
//! would say it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client begins to speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speaks {
    Http1,
    Http2,
}

/// Room for what is read first: all of a small request.
const FIRST_BYTES: usize = 1024;

/// A connection that begins with what has been read of it already.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Read of it so far.
    pub read: Vec<u8>,
    /// So much of that was given to whoever reads it as a stream.
    given: usize,
    pub stream: TcpStream,
}

/// Reads until it is clear what the client speaks, which is at its first byte for all methods but those with a P.
///
/// # Errors
/// The connection's; one that ends before it is clear is an HTTP/1.1 one.
pub(crate) async fn listen(stream: TcpStream) -> io::Result<(Speaks, Begun)> {
    let mut begun = Begun::of(Vec::with_capacity(FIRST_BYTES), stream);
    while begun.read.len() < PREFACE.len() {
        let count = begun.more().await?;
        let known = begun.read.len().min(PREFACE.len());
        if count == 0 || begun.read[..known] != PREFACE[..known] {
            return Ok((Speaks::Http1, begun));
        }
    }
    Ok((Speaks::Http2, begun))
}

impl Begun {
    /// A connection of which so much has been read.
    pub(crate) fn of(read: Vec<u8>, stream: TcpStream) -> Self {
        Self { read, given: 0, stream }
    }

    /// What was read and is not given to anybody yet, and the rest of the connection.
    pub(crate) fn into_parts(mut self) -> (Vec<u8>, TcpStream) {
        self.read.drain(..self.given);
        (self.read, self.stream)
    }

    /// Reads on; 0 at the end of the connection. Nothing is lost when this is dropped.
    ///
    /// # Errors
    /// The connection's.
    pub(crate) async fn more(&mut self) -> io::Result<usize> {
        self.stream.read_buf(&mut self.read).await
    }
}

impl AsyncRead for Begun {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.given < self.read.len() {
            let count = buf.remaining().min(self.read.len() - self.given);
            buf.put_slice(&self.read[self.given..self.given + count]);
            self.given += count;
            if self.given == self.read.len() {
                // Thousands of connections wait at a time, without the room for what they began with.
                (self.read, self.given) = (Vec::new(), 0);
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
