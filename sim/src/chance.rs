//! Chance that a seed decides. Every draw of a world comes from here, in the order of its events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A generator (SplitMix64). Clones share it.
#[derive(Clone, Debug)]
pub struct Chance(Arc<Mutex<u64>>);

impl Chance {
    /// The one of a seed.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed ^ 0x5EA3_A11D_0000_0001)))
    }

    /// A generator of its own, decided by this one.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.next())))
    }

    fn state(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Any number.
    pub fn next(&self) -> u64 {
        let mut state = self.state();
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = *state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; 0 if that is 0.
    pub fn below(&self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// A number from `low` up to, not including, `high`.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// True in so many of a hundred cases.
    pub fn percent(&self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A time between two.
    pub fn time(&self, low: Duration, high: Duration) -> Duration {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.between(micros(low), micros(high)))
    }

    /// A time between two numbers of milliseconds.
    pub fn millis(&self, low: u64, high: u64) -> Duration {
        self.time(Duration::from_millis(low), Duration::from_millis(high))
    }

    /// One of these; they are not empty.
    pub fn one_of<'a, T>(&self, choices: &'a [T]) -> &'a T {
        let place = usize::try_from(self.below(choices.len() as u64)).unwrap_or_default();
        &choices[place]
    }
}
