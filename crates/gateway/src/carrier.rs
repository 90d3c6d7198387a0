//! What bytes travel on: a TCP connection, in the clear or under TLS, on either side.
//! Below connections and links. Deliberately absent: who may encrypt how (`tls.rs`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::buffer::Buffer;
use crate::front::{Sink, Source};
use crate::http2;

/// A connection's bytes.
#[derive(Debug)]
pub(crate) enum Carrier {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Carrier {
    /// An idle connection has nothing to say: bytes or an end mean that it is over. `certain` asks the kernel itself.
    pub(crate) fn is_quiet(&mut self, certain: bool) -> bool {
        let seen = match self {
            Self::Plain(stream) if certain => {
                socket2::SockRef::from(&*stream).peek(&mut [std::mem::MaybeUninit::uninit()])
            }
            Self::Plain(stream) => stream.try_read(&mut [0]),
            // Records that are not data (session tickets) may have come meanwhile: they are taken in.
            Self::Tls(stream) => {
                let mut byte = [0];
                let mut room = ReadBuf::new(&mut byte);
                return Pin::new(stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut room).is_pending();
            }
        };
        matches!(seen, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the peer has reset the connection: the kernel knows before what came earlier has been read.
    pub(crate) fn is_broken(&self) -> bool {
        let stream = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        };
        stream.take_error().is_ok_and(|error| error.is_some())
    }
}

impl AsyncRead for Carrier {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, room),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, room),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Bytes that were read too early stand before those still to come.
#[derive(Debug)]
pub(crate) struct Rewound {
    pub(crate) read: Buffer,
    pub(crate) carrier: Carrier,
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.carrier).poll_read(cx, room);
        }
        let count = self.read.filled().len().min(room.remaining());
        room.put_slice(&self.read.filled()[..count]);
        self.read.consume(count);
        if self.read.is_empty() {
            self.read = Buffer::default();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.carrier).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}

/// What one request travels on towards an instance.
#[derive(Debug)]
pub(crate) enum Wire {
    /// HTTP/1.1, one request after the other.
    Http1(Carrier),
    /// A stream among others.
    Http2(Box<http2::Exchange>),
}

impl Wire {
    /// As [`Carrier::is_broken`]; a stream says it by itself.
    pub(crate) fn is_broken(&self) -> bool {
        matches!(self, Self::Http1(carrier) if carrier.is_broken())
    }
}

impl Source for Wire {
    fn is_bare(&self) -> bool {
        matches!(self, Self::Http2(_))
    }

    fn take_trailers(&mut self) -> Vec<u8> {
        match self {
            Self::Http1(_) => Vec::new(),
            Self::Http2(exchange) => exchange.take_trailers(),
        }
    }
}

impl Sink for Wire {
    fn poll_finish(&mut self, cx: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        match self {
            Self::Http1(carrier) => Pin::new(carrier).poll_flush(cx),
            Self::Http2(exchange) => exchange.poll_finish(cx, trailers),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Http1(carrier) => Pin::new(carrier).poll_read(cx, room),
            Self::Http2(exchange) => Pin::new(exchange).poll_read(cx, room),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Http1(carrier) => Pin::new(carrier).poll_write(cx, bytes),
            Self::Http2(exchange) => Pin::new(exchange).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Http1(carrier) => Pin::new(carrier).poll_flush(cx),
            Self::Http2(exchange) => Pin::new(exchange).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Http1(carrier) => Pin::new(carrier).poll_shutdown(cx),
            Self::Http2(exchange) => Pin::new(exchange).poll_shutdown(cx),
        }
    }
}
