//! HTTP/2 towards an instance: connections shared by the requests of one worker, and one request's stream on them.
//! A stream yields the answer's head as HTTP/1.1, then the bare body, so that the forward step reads it as any other.
//! Deliberately absent: which instance, and whether to try again.

use std::cell::Cell;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use http::{Method, Request, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::{Inbound, Outbound, as_io};
use super::{CONNECTION_WINDOW, SEND_BUFFER, STREAM_WINDOW, field_map, write_response};
use crate::front::{Sink, Source};
use crate::heads::{Additions, is_end_to_end};
use crate::http1::{Framing, RequestHead};

/// Streams on one connection before another one is made, where the instance allows more.
const STREAMS_PER_CONNECTION: usize = 100;

/// A connection to an instance, shared.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    sender: SendRequest<Bytes>,
    use_count: Rc<Use>,
}

#[derive(Debug)]
struct Use {
    open: Cell<usize>,
    since: Cell<Instant>,
    closed: Cell<bool>,
}

/// A request's share of a connection.
#[derive(Debug)]
struct Share(Rc<Use>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.since.set(Instant::now());
    }
}

impl Connection {
    /// Greets the instance; a task of this thread then drives the connection until it ends.
    pub(crate) async fn begin<S: AsyncRead + AsyncWrite + Unpin + 'static>(stream: S) -> io::Result<Self> {
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(SEND_BUFFER);
        let (sender, connection) = builder.handshake(stream).await.map_err(as_io)?;
        let use_count = Rc::new(Use { open: Cell::new(0), since: Cell::new(Instant::now()), closed: Cell::new(false) });
        let ending = use_count.clone();
        tokio::task::spawn_local(async move {
            // How it ended is seen by its streams.
            let _ = connection.await;
            ending.closed.set(true);
        });
        Ok(Self { sender, use_count })
    }

    /// Whether another request may go on it.
    pub(crate) fn has_room(&self) -> bool {
        let most = self.sender.current_max_send_streams().min(STREAMS_PER_CONNECTION);
        !self.use_count.closed.get() && self.use_count.open.get() < most
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.use_count.closed.get()
    }

    /// Since when no request is on it.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.use_count.open.get() == 0).then(|| self.use_count.since.get())
    }

    /// A place for one request.
    pub(crate) fn exchange(&self) -> Exchange {
        self.use_count.open.set(self.use_count.open.get() + 1);
        Exchange {
            sender: Some(self.sender.clone()),
            response: None,
            inbound: Inbound::new(None),
            outbound: Outbound::default(),
            refused: false,
            _share: Share(self.use_count.clone()),
        }
    }
}

/// One request on its way to an instance.
#[derive(Debug)]
pub(crate) struct Exchange {
    sender: Option<SendRequest<Bytes>>,
    response: Option<ResponseFuture>,
    inbound: Inbound,
    outbound: Outbound,
    /// The instance said that it has not worked on the request.
    pub(crate) refused: bool,
    _share: Share,
}

impl Exchange {
    /// Ready when the connection takes another stream.
    pub(crate) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.sender {
            Some(sender) => sender.poll_ready(cx).map_err(as_io),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Sends the head; after [`Self::poll_ready`].
    pub(crate) fn begin(&mut self, head: &RequestHead, add: &Additions<'_>) -> io::Result<()> {
        let Some(mut sender) = self.sender.take() else { return Err(io::ErrorKind::BrokenPipe.into()) };
        // What goes out is what HTTP/1.1 would get, field by field.
        let mut text = Vec::with_capacity(512);
        crate::heads::write_request(&mut text, head, add);
        let mut request = RequestHead::default();
        let limits = crate::http1::Limits {
            head_bytes: usize::MAX,
            headers: crate::http1::MAX_HEADERS,
            ..crate::http1::Limits::default()
        };
        request.parse(&text, &limits).map_err(|bad| io::Error::other(bad.why))?;
        let target = std::str::from_utf8(request.path_and_query()).map_err(io::Error::other)?;
        let authority = std::str::from_utf8(request.authority()).map_err(io::Error::other)?;
        let uri = Uri::builder().scheme(add.upstream_scheme).authority(authority).path_and_query(target);
        let mut parts = Request::new(());
        *parts.method_mut() = Method::from_bytes(request.method()).map_err(io::Error::other)?;
        *parts.uri_mut() = uri.build().map_err(io::Error::other)?;
        *parts.version_mut() = Version::HTTP_2;
        let fields = parts.headers_mut();
        *fields = field_map(&request.fields, request.bytes(), |header| {
            is_end_to_end(&request.fields, request.bytes(), header)
        });
        fields.remove(http::header::HOST);
        if head.fields.te_trailers {
            fields.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
        }
        let ended = head.framing() == Framing::None;
        let (response, send) = sender.send_request(parts, ended).map_err(as_io)?;
        let left = if let Framing::Length(length) = head.framing() { Some(length) } else { None };
        self.response = Some(response);
        self.outbound = Outbound { send: (!ended).then_some(send), left, ended };
        Ok(())
    }

    /// Whether the answer's body is over, known with its head.
    pub(crate) fn ended(&self) -> bool {
        self.inbound.unread.is_empty() && self.inbound.body.as_ref().is_some_and(h2::RecvStream::is_end_stream)
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(response) = &mut self.response else { return Poll::Ready(Ok(())) };
        let answered = ready!(Pin::new(response).poll(cx));
        self.response = None;
        let (parts, body) = answered.map_err(as_io)?.into_parts();
        let mut text = Vec::with_capacity(512);
        write_response(&mut text, &parts);
        self.inbound.staged = text.len();
        self.inbound.unread = text.into();
        self.inbound.body = Some(body);
        Poll::Ready(Ok(()))
    }
}

impl Source for Exchange {
    fn is_bare(&self) -> bool {
        true
    }

    fn take_trailers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inbound.trailers)
    }
}

impl Sink for Exchange {
    fn poll_finish(&mut self, _: &mut Context<'_>, trailers: &[u8]) -> Poll<io::Result<()>> {
        Poll::Ready(self.outbound.finish(trailers))
    }
}

impl AsyncRead for Exchange {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = match ready!(self.poll_head(cx)) {
            Ok(()) => ready!(self.inbound.poll_read(cx, room)),
            Err(error) => Err(error),
        };
        self.refused |= read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        Poll::Ready(read)
    }
}

impl AsyncWrite for Exchange {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.outbound.poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
