//! The pure state machine every engine applies: (state, command) -> (state, response, events).
//! Deterministic: no clock, no randomness, no hash-map iteration. A clone is O(1), which is what a snapshot takes.

use std::time::Duration;

use bytes::Bytes;
use model::Revision;
use rpds::{RedBlackTreeMapSync, RedBlackTreeSetSync};

use crate::{
    Compare, CompareOp, CompareTarget, Event, Key, KeyRange, KeyValue, LeaseId, Op, OpResult, RangeRequest,
    RangeResult, StoreError, Txn,
};

/// What a pair costs beyond its key and value, counted against the quota.
const PAIR_OVERHEAD_BYTES: u64 = 128;

/// A change every replica applies in the same order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// A transaction, with the quota its proposer holds it to (so that all replicas decide alike).
    Txn {
        /// The transaction.
        txn: Txn,
        /// Most bytes the store may hold after a put.
        quota_bytes: u64,
    },
    /// A new lease.
    LeaseGrant {
        /// Its time to live.
        ttl: Duration,
    },
    /// The end of a lease by its owner's wish.
    LeaseRevoke {
        /// Which.
        lease: LeaseId,
    },
    /// The end of a lease because its time was up, as seen by the leader that saw this renewal of it.
    /// Ignored if the lease was renewed since: a stalled ex-leader cannot end a renewed lease.
    LeaseExpire {
        /// Which.
        lease: LeaseId,
        /// The renewal the proposer had seen.
        renewal: u64,
    },
    /// A new leader restarts every lease: all renewals grow by one.
    LeaseRenewAll,
}

/// What a command came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Response {
    /// A transaction ran.
    Txn {
        /// `then` ran, not `otherwise`.
        succeeded: bool,
        /// The store's revision after it.
        revision: Revision,
        /// One per operation that ran.
        results: Vec<OpResult>,
    },
    /// A lease was granted.
    LeaseGranted {
        /// Its name.
        lease: LeaseId,
        /// Its time to live.
        ttl: Duration,
    },
    /// A lease ended and its keys are gone.
    LeaseEnded {
        /// Which.
        lease: LeaseId,
        /// The store's revision after it.
        revision: Revision,
    },
    /// An expiry was ignored: the lease was renewed after it was proposed.
    LeaseKept {
        /// Which.
        lease: LeaseId,
    },
    /// All leases were renewed.
    LeasesRenewed,
    /// Nothing to answer (an entry of the consensus engine itself).
    Nothing,
    /// Nothing was changed.
    Failed(StoreError),
}

/// The effects of one command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// For the caller.
    pub response: Response,
    /// The store's revision after it.
    pub revision: Revision,
    /// For watchers, all at `revision`; empty if nothing changed.
    pub events: Vec<Event>,
}

#[derive(Clone, Debug)]
struct Pair {
    value: Bytes,
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    lease: Option<LeaseId>,
}

/// A lease as replicated: no deadline, those live in the leader's clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// Its name.
    pub lease: LeaseId,
    /// Time to live.
    pub ttl: Duration,
    /// How often it was renewed by a committed entry.
    pub renewal: u64,
}

#[derive(Clone, Debug)]
struct Lease {
    ttl: Duration,
    renewal: u64,
    keys: RedBlackTreeSetSync<Key>,
}

/// All replicated state.
#[derive(Clone, Debug, Default)]
pub struct StateMachine {
    revision: Revision,
    last_lease: u64,
    used_bytes: u64,
    /// The part of it that each owner's keys take. Not in snapshots: it follows from the pairs.
    used_by: RedBlackTreeMapSync<Bytes, u64>,
    pairs: RedBlackTreeMapSync<Key, Pair>,
    leases: RedBlackTreeMapSync<LeaseId, Lease>,
}

impl StateMachine {
    /// Applies one command. Total: every command has an answer on every state.
    pub fn apply(&mut self, command: &Command) -> Applied {
        let mut events = Vec::new();
        let response = match command {
            Command::Txn { txn, quota_bytes } => self.apply_txn(txn, *quota_bytes, &mut events),
            Command::LeaseGrant { ttl } => self.grant(*ttl),
            Command::LeaseRevoke { lease } => self.end_lease(*lease, None, &mut events),
            Command::LeaseExpire { lease, renewal } => self.end_lease(*lease, Some(*renewal), &mut events),
            Command::LeaseRenewAll => self.renew_all(),
        };
        Applied { response, revision: self.revision, events }
    }

    /// Reads the newest state.
    pub fn range(&self, request: &RangeRequest) -> RangeResult {
        let limit = request.limit.unwrap_or(usize::MAX);
        let mut kvs = Vec::new();
        let mut more = false;
        for (key, pair) in self.pairs_in(&request.range) {
            if kvs.len() == limit {
                more = true;
                break;
            }
            kvs.push(key_value(key, pair));
        }
        RangeResult { revision: self.revision, kvs, more }
    }

    /// The store's version.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// Bytes that count against the quota.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    /// The part of [`Self::used_bytes`] that keys of this owner take, see [`Key::owner`].
    pub fn used_by(&self, owner: &[u8]) -> u64 {
        self.used_by.get(owner).copied().unwrap_or(0)
    }

    /// How many bytes more its owner's keys would take with this pair in the store.
    pub fn growth(&self, key: &Key, value: &Bytes) -> u64 {
        let now = self.pairs.get(key).map_or(0, |pair| pair_bytes(key, &pair.value));
        pair_bytes(key, value).saturating_sub(now)
    }

    /// Number of the last lease granted.
    pub fn last_lease(&self) -> u64 {
        self.last_lease
    }

    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.pairs.size()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Every pair in key order.
    pub fn pairs(&self) -> impl Iterator<Item = KeyValue> + '_ {
        self.pairs.iter().map(|(key, pair)| key_value(key, pair))
    }

    /// Every lease in order of grant.
    pub fn leases(&self) -> impl Iterator<Item = LeaseRecord> + '_ {
        self.leases.iter().map(|(lease, record)| LeaseRecord {
            lease: *lease,
            ttl: record.ttl,
            renewal: record.renewal,
        })
    }

    /// One lease and its keys in key order.
    pub fn lease(&self, lease: LeaseId) -> Option<(LeaseRecord, Vec<Key>)> {
        let record = self.leases.get(&lease)?;
        let keys = record.keys.iter().cloned().collect();
        Some((LeaseRecord { lease, ttl: record.ttl, renewal: record.renewal }, keys))
    }

    /// An empty state at a revision, to be filled from a snapshot: leases first, then pairs.
    pub fn restore(revision: Revision, last_lease: u64) -> Self {
        Self { revision, last_lease, ..Self::default() }
    }

    /// Puts back a lease of a snapshot.
    pub fn restore_lease(&mut self, record: &LeaseRecord) {
        let lease = Lease { ttl: record.ttl, renewal: record.renewal, keys: RedBlackTreeSetSync::new_sync() };
        self.leases.insert_mut(record.lease, lease);
    }

    /// Puts back a pair of a snapshot.
    pub fn restore_pair(&mut self, kv: KeyValue) {
        let KeyValue { key, value, create_revision, mod_revision, version, lease } = kv;
        self.insert(key, Pair { value, create_revision, mod_revision, version, lease });
    }

    fn apply_txn(&mut self, txn: &Txn, quota_bytes: u64, events: &mut Vec<Event>) -> Response {
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let ops = if succeeded { &txn.then } else { &txn.otherwise };
        if let Err(error) = self.admit(ops, quota_bytes) {
            return Response::Failed(error);
        }
        let next = Revision(self.revision.0 + 1);
        let mut results: Vec<_> = ops.iter().map(|op| self.run(op, next, events)).collect();
        if !events.is_empty() {
            self.revision = next;
        }
        for result in &mut results {
            if let OpResult::Range(range) = result {
                range.revision = self.revision;
            }
        }
        Response::Txn { succeeded, revision: self.revision, results }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let pair = self.pairs.get(&compare.key);
        let ordering = match &compare.target {
            CompareTarget::ModRevision(revision) => pair.map_or(Revision(0), |pair| pair.mod_revision).cmp(revision),
            CompareTarget::CreateRevision(revision) => {
                pair.map_or(Revision(0), |pair| pair.create_revision).cmp(revision)
            }
            CompareTarget::Version(version) => pair.map_or(0, |pair| pair.version).cmp(version),
            CompareTarget::Value(value) => match pair {
                Some(pair) => pair.value.cmp(value),
                None => return false,
            },
        };
        match compare.op {
            CompareOp::Equal => ordering.is_eq(),
            CompareOp::NotEqual => ordering.is_ne(),
            CompareOp::Less => ordering.is_lt(),
            CompareOp::Greater => ordering.is_gt(),
        }
    }

    /// Everything that can refuse a list of operations, checked before the first one changes anything.
    fn admit(&self, ops: &[Op], quota_bytes: u64) -> Result<(), StoreError> {
        let mut put_bytes = 0;
        for op in ops {
            if let Op::Put { key, value, lease } = op {
                put_bytes += pair_bytes(key, value);
                if let Some(lease) = lease
                    && !self.leases.contains_key(lease)
                {
                    return Err(StoreError::LeaseNotFound(*lease));
                }
            }
        }
        if put_bytes == 0 || self.used_bytes + put_bytes <= quota_bytes {
            return Ok(());
        }
        // Near the quota: what the operations replace or delete makes room.
        let mut freed = 0;
        for op in ops {
            freed += match op {
                Op::Put { key, .. } => self.pairs.get(key).map_or(0, |pair| pair_bytes(key, &pair.value)),
                Op::Delete { range } => self.pairs_in(range).map(|(key, pair)| pair_bytes(key, &pair.value)).sum(),
                Op::Range(_) => 0,
            };
        }
        let after = (self.used_bytes + put_bytes).saturating_sub(freed);
        // A put that does not grow the store is let through even above a lowered quota.
        if after <= quota_bytes || after <= self.used_bytes {
            return Ok(());
        }
        Err(StoreError::QuotaExceeded { used: self.used_bytes, quota: quota_bytes })
    }

    fn run(&mut self, op: &Op, revision: Revision, events: &mut Vec<Event>) -> OpResult {
        match op {
            Op::Put { key, value, lease } => {
                let old = self.pairs.get(key);
                let (create_revision, version) =
                    old.map_or((revision, 1), |old| (old.create_revision, old.version + 1));
                let pair =
                    Pair { value: value.clone(), create_revision, mod_revision: revision, version, lease: *lease };
                events.push(Event::Put(key_value(key, &pair)));
                match old.map(|old| (old.lease, pair_bytes(key, &old.value))) {
                    None => self.insert(key.clone(), pair),
                    // In its place: the tree is walked once and stays as it is.
                    Some((of, bytes)) if of == *lease => {
                        self.count(key, bytes, pair_bytes(key, value));
                        if let Some(place) = self.pairs.get_mut(key) {
                            *place = pair;
                        }
                    }
                    Some(_) => {
                        self.remove(key);
                        self.insert(key.clone(), pair);
                    }
                }
                OpResult::Put
            }
            Op::Delete { range } => {
                let keys: Vec<Key> = self.pairs_in(range).map(|(key, _)| key.clone()).collect();
                for key in &keys {
                    self.remove(key);
                    events.push(Event::Delete { key: key.clone(), revision });
                }
                OpResult::Deleted { count: keys.len() as u64 }
            }
            Op::Range(request) => OpResult::Range(self.range(request)),
        }
    }

    fn insert(&mut self, key: Key, pair: Pair) {
        self.count(&key, 0, pair_bytes(&key, &pair.value));
        if let Some(lease) = pair.lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.insert_mut(key.clone());
        }
        self.pairs.insert_mut(key, pair);
    }

    fn remove(&mut self, key: &Key) {
        let Some(pair) = self.pairs.get(key) else { return };
        let (bytes, lease) = (pair_bytes(key, &pair.value), pair.lease);
        if let Some(lease) = lease.and_then(|lease| self.leases.get_mut(&lease)) {
            lease.keys.remove_mut(key);
        }
        self.pairs.remove_mut(key);
        self.count(key, bytes, 0);
    }

    /// A pair takes another number of bytes than before.
    fn count(&mut self, key: &Key, before: u64, after: u64) {
        self.used_bytes = self.used_bytes - before + after;
        let Some(owner) = key.owner().filter(|_| before != after) else { return };
        let used = self.used_by(owner) - before + after;
        if used == 0 {
            self.used_by.remove_mut(owner);
        } else if let Some(place) = self.used_by.get_mut(owner) {
            *place = used;
        } else {
            self.used_by.insert_mut(Bytes::copy_from_slice(owner), used);
        }
    }

    fn grant(&mut self, ttl: Duration) -> Response {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.restore_lease(&LeaseRecord { lease, ttl, renewal: 0 });
        Response::LeaseGranted { lease, ttl }
    }

    fn end_lease(&mut self, lease: LeaseId, seen_renewal: Option<u64>, events: &mut Vec<Event>) -> Response {
        let Some(record) = self.leases.get(&lease) else {
            return Response::Failed(StoreError::LeaseNotFound(lease));
        };
        if seen_renewal.is_some_and(|renewal| renewal != record.renewal) {
            return Response::LeaseKept { lease };
        }
        let keys = record.keys.clone();
        self.leases.remove_mut(&lease);
        let next = Revision(self.revision.0 + 1);
        for key in keys.iter() {
            self.remove(key);
            events.push(Event::Delete { key: key.clone(), revision: next });
        }
        if !events.is_empty() {
            self.revision = next;
        }
        Response::LeaseEnded { lease, revision: self.revision }
    }

    fn renew_all(&mut self) -> Response {
        let leases: Vec<LeaseId> = self.leases.keys().copied().collect();
        for lease in leases {
            if let Some(record) = self.leases.get_mut(&lease) {
                record.renewal += 1;
            }
        }
        Response::LeasesRenewed
    }

    fn pairs_in(&self, range: &KeyRange) -> impl Iterator<Item = (&Key, &Pair)> + '_ {
        // One key is most of what is asked for: the tree is walked once, and no path of it kept.
        let only = range.only().map(|key| self.pairs.get_key_value(key));
        // An inverted range would panic in the tree; it holds nothing.
        let many = if range.is_empty() || only.is_some() { None } else { Some(range.clone()) };
        only.flatten().into_iter().chain(many.into_iter().flat_map(|range| {
            let start = range.start().clone();
            let end = range.end().cloned();
            self.pairs.range::<[u8], _>(OwnedBounds { start, end })
        }))
    }
}

/// Bounds that own their bytes, so that a range iterator borrows nothing but the map.
struct OwnedBounds {
    start: Bytes,
    end: Option<Bytes>,
}

impl std::ops::RangeBounds<[u8]> for OwnedBounds {
    fn start_bound(&self) -> std::ops::Bound<&[u8]> {
        std::ops::Bound::Included(&self.start)
    }

    fn end_bound(&self) -> std::ops::Bound<&[u8]> {
        self.end.as_deref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded)
    }
}

fn pair_bytes(key: &Key, value: &Bytes) -> u64 {
    key.as_bytes().len() as u64 + value.len() as u64 + PAIR_OVERHEAD_BYTES
}

fn key_value(key: &Key, pair: &Pair) -> KeyValue {
    KeyValue {
        key: key.clone(),
        value: pair.value.clone(),
        create_revision: pair.create_revision,
        mod_revision: pair.mod_revision,
        version: pair.version,
        lease: pair.lease,
    }
}

#[cfg(test)]
mod tests;
