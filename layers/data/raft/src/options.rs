//! What a store is opened with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use data::{DEFAULT_MAX_BYTES, DEFAULT_QUOTA_BYTES, Durability, HistoryLimits, Retention};

use crate::{Disk, Peers, RealDisk};

/// Options of a [`RaftStore`](crate::RaftStore). Start from [`Options::new`].
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory; made if absent.
    pub directory: PathBuf,
    /// This node's number in the group; never reused for another directory. With `peers`, a new directory draws its own.
    pub node_id: u64,
    /// The Raft group (0: control and KV).
    pub group: u16,
    /// What an acknowledgement is worth.
    pub durability: Durability,
    /// With [`Durability::Async`]: the longest time until a write is flushed.
    pub flush_interval: Duration,
    /// Size of a log segment, reserved when it is begun.
    pub segment_bytes: u64,
    /// A snapshot is taken after this many log entries,
    pub snapshot_entries: u64,
    /// or after this many bytes of log, whichever comes first.
    pub snapshot_log_bytes: u64,
    /// Most bytes of keys and values.
    pub quota_bytes: u64,
    /// What each stream keeps (no effect on the store).
    pub retention: Retention,
    /// Space held back for an orderly stop when the disk is full; 0 holds back none.
    pub reserve_bytes: u64,
    /// History kept for watches from a past revision.
    pub history: HistoryLimits,
    /// Ask before an election whether it could be won (no effect with one voter).
    pub pre_vote: bool,
    /// Entries kept in the log behind a snapshot, for followers that are a little behind.
    pub entries_behind_snapshot: u64,
    /// Bytes of log kept behind a snapshot at most, in whole segments, however few entries that are.
    pub bytes_behind_snapshot: u64,
    /// Time without a leader after which a voter seeks votes, at least and at most.
    pub election: (Duration, Duration),
    /// Longest time a request waits for a leader and a quorum.
    pub patience: Duration,
    /// Of a witness: most bytes of a group's log on disk for the sake of a voter that is away, before that one loses its vote.
    pub witness_log_bytes: u64,
    /// The other nodes; without them the group has this one voter.
    pub peers: Option<Peers>,
    /// The disk.
    pub disk: Arc<dyn Disk>,
}

impl Options {
    /// Whether this node votes and keeps the log, and has no data.
    pub(crate) fn is_witness(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| peers.inner().options.witness)
    }

    /// The defaults, on a directory.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            node_id: 1,
            group: 0,
            durability: Durability::Sync,
            flush_interval: Duration::from_millis(50),
            segment_bytes: 16 * 1024 * 1024,
            snapshot_entries: 50_000,
            snapshot_log_bytes: 32 * 1024 * 1024,
            quota_bytes: DEFAULT_QUOTA_BYTES,
            retention: Retention { max_bytes: DEFAULT_MAX_BYTES, max_age_ms: None },
            reserve_bytes: 4 * 1024 * 1024,
            history: HistoryLimits::default(),
            pre_vote: true,
            entries_behind_snapshot: 0,
            bytes_behind_snapshot: 32 * 1024 * 1024,
            election: (Duration::from_millis(150), Duration::from_millis(300)),
            patience: Duration::from_secs(5),
            witness_log_bytes: 1024 * 1024 * 1024,
            peers: None,
            disk: Arc::new(RealDisk),
        }
    }
}
