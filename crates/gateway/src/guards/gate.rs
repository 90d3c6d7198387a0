//! A breaker under its lock, with the wall clock for those who read status. Held for a few counters at a time.
//! Until when it turns everybody away stands beside the lock, for balance, which looks at many of them for each request.
//! Deliberately absent: thresholds and states (`guard::breaker`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use guard::breaker::{Breaker, BreakerPolicy, Ending, Forced, Pass, Refused, State, Turn};

use super::BreakerView;
use crate::service::millis;

/// One breaker, a service's or an instance's, shared by all workers.
#[derive(Debug)]
pub(super) struct Gate {
    inside: Mutex<Inside>,
    /// Milliseconds (of [`millis`]) until which it lets nobody through, as far as is known; zero: it does. Written under the
    /// lock, so that it never outlives the state it tells of.
    shut_until_ms: AtomicU64,
}

#[derive(Debug)]
struct Inside {
    breaker: Breaker,
    since: SystemTime,
}

impl Gate {
    pub(super) fn new(policy: &BreakerPolicy) -> Self {
        let inside = Inside { breaker: Breaker::new(policy, Instant::now()), since: SystemTime::now() };
        Self { inside: Mutex::new(inside), shut_until_ms: AtomicU64::new(0) }
    }

    /// Closed, with nothing counted.
    pub(super) fn reset(&self, policy: &BreakerPolicy) {
        let mut inside = self.lock();
        *inside = Inside { breaker: Breaker::new(policy, Instant::now()), since: SystemTime::now() };
        self.shut_until_ms.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_shut(&self, now_ms: u64) -> bool {
        self.shut_until_ms() > now_ms
    }

    pub(super) fn shut_until_ms(&self) -> u64 {
        self.shut_until_ms.load(Ordering::Relaxed)
    }

    pub(super) fn adopt(self: Arc<Self>, policy: &BreakerPolicy) -> Arc<Self> {
        self.adopt_in_place(policy);
        self
    }

    pub(super) fn adopt_in_place(&self, policy: &BreakerPolicy) {
        self.lock().breaker.adopt(policy, Instant::now());
    }

    pub(super) fn ask(&self, policy: &BreakerPolicy, now: Instant) -> (Result<Pass, Refused>, Option<Turn>) {
        let mut inside = self.lock();
        let (asked, turn) = inside.breaker.ask(policy, now);
        self.note_shut(asked.err().map(|refused| refused.0), now);
        (asked, inside.dated(turn))
    }

    pub(super) fn ended(&self, policy: &BreakerPolicy, pass: Pass, ending: Ending, now: Instant) -> Option<Turn> {
        let mut inside = self.lock();
        let turn = inside.breaker.ended(policy, pass, ending, now);
        match (turn.map(|turn| turn.to), inside.breaker.state()) {
            (Some(State::Open), _) => self.note_shut(Some(policy.open_for), now),
            // A probe that told nothing has made room for another one.
            (Some(_), _) | (None, State::HalfOpen) => self.note_shut(None, now),
            (None, _) => {}
        }
        inside.dated(turn)
    }

    /// A request that had passed told nothing.
    pub(super) fn forget(&self, pass: Pass) {
        let mut inside = self.lock();
        inside.breaker.forget(pass);
        if inside.breaker.state() == State::HalfOpen {
            self.note_shut(None, Instant::now());
        }
    }

    pub(super) fn force(&self, policy: &BreakerPolicy, forced: Option<Forced>) -> Option<Turn> {
        let mut inside = self.lock();
        let changed = inside.breaker.forced() != forced;
        let turn = inside.breaker.force(policy, forced, Instant::now());
        if changed {
            inside.since = SystemTime::now();
            self.note_shut(None, Instant::now());
        }
        turn
    }

    pub(super) fn view(&self) -> BreakerView {
        let inside = self.lock();
        let Inside { breaker, since } = &*inside;
        BreakerView { state: breaker.state(), forced: breaker.forced(), since: *since, why: breaker.why() }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It lets nobody through for so long yet; `None`: it does. To be called under the lock.
    fn note_shut(&self, left: Option<Duration>, now: Instant) {
        let until = left.map_or(0, |left| now.checked_add(left).map_or(u64::MAX, |until| millis(until) + 1));
        // A load first: a store for each request would pull the line away from other workers.
        if self.shut_until_ms() != until {
            self.shut_until_ms.store(until, Ordering::Relaxed);
        }
    }
}

impl Inside {
    fn dated(&mut self, turn: Option<Turn>) -> Option<Turn> {
        if turn.is_some() {
            self.since = SystemTime::now();
        }
        turn
    }
}
