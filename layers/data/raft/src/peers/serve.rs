//! Answers other nodes: takes their connections, hears who they are, and passes their calls to the group they are for.
//! Entries of a lane are taken in order and pipelined; every other call is answered on its own.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use data::{LeaseId, NotServing, OpResult, Response, StoreError, Waits};
use futures_util::stream::{self, StreamExt as _};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, VoteRequest, VoteResponse};
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::certify::{CertifiedV1, CertifyV1};
use super::frame::{Frame, Kind, MAX_PAYLOAD};
use super::hello::{self, Frames, Greeted};
use super::message::{
    AdmitV1, AppendV1, AppendedV1, ChangeV1, ErrorV1, LeaseInfoV1, ResponseV1, TransferReplyV1, TransferV1, VoteCallV1,
    VoteReplyV1, payload,
};
use super::troubles::INCOMING;
use super::{Inner, agents, snapshot_lane};
use crate::failsafe;
use crate::members;
use crate::replica::Replica;
use crate::streams;
use crate::streams::wire::StreamAnswerV1;
use crate::surroundings;
use crate::transport::CertificateAnswer;
use crate::types::{self, Proposal, Reply, Types};
use crate::wal::lock;
use crate::wire;

/// Rounds of entries of one lane that are being written.
const PIPELINE: usize = 64;
/// Calls of one connection that are being answered; the next one waits.
const AT_ONCE: usize = 1024;
/// Answers of one connection that wait to be sent.
const ANSWERS: usize = 1024;
/// Bytes gathered into one write.
const WRITE_BYTES: usize = 256 * 1024;
/// Connections whose other side is not known yet.
const STRANGERS: usize = 64;
/// Longest time for a greeting from outside.
const GREETING: Duration = Duration::from_secs(5);

/// A group that answers.
pub(crate) struct Group {
    pub replica: Replica,
}

/// Takes connections until the node stops.
pub(crate) async fn accept(inner: Weak<Inner>) {
    let Some(transport) = inner.upgrade().map(|inner| Arc::clone(&inner.transport)) else { return };
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    loop {
        let Ok(place) = Arc::clone(&strangers).acquire_owned().await else { return };
        let Ok(accepted) = transport.accept().await else { return };
        let inner = inner.clone();
        surroundings::spawn(async move {
            let greeted = async {
                let Some(connection) = accepted.await? else { return Ok(None) };
                let peers = inner.upgrade().ok_or(io::ErrorKind::NotConnected)?;
                hello::answer(&peers, connection).await.map(Some)
            };
            let late = || io::Error::from(io::ErrorKind::TimedOut);
            let greeted = tokio::time::timeout(GREETING, greeted).await.unwrap_or_else(|_| Err(late()));
            drop(place);
            match greeted {
                Ok(None) => {}
                Ok(Some(greeted)) => serve(&inner, greeted).await,
                Err(error) => {
                    if let Some(peers) = inner.upgrade() {
                        peers.troubles.note(INCOMING, Some(&error));
                    }
                }
            }
        });
    }
}

async fn serve(inner: &Weak<Inner>, mut greeted: Greeted) {
    if greeted.agent {
        return agents::serve(inner, greeted).await;
    }
    // A lane's first call says what it carries.
    let first = match greeted.frames.next().await {
        Ok(Some(first)) => first,
        Ok(None) => return,
        Err(error) => return tracing::debug!(node = greeted.hello.name, %error, "a connection of another node ended"),
    };
    if !matches!(first.kind, Kind::Append | Kind::Propose | Kind::SnapshotBegin) {
        return converse(inner, greeted, first).await;
    }
    let Some(peers) = inner.upgrade() else { return };
    let inner = inner.clone();
    // This thread is for what is urgent.
    peers.spawn_for(first.group, async move { converse(&inner, greeted, first).await });
}

/// Hears calls and answers them until the connection ends.
async fn converse(inner: &Weak<Inner>, greeted: Greeted, first: Frame) {
    let Greeted { hello, mut frames, mut out, .. } = greeted;
    let (answers, mut outgoing) = mpsc::channel::<Frame>(ANSWERS);
    let writing = async {
        let mut bytes = BytesMut::new();
        while let Some(frame) = outgoing.recv().await {
            frame.encode(&mut bytes);
            while bytes.len() < WRITE_BYTES
                && let Ok(frame) = outgoing.try_recv()
            {
                frame.encode(&mut bytes);
            }
            out.write_all_buf(&mut bytes).await?;
            out.flush().await?;
        }
        io::Result::Ok(())
    };
    let ended = tokio::select! {
        biased;
        ended = read(inner, (&hello.name, first), &mut frames, &answers) => ended,
        ended = writing => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(node = hello.name, %error, "a connection of another node ended");
    }
}

async fn read(
    inner: &Weak<Inner>,
    (caller, first): (&str, Frame),
    frames: &mut Frames,
    answers: &mpsc::Sender<Frame>,
) -> io::Result<()> {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut logs: BTreeMap<u16, mpsc::Sender<(u64, AppendEntriesRequest<Types>)>> = BTreeMap::new();
    let mut next = Some(first);
    while let Some(frame) = match next.take() {
        Some(first) => Some(first),
        None => frames.next().await?,
    } {
        let Some(group) = inner.upgrade().and_then(|inner| inner.group(frame.group)) else {
            answer(answers, &frame, Err(StoreError::NotServing(NotServing::Starting))).await;
            continue;
        };
        match frame.kind {
            Kind::Append => {
                let request = decode::<AppendV1>(&frame.payload)?.try_into().map_err(invalid)?;
                let log = logs.entry(frame.group).or_insert_with(|| {
                    let (log, requests) = mpsc::channel(PIPELINE);
                    surroundings::spawn(append(group.replica.clone(), frame.group, requests, answers.clone()));
                    log
                });
                if log.send((frame.call, request)).await.is_err() {
                    return Ok(());
                }
            }
            Kind::SnapshotBegin => {
                let begin = decode(&frame.payload)?;
                let received = snapshot_lane::receive(&group.replica, frames, answers, (&frame, begin)).await;
                match received {
                    Ok(reply) => answer(answers, &frame, Ok(payload(&reply))).await,
                    Err(error) => {
                        tracing::warn!(%error, "a snapshot was not taken over");
                        return Err(error);
                    }
                }
            }
            Kind::Certify => {
                let request = decode::<CertifyV1>(&frame.payload)?.of(caller);
                let Some(inner) = inner.upgrade() else { return Ok(()) };
                let answered = match inner.transport.door() {
                    Some(door) => door.certify(request).await,
                    None => CertificateAnswer::Elsewhere,
                };
                answer(answers, &frame, Ok(payload(&CertifiedV1::from(answered)))).await;
            }
            _ => {
                let Ok(turn) = Arc::clone(&at_once).acquire_owned().await else { return Ok(()) };
                let (answers, arrived) = (answers.clone(), Instant::now());
                surroundings::spawn(async move {
                    let result = handle(&group.replica, &frame, arrived).await;
                    answer(&answers, &frame, result).await;
                    drop(turn);
                });
            }
        }
    }
    Ok(())
}

async fn answer(answers: &mpsc::Sender<Frame>, call: &Frame, result: Result<Bytes, StoreError>) {
    let (kind, payload) = match result {
        Ok(payload) if payload.len() <= MAX_PAYLOAD => (Kind::Reply, payload),
        // Done, but what it read is more than fits: the caller is told that it does not know.
        Ok(_) => (Kind::Failed, payload(&ErrorV1::Unknown)),
        Err(error) => (Kind::Failed, payload(&ErrorV1::from(&error))),
    };
    // The connection may be gone.
    let _ = answers.send(Frame { kind, group: call.group, call: call.call, payload }).await;
}

/// Takes the entries of one lane in order.
async fn append(
    replica: Replica,
    group: u16,
    mut requests: mpsc::Receiver<(u64, AppendEntriesRequest<Types>)>,
    answers: mpsc::Sender<Frame>,
) {
    let send = async |kind: Kind, call: u64, payload: Bytes| {
        // The connection may be gone; then there are no more requests either.
        let _ = answers.send(Frame { kind, group, call, payload }).await;
    };
    let reply = async |call: u64, answer: AppendedV1| send(Kind::Reply, call, payload(&answer)).await;
    loop {
        // A conflict ends a stream of the engine; the next request begins another.
        let (feed, mut fed) = mpsc::channel(PIPELINE);
        let input = stream::poll_fn(move |cx| fed.poll_recv(cx));
        let mut results = std::pin::pin!(replica.raft.stream_append(input));
        let mut waiting: VecDeque<u64> = VecDeque::new();
        loop {
            tokio::select! {
                // There are no more of these than were asked for: neither holds up the other.
                biased;
                result = results.next(), if !waiting.is_empty() => {
                    let Some(call) = waiting.pop_front() else { continue };
                    match result {
                        Some(Ok(Ok(upto))) => {
                            *lock(&replica.shared.heard) = Some(Instant::now());
                            let upto = upto.as_ref().map(types::log_id_dto);
                            reply(call, AppendedV1::Partial(upto)).await;
                        }
                        Some(Ok(Err(refused))) => {
                            reply(call, match refused {
                                StreamAppendError::Conflict(_) => AppendedV1::Conflict,
                                StreamAppendError::HigherVote(vote) => AppendedV1::HigherVote(types::vote_dto(&vote)),
                            }).await;
                            // The engine has taken these too, but does not tell any more what came of them.
                            for call in waiting.drain(..) {
                                send(Kind::Failed, call, payload(&ErrorV1::Unknown)).await;
                            }
                            break;
                        }
                        Some(Err(_)) | None => return,
                    }
                }
                next = requests.recv(), if waiting.len() < PIPELINE => {
                    let Some((call, request)) = next else { return };
                    waiting.push_back(call);
                    if feed.send(request).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Answers one call.
async fn handle(replica: &Replica, call: &Frame, arrived: Instant) -> Result<Bytes, StoreError> {
    let bytes = &call.payload;
    let raft = &replica.raft;
    Ok(match call.kind {
        Kind::Heartbeat => {
            let request = asked::<AppendV1>(bytes)?.try_into().map_err(|_| not_understood())?;
            let answer: AppendEntriesResponse<Types> =
                raft.append_entries(request).await.map_err(|_| stopped(replica))?;
            if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                *lock(&replica.shared.heard) = Some(arrived);
            }
            payload(&AppendedV1::from(answer))
        }
        Kind::Vote => {
            let request: VoteRequest<Types> = asked::<VoteCallV1>(bytes)?.into();
            let last = request.last_log_id;
            voted(replica, last, raft.vote(request).await.map_err(|_| stopped(replica))?)
        }
        Kind::PreVote => {
            let request: VoteRequest<Types> = asked::<VoteCallV1>(bytes)?.into();
            let last = request.last_log_id;
            voted(replica, last, raft.pre_vote(request).await.map_err(|_| stopped(replica))?)
        }
        Kind::Transfer => {
            let asked = asked::<TransferV1>(bytes)?.into();
            let answer = raft.handle_transfer_leader(asked).await.map_err(|_| stopped(replica))?;
            payload(&TransferReplyV1::from(answer))
        }
        Kind::Propose => {
            let proposal = if replica.shared.streams.is_some() {
                streams::stamped(replica, asked(bytes)?).map_err(|_| not_understood())?
            } else {
                Proposal::decode(bytes.clone()).map_err(|_| not_understood())?
            };
            match replica.propose(proposal).await? {
                (index, Reply::Store(responses)) => payload(&(index, fitting(responses))),
                (index, Reply::Streams(answer)) => payload(&(index, StreamAnswerV1::from(answer))),
                (_, Reply::Nothing) => return Err(StoreError::Unknown),
            }
        }
        Kind::ReadIndex => payload(&types::log_id_dto(&replica.read_index().await?)),
        Kind::KeepAlive => {
            let granted = replica.keep_alive(LeaseId(asked(bytes)?), arrived).await?;
            payload(&u64::try_from(granted.ttl.as_millis()).unwrap_or(u64::MAX))
        }
        Kind::LeaseInfo => payload(&LeaseInfoV1::from(&replica.lease_info(LeaseId(asked(bytes)?)).await?)),
        Kind::GiveWay => {
            let waits = if asked(bytes)? { Waits::UnderWay } else { Waits::Coming };
            replica.shared.wal.way().give(waits);
            Bytes::new()
        }
        Kind::Confirm => payload(&failsafe::confirm(replica, &asked(bytes)?).await),
        Kind::Admit => payload(&members::admit(replica, asked::<AdmitV1>(bytes)?).await?),
        Kind::Members => payload(&members::list(replica)),
        Kind::Change => payload(&members::change(replica, asked::<ChangeV1>(bytes)?).await?),
        Kind::Hello
        | Kind::Refused
        | Kind::Append
        | Kind::Certify
        | Kind::SnapshotBegin
        | Kind::SnapshotBlock
        | Kind::SnapshotEnd
        | Kind::SegmentsWanted
        | Kind::Ask
        | Kind::Part
        | Kind::More
        | Kind::Enough
        | Kind::Reply
        | Kind::Failed => return Err(not_understood()),
    })
}

/// Who is refused a vote because this node holds more cannot win; a witness stands instead.
fn voted(replica: &Replica, last: Option<types::LogId>, answer: VoteResponse<Types>) -> Bytes {
    if !answer.vote_granted && answer.last_log_id > last {
        replica.shared.witness.stand();
    }
    payload(&VoteReplyV1::from(answer))
}

/// Answers as far as they fit into a frame. Whose does not is told that nobody knows: what it wrote is written, but
/// what it read cannot be said.
fn fitting(responses: Vec<Response>) -> Vec<ResponseV1> {
    let mut room = MAX_PAYLOAD / 2;
    let mut fitted = |response: Response| {
        let Response::Txn { results, .. } = &response else { return response.into() };
        let read = results.iter().map(|result| match result {
            OpResult::Range(range) => range.kvs.iter().map(|kv| kv.key.as_bytes().len() + kv.value.len()).sum(),
            OpResult::Put | OpResult::Deleted { .. } => 0_usize,
        });
        match room.checked_sub(read.sum()) {
            Some(left) => {
                room = left;
                response.into()
            }
            None => ResponseV1::Failed(ErrorV1::Unknown),
        }
    };
    responses.into_iter().map(&mut fitted).collect()
}

fn stopped(replica: &Replica) -> StoreError {
    replica.serving().err().unwrap_or(StoreError::NotServing(NotServing::Starting))
}

fn not_understood() -> StoreError {
    StoreError::Invalid { what: "the call is not understood" }
}

fn asked<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, StoreError> {
    wire::decode(bytes).map_err(|_| not_understood())
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    wire::decode(bytes).map_err(invalid)
}

fn invalid(error: wire::DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use data::{Key, KeyValue, OpResult, RangeResult, Response, Revision};

    use super::{ErrorV1, MAX_PAYLOAD, ResponseV1, fitting, payload};

    fn read(bytes: usize) -> Response {
        let key = Key::new(b"k".to_vec()).unwrap();
        let (at, value) = (Revision(1), vec![7; bytes].into());
        let pair = KeyValue { key, value, create_revision: at, mod_revision: at, version: 1, lease: None };
        let range = RangeResult { revision: at, kvs: vec![pair], more: false };
        Response::Txn { succeeded: true, revision: at, results: vec![OpResult::Range(range)] }
    }

    #[test]
    fn what_does_not_fit_into_a_frame_is_unknown_for_its_caller_alone() {
        let half = MAX_PAYLOAD / 2;
        let wrote = || Response::Txn { succeeded: true, revision: Revision(2), results: vec![OpResult::Put] };
        let fitted = fitting(vec![read(half - 100), wrote(), read(200), wrote(), read(50)]);
        let unknown: Vec<bool> =
            fitted.iter().map(|answer| matches!(answer, ResponseV1::Failed(ErrorV1::Unknown))).collect();
        assert_eq!(unknown, [false, false, true, false, false]);
        assert!(payload(&(1_u64, fitted)).len() <= MAX_PAYLOAD);
    }
}
