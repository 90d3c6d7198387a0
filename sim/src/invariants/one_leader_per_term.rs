//! In a term at most one node leads.

use std::collections::BTreeMap;

use data::RaftRole;

use crate::judge::{History, Invariant, Observation};

/// Who led in each term.
#[derive(Default)]
pub struct OneLeaderPerTerm {
    leaders: BTreeMap<u64, usize>,
}

impl Invariant for OneLeaderPerTerm {
    fn name(&self) -> &'static str {
        "one_leader_per_term"
    }

    fn look(&mut self, seen: &Observation, _history: &History) -> Result<(), String> {
        let Observation::Looked { place, role: RaftRole::Leader, term, .. } = seen else { return Ok(()) };
        let known = *self.leaders.entry(*term).or_insert(*place);
        if known != *place {
            return Err(format!("n{} and n{} both lead in term {term}", known + 1, place + 1));
        }
        Ok(())
    }
}
