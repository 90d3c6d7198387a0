//! The `Store` over one Raft group: proposes, waits for apply, reads the applied state.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use data::{
    BoxFuture, Command, Consistency, KeyRange, LeaseGrant, LeaseId, LeaseInfo, MAX_TTL, MIN_TTL, NotServing, RaftRole,
    RangeRequest, RangeResult, Response, Revision, Status, Store, StoreError, StoreMetrics, Txn, TxnOutcome,
    WatchStream,
};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::{ReadPolicy, ServerState};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::node::Node;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::types::{Proposal, Types};
use crate::wal::lock;

/// Most bytes of proposals on their way at once; further callers wait their turn.
const IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// A permit of the bound above.
const PERMIT_BYTES: usize = 1024;

/// The embedded store. Dropping it stops it (and waits for that); [`Store::close`] does the same without blocking.
pub struct RaftStore {
    node: Node,
    in_flight: Semaphore,
}

impl RaftStore {
    /// Opens a data directory, making it if absent, and returns once it serves. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`]; the text says what to do.
    pub fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        let node = Node::start(options)?;
        Ok(Arc::new(Self { node, in_flight: Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES) }))
    }

    /// Takes a snapshot now and purges the log behind it.
    ///
    /// # Errors
    /// [`StoreError::NotServing`] or [`StoreError::Closed`]; the store goes on as before.
    pub async fn snapshot(&self) -> Result<(), StoreError> {
        self.serving()?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.node.snapshot_requests.send(sender).await.map_err(|_| StoreError::Closed)?;
        let taken = receiver.await.map_err(|_| StoreError::Closed)?;
        taken.map_err(|error| StoreError::NotServing(NotServing::SnapshotFailed { error: error.to_string().into() }))
    }

    fn serving(&self) -> Result<(), StoreError> {
        if self.in_flight.is_closed() {
            return Err(StoreError::Closed);
        }
        self.node.shared.wal.health().map_or(Ok(()), |reason| Err(StoreError::NotServing(reason)))
    }

    async fn propose(&self, command: Command, bytes: usize) -> Result<Response, StoreError> {
        self.serving()?;
        let _turn = self.turn(bytes).await?;
        self.serving()?;
        match self.node.raft.client_write(Proposal(Arc::new(command))).await {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            // It may be on disk, or not: nobody knows until the log is read again.
            Err(RaftError::APIError(_) | RaftError::Fatal(_)) => Err(StoreError::Unknown),
        }
    }

    async fn turn(&self, bytes: usize) -> Result<SemaphorePermit<'_>, StoreError> {
        let permits = u32::try_from(1 + bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        self.in_flight.acquire_many(permits).await.map_err(|_| StoreError::Closed)
    }

    async fn linearize(&self) -> Result<(), StoreError> {
        self.serving()?;
        match self.node.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => self.serving(),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(StoreError::NotServing(NotServing::NoLeader))
            }
            Err(RaftError::Fatal(error)) => Err(self.fatal(&error)),
        }
    }

    fn fatal(&self, error: &Fatal<Types>) -> StoreError {
        match self.serving() {
            Err(reason) => reason,
            Ok(()) => StoreError::NotServing(NotServing::Stopped { error: error.to_string().into() }),
        }
    }

    async fn run_txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.validate()?;
        let options = &self.node.shared.options;
        let bytes = txn.bytes();
        let command = Command::Txn { txn, quota_bytes: options.quota_bytes };
        match self.propose(command, bytes).await {
            Ok(Response::Txn { succeeded: true, revision, results }) => {
                Ok(TxnOutcome::Committed { revision, results, durability: options.durability })
            }
            Ok(Response::Txn { succeeded: false, revision, results }) => Ok(TxnOutcome::Rejected { revision, results }),
            Ok(Response::Failed(error)) => Err(error),
            Ok(_) | Err(StoreError::Unknown) => Ok(TxnOutcome::Unknown),
            Err(error) => Err(error),
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseGrant, StoreError> {
        let arrived = Instant::now();
        self.linearize().await?;
        let shared = &self.node.shared;
        let ttl = shared.view_lease(lease).map(|(ttl, _)| ttl);
        match ttl {
            Some(ttl) if lock(&shared.leases).keep_alive(lease, arrived) => Ok(LeaseGrant { lease, ttl }),
            _ => Err(StoreError::LeaseNotFound(lease)),
        }
    }
}

impl Store for RaftStore {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(self.run_txn(txn))
    }

    fn range(&self, request: RangeRequest, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, StoreError>> {
        Box::pin(async move {
            if self.in_flight.is_closed() {
                return Err(StoreError::Closed);
            }
            if consistency == Consistency::Linearizable {
                self.linearize().await?;
            }
            // A clone is O(1): the scan holds up nobody.
            let state = lock(&self.node.shared.view).state.clone();
            Ok(state.range(&request))
        })
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream, StoreError> {
        self.node.shared.hub.subscribe(range, from).ok_or(StoreError::Closed)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(async move {
            if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
                return Err(StoreError::Invalid { what: "a lease lives between 100 milliseconds and one day" });
            }
            match self.propose(Command::LeaseGrant { ttl }, 0).await? {
                Response::LeaseGranted { lease, ttl } => Ok(LeaseGrant { lease, ttl }),
                Response::Failed(error) => Err(error),
                _ => Err(StoreError::Unknown),
            }
        })
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(self.keep_alive(lease))
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            match self.propose(Command::LeaseRevoke { lease }, 0).await? {
                Response::LeaseEnded { revision, .. } => Ok(revision),
                Response::Failed(error) => Err(error),
                _ => Err(StoreError::Unknown),
            }
        })
    }

    fn lease_info(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseInfo, StoreError>> {
        Box::pin(async move {
            self.linearize().await?;
            let shared = &self.node.shared;
            let (ttl, keys) = shared.view_lease(lease).ok_or(StoreError::LeaseNotFound(lease))?;
            let remaining = lock(&shared.leases).remaining(lease, Instant::now()).unwrap_or_default();
            Ok(LeaseInfo { lease, ttl, remaining, keys })
        })
    }

    fn status(&self) -> Status {
        let metrics = self.node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let shared = &self.node.shared;
        let (wal_bytes, last_fsync) = shared.wal.size_and_last_fsync();
        let failed = metrics.running_state.as_ref().err().map(|error| match self.fatal(error) {
            StoreError::NotServing(reason) => reason,
            other => NotServing::Stopped { error: other.to_string().into() },
        });
        let no_leader = metrics.current_leader.is_none().then_some(NotServing::NoLeader);
        let view = lock(&shared.view);
        Status {
            role: role(metrics.state),
            leader: metrics.current_leader,
            term: metrics.current_term,
            revision: view.state.revision(),
            applied_index: view.applied.map_or(0, |applied| applied.index),
            used_bytes: view.state.used_bytes(),
            quota_bytes: shared.options.quota_bytes,
            wal_bytes,
            last_fsync,
            durability: shared.options.durability,
            not_serving: shared.wal.health().or(failed).or(no_leader),
        }
    }

    fn metrics(&self) -> StoreMetrics {
        let mut metrics = self.node.shared.wal.metrics();
        metrics.snapshot_failures = self.node.shared.snapshots.failures.load(Ordering::Relaxed);
        (metrics.watchers, metrics.lagged_watchers) = self.node.shared.hub.counts();
        metrics
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.in_flight.close();
            self.node.begin_stop();
            let mut stopped = self.node.stopped.clone();
            stopped.wait_for(|stopped| *stopped).await.map_err(|_| StoreError::Unknown)?;
            self.node.shared.wal.health().map_or(Ok(()), |reason| Err(StoreError::NotServing(reason)))
        })
    }
}

fn role(state: ServerState) -> RaftRole {
    match state {
        ServerState::Learner => RaftRole::Learner,
        ServerState::Follower => RaftRole::Follower,
        ServerState::Candidate => RaftRole::Candidate,
        ServerState::Leader => RaftRole::Leader,
        ServerState::Shutdown => RaftRole::Stopped,
    }
}

fn not_leader(forward: &ForwardToLeader<Types>) -> StoreError {
    StoreError::NotServing(forward.leader_id.map_or(NotServing::NoLeader, |leader| NotServing::NotLeader { leader }))
}
