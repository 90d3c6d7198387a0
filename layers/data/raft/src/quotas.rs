//! What the keys of each owner may take of the key-value store. The leader looks before a write goes into the log, so
//! that one service that writes without end fills its own part and not the store. In the write walk between
//! `leading.rs` and the log. Replicas do not look: they must decide alike, whatever version they are of.
//! What is under way counts, so that writers at the same time do not pass together; what a transaction deletes makes
//! room only once it is applied.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use data::{Command, Key, Op, OwnerBytes, Response, StateMachine, StoreError, Txn};

use crate::types::{Content, Proposal, Reply};
use crate::wal::lock;

/// Bytes by owner.
type Bytes = BTreeMap<Vec<u8>, u64>;

/// What owners may hold, and what of theirs is on its way through the log.
#[derive(Default)]
pub(crate) struct Quotas {
    limits: Mutex<Arc<Bytes>>,
    under_way: Mutex<Bytes>,
}

/// A proposal after the look.
pub(crate) struct Admitted<'a> {
    /// What goes into the log; nothing if all of it was refused.
    pub proposal: Option<Proposal>,
    refused: Vec<(usize, StoreError)>,
    quotas: &'a Quotas,
    held: Bytes,
}

impl Quotas {
    /// From now on these are the limits, in bytes by owner. Who holds more keeps it, and writes nothing that grows.
    pub(crate) fn set(&self, limits: BTreeMap<String, u64>) {
        let limits = limits.into_iter().map(|(owner, bytes)| (owner.into_bytes(), bytes)).collect();
        *lock(&self.limits) = Arc::new(limits);
    }

    /// What the owners that have a limit hold.
    pub(crate) fn held(&self, state: &StateMachine) -> Vec<(String, OwnerBytes)> {
        let limits = lock(&self.limits).clone();
        let held = |(owner, quota): (&Vec<u8>, &u64)| {
            let bytes = OwnerBytes { used: state.used_by(owner), quota: *quota };
            (String::from_utf8_lossy(owner).into_owned(), bytes)
        };
        limits.iter().map(held).collect()
    }

    /// Takes out of a proposal what would grow somebody's keys beyond their limit. What is let through counts until the
    /// answer is dropped, which must be after it was applied.
    pub(crate) fn admit(&self, proposal: Proposal, state: impl FnOnce() -> StateMachine) -> Admitted<'_> {
        let limits = lock(&self.limits).clone();
        let mut admitted = Admitted { proposal: None, refused: Vec::new(), quotas: self, held: Bytes::new() };
        let limited = |command: &Command| match command {
            Command::Txn { txn, .. } => puts(txn).any(|(key, _)| limit(&limits, key).is_some()),
            _ => false,
        };
        let Content::Store(commands) = &proposal.content else { return admitted.with(proposal) };
        if !commands.iter().any(limited) {
            return admitted.with(proposal);
        }
        // The state is read under the lock: else what is applied between the two would be in neither.
        let mut under_way = lock(&self.under_way);
        let state = state();
        for (place, command) in commands.iter().enumerate() {
            let Command::Txn { txn, .. } = command else { continue };
            let growth = growth(&limits, &state, txn);
            let over = growth.iter().find_map(|(owner, grows)| {
                let quota = *limits.get(owner)?;
                let used = state.used_by(owner) + under_way.get(owner).unwrap_or(&0);
                (used + grows > quota).then_some(StoreError::QuotaExceeded { used, quota })
            });
            if let Some(error) = over {
                admitted.refused.push((place, error));
                continue;
            }
            for (owner, grows) in growth {
                *under_way.entry(owner.clone()).or_default() += grows;
                *admitted.held.entry(owner).or_default() += grows;
            }
        }
        drop(under_way);
        if admitted.refused.is_empty() {
            return admitted.with(proposal);
        }
        let is_kept = |place: usize| admitted.refused.iter().all(|(refused, _)| *refused != place);
        let kept = commands.iter().enumerate().filter(|(place, _)| is_kept(*place));
        let kept: Vec<Command> = kept.map(|(_, command)| command.clone()).collect();
        admitted.proposal = (!kept.is_empty()).then(|| Proposal::of(kept));
        admitted
    }

    fn over(&self, held: &Bytes) {
        let mut under_way = lock(&self.under_way);
        for (owner, bytes) in held {
            if let Some(left) = under_way.get_mut(owner) {
                *left -= bytes;
                if *left == 0 {
                    under_way.remove(owner);
                }
            }
        }
    }
}

impl Admitted<'_> {
    fn with(mut self, proposal: Proposal) -> Self {
        self.proposal = Some(proposal);
        self
    }

    /// The answers to all that was proposed, from those of the log.
    pub(crate) fn answers(&mut self, logged: Reply) -> Reply {
        let Reply::Store(mut answers) = logged else { return logged };
        for (place, error) in self.refused.drain(..) {
            // In ascending order: each place is right once those before it are filled.
            answers.insert(place.min(answers.len()), Response::Failed(error));
        }
        Reply::Store(answers)
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        if !self.held.is_empty() {
            self.quotas.over(&self.held);
        }
    }
}

fn puts(txn: &Txn) -> impl Iterator<Item = (&Key, &bytes::Bytes)> {
    txn.then.iter().chain(&txn.otherwise).filter_map(|op| match op {
        Op::Put { key, value, .. } => Some((key, value)),
        Op::Delete { .. } | Op::Range(_) => None,
    })
}

fn limit(limits: &Bytes, key: &Key) -> Option<u64> {
    limits.get(key.owner()?).copied()
}

/// How much the keys of each owner with a limit would grow, whichever way the transaction goes: those that would not
/// are left out.
fn growth(limits: &Bytes, state: &StateMachine, txn: &Txn) -> Bytes {
    let mut growth = Bytes::new();
    for (key, value) in puts(txn).filter(|(key, _)| limit(limits, key).is_some()) {
        let grows = state.growth(key, value);
        if let Some(owner) = key.owner().filter(|_| grows > 0) {
            *growth.entry(owner.to_vec()).or_default() += grows;
        }
    }
    growth
}

#[cfg(test)]
mod tests {
    use data::{Command, Key, Response, StateMachine, StoreError, Txn};

    use super::Quotas;
    use crate::types::{Content, Proposal, Reply};

    fn put(key: &str, bytes: usize) -> Command {
        Command::Txn { txn: Txn::put(Key::try_from(key).unwrap(), vec![0; bytes]), quota_bytes: u64::MAX }
    }

    fn quotas() -> Quotas {
        let quotas = Quotas::default();
        quotas.set([("ledger".to_owned(), 1000)].into());
        quotas
    }

    #[test]
    fn only_what_grows_its_owner_beyond_the_limit_is_refused_and_each_gets_its_own_answer() {
        let (quotas, mut state) = (quotas(), StateMachine::default());
        state.apply(&put("kv/ledger/a", 600));
        let commands = vec![
            put("kv/ledger/b", 600), // would be too much
            put("kv/other/b", 5000), // nobody limits it
            put("kv/ledger/a", 600), // takes no more than before
            put("kv/ledger", 5000),  // is no key of the service's
            put("kv/ledger/a", 900),
        ];
        let mut admitted = quotas.admit(Proposal::of(commands), || state.clone());
        let Some(Proposal { content: Content::Store(kept), .. }) = &admitted.proposal else { panic!() };
        assert_eq!(kept.len(), 3);
        let logged = kept.iter().map(|command| state.apply(command).response).collect();
        let Reply::Store(answers) = admitted.answers(Reply::Store(logged)) else { panic!() };
        let refused: Vec<bool> = answers
            .iter()
            .map(|answer| matches!(answer, Response::Failed(StoreError::QuotaExceeded { quota: 1000, .. })))
            .collect();
        assert_eq!(refused, [true, false, false, false, true]);
    }

    #[test]
    fn what_is_under_way_counts_until_it_is_over() {
        let (quotas, state) = (quotas(), StateMachine::default());
        let first = quotas.admit(Proposal::new(put("kv/ledger/a", 600)), || state.clone());
        assert!(first.proposal.is_some());
        assert!(quotas.admit(Proposal::new(put("kv/ledger/b", 600)), || state.clone()).proposal.is_none());
        drop(first);
        assert!(quotas.admit(Proposal::new(put("kv/ledger/b", 600)), || state.clone()).proposal.is_some());
    }
}
