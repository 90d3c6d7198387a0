//! Errors of the store. Each says whether the request may have had an effect.

use std::sync::Arc;

use crate::LeaseId;

/// Why a request failed. All but [`StoreError::Unknown`] are certain: nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
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
    /// The store, or the part of it that the key's owner may have, is full. Deletes still work.
    #[error("{used} of {quota} bytes are taken and this write does not fit: delete keys first")]
    QuotaExceeded {
        /// Bytes in use.
        used: u64,
        /// Bytes allowed.
        quota: u64,
    },
    /// The request contradicts itself. A retry fails again.
    #[error("{what}")]
    Invalid {
        /// The fault and the rule.
        what: &'static str,
    },
    /// No such lease: it was revoked, has expired or never was. Grant a new one.
    #[error("lease {0} does not exist (expired or revoked): grant a new one")]
    LeaseNotFound(LeaseId),
    /// The node takes no requests of this kind now.
    #[error("the store is not serving: {0}")]
    NotServing(NotServing),
    /// The store was closed by its owner.
    #[error("the store is closed")]
    Closed,
    /// The request may or may not have taken effect (lease calls only; a txn says so in its outcome).
    #[error("the outcome is unknown: it may have taken effect")]
    Unknown,
}

/// Why a node does not serve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotServing {
    /// Recovery is not finished. A retry may succeed.
    #[error("starting: the log is being replayed")]
    Starting,
    /// No leader is known. A retry may succeed.
    #[error("no leader is known")]
    NoLeader,
    /// Another voter leads. Ask it.
    #[error("node {leader} is the leader")]
    NotLeader {
        /// The leader's node id.
        leader: u64,
    },
    /// The cluster's leader does not serve. A retry may succeed.
    #[error("the leader {node} is not serving: {reason}")]
    Elsewhere {
        /// The leader's name.
        node: Arc<str>,
        /// Its words.
        reason: Arc<str>,
    },
    /// This node belongs to no cluster yet. A retry may succeed.
    #[error("the cluster is not formed yet: {waiting}")]
    Forming {
        /// For whom it waits, and why.
        waiting: Arc<str>,
    },
    /// Too few voters can be reached to decide anything. A retry may succeed once they are back.
    #[error("no quorum: {missing}; nothing can be decided until a majority of the voters can be reached again")]
    NoQuorum {
        /// Who is missing, since when.
        missing: Arc<str>,
    },
    /// A lease cannot go on without a quorum: not every other voter agrees.
    #[error("not every voter lets the lease go on: {why}")]
    Unconfirmed {
        /// Who does not, and why.
        why: Arc<str>,
    },
    /// Of an agent: the server that it asked does not serve.
    #[error("server {node}: {reason}")]
    Server {
        /// The server's name.
        node: Arc<str>,
        /// Its words.
        reason: Arc<str>,
        /// A retry may succeed.
        may_pass: bool,
    },
    /// Of an agent: it reaches no server. A retry may succeed.
    #[error(
        "no server of the cluster has answered {since}{why}; look whether one runs, and whether it can be reached from here"
    )]
    Unreachable {
        /// Since when.
        since: Arc<str>,
        /// What went wrong with each address, in brackets; or nothing.
        why: Arc<str>,
    },
    /// This node votes and keeps the log, and has no data. Ask another node.
    #[error("this node is a witness, which keeps no keys and no streams: ask another node")]
    Witness,
    /// This node is an agent. Ask a server.
    #[error("this node is an agent, which keeps no data: ask a server")]
    Agent,
    /// A flush failed; the log is closed for good, reads of the last state remain.
    #[error(
        "a flush of {file} failed ({error}); what it held may be lost, so it is never retried. \
         Check the disk, then restart this node: it keeps everything acknowledged"
    )]
    FlushFailed {
        /// The file.
        file: Arc<str>,
        /// The operating system's words.
        error: Arc<str>,
    },
    /// A write failed; the log is closed for good, reads of the last state remain.
    #[error(
        "writing {file} failed ({error}). Check the disk, then restart this node: it keeps everything acknowledged"
    )]
    WriteFailed {
        /// The file.
        file: Arc<str>,
        /// The operating system's words.
        error: Arc<str>,
    },
    /// No space left; the node is read-only.
    #[error(
        "the disk under {directory} is full, the node is read-only. \
         Free at least {need_bytes} bytes there (or enlarge the disk), then restart this node"
    )]
    DiskFull {
        /// The data directory.
        directory: Arc<str>,
        /// What a restart needs.
        need_bytes: u64,
    },
    /// A snapshot could not be written; the store goes on, its log grows.
    #[error("a snapshot could not be written ({error}); the log keeps everything until one can")]
    SnapshotFailed {
        /// What failed.
        error: Arc<str>,
    },
    /// The consensus engine stopped.
    #[error("the consensus engine stopped ({error}). Restart this node; its log is intact")]
    Stopped {
        /// Its words.
        error: Arc<str>,
    },
}

impl NotServing {
    /// Nothing was done, and the same request may be taken a moment later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Starting
            | Self::NoLeader
            | Self::NotLeader { .. }
            | Self::NoQuorum { .. }
            | Self::Elsewhere { .. }
            | Self::Unreachable { .. }
            | Self::Forming { .. } => true,
            Self::Server { may_pass, .. } => *may_pass,
            Self::Witness
            | Self::Agent
            | Self::Unconfirmed { .. }
            | Self::FlushFailed { .. }
            | Self::WriteFailed { .. }
            | Self::DiskFull { .. }
            | Self::SnapshotFailed { .. }
            | Self::Stopped { .. } => false,
        }
    }
}
