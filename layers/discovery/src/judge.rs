//! What results of a check make of it: so many successes or failures in a row, as Consul counts. Pure.

use crate::record::{CheckDefinition, CheckStatus};

/// Counts of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Judge {
    successes: u32,
    failures: u32,
}

impl Judge {
    /// Takes a result, and says how the check stands now; `None`: as before.
    pub fn take(&mut self, definition: &CheckDefinition, result: CheckStatus) -> Option<CheckStatus> {
        if result != CheckStatus::Critical {
            (self.successes, self.failures) = (self.successes.saturating_add(1), 0);
            return (self.successes >= definition.success_before_passing).then_some(result);
        }
        (self.successes, self.failures) = (0, self.failures.saturating_add(1));
        if self.failures >= definition.failures_before_critical {
            return Some(CheckStatus::Critical);
        }
        let before_warning = match definition.failures_before_warning {
            0 => definition.failures_before_critical,
            written => written,
        };
        (self.failures >= before_warning).then_some(CheckStatus::Warning)
    }
}

#[cfg(test)]
mod tests {
    use super::Judge;
    use crate::record::{CheckDefinition, CheckStatus as S};

    #[test]
    fn results_in_a_row_count_as_in_consul() {
        let definition = CheckDefinition {
            success_before_passing: 2,
            failures_before_warning: 2,
            failures_before_critical: 3,
            ..CheckDefinition::default()
        };
        let mut judge = Judge::default();
        let results =
            [S::Passing, S::Passing, S::Critical, S::Critical, S::Critical, S::Passing, S::Critical, S::Warning];
        let stands = results.map(|result| judge.take(&definition, result));
        let expected = [None, Some(S::Passing), None, Some(S::Warning), Some(S::Critical), None, None, None];
        assert_eq!(stands, expected);
        // Without thresholds every result counts.
        let plain = CheckDefinition::default();
        assert_eq!(Judge::default().take(&plain, S::Critical), Some(S::Critical));
        assert_eq!(Judge::default().take(&plain, S::Passing), Some(S::Passing));
    }
}
