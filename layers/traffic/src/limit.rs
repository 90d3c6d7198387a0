//! A rate limit: so many requests a second, evenly. After route and before the breaker in the request walk.
//! The ways to meet a request that is too early are Sentinel's control behaviours: rejected (0), let through more slowly
//! while cold (1), made to wait (2), or both (3). One atomic decides; a request that is refused writes nothing.
//! Deliberately absent: what a key is made of, and the waiting itself.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::keys::Keys;
use crate::pace::take;
use crate::warm_up::WarmUp;
use crate::window;

/// What is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Requests a second; zero counts as one.
    pub qps: u32,
    /// So many may come at once, after a pause; zero counts as one. A longer burst admits that much more in the first
    /// second.
    pub burst: u32,
    /// What becomes of a request that is too early.
    pub behaviour: Behaviour,
    /// `Some`: each key has the rate for itself, and so many are remembered.
    pub keys: Option<usize>,
}

/// What becomes of a request that is too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// It is refused.
    Reject,
    /// It is refused when the second that ends now had them all: counted in halves, as Sentinel's default controller
    /// does. There is no other burst, and no key.
    Window,
    /// It is refused, and after a pause the rate grows from a part to the whole.
    WarmUp {
        /// How long that takes under load.
        period: Duration,
        /// The part: one in so many; at least 2.
        cold_factor: u32,
    },
    /// It waits for its turn, if that comes within this time. Without a burst.
    Queue(Duration),
    /// Both: it waits for its turn within `longest`, and after a pause turns come more slowly (Sentinel's
    /// `WarmUpRateLimiterController`). Without a burst.
    WarmUpQueue {
        /// How long it takes under load until the whole rate is let through.
        period: Duration,
        /// At first one part in so many; at least 2.
        cold_factor: u32,
        /// How long one waits at most.
        longest: Duration,
    },
}

/// What a limiter says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Let it through.
    Admitted,
    /// Let it through after so long: its turn is taken.
    Wait(Duration),
    /// Refuse it; after so long one would be admitted.
    Refused(Duration),
}

/// One limit's state.
#[derive(Debug)]
pub struct Limiter {
    interval: u64,
    burst: u64,
    queue: Option<u64>,
    /// With a window: so many a second. Its counts are in `pace` then.
    window: Option<u64>,
    pace: AtomicU64,
    warm_up: Option<WarmUp>,
    keys: Option<Keys>,
}

impl Limiter {
    /// One at rest. With keys there is no warm-up: each of them would have to be remembered for its whole length.
    pub fn new(policy: &LimitPolicy) -> Self {
        let qps = policy.qps.max(1);
        let warm_up = match policy.behaviour {
            Behaviour::WarmUp { period, cold_factor } | Behaviour::WarmUpQueue { period, cold_factor, .. }
                if policy.keys.is_none() =>
            {
                Some(WarmUp::new(qps, period, cold_factor))
            }
            _ => None,
        };
        let queue = match policy.behaviour {
            Behaviour::Queue(longest) | Behaviour::WarmUpQueue { longest, .. } => Some(nanos(longest)),
            _ => None,
        };
        Self {
            interval: 1_000_000_000 / u64::from(qps),
            burst: policy.burst.max(1).into(),
            queue,
            window: (policy.behaviour == Behaviour::Window).then_some(qps.into()),
            pace: AtomicU64::new(0),
            warm_up,
            keys: policy.keys.map(Keys::new),
        }
    }

    /// Whether a request is admitted at `now`, any origin's time, that does not go back. `hash` is its key's.
    pub fn ask(&self, hash: u64, now: Duration) -> Decision {
        let now = nanos(now);
        if let Some(limit) = self.window {
            let refused = |left| Decision::Refused(Duration::from_nanos(left));
            return window::count(&self.pace, now, limit).map_or_else(refused, |()| Decision::Admitted);
        }
        let pace = self.keys.as_ref().map_or(&self.pace, |keys| keys.pace(hash, now));
        let interval = self.warm_up.as_ref().map_or(self.interval, |warm_up| warm_up.interval(now));
        // A cold limit lets a smaller burst through: one of the whole rate would be much of its first second.
        let burst = (self.burst - 1).saturating_mul(self.interval) / (1 + u64::from(interval > self.interval));
        let tolerance = self.queue.unwrap_or(burst);
        match take(pace, now, interval, tolerance) {
            Err(early) => Decision::Refused(Duration::from_nanos(early)),
            Ok(ahead) => {
                if let Some(warm_up) = &self.warm_up {
                    warm_up.pass();
                }
                match self.queue {
                    Some(_) if ahead > 0 => Decision::Wait(Duration::from_nanos(ahead)),
                    _ => Decision::Admitted,
                }
            }
        }
    }

    /// The paces by key, if each key has its own.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
