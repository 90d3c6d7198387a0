//! At most one process of a service is primary at any moment.

use std::collections::BTreeMap;

use crate::judge::{History, Invariant, Observation};

/// Who is primary, and in which term.
#[derive(Default)]
pub struct OnePrimaryAtATime {
    primaries: BTreeMap<String, u64>,
}

impl Invariant for OnePrimaryAtATime {
    fn name(&self) -> &'static str {
        "one_primary_at_a_time"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::PrimaryBegan { process, epoch } => {
                if let Some((other, term)) = self.primaries.iter().find(|(other, _)| *other != process) {
                    return Err(format!("{process} is primary (epoch {epoch}) beside {other} (epoch {term})"));
                }
                self.primaries.insert(process.clone(), *epoch);
                Ok(())
            }
            Observation::PrimaryEnded { process } => {
                self.primaries.remove(process);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
