//! What a store says about itself, for `seawall status` and readiness.

use std::fmt;
use std::time::Duration;

use model::Revision;

use crate::NotServing;

/// What an acknowledgement is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// Flushed to disk on a majority before the acknowledgement.
    #[default]
    Sync,
    /// Written, and flushed soon after: a power cut may lose the last moments. A process crash loses nothing.
    Async,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sync => "sync",
            Self::Async => "async",
        })
    }
}

/// A node's part in consensus.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RaftRole {
    /// Replicates without a vote.
    Learner,
    /// Votes and follows.
    Follower,
    /// Seeks votes.
    Candidate,
    /// Leads.
    Leader,
    /// Has no part in it: an agent, which asks servers.
    Remote,
    /// Stopped.
    Stopped,
}

impl fmt::Display for RaftRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Learner => "learner",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Remote => "remote",
            Self::Stopped => "stopped",
        })
    }
}

/// One moment of a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// This node's part.
    pub role: RaftRole,
    /// The leader's node id, if one is known.
    pub leader: Option<u64>,
    /// Consensus term.
    pub term: u64,
    /// The store's revision.
    pub revision: Revision,
    /// Last log index applied.
    pub applied_index: u64,
    /// Bytes of keys and values, with overhead, that count against the quota.
    pub used_bytes: u64,
    /// Bytes allowed.
    pub quota_bytes: u64,
    /// Bytes of log on disk, preallocated space included.
    pub wal_bytes: u64,
    /// How long the last flush took.
    pub last_fsync: Option<Duration>,
    /// What acknowledgements are worth.
    pub durability: Durability,
    /// Why writes are refused; `None` while serving.
    pub not_serving: Option<NotServing>,
}
