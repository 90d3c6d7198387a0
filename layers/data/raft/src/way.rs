//! Who has the way at processors and disk. Streams give it while something urgent goes on, such as a promotion on this node
//! or another: a flood of appends keeps both busy, and a promotion is some dozens of short steps, each of which would stand
//! in line behind it. What is under way goes on; small entries are let through, those of a new primary above all.
//! Deliberately absent: knowing what is urgent. Whoever promotes says so ([`Streams::give_way`](data::Streams)).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use data::Waits;
use tokio::time::Instant;

use crate::wal::lock;

/// How long others have the way after they last asked for it: some steps of a promotion.
const STEP: Duration = Duration::from_millis(50);
/// By how much they may have had it more than not: whatever they ask, about half of the time is left.
const MOST: Duration = Duration::from_millis(250);
/// Entries of fewer bytes do not wait.
pub(crate) const LARGE: usize = 4 * 1024;

/// Whether a group has the way, or others do.
#[derive(Default)]
pub(crate) struct Way {
    others: Mutex<Option<Others>>,
    asked: AtomicU64,
}

/// Others have it, or had it last.
#[derive(Clone, Copy)]
struct Others {
    until: Instant,
    /// For how long they have had it then, less the time since in which nobody waited.
    had: Duration,
    waits: Waits,
}

impl Way {
    /// From now on others have it, for a while.
    pub(crate) fn give(&self, waits: Waits) {
        let now = Instant::now();
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut others = lock(&self.others);
        let known = others.unwrap_or(Others { until: now, had: Duration::ZERO, waits });
        let had = known.had.saturating_sub(now.saturating_duration_since(known.until));
        let from = known.until.max(now);
        let longer = (now + STEP).saturating_duration_since(from).min(MOST.saturating_sub(had));
        *others = Some(Others { until: from + longer, had: had + longer, waits });
    }

    /// How often it was asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Until when others have it, if they do.
    pub(crate) fn given_until(&self) -> Option<Instant> {
        self.given().map(|others| others.until)
    }

    /// Until when what is under way waits, if it does.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        self.given().filter(|others| others.waits == Waits::UnderWay).map(|others| others.until)
    }

    fn given(&self) -> Option<Others> {
        (*lock(&self.others)).filter(|others| others.until > Instant::now())
    }

    /// Waits until nobody else has it.
    pub(crate) async fn free(&self) {
        while let Some(until) = self.given_until() {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Waits until an entry of so many bytes may go.
    pub(crate) async fn free_for(&self, bytes: usize) {
        if bytes >= LARGE {
            self.free().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use data::Waits;
    use tokio::time::Instant;

    use super::{LARGE, MOST, STEP, Way};

    async fn waits(way: &Way, bytes: usize) -> Duration {
        let begun = Instant::now();
        way.free_for(bytes).await;
        begun.elapsed()
    }

    fn is_about(found: Duration, wanted: Duration) -> bool {
        (wanted..=wanted + Duration::from_millis(2)).contains(&found)
    }

    #[tokio::test(start_paused = true)]
    async fn large_entries_wait_for_a_while_and_small_ones_do_not() {
        let way = Way::default();
        assert_eq!(waits(&way, LARGE).await, Duration::ZERO, "nobody has asked for it");
        way.give(Waits::Coming);
        assert_eq!(waits(&way, LARGE - 1).await, Duration::ZERO);
        let waited = waits(&way, LARGE).await;
        assert!(is_about(waited, STEP), "{waited:?}");
        assert_eq!(waits(&way, LARGE).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_again_has_it_for_longer() {
        let way = Way::default();
        way.give(Waits::Coming);
        tokio::time::sleep(STEP / 2).await;
        way.give(Waits::Coming);
        let waited = waits(&way, LARGE).await;
        assert!(is_about(waited, STEP), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_always_asks_has_it_half_of_the_time() {
        let way = Way::default();
        let (mut given, step, steps) = (0, Duration::from_millis(5), 2000);
        for _ in 0..steps {
            way.give(Waits::Coming);
            given += u32::from(way.given_until().is_some());
            tokio::time::sleep(step).await;
        }
        let (most, half) = (MOST.div_duration_f64(step), f64::from(steps) / 2.0);
        assert!((half * 0.9..=half * 1.1 + most).contains(&f64::from(given)), "{given} of {steps}");
    }
}
