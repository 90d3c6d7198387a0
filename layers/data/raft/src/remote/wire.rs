//! What an agent asks of a server and what it is answered: versioned DTOs, apart from domain types. Sans-io.
//! A field is never added to or taken from a V1 type.

use std::sync::Arc;
use std::time::Duration;

use data::{
    Counted, Event, KeyValue, Name, NotServing, Revision, StoreError, StreamEntry, StreamError, StreamInfo, WatchItem,
};
use serde::{Deserialize, Serialize};

use crate::members::{Member, Members};
use crate::peers::message::{ChangeV1, LeaseInfoV1, OpResultV1};
use crate::streams::wire::{CountedV1, StreamRequestV1};
use crate::wire::{Bin, CommandV1, DecodeError, PairV1};

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum CallV1 {
    /// How the server is.
    State,
    /// A transaction, a grant or a revocation.
    Do(CommandV1),
    Range {
        start: Bin,
        end: Option<Bin>,
        limit: Option<u64>,
        stale: bool,
    },
    /// Parts until [`Enough`](crate::peers::frame::Kind::Enough).
    Watch {
        start: Bin,
        end: Option<Bin>,
        from: Option<u64>,
    },
    KeepAlive {
        lease: u64,
    },
    LeaseInfo {
        lease: u64,
    },
    Members,
    Change(ChangeV1),
    Stream(StreamRequestV1),
    StreamRead {
        stream: String,
        from: u64,
        limit: u64,
        stale: bool,
    },
    StreamWait {
        stream: String,
        offset: u64,
        patience_ms: u64,
    },
    StreamCursor {
        stream: String,
        cursor: String,
    },
    StreamList {
        stale: bool,
    },
    StreamDescribe {
        stream: String,
        stale: bool,
    },
}

/// The answer to each.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum AnswerV1 {
    State(StateV1),
    /// `succeeded` is absent when nobody knows.
    Txn {
        succeeded: Option<bool>,
        revision: u64,
        results: Vec<OpResultV1>,
        is_async: bool,
    },
    /// The pairs came in parts before.
    Range {
        revision: u64,
        more: bool,
    },
    WatchEnded,
    Lease {
        lease: u64,
        ttl_ms: u64,
    },
    Revoked {
        revision: u64,
    },
    LeaseInfo(LeaseInfoV1),
    Members(MembersSeenV1),
    Appended {
        offset: u64,
        repeated: bool,
        is_async: bool,
    },
    Offset(u64),
    Done,
    IsThere(bool),
    Entries {
        entries: Vec<StreamEntryV1>,
        next: u64,
    },
    Streams(Vec<StreamInfoV1>),
}

/// How a server is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StateV1 {
    pub leader: Option<u64>,
    pub term: u64,
    pub revision: u64,
    pub applied_index: u64,
    pub used_bytes: u64,
    pub quota_bytes: u64,
    pub is_async: bool,
    /// Why it does not serve the store, if so.
    pub problem: Option<ReasonV1>,
    /// The same of its streams.
    pub streams_problem: Option<ReasonV1>,
}

/// Why a server does not serve, in its words, and whether that may pass.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ReasonV1 {
    pub words: String,
    pub may_pass: bool,
}

/// Why a request was refused.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum RefusalV1 {
    Quota { used: u64, quota: u64 },
    LeaseNotFound(u64),
    Invalid,
    NotServing(ReasonV1),
    Unknown,
    NotFound(String),
    NoCursor(String),
    OutOfSequence { expected: u64 },
    Fenced { epoch: u64 },
    Trimmed { first: u64 },
    PastEnd { next: u64 },
    Full(CountedV1),
    Damaged { what: String },
}

/// A part of what a watch yields.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ItemV1 {
    /// Changes of a revision; the last part of it says so.
    Events {
        revision: u64,
        events: Vec<EventV1>,
        whole: bool,
    },
    Progress(u64),
    Compacted(u64),
    Lagged,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum EventV1 {
    Put(PairV1),
    Delete { key: Bin, revision: u64 },
}

/// The members as a server describes them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MembersSeenV1 {
    leader: Option<String>,
    term: u64,
    members: Vec<MemberSeenV1>,
    no_failover: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemberSeenV1 {
    name: String,
    id: u64,
    address: String,
    voter: bool,
    witness: bool,
    lag: Option<u64>,
    silent_ms: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StreamEntryV1 {
    offset: u64,
    at_ms: u64,
    data: Bin,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StreamInfoV1 {
    name: String,
    first: u64,
    next: u64,
    bytes: u64,
    sealed: Option<u64>,
    producers: Vec<(String, u64)>,
    cursors: Vec<(String, u64)>,
}

fn name(text: &str) -> Result<Name, DecodeError> {
    Name::new(text).map_err(|error| DecodeError(error.to_string()))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<&NotServing> for ReasonV1 {
    fn from(reason: &NotServing) -> Self {
        Self { words: reason.to_string(), may_pass: reason.may_pass() }
    }
}

impl ReasonV1 {
    /// As the agent tells it: by whom, too.
    pub(crate) fn of(&self, server: &str) -> NotServing {
        NotServing::Server { node: server.into(), reason: self.words.as_str().into(), may_pass: self.may_pass }
    }

    /// The server is stopping: another one is asked.
    fn stopping() -> Self {
        Self { words: "it is stopping".to_owned(), may_pass: true }
    }
}

impl From<StoreError> for RefusalV1 {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::QuotaExceeded { used, quota } => Self::Quota { used, quota },
            StoreError::LeaseNotFound(lease) => Self::LeaseNotFound(lease.0),
            StoreError::NotServing(reason) => Self::NotServing(ReasonV1::from(&reason)),
            StoreError::TooLarge { .. } | StoreError::Invalid { .. } => Self::Invalid,
            StoreError::Closed => Self::NotServing(ReasonV1::stopping()),
            StoreError::Unknown => Self::Unknown,
        }
    }
}

impl From<StreamError> for RefusalV1 {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::NotFound(name) => Self::NotFound(name.to_string()),
            StreamError::NoCursor(name) => Self::NoCursor(name.to_string()),
            StreamError::OutOfSequence { expected } => Self::OutOfSequence { expected },
            StreamError::Fenced { epoch } => Self::Fenced { epoch },
            StreamError::Trimmed { first } => Self::Trimmed { first },
            StreamError::PastEnd { next } => Self::PastEnd { next },
            StreamError::Full(Counted::Streams) => Self::Full(CountedV1::Streams),
            StreamError::Full(Counted::Producers) => Self::Full(CountedV1::Producers),
            StreamError::Full(Counted::Cursors) => Self::Full(CountedV1::Cursors),
            StreamError::TooLarge { .. } | StreamError::Invalid { .. } => Self::Invalid,
            StreamError::NotServing(reason) => Self::NotServing(ReasonV1::from(&reason)),
            StreamError::Damaged { what } => Self::Damaged { what },
            StreamError::Closed => Self::NotServing(ReasonV1::stopping()),
            StreamError::Unknown => Self::Unknown,
        }
    }
}

impl RefusalV1 {
    /// What a request about keys and leases failed with at this server.
    pub(crate) fn of_store(self, server: &str) -> StoreError {
        match self {
            Self::Quota { used, quota } => StoreError::QuotaExceeded { used, quota },
            Self::LeaseNotFound(lease) => StoreError::LeaseNotFound(data::LeaseId(lease)),
            Self::Invalid => StoreError::Invalid { what: "the server refused the request" },
            Self::NotServing(reason) => StoreError::NotServing(reason.of(server)),
            // The others belong to streams.
            _ => StoreError::Unknown,
        }
    }

    /// The same about a stream.
    pub(crate) fn of_streams(self, server: &str) -> StreamError {
        let named = |text: &str, what: fn(Name) -> StreamError| name(text).map_or(StreamError::Unknown, what);
        match self {
            Self::NotFound(text) => named(&text, StreamError::NotFound),
            Self::NoCursor(text) => named(&text, StreamError::NoCursor),
            Self::OutOfSequence { expected } => StreamError::OutOfSequence { expected },
            Self::Fenced { epoch } => StreamError::Fenced { epoch },
            Self::Trimmed { first } => StreamError::Trimmed { first },
            Self::PastEnd { next } => StreamError::PastEnd { next },
            Self::Full(CountedV1::Streams) => StreamError::Full(Counted::Streams),
            Self::Full(CountedV1::Producers) => StreamError::Full(Counted::Producers),
            Self::Full(CountedV1::Cursors) => StreamError::Full(Counted::Cursors),
            Self::Damaged { what } => StreamError::Damaged { what: format!("on {server}: {what}") },
            other => other.of_store(server).into(),
        }
    }
}

impl From<&Event> for EventV1 {
    fn from(event: &Event) -> Self {
        match event {
            Event::Put(kv) => Self::Put(kv.clone().into()),
            Event::Delete { key, revision } => Self::Delete { key: Bin(key.to_bytes()), revision: revision.0 },
        }
    }
}

impl TryFrom<EventV1> for Event {
    type Error = DecodeError;

    fn try_from(event: EventV1) -> Result<Self, DecodeError> {
        Ok(match event {
            EventV1::Put(pair) => Self::Put(KeyValue::try_from(pair)?),
            EventV1::Delete { key, revision } => {
                let key = data::Key::new(key.0).map_err(|error| DecodeError(error.to_string()))?;
                Self::Delete { key, revision: Revision(revision) }
            }
        })
    }
}

/// What a watch yielded, in parts of about so many bytes.
pub(crate) fn parts(item: &WatchItem, most: usize) -> Vec<ItemV1> {
    let WatchItem::Events { revision, events } = item else {
        return vec![match item {
            WatchItem::Progress(at) => ItemV1::Progress(at.0),
            WatchItem::Compacted(at) => ItemV1::Compacted(at.0),
            WatchItem::Lagged | WatchItem::Events { .. } => ItemV1::Lagged,
        }];
    };
    let revision = revision.0;
    let (mut parts, mut part, mut bytes) = (Vec::new(), Vec::new(), 0);
    for event in events.iter() {
        let value = if let Event::Put(kv) = event { kv.value.len() } else { 0 };
        bytes += event.key().as_bytes().len() + value;
        part.push(EventV1::from(event));
        if bytes >= most {
            parts.push(ItemV1::Events { revision, events: std::mem::take(&mut part), whole: false });
            bytes = 0;
        }
    }
    parts.push(ItemV1::Events { revision, events: part, whole: true });
    parts
}

impl From<Members> for MembersSeenV1 {
    fn from(seen: Members) -> Self {
        let member = |member: Member| MemberSeenV1 {
            name: member.name.to_string(),
            id: member.id,
            address: member.address.to_string(),
            voter: member.voter,
            witness: member.witness,
            lag: member.lag,
            silent_ms: member.silent.map(milliseconds),
        };
        Self {
            leader: seen.leader.map(|leader| leader.to_string()),
            term: seen.term,
            members: seen.members.into_iter().map(member).collect(),
            no_failover: seen.no_failover,
        }
    }
}

impl From<MembersSeenV1> for Members {
    fn from(seen: MembersSeenV1) -> Self {
        let member = |member: MemberSeenV1| Member {
            name: member.name.into(),
            id: member.id,
            address: member.address.into(),
            voter: member.voter,
            witness: member.witness,
            lag: member.lag,
            silent: member.silent_ms.map(Duration::from_millis),
        };
        Self {
            leader: seen.leader.map(Arc::from),
            term: seen.term,
            members: seen.members.into_iter().map(member).collect(),
            no_failover: seen.no_failover,
        }
    }
}

impl From<StreamEntry> for StreamEntryV1 {
    fn from(entry: StreamEntry) -> Self {
        Self { offset: entry.offset, at_ms: entry.at_ms, data: Bin(entry.data) }
    }
}

impl From<StreamEntryV1> for StreamEntry {
    fn from(entry: StreamEntryV1) -> Self {
        Self { offset: entry.offset, at_ms: entry.at_ms, data: entry.data.0 }
    }
}

impl From<StreamInfo> for StreamInfoV1 {
    fn from(info: StreamInfo) -> Self {
        let pair = |(name, number): (Name, u64)| (name.to_string(), number);
        Self {
            name: info.name.to_string(),
            first: info.first,
            next: info.next,
            bytes: info.bytes,
            sealed: info.sealed,
            producers: info.producers.into_iter().map(pair).collect(),
            cursors: info.cursors.into_iter().map(pair).collect(),
        }
    }
}

impl TryFrom<StreamInfoV1> for StreamInfo {
    type Error = DecodeError;

    fn try_from(info: StreamInfoV1) -> Result<Self, DecodeError> {
        let pair = |(text, number): (String, u64)| Ok((name(&text)?, number));
        Ok(Self {
            name: name(&info.name)?,
            first: info.first,
            next: info.next,
            bytes: info.bytes,
            sealed: info.sealed,
            producers: info.producers.into_iter().map(pair).collect::<Result<_, DecodeError>>()?,
            cursors: info.cursors.into_iter().map(pair).collect::<Result<_, DecodeError>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use data::{Event, Key, WatchItem};

    use super::{ItemV1, parts};

    #[test]
    fn a_revision_in_parts_is_whole_at_the_last_one_only() {
        let event = |name: &str| Event::Delete { key: Key::try_from(name).unwrap(), revision: data::Revision(7) };
        let item = WatchItem::Events {
            revision: data::Revision(7),
            events: ["aaaa", "bbbb", "cccc"].map(event).into_iter().collect(),
        };
        let told = |parts: Vec<ItemV1>| -> Vec<(usize, bool)> {
            let part = |part: &ItemV1| match part {
                ItemV1::Events { revision: 7, events, whole } => (events.len(), *whole),
                other => panic!("{other:?}"),
            };
            parts.iter().map(part).collect()
        };
        assert_eq!(told(parts(&item, 1000)), [(3, true)]);
        assert_eq!(told(parts(&item, 8)), [(2, false), (1, true)]);
        assert_eq!(told(parts(&item, 1)), [(1, false), (1, false), (1, false), (0, true)]);
    }
}
