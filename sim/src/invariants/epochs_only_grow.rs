//! Every process that becomes primary does so in a newer term than all before it.

use crate::judge::{History, Invariant, Observation};

/// The newest term, and whose it is.
#[derive(Default)]
pub struct EpochsOnlyGrow {
    newest: Option<(u64, String)>,
}

impl Invariant for EpochsOnlyGrow {
    fn name(&self) -> &'static str {
        "epochs_only_grow"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        let Observation::PrimaryBegan { process, epoch } = seen else { return Ok(()) };
        if let Some((newest, whose)) = &self.newest
            && (epoch < newest || (epoch == newest && whose != process))
        {
            return Err(format!("{process} is primary in epoch {epoch}, after {whose} was in epoch {newest}"));
        }
        self.newest = Some((*epoch, process.clone()));
        Ok(())
    }
}
