//! Transactions: compare, then one of two lists of operations, all at one revision (etcd's Txn).

use bytes::Bytes;
use model::Revision;

use crate::{Durability, Key, KeyRange, LeaseId, StoreError};

/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;
/// Most compares plus operations in a transaction (etcd's default for operations).
pub const MAX_TXN_OPS: usize = 128;
/// In front of every key of a user; control state lies elsewhere.
pub const USER_KEYS: &str = "kv/";
/// Largest transaction, in bytes of keys and values.
pub const MAX_TXN_BYTES: usize = 2 * 1024 * 1024;

/// If every compare holds, `then` runs, else `otherwise`; nothing comes between.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Txn {
    /// All must hold for `then`. None means `then` always runs.
    pub compares: Vec<Compare>,
    /// Runs when the compares hold.
    pub then: Vec<Op>,
    /// Runs when a compare fails.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// An unconditional put.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Self {
        Self { then: vec![Op::put(key, value)], ..Self::default() }
    }

    /// An unconditional delete.
    pub fn delete(range: KeyRange) -> Self {
        Self { then: vec![Op::Delete { range }], ..Self::default() }
    }

    /// Adds a compare.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds an operation to `then`.
    #[must_use]
    pub fn then(mut self, op: Op) -> Self {
        self.then.push(op);
        self
    }

    /// Adds an operation to `otherwise`.
    #[must_use]
    pub fn otherwise(mut self, op: Op) -> Self {
        self.otherwise.push(op);
        self
    }

    /// Most bytes a store of this quota may hold after it: a sixteenth is kept back for control state, so that users who
    /// fill the store keep nobody from being promoted.
    pub fn quota_of(&self, quota_bytes: u64) -> u64 {
        let mut puts = self.then.iter().chain(&self.otherwise).filter_map(|op| match op {
            Op::Put { key, .. } => Some(key.as_bytes().starts_with(USER_KEYS.as_bytes())),
            Op::Delete { .. } | Op::Range(_) => None,
        });
        if puts.any(|of_user| of_user) { quota_bytes - quota_bytes / 16 } else { quota_bytes }
    }

    /// Bytes of keys and values, the measure of [`MAX_TXN_BYTES`].
    pub fn bytes(&self) -> usize {
        let compares: usize = self.compares.iter().map(Compare::bytes).sum();
        compares + self.then.iter().chain(&self.otherwise).map(Op::bytes).sum::<usize>()
    }

    /// Checks every limit before anything is proposed.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] or [`StoreError::Invalid`]; neither changed anything.
    pub fn validate(&self) -> Result<(), StoreError> {
        let ops = self.compares.len() + self.then.len() + self.otherwise.len();
        if ops > MAX_TXN_OPS {
            return Err(StoreError::TooLarge {
                what: "transaction (compares and operations)",
                bytes: ops,
                limit: MAX_TXN_OPS,
            });
        }
        for op in self.then.iter().chain(&self.otherwise) {
            if let Op::Put { value, .. } = op
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(StoreError::TooLarge { what: "value", bytes: value.len(), limit: MAX_VALUE_BYTES });
            }
        }
        if self.bytes() > MAX_TXN_BYTES {
            return Err(StoreError::TooLarge { what: "transaction", bytes: self.bytes(), limit: MAX_TXN_BYTES });
        }
        no_key_changed_twice(&self.then)?;
        no_key_changed_twice(&self.otherwise)
    }
}

/// etcd's rule: within one revision a key changes at most once, else its history would be ambiguous.
fn no_key_changed_twice(ops: &[Op]) -> Result<(), StoreError> {
    let twice = StoreError::Invalid { what: "a transaction changes a key at most once: merge its puts and deletes" };
    let mut puts = std::collections::BTreeSet::new();
    for op in ops {
        if let Op::Put { key, .. } = op
            && !puts.insert(key)
        {
            return Err(twice);
        }
    }
    let deletes = ops.iter().filter_map(|op| if let Op::Delete { range } = op { Some(range) } else { None });
    for range in deletes {
        if puts.iter().any(|key| range.contains(key)) {
            return Err(twice);
        }
    }
    Ok(())
}

/// One condition on one key. An absent key has revision 0 and version 0, and no value compares true.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// Whose property.
    pub key: Key,
    /// Which property, and against what.
    pub target: CompareTarget,
    /// `property op target` must hold.
    pub op: CompareOp,
}

impl Compare {
    /// The key does not exist.
    pub fn absent(key: Key) -> Self {
        Self { key, target: CompareTarget::CreateRevision(Revision(0)), op: CompareOp::Equal }
    }

    /// The key exists.
    pub fn exists(key: Key) -> Self {
        Self { key, target: CompareTarget::CreateRevision(Revision(0)), op: CompareOp::Greater }
    }

    /// The key was last changed at exactly this revision (0: does not exist).
    pub fn mod_revision(key: Key, revision: Revision) -> Self {
        Self { key, target: CompareTarget::ModRevision(revision), op: CompareOp::Equal }
    }

    /// The key holds exactly this value.
    pub fn value(key: Key, value: impl Into<Bytes>) -> Self {
        Self { key, target: CompareTarget::Value(value.into()), op: CompareOp::Equal }
    }

    fn bytes(&self) -> usize {
        let value = if let CompareTarget::Value(value) = &self.target { value.len() } else { 0 };
        self.key.as_bytes().len() + value
    }
}

/// A property of a key and what it is compared with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareTarget {
    /// Revision of the last change.
    ModRevision(Revision),
    /// Revision of the creation.
    CreateRevision(Revision),
    /// Number of changes since the creation, which is change 1.
    Version(u64),
    /// The value, bytewise.
    Value(Bytes),
}

/// How a property and its target compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompareOp {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
}

/// One operation of a transaction; each sees the effects of those before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Writes a value, bound to a lease or to none.
    Put {
        /// The key.
        key: Key,
        /// Up to [`MAX_VALUE_BYTES`].
        value: Bytes,
        /// The key goes when the lease goes.
        lease: Option<LeaseId>,
    },
    /// Removes every key of a range.
    Delete {
        /// Which keys.
        range: KeyRange,
    },
    /// Reads.
    Range(RangeRequest),
}

impl Op {
    /// A put without a lease.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Self {
        Self::Put { key, value: value.into(), lease: None }
    }

    /// A put bound to a lease.
    pub fn put_leased(key: Key, value: impl Into<Bytes>, lease: LeaseId) -> Self {
        Self::Put { key, value: value.into(), lease: Some(lease) }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.as_bytes().len() + value.len(),
            Self::Delete { range } | Self::Range(RangeRequest { range, .. }) => {
                range.start().len() + range.end().map_or(0, |end| end.len())
            }
        }
    }
}

/// A read of the newest state (past revisions are not kept for reads).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeRequest {
    /// Which keys.
    pub range: KeyRange,
    /// Most pairs to return; `None` is all.
    pub limit: Option<usize>,
}

impl RangeRequest {
    /// Everything in `range`.
    pub fn new(range: KeyRange) -> Self {
        Self { range, limit: None }
    }

    /// One key.
    pub fn key(key: &Key) -> Self {
        Self::new(KeyRange::key(key))
    }

    /// Every key with `prefix`.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self::new(KeyRange::prefix(prefix))
    }

    /// At most `limit` pairs.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }
}

/// What a read saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeResult {
    /// The store's revision at the read.
    pub revision: Revision,
    /// In key order.
    pub kvs: Vec<KeyValue>,
    /// The limit cut the answer short.
    pub more: bool,
}

/// A key, its value and where it stands in the history.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyValue {
    /// The key.
    pub key: Key,
    /// Its value.
    pub value: Bytes,
    /// When it was created.
    pub create_revision: Revision,
    /// When it was last changed.
    pub mod_revision: Revision,
    /// Changes since the creation, which is change 1.
    pub version: u64,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

/// One operation's result, in the order of the operations that ran.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpResult {
    /// The put is done.
    Put,
    /// The delete is done.
    Deleted {
        /// How many keys went.
        count: u64,
    },
    /// The read.
    Range(RangeResult),
}

/// What became of a transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TxnOutcome {
    /// The compares held and `then` ran.
    Committed {
        /// The store's revision after it.
        revision: Revision,
        /// One for each operation of `then`.
        results: Vec<OpResult>,
        /// What the acknowledgement is worth.
        durability: Durability,
    },
    /// A compare failed and `otherwise` ran.
    Rejected {
        /// The store's revision after it (it grows if `otherwise` wrote).
        revision: Revision,
        /// One for each operation of `otherwise`.
        results: Vec<OpResult>,
    },
    /// It may or may not have happened, or may still happen: read, or retry with a compare that makes it idempotent.
    Unknown,
}

impl TxnOutcome {
    /// Whether `then` certainly ran.
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Committed { .. })
    }

    /// The revision, unless the outcome is unknown.
    pub fn revision(&self) -> Option<Revision> {
        match self {
            Self::Committed { revision, .. } | Self::Rejected { revision, .. } => Some(*revision),
            Self::Unknown => None,
        }
    }
}
