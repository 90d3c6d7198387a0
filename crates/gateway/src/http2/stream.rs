//! One stream of a client's HTTP/2 connection as the front of one request.
//! Deliberately absent: what is answered.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{append, field_map, line_map, write_fields};
use crate::front::{Front, Sink, Source};
use crate::heads::field_passes;
use crate::http1::{Framing, Header, Kind, ResponseHead};
use crate::policy::HeaderEdits;

/// A request's body on its way in, its answer on its way out.
#[derive(Debug)]
pub(crate) struct Stream {
    inbound: Inbound,
    respond: Option<SendResponse<Bytes>>,
    outbound: Outbound,
    /// The client has taken the request back.
    pub(crate) reset: bool,
}

impl Stream {
    pub(crate) fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self { inbound: Inbound::new(Some(body)), respond: Some(respond), outbound: Outbound::default(), reset: false }
    }

    /// More of the request's body may come.
    pub(crate) fn owes_body(&self) -> bool {
        self.inbound.body.as_ref().is_some_and(|body| !body.is_end_stream())
    }

    /// Lets go of the stream; what was not read or not finished is taken back.
    pub(crate) fn close(&mut self) {
        self.inbound = Inbound::new(None);
        self.outbound = Outbound { send: None, left: None, ended: true };
        self.respond = None;
    }

    /// Breaks the answer off, so that the client cannot take it for whole.
    pub(crate) fn cut(&mut self) {
        if let Some(respond) = &mut self.respond {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    }
}

impl Source for Stream {
    fn is_bare(&self) -> bool {
        true
    }

    fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inbound.trailers)
    }
}

impl Sink for Stream {
    fn poll_finish(&mut self, _: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        Poll::Ready(self.outbound.finish(trailers))
    }
}

impl Front for Stream {
    const MULTIPLEXED: bool = true;

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Option<Poll<()>> {
        let polled = match &mut self.outbound.send {
            Some(send) => send.poll_reset(cx),
            None if self.outbound.ended => Poll::Pending,
            None => self.respond.as_mut().map_or(Poll::Pending, |respond| respond.poll_reset(cx)),
        };
        self.reset |= polled.is_ready();
        Some(polled.map(drop))
    }

    fn begin(&mut self, head: &ResponseHead, bytes: &[u8], ended: bool, edits: &HeaderEdits) -> io::Result<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(head.status).map_err(io::Error::other)?;
        let with_length = head.status >= 200 && head.status != 204;
        let passes = |header: &Header| match header.kind {
            Kind::ContentLength => with_length,
            _ => field_passes(&head.fields, bytes, header) && !edits.drops(header.name.get(bytes)),
        };
        let fields = response.headers_mut();
        *fields = field_map(&head.fields, bytes, passes);
        edits.written().for_each(|(name, value)| append(fields, name, value));
        let Some(respond) = &mut self.respond else { return Err(io::ErrorKind::BrokenPipe.into()) };
        if head.status < 200 {
            return respond.send_informational(response).map_err(io::Error::other);
        }
        let send = respond.send_response(response, ended).map_err(io::Error::other)?;
        let left = if let Framing::Length(length) = head.framing { Some(length) } else { None };
        self.outbound = Outbound { send: (!ended).then_some(send), left, ended };
        Ok(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.inbound.poll_read(cx, room);
        self.reset |= matches!(read, Poll::Ready(Err(_)));
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.outbound.poll_write(cx, bytes);
        self.reset |= matches!(written, Poll::Ready(Err(_)));
        written
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What a peer sends on a stream, behind the head.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) body: Option<RecvStream>,
    pub(super) unread: Bytes,
    /// Bytes of `unread` that are not the peer's data and count in no window.
    pub(super) staged: usize,
    pub(super) trailers: Vec<u8>,
    trailers_read: bool,
}

impl Inbound {
    pub(super) fn new(body: Option<RecvStream>) -> Self {
        Self { body, unread: Bytes::new(), staged: 0, trailers: Vec::new(), trailers_read: false }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.unread.is_empty() {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(())) };
            match ready!(body.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(as_io)?,
                None => return self.poll_end(cx),
            }
        }
        let count = self.unread.len().min(room.remaining());
        room.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        let staged = self.staged.min(count);
        self.staged -= staged;
        if let Some(body) = &mut self.body
            && count > staged
        {
            // Fails only for a stream that is over, where it no longer matters.
            let _ = body.flow_control().release_capacity(count - staged);
        }
        Poll::Ready(Ok(()))
    }

    /// The body is over; fields may follow.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(body) = self.body.as_mut().filter(|_| !self.trailers_read) {
            if let Some(fields) = ready!(body.poll_trailers(cx)).map_err(as_io)? {
                write_fields(&mut self.trailers, &fields);
            }
            self.trailers_read = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// What is sent on a stream, behind the head.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub(super) send: Option<SendStream<Bytes>>,
    /// Bytes that the head has promised and that are still to come.
    pub(super) left: Option<u64>,
    pub(super) ended: bool,
}

impl Outbound {
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())) };
        send.reserve_capacity(bytes.len());
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(as_io(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = send.capacity().min(bytes.len());
        let last = self.left == Some(count as u64);
        send.send_data(Bytes::copy_from_slice(&bytes[..count]), last).map_err(as_io)?;
        self.left = self.left.map(|left| left.saturating_sub(count as u64));
        if last {
            (self.send, self.ended) = (None, true);
        }
        Poll::Ready(Ok(count))
    }

    pub(super) fn finish(&mut self, trailers: &[u8]) -> io::Result<()> {
        let Some(mut send) = self.send.take() else { return Ok(()) };
        self.ended = true;
        let fields = line_map(trailers);
        if fields.is_empty() { send.send_data(Bytes::new(), true) } else { send.send_trailers(fields) }.map_err(as_io)
    }
}

/// The error's own kind where it has one: a refused stream was not worked on (RFC 9113, 8.7).
pub(super) fn as_io(error: h2::Error) -> io::Error {
    if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
        return io::Error::new(io::ErrorKind::ConnectionRefused, error);
    }
    if error.is_io() { error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into()) } else { io::Error::other(error) }
}
