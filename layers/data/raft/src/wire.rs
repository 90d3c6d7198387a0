//! What is persisted (and later sent to peers): versioned DTOs, apart from domain and engine types.
//! A field is never added to or taken from a V1 type: a change is a new record version.

use std::time::Duration;

use bytes::Bytes;
use data::{
    Command, Compare, CompareOp, CompareTarget, Key, KeyRange, KeyValue, LeaseId, LeaseRecord, Op, RangeRequest,
    Revision, Txn,
};
use serde::{Deserialize, Serialize};

/// Where an entry stands in the log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(crate) struct LogIdV1 {
    pub term: u64,
    pub index: u64,
}

/// A vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct VoteV1 {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

/// The members of a group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct MembershipV1 {
    /// One set of voters, two while changing.
    pub configs: Vec<Vec<u64>>,
    /// Every member and its address.
    pub nodes: Vec<(u64, String)>,
}

/// A command of the state machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum CommandV1 {
    Txn { compares: Vec<CompareV1>, then: Vec<OpV1>, otherwise: Vec<OpV1>, quota_bytes: u64 },
    LeaseGrant { ttl_ms: u64 },
    LeaseRevoke { lease: u64 },
    LeaseExpire { lease: u64, renewal: u64 },
    LeaseRenewAll,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CompareV1 {
    key: Bin,
    target: TargetV1,
    op: CompareOpV1,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum TargetV1 {
    ModRevision(u64),
    CreateRevision(u64),
    Version(u64),
    Value(Bin),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum CompareOpV1 {
    Equal,
    NotEqual,
    Less,
    Greater,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum OpV1 {
    Put { key: Bin, value: Bin, lease: Option<u64> },
    Delete { start: Bin, end: Option<Bin> },
    Range { start: Bin, end: Option<Bin>, limit: Option<u64> },
}

/// A pair in a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PairV1 {
    key: Bin,
    value: Bin,
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    lease: Option<u64>,
}

/// A lease in a snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LeaseV1 {
    lease: u64,
    ttl_ms: u64,
    renewal: u64,
}

/// Bytes, encoded as one block.
#[derive(Clone, Debug)]
pub(crate) struct Bin(pub(crate) Bytes);

impl Serialize for Bin {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bin {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(|bytes| Self(Bytes::copy_from_slice(bytes)))
    }
}

/// Something persisted that no version of Seawall can have written.
#[derive(Debug, thiserror::Error)]
#[error("a payload does not decode: {0}")]
pub(crate) struct DecodeError(pub String);

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("plain data encodes")
}

pub(crate) fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DecodeError> {
    postcard::from_bytes(bytes).map_err(|error| DecodeError(error.to_string()))
}

fn key(bin: Bin) -> Result<Key, DecodeError> {
    Key::new(bin.0).map_err(|error| DecodeError(error.to_string()))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&Command> for CommandV1 {
    fn from(command: &Command) -> Self {
        match command {
            Command::Txn { txn, quota_bytes } => Self::Txn {
                compares: txn.compares.iter().map(CompareV1::from).collect(),
                then: txn.then.iter().map(OpV1::from).collect(),
                otherwise: txn.otherwise.iter().map(OpV1::from).collect(),
                quota_bytes: *quota_bytes,
            },
            Command::LeaseGrant { ttl } => Self::LeaseGrant { ttl_ms: milliseconds(*ttl) },
            Command::LeaseRevoke { lease } => Self::LeaseRevoke { lease: lease.0 },
            Command::LeaseExpire { lease, renewal } => Self::LeaseExpire { lease: lease.0, renewal: *renewal },
            Command::LeaseRenewAll => Self::LeaseRenewAll,
        }
    }
}

impl TryFrom<CommandV1> for Command {
    type Error = DecodeError;

    fn try_from(command: CommandV1) -> Result<Self, DecodeError> {
        Ok(match command {
            CommandV1::Txn { compares, then, otherwise, quota_bytes } => {
                let compares = compares.into_iter().map(Compare::try_from).collect::<Result<_, _>>()?;
                let then = then.into_iter().map(Op::try_from).collect::<Result<_, _>>()?;
                let otherwise = otherwise.into_iter().map(Op::try_from).collect::<Result<_, _>>()?;
                Self::Txn { txn: Txn { compares, then, otherwise }, quota_bytes }
            }
            CommandV1::LeaseGrant { ttl_ms } => Self::LeaseGrant { ttl: Duration::from_millis(ttl_ms) },
            CommandV1::LeaseRevoke { lease } => Self::LeaseRevoke { lease: LeaseId(lease) },
            CommandV1::LeaseExpire { lease, renewal } => Self::LeaseExpire { lease: LeaseId(lease), renewal },
            CommandV1::LeaseRenewAll => Self::LeaseRenewAll,
        })
    }
}

impl From<&Compare> for CompareV1 {
    fn from(compare: &Compare) -> Self {
        let target = match &compare.target {
            CompareTarget::ModRevision(revision) => TargetV1::ModRevision(revision.0),
            CompareTarget::CreateRevision(revision) => TargetV1::CreateRevision(revision.0),
            CompareTarget::Version(version) => TargetV1::Version(*version),
            CompareTarget::Value(value) => TargetV1::Value(Bin(value.clone())),
        };
        let op = match compare.op {
            CompareOp::Equal => CompareOpV1::Equal,
            CompareOp::NotEqual => CompareOpV1::NotEqual,
            CompareOp::Less => CompareOpV1::Less,
            CompareOp::Greater => CompareOpV1::Greater,
        };
        Self { key: Bin(compare.key.to_bytes()), target, op }
    }
}

impl TryFrom<CompareV1> for Compare {
    type Error = DecodeError;

    fn try_from(compare: CompareV1) -> Result<Self, DecodeError> {
        let target = match compare.target {
            TargetV1::ModRevision(revision) => CompareTarget::ModRevision(Revision(revision)),
            TargetV1::CreateRevision(revision) => CompareTarget::CreateRevision(Revision(revision)),
            TargetV1::Version(version) => CompareTarget::Version(version),
            TargetV1::Value(value) => CompareTarget::Value(value.0),
        };
        let op = match compare.op {
            CompareOpV1::Equal => CompareOp::Equal,
            CompareOpV1::NotEqual => CompareOp::NotEqual,
            CompareOpV1::Less => CompareOp::Less,
            CompareOpV1::Greater => CompareOp::Greater,
        };
        Ok(Self { key: key(compare.key)?, target, op })
    }
}

impl From<&Op> for OpV1 {
    fn from(op: &Op) -> Self {
        let bounds = |range: &KeyRange| (Bin(range.start().clone()), range.end().cloned().map(Bin));
        match op {
            Op::Put { key, value, lease } => {
                Self::Put { key: Bin(key.to_bytes()), value: Bin(value.clone()), lease: lease.map(|lease| lease.0) }
            }
            Op::Delete { range } => {
                let (start, end) = bounds(range);
                Self::Delete { start, end }
            }
            Op::Range(request) => {
                let (start, end) = bounds(&request.range);
                Self::Range { start, end, limit: request.limit.map(|limit| limit as u64) }
            }
        }
    }
}

impl TryFrom<OpV1> for Op {
    type Error = DecodeError;

    fn try_from(op: OpV1) -> Result<Self, DecodeError> {
        let range = |start: Bin, end: Option<Bin>| KeyRange::between(start.0, end.map(|end| end.0));
        Ok(match op {
            OpV1::Put { key: name, value, lease } => {
                Self::Put { key: key(name)?, value: value.0, lease: lease.map(LeaseId) }
            }
            OpV1::Delete { start, end } => Self::Delete { range: range(start, end) },
            OpV1::Range { start, end, limit } => {
                let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
                Self::Range(RangeRequest { range: range(start, end), limit })
            }
        })
    }
}

impl From<KeyValue> for PairV1 {
    fn from(kv: KeyValue) -> Self {
        Self {
            key: Bin(kv.key.to_bytes()),
            value: Bin(kv.value),
            create_revision: kv.create_revision.0,
            mod_revision: kv.mod_revision.0,
            version: kv.version,
            lease: kv.lease.map(|lease| lease.0),
        }
    }
}

impl TryFrom<PairV1> for KeyValue {
    type Error = DecodeError;

    fn try_from(pair: PairV1) -> Result<Self, DecodeError> {
        Ok(Self {
            key: key(pair.key)?,
            value: pair.value.0,
            create_revision: Revision(pair.create_revision),
            mod_revision: Revision(pair.mod_revision),
            version: pair.version,
            lease: pair.lease.map(LeaseId),
        })
    }
}

impl From<LeaseRecord> for LeaseV1 {
    fn from(record: LeaseRecord) -> Self {
        Self { lease: record.lease.0, ttl_ms: milliseconds(record.ttl), renewal: record.renewal }
    }
}

impl From<LeaseV1> for LeaseRecord {
    fn from(record: LeaseV1) -> Self {
        Self { lease: LeaseId(record.lease), ttl: Duration::from_millis(record.ttl_ms), renewal: record.renewal }
    }
}
