//! Serves agents: nodes without a vote and without a store, which ask a server for everything. What they ask is done by
//! this node's own store and streams, which find the leader where one is needed; so there is one way to it, tried and
//! bounded in one place. A watch is fed by this node's view of the changes, as far as the agent says that it takes more.
//! Deliberately absent: anything of the groups' own conversation, which an agent has no part in.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use data::{
    Command, Consistency, KeyRange, LeaseId, MAX_READ_ENTRIES, Name, NotServing, OpResult, RangeRequest, Revision,
    Store as _, StoreError, StreamRequest, Streams as _, TxnOutcome, WatchItem, WatchStream,
};
use futures_util::FutureExt as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Inner;
use super::certify::{CertifiedV1, CertifyV1};
use super::frame::{Frame, Kind, MAX_PAYLOAD};
use super::hello::{Frames, Greeted};
use super::message::{ChangeV1, LeaseInfoV1, OpResultV1, payload};
use crate::members;
use crate::remote::wire::{
    AnswerV1, CallV1, MembersSeenV1, ReasonV1, RefusalV1, StateV1, StreamEntryV1, StreamInfoV1, parts,
};
use crate::store::RaftStore;
use crate::streams::RaftStreams;
use crate::transport::{CertificateAnswer, Stream};
use crate::wal::lock;
use crate::wire::{self, PairV1};

/// Connections of agents at a time; each has two.
const CONNECTIONS: usize = 512;
/// Calls of one connection that are being answered; the next one waits.
const AT_ONCE: usize = 256;
/// Watches of one connection.
const WATCHES: usize = 256;
/// Answers of one connection that wait to be sent. With [`PART_BYTES`], what may be ahead of a lease's renewal.
const ANSWERS: usize = 16;
/// About so many bytes are a part of a longer answer.
const PART_BYTES: usize = 64 * 1024;
/// Bytes gathered into one write.
const WRITE_BYTES: usize = 256 * 1024;
/// Parts of a watch that are on their way before the agent says that it takes more.
pub(crate) const WINDOW: u32 = 64;
/// Longest wait for an entry within one call.
const WAIT: Duration = Duration::from_secs(30);

/// What agents are served with.
#[derive(Debug)]
pub(crate) struct Agents {
    pub store: Mutex<Weak<RaftStore>>,
    pub streams: Mutex<Weak<RaftStreams>>,
    places: Arc<Semaphore>,
}

impl Default for Agents {
    fn default() -> Self {
        Self {
            store: Mutex::new(Weak::new()),
            streams: Mutex::new(Weak::new()),
            places: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }
}

/// Why an agent of this name is not let in, if so.
pub(crate) fn refusal(inner: &Inner, name: &str) -> Option<String> {
    if inner.options.agent {
        return Some(format!("{} is an agent, too: name servers in node.peers.join", inner.options.name));
    }
    let is_member = inner.group(0).is_some_and(|group| {
        let metrics = group.replica.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().nodes().any(|(_, node)| members::name_and_address(node).0 == name)
    });
    is_member.then(|| {
        format!(
            "{name} is a member of the cluster, which an agent is not: take it out (`seawall cluster remove {name}`) or give \
             the agent another name"
        )
    })
}

/// Serves one connection until it ends.
pub(crate) async fn serve(inner: &Weak<Inner>, greeted: Greeted) {
    let Greeted { hello, mut frames, out, .. } = greeted;
    let Some(places) = inner.upgrade().map(|inner| Arc::clone(&inner.agents.places)) else { return };
    let Ok(_place) = places.try_acquire_owned() else {
        tracing::warn!(agent = hello.name, most = CONNECTIONS, "an agent's connection too many was ended");
        return;
    };
    let (answers, outgoing) = mpsc::channel::<Frame>(ANSWERS);
    let ended = tokio::select! {
        biased;
        ended = read(inner, &hello.name, &mut frames, &answers) => ended,
        ended = write(out, outgoing) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(agent = hello.name, %error, "a connection of an agent ended");
    }
}

async fn write(mut out: WriteHalf<Box<dyn Stream>>, mut outgoing: mpsc::Receiver<Frame>) -> io::Result<()> {
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
    Ok(())
}

/// Where answers to one call go. An error means that the connection is gone.
#[derive(Clone)]
struct Caller {
    answers: mpsc::Sender<Frame>,
    group: u16,
    call: u64,
}

impl Caller {
    async fn send(&self, kind: Kind, payload: Bytes) -> io::Result<()> {
        let frame = Frame { kind, group: self.group, call: self.call, payload };
        self.answers.send(frame).await.map_err(|_| io::ErrorKind::NotConnected.into())
    }

    async fn answer(&self, answer: Result<AnswerV1, RefusalV1>) {
        let (kind, bytes) = match answer {
            Ok(answer) => (Kind::Reply, payload(&answer)),
            Err(refusal) => (Kind::Failed, payload(&refusal)),
        };
        // Done, but what it read is more than fits: the caller is told that it does not know.
        let fits = bytes.len() <= MAX_PAYLOAD;
        let (kind, bytes) = if fits { (kind, bytes) } else { (Kind::Failed, payload(&RefusalV1::Unknown)) };
        // The connection may be gone.
        let _ = self.send(kind, bytes).await;
    }
}

/// What an agent says of a watch.
enum Said {
    More(u32),
    Enough,
}

async fn read(inner: &Weak<Inner>, agent: &str, frames: &mut Frames, answers: &mpsc::Sender<Frame>) -> io::Result<()> {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut watches: BTreeMap<u64, mpsc::Sender<Said>> = BTreeMap::new();
    // Ends with the connection: nobody would hear the answers.
    let mut work = JoinSet::new();
    while let Some(frame) = frames.next().await? {
        while work.try_join_next().is_some() {}
        let Some(inner) = inner.upgrade() else { return Ok(()) };
        let caller = Caller { answers: answers.clone(), group: frame.group, call: frame.call };
        match frame.kind {
            Kind::Ask => match decode::<CallV1>(&frame.payload)? {
                CallV1::State => caller.answer(Ok(AnswerV1::State(state(&inner)))).await,
                CallV1::Watch { start, end, from } => {
                    watches.retain(|_, said| !said.is_closed());
                    let range = KeyRange::between(start.0, end.map(|end| end.0));
                    let store = lock(&inner.agents.store).upgrade();
                    // Before the next frame is read: what is written by it is seen by this watch.
                    match store.map(|store| store.watch(range, from.map(Revision))) {
                        Some(Ok(stream)) if watches.len() < WATCHES => {
                            let (said, hears) = mpsc::channel(WINDOW as usize);
                            watches.insert(frame.call, said);
                            work.spawn(watch(caller, stream, hears));
                        }
                        Some(Err(error)) => caller.answer(Err(error.into())).await,
                        Some(Ok(_)) | None => caller.answer(Err(starting())).await,
                    }
                }
                call => {
                    let Ok(turn) = Arc::clone(&at_once).acquire_owned().await else { return Ok(()) };
                    let inner = Arc::downgrade(&inner);
                    work.spawn(async move {
                        let done = handle(&inner, &caller, call).await;
                        caller.answer(done).await;
                        drop(turn);
                    });
                }
            },
            Kind::More | Kind::Enough => {
                let said = match frame.kind {
                    Kind::More => Said::More(decode(&frame.payload)?),
                    _ => Said::Enough,
                };
                // It may have ended already. Nobody says more than there were parts.
                if let Some(watch) = watches.get(&frame.call) {
                    let _ = watch.try_send(said);
                }
            }
            Kind::Certify => {
                let request = decode::<CertifyV1>(&frame.payload)?.of(agent);
                let answered = match inner.transport.door() {
                    Some(door) => door.certify(request).await,
                    None => CertificateAnswer::Elsewhere,
                };
                caller.send(Kind::Reply, payload(&CertifiedV1::from(answered))).await?;
            }
            other => {
                let what = format!("an agent sends {other:?}, which is not its to say");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
    }
    Ok(())
}

fn state(inner: &Inner) -> StateV1 {
    let reason = |reason: NotServing| ReasonV1::from(&reason);
    let streams = lock(&inner.agents.streams).upgrade();
    let streams_problem = streams.map_or(Some(NotServing::Starting), |streams| streams.not_serving());
    let Some(store) = lock(&inner.agents.store).upgrade() else {
        let problem = Some(reason(NotServing::Starting));
        return StateV1 { streams_problem: problem.clone(), problem, ..StateV1::default() };
    };
    let status = store.status();
    StateV1 {
        leader: status.leader,
        term: status.term,
        revision: status.revision.0,
        applied_index: status.applied_index,
        used_bytes: status.used_bytes,
        quota_bytes: status.quota_bytes,
        is_async: status.durability == data::Durability::Async,
        problem: status.not_serving.map(reason),
        streams_problem: streams_problem.map(reason),
    }
}

/// Feeds a watch until the agent has enough, or the watch ends.
async fn watch(caller: Caller, mut stream: WatchStream, mut said: mpsc::Receiver<Said>) {
    let mut window = WINDOW;
    loop {
        let item = tokio::select! {
            biased;
            heard = said.recv() => match heard {
                Some(Said::More(more)) => {
                    window = window.saturating_add(more).min(WINDOW);
                    continue;
                }
                Some(Said::Enough) | None => {
                    // What has happened so far is told: whoever ends it knows of it already.
                    while window > 0 && let Some(Some(item)) = stream.next().now_or_never() {
                        if feed(&caller, &item, &mut window, &mut said).await.is_err() {
                            return;
                        }
                    }
                    break;
                }
            },
            item = stream.next(), if window > 0 => item,
        };
        let Some(item) = item else { break };
        if feed(&caller, &item, &mut window, &mut said).await.is_err() {
            return;
        }
    }
    caller.answer(Ok(AnswerV1::WatchEnded)).await;
}

/// Sends one item, in parts; waits until the agent takes more where it must.
async fn feed(
    caller: &Caller,
    item: &WatchItem,
    window: &mut u32,
    said: &mut mpsc::Receiver<Said>,
) -> Result<(), io::Error> {
    for part in parts(item, PART_BYTES) {
        while *window == 0 {
            match said.recv().await {
                Some(Said::More(more)) => *window = more.min(WINDOW),
                // In the middle of a revision: the agent will not use half of it.
                Some(Said::Enough) | None => return Err(io::ErrorKind::NotConnected.into()),
            }
        }
        *window -= 1;
        caller.send(Kind::Part, payload(&part)).await?;
    }
    Ok(())
}

async fn handle(inner: &Weak<Inner>, caller: &Caller, call: CallV1) -> Result<AnswerV1, RefusalV1> {
    let (store, streams) = {
        let inner = inner.upgrade().ok_or_else(starting)?;
        (lock(&inner.agents.store).upgrade(), lock(&inner.agents.streams).upgrade())
    };
    let (store, streams) = (store.ok_or_else(starting), streams.ok_or_else(starting));
    Ok(match call {
        CallV1::State | CallV1::Watch { .. } => return Err(RefusalV1::Invalid),
        CallV1::Do(command) => change(&*store?, command.try_into().map_err(|_| RefusalV1::Invalid)?).await?,
        CallV1::Range { start, end, limit, stale } => {
            let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
            let request = RangeRequest { range: KeyRange::between(start.0, end.map(|end| end.0)), limit };
            let found = store?.range(request, how(stale)).await?;
            let (mut part, mut bytes) = (Vec::new(), 0);
            for kv in found.kvs {
                bytes += kv.key.as_bytes().len() + kv.value.len();
                part.push(PairV1::from(kv));
                if bytes >= PART_BYTES {
                    bytes = 0;
                    let sent = caller.send(Kind::Part, payload(&std::mem::take(&mut part))).await;
                    sent.map_err(|_| RefusalV1::Unknown)?;
                }
            }
            caller.send(Kind::Part, payload(&part)).await.map_err(|_| RefusalV1::Unknown)?;
            AnswerV1::Range { revision: found.revision.0, more: found.more }
        }
        CallV1::KeepAlive { lease } => granted(store?.lease_keep_alive(LeaseId(lease)).await?),
        CallV1::LeaseInfo { lease } => {
            AnswerV1::LeaseInfo(LeaseInfoV1::from(&store?.lease_info(LeaseId(lease)).await?))
        }
        CallV1::Members => AnswerV1::Members(MembersSeenV1::from(store?.members().await)),
        CallV1::Change(ChangeV1::Remove { name }) => AnswerV1::Members(store?.remove_member(&name).await?.into()),
        CallV1::Change(ChangeV1::Transfer { name }) => AnswerV1::Members(store?.transfer_leader(&name).await?.into()),
        CallV1::Change(ChangeV1::Demote { .. }) => return Err(RefusalV1::Invalid),
        CallV1::Stream(request) => {
            write_stream(&*streams?, request.try_into().map_err(|_| RefusalV1::Invalid)?).await?
        }
        CallV1::StreamRead { stream, from, limit, stale } => {
            let limit = usize::try_from(limit).unwrap_or(MAX_READ_ENTRIES);
            let read = streams?.read(name(&stream)?, from, limit, how(stale)).await?;
            let entries = read.entries.into_iter().map(StreamEntryV1::from).collect();
            AnswerV1::Entries { entries, next: read.next }
        }
        CallV1::StreamWait { stream, offset, patience_ms } => {
            let patience = Duration::from_millis(patience_ms).min(WAIT);
            AnswerV1::IsThere(streams?.wait(name(&stream)?, offset, patience).await?)
        }
        CallV1::StreamCursor { stream, cursor } => {
            AnswerV1::Offset(streams?.cursor(name(&stream)?, name(&cursor)?).await?)
        }
        CallV1::StreamList { stale } => {
            let all = streams?.list(how(stale)).await?;
            AnswerV1::Streams(all.into_iter().map(StreamInfoV1::from).collect())
        }
        CallV1::StreamDescribe { stream, stale } => {
            AnswerV1::Streams(vec![streams?.describe(name(&stream)?, how(stale)).await?.into()])
        }
    })
}

async fn change(store: &RaftStore, command: Command) -> Result<AnswerV1, RefusalV1> {
    Ok(match command {
        // The bound is the one of this cluster's servers, not the agent's.
        Command::Txn { txn, .. } => {
            let results = |results: Vec<OpResult>| results.into_iter().map(OpResultV1::from).collect();
            match store.txn(txn).await? {
                TxnOutcome::Committed { revision, results: found, durability } => AnswerV1::Txn {
                    succeeded: Some(true),
                    revision: revision.0,
                    results: results(found),
                    is_async: durability == data::Durability::Async,
                },
                TxnOutcome::Rejected { revision, results: found } => AnswerV1::Txn {
                    succeeded: Some(false),
                    revision: revision.0,
                    results: results(found),
                    is_async: false,
                },
                TxnOutcome::Unknown => {
                    AnswerV1::Txn { succeeded: None, revision: 0, results: Vec::new(), is_async: false }
                }
            }
        }
        Command::LeaseGrant { ttl } => granted(store.lease_grant(ttl).await?),
        Command::LeaseRevoke { lease } => AnswerV1::Revoked { revision: store.lease_revoke(lease).await?.0 },
        // Only a leader ends leases by their time.
        Command::LeaseExpire { .. } | Command::LeaseRenewAll => return Err(RefusalV1::Invalid),
    })
}

async fn write_stream(streams: &RaftStreams, request: StreamRequest) -> Result<AnswerV1, RefusalV1> {
    Ok(match request {
        StreamRequest::Append(append) => {
            let appended = streams.append(append).await?;
            AnswerV1::Appended {
                offset: appended.offset,
                repeated: appended.repeated,
                is_async: appended.durability == data::Durability::Async,
            }
        }
        StreamRequest::Commit { stream, cursor, offset } => {
            streams.commit(stream, cursor, offset).await?;
            AnswerV1::Done
        }
        StreamRequest::Seal { stream, epoch } => AnswerV1::Offset(streams.seal(stream, epoch).await?),
        StreamRequest::Delete { stream, epoch } => {
            streams.delete(stream, epoch).await?;
            AnswerV1::Done
        }
        StreamRequest::Trim => return Err(RefusalV1::Invalid),
    })
}

fn granted(grant: data::LeaseGrant) -> AnswerV1 {
    AnswerV1::Lease { lease: grant.lease.0, ttl_ms: u64::try_from(grant.ttl.as_millis()).unwrap_or(u64::MAX) }
}

fn how(stale: bool) -> Consistency {
    if stale { Consistency::Stale } else { Consistency::Linearizable }
}

fn starting() -> RefusalV1 {
    StoreError::NotServing(NotServing::Starting).into()
}

fn name(text: &str) -> Result<Name, RefusalV1> {
    Name::new(text).map_err(RefusalV1::from)
}

fn decode<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> io::Result<T> {
    wire::decode(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
