//! What this node says of itself in the store: written when it changes, bound to its lease, and written again under the
//! next one. One transaction at a time; what nobody knows the fate of is written again.
//! Deliberately absent: what is said (`records.rs`, the controller).

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use data::{KeyRange, KeyValue, LeaseId, Op, StoreError, Txn, TxnOutcome};

use super::records::{About, InstanceRecord, key};
use crate::Input;
use crate::shell::Shell;

/// Keys written in one transaction; the rest follows in the next.
const AT_ONCE: usize = 64;
/// After a write that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Keys and what they are to hold.
pub type Said = BTreeMap<String, Vec<u8>>;

/// A transaction on its way.
#[derive(Debug)]
pub struct Saying {
    lease: LeaseId,
    put: Said,
    gone: BTreeSet<String>,
}

/// What the store is known to hold of this node.
#[derive(Debug, Default)]
pub struct Publisher {
    acknowledged: BTreeMap<String, (LeaseId, Vec<u8>)>,
    /// May be there or not.
    doubtful: BTreeSet<String>,
    saying: bool,
    not_before: Option<Instant>,
}

/// Notes under which lease a process of this node stands in what this node has read. That it was committed is not enough:
/// who has not read up to there may believe in a term that ended with the lease before.
pub fn vouch(shell: &mut Shell, read: &KeyValue) {
    let Some((name, lease)) = read.key.as_str().zip(read.lease) else { return };
    let About::Instance(_, id, node) = About::of(name) else { return };
    let record = serde_json::from_slice::<InstanceRecord>(&read.value).ok();
    let incarnation = record.and_then(|record| record.incarnation).filter(|_| shell.own.as_ref() == Some(&node));
    if let Some(incarnation) = incarnation {
        shell.vouched.insert(id, (incarnation, lease));
    }
}

impl Publisher {
    /// Sends what is different from `wanted`.
    pub fn step(&mut self, shell: &Shell, lease: LeaseId, wanted: &Said, now: Instant) {
        if self.saying || self.not_before.is_some_and(|at| at > now) {
            return;
        }
        self.not_before = None;
        let fresh = |(name, value): &(&String, &Vec<u8>)| {
            self.acknowledged.get(*name).is_none_or(|(under, known)| *under != lease || known != *value)
        };
        let put: Said =
            wanted.iter().filter(fresh).take(AT_ONCE).map(|(name, value)| (name.clone(), value.clone())).collect();
        let known = self.acknowledged.keys().chain(&self.doubtful);
        let gone: BTreeSet<String> =
            known.filter(|name| !wanted.contains_key(*name)).take(AT_ONCE / 2).cloned().collect();
        if put.is_empty() && gone.is_empty() {
            return;
        }
        let puts =
            put.iter().map(|(name, value)| Op::Put { key: key(name), value: value.clone().into(), lease: Some(lease) });
        let deletes = gone.iter().map(|name| Op::Delete { range: KeyRange::key(&key(name)) });
        let txn = Txn { then: puts.chain(deletes).collect(), ..Txn::default() };
        let (store, saying) = (std::sync::Arc::clone(&shell.store), Saying { lease, put, gone });
        self.saying = true;
        shell.spawn(async move { Input::Said { saying, outcome: store.txn(txn).await } });
    }

    /// A transaction has its answer; what it said is known to be there if it was committed.
    pub fn said(&mut self, saying: Saying, outcome: &Result<TxnOutcome, StoreError>, now: Instant) {
        self.saying = false;
        let Saying { lease, put, gone } = saying;
        if matches!(outcome, Ok(TxnOutcome::Committed { .. })) {
            for name in gone {
                self.acknowledged.remove(&name);
                self.doubtful.remove(&name);
            }
            for (name, value) in put {
                self.doubtful.remove(&name);
                self.acknowledged.insert(name, (lease, value));
            }
            return;
        }
        if let Err(error) = outcome {
            tracing::debug!(%error, "what this node runs could not be told to the others; trying again");
        }
        self.not_before = Some(now + PAUSE);
        for name in put.into_keys().chain(gone) {
            self.acknowledged.remove(&name);
            self.doubtful.insert(name);
        }
    }

    /// When to look again, apart from inputs.
    pub fn next_look(&self) -> Option<Instant> {
        self.not_before
    }
}
