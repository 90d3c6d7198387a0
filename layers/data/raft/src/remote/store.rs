//! The `Store` of a node that has none: every request is one call to a server, checked here as it is there.
//! Deliberately absent: what a server does with it (`peers/agents.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use data::{
    BoxFuture, Command, Consistency, Durability, KeyRange, KeyValue, LeaseGrant, LeaseId, LeaseInfo, MAX_TTL, MIN_TTL,
    OpResult, RaftRole, RangeRequest, RangeResult, Revision, Status, Store, StoreError, StoreMetrics, Txn, TxnOutcome,
    WatchStream,
};
use tokio::sync::Semaphore;

use super::link::Answered;
use super::wire::{AnswerV1, CallV1};
use super::{Core, Failed, LAST_WORDS_ALL, LOOK, RemoteStreams, Stage, watch};
use crate::disk::RealDisk;
use crate::leading::Again;
use crate::members::Members;
use crate::node::draw_number;
use crate::peers::message::{ChangeV1, payload};
use crate::peers::{Identity, Peers};
use crate::surroundings;
use crate::transport::{CertificateAnswer, CertificateRequest};
use crate::wal::lock;
use crate::wire::{self, Bin, CommandV1, DecodeError, PairV1};

/// Most bytes of requests on their way at once; further callers wait their turn.
const IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;
/// A permit of the bound above.
const PERMIT_BYTES: usize = 1024;
/// A server that has not answered a read or a change of members for so long is not waited for.
const EACH: Duration = Duration::from_secs(2);
/// The same for a lease, whose time runs.
const EACH_RENEWAL: Duration = Duration::from_millis(200);

/// What a remote store is opened with.
#[derive(Debug)]
pub struct RemoteOptions {
    /// Who this node is and where servers may be; with `agent`.
    pub peers: Peers,
    /// Where addresses of servers are kept, so that they are found again when they have moved meanwhile; nowhere if absent.
    pub directory: Option<PathBuf>,
}

/// The store of a cluster, asked of its servers. Dropping it ends all connections.
pub struct RemoteStore {
    core: Arc<Core>,
    in_flight: Semaphore,
}

impl RemoteStore {
    /// Begins to look for servers, and returns at once.
    pub fn open(options: RemoteOptions) -> Arc<Self> {
        let RemoteOptions { peers, directory } = options;
        // Of this process: there is nothing on disk that it could belong to.
        let identity = Identity { id: draw_number(), store_id: *surroundings::drawn_id().as_bytes() };
        let inner = peers.inner();
        if inner.identity.set(identity).is_ok() {
            if let Some(directory) = &directory {
                lock(&inner.book).keep_in(Arc::new(RealDisk), directory);
            }
            peers.keep_files_current();
        }
        let core = Core::start(peers, 0);
        Arc::new(Self { core, in_flight: Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES) })
    }

    /// The streams of the same cluster, over connections of their own. They must be closed first.
    pub fn open_streams(&self) -> Arc<RemoteStreams> {
        RemoteStreams::over(Core::start(self.core.peers.clone(), crate::streams::STREAMS_GROUP))
    }

    /// The members as the leader sees them; without a server, none.
    pub async fn members(&self) -> Members {
        self.members_of(&CallV1::Members, Again::Reads).await.unwrap_or_default()
    }

    /// Takes a member out: it may be gone for good already.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if there is none of this name or it is the last voter; as for transactions else.
    pub async fn remove_member(&self, name: &str) -> Result<Members, StoreError> {
        self.members_of(&CallV1::Change(ChangeV1::Remove { name: name.to_owned() }), Again::Never).await
    }

    /// Makes another voter the leader.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if no voter has this name; as for transactions else.
    pub async fn transfer_leader(&self, name: &str) -> Result<Members, StoreError> {
        self.members_of(&CallV1::Change(ChangeV1::Transfer { name: name.to_owned() }), Again::Never).await
    }

    async fn members_of(&self, call: &CallV1, again: Again) -> Result<Members, StoreError> {
        let AnswerV1::Members(seen) = self.ask(call, again, EACH).await? else { return Err(StoreError::Unknown) };
        let members = Members::from(seen);
        *lock(&self.core.members) = members.members.iter().map(|member| member.address.to_string()).collect();
        Ok(members)
    }

    /// Asks servers, one after the other, for a certificate. [`CertificateAnswer::Elsewhere`]: none of those that answer
    /// can sign.
    pub async fn certificate(&self, request: &CertificateRequest) -> CertificateAnswer {
        let servers: Vec<(u64, Arc<str>)> =
            lock(&self.core.links).iter().map(|link| (link.id, Arc::clone(&link.name))).collect();
        for (id, name) in servers {
            match self.core.peers.certificate(id, request).await {
                Ok(CertificateAnswer::Elsewhere) => {}
                Ok(answer) => return answer,
                Err(error) => tracing::debug!(node = %name, %error, "it signs nothing now"),
            }
        }
        CertificateAnswer::Elsewhere
    }

    async fn serve(&self, call: &CallV1, bytes: usize, again: Again, each: Duration) -> Result<Answered, StoreError> {
        let permits = u32::try_from(1 + bytes / PERMIT_BYTES).unwrap_or(u32::MAX);
        let _turn = self.in_flight.acquire_many(permits).await.map_err(|_| StoreError::Closed)?;
        self.core.ask(payload(call), again, each).await.map_err(|failed| match failed {
            Failed::Refused { server, refusal } => refusal.of_store(&server),
            Failed::Unknown => StoreError::Unknown,
            Failed::NotServing(reason) => StoreError::NotServing(reason),
            Failed::Closed => StoreError::Closed,
        })
    }

    async fn ask(&self, call: &CallV1, again: Again, each: Duration) -> Result<AnswerV1, StoreError> {
        self.serve(call, 0, again, each).await?.end().ok_or(StoreError::Unknown)
    }

    async fn run_txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        txn.validate()?;
        let bytes = txn.bytes();
        // The quota in force is the servers'.
        let call = CallV1::Do(CommandV1::from(&Command::Txn { txn, quota_bytes: 0 }));
        let served = match self.serve(&call, bytes, Again::Never, EACH).await {
            Err(StoreError::Unknown) => return Ok(TxnOutcome::Unknown),
            served => served?,
        };
        let Some(AnswerV1::Txn { succeeded, revision, results, is_async }) = served.end() else {
            return Ok(TxnOutcome::Unknown);
        };
        let results: Result<Vec<OpResult>, DecodeError> = results.into_iter().map(OpResult::try_from).collect();
        let (Some(succeeded), Ok(results)) = (succeeded, results) else { return Ok(TxnOutcome::Unknown) };
        self.core.saw(revision);
        let revision = Revision(revision);
        let durability = if is_async { Durability::Async } else { Durability::Sync };
        Ok(match succeeded {
            true => TxnOutcome::Committed { revision, results, durability },
            false => TxnOutcome::Rejected { revision, results },
        })
    }

    async fn read(&self, request: RangeRequest, consistency: Consistency) -> Result<RangeResult, StoreError> {
        let call = CallV1::Range {
            start: Bin(request.range.start().clone()),
            end: request.range.end().cloned().map(Bin),
            limit: request.limit.map(|limit| limit as u64),
            stale: consistency == Consistency::Stale,
        };
        // One that is long takes its time.
        let each = super::PATIENCE + super::GRACE;
        let answered = self.serve(&call, 0, Again::Reads, each).await?;
        let end = answered.end();
        let Answered { parts, .. } = answered;
        let decoding = surroundings::blocking(move || pairs(&parts));
        let kvs = decoding.await.map_err(|_| StoreError::Closed)?;
        // What is not understood changes nothing: it is as good as no answer.
        let late = || StoreError::NotServing(self.core.unreachable());
        match (end, kvs) {
            (Some(AnswerV1::Range { revision, more }), Ok(kvs)) => {
                self.core.saw(revision);
                Ok(RangeResult { revision: Revision(revision), kvs, more })
            }
            _ => Err(late()),
        }
    }
}

fn pairs(parts: &[Bytes]) -> Result<Vec<KeyValue>, DecodeError> {
    let mut kvs = Vec::new();
    for part in parts {
        for pair in wire::decode::<Vec<PairV1>>(part)? {
            kvs.push(pair.try_into()?);
        }
    }
    Ok(kvs)
}

fn granted(answer: &AnswerV1) -> Result<LeaseGrant, StoreError> {
    match answer {
        AnswerV1::Lease { lease, ttl_ms } => {
            Ok(LeaseGrant { lease: LeaseId(*lease), ttl: Duration::from_millis(*ttl_ms) })
        }
        _ => Err(StoreError::Unknown),
    }
}

impl Store for RemoteStore {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(self.run_txn(txn))
    }

    fn range(&self, request: RangeRequest, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, StoreError>> {
        Box::pin(self.read(request, consistency))
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream, StoreError> {
        if self.core.is_closed() {
            return Err(StoreError::Closed);
        }
        Ok(watch::begin(&self.core, range, from))
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(async move {
            if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
                return Err(StoreError::Invalid { what: "a lease lives between 100 milliseconds and one day" });
            }
            let call = CallV1::Do(CommandV1::from(&Command::LeaseGrant { ttl }));
            granted(&self.ask(&call, Again::Never, EACH).await?)
        })
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(
            async move { granted(&self.ask(&CallV1::KeepAlive { lease: lease.0 }, Again::Reads, EACH_RENEWAL).await?) },
        )
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            let call = CallV1::Do(CommandV1::from(&Command::LeaseRevoke { lease }));
            match self.ask(&call, Again::Never, EACH).await? {
                AnswerV1::Revoked { revision } => {
                    self.core.saw(revision);
                    Ok(Revision(revision))
                }
                _ => Err(StoreError::Unknown),
            }
        })
    }

    fn lease_info(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseInfo, StoreError>> {
        Box::pin(async move {
            match self.ask(&CallV1::LeaseInfo { lease: lease.0 }, Again::Reads, EACH).await? {
                AnswerV1::LeaseInfo(info) => info.into_info(lease).map_err(|_| StoreError::Unknown),
                _ => Err(StoreError::Unknown),
            }
        })
    }

    fn status(&self) -> Status {
        let link = self.core.best(&std::collections::BTreeSet::new());
        let state = link.map(|link| link.state()).unwrap_or_default();
        Status {
            role: if self.core.is_closed() { RaftRole::Stopped } else { RaftRole::Remote },
            leader: state.leader,
            term: state.term,
            revision: Revision(self.core.newest().unwrap_or_default()),
            applied_index: state.applied_index,
            used_bytes: state.used_bytes,
            quota_bytes: state.quota_bytes,
            wal_bytes: 0,
            last_fsync: None,
            durability: if state.is_async { Durability::Async } else { Durability::Sync },
            not_serving: self.core.not_serving(),
        }
    }

    fn metrics(&self) -> StoreMetrics {
        let (watchers, lagged_watchers) = lock(&self.core.watches).counts();
        StoreMetrics { watchers, lagged_watchers, ..StoreMetrics::default() }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.in_flight.close();
            self.core
                .closing
                .send_if_modified(|stage| std::mem::replace(stage, Stage::Closing.max(*stage)) == Stage::Open);
            // Watches tell what has happened so far.
            let ended = async {
                while lock(&self.core.watches).running() > 0 {
                    tokio::time::sleep(LOOK).await;
                }
            };
            let _ = tokio::time::timeout(LAST_WORDS_ALL, ended).await;
            self.core.shut();
            self.core.peers.stop();
            Ok(())
        })
    }
}

impl Drop for RemoteStore {
    fn drop(&mut self) {
        self.core.shut();
    }
}
