//! The request walk on one page:
//!
//! ```text
//! listen -> route -> (fault) -> guards (overload, limits, breaker, places) -> (mirror) -> balance -> forward (deadline, retry, hold)
//!        -> fallback -> record
//! ```
//!
//! Each step is a call in [`run`] or in [`attempts`]; what a step decides comes from the layers as a value, what it
//! does is I/O of this crate. Deliberately absent: bytes.

mod answering;
mod arriving;
mod faults;
mod instead;
mod mirroring;
mod recording;

use std::time::{Duration, Instant};

use guard::{Attempts, Deadline, Failure, Verdict, is_idempotent};

use crate::answer::Answer;
use crate::balance::{self, Choice, Taken, Tried};
use crate::connection::Client;
use crate::forward::{Done, Exchange, Failed, Start};
use crate::front::Front;
use crate::guards::{self, Admitted, Again, Fallback, FallbackReason, Held, KeptAnswer, PendingEnd, Refusal};
use crate::handshake::Distrust;
use crate::heads::Identity;
use crate::hold::{self, Wait};
use crate::http1::Framing;
use crate::metrics::{HoldEnd, Retried};
use crate::options::ErrorPage;
use crate::routes::{CompiledAction, CompiledRoute, Destination};
use crate::service::{Instance, Service};
use crate::signal::SignalKind;
use crate::worker::Worker;
use answering::fallback;
use arriving::{arrive, preflight};
use std::rc::Rc;
use std::sync::Arc;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It waits for the next request.
    Keep,
    /// It is closed with care.
    Close,
    /// It is dropped, so that the client sees its answer cut.
    Abort,
}

/// How a walk ended.
enum End {
    Done(Done),
    /// The gateway answers itself.
    Answer(Answer),
    /// The client is sent elsewhere.
    Redirect {
        status: u16,
        location: Vec<u8>,
    },
    /// What the service's guards have for when it cannot answer, and why it could not.
    Fallback(Answer, Arc<Fallback>),
    /// What the service answered some time ago, and why it does not now.
    Kept(Answer, Arc<KeptAnswer>),
    /// An authority sees that the name it came by leads here.
    Challenge(Arc<ErrorPage>),
    /// Nobody is there to answer.
    Gone,
    /// The answer broke off, for the reason that would have been answered.
    Cut(Answer),
}

impl End {
    /// Whether the service failed its client; `None` where that was not up to the service.
    fn failed(&self) -> Option<bool> {
        match self {
            Self::Done(done) => Some(done.status >= 500),
            Self::Answer(answer) => (answer.status >= 500).then_some(true),
            Self::Cut(_) => Some(true),
            Self::Redirect { .. } | Self::Fallback(..) | Self::Kept(..) | Self::Challenge(_) | Self::Gone => None,
        }
    }

    fn refused(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Answer(answer) => Self::Answer(answer),
            Refusal::Gone => Self::Gone,
        }
    }

    /// The request's time was over.
    fn is_late(&self) -> bool {
        matches!(self, Self::Answer(answer) | Self::Cut(answer) | Self::Fallback(answer, _) | Self::Kept(answer, _) if answer.reason == Answer::TIMEOUT.reason)
    }
}

/// What is known of a request when it is recorded.
struct Walk {
    begun: Instant,
    /// Until when it may take.
    deadline: Deadline,
    route: Option<Arc<CompiledRoute>>,
    /// Which of its route's destinations.
    chosen: u8,
    /// The caller waits for less than the route would: that it was too little says nothing of the service.
    hurried: bool,
    instance: Option<Arc<Instance>>,
    identity: Identity,
    /// How long the instance took to begin its answer, where somebody asks.
    took: Option<Duration>,
    /// An attempt was made, so that some of the client's body may be taken.
    attempted: bool,
    /// Another service is asked, because the route's own could not answer for this reason.
    instead: Option<FallbackReason>,
}

impl Walk {
    fn begin(begun: Instant) -> Self {
        Self {
            begun,
            deadline: Deadline::begin(begun, None),
            route: None,
            chosen: 0,
            hurried: false,
            instance: None,
            identity: Identity::default(),
            took: None,
            attempted: false,
            instead: None,
        }
    }

    /// Where it led, if to an instance.
    fn destination(&self) -> Option<&Destination> {
        self.route.as_ref()?.destination(self.chosen)
    }
}

/// One request, from a head that has been read (listen) to its record.
pub(crate) async fn run<S: Front>(worker: &Rc<Worker>, client: &mut Client<S>) -> After {
    let mut walk = Walk::begin(client.request_end);
    let end = match arrive(worker, client) {
        Ok(route) => {
            walk.route = Some(route.clone());
            walk.chosen = route.choose(&client.head);
            match (route.destination(walk.chosen), &route.action) {
                (Some(_), _) if let Some(answer) = preflight(client, &route) => {
                    End::Fallback(Answer::PREFLIGHT, answer)
                }
                (Some(to), _) => {
                    // Whoever calls may ask for less than the route allows, never for more.
                    let least = [route.timeout, client.head.fields.timeout()].into_iter().flatten().min();
                    walk.deadline = Deadline::begin(walk.begun, least);
                    walk.hurried = least != route.timeout;
                    let mut begun = walk.begun;
                    let injected = match &route.fault {
                        None => None,
                        Some(fault) => {
                            let injected = Box::pin(faults::inject(worker, client, fault, walk.deadline)).await;
                            begun = Instant::now();
                            injected
                        }
                    };
                    match injected {
                        Some(end) => *end,
                        None => {
                            // Not a step of its own: a connection at rest would have room for one more.
                            let terms = (begun, walk.deadline);
                            let end = match guards::admit(worker, client, &to.service, &route, terms).await {
                                Ok(admitted) => {
                                    let copies = mirroring::begin(worker, client, &route);
                                    let end = attempts(
                                        worker,
                                        client,
                                        &route,
                                        to,
                                        admitted.as_ref().and_then(Held::get),
                                        &mut walk,
                                    )
                                    .await;
                                    if let Some(copies) = copies {
                                        copies.finish(worker, client);
                                    }
                                    tell(worker, &to.service, admitted, &end, &walk);
                                    end
                                }
                                Err(refusal) => End::refused(*refusal),
                            };
                            match to.service.answers(end) {
                                Ok(end) => end,
                                Err(refused) => {
                                    let asked = (&route, to);
                                    Box::pin(instead::answer(worker, client, asked, &mut walk, refused)).await
                                }
                            }
                        }
                    }
                }
                (None, CompiledAction::Respond(fixed)) => End::Fallback(Answer::FIXED, fixed.clone()),
                (None, CompiledAction::Redirect(redirect)) => {
                    let (scheme, authority) = (client.scheme(), client.authority());
                    let prefix = route.matched_prefix(&client.head, scheme);
                    let location = redirect.location(&client.head, (scheme.as_str(), authority), prefix);
                    End::Redirect { status: redirect.status, location }
                }
                // A split without parts, which its author was not allowed to write.
                (None, _) => End::Answer(Answer::NO_ROUTE),
            }
        }
        Err(end) => *end,
    };
    recording::foretell(worker, client, &walk, &end);
    let (after, delivered) = fallback(worker, client, &end).await;
    recording::record(worker, client, &walk, &end, delivered);
    after
}

/// Tells the guards how a request ended that they had let in.
fn tell(worker: &Worker, service: &Service, admitted: Option<Held>, end: &End, walk: &Walk) {
    let Some(admitted) = admitted else { return };
    let (failed, is_late) = (end.failed(), end.is_late());
    admitted.ended(worker, service, failed.filter(|_| !walk.hurried || !is_late), walk.took, is_late);
}

/// Balance and forward, again and again, until there is an answer or no way left.
async fn attempts<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    route: &CompiledRoute,
    to: &Destination,
    watched: Option<&Admitted>,
    walk: &mut Walk,
) -> End {
    let service = &*to.service;
    let idempotent =
        is_idempotent(client.head.method()) || route.retry.as_ref().is_some_and(|policy| policy.non_idempotent);
    let kept = watched.and_then(|_| service.keeps(to, client));
    let mut exchange = Exchange::new(worker, client, walk.deadline, route, (walk.begun, walk.attempted));
    (exchange.admitted, exchange.hurried, exchange.keeps) = (watched, walk.hurried, kept);
    exchange.instead = walk.instead;
    walk.attempted = true;
    let mut guard = Guard {
        attempts: match &route.retry {
            Some(policy) => Attempts::by(policy),
            None => Attempts::new(if S::DISCARDED { 1 } else { worker.options.max_attempts }),
        },
        repeated: 0,
        tried: Tried::default(),
        idempotent,
        distrusted: None,
        again: None,
    };
    let (mut fresh, mut held_since) = (false, None);
    let end = loop {
        let seen = service.room.releases();
        let now = Instant::now();
        if walk.deadline.expired(now) {
            break End::Answer(Answer::TIMEOUT);
        }
        let choice =
            balance::choose(service, to.version.as_ref(), &guard.tried, &worker.options, now, || worker.random());
        if let Some(why) = guard.distrusted.filter(|_| !choice.is_another(&guard.tried)) {
            // Waiting mends no certificate.
            break End::Answer(Answer::distrusted(why.word()));
        }
        let probe = match choice {
            Choice::Take(taken) => {
                walk.instance = Some(taken.instance().clone());
                exchange.has_more = route.retry.is_some() && idempotent && guard.attempts.has_more();
                match attempt(worker, &mut exchange, to, taken, Start { now, fresh }, &mut guard).await {
                    Ok(end) => break end,
                    Err(needs_fresh) => fresh = needs_fresh,
                }
                let wait = route
                    .retry
                    .as_ref()
                    .filter(|_| !fresh && guard.repeated > 0)
                    .map(|it| it.pause(guard.repeated, worker.random()));
                if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
                    let until = Instant::now() + wait;
                    match Box::pin(guards::pause(worker, exchange.client, until, walk.deadline)).await {
                        Ok(()) => {}
                        Err(Refusal::Gone) => break End::Gone,
                        Err(Refusal::Answer(answer)) => break End::Answer(answer),
                    }
                }
                let Some(again) = guard.again.as_mut().filter(|again| again.waits()) else { continue };
                match Box::pin(again.wait(worker, exchange.client, service, walk.deadline)).await {
                    Ok(()) => continue,
                    Err(PendingEnd::Gone) => break End::Gone,
                    Err(PendingEnd::Deadline) => break End::Answer(Answer::TIMEOUT),
                    Err(_) => break End::Answer(Answer::INSTANCE_CLOSED),
                }
            }
            Choice::Full => break End::Answer(Answer::INSTANCES_FULL),
            Choice::Shut(left) => {
                service.count_shut_out();
                break End::Answer(Answer::breaker_open(left));
            }
            Choice::Wait => None,
            Choice::WaitUntil(instance) => Some(instance),
        };
        let policy = service.resolved().told.hold.filter(|_| !S::DISCARDED);
        let Some(policy) = policy else { break End::Answer(Answer::NO_INSTANCE) };
        guard.again = None;
        let begun = *held_since.get_or_insert(now);
        let terms = Wait { service, policy, seen, begun, deadline: walk.deadline, probe };
        let waited = hold::wait(worker, exchange.client, terms).await;
        service.metrics.hold_ended(waited.err().unwrap_or(HoldEnd::Released), now.elapsed());
        match waited {
            Ok(()) | Err(HoldEnd::Released) => guard.tried.clear(),
            Err(HoldEnd::Full) => break End::Answer(Answer::HOLD_FULL),
            Err(HoldEnd::Timeout) => break End::Answer(Answer::HELD_TOO_LONG),
            Err(HoldEnd::Deadline) => break End::Answer(Answer::TIMEOUT),
            Err(HoldEnd::Gone) => break End::Gone,
        }
    };
    walk.identity = exchange.identity;
    walk.took = exchange.took;
    service.metrics.received.inc_by(client.upload.passed);
    end
}

/// What the guards know of a request's attempts.
struct Guard {
    attempts: Attempts,
    /// Attempts that were made again by a budget's leave.
    repeated: u32,
    tried: Tried,
    idempotent: bool,
    /// An instance was not whom it should be.
    distrusted: Option<Distrust>,
    /// Boxed, because it is rare.
    again: Option<Box<Again>>,
}

/// One attempt and its judgement. `Err` asks for another one, on a fresh connection if true.
async fn attempt<S: Front>(
    worker: &Worker,
    exchange: &mut Exchange<'_, S>,
    to: &Destination,
    taken: Taken,
    start: Start,
    guard: &mut Guard,
) -> Result<End, bool> {
    let (service, instance) = (&*to.service, taken.instance());
    let signal = |kind, status| worker.signal(service, instance, kind, status);
    if taken.spilled {
        signal(SignalKind::Spilled, 0);
    }
    if taken.replay_limit() > 0 && exchange.client.head.framing() != Framing::None {
        // For any method: even a POST may go again if nothing of it was written.
        let expected = match exchange.client.head.framing() {
            Framing::Length(length) => length,
            _ => u64::MAX,
        };
        exchange.client.upload.keep(taken.replay_limit(), expected, !guard.idempotent);
    }
    let begun = start.now;
    // Another worker's request may have been the last that its breaker lets through for now.
    let guards = exchange.admitted.map(|admitted| &*admitted.guards);
    let Ok(passed) = guards::ask_instance(worker, (service, guards), instance, begun) else {
        return Err(start.fresh);
    };
    let failed = match exchange.attempt(service, &taken, start, !guard.idempotent).await {
        Ok(done) => {
            instance.metrics.answered(done.status, done.switched_after.unwrap_or_else(|| begun.elapsed()));
            if instance.trust() {
                service.room.release(Instant::now());
            }
            if done.status >= 500 {
                signal(SignalKind::ServerError, done.status);
            }
            if exchange.admitted.is_some() {
                guards::judge(worker, service, instance, (done.status >= 500).then_some("5xx"));
            }
            if taken.is_timed() {
                let took = exchange.took.unwrap_or_else(|| begun.elapsed());
                instance.took(took, done.status >= 500, Instant::now());
            }
            passed.ended(worker, service, done.status >= 500, (begun, exchange.took));
            return Ok(End::Done(done));
        }
        Err(failed) => failed,
    };
    if !matches!(failed, Failed::Gone | Failed::Body(_) | Failed::BodyStalled) {
        instance.metrics.answered(502, begun.elapsed());
    }
    let hurried = exchange.hurried && matches!(failed, Failed::Deadline { .. });
    if let Some(why) = failed.blames().filter(|_| exchange.admitted.is_some() && !hurried) {
        guards::judge(worker, service, instance, Some(why));
    }
    if taken.is_timed() && failed.blames().is_some() {
        instance.took(exchange.took.unwrap_or_else(|| begun.elapsed()), true, Instant::now());
    }
    let is_sound = matches!(failed, Failed::Repeat(status) if status < 500);
    let tells = is_sound || (failed.blames().is_some() && !hurried);
    if tells {
        passed.ended(worker, service, !is_sound, (begun, exchange.took));
    }
    match failed {
        Failed::Before(failure) => return again(worker, exchange, to, &taken, failure, guard),
        Failed::Repeat(status) => {
            if status >= 500 {
                signal(SignalKind::ServerError, status);
            }
            return again(worker, exchange, to, &taken, Failure::Status, guard);
        }
        Failed::Garbage(_) if exchange.has_more && exchange.has_time() => {
            signal(SignalKind::BadResponse, 0);
            return again(worker, exchange, to, &taken, Failure::Garbage, guard);
        }
        Failed::Distrusted(why) => {
            guard.distrusted = Some(why);
            return again(worker, exchange, to, &taken, Failure::Distrusted, guard);
        }
        Failed::Closed | Failed::Cut => signal(SignalKind::Reset, 0),
        Failed::Garbage(_) => signal(SignalKind::BadResponse, 0),
        Failed::Deadline { .. } => signal(SignalKind::TimedOut, 0),
        Failed::Gone | Failed::Body(_) | Failed::BodyStalled => {}
    }
    Ok(match failed {
        Failed::Before(_) | Failed::Distrusted(_) | Failed::Repeat(_) | Failed::Closed => {
            End::Answer(Answer::INSTANCE_CLOSED)
        }
        Failed::Garbage(why) => End::Answer(Answer::bad_response(why)),
        Failed::Deadline { begun: false } => End::Answer(Answer::TIMEOUT),
        Failed::Deadline { begun: true } => End::Cut(Answer::TIMEOUT),
        Failed::Cut => End::Cut(Answer::INSTANCE_CLOSED),
        Failed::Gone => End::Gone,
        Failed::Body(bad) => End::Answer(Answer::bad(bad)),
        Failed::BodyStalled => End::Answer(Answer::BODY_TIMEOUT),
    })
}

/// No byte of a response came: the guard says whether the request may be sent again.
fn again<S>(
    worker: &Worker,
    exchange: &Exchange<'_, S>,
    to: &Destination,
    taken: &Taken,
    failure: Failure,
    guard: &mut Guard,
) -> Result<End, bool> {
    let (service, instance, options) = (&*to.service, taken.instance(), &worker.options);
    let stale = failure == Failure::StalePooled;
    if !stale {
        guard.tried.add(instance);
    }
    match failure {
        Failure::NothingWritten => worker.signal(service, instance, SignalKind::ConnectFailed, 0),
        Failure::Reset | Failure::Garbage => worker.signal(service, instance, SignalKind::Reset, 0),
        // It lives, and nobody but an operator makes it trusted.
        Failure::Distrusted | Failure::StalePooled | Failure::Status => {}
        Failure::TimedOut => worker.signal(service, instance, SignalKind::TimedOut, 0),
    }
    if failure == Failure::NothingWritten {
        // A connection that ended says little of the instance; one that cannot be made says enough.
        instance.suspect(Instant::now(), options.avoid, options.probe_interval);
    }
    if !exchange.has_time() {
        guard.attempts.end();
    }
    let may_wait = service.resolved().told.hold.is_some();
    let spared = failure == Failure::TimedOut && exchange.spares_late();
    let verdict = if spared {
        Verdict::GiveUp
    } else {
        guard.attempts.after(failure, guard.idempotent, exchange.client.upload.replayable(), may_wait)
    };
    if verdict == Verdict::GiveUp || (verdict == Verdict::Again && !guard.again.get_or_insert_default().ask(service)) {
        return Ok(End::Answer(match (failure, guard.distrusted) {
            (Failure::Distrusted, Some(why)) => Answer::distrusted(why.word()),
            (Failure::NothingWritten, _) => Answer::CONNECT_FAILED,
            (Failure::Status, _) => Answer::OVER_BUDGET,
            (Failure::TimedOut, _) => Answer::TIMEOUT,
            (Failure::Garbage, _) => Answer::bad_response("garbage"),
            _ => Answer::INSTANCE_CLOSED,
        }));
    }
    service.metrics.retried(match failure {
        Failure::NothingWritten => Retried::Connect,
        Failure::Distrusted => Retried::Tls,
        Failure::StalePooled => Retried::Stale,
        Failure::Status => Retried::Status,
        Failure::TimedOut => Retried::Timeout,
        Failure::Reset | Failure::Garbage => Retried::Reset,
    });
    guard.repeated += u32::from(verdict == Verdict::Again);
    Err(stale)
}
