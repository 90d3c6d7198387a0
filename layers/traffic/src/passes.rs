//! What passes a service, for rules of others that look at it: how many in the second that ends now, and how many are under
//! way. Sentinel's statistics of a resource, as its rules by relation (`STRATEGY_RELATE`) ask them.
//! Deliberately absent: whose they are, and what is made of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::limit::nanos;
use crate::window;

/// Counts of what passes.
#[derive(Debug, Default)]
pub struct Passes {
    window: AtomicU64,
    active: AtomicU64,
}

impl Passes {
    /// One more has passed, and is under way.
    pub fn enter(&self, now: Duration) {
        let _ = window::count(&self.window, nanos(now), window::MOST);
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    /// One has ended.
    pub fn leave(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// Passed in the second that ends now.
    pub fn passed(&self, now: Duration) -> u64 {
        window::counted(&self.window, nanos(now))
    }

    /// Under way now.
    pub fn active(&self) -> u64 {
        self.active.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Passes;

    #[test]
    fn what_passes_is_counted_for_a_second() {
        let passes = Passes::default();
        let at = |tenths: u64| Duration::from_millis(100 * tenths);
        (50..53).for_each(|tenth| passes.enter(at(tenth)));
        assert_eq!((passes.passed(at(54)), passes.active()), (3, 3));
        passes.leave();
        assert_eq!((passes.passed(at(59)), passes.active()), (3, 2));
        assert_eq!(passes.passed(at(60)), 0);
    }
}
