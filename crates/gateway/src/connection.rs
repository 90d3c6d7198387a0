//! One client connection: heads are read one after the other, each request walks the pipeline, answers leave in order.
//! Around the request walk: its first step (listen) and its end. A stream of HTTP/2 is a client, too; it begins and ends
//! elsewhere (`http2/server.rs`). Deliberately absent: what happens between head and answer (`pipeline.rs`).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::answer::{self, Answer, With};
use crate::buffer::Buffer;
use crate::carrier::{Carrier, Rewound};
use crate::entry::Protocols;
use crate::front::{Front, Http1};
use crate::http1::{Bad, Kind, RequestHead, ResponseHead, Scanner};
use crate::http2;
use crate::pipeline::{self, After};
use crate::pump::Pump;
use crate::routes::Scheme;
use crate::timer::Timer;
use crate::worker::Worker;

/// A client and everything that is kept between its requests.
#[derive(Debug)]
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    pub(crate) origin: Origin,
    pub(crate) input: Buffer,
    pub(crate) head: RequestHead,
    pub(crate) response: ResponseHead,
    pub(crate) upload: Pump,
    pub(crate) download: Pump,
    pub(crate) timer: Timer,
    /// The client sends nothing more, but waits for its answer.
    pub(crate) half_closed: bool,
    /// When the last byte of the request had come.
    pub(crate) request_end: Instant,
    served: u64,
}

/// Where a client comes from.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) peer: SocketAddr,
    pub(crate) peer_text: Rc<str>,
    /// What it used to get here.
    pub(crate) scheme: &'static str,
    /// A proxy whose word about its own clients stands.
    pub(crate) trusted: bool,
}

impl Origin {
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { peer, peer_text: peer.ip().to_canonical().to_string().into(), scheme: "http", trusted: false }
    }
}

/// What comes next on a connection.
enum Next {
    Request,
    Closed,
    Refused(Answer),
    /// The client speaks HTTP/2, without having been asked.
    Http2,
}

/// How long, and for how many bytes, a closing connection still listens: closing with bytes unread would make the
/// kernel reset it, and the client might lose the answer.
pub(crate) const LINGER: Duration = Duration::from_secs(1);
pub(crate) const LINGER_BYTES: usize = 1 << 20;

/// A task's place in its worker's list.
pub(crate) struct Registered<'a> {
    worker: &'a Worker,
    slot: usize,
}

impl<'a> Registered<'a> {
    /// Has the running task woken when draining begins.
    pub(crate) async fn enter(worker: &'a Worker) -> Self {
        let slot = poll_fn(|cx| Poll::Ready(worker.enter(cx.waker().clone()))).await;
        Self { worker, slot }
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        self.worker.leave(self.slot);
    }
}

/// Serves a connection until either side has enough.
pub(crate) async fn serve(worker: &Rc<Worker>, carrier: Carrier, origin: Origin, protocols: Protocols) {
    let registered = Registered::enter(worker).await;
    let mut client = Client::new(Http1(carrier), origin);
    loop {
        match client.read_head(worker, protocols).await {
            Next::Request => {}
            Next::Closed => return,
            Next::Http2 => {
                drop(registered);
                let Client { stream: Http1(carrier), input: read, origin, .. } = client;
                return Box::pin(http2::serve(worker, Rewound { read, carrier }, origin)).await;
            }
            Next::Refused(refusal) => {
                answer::send(worker, &mut client, &refusal, With::Words, false).await;
                return client.linger(worker).await;
            }
        }
        match pipeline::run(worker, &mut client).await {
            After::Keep => client.rest(),
            After::Close => return client.linger(worker).await,
            After::Abort => return,
        }
    }
}

impl<S> Client<S> {
    /// The scheme by which the client came here: a trusted proxy knows better.
    pub(crate) fn scheme(&self) -> Scheme {
        match self.said(Kind::ForwardedProto) {
            Some(b"http") => Scheme::Http,
            Some(b"https") => Scheme::Https,
            _ if self.origin.scheme == "https" => Scheme::Https,
            _ => Scheme::Http,
        }
    }

    /// The authority by which the client came here.
    pub(crate) fn authority(&self) -> &[u8] {
        self.said(Kind::ForwardedHost).unwrap_or(self.head.authority())
    }

    /// What a trusted proxy says of its client.
    fn said(&self, kind: Kind) -> Option<&[u8]> {
        if !self.origin.trusted {
            return None;
        }
        let said = self.head.fields.first(kind).map(|value| value.get(self.head.bytes()));
        said.filter(|value| !value.is_empty())
    }
}

impl<S: Front> Client<S> {
    pub(crate) fn new(stream: S, origin: Origin) -> Self {
        Self {
            stream,
            origin,
            input: Buffer::default(),
            head: RequestHead::default(),
            response: ResponseHead::default(),
            upload: Pump::new(Vec::new()),
            download: Pump::new(Vec::new()),
            timer: Timer::default(),
            half_closed: false,
            request_end: Instant::now(),
            served: 0,
        }
    }

    /// Reads until a head is complete. Nothing is decided about a request before that.
    async fn read_head(&mut self, worker: &Worker, protocols: Protocols) -> Next {
        let mut scanner = Scanner::default();
        let mut head_begun = None;
        let next = poll_fn(|cx| self.poll_head(cx, worker, protocols, &mut scanner, &mut head_begun)).await;
        if let Next::Refused(refusal) = &next {
            worker.metrics.bad_request(refusal.detail);
        }
        next
    }

    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        worker: &Worker,
        protocols: Protocols,
        scanner: &mut Scanner,
        begun: &mut Option<Instant>,
    ) -> Poll<Next> {
        let limits = &worker.options.limits;
        loop {
            if !self.input.is_empty() {
                let may_be_http2 = self.served == 0 && protocols == Protocols::Both;
                if may_be_http2 && self.input.filled().starts_with(http2::PREFACE_LINE) {
                    return Poll::Ready(Next::Http2);
                }
                match scanner.advance(self.input.filled(), limits) {
                    Ok(Some(length)) => return Poll::Ready(self.take_head(worker, scanner.skipped(), length)),
                    Ok(None) if self.input.is_full() => {
                        return Poll::Ready(Next::Refused(Answer::bad(Bad::with(431, "head-too-large"))));
                    }
                    Ok(None) => {}
                    Err(bad) => return Poll::Ready(Next::Refused(Answer::bad(bad))),
                }
            }
            if self.half_closed {
                return Poll::Ready(Next::Closed);
            }
            match self.input.poll_fill(cx, &mut self.stream, &worker.spares) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Closed),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        let limit = if scanner.begun() {
            *begun.get_or_insert_with(Instant::now) + worker.options.header_timeout
        } else {
            let draining = worker.idle_until();
            if draining.is_some_and(|until| Instant::now() >= until) {
                return Poll::Ready(Next::Closed);
            }
            self.input.release(&worker.spares);
            let first = if self.served == 0 { worker.options.header_timeout } else { worker.options.idle_timeout };
            let limit = self.request_end + first;
            draining.map_or(limit, |until| until.min(limit))
        };
        if self.timer.poll_at(cx, Some(limit)).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(if scanner.begun() { Next::Refused(Answer::HEAD_TIMEOUT) } else { Next::Closed })
    }

    fn take_head(&mut self, worker: &Worker, skipped: usize, length: usize) -> Next {
        let parsed = self.head.parse(&self.input.filled()[skipped..length], &worker.options.limits);
        self.input.consume(length);
        self.request_end = Instant::now();
        self.served += 1;
        match parsed {
            Ok(()) => Next::Request,
            Err(bad) => Next::Refused(Answer::bad(bad)),
        }
    }

    /// Ready once the client is gone; what it sends meanwhile (the next request, or a body not yet wanted) is
    /// buffered as far as there is room. The end of its stream right after the request means "that was all".
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<()> {
        if let Some(gone) = self.stream.poll_reset(cx) {
            return gone;
        }
        while !self.half_closed && !self.input.is_full() {
            match self.input.poll_fill(cx, &mut self.stream, &worker.spares) {
                Poll::Ready(Ok(0)) if self.request_end.elapsed() < worker.options.half_close_grace => {
                    self.half_closed = true;
                }
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Poll::Pending
    }

    /// For another stream.
    pub(crate) fn begin_again(&mut self, stream: S) {
        (self.stream, self.half_closed) = (stream, false);
        self.rest();
    }

    /// Between requests.
    fn rest(&mut self) {
        self.request_end = Instant::now();
        self.upload.shrink();
        self.download.shrink();
    }

    /// Says that nothing more comes, and listens a little for what is still on its way.
    pub(crate) async fn linger(&mut self, worker: &Worker) {
        let until = Instant::now() + LINGER;
        let (mut shut, mut left) = (false, LINGER_BYTES);
        poll_fn(|cx| {
            if !shut {
                match Pin::new(&mut self.stream).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            while !self.half_closed {
                self.input.consume(self.input.filled().len());
                match self.input.poll_fill(cx, &mut self.stream, &worker.spares) {
                    Poll::Ready(Ok(count @ 1..)) if count < left => left -= count,
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            if shut && self.half_closed { Poll::Ready(()) } else { self.timer.poll_at(cx, Some(until)) }
        })
        .await;
        self.give_back(worker);
    }

    /// At its end: memory goes back to the worker.
    pub(crate) fn give_back(&mut self, worker: &Worker) {
        self.input.discard(&worker.spares);
    }
}
