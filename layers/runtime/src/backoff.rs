//! When a process that ended is started again: an exponential pause with a cap, forgotten after a long enough run.

use std::time::Duration;

use model::config::Backoff;

/// Exits in a row, each after a short run, from which an instance counts as crash-looping.
pub const CRASH_LOOP_EXITS: u32 = 4;

/// The run of bad luck of one instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Streak {
    exits: u32,
}

impl Streak {
    /// Records an exit after `ran` and returns the pause before the next start.
    pub fn exited(&mut self, ran: Duration, rule: &Backoff) -> Duration {
        if ran >= rule.reset_after {
            self.exits = 0;
        }
        self.exits = self.exits.saturating_add(1);
        let doublings = (self.exits - 1).min(31);
        rule.initial.saturating_mul(1 << doublings).min(rule.max)
    }

    /// Exits in a row.
    pub fn exits(self) -> u32 {
        self.exits
    }

    /// True on the exit with which the crash loop is first certain: the moment to say so, once.
    pub fn just_became_loop(self) -> bool {
        self.exits == CRASH_LOOP_EXITS
    }

    /// True while it is in a crash loop.
    pub fn is_loop(self) -> bool {
        self.exits >= CRASH_LOOP_EXITS
    }

    /// A deliberate restart starts with a clean slate.
    pub fn clear(&mut self) {
        self.exits = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, Duration, Streak};

    #[test]
    fn pause_doubles_up_to_the_cap_and_is_forgotten_after_a_long_run() {
        let rule = Backoff::default();
        let mut streak = Streak::default();
        let pauses: Vec<u64> = (0..12).map(|_| streak.exited(Duration::ZERO, &rule).as_millis() as u64).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000]);
        assert!(streak.is_loop());
        assert_eq!(streak.exited(rule.reset_after, &rule), rule.initial);
        assert!(!streak.is_loop());
    }
}
