//! What a breaker counts: the requests of the last so many seconds, in buckets, or the last so many requests.
//! Deliberately absent: thresholds (`breaker.rs`).

use std::time::{Duration, Instant};

/// Which requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// Those of the last so long; what is older leaves a tenth of it at a time (Hystrix' ten buckets).
    Time(Duration),
    /// The last so many (resilience4j's `COUNT_BASED`).
    Requests(u32),
}

/// How many requests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) all: u32,
    pub(super) errors: u32,
    pub(super) slow: u32,
}

impl Counts {
    pub(super) fn add(&mut self, failed: bool, slow: bool) {
        self.all = self.all.saturating_add(1);
        self.errors = self.errors.saturating_add(failed.into());
        self.slow = self.slow.saturating_add(slow.into());
    }

    fn take(&mut self, other: Self) {
        self.all = self.all.saturating_sub(other.all);
        self.errors = self.errors.saturating_sub(other.errors);
        self.slow = self.slow.saturating_sub(other.slow);
    }
}

const BUCKETS: usize = 10;

/// The newest requests' counts.
#[derive(Debug)]
pub(super) struct Recent {
    total: Counts,
    kept: Kept,
}

#[derive(Debug)]
enum Kept {
    Time {
        length: Duration,
        begun: Instant,
        newest: u64,
        buckets: [Counts; BUCKETS],
    },
    /// A ring; two bits of each are used.
    Requests {
        ring: Box<[u8]>,
        next: usize,
    },
}

const FAILED: u8 = 1;
const SLOW: u8 = 2;

impl Recent {
    pub(super) fn new(window: Window, now: Instant) -> Self {
        let kept = match window {
            Window::Time(length) => Kept::Time { length, begun: now, newest: 0, buckets: Default::default() },
            Window::Requests(count) => Kept::Requests { ring: vec![0; count.max(1) as usize].into(), next: 0 },
        };
        Self { total: Counts::default(), kept }
    }

    pub(super) fn kind(&self) -> Window {
        match &self.kept {
            Kept::Time { length, .. } => Window::Time(*length),
            Kept::Requests { ring, .. } => Window::Requests(u32::try_from(ring.len()).unwrap_or(u32::MAX)),
        }
    }

    /// Counts one more; what is in the window now.
    pub(super) fn add(&mut self, failed: bool, slow: bool, now: Instant) -> Counts {
        let total = &mut self.total;
        match &mut self.kept {
            Kept::Time { length, begun, newest, buckets } => {
                let bucket_ns = (length.as_nanos() / BUCKETS as u128).max(1);
                let passed = now.saturating_duration_since(*begun).as_nanos() / bucket_ns;
                // A clock that went back counts as standing still.
                let current = u64::try_from(passed).unwrap_or(u64::MAX).max(*newest);
                for gone in (*newest + 1..=current).take(BUCKETS) {
                    total.take(std::mem::take(&mut buckets[(gone % BUCKETS as u64) as usize]));
                }
                if current - *newest >= BUCKETS as u64 {
                    *buckets = Default::default();
                    *total = Counts::default();
                }
                *newest = current;
                buckets[(current % BUCKETS as u64) as usize].add(failed, slow);
                total.add(failed, slow);
            }
            Kept::Requests { ring, next } => {
                if total.all as usize == ring.len() {
                    let old = ring[*next];
                    total.take(Counts { all: 1, errors: (old & FAILED != 0).into(), slow: (old & SLOW != 0).into() });
                }
                ring[*next] = (u8::from(failed) * FAILED) | (u8::from(slow) * SLOW);
                *next = (*next + 1) % ring.len();
                total.add(failed, slow);
            }
        }
        *total
    }
}

#[cfg(test)]
mod tests {
    use super::{Counts, Recent, Window};
    use std::time::{Duration, Instant};

    #[test]
    fn what_is_older_than_the_window_leaves_it() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut recent = Recent::new(Window::Time(ms(1000)), start);
        for at in [0, 50, 950] {
            recent.add(true, false, start + ms(at));
        }
        let counts = recent.add(false, true, start + ms(999));
        assert_eq!(counts, Counts { all: 4, errors: 3, slow: 1 });
        let counts = recent.add(false, false, start + ms(1000));
        assert_eq!(counts, Counts { all: 3, errors: 1, slow: 1 }, "the first tenth has gone");
        let counts = recent.add(false, false, start + ms(900));
        assert_eq!(counts.all, 4, "a clock that goes back stands still");
        let counts = recent.add(false, false, start + ms(60_000));
        assert_eq!(counts, Counts { all: 1, errors: 0, slow: 0 }, "all has gone");
    }

    #[test]
    fn the_last_so_many_requests() {
        let now = Instant::now();
        let mut recent = Recent::new(Window::Requests(3), now);
        recent.add(true, false, now);
        recent.add(false, true, now);
        assert_eq!(recent.add(true, true, now), Counts { all: 3, errors: 2, slow: 2 });
        assert_eq!(recent.add(false, false, now), Counts { all: 3, errors: 1, slow: 2 });
        assert_eq!(recent.add(false, false, now), Counts { all: 3, errors: 1, slow: 1 });
        assert_eq!(recent.kind(), Window::Requests(3));
    }
}
