//! One attempt at one instance: connect or reuse, send head and body, read the head, pass the body back.
//! The forward step of the request walk. Both directions move at once within one task; whichever waits longest for
//! the client is cut off. Deliberately absent: whether there is another attempt (`pipeline.rs` asks the guard).

use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use crate::balance::Taken;
use crate::carrier::Wire;
use crate::compress;
use crate::connection::Client;
use crate::dial::{dial, during};
use crate::ended::Ending;
use crate::front::Front;
use crate::guards::{Admitted, FallbackReason, Keeping};
use crate::handshake::Distrust;
use crate::heads::{
    Additions, Delivery, Identity, add_left, tells_left, trailer_passes, write_request, write_response,
};
use crate::http1::{Bad, Decoder, Framing, Kind, Scanner};
use crate::http2;
use crate::options::Trailers;
use crate::policy::HeaderEdits;
use crate::pool::Link;
use crate::pump::{Blocked, PumpError, decoder_for};
use crate::routes::CompiledRoute;
use crate::service::Service;
use crate::tunnel;
use crate::worker::Worker;
use guard::{Deadline, Failure};

mod edits;
mod late;
mod repeat;
mod switch;

pub(crate) use late::LOOK;
use late::Late;

/// How an attempt ended without a whole response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// No byte of a response came: another attempt may be possible.
    Before(Failure),
    /// It is not whom it should be, or TLS with it cannot be had: nothing was written.
    Distrusted(Distrust),
    /// It answered with a status that the route has repeated; the client has seen nothing of it.
    Repeat(u16),
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
    /// The connection became a tunnel after this long, and is over.
    pub(crate) switched_after: Option<Duration>,
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

/// One request on its way, through all its attempts.
pub(crate) struct Exchange<'a, S> {
    worker: &'a Worker,
    route: &'a CompiledRoute,
    pub(crate) client: &'a mut Client<S>,
    deadline: Deadline,
    pub(crate) identity: Identity,
    /// The instance takes no more of the body; its answer may still come.
    upload_broken: bool,
    interim: u32,
    stall: Option<(Instant, u64)>,
    /// When to look next whether a client that cannot be read is still there.
    look: Option<Instant>,
    /// When the request's head was complete, and when this attempt began.
    begun: Instant,
    tried: Instant,
    /// Tells of the end of the instance, once there is reason to listen.
    ending: Option<Ending>,
    /// The service's guards have let it in: somebody asks how long the instance takes, and answers may tell what is left.
    pub(crate) admitted: Option<&'a Admitted>,
    /// The caller waits for less than the route would.
    pub(crate) hurried: bool,
    /// There may be another attempt, if the route has what comes repeated.
    pub(crate) has_more: bool,
    /// When this attempt's own time is over, until its answer begins.
    try_until: Option<Instant>,
    /// From this attempt's begin to the head of its answer, if that is asked and came.
    pub(crate) took: Option<Duration>,
    /// The answer may be worth keeping.
    pub(crate) keeps: Option<Box<Keeping>>,
    /// Why this service is asked instead of the route's own, for the client.
    pub(crate) instead: Option<FallbackReason>,
}

impl<'a, S: Front> Exchange<'a, S> {
    pub(crate) fn new(
        worker: &'a Worker,
        client: &'a mut Client<S>,
        deadline: Deadline,
        route: &'a CompiledRoute,
        (begun, resumes): (Instant, bool),
    ) -> Self {
        let options = &worker.options;
        let identity = Identity::of(&client.head, || worker.random());
        let framing = client.head.framing();
        // A request that goes on to another service keeps what of its body is at hand.
        if !resumes {
            client.upload.begin(decoder_for(&client.stream, framing, &options.limits), framing == Framing::Chunked);
            client.upload.limit(route.policy.max_body_bytes.or(options.max_body_bytes).unwrap_or(u64::MAX));
            if options.trailers == Trailers::Forward {
                client.upload.forward_trailers(trailer_passes);
            }
        }
        Self {
            worker,
            route,
            client,
            deadline,
            identity,
            upload_broken: false,
            interim: 0,
            stall: None,
            look: None,
            begun,
            tried: begun,
            ending: None,
            admitted: None,
            hurried: false,
            has_more: false,
            try_until: None,
            took: None,
            keeps: None,
            instead: None,
        }
    }

    /// Tries once. `certain` is for requests that cannot be sent twice.
    pub(crate) async fn attempt(
        &mut self,
        service: &Service,
        taken: &Taken,
        start: Start,
        certain: bool,
    ) -> Result<Done, Failed> {
        (self.tried, self.ending, self.took) = (start.now, None, None);
        let per_try = self.route.retry.as_ref().and_then(|retry| retry.per_try);
        self.try_until = per_try.and_then(|per_try| start.now.checked_add(per_try));
        let mut link = self.link(service, taken, start, certain).await?;
        let worker = self.worker;
        let upgrade = !S::MULTIPLEXED && tunnel::can_carry(&link.wire) && self.client.head.wants_upgrade();
        self.write_head(&mut link, taken, start.now, upgrade)?;
        self.upload_broken = false;
        let to_head = self.client.head.method() == b"HEAD";
        loop {
            let mut scanner = Scanner::default();
            let length = poll_fn(|cx| self.poll_response(cx, &mut link, &mut scanner)).await?;
            let head = &link.input.filled()[..length];
            self.client
                .response
                .parse(head, to_head, &worker.options.limits)
                .map_err(|bad| Failed::Garbage(bad.why))?;
            self.took = (self.admitted.is_some() || taken.is_timed()).then(|| start.now.elapsed());
            match self.client.response.status {
                101 if upgrade && self.client.response.fields.first(Kind::Upgrade).is_some() => {
                    return self.switch(link, length, service, taken, start.now).await;
                }
                101 => return Err(Failed::Garbage("unasked-upgrade")),
                100..=199 => self.pass_interim(&mut link, length).await?,
                status if self.repeats(status) => return Err(Failed::Repeat(status)),
                _ => return self.deliver(link, length, taken.upstream().is_reusable()).await,
            }
        }
    }

    /// Has the request's head written to the instance.
    fn write_head(&mut self, link: &mut Link, taken: &Taken, now: Instant, upgrade: bool) -> Result<(), Failed> {
        let worker = self.worker;
        let scheme = self.client.scheme();
        let Client { upload, head, origin, .. } = &mut *self.client;
        let policy = &self.route.policy;
        let prefix = policy.path.as_ref().and_then(|_| self.route.matched_prefix(head, scheme));
        let additions = Additions {
            policy,
            prefix,
            origin,
            upstream_scheme: taken.upstream().scheme(),
            upgrade,
            identity: &self.identity,
            epoch: taken.epoch(),
            instance: taken.endpoint().address,
            trailers: worker.options.trailers == Trailers::Forward,
            left: self.deadline.left(now),
        };
        match &mut link.wire {
            Wire::Http1(_) => {
                upload.restart(head.framing() == Framing::Chunked, |out| write_request(out, head, &additions));
            }
            Wire::Http2(exchange) => {
                upload.restart(false, |_| {});
                exchange.begin(head, &additions).map_err(|_| Failed::Before(Failure::StalePooled))?;
                upload.wrote = true;
            }
        }
        Ok(())
    }

    /// A connection: an idle one if there is, or a place on a shared one, else a new one.
    async fn link(
        &mut self,
        service: &Service,
        taken: &Taken,
        start: Start,
        certain: bool,
    ) -> Result<Box<Link>, Failed> {
        let (worker, address, instance) = (self.worker, taken.endpoint().address, taken.instance());
        let upstream = taken.upstream();
        if !start.fresh && upstream.is_reusable() {
            let idle = match upstream.http2 {
                true => worker.pool.share(instance, address),
                false => worker.pool.take(instance, address, certain, start.now),
            };
            if let Some(link) = idle {
                return self.ready(link, taken, start.now).await;
            }
        }
        // Boxed, like all that is rare: every connection of a client would have room for it.
        let carrier = Box::pin(dial(worker, self.client, self.deadline, service, taken, start.now)).await?;
        if !upstream.http2 {
            return Ok(Link::new(Wire::Http1(carrier), address, instance.clone(), taken.swap()));
        }
        let until = start.now + worker.options.connect_timeout;
        let begin = Box::pin(http2::Connection::begin(carrier));
        let begun = during(worker, self.client, self.deadline, (taken, until), begin).await?;
        let connection = begun.map_err(|_| Failed::Before(Failure::NothingWritten))?;
        self.ready(worker.pool.open(connection, taken), taken, start.now).await
    }

    /// Waits until a shared connection takes another stream.
    async fn ready(&mut self, mut link: Box<Link>, taken: &Taken, now: Instant) -> Result<Box<Link>, Failed> {
        if let Wire::Http2(exchange) = &mut link.wire {
            let until = now + self.worker.options.connect_timeout;
            let ready = poll_fn(|cx| exchange.poll_ready(cx));
            let ready = during(self.worker, self.client, self.deadline, (taken, until), ready).await?;
            ready.map_err(|_| Failed::Before(Failure::StalePooled))?;
        }
        Ok(link)
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
            match link.input.poll_fill(cx, &mut link.wire, &self.worker.spares) {
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
        let late = ready!(self.poll_late(cx, Some(link), owes, self.client.upload.passed));
        Poll::Ready(Err(match late {
            Late::Deadline => Failed::Deadline { begun: false },
            Late::TryOver => Failed::Before(Failure::TimedOut),
            Late::Stalled => Failed::BodyStalled,
            Late::Gone => Failed::Gone,
            Late::Lost => self.ended_early(link),
        }))
    }

    /// The instance's stream ended before a head was complete.
    fn ended_early(&self, link: &Link) -> Failed {
        if !link.input.is_empty() || self.interim > 0 {
            return Failed::Closed;
        }
        let refused = matches!(&link.wire, Wire::Http2(exchange) if exchange.refused);
        Failed::Before(match (self.client.upload.wrote && !refused, link.reused) {
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
        match upload.poll(cx, stream, input, &mut link.wire, &self.worker.spares) {
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
        let looks = S::MULTIPLEXED || upload.source_ended() || self.upload_broken;
        if looks && self.client.poll_gone(cx, self.worker).is_ready() {
            return Err(Failed::Gone);
        }
        Ok(())
    }

    /// Passes 100, 103 and their like on to clients that know them.
    async fn pass_interim(&mut self, link: &mut Link, length: usize) -> Result<(), Failed> {
        self.interim += 1;
        if self.interim > MOST_INTERIM {
            return Err(Failed::Garbage("too-many-interim-responses"));
        }
        let client = &mut *self.client;
        if S::MULTIPLEXED {
            let sent =
                client.stream.begin(&client.response, &link.input.filled()[..length], false, &HeaderEdits::default());
            link.input.consume(length);
            return sent.map_err(|_| Failed::Gone);
        }
        client.download.staged.clear();
        if client.head.version() == crate::http1::Version::Http11 {
            let bytes = &link.input.filled()[..length];
            let staged = &mut client.download.staged;
            let version = client.head.version();
            write_response(staged, &client.response, bytes, Delivery::Plain, version, true, &HeaderEdits::default());
        }
        link.input.consume(length);
        client.download.begin(Decoder::Length(0), false);
        poll_fn(|cx| self.poll_relay(cx, link)).await
    }

    /// Passes a final response on.
    async fn deliver(&mut self, mut link: Box<Link>, length: usize, reusable: bool) -> Result<Done, Failed> {
        // Before the answer's framing becomes the client's.
        let reusable = self.client.response.keep_alive() && tunnel::can_carry(&link.wire) && reusable;
        let done = self.begin_answer(&mut link, length)?;
        let relayed = poll_fn(|cx| self.poll_relay(cx, &mut link)).await;
        let kept = self.keeps.take().map(|keeps| (keeps, self.client.download.take_copy()));
        relayed?;
        if let Some((keeps, Ok(body))) = kept {
            keeps.finish(body);
        }
        let sent_all = self.client.upload.is_done() && !self.upload_broken;
        if reusable && sent_all && link.input.is_empty() {
            self.worker.pool.put(link, &self.worker.spares, Instant::now());
        }
        Ok(done)
    }

    /// Has a final response's head written to the client, and its body pass. Apart, so that a connection has no room for what
    /// is needed for a moment only.
    fn begin_answer(&mut self, link: &mut Link, length: usize) -> Result<Done, Failed> {
        let worker = self.worker;
        let client = &mut *self.client;
        let version = client.head.version();
        let framing = match &link.wire {
            Wire::Http2(exchange) if S::MULTIPLEXED && exchange.ended() => Framing::None,
            _ => client.response.framing,
        };
        if client.response.status >= 500 {
            worker.table.chains.failed(self.identity.traceparent(&client.head));
        }
        let bytes = &link.input.filled()[..length];
        let policy = &self.route.policy;
        let bodiless = framing == Framing::None && client.head.method() != b"HEAD";
        self.keeps = self.keeps.take().and_then(|keeps| keeps.begin(&client.response, bytes, &policy.response));
        if let Some(keeps) = &self.keeps {
            client.download.copy(keeps.most());
        }
        let coded = if policy.compress.is_empty() || bodiless {
            None
        } else {
            let count = &worker.encoders;
            compress::choose(&policy.compress, &client.head, &mut client.response, bytes, &policy.response, count)
        };
        let (encoder, edits) = coded.map_or((None, None), |(encoder, edits)| (encoder, Some(edits)));
        let left =
            self.admitted.and_then(|admitted| admitted.left).filter(|_| !tells_left(&client.response.fields, bytes));
        let told = (left.filter(|_| S::MULTIPLEXED), self.instead);
        let edits = edits::of(worker, client, self.route, edits, (self.begun, self.tried), told);
        let edits = edits.as_ref().unwrap_or(&policy.response);
        let response = &client.response;
        let delivery = if S::MULTIPLEXED { Delivery::Plain } else { Delivery::of(response.framing, version) };
        // A body still on its way would stand before the next request.
        let keep = client.head.keep_alive()
            && client.upload.source_ended()
            && delivery != Delivery::UntilClose
            && !worker.draining.get();
        client.download.staged.clear();
        if S::MULTIPLEXED {
            client.stream.begin(response, bytes, framing == Framing::None, edits).map_err(|_| Failed::Gone)?;
        } else {
            write_response(&mut client.download.staged, response, bytes, delivery, version, keep, edits);
            if let Some(left) = left {
                add_left(&mut client.download.staged, left);
            }
        }
        let done = Done { status: response.status, keep, switched_after: None };
        client.download.begin(decoder_for(&link.wire, framing, &worker.options.limits), delivery == Delivery::Chunked);
        client.download.wrote = S::MULTIPLEXED;
        if let Some(encoder) = encoder {
            client.download.compress(encoder);
        }
        if worker.options.trailers == Trailers::Forward {
            client.download.forward_trailers(trailer_passes);
        }
        link.input.consume(length);
        (self.stall, self.try_until) = (None, None);
        Ok(done)
    }

    /// Both directions, until the client has the whole response.
    fn poll_relay(&mut self, cx: &mut Context<'_>, link: &mut Link) -> Poll<Result<(), Failed>> {
        if let Err(failed) = self.poll_upload(cx, link) {
            return Poll::Ready(Err(if failed == Failed::Gone { failed } else { Failed::Cut }));
        }
        let Client { download, stream, .. } = &mut *self.client;
        match download.poll(cx, &mut link.wire, &mut link.input, stream, &self.worker.spares) {
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
        // What has come from an instance that is lost goes to its client, however slow that is.
        let waits_for = (!owes).then_some(&*link);
        let late = ready!(self.poll_late(cx, waits_for, owes, progress));
        Poll::Ready(Err(match late {
            Late::Deadline | Late::TryOver => Failed::Deadline { begun: true },
            Late::Stalled => {
                self.worker.metrics.client_cut("stalled");
                Failed::Gone
            }
            Late::Gone => Failed::Gone,
            Late::Lost if self.client.download.wrote => Failed::Cut,
            Late::Lost => Failed::Closed,
        }))
    }
}
