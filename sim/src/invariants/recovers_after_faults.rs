//! Once all faults are over, every node serves again within the time it is given, without help.

use crate::judge::{History, Invariant, Observation};

/// Nothing to remember.
#[derive(Default)]
pub struct RecoversAfterFaults;

impl Invariant for RecoversAfterFaults {
    fn name(&self) -> &'static str {
        "recovers_after_faults"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::Recovered { place, problem: Some(problem) } => {
                Err(format!("n{} does not come back: {problem}", place + 1))
            }
            _ => Ok(()),
        }
    }
}
