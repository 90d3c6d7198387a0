//! A breaker under its lock, with the wall clock for those who read status. Held for a few counters at a time.
//! Deliberately absent: thresholds and states (`guard::breaker`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use guard::breaker::{Breaker, BreakerPolicy, Ending, Forced, Pass, Refused, Turn};

use super::BreakerView;

/// One service's breaker, shared by all workers.
#[derive(Debug)]
pub(super) struct Gate(Mutex<Inside>);

#[derive(Debug)]
struct Inside {
    breaker: Breaker,
    since: SystemTime,
}

impl Gate {
    pub(super) fn new(policy: &BreakerPolicy) -> Self {
        Self(Mutex::new(Inside { breaker: Breaker::new(policy, Instant::now()), since: SystemTime::now() }))
    }

    pub(super) fn adopt(self: Arc<Self>, policy: &BreakerPolicy) -> Arc<Self> {
        self.lock().breaker.adopt(policy, Instant::now());
        self
    }

    pub(super) fn ask(&self, policy: &BreakerPolicy, now: Instant) -> (Result<Pass, Refused>, Option<Turn>) {
        let mut inside = self.lock();
        let (asked, turn) = inside.breaker.ask(policy, now);
        (asked, inside.dated(turn))
    }

    pub(super) fn ended(&self, policy: &BreakerPolicy, pass: Pass, ending: Ending, now: Instant) -> Option<Turn> {
        let mut inside = self.lock();
        let turn = inside.breaker.ended(policy, pass, ending, now);
        inside.dated(turn)
    }

    pub(super) fn force(&self, policy: &BreakerPolicy, forced: Option<Forced>) -> Option<Turn> {
        let mut inside = self.lock();
        let changed = inside.breaker.forced() != forced;
        let turn = inside.breaker.force(policy, forced, Instant::now());
        if changed {
            inside.since = SystemTime::now();
        }
        turn
    }

    pub(super) fn view(&self) -> BreakerView {
        let inside = self.lock();
        let Inside { breaker, since } = &*inside;
        BreakerView { state: breaker.state(), forced: breaker.forced(), since: *since, why: breaker.why() }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
