//! One attempt at one instance: connect or reuse, send head and body, read the head, pass the body back.
//! The forward step of the request walk. Both directions move at once within one task; whichever waits longest for
//! the client is cut off. Deliberately absent: whether there is another attempt (`pipeline.rs` asks the guard).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use guard::{Deadline, Failure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::balance::Taken;
use crate::connection::Client;
use crate::heads::{Additions, Delivery, Identity, trailer_passes, write_request, write_response};
use crate::http1::{Bad, Decoder, Scanner};
use crate::options::Trailers;
use crate::pool::Link;
use crate::pump::{Blocked, PumpError};
use crate::service::Service;
use crate::worker::Worker;

/// How an attempt ended without a whole response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// No byte of a response came: another attempt may be possible.
    Before(Failure),
    /// The instance began to answer and left.
    Closed,
    /// The instance answered something else than HTTP.
    Garbage(&'static str),
    /// The request's time is over; `begun` says whether the client has seen some of the answer.
    Deadline { begun: bool },
    /// The client left, or takes nothing any more.
    Gone,
    /// The client's body is malformed or too large.
    Body(Bad),
    /// The client owes a body and sends nothing.
    BodyStalled,
    /// The answer broke off after the client had seen some of it.
    Cut,
}

/// A whole response went out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) status: u16,
    /// The client may send another request.
    pub(crate) keep: bool,
}

/// How an attempt begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) now: Instant,
    /// Leave the pool alone.
    pub(crate) fresh: bool,
}

/// Interim responses passed on per request.
const MOST_INTERIM: u32 = 16;

/// A connection over loopback is made or refused at once. One that is still pending has lost its first packet, to a full
/// backlog or to the closing listener of a process that was just killed. The system sends it again only after a whole
/// second, and whoever listens on the port by then may be somebody else: the gateway does not wait for that.
const LOOPBACK_PATIENCE: Duration = Duration::from_millis(25);

/// One request on its way, through all its attempts.
pub(crate) struct Exchange<'a, S> {
    worker: &'a Worker,
    pub(crate) client: &'a mut Client<S>,
    deadline: Deadline,
    pub(crate) identity: Identity,
    /// The instance takes no more of the body; its answer may still come.
    upload_broken: bool,
    interim: u32,
    stall: Option<(Instant, u64)>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Exchange<'a, S> {
    pub(crate) fn new(worker: &'a Worker, client: &'a mut Client<S>, deadline: Deadline) -> Self {
        let options = &worker.options;
        let identity = Identity::of(&client.head, || worker.random());
        let framing = client.head.framing();
        let chunked = client.head.fields.chunked;
        client.upload.begin(Decoder::new(framing, &options.limits), chunked);
        client.upload.limit(options.max_body_bytes.unwrap_or(u64::MAX));
        if options.trailers == Trailers::Forward {
            client.upload.forward_trailers(trailer_passes);
        }
        Self { worker, client, deadline, identity, upload_broken: false, interim: 0, stall: None }
    }

    /// Tries once. `certain` is for requests that cannot be sent twice.
    pub(crate) async fn attempt(
        &mut self,
        service: &Service,
        taken: &Taken,
        start: Start,
        certain: bool,
    ) -> Result<Done, Failed> {
        let mut link = self.link(service, taken, start, certain).await?;
        let worker = self.worker;
        let Client { upload, head, peer_text, .. } = &mut *self.client;
        let additions = Additions {
            peer: peer_text,
            scheme: "http",
            identity: &self.identity,
            epoch: taken.epoch(),
            instance: taken.endpoint().address,
            trailers: worker.options.trailers == Trailers::Forward,
        };
        upload.restart(|out| write_request(out, head, &additions));
        self.upload_broken = false;
        let to_head = head.method() == b"HEAD";
        loop {
            let mut scanner = Scanner::default();
            let length = poll_fn(|cx| self.poll_response(cx, &mut link, &mut scanner)).await?;
            let head = &link.input.filled()[..length];
            self.client
                .response
                .parse(head, to_head, &worker.options.limits)
                .map_err(|bad| Failed::Garbage(bad.why))?;
            match self.client.response.status {
                101 => return Err(Failed::Garbage("unasked-upgrade")),
                100..=199 => self.pass_interim(&mut link, length).await?,
                _ => return self.deliver(link, length).await,
            }
        }
    }

    /// A connection: an idle one if there is, else a new one.
    async fn link(&mut self, service: &Service, taken: &Taken, start: Start, certain: bool) -> Result<Link, Failed> {
        let (worker, address) = (self.worker, taken.endpoint().address);
        let Start { now, fresh } = start;
        if !fresh && let Some(link) = worker.pool.take(taken.instance(), address, certain, now) {
            return Ok(link);
        }
        let until = now + worker.options.connect_timeout;
        let patience = if address.ip().is_loopback() { LOOPBACK_PATIENCE } else { worker.options.connect_timeout };
        let mut again_at = now + patience;
        let connect = || TcpStream::connect(address);
        let mut connecting = pin!(connect());
        let stream = poll_fn(|cx| {
            if self.client.poll_gone(cx, worker).is_ready() {
                return Poll::Ready(Err(Failed::Gone));
            }
            if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
                return Poll::Ready(connected.map_err(|_| Failed::Before(Failure::NothingWritten)));
            }
            let wake = Some(until.min(again_at));
            if self.client.timer.poll_at(cx, self.deadline.or_earlier(wake)).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if self.deadline.expired(now) {
                return Poll::Ready(Err(Failed::Deadline { begun: false }));
            }
            if now >= until || !taken.is_current(service) {
                return Poll::Ready(Err(Failed::Before(Failure::NothingWritten)));
            }
            again_at = now + patience;
            connecting.set(connect());
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await?;
        let _ = stream.set_nodelay(true);
        Ok(Link::new(stream, address, taken.instance().clone()))
    }

    /// Sends what there is to send until a response's head is complete; its length.
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        link: &mut Link,
        scanner: &mut Scanner,
    ) -> Poll<Result<usize, Failed>> {
        let begun = self.interim > 0;
        self.poll_upload(cx, link)?;
        loop {
            if !link.input.is_empty() {
                match scanner.advance(link.input.filled(), &self.worker.options.limits) {
                    Ok(Some(_)) if scanner.skipped() > 0 => return Poll::Ready(Err(Failed::Garbage("empty-line"))),
                    Ok(Some(length)) => return Poll::Ready(Ok(length)),
                    Ok(None) if link.input.is_full() => return Poll::Ready(Err(Failed::Garbage("head-too-large"))),
                    Ok(None) => {}
                    Err(bad) => return Poll::Ready(Err(Failed::Garbage(bad.why))),
                }
            }
            match link.input.poll_fill(cx, &mut link.stream, &self.worker.spares) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(self.ended_early(link))),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        self.poll_client(cx)?;
        let upload = &self.client.upload;
        // A client that was told to wait for 100 owes nothing yet.
        let waits = self.client.head.expects_continue() && !begun && upload.passed == 0;
        let owes = upload.blocked == Blocked::OnSource && !waits && !self.upload_broken;
        let stall = self.stall_at(owes, self.client.upload.passed);
        if self.client.timer.poll_at(cx, self.deadline.or_earlier(stall)).is_pending() {
            return Poll::Pending;
        }
        Poll::Ready(Err(if self.deadline.expired(Instant::now()) {
            Failed::Deadline { begun: false }
        } else {
            Failed::BodyStalled
        }))
    }

    /// The instance's stream ended before a head was complete.
    fn ended_early(&self, link: &Link) -> Failed {
        if !link.input.is_empty() || self.interim > 0 {
            return Failed::Closed;
        }
        Failed::Before(match (self.client.upload.wrote, link.reused) {
            (false, _) => Failure::NothingWritten,
            (true, true) => Failure::StalePooled,
            (true, false) => Failure::Reset,
        })
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Result<(), Failed> {
        let Client { upload, stream, input, .. } = &mut *self.client;
        if upload.is_done() || self.upload_broken {
            return Ok(());
        }
        match upload.poll(cx, stream, input, &mut link.stream, &self.worker.spares) {
            Poll::Ready(Err(PumpError::SourceClosed)) => Err(Failed::Gone),
            Poll::Ready(Err(PumpError::Bad(bad))) => Err(Failed::Body(bad)),
            Poll::Ready(Err(PumpError::Sink)) => {
                // The answer may lie in the socket already: whoever refuses a body answers and closes.
                self.upload_broken = true;
                Ok(())
            }
            Poll::Ready(Ok(())) => {
                if upload.passed > 0 {
                    self.client.request_end = Instant::now();
                }
                Ok(())
            }
            Poll::Pending => Ok(()),
        }
    }

    /// Whether the client is still there, as far as its body does not tell.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Result<(), Failed> {
        let upload = &self.client.upload;
        if (upload.source_ended() || self.upload_broken) && self.client.poll_gone(cx, self.worker).is_ready() {
            return Err(Failed::Gone);
        }
        Ok(())
    }

    /// When the client's debt becomes too old: it grows as long as `progress` stays the same.
    fn stall_at(&mut self, owes: bool, progress: u64) -> Option<Instant> {
        if !owes {
            self.stall = None;
            return None;
        }
        match self.stall {
            Some((at, seen)) if seen == progress => Some(at),
            _ => {
                let at = Instant::now() + self.worker.options.stall_timeout;
                self.stall = Some((at, progress));
                Some(at)
            }
        }
    }

    /// Passes 100, 103 and their like on to clients that know them.
    async fn pass_interim(&mut self, link: &mut Link, length: usize) -> Result<(), Failed> {
        self.interim += 1;
        if self.interim > MOST_INTERIM {
            return Err(Failed::Garbage("too-many-interim-responses"));
        }
        let client = &mut *self.client;
        client.download.staged.clear();
        if client.head.version() == crate::http1::Version::Http11 {
            let bytes = &link.input.filled()[..length];
            let staged = &mut client.download.staged;
            write_response(staged, &client.response, bytes, Delivery::Plain, client.head.version(), true);
        }
        link.input.consume(length);
        client.download.begin(Decoder::Length(0), false);
        poll_fn(|cx| self.poll_relay(cx, link)).await
    }

    /// Passes a final response on.
    async fn deliver(&mut self, mut link: Link, length: usize) -> Result<Done, Failed> {
        let worker = self.worker;
        let client = &mut *self.client;
        let response = &client.response;
        let version = client.head.version();
        let delivery = Delivery::of(response.framing, version);
        // A body still on its way would stand before the next request.
        let keep = client.head.keep_alive()
            && client.upload.source_ended()
            && delivery != Delivery::UntilClose
            && !worker.draining.get();
        client.download.staged.clear();
        let bytes = &link.input.filled()[..length];
        write_response(&mut client.download.staged, response, bytes, delivery, version, keep);
        let done = Done { status: response.status, keep };
        let reusable = response.keep_alive();
        client.download.begin(Decoder::new(response.framing, &worker.options.limits), delivery == Delivery::Chunked);
        if worker.options.trailers == Trailers::Forward {
            client.download.forward_trailers(trailer_passes);
        }
        link.input.consume(length);
        self.stall = None;
        poll_fn(|cx| self.poll_relay(cx, &mut link)).await?;
        let sent_all = self.client.upload.is_done() && !self.upload_broken;
        if reusable && sent_all && link.input.is_empty() {
            worker.pool.put(link, &worker.spares, Instant::now());
        }
        Ok(done)
    }

    /// Both directions, until the client has the whole response.
    fn poll_relay(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<Result<(), Failed>> {
        if let Err(failed) = self.poll_upload(cx, link) {
            return Poll::Ready(Err(if failed == Failed::Gone { failed } else { Failed::Cut }));
        }
        let Client { download, stream, .. } = &mut *self.client;
        match download.poll(cx, &mut link.stream, &mut link.input, stream, &self.worker.spares) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(PumpError::Sink)) => return Poll::Ready(Err(Failed::Gone)),
            // As long as the client has seen nothing it can get a clean answer instead.
            Poll::Ready(Err(PumpError::Bad(bad))) if !download.wrote => {
                return Poll::Ready(Err(Failed::Garbage(bad.why)));
            }
            Poll::Ready(Err(_)) => {
                return Poll::Ready(Err(if download.wrote { Failed::Cut } else { Failed::Closed }));
            }
            Poll::Pending => {}
        }
        let (owes, progress) = (download.blocked == Blocked::OnSink, download.progress());
        self.poll_client(cx)?;
        let stall = self.stall_at(owes, progress);
        if self.client.timer.poll_at(cx, self.deadline.or_earlier(stall)).is_pending() {
            return Poll::Pending;
        }
        let late = self.deadline.expired(Instant::now());
        Poll::Ready(Err(if late { Failed::Deadline { begun: true } } else { Failed::Gone }))
    }
}
