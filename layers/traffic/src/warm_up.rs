//! A rate that grows with use: cold, only a part of it is admitted; after the warm-up all of it. Sentinel's
//! `WarmUpController` (control behaviour 1), whose tokens, slope and whole seconds these are.
//! Deliberately absent: pacing (`limit.rs` takes the interval from here).

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crate::pace::Nanos;

const SECOND: Nanos = 1_000_000_000;

/// Tokens stored while nobody asks; the more there are, the colder it is.
#[derive(Debug)]
pub(crate) struct WarmUp {
    qps: f64,
    cold_factor: f64,
    warning: f64,
    most: f64,
    slope: f64,
    stored: AtomicI64,
    /// The second in which tokens were reckoned last, and one more; zero: never.
    reckoned: AtomicU64,
    /// Admitted since then.
    passed: AtomicU64,
}

impl WarmUp {
    pub(crate) fn new(qps: u32, period: Duration, cold_factor: u32) -> Self {
        let (qps, cold_factor) = (f64::from(qps), f64::from(cold_factor.max(2)));
        let period = period.as_secs_f64();
        let warning = (period * qps / (cold_factor - 1.0)).floor();
        let most = warning + (2.0 * period * qps / (1.0 + cold_factor)).floor();
        let slope = (cold_factor - 1.0) / qps / (most - warning).max(1.0);
        let (stored, reckoned, passed) = (AtomicI64::new(most as i64), AtomicU64::new(0), AtomicU64::new(0));
        Self { qps, cold_factor, warning, most, slope, stored, reckoned, passed }
    }

    /// Between two requests, now.
    pub(crate) fn interval(&self, now: Nanos) -> Nanos {
        self.reckon(now / SECOND + 1);
        let above = (self.stored.load(Ordering::Relaxed) as f64 - self.warning).max(0.0);
        ((above * self.slope + 1.0 / self.qps) * SECOND as f64) as Nanos
    }

    /// One was admitted.
    pub(crate) fn pass(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    /// Once a second: what was admitted goes, what time brings comes.
    fn reckon(&self, second: u64) {
        let known = self.reckoned.load(Ordering::Relaxed);
        let is_first =
            |known| self.reckoned.compare_exchange(known, second, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if second <= known || !is_first(known) || known == 0 {
            return;
        }
        // Sentinel's `previousPassQps`: of the second before, and zero after a pause.
        let passed = self.passed.swap(0, Ordering::Relaxed);
        let passed = if second == known + 1 { passed as f64 } else { 0.0 };
        let stored = self.stored.load(Ordering::Relaxed) as f64;
        let brought = (second - known) as f64 * self.qps;
        let cools = stored < self.warning || (stored > self.warning && passed < (self.qps / self.cold_factor).floor());
        let filled = if cools { stored + brought } else { stored }.min(self.most);
        self.stored.store((filled - passed).max(0.0) as i64, Ordering::Relaxed);
    }
}
