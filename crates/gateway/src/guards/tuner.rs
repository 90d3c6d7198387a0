//! A concurrency limit that finds itself, under its lock. Told how each request ended, it says when the line is to have
//! other places. Deliberately absent: how it is found (`guard::adaptive`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guard::adaptive::{Adaptive, AdaptivePolicy, Sample};

/// What is known of a limit that finds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptiveView {
    /// Its bounds, and how it is found.
    pub policy: AdaptivePolicy,
    /// The shortest time that answers take, once it has been measured.
    pub min_rtt: Option<Duration>,
}

/// One service's, shared by all workers.
#[derive(Debug)]
pub(super) struct Tuner {
    policy: AdaptivePolicy,
    adaptive: Mutex<Adaptive>,
}

impl Tuner {
    pub(super) fn new(policy: AdaptivePolicy) -> Self {
        Self { adaptive: Mutex::new(Adaptive::new(&policy, Instant::now())), policy }
    }

    pub(super) fn is(&self, policy: AdaptivePolicy) -> bool {
        self.policy == policy
    }

    pub(super) fn limit(&self) -> usize {
        self.lock().limit()
    }

    /// The new limit, if there is one.
    pub(super) fn ended(&self, sample: Sample, now: Instant, random: u64) -> Option<usize> {
        self.lock().ended(&self.policy, sample, now, random)
    }

    pub(super) fn view(&self) -> AdaptiveView {
        AdaptiveView { policy: self.policy, min_rtt: self.lock().min_rtt() }
    }

    fn lock(&self) -> MutexGuard<'_, Adaptive> {
        self.adaptive.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
