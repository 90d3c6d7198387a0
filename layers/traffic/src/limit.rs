//! A rate limit: so many requests a second, evenly. After route and before the breaker in the request walk.
//! The ways to meet a request that is too early are Sentinel's control behaviours: rejected (0), let through more slowly
//! while cold (1), made to wait (2), or both (3). One atomic decides; a request that is refused writes nothing.
//! Deliberately absent: what a key is made of, and the waiting itself.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::bucket;
use crate::keys::Keys;
use crate::pace::take;
use crate::warm_up::WarmUp;
use crate::window;

/// What is admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Requests in each `per`; zero counts as one.
    pub qps: u32,
    /// A second, but for [`Behaviour::Window`], which is always of one.
    pub per: Duration,
    /// So many may come at once, after a pause; zero counts as one. A longer burst admits that much more in the first
    /// second. With [`Behaviour::Bucket`] it is what comes at once beside `qps`, and may be zero.
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
    /// does. There is no other burst.
    Window,
    /// It is refused when all of `qps` and `burst` were taken, until `per` has passed: Sentinel's hot parameters.
    Bucket,
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

/// What a limiter says, and what it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// What becomes of the request.
    pub decision: Decision,
    /// So many more may come now.
    pub left: u64,
    /// After so long there are more, or all again.
    pub reset: Duration,
}

/// How much one key may have: the limit's own measure, or an exception from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u64,
    interval: u64,
    burst: u64,
    bucket: bucket::Measure,
}

impl Rate {
    /// Of so many requests in each `per`, with a burst as [`LimitPolicy::burst`] has it. None at all is a rate, too.
    pub fn new(count: u32, per: Duration, burst: u32) -> Self {
        let every = u64::try_from(per.as_millis()).unwrap_or(u64::MAX).clamp(1, bucket::MOST);
        let (count, burst) = (u64::from(count), u64::from(burst));
        let most = if count == 0 { 0 } else { (count + burst).min(bucket::MOST) };
        Self {
            count,
            interval: nanos(per) / count.max(1),
            burst: burst.max(1),
            bucket: bucket::Measure { count, most, every },
        }
    }

    /// Requests in each `per`.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// One limit's state.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    queue: Option<u64>,
    counts: Counts,
    /// Of everybody together.
    pace: AtomicU64,
    warm_up: Option<WarmUp>,
    keys: Option<Keys>,
}

/// What is kept of a key in its atomic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counts {
    Pace,
    Window,
    Bucket,
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
        let counts = match policy.behaviour {
            Behaviour::Window => Counts::Window,
            Behaviour::Bucket => Counts::Bucket,
            _ => Counts::Pace,
        };
        Self {
            rate: Rate::new(qps, policy.per, policy.burst),
            queue,
            counts,
            pace: AtomicU64::new(0),
            warm_up,
            keys: policy.keys.map(Keys::new),
        }
    }

    /// The limit's own rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Whether a request is admitted at `now`, any origin's time, that does not go back. `hash` is its key's.
    pub fn ask(&self, hash: u64, now: Duration) -> Decision {
        self.ask_at(&self.rate, hash, now).decision
    }

    /// The same for a key that has another rate; nothing warms up for it.
    pub fn ask_at(&self, rate: &Rate, hash: u64, now: Duration) -> Asked {
        let now = nanos(now);
        let refused = |after| Asked { decision: Decision::Refused(after), left: 0, reset: after };
        if rate.count == 0 {
            return refused(Duration::from_secs(1));
        }
        let asked = match self.counts {
            Counts::Window => window::count(self.state(hash, window::rested(now)), now, rate.count)
                .map(|left| (0, left, window::SECOND)),
            Counts::Bucket => bucket::take(self.state(hash, bucket::rested(now)), now, rate.bucket)
                .map(|(left, until)| (0, left, until)),
            Counts::Pace => self.pace(rate, hash, now),
        };
        match asked {
            Err(early) => refused(Duration::from_nanos(early)),
            Ok((ahead, left, reset)) => {
                let waits = self.queue.is_some() && ahead > 0;
                let decision = if waits { Decision::Wait(Duration::from_nanos(ahead)) } else { Decision::Admitted };
                Asked { decision, left, reset: Duration::from_nanos(reset) }
            }
        }
    }

    /// A turn of a pace: how far ahead it is, how many more there are, and when all are again.
    fn pace(&self, rate: &Rate, hash: u64, now: u64) -> Result<(u64, u64, u64), u64> {
        let interval = self.warm_up.as_ref().map_or(rate.interval, |warm_up| warm_up.interval(now)).max(1);
        // A cold limit lets a smaller burst through: one of the whole rate would be much of its first second.
        let burst = (rate.burst - 1).saturating_mul(rate.interval) / (1 + u64::from(interval > rate.interval));
        let tolerance = self.queue.unwrap_or(burst);
        let ahead = take(self.state(hash, now), now, interval, tolerance)?;
        if let Some(warm_up) = &self.warm_up {
            warm_up.pass();
        }
        Ok((ahead, (tolerance - ahead) / interval, ahead + interval))
    }

    /// An admitted request was refused by something else: where whole seconds are counted, it was not there (Sentinel
    /// counts what has passed all rules).
    pub fn take_back(&self, hash: u64, now: Duration) {
        let now = nanos(now);
        if self.counts == Counts::Window {
            window::take_back(self.state(hash, window::rested(now)), now);
        }
    }

    fn state(&self, hash: u64, rested: u64) -> &AtomicU64 {
        self.keys.as_ref().map_or(&self.pace, |keys| keys.pace(hash, rested))
    }

    /// Keys at work at `now`.
    pub fn at_work(&self, now: Duration) -> Option<usize> {
        let now = nanos(now);
        let rested = match self.counts {
            Counts::Pace => now,
            Counts::Window => window::rested(now),
            Counts::Bucket => bucket::rested(now),
        };
        self.keys.as_ref().map(|keys| keys.at_work(rested))
    }

    /// The paces by key, if each key has its own.
    pub fn keys(&self) -> Option<&Keys> {
        self.keys.as_ref()
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
