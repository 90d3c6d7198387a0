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

/// A connection that begins with what has been read of it already.
#[derive(Debug)]
pub(crate) struct Begun {
    first: [u8; PREFACE.len()],
    read: usize,
    given: usize,
    stream: TcpStream,
}

/// Reads until it is clear what the client speaks, which is at its first byte for all methods but those with a P.
///
/// # Errors
/// The connection's; one that ends before it is clear is an HTTP/1.1 one.
pub(crate) async fn listen(stream: TcpStream) -> io::Result<(Speaks, Begun)> {
    let mut begun = Begun { first: [0; PREFACE.len()], read: 0, given: 0, stream };
    while begun.read < PREFACE.len() {
        let count = begun.stream.read(&mut begun.first[begun.read..]).await?;
        begun.read += count;
        if count == 0 || begun.first[..begun.read] != PREFACE[..begun.read] {
            return Ok((Speaks::Http1, begun));
        }
    }
    Ok((Speaks::Http2, begun))
}

impl AsyncRead for Begun {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.given < self.read {
            let count = buf.remaining().min(self.read - self.given);
            buf.put_slice(&self.first[self.given..self.given + count]);
            self.given += count;
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
