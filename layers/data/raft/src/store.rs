//! The `Store` over one Raft group: what the leader must do is done here or there, what was applied is read here.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use data::{
    BoxFuture, Command, Consistency, KeyRange, LeaseGrant, LeaseId, LeaseInfo, MAX_TTL, MIN_TTL, NotServing, Op,
    OpResult, RaftRole, RangeRequest, RangeResult, Response, Revision, Status, Store, StoreError, StoreMetrics,
    StreamError, Txn, TxnOutcome, WatchStream,
};
use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::failsafe;
use crate::gather::{self, Bounds, Line};
use crate::leading::{self, Again, Ask};
use crate::members::{self, Members};
use crate::node::Node;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::peers::Lane;
use crate::peers::frame::Kind;
use crate::peers::message::{ChangeV1, LeaseInfoV1, ResponseV1, payload};
use crate::replica::{Leader, Replica};
use crate::saved::Saving;
use crate::streams::{RaftStreams, StreamOptions};
use crate::surroundings::planted;
use crate::transport::{CertificateAnswer, CertificateRequest, Certifier};
use crate::types::{self, Proposal, Reply};
use crate::wal::lock;
use crate::wire::{self, DecodeError, LogIdV1};

/// Most bytes of proposals on their way at once; further callers wait their turn.
const IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// A permit of the bound above.
const PERMIT_BYTES: usize = 1024;
/// Writers whose commands go into the log as one entry. Two entries on their way keep the disk busy; more would make
/// them smaller.
const WRITES: Bounds = Bounds { groups: 2, callers: 512, bytes: 1024 * 1024, crowd: None };
/// Readers that share one round of a quorum. From some ten thousand a second on, a node asks for a round once in about
/// two milliseconds, and in four from twice as many on; below that, readers do not wait for each other.
const READS: Bounds =
    Bounds { groups: 1, callers: 4096, bytes: usize::MAX, crowd: Some((16, Duration::from_millis(1))) };

/// The embedded store. Dropping it stops it (and waits for that); [`Store::close`] does the same without blocking.
pub struct RaftStore {
    node: Node,
    in_flight: Semaphore,
    writes: Line<Command, Response>,
    reads: Line<(), ()>,
    /// Those that were opened beside it.
    streams: Mutex<Weak<RaftStreams>>,
}

impl RaftStore {
    /// Opens a data directory, making it if absent. A voter without peers serves on return; one with peers serves as
    /// soon as there is a leader. Blocks on the disk.
    ///
    /// # Errors
    /// [`OpenError`]; the text says what to do.
    pub fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        Ok(Self::over(Node::start(options, None)?))
    }

    fn over(node: Node) -> Arc<Self> {
        let ((writes, writers), (reads, readers)) = (Line::new(), Line::new());
        let replica = node.replica.clone();
        node.spawn(gather::serve(writers, WRITES, move |commands, left| write(replica.clone(), commands, left)));
        let replica = node.replica.clone();
        node.spawn(gather::serve(readers, READS, move |readers, left| linearize(replica.clone(), readers.len(), left)));
        let store = Arc::new(Self {
            node,
            in_flight: Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES),
            writes,
            reads,
            streams: Mutex::default(),
        });
        if let Some(peers) = &store.replica().shared.options.peers {
            *lock(&peers.inner().agents.store) = Arc::downgrade(&store);
        }
        store
    }

    /// The same in a world that [`simulate`](crate::simulate) has made of this thread: the store lives as tasks of the
    /// `LocalSet` that this is called in, and ends with it.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub async fn open_simulated(options: Options) -> Result<Arc<Self>, OpenError> {
        Ok(Self::over(Node::start_simulated(options, None).await?))
    }

    /// Opens the streams beside the store: another group of the same members, with a log of its own in a folder within.
    /// They must be closed first. Blocks on the disk.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_streams(&self, options: StreamOptions) -> Result<Arc<RaftStreams>, OpenError> {
        let streams = RaftStreams::open(options, self.replica())?;
        *lock(&self.streams) = Arc::downgrade(&streams);
        Ok(streams)
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

    /// Everything in the store and its streams as of now, to be saved to a file: not older than whatever was acknowledged
    /// before.
    ///
    /// # Errors
    /// As for a linearizable read.
    pub async fn save(&self) -> Result<Saving, StoreError> {
        if self.replica().shared.options.is_witness() {
            return Err(StoreError::NotServing(NotServing::Witness));
        }
        // The streams first: see `saved`.
        let streams = lock(&self.streams).upgrade();
        let streams = match streams {
            Some(streams) => Some(streams.to_save().await.map_err(in_streams)?),
            None => None,
        };
        self.linearize().await?;
        let replica = self.replica();
        let mut image = replica.shared.image().ok_or(StoreError::NotServing(NotServing::Starting))?;
        let (state, pieces) = streams.unzip();
        image.streams = state;
        Ok(Saving::new(&replica.shared, image, pieces))
    }

    /// What signs certificates for other nodes, at the door and for members. Nobody is served before, or where nodes have
    /// no certificates.
    pub fn certify_with(&self, certifier: Certifier) {
        let peers = self.replica().shared.options.peers.as_ref();
        if let Some(door) = peers.and_then(|peers| peers.inner().transport.door()) {
            door.open(certifier);
        }
    }

    /// Asks the other members, one after the other, for a certificate. [`CertificateAnswer::Elsewhere`]: none of those
    /// that answer can sign.
    pub async fn certificate(&self, request: &CertificateRequest) -> CertificateAnswer {
        let options = &self.replica().shared.options;
        let Some(peers) = &options.peers else { return CertificateAnswer::Elsewhere };
        for member in members::list(self.replica()).members.iter().filter(|member| member.id != options.node_id) {
            match peers.certificate(member.id, request).await {
                Ok(CertificateAnswer::Elsewhere) => {}
                Ok(answer) => return answer,
                Err(error) => tracing::debug!(node = member.name, %error, "it signs nothing now"),
            }
        }
        CertificateAnswer::Elsewhere
    }

    /// Holds the keys of owners ([`data::Key::owner`]) to so many bytes, by name, as long as this node leads: every node
    /// must be told the same. Who is not named is held to nothing but the store's own quota.
    pub fn hold_to(&self, quotas: BTreeMap<String, u64>) {
        self.replica().shared.quotas.set(quotas);
    }

    /// The members as the leader sees them; without a leader, as this node knows them.
    pub async fn members(&self) -> Members {
        let here = |replica: Replica| async move { Ok(members::list(&replica)) };
        let asked =
            self.at_leader(Lane::Control, Kind::Members, Bytes::new(), Duration::from_millis(500), here, decoded);
        let list = asked.await.unwrap_or_else(|_| members::list(self.replica()));
        members::described(self.replica(), &list)
    }

    /// Takes a member out: it may be gone for good already.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if there is none of this name or it is the last voter; as for transactions else.
    pub async fn remove_member(&self, name: &str) -> Result<Members, StoreError> {
        self.change(ChangeV1::Remove { name: name.to_owned() }).await
    }

    /// Makes another voter the leader.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if no voter has this name; as for transactions else.
    pub async fn transfer_leader(&self, name: &str) -> Result<Members, StoreError> {
        self.change(ChangeV1::Transfer { name: name.to_owned() }).await
    }

    async fn change(&self, change: ChangeV1) -> Result<Members, StoreError> {
        let asked = payload(&change);
        let here = move |replica: Replica| {
            let change = change.clone();
            async move { members::change(&replica, change).await }
        };
        let patience = self.replica().shared.options.patience;
        let list = self.at_leader(Lane::Control, Kind::Change, asked, patience, here, decoded).await?;
        Ok(members::described(self.replica(), &list))
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.node.replica
    }

    fn serving(&self) -> Result<(), StoreError> {
        if self.in_flight.is_closed() {
            return Err(StoreError::Closed);
        }
        self.replica().serving()
    }

    async fn turn(&self, bytes: usize) -> Result<SemaphorePermit<'_>, StoreError> {
        let permits = u32::try_from(1 + bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        self.in_flight.acquire_many(permits).await.map_err(|_| StoreError::Closed)
    }

    async fn propose(&self, command: Command, bytes: usize) -> Result<Response, StoreError> {
        self.serving()?;
        let _turn = self.turn(bytes).await?;
        let patience = self.replica().shared.options.patience;
        self.writes.ask(command, bytes, patience).await?.ok_or(StoreError::Unknown)
    }

    async fn linearize(&self) -> Result<(), StoreError> {
        let patience = self.replica().shared.options.patience;
        self.reads.ask((), 0, patience).await?.ok_or(StoreError::Closed)
    }

    /// Has something done where the leader is, see [`leading::at_leader`].
    async fn at_leader<T, F>(
        &self,
        lane: Lane,
        kind: Kind,
        asked: Bytes,
        patience: Duration,
        here: impl Fn(Replica) -> F,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let ask = ask(lane, kind, asked, patience);
        leading::at_leader(self.replica(), || self.serving(), ask, here, decode).await
    }

    async fn run_txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.validate()?;
        let options = &self.replica().shared.options;
        let bytes = txn.bytes();
        let quota_bytes = txn.quota_of(options.quota_bytes);
        let command = Command::Txn { txn, quota_bytes };
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

    /// What a witness answers to a read: what the leader finds. A read changes nothing, so nothing of it is unknown.
    async fn range_at_leader(&self, request: RangeRequest) -> Result<RangeResult, StoreError> {
        match self.run_txn(Txn::default().then(Op::Range(request))).await? {
            TxnOutcome::Committed { results, .. } | TxnOutcome::Rejected { results, .. } => {
                match results.into_iter().next() {
                    Some(OpResult::Range(found)) => Ok(found),
                    _ => Err(StoreError::NotServing(NotServing::Witness)),
                }
            }
            // The leader has gone, or it is more than fits into one answer.
            TxnOutcome::Unknown => {
                let reason = self.replica().not_serving();
                Err(StoreError::NotServing(reason.unwrap_or(NotServing::Witness)))
            }
        }
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<LeaseGrant, StoreError> {
        let here = move |replica: Replica| {
            let arrived = Instant::now();
            async move { replica.keep_alive(lease, arrived).await }
        };
        let granted = |bytes: &[u8]| Ok(LeaseGrant { lease, ttl: Duration::from_millis(wire::decode(bytes)?) });
        let patience = self.replica().shared.options.patience;
        self.at_leader(Lane::Control, Kind::KeepAlive, payload(&lease.0), patience, here, granted).await
    }
}

/// What keeps the streams from being read.
fn in_streams(error: StreamError) -> StoreError {
    match error {
        StreamError::NotServing(reason) => StoreError::NotServing(reason),
        StreamError::Closed => StoreError::Closed,
        _ => StoreError::Unknown,
    }
}

fn ask(lane: Lane, kind: Kind, asked: Bytes, patience: Duration) -> Ask {
    // Asking twice changes nothing.
    let reads = matches!(kind, Kind::ReadIndex | Kind::Members | Kind::LeaseInfo | Kind::KeepAlive);
    Ask {
        lane,
        kind,
        asked,
        patience,
        again: if reads || planted("write-made-twice") { Again::Reads } else { Again::Never },
    }
}

/// Puts commands of several callers through the log as one entry.
async fn write(replica: Replica, commands: Vec<Command>, left: Duration) -> Result<Vec<Response>, StoreError> {
    if left.is_zero() {
        // Nothing is begun that nobody waits for.
        return Err(StoreError::NotServing(replica.not_serving().unwrap_or(NotServing::NoLeader)));
    }
    let proposal = Proposal::of(commands);
    let asked = proposal.encoded.clone();
    let here = move |replica: Replica| {
        let proposal = proposal.clone();
        async move { replica.propose(proposal).await }
    };
    let answered = |bytes: &[u8]| {
        let (index, responses): (u64, Vec<ResponseV1>) = wire::decode(bytes)?;
        let responses: Result<_, _> = responses.into_iter().map(Response::try_from).collect();
        Ok((index, Reply::Store(responses?)))
    };
    let ask = ask(Lane::Forward(0), Kind::Propose, asked, left);
    let (index, responses) = leading::at_leader(&replica, || replica.serving(), ask, here, answered).await?;
    // Whoever wrote here reads it here. It is committed all the same if this node is slow.
    let _ = tokio::time::timeout(replica.shared.options.patience, replica.applied(index)).await;
    match responses {
        Reply::Store(responses) => Ok(responses),
        Reply::Streams(_) | Reply::Nothing => Err(StoreError::Unknown),
    }
}

/// Waits until this node has applied whatever was acknowledged before now, for several readers.
async fn linearize(replica: Replica, readers: usize, left: Duration) -> Result<Vec<()>, StoreError> {
    let here = |replica: Replica| async move { Ok(types::log_id_dto(&replica.read_index().await?)) };
    let ask = ask(Lane::Control, Kind::ReadIndex, Bytes::new(), left);
    let upto: LogIdV1 = leading::at_leader(&replica, || replica.serving(), ask, here, decoded).await?;
    let late = |_| Err(StoreError::NotServing(NotServing::NoLeader));
    tokio::time::timeout(replica.shared.options.patience, replica.applied(upto.index)).await.unwrap_or_else(late)?;
    Ok(vec![(); readers])
}

fn decoded<T: for<'de> serde::Deserialize<'de>>(bytes: &[u8]) -> Result<T, DecodeError> {
    wire::decode(bytes)
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
            if self.replica().shared.options.is_witness() {
                // Its own box: it is rare, and every read would need room for it.
                return Box::pin(self.range_at_leader(request)).await;
            }
            if consistency == Consistency::Linearizable {
                self.linearize().await?;
            }
            // A clone is O(1): the scan holds up nobody.
            let (state, applied) = {
                let view = lock(&self.replica().shared.view);
                (view.state.clone(), view.applied.is_some())
            };
            if !applied && self.replica().shared.options.peers.is_some() {
                // Nothing is known here yet, which is not the same as that nothing is there.
                return Err(StoreError::NotServing(self.status().not_serving.unwrap_or(NotServing::Starting)));
            }
            Ok(state.range(&request))
        })
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream, StoreError> {
        if self.replica().shared.options.is_witness() {
            return Err(StoreError::NotServing(NotServing::Witness));
        }
        self.replica().shared.hub.subscribe(range, from).ok_or(StoreError::Closed)
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

    fn lease_confirm(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(failsafe::ask(self.replica(), lease))
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
            let here = move |replica: Replica| async move { replica.lease_info(lease).await };
            let answered = |bytes: &[u8]| wire::decode::<LeaseInfoV1>(bytes)?.into_info(lease);
            let patience = self.replica().shared.options.patience;
            self.at_leader(Lane::Control, Kind::LeaseInfo, payload(&lease.0), patience, here, answered).await
        })
    }

    fn status(&self) -> Status {
        let replica = self.replica();
        let metrics = replica.raft.metrics();
        let metrics = metrics.borrow_watched();
        let shared = &replica.shared;
        let (wal_bytes, last_fsync) = shared.wal.size_and_last_fsync();
        let alone = shared.options.peers.is_none();
        let (state, term) = (metrics.state, metrics.current_term);
        let leader = metrics.current_leader;
        drop(metrics);
        let leader = leader.filter(|_| alone || replica.leader() != Leader::Nobody);
        let not_serving = replica.not_serving();
        let view = lock(&shared.view);
        Status {
            role: role(state),
            leader,
            term,
            revision: view.state.revision(),
            applied_index: view.applied.map_or(0, |applied| applied.index),
            used_bytes: view.state.used_bytes(),
            quota_bytes: shared.options.quota_bytes,
            wal_bytes,
            last_fsync,
            durability: shared.options.durability,
            not_serving,
        }
    }

    fn metrics(&self) -> StoreMetrics {
        let shared = &self.replica().shared;
        let mut metrics = shared.wal.metrics();
        metrics.snapshot_failures = shared.snapshots.failures.load(Ordering::Relaxed);
        (metrics.watchers, metrics.lagged_watchers) = shared.hub.counts();
        let state = lock(&shared.view).state.clone();
        metrics.owners = shared.quotas.held(&state);
        metrics
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.in_flight.close();
            self.node.begin_stop();
            let mut stopped = self.node.stopped.clone();
            stopped.wait_for(|stopped| *stopped).await.map_err(|_| StoreError::Unknown)?;
            self.replica().serving()
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
