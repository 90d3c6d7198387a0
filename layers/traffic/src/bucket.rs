//! So many at once, and full again when a while has passed: the token bucket of Sentinel's hot parameters
//! (`ParamFlowChecker.passDefaultLocalCheck`). Unlike a pace it gives nothing back before that while is over, and then what
//! time has brought, up to all. When it is full again and what is left are one atomic, so that [`crate::Keys`] may keep it.
//! Deliberately absent: keys, and what the numbers are (`limit.rs`).

use std::sync::atomic::{AtomicU64, Ordering};

use crate::pace::Nanos;

const MILLISECOND: Nanos = 1_000_000;
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// The most that a bucket can hold.
pub(crate) const MOST: u64 = COUNT_MASK;

/// A bucket's measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measure {
    /// What `every` brings.
    pub(crate) count: u64,
    /// What it holds: `count` and what may come at once beside it.
    pub(crate) most: u64,
    /// How long nothing comes back, in milliseconds; at least 1.
    pub(crate) every: u64,
}

impl Measure {
    /// Milliseconds after which a bucket is full again, whatever was taken.
    fn fills_in(self) -> u64 {
        (self.every * self.most).div_ceil(self.count.max(1)).max(self.every)
    }
}

/// Takes one; how many are left, and for how long nothing comes back.
///
/// # Errors
/// How long until something comes back.
pub(crate) fn take(bucket: &AtomicU64, now: Nanos, measure: Measure) -> Result<(u64, Nanos), Nanos> {
    let now_ms = now / MILLISECOND;
    let fills_in = measure.fills_in();
    let mut seen = bucket.load(Ordering::Relaxed);
    loop {
        let full_at = seen >> COUNT_BITS;
        let filled_at = full_at.saturating_sub(fills_in);
        let passed = now_ms.saturating_sub(filled_at);
        let (has, since) = match seen & COUNT_MASK {
            _ if full_at <= now_ms => (measure.most, now_ms),
            left if passed > measure.every => {
                ((left + passed * measure.count / measure.every).min(measure.most), now_ms)
            }
            left => (left, filled_at),
        };
        let until = (since + measure.every + 1).saturating_sub(now_ms) * MILLISECOND;
        let Some(left) = has.checked_sub(1) else { return Err(until) };
        let taken = (since + fills_in) << COUNT_BITS | left;
        match bucket.compare_exchange_weak(seen, taken, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok((left, until)),
            Err(newer) => seen = newer,
        }
    }
}

/// When a bucket of this moment is the same as one that was never used, as [`crate::Keys`] compares.
pub(crate) fn rested(now: Nanos) -> u64 {
    (now / MILLISECOND) << COUNT_BITS
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::{MILLISECOND, Measure, take};

    fn taken(bucket: &AtomicU64, at_ms: u64, measure: Measure, asked: u64) -> u64 {
        (0..asked).filter(|_| take(bucket, at_ms * MILLISECOND, measure).is_ok()).count() as u64
    }

    /// What `ParamFlowChecker` does with the same numbers.
    #[test]
    fn it_gives_everything_at_once_and_nothing_until_its_time_has_passed() {
        let measure = Measure { count: 5, most: 7, every: 2_000 };
        let bucket = AtomicU64::new(0);
        assert_eq!(taken(&bucket, 10_000, measure, 20), 7, "the burst beside the count");
        assert_eq!(take(&bucket, 11_000 * MILLISECOND, measure), Err(1_001 * MILLISECOND));
        assert_eq!(taken(&bucket, 12_000, measure, 20), 0, "it has to be later than that");
        assert_eq!(taken(&bucket, 12_001, measure, 20), 5, "what that time has brought, without the burst");
        assert_eq!(taken(&bucket, 13_000, measure, 20), 0);
        assert_eq!(taken(&bucket, 15_001, measure, 2), 2);
        assert_eq!(taken(&bucket, 15_500, measure, 20), 5, "7 had come in 3 s, and nothing since");
        assert_eq!(taken(&bucket, 90_000, measure, 20), 7, "after a pause");
    }

    #[test]
    fn one_that_never_gives_anything() {
        let none = Measure { count: 0, most: 0, every: 1_000 };
        assert_eq!(taken(&AtomicU64::new(0), 9_000, none, 3), 0);
    }
}
