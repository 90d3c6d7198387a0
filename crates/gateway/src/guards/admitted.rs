//! A request's way past the guards, in order: limits, breaker, places; and what they are told when it has ended.
//! Between route and balance in the request walk. Deliberately absent: anything that decides; that is `guard`'s and
//! `traffic`'s.

use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use guard::adaptive::Sample;
use guard::breaker::{Ending, Pass};
use guard::bulkhead::{Entry, Waiter};
use guard::{Deadline, Priority};
use traffic::Decision;

use super::at_once::Presence;
use super::limit::{Left, Said};
use super::line::{self, PendingEnd, Place};
use super::scope::Passing;
use super::{BreakerScope, Guards, Note};
use crate::answer::Answer;
use crate::connection::Client;
use crate::front::Front;
use crate::overload::Inside;
use crate::routes::CompiledRoute;
use crate::service::Service;
use crate::worker::Worker;

/// A request's way past the guards. Dropped without a word it counts as one that told nothing.
pub(crate) struct Admitted {
    pub(crate) guards: Arc<Guards>,
    pass: Option<Pass>,
    /// Given back when it is dropped.
    place: Option<Place>,
    /// What it counts for, among what is under way at once.
    presence: Option<Presence>,
    _inside: Option<Inside>,
    more: Vec<Presence>,
    passing: Option<Passing>,
    /// What is left of the rate, where answers tell that.
    pub(crate) left: Option<Left>,
    priority: Priority,
    begun: Instant,
    /// When it got its place.
    placed: Instant,
}

/// Boxes of requests that have ended, for the next ones.
#[derive(Default)]
pub(crate) struct Spared(RefCell<Vec<Held>>);

impl std::fmt::Debug for Spared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Spared").field(&self.0.borrow().len()).finish()
    }
}

/// Spare boxes of a worker.
const SPARE: usize = 256;

/// A request that was let in, in a box that its worker uses for the next one: with each request so much memory would be asked
/// for and given back.
#[derive(Default)]
pub(crate) struct Held(Box<Option<Admitted>>);

impl Held {
    /// One that holds nobody.
    fn spare(worker: &Worker) -> Self {
        worker.admissions.0.borrow_mut().pop().unwrap_or_default()
    }

    pub(crate) fn get(&self) -> Option<&Admitted> {
        self.0.as_ref().as_ref()
    }

    /// How the request ended; see [`Admitted::ended`].
    pub(crate) fn ended(
        mut self,
        worker: &Worker,
        service: &Service,
        failed: Option<bool>,
        took: Option<Duration>,
        is_late: bool,
    ) {
        if let Some(admitted) = self.0.as_mut() {
            admitted.ended(worker, service, failed, took, is_late);
        }
        // Where it is: nothing is moved to be dropped.
        *self.0 = None;
        let mut spare = worker.admissions.0.borrow_mut();
        if spare.len() < SPARE {
            spare.push(self);
        }
    }
}

/// Why a request does not get past the guards.
#[derive(Debug)]
pub(crate) enum Refusal {
    Answer(Answer),
    /// Its client left.
    Gone,
}

/// Lets a request in, or says why not; boxed both, so that a connection at rest has no room for it. `None`: nothing guards its
/// service.
pub(crate) async fn admit<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    service: &Arc<Service>,
    route: &CompiledRoute,
    (begun, deadline): (Instant, Deadline),
) -> Result<Option<Held>, Box<Refusal>> {
    let inside = worker.table.protection.enter();
    let inside = inside.map_err(|overload| Refusal::Answer(Answer::overloaded(overload.as_str())))?;
    let guards = match service.guards.load_full() {
        Some(guards) => guards,
        None if inside.is_some() || service.meter.is_used() => Guards::none(),
        None => return Ok(None),
    };
    let mut held = Held::spare(worker);
    let admitted = held.0.insert(Admitted {
        guards,
        pass: None,
        place: None,
        presence: None,
        more: Vec::new(),
        passing: None,
        left: None,
        priority: route.policy.priority,
        _inside: inside,
        begun,
        placed: begun,
    });
    if let Some(wait) = admitted.ask_limits(client, route)? {
        Box::pin(pause(worker, client, admitted.begun + wait, deadline)).await?;
    }
    admitted.enter_bounds(client, route)?;
    admitted.pass_gate(worker, service)?;
    match admitted.enter_line() {
        Entry::In => {}
        Entry::Full => return Err(Box::new(Refusal::Answer(Answer::PENDING_FULL))),
        Entry::Shed => return Err(Box::new(Refusal::Answer(Answer::SHED))),
        // Boxed, because it is rare: every connection would have room for it.
        Entry::Waits(waiter) | Entry::Displaces(waiter, _) => {
            match Box::pin(admitted.wait(worker, client, waiter, deadline)).await {
                Ok(()) => {}
                Err(PendingEnd::Gone) => return Err(Box::new(Refusal::Gone)),
                Err(PendingEnd::Deadline) => return Err(Box::new(Refusal::Answer(Answer::TIMEOUT))),
                Err(PendingEnd::Shed) => return Err(Box::new(Refusal::Answer(Answer::SHED))),
                Err(_) => return Err(Box::new(Refusal::Answer(Answer::PENDING_TOO_LONG))),
            }
        }
    }
    admitted.passing = service.meter.is_used().then(|| service.meter.enter(Instant::now()));
    Ok(Some(held))
}

/// Waits for its turn.
pub(crate) async fn pause<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    until: Instant,
    deadline: Deadline,
) -> Result<(), Refusal> {
    poll_fn(|cx| {
        if client.poll_gone(cx, worker).is_ready() {
            return Poll::Ready(Err(Refusal::Gone));
        }
        client
            .timer
            .poll_at(cx, deadline.or_earlier(Some(until)))
            .map(|()| if Instant::now() >= until { Ok(()) } else { Err(Refusal::Answer(Answer::TIMEOUT)) })
    })
    .await
}

impl Admitted {
    /// `Some`: its turn is so much later. What one limit has counted and another one refuses was not there.
    fn ask_limits<S>(&mut self, client: &Client<S>, route: &CompiledRoute) -> Result<Option<Duration>, Refusal> {
        let guards = &self.guards;
        if guards.limits.is_empty() {
            return Ok(None);
        }
        let mut wait = Duration::ZERO;
        for (index, limit) in guards.limits.iter().enumerate() {
            match limit.ask(client, route, self.begun) {
                Said::Nothing => {}
                Said::Admitted(counted) => {
                    if let Decision::Wait(turn) = counted.asked.decision {
                        wait = wait.max(turn);
                    }
                    if limit.tells() && self.left.is_none_or(|left| left.remaining > counted.left.remaining) {
                        self.left = Some(counted.left);
                    }
                }
                Said::Refused(most, after) => {
                    // Rare, so that nothing needs to be remembered of those that are let through.
                    guards.limits[..index].iter().for_each(|limit| limit.take_back(client, route, self.begun));
                    guards.numbers.limited[2].fetch_add(1, Ordering::Relaxed);
                    return Err(Refusal::Answer(Answer::rate_limited(most, after)));
                }
            }
        }
        guards.numbers.limited[usize::from(!wait.is_zero())].fetch_add(1, Ordering::Relaxed);
        Ok((!wait.is_zero()).then_some(wait))
    }

    fn enter_bounds<S>(&mut self, client: &Client<S>, route: &CompiledRoute) -> Result<(), Refusal> {
        for bound in &self.guards.bounds {
            match bound.enter(client, route) {
                // One rule of a kind is the custom: nothing is allocated for it.
                Ok(presence) if self.presence.is_none() => self.presence = presence,
                Ok(presence) => self.more.extend(presence),
                Err(()) => {
                    self.guards.numbers.at_once_refused.fetch_add(1, Ordering::Relaxed);
                    return Err(Refusal::Answer(Answer::TOO_MANY_AT_ONCE));
                }
            }
        }
        Ok(())
    }

    fn pass_gate(&mut self, worker: &Worker, service: &Service) -> Result<(), Refusal> {
        let (Some(gate), Some(policy)) = (&self.guards.gate, &self.guards.told.breaker) else { return Ok(()) };
        let (asked, turn) = gate.ask(policy, self.begun);
        if let Some(turn) = turn {
            self.turned(worker, service, turn);
        }
        match asked {
            Ok(pass) => {
                self.pass = Some(pass);
                Ok(())
            }
            Err(refused) => {
                self.guards.numbers.breaker_refused.fetch_add(1, Ordering::Relaxed);
                Err(Refusal::Answer(Answer::breaker_open(refused.0)))
            }
        }
    }

    fn enter_line(&mut self) -> Entry {
        let Some(line) = &self.guards.line else { return Entry::In };
        let entry = line.enter(self.priority);
        match entry {
            Entry::In => self.place = Some(Place::new(line.clone())),
            Entry::Full => self.count(PendingEnd::Full),
            Entry::Shed => self.count(PendingEnd::Shed),
            Entry::Waits(_) | Entry::Displaces(..) => {}
        }
        entry
    }

    async fn wait<S: Front>(
        &mut self,
        worker: &Worker,
        client: &mut Client<S>,
        waiter: Waiter,
        deadline: Deadline,
    ) -> Result<(), PendingEnd> {
        let (Some(line), Some(concurrency)) = (self.guards.line.clone(), self.guards.told.concurrency) else {
            return Ok(());
        };
        let until = self.begun.checked_add(concurrency.max_wait);
        let waited = line::wait(worker, client, line, waiter, until, deadline).await;
        self.count(waited.as_ref().err().copied().unwrap_or(PendingEnd::Placed));
        self.place = Some(waited?);
        self.placed = Instant::now();
        Ok(())
    }

    fn count(&self, end: PendingEnd) {
        self.guards.numbers.pending[end as usize].fetch_add(1, Ordering::Relaxed);
        if let (Some(line), PendingEnd::Full | PendingEnd::Timeout | PendingEnd::Deadline | PendingEnd::Shed) =
            (&self.guards.line, end)
        {
            line.refused();
        }
        if end == PendingEnd::Shed {
            self.guards.numbers.shed[self.priority as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn turned(&self, worker: &Worker, service: &Service, turn: guard::breaker::Turn) {
        self.guards.numbers.breaker_turns[turn.to as usize].fetch_add(1, Ordering::Relaxed);
        service.notes.add(Note::Breaker(turn));
        worker.tell_guarded(service);
    }

    /// How it ended: its answer came after `took`, or it has taken its whole time until now.
    fn ended(
        &mut self,
        worker: &Worker,
        service: &Service,
        failed: Option<bool>,
        took: Option<Duration>,
        is_late: bool,
    ) {
        self.measure(worker, failed, took, is_late);
        let Some(pass) = self.pass.take() else { return };
        let (Some(gate), Some(policy)) = (&self.guards.gate, &self.guards.told.breaker) else { return };
        let now = Instant::now();
        let took = took.unwrap_or_else(|| now.saturating_duration_since(self.begun));
        let failed = failed.filter(|_| self.guards.told.breaker_scope == BreakerScope::Service);
        let ending = failed.map_or(Ending::Unknown, |failed| Ending::Answered { failed, took });
        if let Some(turn) = gate.ended(policy, pass, ending, now) {
            self.turned(worker, service, turn);
        }
    }
}

impl Admitted {
    /// What a request tells of how many the service bears at once. One that failed at once tells nothing.
    fn measure(&self, worker: &Worker, failed: Option<bool>, took: Option<Duration>, is_late: bool) {
        let (Some(tuner), Some(line)) = (&self.guards.tuner, &self.guards.line) else { return };
        let now = Instant::now();
        let took = match failed {
            Some(false) => took,
            Some(true) if is_late => Some(now.saturating_duration_since(self.placed)),
            _ => None,
        };
        let Some(took) = took else { return };
        let sample = Sample { begun: self.placed, took, active: line.active() };
        if let Some(limit) = tuner.ended(sample, now, worker.random()) {
            line.set_max(limit);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        if let (Some(gate), Some(policy)) = (&self.guards.gate, &self.guards.told.breaker) {
            gate.ended(policy, pass, Ending::Unknown, Instant::now());
        }
    }
}
