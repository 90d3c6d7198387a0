//! A bulkhead with its wakers: requests of all workers take places, wait for one in order, give it back.
//! A place is given back by dropping it, whatever ends the request; a waiter that is dropped passes its place on.
//! Deliberately absent: who gets in (`guard::bulkhead`).

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::time::Instant;

use guard::bulkhead::{Bulkhead, Entry, Waiter};
use guard::{Deadline, Places, Priority};

use super::ConcurrencyView;
use super::refusals::Refusals;
use crate::connection::Client;
use crate::front::Front;
use crate::worker::Worker;

/// Ends of a wait, as the metrics name them.
pub(super) const PENDING_ENDS: [&str; 6] = ["placed", "full", "timeout", "deadline", "gone", "shed"];

/// How a wait for a place ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PendingEnd {
    Placed,
    Full,
    Timeout,
    Deadline,
    Gone,
    Shed,
}

/// One bulkhead, shared by all workers.
#[derive(Debug)]
pub(crate) struct Line {
    inside: Mutex<Inside>,
    refusals: Refusals,
}

#[derive(Debug)]
struct Inside {
    places: Places,
    bulkhead: Bulkhead,
    wakers: BTreeMap<Waiter, Waker>,
}

impl Line {
    pub(crate) fn new(places: Places) -> Self {
        let inside = Inside { places, bulkhead: Bulkhead::default(), wakers: BTreeMap::new() };
        Self { inside: Mutex::new(inside), refusals: Refusals::default() }
    }

    /// Other bounds; who has a place keeps it.
    pub(super) fn adopt(self: Arc<Self>, places: Places) -> Arc<Self> {
        self.change(|inside| {
            inside.places = places;
            inside.bulkhead.grant(places)
        });
        self
    }

    /// As [`Self::enter`], with bounds of this moment.
    pub(crate) fn enter_within(&self, places: Places) -> Entry {
        let mut inside = self.lock();
        inside.places = places;
        inside.bulkhead.enter(places, Priority::Normal)
    }

    pub(super) fn enter(&self, priority: Priority) -> Entry {
        let mut inside = self.lock();
        let places = inside.places;
        let entry = inside.bulkhead.enter(places, priority);
        let displaced =
            if let Entry::Displaces(_, displaced) = entry { inside.wakers.remove(&displaced) } else { None };
        drop(inside);
        displaced.into_iter().for_each(Waker::wake);
        entry
    }

    /// So many places from now on; who has one keeps it.
    pub(super) fn set_max(&self, max: usize) {
        self.change(|inside| {
            inside.places.max = max;
            inside.bulkhead.grant(inside.places)
        });
    }

    /// Requests that have a place.
    pub(super) fn active(&self) -> usize {
        self.lock().bulkhead.active()
    }

    pub(super) fn view(&self) -> ConcurrencyView {
        let inside = self.lock();
        let (active, pending) = (inside.bulkhead.active(), inside.bulkhead.waiting());
        let refusing_since = self.refusals.since();
        ConcurrencyView { places: inside.places, active, pending, refusing_since, adaptive: None }
    }

    /// Somebody got no place.
    pub(super) fn refused(&self) {
        self.refusals.add();
    }

    /// Changes it and wakes everybody whose place that brought.
    fn change(&self, change: impl FnOnce(&mut Inside) -> Option<Waiter>) {
        let mut inside = self.lock();
        let mut woken = Vec::new();
        let mut granted = change(&mut inside);
        while let Some(waiter) = granted {
            woken.extend(inside.wakers.remove(&waiter));
            let places = inside.places;
            granted = inside.bulkhead.grant(places);
        }
        drop(inside);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place(Arc<Line>);

impl Place {
    /// For somebody who was let in.
    pub(crate) fn new(line: Arc<Line>) -> Self {
        Self(line)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.change(|inside| inside.bulkhead.leave(inside.places));
    }
}

/// Somebody in line; dropping it leaves the line.
struct Waiting {
    line: Arc<Line>,
    waiter: Waiter,
    placed: bool,
}

impl Waiting {
    /// Whether it has its place; if not, it is not to wait any more.
    fn poll(&mut self, waker: &Waker) -> Poll<bool> {
        let mut inside = self.line.lock();
        if inside.bulkhead.take(self.waiter) {
            inside.wakers.remove(&self.waiter);
            self.placed = true;
            return Poll::Ready(true);
        }
        if inside.bulkhead.is_displaced(self.waiter) {
            return Poll::Ready(false);
        }
        match inside.wakers.get_mut(&self.waiter) {
            Some(known) => known.clone_from(waker),
            None => drop(inside.wakers.insert(self.waiter, waker.clone())),
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.placed {
            self.line.change(|inside| {
                inside.wakers.remove(&self.waiter);
                inside.bulkhead.give_up(self.waiter, inside.places)
            });
        }
    }
}

/// Waits for a place until `until` or the deadline, or until the client has gone.
pub(crate) async fn wait<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    line: Arc<Line>,
    waiter: Waiter,
    until: Option<Instant>,
    deadline: Deadline,
) -> Result<Place, PendingEnd> {
    let mut waiting = Waiting { line: line.clone(), waiter, placed: false };
    poll_fn(|cx| {
        if let Poll::Ready(placed) = waiting.poll(cx.waker()) {
            return Poll::Ready(if placed { Ok(()) } else { Err(PendingEnd::Shed) });
        }
        if client.poll_gone(cx, worker).is_ready() {
            return Poll::Ready(Err(PendingEnd::Gone));
        }
        let at = deadline.or_earlier(until);
        client.timer.poll_at(cx, at).map(|()| {
            let is_deadline = deadline.expired(Instant::now());
            Err(if is_deadline { PendingEnd::Deadline } else { PendingEnd::Timeout })
        })
    })
    .await?;
    Ok(Place::new(line))
}
