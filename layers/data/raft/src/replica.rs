//! One group's replica on this node: what it can do by itself, without asking a peer.
//! Used by the store for local requests and by `peers/serve.rs` for those of other nodes.

use std::sync::Arc;
use std::time::Duration;

use data::{LeaseGrant, LeaseId, LeaseInfo, NotServing, StoreError};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState};
use tokio::time::Instant;

use crate::gather::{self, Bounds};
use crate::machine::Shared;
use crate::members;
use crate::streams::limit::Turn;
use crate::surroundings::planted;
use crate::types::{LogId, Proposal, Raft, Reply, Types};
use crate::wal::lock;
use crate::way::LARGE;
use crate::witness;

/// Readers and keep-alives that share a round of a quorum.
const ROUNDS: Bounds = Bounds { groups: 1, callers: 4096, bytes: usize::MAX, crowd: None };

/// Who leads, as far as this node knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leader {
    Here,
    There(u64),
    Nobody,
}

/// A replica. Clones share it.
#[derive(Clone)]
pub(crate) struct Replica {
    pub raft: Raft,
    pub shared: Arc<Shared>,
}

impl Replica {
    /// Whether the log takes entries.
    pub(crate) fn serving(&self) -> Result<(), StoreError> {
        self.shared.wal.health().map_or(Ok(()), |reason| Err(StoreError::NotServing(reason)))
    }

    pub(crate) fn leader(&self) -> Leader {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        match metrics.current_leader {
            Some(_) if metrics.state == ServerState::Leader => Leader::Here,
            Some(leader) if leader != metrics.id && self.silent_leader().is_none() => Leader::There(leader),
            _ => Leader::Nobody,
        }
    }

    /// How long a follower has heard nothing of its leader, if that is longer than an election would take. The engine
    /// goes on naming a leader until there is another, which without a quorum there never is.
    pub(crate) fn silent_leader(&self) -> Option<Duration> {
        let silent = lock(&self.shared.heard).map(|heard| heard.elapsed())?;
        (silent > self.shared.options.election.1 * 2).then_some(silent)
    }

    /// Why requests are refused now, if they are.
    pub(crate) fn not_serving(&self) -> Option<NotServing> {
        let failed = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.running_state.as_ref().err().map(|error| match self.fatal(error) {
                StoreError::NotServing(reason) => reason,
                other => NotServing::Stopped { error: other.to_string().into() },
            })
        };
        let no_quorum = || {
            if self.shared.options.peers.is_some() {
                return self.no_quorum();
            }
            let leader = self.raft.metrics().borrow_watched().current_leader;
            leader.is_none().then_some(NotServing::NoLeader)
        };
        self.shared.wal.health().or(failed).or_else(no_quorum)
    }

    /// Why nothing can be decided now, if so.
    pub(crate) fn no_quorum(&self) -> Option<NotServing> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state == ServerState::Leader {
            if self.shared.options.is_witness() {
                drop(metrics);
                return Some(witness::leads(self, self.shared.options.node_id));
            }
            if metrics.membership_config.membership().voter_ids().count() < 2 {
                return None;
            }
            let silent = metrics.last_quorum_acked.as_ref()?.elapsed();
            drop(metrics);
            let lost = silent > self.shared.options.election.1 * 2;
            return lost.then(|| NotServing::NoQuorum { missing: members::missing(self) });
        }
        let leader = metrics.current_leader;
        let peers = self.shared.options.peers.as_ref();
        let refusal = || peers.and_then(|peers| peers.inner().troubles.refusal());
        let is_member = metrics.membership_config.membership().nodes().next().is_some();
        let Some((leader, silent)) = leader.zip(self.silent_leader()) else {
            if let Some(leader) = leader {
                let node = metrics.membership_config.membership().get_node(&leader);
                let is_witness = node.is_some_and(members::is_witness);
                drop(metrics);
                return is_witness.then(|| witness::leads(self, leader));
            }
            let Some(peers) = peers.filter(|_| !is_member) else {
                return Some(
                    refusal().map_or(NotServing::NoLeader, |why| NotServing::NoQuorum { missing: why.into() }),
                );
            };
            return Some(NotServing::Forming { waiting: peers.waiting() });
        };
        if let Some(why) = refusal() {
            return Some(NotServing::NoQuorum { missing: why.into() });
        }
        let node = metrics.membership_config.membership().get_node(&leader).map(members::name_and_address);
        let name = node.map_or("unknown", |(name, _)| name);
        let missing =
            format!("the leader {name} has not been heard for {} s, and no other was chosen", silent.as_secs());
        Some(NotServing::NoQuorum { missing: missing.into() })
    }

    /// Waits until somebody else leads than `known`, or so long.
    pub(crate) async fn leader_changes(&self, known: Leader, patience: Duration) {
        let mut server = self.raft.server_metrics();
        let change = async {
            while self.leader() == known {
                if server.changed().await.is_err() {
                    // The engine has ended. Who waits must not ask again at once, and again, without letting others run.
                    std::future::pending::<()>().await;
                }
            }
        };
        // Late is as good as never: whoever waits looks again.
        let _ = tokio::time::timeout(patience, change).await;
    }

    /// Puts a command through the log, as the leader; the answer and its index.
    pub(crate) async fn propose(&self, proposal: Proposal) -> Result<(u64, Reply), StoreError> {
        self.serving()?;
        witness::refuse(self)?;
        let mut admitted = self.shared.quotas.admit(proposal, || lock(&self.shared.view).state.clone());
        let Some(proposal) = admitted.proposal.take() else {
            return Ok((0, admitted.answers(Reply::Store(Vec::new()))));
        };
        let turn = self.turn(&proposal).await?;
        let asked = self.shared.wal.way().asked();
        match self.raft.client_write(proposal).await {
            Ok(written) => {
                // One that made way for others says nothing of how long it takes.
                if let Some(turn) = turn.filter(|_| asked == self.shared.wal.way().asked()) {
                    turn.answered();
                }
                Ok((written.log_id.index, admitted.answers(written.data)))
            }
            // Refused before it was appended.
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(self.elsewhere(&forward)),
            // It may be on disk, or not: nobody knows until the log is read again.
            Err(RaftError::APIError(_) | RaftError::Fatal(_)) => Err(StoreError::Unknown),
        }
    }

    /// Waits until a large entry of a stream may go: not for longer than its caller waits.
    async fn turn(&self, proposal: &Proposal) -> Result<Option<Turn>, StoreError> {
        let bytes = proposal.encoded.len();
        let Some(part) = self.shared.streams.as_ref().filter(|_| bytes >= LARGE) else { return Ok(None) };
        let waited = tokio::time::timeout(self.shared.options.patience, part.limit.enter(bytes)).await;
        let mut turn = waited.ok().flatten().ok_or(StoreError::Unknown)?;
        // It may have waited for the line so long that others have the way now.
        self.shared.wal.way().free().await;
        self.serving()?;
        turn.begin();
        Ok(Some(turn))
    }

    /// Up to where a reader must have applied, as the leader, after a quorum round begun now or later.
    pub(crate) async fn read_index(&self) -> Result<LogId, StoreError> {
        self.serving()?;
        let patience = self.shared.options.patience;
        self.shared.rounds.ask((), 0, patience).await?.ok_or(StoreError::Closed)
    }

    /// Answers whoever waits for a round: those that come during one share the next.
    pub(crate) async fn hold_rounds(self) {
        let Some(waiting) = lock(&self.shared.waiting_for_rounds).take() else { return };
        let round = |asked: Vec<()>, _| {
            let replica = self.clone();
            async move { Ok(vec![replica.round().await?; asked.len()]) }
        };
        gather::serve(waiting, ROUNDS, round).await;
    }

    async fn round(&self) -> Result<LogId, StoreError> {
        if planted("stale-read")
            && self.leader() == Leader::Here
            && let Some(applied) = lock(&self.shared.view).applied
        {
            return Ok(applied);
        }
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(*read.log_id()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(self.elsewhere(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(StoreError::NotServing(NotServing::NoQuorum { missing: members::missing(self) }))
            }
            Err(RaftError::Fatal(error)) => Err(self.fatal(&error)),
        }
    }

    /// Waits until this node has applied up to an entry.
    pub(crate) async fn applied(&self, upto: u64) -> Result<(), StoreError> {
        if lock(&self.shared.view).applied.is_some_and(|applied| applied.index >= upto) {
            return self.serving();
        }
        let waited = self.raft.wait(None).applied_index_at_least(Some(upto), "what is read was written").await;
        waited.map_err(|_| StoreError::Closed)?;
        self.serving()
    }

    /// Restarts a lease's time, as the leader: from when the request arrived, once a quorum round begun after that is over.
    pub(crate) async fn keep_alive(&self, lease: LeaseId, arrived: Instant) -> Result<LeaseGrant, StoreError> {
        witness::refuse(self)?;
        if !planted("keep-alive-without-quorum") {
            let upto = self.read_index().await?;
            self.applied(upto.index).await?;
        }
        let ttl = self.shared.view_lease(lease).map(|(ttl, _)| ttl);
        match ttl {
            Some(ttl) if lock(&self.shared.leases).keep_alive(lease, arrived.into_std()) => {
                Ok(LeaseGrant { lease, ttl })
            }
            _ => Err(StoreError::LeaseNotFound(lease)),
        }
    }

    /// What is left of a lease, as the leader sees it.
    pub(crate) async fn lease_info(&self, lease: LeaseId) -> Result<LeaseInfo, StoreError> {
        witness::refuse(self)?;
        let upto = self.read_index().await?;
        self.applied(upto.index).await?;
        let (ttl, keys) = self.shared.view_lease(lease).ok_or(StoreError::LeaseNotFound(lease))?;
        let remaining = lock(&self.shared.leases).remaining(lease, Instant::now().into_std()).unwrap_or_default();
        Ok(LeaseInfo { lease, ttl, remaining, keys })
    }

    pub(crate) fn fatal(&self, error: &Fatal<Types>) -> StoreError {
        match self.serving() {
            Err(reason) => reason,
            Ok(()) => StoreError::NotServing(NotServing::Stopped { error: error.to_string().into() }),
        }
    }

    fn elsewhere(&self, forward: &ForwardToLeader<Types>) -> StoreError {
        StoreError::NotServing(match (forward.leader_id, forward.reason) {
            (_, ForwardReason::LeaseExpired) => NotServing::NoQuorum { missing: members::missing(self) },
            (Some(leader), _) => NotServing::NotLeader { leader },
            (None, _) => NotServing::NoLeader,
        })
    }
}
