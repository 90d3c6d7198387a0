//! A write that was acknowledged is there, at its revision, on every node, for ever.

use bytes::Bytes;

use crate::judge::{History, Invariant, Observation, Written};

/// What was acknowledged.
#[derive(Default)]
pub struct AckedWritesSurvive {
    acked: Vec<(u64, String, Bytes)>,
}

impl Invariant for AckedWritesSurvive {
    fn name(&self) -> &'static str {
        "acked_writes_survive"
    }

    fn look(&mut self, seen: &Observation, history: &History) -> Result<(), String> {
        match seen {
            Observation::Wrote { key, value, outcome: Written::At(revision), .. } => {
                self.acked.push((*revision, key.clone(), value.clone()));
                Ok(())
            }
            Observation::Held { place, revision, pairs } => {
                for (at, key, value) in &self.acked {
                    if at > revision {
                        return Err(format!(
                            "n{} holds revision {revision}, and {key} was acknowledged at {at}",
                            place + 1
                        ));
                    }
                    // Without a later change of the key, this is what it must hold.
                    let newest = pairs.get(key);
                    let gone = newest.is_none_or(|(_, written)| written < at);
                    let changed_later = history.value_at(key, *revision).is_some_and(|(last, _)| last > *at);
                    if (gone && !changed_later) || newest.is_some_and(|(held, written)| written == at && held != value)
                    {
                        return Err(format!(
                            "n{} has lost {key}, acknowledged at revision {at}: it holds {newest:?}",
                            place + 1
                        ));
                    }
                }
                Ok(())
            }
            Observation::Over => {
                for (at, key, value) in &self.acked {
                    let Some(changes) = history.changes.get(at) else { continue };
                    if !changes.iter().any(|change| change.key == *key && change.value.as_ref() == Some(value)) {
                        return Err(format!("{key} was acknowledged at revision {at}, where {changes:?} happened"));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
