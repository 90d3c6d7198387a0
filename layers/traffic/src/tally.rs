//! What has become of the requests to one destination: how many, how many failed, how long they took.
//! Counted at the record step of the request walk, by atomics alone; read by whoever judges a shift.
//! Times are kept in steps of an eighth of a power of two, from a microsecond up to an hour: a quantile is told within
//! 9 %. Deliberately absent: time windows, which are differences of two readings.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Steps in a power of two.
const STEPS: u64 = 8;

/// Times are counted in so many classes.
pub const CLASSES: usize = 256;

/// Counts of one destination, for ever growing.
#[derive(Debug)]
pub struct Tally {
    failed: AtomicU64,
    chains_failed: AtomicU64,
    times: [AtomicU64; CLASSES],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            failed: AtomicU64::new(0),
            chains_failed: AtomicU64::new(0),
            times: [const { AtomicU64::new(0) }; CLASSES],
        }
    }
}

impl Tally {
    /// A request has ended. `chain_failed` says that it, or any request that it led to, has failed.
    pub fn add(&self, failed: bool, chain_failed: bool, took: Duration) {
        if failed {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        if chain_failed {
            self.chains_failed.fetch_add(1, Ordering::Relaxed);
        }
        self.times[class_of(took)].fetch_add(1, Ordering::Relaxed);
    }

    /// What has been counted.
    pub fn read(&self) -> Totals {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        // Failures first: a reading never has more of them than requests.
        let (failed, chains_failed) = (read(&self.failed), read(&self.chains_failed));
        let times: Vec<u64> = self.times.iter().map(read).collect();
        Totals { requests: times.iter().sum(), failed, chains_failed, times }
    }
}

/// What was counted up to a moment, or between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests that have ended.
    pub requests: u64,
    /// Of these, how many failed.
    pub failed: u64,
    /// Of these, how many had a failure anywhere in what they led to.
    pub chains_failed: u64,
    /// Requests in each class of time; empty for none.
    pub times: Vec<u64>,
}

impl Totals {
    /// Adds another place's.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.chains_failed += other.chains_failed;
        if self.times.len() < other.times.len() {
            self.times.resize(other.times.len(), 0);
        }
        for (own, other) in self.times.iter_mut().zip(&other.times) {
            *own += other;
        }
    }

    /// What has come since `earlier`; nothing where a place has begun anew.
    pub fn since(&self, earlier: &Self) -> Self {
        let time = |(index, now): (usize, &u64)| now.saturating_sub(earlier.times.get(index).copied().unwrap_or(0));
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            failed: self.failed.saturating_sub(earlier.failed),
            chains_failed: self.chains_failed.saturating_sub(earlier.chains_failed),
            times: self.times.iter().enumerate().map(time).collect(),
        }
    }

    /// The time within which this part (0 to 1) of the requests ended, rounded up to the class's end.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        let counted: u64 = self.times.iter().sum();
        let wanted = ((counted as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let index = self.times.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(end_of(index))
    }
}

fn class_of(took: Duration) -> usize {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let class = if micros < STEPS {
        micros
    } else {
        let power = u64::from(micros.ilog2());
        let step = (micros >> (power - 3)) & (STEPS - 1);
        (power - 2) * STEPS + step
    };
    usize::try_from(class).unwrap_or(CLASSES).min(CLASSES - 1)
}

/// The end of a class.
fn end_of(class: usize) -> Duration {
    let class = class as u64 + 1;
    let micros = if class <= STEPS { class } else { (STEPS + class % STEPS) << (class / STEPS - 1) };
    Duration::from_micros(micros)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CLASSES, Tally, Totals, class_of, end_of};

    #[test]
    fn every_time_lies_in_its_class() {
        let mut last = 0;
        for micros in (0..200_000).chain([1_000_000, 60_000_000, 3_500_000_000]) {
            let took = Duration::from_micros(micros);
            let class = class_of(took);
            assert!(class >= last && class < CLASSES, "{micros}");
            last = class;
            assert!(took < end_of(class), "{micros} us is beyond {:?}", end_of(class));
            assert!(
                micros < 8 || end_of(class) <= took.mul_f64(1.126),
                "{micros} us in a class up to {:?}",
                end_of(class)
            );
        }
        assert_eq!(class_of(Duration::MAX), CLASSES - 1);
    }

    #[test]
    fn readings_are_added_and_subtracted() {
        let tally = Tally::default();
        for millis in 1..=100 {
            tally.add(millis > 98, millis > 97, Duration::from_millis(millis));
        }
        let first = tally.read();
        assert_eq!((first.requests, first.failed, first.chains_failed), (100, 2, 3));
        for (part, millis) in [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0)] {
            let told = first.quantile(part).unwrap().as_secs_f64() * 1e3;
            assert!((millis..millis * 1.13).contains(&told), "{part}: {told} ms");
        }
        tally.add(true, true, Duration::from_secs(2));
        let since = tally.read().since(&first);
        assert_eq!((since.requests, since.failed), (1, 1));
        assert!(since.quantile(0.5) > Some(Duration::from_secs(2)));
        let mut both = first.clone();
        both.add(&since);
        assert_eq!(both, tally.read());
        assert_eq!(Totals::default().quantile(0.5), None);
        assert_eq!(Totals::default().since(&first).requests, 0, "a place that has begun anew");
    }
}
