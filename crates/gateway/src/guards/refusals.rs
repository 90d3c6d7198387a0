//! How much a limit has refused, and since when it does: for whoever looks at it at night. Beside each limit, touched by
//! requests that it refuses and by no other. Deliberately absent: metrics, which count by service (`page.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use super::scope::since;

/// What has refused nothing for so long has stopped refusing.
const PAUSE: Duration = Duration::from_secs(10);

/// Refusals of one limit, of all workers.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    count: AtomicU64,
    /// When they began, after the last pause, and when the last one was: milliseconds of this process's time, 0 for never.
    begun: AtomicU64,
    last: AtomicU64,
}

impl Refusals {
    /// One more.
    pub(super) fn add(&self) {
        self.add_at(since(Instant::now()));
    }

    fn add_at(&self, now: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let now = millis(now);
        let last = self.last.swap(now, Ordering::Relaxed);
        if last == 0 || now.saturating_sub(last) > millis(PAUSE) {
            self.begun.store(now, Ordering::Relaxed);
        }
    }

    /// All of them.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Since when, while it refuses.
    pub(super) fn since(&self) -> Option<SystemTime> {
        let for_so_long = self.refusing_for(since(Instant::now()))?;
        SystemTime::now().checked_sub(for_so_long)
    }

    fn refusing_for(&self, now: Duration) -> Option<Duration> {
        let (begun, last, now) = (self.begun.load(Ordering::Relaxed), self.last.load(Ordering::Relaxed), millis(now));
        let refuses = last > 0 && now.saturating_sub(last) <= millis(PAUSE);
        refuses.then(|| Duration::from_millis(now.saturating_sub(begun)))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Duration, Refusals};

    #[test]
    fn they_begin_anew_after_a_pause() {
        let (refusals, at) = (Refusals::default(), Duration::from_secs);
        assert_eq!(refusals.refusing_for(at(5)), None);
        for second in [6, 7, 15] {
            refusals.add_at(at(second));
        }
        assert_eq!(refusals.refusing_for(at(20)), Some(at(14)));
        assert_eq!(refusals.refusing_for(at(25)), Some(at(19)));
        assert_eq!(refusals.refusing_for(at(26)), None);
        refusals.add_at(at(40));
        assert_eq!((refusals.refusing_for(at(41)), refusals.count()), (Some(at(1)), 4));
    }
}
