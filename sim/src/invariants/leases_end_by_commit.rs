//! A lease lives for its time from when it was last asked for, if that was acknowledged; then it ends by a commit, on
//! all nodes at the same revision, and its keys with it.

use std::collections::BTreeMap;
use std::time::Duration;

use data::LeaseId;
use tokio::time::Instant;

use crate::judge::{History, Invariant, Observation};

/// Until when each lease must live at least, and the keys that hang on it.
#[derive(Default)]
pub struct LeasesEndByCommit {
    until: BTreeMap<LeaseId, Instant>,
    keys: BTreeMap<String, LeaseId>,
    let_go: BTreeMap<LeaseId, Instant>,
    ended: BTreeMap<LeaseId, Instant>,
}

impl Invariant for LeasesEndByCommit {
    fn name(&self) -> &'static str {
        "leases_end_by_commit"
    }

    fn look(&mut self, seen: &Observation, history: &History) -> Result<(), String> {
        match seen {
            Observation::Leased { lease, asked, ttl } => {
                let until = self.until.entry(*lease).or_insert(*asked + *ttl);
                *until = (*until).max(*asked + *ttl);
                match self.ended.get(lease) {
                    Some(ended) if *ended < *until => Err(format!(
                        "lease {lease} was acknowledged for another {:?} after it had ended",
                        until.saturating_duration_since(*ended)
                    )),
                    _ => Ok(()),
                }
            }
            Observation::LetGo { lease, revoked } => {
                self.let_go.insert(*lease, Instant::now());
                if *revoked {
                    self.until.remove(lease);
                }
                Ok(())
            }
            Observation::Watched { revision, changes, .. } if !history.changes.contains_key(revision) => {
                for change in changes {
                    match (&change.value, change.lease) {
                        (Some(_), Some(lease)) => {
                            self.keys.insert(change.key.clone(), lease);
                        }
                        (Some(_), None) => drop(self.keys.remove(&change.key)),
                        (None, _) => {
                            let Some(lease) = self.keys.remove(&change.key) else { continue };
                            self.ended.insert(lease, Instant::now());
                            let Some(until) = self.until.get(&lease) else { continue };
                            let early = until.saturating_duration_since(Instant::now());
                            if early > Duration::ZERO {
                                return Err(format!(
                                    "lease {lease} was to live for another {early:?} when {} went, at revision {revision}",
                                    change.key
                                ));
                            }
                        }
                    }
                }
                Ok(())
            }
            Observation::Held { place, pairs, .. } => {
                for (key, lease) in &self.keys {
                    // Long after its time, and with a quorum.
                    let over = self.let_go.get(lease).is_some_and(|since| since.elapsed() > Duration::from_secs(30));
                    if over && pairs.contains_key(key) {
                        return Err(format!("lease {lease} was let go and has not ended: n{} holds {key}", place + 1));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
