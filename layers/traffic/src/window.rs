//! A count over a second that slides by halves: Sentinel's `LeapArray` with its defaults (`intervalInMs` 1000,
//! `sampleCount` 2), which its default controller asks. Unlike a pace it lets everything of a second come at once.
//! Which half, what the one before it holds and what this one holds are one atomic; who is refused writes nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::pace::Nanos;

/// The length of a half.
const HALF: Nanos = 500_000_000;
/// What is counted: two of them.
pub(crate) const SECOND: Nanos = 2 * HALF;
const COUNT_BITS: u32 = 20;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;
const HALVES_MASK: u64 = (1 << (64 - 2 * COUNT_BITS)) - 1;

/// The most that a window can count: limits are below it.
pub(crate) const MOST: u64 = COUNT_MASK;

/// The newest half by number, and the counts of the one before it and of its own.
#[derive(Clone, Copy)]
struct Halves {
    number: u64,
    before: u64,
    own: u64,
}

impl Halves {
    fn unpack(packed: u64) -> Self {
        Self { number: packed >> (2 * COUNT_BITS), before: packed >> COUNT_BITS & COUNT_MASK, own: packed & COUNT_MASK }
    }

    fn pack(self) -> u64 {
        self.number << (2 * COUNT_BITS) | self.before << COUNT_BITS | self.own
    }

    /// As they are at the half of this number.
    fn at(self, number: u64) -> Self {
        match number.wrapping_sub(self.number) & HALVES_MASK {
            0 => self,
            1 => Self { number, before: self.own, own: 0 },
            // Another thread's clock was read a little later: its half goes on.
            behind if behind == HALVES_MASK => self,
            _ => Self { number, before: 0, own: 0 },
        }
    }
}

/// Counts one more if there are fewer than `limit` in the second that ends now; how many more there may be.
///
/// # Errors
/// How long until one of them is out of it.
pub(crate) fn count(window: &AtomicU64, now: Nanos, limit: u64) -> Result<u64, Nanos> {
    let limit = limit.min(MOST);
    let mut seen = window.load(Ordering::Relaxed);
    loop {
        let halves = Halves::unpack(seen).at(number_at(now));
        let counted = halves.before + halves.own;
        if counted >= limit {
            let halves_left = if halves.before > 0 { 1 } else { 2 };
            return Err(halves_left * HALF - now % HALF);
        }
        let more = Halves { own: halves.own + 1, ..halves }.pack();
        match window.compare_exchange_weak(seen, more, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(limit - counted - 1),
            Err(newer) => seen = newer,
        }
    }
}

/// Takes one back that was counted just now: something else refused it.
pub(crate) fn take_back(window: &AtomicU64, now: Nanos) {
    let less = |seen| {
        let halves = Halves::unpack(seen).at(number_at(now));
        let own = halves.own.checked_sub(1)?;
        Some(Halves { own, ..halves }.pack())
    };
    // Where its half has gone by meanwhile, it is out of the count soon.
    let _ = window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}

/// How many there are in the second that ends now.
pub(crate) fn counted(window: &AtomicU64, now: Nanos) -> u64 {
    let halves = Halves::unpack(window.load(Ordering::Relaxed)).at(number_at(now));
    halves.before + halves.own
}

/// When a window of this moment is the same as one that was never used, as [`crate::Keys`] compares: its own half and the
/// one behind it are out of the count.
pub(crate) fn rested(now: Nanos) -> u64 {
    number_at(now).saturating_sub(1) << (2 * COUNT_BITS)
}

fn number_at(now: Nanos) -> u64 {
    (now / HALF) & HALVES_MASK
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::{HALF, count, counted, take_back};

    fn admitted(window: &AtomicU64, now: u64, limit: u64, asked: u64) -> u64 {
        (0..asked).filter(|_| count(window, now, limit).is_ok()).count() as u64
    }

    #[test]
    fn all_of_a_second_may_come_at_once_and_then_none_until_it_has_slid_away() {
        let window = AtomicU64::new(0);
        let at = |tenths: u64| 70_000_000_000 + tenths * HALF / 5;
        assert_eq!(admitted(&window, at(1), 100, 150), 100);
        assert_eq!(
            count(&window, at(4), 100),
            Err(HALF / 5 + HALF),
            "they are in this half, which has to end, and the next"
        );
        assert_eq!(admitted(&window, at(6), 100, 150), 0);
        assert_eq!(count(&window, at(6), 100), Err(HALF / 5 * 4));
        assert_eq!(admitted(&window, at(10), 100, 60), 60);
        assert_eq!(admitted(&window, at(15), 100, 150), 40);
        assert_eq!(admitted(&window, at(20), 100, 150), 60, "those of the half before last are out of it");
        assert_eq!(admitted(&window, at(90), 100, 150), 100, "after a pause");
    }

    #[test]
    fn what_is_taken_back_was_not_there() {
        let window = AtomicU64::new(0);
        assert_eq!(admitted(&window, 9 * HALF, 10, 20), 10);
        take_back(&window, 9 * HALF);
        assert_eq!((counted(&window, 9 * HALF), count(&window, 9 * HALF, 10)), (9, Ok(0)));
        take_back(&window, 10 * HALF);
        assert_eq!(counted(&window, 10 * HALF), 10, "its half has gone by");
        assert_eq!(counted(&window, 11 * HALF), 0);
    }

    #[test]
    fn a_clock_that_was_read_a_moment_earlier_takes_nothing_back() {
        let window = AtomicU64::new(0);
        assert_eq!(admitted(&window, 9 * HALF, 10, 20), 10);
        assert_eq!(admitted(&window, 9 * HALF - 1, 10, 20), 0);
        assert_eq!(admitted(&window, 10 * HALF, 10, 20), 0);
    }

    #[test]
    fn the_number_of_a_half_may_come_round() {
        let last = ((1_u64 << 24) - 1) * HALF;
        let window = AtomicU64::new(0);
        // In use since before: one that is new then takes its zero for the half that comes next.
        assert_eq!(admitted(&window, last - 4 * HALF, 10, 1), 1);
        assert_eq!(admitted(&window, last, 10, 4), 4);
        assert_eq!(admitted(&window, last + HALF, 10, 20), 6);
        assert_eq!(admitted(&window, last + 2 * HALF, 10, 20), 4);
    }
}
