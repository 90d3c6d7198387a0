//! A node that led never goes back to an older term, also not by a restart; within a start no node goes back to an older
//! term or state. (A term it is only about to enter is shown before it is on disk, and binds nobody until then.)

use std::collections::BTreeMap;

use data::RaftRole;

use crate::judge::{History, Invariant, Observation};

/// What each node said last: start, term, revision, last applied entry.
#[derive(Default)]
pub struct TermsOnlyGrow {
    last: BTreeMap<usize, (u64, u64, u64, u64)>,
    led: BTreeMap<usize, u64>,
}

impl Invariant for TermsOnlyGrow {
    fn name(&self) -> &'static str {
        "terms_only_grow"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        match seen {
            Observation::Wiped { place } => {
                self.last.remove(place);
                self.led.remove(place);
                Ok(())
            }
            Observation::Looked { place, start, role, term, revision, applied } => {
                let led = self.led.entry(*place).or_default();
                if *led > *term {
                    return Err(format!("n{} led in term {led} and is in term {term}", place + 1));
                }
                if *role == RaftRole::Leader {
                    *led = *term;
                }
                let now = (*start, *term, *revision, *applied);
                let Some(before) = self.last.insert(*place, now) else { return Ok(()) };
                if before.0 == now.0 && before.1 > now.1 {
                    return Err(format!("n{} was in term {} and is in term {}", place + 1, before.1, now.1));
                }
                if before.0 == now.0 && (before.2 > now.2 || before.3 > now.3) {
                    return Err(format!(
                        "n{} had applied entry {} (revision {}) and goes back to {} (revision {})",
                        place + 1,
                        before.3,
                        before.2,
                        now.3,
                        now.2
                    ));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
