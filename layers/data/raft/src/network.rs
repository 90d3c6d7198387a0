//! The engine's way to its peers: its requests as calls over `peers`. A group of one has nobody to call.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft::{BasicNode, OptionalSend};

use crate::machine::{Shared, SnapshotFile};
use crate::members;
use crate::peers::frame::Kind;
use crate::peers::message::{AppendV1, AppendedV1, TransferReplyV1, TransferV1, VoteCallV1, VoteReplyV1, payload};
use crate::peers::{CallError, Lane, Peers, snapshot_lane};
use crate::surroundings::planted;
use crate::types::{LogId, Types};
use crate::wal::lock;
use crate::wire;

/// Longest wait for a follower to have written a round of entries: its heartbeats say whether it is there.
const SLOW_DISK: Duration = Duration::from_secs(2);
/// Rounds of entries that may be on their way to one follower.
const PIPELINE: usize = 64;
/// The same for streams, whose rounds are often full: 64 MiB.
const STREAMS_PIPELINE: usize = 16;

/// Makes clients for one group.
pub(crate) struct Network {
    pub peers: Option<Peers>,
    pub shared: Arc<Shared>,
}

/// Speaks to one peer for one group.
pub(crate) struct Peer {
    peers: Option<Peers>,
    shared: Arc<Shared>,
    target: u64,
    /// It says that the leader is there, and nothing else: on the lane for what is urgent.
    heartbeats: bool,
    /// It is a witness: a snapshot for it has no content.
    is_witness: bool,
}

impl Network {
    fn peer(&self, target: u64, node: &BasicNode, heartbeats: bool) -> Peer {
        if let Some(peers) = &self.peers {
            let (name, address) = members::name_and_address(node);
            lock(&peers.inner().book).listed(target, name, address);
        }
        let is_witness = members::is_witness(node);
        Peer { peers: self.peers.clone(), shared: self.shared.clone(), target, heartbeats, is_witness }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, node, true)
    }
}

fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable<Types> {
    Unreachable::new(error)
}

impl Peer {
    async fn call<Q, A>(&self, lane: Lane, kind: Kind, request: &Q, option: &RPCOption) -> Result<A, RPCError<Types>>
    where
        Q: serde::Serialize,
        A: for<'de> serde::Deserialize<'de>,
    {
        let Some(peers) = &self.peers else { return Err(alone().into()) };
        let group = self.shared.options.group;
        let answer = peers.call(self.target, lane, kind, group, payload(request), option.soft_ttl()).await;
        let answer = answer.map_err(|error| unreachable(&error))?;
        wire::decode(&answer).map_err(|error| unreachable(&error).into())
    }
}

fn alone() -> Unreachable<Types> {
    unreachable(&io::Error::other("this node has no peers"))
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotFile;

    /// One round by itself; the engine sends all of them by [`Self::stream_append`].
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let answer: AppendedV1 = self.call(Lane::Control, Kind::Heartbeat, &AppendV1::from(&rpc), &option).await?;
        Ok(answer.into())
    }

    /// Rounds leave as they come; their answers come back in the same order.
    fn stream_append<'s, S>(&'s mut self, input: S, option: RPCOption) -> BoxFuture<'s, AppendStream<'s>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let Some(peers) = self.peers.clone() else {
            return Box::pin(std::future::ready(Err(alone().into())));
        };
        let (target, group) = (self.target, self.shared.options.group);
        let (lane, kind, patience) = if self.heartbeats {
            (Lane::Control, Kind::Heartbeat, option.soft_ttl())
        } else {
            (Lane::Log(group), Kind::Append, option.soft_ttl().max(SLOW_DISK))
        };
        let pipeline = if self.shared.streams.is_some() { STREAMS_PIPELINE } else { PIPELINE };
        let begun = input.map(move |request| {
            let (previous, last) = (request.prev_log_id, request.entries.last().map(|entry| entry.log_id));
            let encoded = payload(&AppendV1::from(&request));
            let answer = peers.begin(target, lane, kind, group, encoded);
            async move { appended(answer.within(patience).await, previous, last.or(previous)) }
        });
        // After an error the engine begins a new stream: what is on its way in this one must not be taken for more.
        let until_error = begun.buffered(pipeline).scan(false, |failed, result| {
            let ended = std::mem::replace(failed, !matches!(result, Ok(Ok(_))));
            std::future::ready((!ended).then_some(result))
        });
        let stream: BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>> = Box::pin(until_error);
        Box::pin(std::future::ready(Ok(stream)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer: VoteReplyV1 = self.call(Lane::Control, Kind::Vote, &VoteCallV1::from(&rpc), &option).await?;
        Ok(answer.into())
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let answer: VoteReplyV1 = self.call(Lane::Control, Kind::PreVote, &VoteCallV1::from(&rpc), &option).await?;
        Ok(answer.into())
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let answer: TransferReplyV1 =
            self.call(Lane::Control, Kind::Transfer, &TransferV1::from(&req), &option).await?;
        Ok(answer.into())
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let Some(peers) = &self.peers else { return Err(alone().into()) };
        if self.shared.options.is_witness() && !planted("witness-snapshot") {
            // It has none. The other waits for a leader that has.
            let _wanting = self.shared.witness.wants_a_snapshot(self.target);
            return Err(cancel.await.into());
        }
        let target = (self.target, self.is_witness);
        let sending = snapshot_lane::send(peers, &self.shared, target, &vote, &snapshot);
        tokio::select! {
            biased;
            sent = sending => sent.map(SnapshotResponse::new).map_err(|error| unreachable(&error).into()),
            closed = cancel => Err(closed.into()),
        }
    }
}

type AppendStream<'s> = Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>;

fn appended(
    answer: Result<bytes::Bytes, CallError>,
    previous: Option<LogId>,
    last: Option<LogId>,
) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
    let answer = answer.map_err(|error| RPCError::from(unreachable(&error)))?;
    let answer: AppendedV1 = wire::decode(&answer).map_err(|error| RPCError::from(unreachable(&error)))?;
    Ok(AppendEntriesResponse::from(answer).into_stream_result(previous, last))
}
