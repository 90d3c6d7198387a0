//! A write happens at most once, whatever its answer; one that was refused or rejected does not happen at all.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::judge::{History, Invariant, Observation, Written};

/// Who was told that nothing was done.
#[derive(Default)]
pub struct WritesHappenOnce {
    not_done: BTreeMap<Bytes, String>,
    seen: BTreeMap<Bytes, u64>,
}

impl Invariant for WritesHappenOnce {
    fn name(&self) -> &'static str {
        "writes_happen_once"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::Wrote { key, value, outcome: Written::Rejected(_) | Written::Refused, .. } => {
                self.not_done.insert(value.clone(), key.clone());
                match self.seen.get(value) {
                    Some(at) => Err(format!("{key} = {value:?} was answered as not done, and happened at {at}")),
                    None => Ok(()),
                }
            }
            Observation::Watched { revision, changes, .. } => {
                for (change, value) in changes.iter().filter_map(|change| Some((change, change.value.as_ref()?))) {
                    if !change.key.starts_with("k") {
                        continue;
                    }
                    if let Some(key) = self.not_done.get(value) {
                        return Err(format!("{key} = {value:?} was answered as not done, and happened at {revision}"));
                    }
                    let before = *self.seen.entry(value.clone()).or_insert(*revision);
                    if before != *revision {
                        return Err(format!("{value:?} was written at revision {before} and again at {revision}"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
