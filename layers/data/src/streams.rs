//! The `Streams` trait: op-logs of services, a seam of its own beside the `Store`, so that a noisy service delays no
//! lease and no promotion. Entries have offsets from 0 on, without gaps; what was appended once is never there twice.
//! Deliberately absent: I/O, clocks inside [`StreamsState::apply`], consumer groups, and offsets shared by streams.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::{BoxFuture, Consistency, Durability, NotServing, StoreError};

mod name;
mod state;

pub use name::{MAX_NAME_BYTES, Name};
pub use state::{
    ENTRY_OVERHEAD, Place, ProducerRecord, Retention, SegmentRecord, StreamAnswer, StreamCommand, StreamRecord,
    StreamRequest, StreamsState,
};

/// Longest entry, in bytes; the same as a value of the store.
pub const MAX_ENTRY_BYTES: usize = 512 * 1024;
/// Most streams.
pub const MAX_STREAMS: usize = 256;
/// Most producers that a stream remembers.
pub const MAX_PRODUCERS: usize = 512;
/// A producer that appended nothing for so long may be forgotten to make room for another, and never before.
pub const PRODUCER_IDLE: Duration = Duration::from_secs(3600);
/// Sequence numbers of a producer whose repetition gets the first offset again: the newest so many.
pub const REMEMBERED_SEQS: usize = 16;
/// Most cursors of a stream.
pub const MAX_CURSORS: usize = 256;
/// Most entries of one read.
pub const MAX_READ_ENTRIES: usize = 1000;
/// Most bytes of entries of one read; a single entry is always given.
pub const MAX_READ_BYTES: usize = 4 * 1024 * 1024;
/// Bytes a stream keeps unless configured otherwise.
pub const DEFAULT_MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Fewest bytes that a stream may be held to.
pub const MIN_MAX_BYTES: u64 = 1024 * 1024;

/// What is appended, by whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// To which stream; one that does not exist is made.
    pub stream: Name,
    /// Who appends, and its how-manieth entry this is, from 1 on without gaps. Without it a repetition is a second entry.
    pub producer: Option<(Name, u64)>,
    /// The epoch in which the producer acts.
    pub epoch: Option<u64>,
    /// The entry.
    pub entry: Bytes,
}

/// An entry has its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    /// Its offset.
    pub offset: u64,
    /// It was there already: this append is a repetition.
    pub repeated: bool,
    /// What the acknowledgement is worth.
    pub durability: Durability,
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamEntry {
    /// Its offset.
    pub offset: u64,
    /// When the leader took it, in milliseconds since the Unix epoch; never less than that of the entry before.
    pub at_ms: u64,
    /// Its bytes.
    pub data: Bytes,
}

/// What one read found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamRead {
    /// Consecutive entries from the wanted offset on; none if there are none yet.
    pub entries: Vec<StreamEntry>,
    /// The offset that the next entry of the stream will get.
    pub next: u64,
}

/// One stream, described.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamInfo {
    /// Its name.
    pub name: Name,
    /// The oldest offset that is kept.
    pub first: u64,
    /// The offset that the next entry will get.
    pub next: u64,
    /// Bytes kept, [`ENTRY_OVERHEAD`] for each entry included.
    pub bytes: u64,
    /// The newest epoch it was sealed with.
    pub sealed: Option<u64>,
    /// Each producer's newest sequence number.
    pub producers: BTreeMap<Name, u64>,
    /// Each cursor's offset.
    pub cursors: BTreeMap<Name, u64>,
}

/// Why a request about a stream failed. All but [`StreamError::Unknown`] are certain: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// There is no such stream.
    #[error("no stream `{0}`")]
    NotFound(Name),
    /// There is no such cursor.
    #[error("no cursor `{0}`")]
    NoCursor(Name),
    /// The sequence number leaves a gap, or is older than what is remembered.
    #[error("the producer's next sequence number is {expected}")]
    OutOfSequence {
        /// The one that would be taken.
        expected: u64,
    },
    /// The stream is sealed, and the request carries an older epoch, or none.
    #[error("the stream is sealed with epoch {epoch}")]
    Fenced {
        /// The epoch in force.
        epoch: u64,
    },
    /// The wanted entries are no longer kept.
    #[error("entries before offset {first} are no longer kept")]
    Trimmed {
        /// The oldest that is.
        first: u64,
    },
    /// The offset is past the end.
    #[error("the stream ends at offset {next}")]
    PastEnd {
        /// The offset the next entry will get.
        next: u64,
    },
    /// Over a size limit. A retry fails again.
    #[error("{what} has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// There are as many as may be.
    #[error("there are {limit} {0} already, which is the limit", limit = .0.limit())]
    Full(Counted),
    /// The request contradicts itself. A retry fails again.
    #[error("{what}")]
    Invalid {
        /// The fault and the rule.
        what: &'static str,
    },
    /// The node takes no requests of this kind now.
    #[error("streams are not served: {0}")]
    NotServing(NotServing),
    /// Kept entries cannot be read on this node: its disk lost or changed them.
    #[error("entries on this node's disk are damaged: {what}")]
    Damaged {
        /// Which file, and where.
        what: String,
    },
    /// The streams were closed by their owner.
    #[error("the store is closed")]
    Closed,
    /// The request may or may not have taken effect. With a producer and its sequence number it may be repeated safely.
    #[error("the outcome is unknown: it may have taken effect")]
    Unknown,
}

/// What there may be only so many of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// [`MAX_STREAMS`].
    Streams,
    /// [`MAX_PRODUCERS`].
    Producers,
    /// [`MAX_CURSORS`].
    Cursors,
}

impl Counted {
    /// So many.
    pub fn limit(self) -> usize {
        match self {
            Self::Streams => MAX_STREAMS,
            Self::Producers => MAX_PRODUCERS,
            Self::Cursors => MAX_CURSORS,
        }
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Streams => "streams",
            Self::Producers => "producers of this stream within an hour",
            Self::Cursors => "cursors of this stream",
        })
    }
}

impl From<StoreError> for StreamError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotServing(reason) => Self::NotServing(reason),
            StoreError::TooLarge { what, bytes, limit } => Self::TooLarge { what, bytes, limit },
            StoreError::Invalid { what } => Self::Invalid { what },
            StoreError::Closed => Self::Closed,
            // The other two belong to keys and leases, of which streams have none.
            StoreError::Unknown | StoreError::QuotaExceeded { .. } | StoreError::LeaseNotFound(_) => Self::Unknown,
        }
    }
}

/// Counters and sizes of one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamsMetrics {
    /// Entries applied since the start, repetitions not counted.
    pub appended_entries: u64,
    /// Their bytes.
    pub appended_bytes: u64,
    /// Bytes kept, by stream; at most [`MAX_STREAMS`].
    pub kept_bytes: BTreeMap<Name, u64>,
    /// Bytes of log on disk, preallocated space included.
    pub log_bytes: u64,
    /// How often it was asked to give way since the streams were opened ([`Streams::give_way`]).
    pub gave_way: u64,
    /// How many bytes of large entries this node would work on at once, as the leader.
    pub limit_bytes: u64,
}

/// Who is to give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// This node: the others are told otherwise.
    Here,
    /// This node and every other member that can be reached.
    Everywhere,
}

/// What waits where streams give way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Waits {
    /// Large entries that are asked for from now on.
    Coming,
    /// Those that are under way, too, before they are flushed: not when something is about to be done with a stream, which
    /// would stand behind them.
    UnderWay,
}

/// Op-logs with offsets, cursors and fencing.
///
/// Dropping a future abandons the wait, not the request: an append may still be committed.
pub trait Streams: Send + Sync + 'static {
    /// Appends one entry, once: a repetition of the same producer and sequence number gets the first one's offset.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, StreamError>>;

    /// Reads entries from an offset on, at most `limit` ([`MAX_READ_ENTRIES`]) and [`MAX_READ_BYTES`].
    fn read(
        &self,
        stream: Name,
        from: u64,
        limit: usize,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<StreamRead, StreamError>>;

    /// Waits until this node has applied an entry at `offset` or after it, at most so long; whether there is one.
    fn wait(&self, stream: Name, offset: u64, patience: Duration) -> BoxFuture<'_, Result<bool, StreamError>>;

    /// Notes how far somebody has come: the offset that it will read next.
    fn commit(&self, stream: Name, cursor: Name, offset: u64) -> BoxFuture<'_, Result<(), StreamError>>;

    /// Where a cursor stands.
    fn cursor(&self, stream: Name, cursor: Name) -> BoxFuture<'_, Result<u64, StreamError>>;

    /// From now on only appends that carry this epoch or a newer one are taken; the offset at which the older ones end.
    /// Makes the stream if it does not exist. The same epoch again gets the same answer.
    fn seal(&self, stream: Name, epoch: u64) -> BoxFuture<'_, Result<u64, StreamError>>;

    /// Removes a stream with its cursors, producers and seal. One sealed is removed only with its epoch or a newer one,
    /// or by somebody who names none.
    fn delete(&self, stream: Name, epoch: Option<u64>) -> BoxFuture<'_, Result<(), StreamError>>;

    /// All streams by name.
    fn list(&self, consistency: Consistency) -> BoxFuture<'_, Result<Vec<StreamInfo>, StreamError>>;

    /// One stream.
    fn describe(&self, stream: Name, consistency: Consistency) -> BoxFuture<'_, Result<StreamInfo, StreamError>>;

    /// Something urgent goes on, such as a promotion: for a tenth of a second from now on, large entries are appended one
    /// after the other at each member that hears of it, so that they take little of processors and disk. Nobody is told
    /// whether it was heard; entries that are under way go on.
    fn give_way(&self, reach: Reach, waits: Waits);

    /// Why requests are refused now, if they are.
    fn not_serving(&self) -> Option<NotServing>;

    /// This moment's counters.
    fn metrics(&self) -> StreamsMetrics;

    /// Flushes, stops and releases everything. Requests after it get [`StreamError::Closed`]; a second call does nothing.
    fn close(&self) -> BoxFuture<'_, Result<(), StreamError>>;
}
