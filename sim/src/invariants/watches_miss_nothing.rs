//! A watch tells every revision once, in order, without a gap, unless it says that it begins anew.

use std::collections::BTreeMap;

use crate::judge::{History, Invariant, Observation};

/// The last revision told to the watch of each node.
#[derive(Default)]
pub struct WatchesMissNothing {
    told: BTreeMap<usize, u64>,
}

impl Invariant for WatchesMissNothing {
    fn name(&self) -> &'static str {
        "watches_miss_nothing"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::WatchBegan { place, revision } => {
                self.told.insert(*place, *revision);
                Ok(())
            }
            Observation::Watched { place, revision, .. } => {
                let before = self.told.insert(*place, *revision).unwrap_or_default();
                if *revision != before + 1 {
                    return Err(format!("n{} was told of revision {revision} after {before}", place + 1));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
