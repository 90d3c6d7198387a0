//! The retry budget: how many requests of a service may be sent again at the same time.
//! Without one, a set of instances that fails under load gets several times that load. Envoy's (`retry_budget`: a part of
//! the active requests, and a minimum). Asked by the forward step before each further attempt.
//! Deliberately absent: which failure may be repaired at all ([`crate::retry`]).

use crate::breaker::{Millionths, WHOLE};

/// A part of what is under way, and a minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of the requests that are under way.
    pub part: Millionths,
    /// At least so many; zero counts as one.
    pub min: usize,
}

impl Default for RetryBudget {
    /// A fifth, at least 3: Envoy's.
    fn default() -> Self {
        Self { part: WHOLE / 5, min: 3 }
    }
}

impl RetryBudget {
    /// How many of `active` requests may be repeats of failed ones.
    pub fn most(self, active: usize) -> usize {
        let part = active as u64 * u64::from(self.part) / u64::from(WHOLE);
        usize::try_from(part).unwrap_or(usize::MAX).max(self.min).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::RetryBudget;

    #[test]
    fn a_fifth_and_at_least_three() {
        for (active, most) in [(0, 3), (1, 3), (15, 3), (20, 4), (1000, 200)] {
            assert_eq!(RetryBudget::default().most(active), most, "{active} active");
        }
        assert_eq!(RetryBudget { part: 0, min: 0 }.most(1000), 1);
    }
}
