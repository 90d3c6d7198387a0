//! Nothing in a node panics.

use crate::judge::{History, Invariant, Observation};

/// Nothing to remember.
#[derive(Default)]
pub struct PanicsNever;

impl Invariant for PanicsNever {
    fn name(&self) -> &'static str {
        "panics_never"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::Panicked { message } => Err(message.clone()),
            _ => Ok(()),
        }
    }
}
