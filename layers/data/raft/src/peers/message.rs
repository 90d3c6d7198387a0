//! What the payloads of frames mean: versioned DTOs, apart from domain and engine types.
//! Deliberately absent: I/O.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data::{KeyValue, LeaseId, LeaseInfo, NotServing, OpResult, RangeResult, Response, Revision, StoreError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};

use crate::log_store;
use crate::peers::book::NoteV1;
use crate::record::{self, Kind, RECORD_VERSION, Record};
use crate::types::{self, Types};
use crate::wire::{Bin, DecodeError, LogIdV1, MembershipV1, PairV1, VoteV1};

/// Who a node is; the first thing each side says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct HelloV1 {
    /// Oldest and newest version of this conversation that is spoken.
    pub versions: (u16, u16),
    pub cluster: String,
    pub name: String,
    pub id: u64,
    pub store_id: [u8; 16],
    /// Where others reach it.
    pub advertise: String,
    /// It belongs to a cluster already; else its directory is new.
    pub member: bool,
    /// Whom it expects here, if it expects somebody.
    pub expects: Option<u64>,
    /// When its process began, by its own clock, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// Of whom it has heard.
    pub others: Vec<NoteV1>,
}

/// Entries for a follower; none are a heartbeat.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct AppendV1 {
    vote: VoteV1,
    previous: Option<LogIdV1>,
    committed: Option<LogIdV1>,
    entries: Vec<EntryV1>,
}

/// An entry, as its record on disk.
#[derive(Debug, Serialize, Deserialize)]
struct EntryV1 {
    kind: u8,
    version: u8,
    term: u64,
    index: u64,
    payload: Bin,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AppendedV1 {
    Success,
    Partial(Option<LogIdV1>),
    Conflict,
    HigherVote(VoteV1),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteCallV1 {
    vote: VoteV1,
    last: Option<LogIdV1>,
    transfer: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VoteReplyV1 {
    vote: VoteV1,
    granted: bool,
    last: Option<LogIdV1>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TransferV1 {
    from: VoteV1,
    to: u64,
    last: Option<LogIdV1>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum TransferReplyV1 {
    Accepted,
    VoteChanged { expected: VoteV1, actual: VoteV1 },
    LogNotFlushed { expected: Option<LogIdV1>, actual: Option<LogIdV1> },
}

/// A snapshot that follows in blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotBeginV1 {
    pub vote: VoteV1,
    pub last: LogIdV1,
    pub membership_log: Option<LogIdV1>,
    pub membership: MembershipV1,
    pub sequence: u64,
    pub length: u64,
}

/// CRC of all blocks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotEndV1 {
    pub whole: u32,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotReplyV1 {
    pub vote: VoteV1,
}

/// What the receiver of a snapshot of streams does not have yet.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SegmentsWantedV1 {
    pub pieces: Vec<PieceV1>,
}

/// A piece of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct PieceV1 {
    pub id: u64,
    pub first: u64,
    pub from: u64,
    pub to: u64,
}

/// A new node asks to be let in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct AdmitV1 {
    pub name: String,
    pub id: u64,
    pub advertise: String,
    /// It wants a vote.
    pub voter: bool,
}

/// What an operator wants of the members.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum ChangeV1 {
    /// This node goes, whether it is there or not.
    Remove { name: String },
    /// This voter leads from now on.
    Transfer { name: String },
    /// This voter is away, and a witness cannot keep its log for it any longer: it follows until it asks for its vote again.
    Demote { id: u64 },
}

/// One member as the leader sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MemberV1 {
    pub name: String,
    pub id: u64,
    pub address: String,
    pub voter: bool,
    /// Entries it is known to hold on its disk.
    pub matched: Option<u64>,
    /// Milliseconds since it last answered the leader.
    pub silent_ms: Option<u64>,
}

/// The members as the leader sees them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MembersV1 {
    pub leader: u64,
    pub term: u64,
    pub last_index: u64,
    pub members: Vec<MemberV1>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ResponseV1 {
    Txn { succeeded: bool, revision: u64, results: Vec<OpResultV1> },
    LeaseGranted { lease: u64, ttl_ms: u64 },
    LeaseEnded { lease: u64, revision: u64 },
    LeaseKept { lease: u64 },
    LeasesRenewed,
    Nothing,
    Failed(ErrorV1),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum OpResultV1 {
    Put,
    Deleted { count: u64 },
    Range { revision: u64, pairs: Vec<PairV1>, more: bool },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LeaseInfoV1 {
    pub ttl_ms: u64,
    pub remaining_ms: u64,
    keys: Vec<Bin>,
}

/// Why a call failed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ErrorV1 {
    Quota { used: u64, quota: u64 },
    LeaseNotFound(u64),
    NotLeader { leader: Option<u64> },
    NotServing { node: String, reason: String },
    Invalid,
    Unknown,
    Closed,
}

fn log_id(id: Option<LogIdV1>) -> Option<types::LogId> {
    id.map(types::log_id)
}

fn log_id_dto(id: Option<&types::LogId>) -> Option<LogIdV1> {
    id.map(types::log_id_dto)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&AppendEntriesRequest<Types>> for AppendV1 {
    fn from(request: &AppendEntriesRequest<Types>) -> Self {
        let entry = |entry| {
            let Record { kind, term, index, payload } = log_store::record(entry);
            EntryV1 { kind: kind.number(), version: RECORD_VERSION, term, index, payload: Bin(payload) }
        };
        Self {
            vote: types::vote_dto(&request.vote),
            previous: log_id_dto(request.prev_log_id.as_ref()),
            committed: log_id_dto(request.leader_commit.as_ref()),
            entries: request.entries.iter().map(entry).collect(),
        }
    }
}

impl TryFrom<AppendV1> for AppendEntriesRequest<Types> {
    type Error = DecodeError;

    fn try_from(append: AppendV1) -> Result<Self, DecodeError> {
        let entry = |entry: EntryV1| {
            let kind = Kind::from_number(entry.kind).filter(|_| entry.version == RECORD_VERSION);
            // A newer leader writes what this node cannot keep: it must not pretend.
            let kind =
                kind.ok_or_else(|| DecodeError(format!("an entry of kind {} version {}", entry.kind, entry.version)))?;
            if entry.payload.0.len() > record::MAX_PAYLOAD {
                return Err(DecodeError("an entry is longer than any".into()));
            }
            let record = Record { kind, term: entry.term, index: entry.index, payload: entry.payload.0 };
            log_store::entry(&record).map_err(|error| DecodeError(error.to_string()))
        };
        Ok(Self {
            vote: types::vote(append.vote),
            prev_log_id: log_id(append.previous),
            leader_commit: log_id(append.committed),
            entries: append.entries.into_iter().map(entry).collect::<Result<_, _>>()?,
        })
    }
}

impl From<AppendEntriesResponse<Types>> for AppendedV1 {
    fn from(response: AppendEntriesResponse<Types>) -> Self {
        match response {
            AppendEntriesResponse::Success => Self::Success,
            AppendEntriesResponse::PartialSuccess(upto) => Self::Partial(log_id_dto(upto.as_ref())),
            AppendEntriesResponse::Conflict => Self::Conflict,
            AppendEntriesResponse::HigherVote(vote) => Self::HigherVote(types::vote_dto(&vote)),
        }
    }
}

impl From<AppendedV1> for AppendEntriesResponse<Types> {
    fn from(response: AppendedV1) -> Self {
        match response {
            AppendedV1::Success => Self::Success,
            AppendedV1::Partial(upto) => Self::PartialSuccess(log_id(upto)),
            AppendedV1::Conflict => Self::Conflict,
            AppendedV1::HigherVote(vote) => Self::HigherVote(types::vote(vote)),
        }
    }
}

impl From<&VoteRequest<Types>> for VoteCallV1 {
    fn from(request: &VoteRequest<Types>) -> Self {
        Self {
            vote: types::vote_dto(&request.vote),
            last: log_id_dto(request.last_log_id.as_ref()),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<VoteCallV1> for VoteRequest<Types> {
    fn from(call: VoteCallV1) -> Self {
        let mut request = Self::new(types::vote(call.vote), log_id(call.last));
        request.leadership_transfer = call.transfer;
        request
    }
}

impl From<VoteResponse<Types>> for VoteReplyV1 {
    fn from(response: VoteResponse<Types>) -> Self {
        Self {
            vote: types::vote_dto(&response.vote),
            granted: response.vote_granted,
            last: log_id_dto(response.last_log_id.as_ref()),
        }
    }
}

impl From<VoteReplyV1> for VoteResponse<Types> {
    fn from(reply: VoteReplyV1) -> Self {
        Self { vote: types::vote(reply.vote), vote_granted: reply.granted, last_log_id: log_id(reply.last) }
    }
}

impl From<&TransferLeaderRequest<Types>> for TransferV1 {
    fn from(request: &TransferLeaderRequest<Types>) -> Self {
        Self {
            from: types::vote_dto(request.from_leader()),
            to: *request.to_node_id(),
            last: log_id_dto(request.last_log_id()),
        }
    }
}

impl From<TransferV1> for TransferLeaderRequest<Types> {
    fn from(transfer: TransferV1) -> Self {
        Self::new(types::vote(transfer.from), transfer.to, log_id(transfer.last))
    }
}

impl From<TransferLeaderResponse<Types>> for TransferReplyV1 {
    fn from(response: TransferLeaderResponse<Types>) -> Self {
        match response {
            Ok(()) => Self::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                Self::VoteChanged { expected: types::vote_dto(&expected), actual: types::vote_dto(&actual) }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
                Self::LogNotFlushed { expected: log_id_dto(expected.as_ref()), actual: log_id_dto(actual.as_ref()) }
            }
        }
    }
}

impl From<TransferReplyV1> for TransferLeaderResponse<Types> {
    fn from(reply: TransferReplyV1) -> Self {
        match reply {
            TransferReplyV1::Accepted => Ok(()),
            TransferReplyV1::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: types::vote(expected), actual: types::vote(actual) })
            }
            TransferReplyV1::LogNotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed { expected: log_id(expected), actual: log_id(actual) })
            }
        }
    }
}

impl From<Response> for ResponseV1 {
    fn from(response: Response) -> Self {
        match response {
            Response::Txn { succeeded, revision, results } => Self::Txn {
                succeeded,
                revision: revision.0,
                results: results.into_iter().map(OpResultV1::from).collect(),
            },
            Response::LeaseGranted { lease, ttl } => Self::LeaseGranted { lease: lease.0, ttl_ms: milliseconds(ttl) },
            Response::LeaseEnded { lease, revision } => Self::LeaseEnded { lease: lease.0, revision: revision.0 },
            Response::LeaseKept { lease } => Self::LeaseKept { lease: lease.0 },
            Response::LeasesRenewed => Self::LeasesRenewed,
            Response::Nothing => Self::Nothing,
            Response::Failed(error) => Self::Failed(ErrorV1::from(&error)),
        }
    }
}

impl TryFrom<ResponseV1> for Response {
    type Error = DecodeError;

    fn try_from(response: ResponseV1) -> Result<Self, DecodeError> {
        Ok(match response {
            ResponseV1::Txn { succeeded, revision, results } => Self::Txn {
                succeeded,
                revision: Revision(revision),
                results: results.into_iter().map(OpResult::try_from).collect::<Result<_, _>>()?,
            },
            ResponseV1::LeaseGranted { lease, ttl_ms } => {
                Self::LeaseGranted { lease: LeaseId(lease), ttl: Duration::from_millis(ttl_ms) }
            }
            ResponseV1::LeaseEnded { lease, revision } => {
                Self::LeaseEnded { lease: LeaseId(lease), revision: Revision(revision) }
            }
            ResponseV1::LeaseKept { lease } => Self::LeaseKept { lease: LeaseId(lease) },
            ResponseV1::LeasesRenewed => Self::LeasesRenewed,
            ResponseV1::Nothing => Self::Nothing,
            ResponseV1::Failed(error) => Self::Failed(error.into()),
        })
    }
}

impl From<OpResult> for OpResultV1 {
    fn from(result: OpResult) -> Self {
        match result {
            OpResult::Put => Self::Put,
            OpResult::Deleted { count } => Self::Deleted { count },
            OpResult::Range(range) => Self::Range {
                revision: range.revision.0,
                pairs: range.kvs.into_iter().map(PairV1::from).collect(),
                more: range.more,
            },
        }
    }
}

impl TryFrom<OpResultV1> for OpResult {
    type Error = DecodeError;

    fn try_from(result: OpResultV1) -> Result<Self, DecodeError> {
        Ok(match result {
            OpResultV1::Put => Self::Put,
            OpResultV1::Deleted { count } => Self::Deleted { count },
            OpResultV1::Range { revision, pairs, more } => Self::Range(RangeResult {
                revision: Revision(revision),
                kvs: pairs.into_iter().map(KeyValue::try_from).collect::<Result<_, _>>()?,
                more,
            }),
        })
    }
}

impl From<&LeaseInfo> for LeaseInfoV1 {
    fn from(info: &LeaseInfo) -> Self {
        Self {
            ttl_ms: milliseconds(info.ttl),
            remaining_ms: milliseconds(info.remaining),
            keys: info.keys.iter().map(|key| Bin(key.to_bytes())).collect(),
        }
    }
}

impl LeaseInfoV1 {
    pub(crate) fn into_info(self, lease: LeaseId) -> Result<LeaseInfo, DecodeError> {
        let key = |Bin(bytes): Bin| data::Key::new(bytes).map_err(|error| DecodeError(error.to_string()));
        Ok(LeaseInfo {
            lease,
            ttl: Duration::from_millis(self.ttl_ms),
            remaining: Duration::from_millis(self.remaining_ms),
            keys: self.keys.into_iter().map(key).collect::<Result<_, _>>()?,
        })
    }
}

impl From<&StoreError> for ErrorV1 {
    fn from(error: &StoreError) -> Self {
        match error {
            StoreError::QuotaExceeded { used, quota } => Self::Quota { used: *used, quota: *quota },
            StoreError::LeaseNotFound(lease) => Self::LeaseNotFound(lease.0),
            StoreError::NotServing(NotServing::NotLeader { leader }) => Self::NotLeader { leader: Some(*leader) },
            StoreError::NotServing(NotServing::NoLeader) => Self::NotLeader { leader: None },
            StoreError::NotServing(NotServing::Elsewhere { node, reason }) => {
                Self::NotServing { node: node.to_string(), reason: reason.to_string() }
            }
            StoreError::NotServing(reason) => Self::NotServing { node: String::new(), reason: reason.to_string() },
            StoreError::TooLarge { .. } | StoreError::Invalid { .. } => Self::Invalid,
            StoreError::Closed => Self::Closed,
            StoreError::Unknown => Self::Unknown,
        }
    }
}

impl From<ErrorV1> for StoreError {
    fn from(error: ErrorV1) -> Self {
        let not_serving = |reason| Self::NotServing(reason);
        match error {
            ErrorV1::Quota { used, quota } => Self::QuotaExceeded { used, quota },
            ErrorV1::LeaseNotFound(lease) => Self::LeaseNotFound(LeaseId(lease)),
            ErrorV1::NotLeader { leader } => {
                not_serving(leader.map_or(NotServing::NoLeader, |leader| NotServing::NotLeader { leader }))
            }
            ErrorV1::NotServing { node, reason } => {
                not_serving(NotServing::Elsewhere { node: Arc::from(node), reason: Arc::from(reason) })
            }
            ErrorV1::Invalid => Self::Invalid { what: "the leader refused the request" },
            ErrorV1::Unknown => Self::Unknown,
            // The leader is stopping: another one is chosen.
            ErrorV1::Closed => not_serving(NotServing::NoLeader),
        }
    }
}

/// Encodes a payload.
pub(crate) fn payload<T: Serialize>(value: &T) -> Bytes {
    crate::wire::encode(value).into()
}
