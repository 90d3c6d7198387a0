//! A directory opens again after any loss of power, and one that was damaged is refused or serves the truth.

use crate::judge::{History, Invariant, Observation};

/// Nothing to remember.
#[derive(Default)]
pub struct StoredOpensAgain;

impl Invariant for StoredOpensAgain {
    fn name(&self) -> &'static str {
        "stored_opens_again"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::Opened { place, error: Some(error), damaged: false } => {
                Err(format!("n{} does not open: {error}", place + 1))
            }
            _ => Ok(()),
        }
    }
}
