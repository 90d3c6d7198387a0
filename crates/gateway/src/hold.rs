//! Waiting for a switch: a request that nobody may take now waits here until endpoints change, its time is over or
//! its client leaves. Between balance and forward in the request walk. Its body stays unread but for what a socket
//! buffer had brought. Deliberately absent: who may wait and how fast a room empties (`guard::hold` decides).

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use guard::{Deadline, HoldPolicy, Room, Ticket};

use crate::connection::Client;
use crate::front::Front;
use crate::metrics::HoldEnd;
use crate::service::{Instance, Service, millis};
use crate::worker::Worker;

/// One service's waiting room, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct WaitingRoom {
    /// Grows with each release, so that one between a look at the endpoints and the wait is not missed.
    releases: AtomicU64,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    room: Room,
    wakers: BTreeMap<Ticket, Waker>,
}

impl WaitingRoom {
    /// Taken before looking at the endpoints, given to [`wait`].
    pub(crate) fn releases(&self) -> u64 {
        self.releases.load(Ordering::Acquire)
    }

    /// Something changed: everybody looks again, at the room's pace.
    pub(crate) fn release(&self, now: Instant) {
        let mut line = self.lock();
        self.releases.fetch_add(1, Ordering::Release);
        line.room.release(now);
        let wakers = std::mem::take(&mut line.wakers);
        drop(line);
        wakers.into_values().for_each(Waker::wake);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.lock().room.waiting()
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the room; dropping it gives it back and lets the next in line know that it is first.
struct Place<'a> {
    service: &'a Service,
    ticket: Ticket,
}

impl<'a> Place<'a> {
    fn take(service: &'a Service, policy: HoldPolicy) -> Result<Self, HoldEnd> {
        let ticket = service.room.lock().room.enter(policy.max_requests).map_err(|_| HoldEnd::Full)?;
        service.metrics.held.inc();
        Ok(Self { service, ticket })
    }

    /// Registers to be woken; says whether this one is the first in line.
    fn register(&self, seen: u64, waker: &Waker) -> Result<bool, Released> {
        let mut line = self.service.room.lock();
        if self.service.room.releases() != seen {
            return Err(Released);
        }
        match line.wakers.get_mut(&self.ticket) {
            Some(known) => known.clone_from(waker),
            None => drop(line.wakers.insert(self.ticket, waker.clone())),
        }
        Ok(line.wakers.first_key_value().is_some_and(|(first, _)| *first == self.ticket))
    }

    fn go_at(&self, worker: &Worker, now: Instant) -> Instant {
        self.service.room.lock().room.go_at(self.ticket, worker.options.release, now)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.service.metrics.held.dec();
        let mut line = self.service.room.lock();
        line.room.leave();
        line.wakers.remove(&self.ticket);
        let next = line.wakers.first_key_value().map(|(_, waker)| waker.clone());
        drop(line);
        if let Some(next) = next {
            next.wake();
        }
    }
}

/// The room was released since the caller looked.
struct Released;

/// One wait's terms.
pub(crate) struct Wait<'a> {
    pub(crate) service: &'a Service,
    pub(crate) policy: HoldPolicy,
    /// What [`WaitingRoom::releases`] said before the endpoints were looked at.
    pub(crate) seen: u64,
    /// When this request's first wait began.
    pub(crate) begun: Instant,
    pub(crate) deadline: Deadline,
    /// An instance that may come back by itself: the first in line tries it when it is due.
    pub(crate) probe: Option<Arc<Instance>>,
}

/// Waits until it makes sense to choose again.
///
/// # Errors
/// Any end but [`HoldEnd::Released`].
pub(crate) async fn wait<S: Front>(worker: &Worker, client: &mut Client<S>, terms: Wait<'_>) -> Result<(), HoldEnd> {
    let place = Place::take(terms.service, terms.policy)?;
    let until = terms.begun.checked_add(terms.policy.max_wait);
    let mut go_at = None;
    poll_fn(|cx| {
        if client.poll_gone(cx, worker).is_ready() {
            return Poll::Ready(Err(HoldEnd::Gone));
        }
        let now = Instant::now();
        if terms.deadline.expired(now) {
            return Poll::Ready(Err(HoldEnd::Deadline));
        }
        if until.is_some_and(|until| now >= until) {
            return Poll::Ready(Err(HoldEnd::Timeout));
        }
        poll_turn(cx, worker, client, &place, &terms, &mut go_at, until)
    })
    .await
}

/// Whether this request may look again now; arms the timer for the next moment that matters.
fn poll_turn<S: Front>(
    cx: &mut Context<'_>,
    worker: &Worker,
    client: &mut Client<S>,
    place: &Place<'_>,
    terms: &Wait<'_>,
    go_at: &mut Option<Instant>,
    until: Option<Instant>,
) -> Poll<Result<(), HoldEnd>> {
    let now = Instant::now();
    let mut wake = until;
    if go_at.is_none() {
        match place.register(terms.seen, cx.waker()) {
            Err(Released) => *go_at = Some(place.go_at(worker, now)),
            Ok(first) => {
                if let Some(instance) = terms.probe.as_ref().filter(|_| first) {
                    let wait_ms = instance.probe_at_ms().saturating_sub(millis(now));
                    if wait_ms == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    let due = now + Duration::from_millis(wait_ms);
                    wake = Some(wake.map_or(due, |until| until.min(due)));
                }
            }
        }
    }
    if let Some(at) = *go_at {
        if now >= at {
            return Poll::Ready(Ok(()));
        }
        wake = Some(wake.map_or(at, |until| until.min(at)));
    }
    if client.timer.poll_at(cx, terms.deadline.or_earlier(wake)).is_ready() {
        // Time passed while arming: look again at once.
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}
