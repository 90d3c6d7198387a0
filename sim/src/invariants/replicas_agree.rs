//! All nodes tell the same history, revision by revision, and hold the same in the end.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::judge::{History, Invariant, Observation};

type Pairs = BTreeMap<String, (Bytes, u64)>;

/// What the first node held in the end.
#[derive(Default)]
pub struct ReplicasAgree {
    held: BTreeMap<u64, (usize, Pairs)>,
}

impl Invariant for ReplicasAgree {
    fn name(&self) -> &'static str {
        "replicas_agree"
    }

    fn look(&mut self, seen: &Observation, history: &History) -> Result<(), String> {
        match seen {
            Observation::Watched { place, revision, changes, .. } => match history.changes.get(revision) {
                Some(known) if known != changes => {
                    Err(format!("n{} says that revision {revision} is {changes:?}, others {known:?}", place + 1))
                }
                _ => Ok(()),
            },
            Observation::Held { place, revision, pairs } => {
                let (other, known) = self.held.entry(*revision).or_insert_with(|| (*place, pairs.clone()));
                if known != pairs {
                    let differs = pairs.iter().find(|(key, value)| known.get(*key) != Some(value));
                    return Err(format!(
                        "n{} and n{} differ at revision {revision}: {differs:?} of {} keys, {}",
                        place + 1,
                        *other + 1,
                        pairs.len(),
                        known.len()
                    ));
                }
                Ok(())
            }
            Observation::Over if self.held.len() > 1 => {
                Err(format!("nodes stand at different revisions: {:?}", self.held.keys()))
            }
            _ => Ok(()),
        }
    }
}
