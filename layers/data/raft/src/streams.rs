//! `Streams` over a Raft group of their own: another log, queue, thread and snapshot than the store's, on the same
//! connections. What the leader must do is done here or there; entries are read from this node's segments.
//! Deliberately absent: acknowledgements before a majority has the entry.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use data::{
    Append, Appended, BoxFuture, Consistency, MAX_ENTRY_BYTES, MAX_READ_BYTES, MAX_READ_ENTRIES, Name, NotServing,
    Reach, Retention, StoreError, StreamAnswer, StreamCommand, StreamEntry, StreamError, StreamInfo, StreamRead,
    StreamRecord, StreamRequest, Streams, StreamsMetrics, StreamsState, Waits,
};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::leading::{self, Again, Ask};
use crate::machine::Shared;
use crate::node::Node;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::peers::Lane;
use crate::peers::frame::Kind;
use crate::peers::message::payload;
use crate::replica::{Leader, Replica};
use crate::superblock;
use crate::surroundings;
use crate::types::{self, Proposal, Reply};
use crate::wal::lock;
use crate::wire::{self as encoding, DecodeError, LogIdV1};

pub(crate) mod following;
pub(crate) mod limit;
pub(crate) mod part;
pub(crate) mod pieces;
pub(crate) mod segments;
pub(crate) mod wire;

use pieces::Pieces;
use wire::{StreamAnswerV1, StreamRequestV1};

/// The number of the group.
pub(crate) const STREAMS_GROUP: u16 = 1;
/// The folder within the store's.
pub(crate) const FOLDER: &str = "streams";
/// A file beside that folder, made after it: without it one cannot tell a folder that is lost from a new one.
const MADE: &str = "streams-made";
/// Most bytes of appends on their way at once; further callers wait their turn.
const IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// A permit of the bound above.
const PERMIT_BYTES: usize = 1024;
/// Between two looks for entries that have had their time, at least and at most.
const TRIM: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(60));
/// A reader that lost its segment to the retention looks again so often.
const LOOKS: usize = 3;

/// What the streams are opened with, beside the options of the store.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// What each stream keeps.
    pub retention: Retention,
    /// A snapshot is taken after this many log entries,
    pub snapshot_entries: u64,
    /// or after this many bytes of log, or of segments that went.
    pub snapshot_log_bytes: u64,
    /// Entries kept in the log behind a snapshot, for followers that are a little behind.
    pub entries_behind_snapshot: u64,
}

impl StreamOptions {
    /// The defaults, with this retention.
    pub fn new(retention: Retention) -> Self {
        Self { retention, snapshot_entries: 50_000, snapshot_log_bytes: 32 * 1024 * 1024, entries_behind_snapshot: 0 }
    }
}

/// The streams beside an embedded store. Dropping them stops them (and waits for that); they end before the store.
pub struct RaftStreams {
    node: Node,
    base: Replica,
    in_flight: Semaphore,
}

impl RaftStreams {
    pub(crate) fn open(options: StreamOptions, base: &Replica) -> Result<Arc<Self>, OpenError> {
        let store = &base.shared.options;
        let directory = store.directory.join(FOLDER);
        let made = store.directory.join(MADE);
        let list = |directory: &std::path::Path| match store.disk.list(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            listed => listed.map_err(OpenError::io("list", directory)),
        };
        let has = |names: &[String], wanted: &str| names.iter().any(|name| name == wanted);
        let known = has(&list(&store.directory)?, MADE);
        if known && !has(&list(&directory)?, superblock::FILE_NAME) {
            let what = format!("it says that there were streams, and the folder `{FOLDER}` beside it holds none");
            return Err(OpenError::corrupt(&made, 0, what));
        }
        let options = Options {
            directory,
            group: STREAMS_GROUP,
            retention: options.retention,
            snapshot_entries: options.snapshot_entries,
            snapshot_log_bytes: options.snapshot_log_bytes,
            entries_behind_snapshot: options.entries_behind_snapshot,
            // The store holds back enough for both.
            reserve_bytes: 0,
            ..store.clone()
        };
        let node = Node::start(options, Some(base.clone()))?;
        if !known {
            let file = store.disk.open(&made, true).map_err(OpenError::io("make", &made))?;
            file.sync().map_err(OpenError::io("flush", &made))?;
            store.disk.sync_directory(&store.directory).map_err(OpenError::io("flush", &store.directory))?;
        }
        let in_flight = Semaphore::new(IN_FLIGHT_BYTES / PERMIT_BYTES);
        let streams = Arc::new(Self { node, base: base.clone(), in_flight });
        if let Some(peers) = &base.shared.options.peers {
            *lock(&peers.inner().agents.streams) = Arc::downgrade(&streams);
        }
        Ok(streams)
    }

    /// Takes a snapshot now and purges the log behind it.
    ///
    /// # Errors
    /// [`StreamError::NotServing`] or [`StreamError::Closed`]; the streams go on as before.
    pub async fn snapshot(&self) -> Result<(), StreamError> {
        self.serving()?;
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.node.snapshot_requests.send(sender).await.map_err(|_| StreamError::Closed)?;
        let taken = receiver.await.map_err(|_| StreamError::Closed)?;
        taken.map_err(|error| StreamError::NotServing(NotServing::SnapshotFailed { error: error.to_string().into() }))
    }

    /// All streams as of now and their entries, to be saved to a file: not older than whatever was acknowledged before.
    pub(crate) async fn to_save(&self) -> Result<(StreamsState, Pieces), StreamError> {
        self.linearize().await?;
        Pieces::of(&self.replica().shared).ok_or(StreamError::NotServing(NotServing::Starting))
    }

    /// Whether this node leads the group.
    pub fn leads(&self) -> bool {
        self.replica().leader() == Leader::Here
    }

    /// Whether the members are the store's, as far as this node knows: they follow within a second.
    pub fn has_the_stores_members(&self) -> bool {
        following::same(&self.base, self.replica())
    }

    fn replica(&self) -> &Replica {
        &self.node.replica
    }

    fn serving(&self) -> Result<(), StoreError> {
        if self.in_flight.is_closed() {
            return Err(StoreError::Closed);
        }
        self.replica().serving()
    }

    async fn propose(&self, request: StreamRequest, again: Again) -> Result<StreamAnswer, StreamError> {
        self.serving()?;
        // A seal, which a promotion waits for, is not behind a flood of appends; like cursors it takes no room to speak of.
        let _turn = match &request {
            StreamRequest::Append(append) => {
                self.replica().shared.wal.way().free_for(append.entry.len()).await;
                let permits = u32::try_from(1 + append.entry.len() / PERMIT_BYTES).unwrap_or(u32::MAX);
                Some(self.in_flight.acquire_many(permits).await.map_err(|_| StreamError::Closed)?)
            }
            _ => None,
        };
        let patience = self.replica().shared.options.patience;
        let asked = payload(&StreamRequestV1::from(&request));
        let here = move |replica: Replica| {
            let proposal = proposal(&replica, request.clone());
            async move { replica.propose(proposal).await }
        };
        let answered = |bytes: &[u8]| {
            let (index, answer): (u64, StreamAnswerV1) = encoding::decode(bytes)?;
            Ok((index, Reply::Streams(StreamAnswer::try_from(answer)?)))
        };
        let ask = Ask { lane: Lane::Forward(STREAMS_GROUP), kind: Kind::Propose, asked, patience, again };
        let (index, reply) = leading::at_leader(self.replica(), || self.serving(), ask, here, answered).await?;
        // Whoever wrote here reads it here. It is committed all the same if this node is slow.
        let _ = tokio::time::timeout(patience, self.replica().applied(index)).await;
        match reply {
            Reply::Streams(StreamAnswer::Failed(error)) => Err(error),
            Reply::Streams(answer) => Ok(answer),
            Reply::Store(_) | Reply::Nothing => Err(StreamError::Unknown),
        }
    }

    /// The state of this node, not older than `consistency` wants.
    async fn state(&self, consistency: Consistency) -> Result<StreamsState, StreamError> {
        if self.in_flight.is_closed() {
            return Err(StreamError::Closed);
        }
        if self.replica().shared.options.is_witness() {
            return Err(StreamError::NotServing(NotServing::Witness));
        }
        if consistency == Consistency::Linearizable {
            self.linearize().await?;
        }
        let view = lock(&self.replica().shared.view);
        if view.applied.is_none() && self.replica().shared.options.peers.is_some() {
            drop(view);
            // Nothing is known here yet, which is not the same as that nothing is there.
            return Err(StreamError::NotServing(self.not_serving().unwrap_or(NotServing::Starting)));
        }
        Ok(view.streams.clone())
    }

    async fn linearize(&self) -> Result<(), StreamError> {
        let here = |replica: Replica| async move { Ok(types::log_id_dto(&replica.read_index().await?)) };
        let patience = self.replica().shared.options.patience;
        let ask =
            Ask { lane: Lane::Control, kind: Kind::ReadIndex, asked: Bytes::new(), patience, again: Again::Reads };
        let decode = |bytes: &[u8]| encoding::decode::<LogIdV1>(bytes);
        let upto = leading::at_leader(self.replica(), || self.serving(), ask, here, decode).await?;
        let late = |_| Err(StoreError::NotServing(NotServing::NoLeader));
        let applied = tokio::time::timeout(patience, self.replica().applied(upto.index)).await;
        applied.unwrap_or_else(late).map_err(StreamError::from)
    }

    async fn read_entries(
        &self,
        stream: Name,
        from: u64,
        limit: usize,
        consistency: Consistency,
    ) -> Result<StreamRead, StreamError> {
        let limit = limit.clamp(1, MAX_READ_ENTRIES);
        let mut state = self.state(consistency).await?;
        let mut problem = String::new();
        for _ in 0..LOOKS {
            let record = state.stream(&stream).ok_or_else(|| StreamError::NotFound(stream.clone()))?.clone();
            if from < record.first {
                return Err(StreamError::Trimmed { first: record.first });
            }
            if from > record.next {
                return Err(StreamError::PastEnd { next: record.next });
            }
            let (shared, next) = (self.replica().shared.clone(), record.next);
            let reading = surroundings::blocking(move || read_segments(&shared, &record, from, limit));
            match reading.await {
                Ok(Ok(entries)) => return Ok(StreamRead { entries, next }),
                // Its segment has just gone, perhaps.
                Ok(Err(error)) => problem = error.to_string(),
                Err(error) => problem = error.to_string(),
            }
            state = self.state(Consistency::Stale).await?;
        }
        Err(StreamError::Damaged { what: problem })
    }

    async fn wait_for(&self, stream: Name, offset: u64, patience: Duration) -> Result<bool, StreamError> {
        let until = Instant::now() + patience;
        let Some(part) = &self.replica().shared.streams else { return Err(StreamError::Closed) };
        let waiting = part.wait_for(&stream);
        loop {
            let mut notified = std::pin::pin!(waiting.notify.notified());
            // From here on no change is missed.
            notified.as_mut().enable();
            if self.in_flight.is_closed() {
                return Err(StreamError::Closed);
            }
            let next = lock(&self.replica().shared.view).streams.stream(&stream).map(|record| record.next);
            if next.ok_or_else(|| StreamError::NotFound(stream.clone()))? > offset {
                return Ok(true);
            }
            if tokio::time::timeout_at(until, notified).await.is_err() {
                return Ok(false);
            }
        }
    }
}

fn read_segments(shared: &Shared, record: &StreamRecord, from: u64, limit: usize) -> io::Result<Vec<StreamEntry>> {
    let mut entries = Vec::new();
    let Some(part) = &shared.streams else { return Ok(entries) };
    for segment in record.segments.iter().filter(|segment| segment.first + segment.entries > from) {
        let before = entries.len();
        part.segments.read(record.id, segment, from, (limit, MAX_READ_BYTES), &mut entries)?;
        let whole = (entries.len() - before) as u64 == segment.first + segment.entries - from.max(segment.first);
        if !whole || entries.len() >= limit {
            break;
        }
    }
    Ok(entries)
}

/// A request as the leader puts it into the log: with its clock and its limits.
fn proposal(replica: &Replica, request: StreamRequest) -> Proposal {
    let now_ms = surroundings::wall_clock_ms();
    Proposal::of_streams(StreamCommand { now_ms, retention: replica.shared.options.retention, request })
}

/// The same for a request of another node.
pub(crate) fn stamped(replica: &Replica, request: StreamRequestV1) -> Result<Proposal, DecodeError> {
    let request = StreamRequest::try_from(request)?;
    if matches!(&request, StreamRequest::Append(append) if append.entry.len() > MAX_ENTRY_BYTES) {
        return Err(DecodeError("an entry is longer than any".into()));
    }
    Ok(proposal(replica, request))
}

/// What goes on in the background of the group until it stops: its members follow the store's, entries have their time.
pub(crate) async fn keep(replica: Replica, base: Option<Replica>) {
    if replica.shared.streams.is_none() {
        return;
    }
    let following = async {
        if let Some(base) = base.filter(|_| replica.shared.options.peers.is_some()) {
            following::follow(replica.clone(), base).await;
        }
    };
    tokio::join!(following, trim(&replica));
}

async fn trim(replica: &Replica) {
    let retention = replica.shared.options.retention;
    let Some(age) = retention.max_age_ms.map(Duration::from_millis) else { return };
    loop {
        tokio::time::sleep((age / 32).clamp(TRIM.0, TRIM.1)).await;
        if replica.leader() != Leader::Here {
            continue;
        }
        let trim = proposal(replica, StreamRequest::Trim);
        let now_ms = surroundings::wall_clock_ms();
        if lock(&replica.shared.view).streams.overdue(now_ms, retention).is_empty() {
            continue;
        }
        if let Err(error) = replica.propose(trim).await {
            tracing::debug!(%error, "entries that have had their time are kept until a quorum is there");
        }
    }
}

impl Streams for RaftStreams {
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, StreamError>> {
        Box::pin(async move {
            let bytes = append.entry.len();
            if bytes > MAX_ENTRY_BYTES {
                return Err(StreamError::TooLarge { what: "an entry", bytes, limit: MAX_ENTRY_BYTES });
            }
            let again = if append.producer.is_some() { Again::Writes } else { Again::Never };
            match self.propose(StreamRequest::Append(append), again).await? {
                StreamAnswer::Appended { offset, repeated } => {
                    Ok(Appended { offset, repeated, durability: self.replica().shared.options.durability })
                }
                _ => Err(StreamError::Unknown),
            }
        })
    }

    fn read(
        &self,
        stream: Name,
        from: u64,
        limit: usize,
        consistency: Consistency,
    ) -> BoxFuture<'_, Result<StreamRead, StreamError>> {
        Box::pin(self.read_entries(stream, from, limit, consistency))
    }

    fn wait(&self, stream: Name, offset: u64, patience: Duration) -> BoxFuture<'_, Result<bool, StreamError>> {
        Box::pin(self.wait_for(stream, offset, patience))
    }

    fn commit(&self, stream: Name, cursor: Name, offset: u64) -> BoxFuture<'_, Result<(), StreamError>> {
        Box::pin(async move {
            self.propose(StreamRequest::Commit { stream, cursor, offset }, Again::Writes).await.map(drop)
        })
    }

    fn cursor(&self, stream: Name, cursor: Name) -> BoxFuture<'_, Result<u64, StreamError>> {
        Box::pin(async move {
            let state = self.state(Consistency::Linearizable).await?;
            let record = state.stream(&stream).ok_or(StreamError::NotFound(stream))?;
            record.cursors.get(&cursor).copied().ok_or(StreamError::NoCursor(cursor))
        })
    }

    fn seal(&self, stream: Name, epoch: u64) -> BoxFuture<'_, Result<u64, StreamError>> {
        Box::pin(async move {
            match self.propose(StreamRequest::Seal { stream, epoch }, Again::Writes).await? {
                StreamAnswer::Sealed { end } => Ok(end),
                _ => Err(StreamError::Unknown),
            }
        })
    }

    fn delete(&self, stream: Name, epoch: Option<u64>) -> BoxFuture<'_, Result<(), StreamError>> {
        Box::pin(async move { self.propose(StreamRequest::Delete { stream, epoch }, Again::Never).await.map(drop) })
    }

    fn list(&self, consistency: Consistency) -> BoxFuture<'_, Result<Vec<StreamInfo>, StreamError>> {
        Box::pin(async move {
            let state = self.state(consistency).await?;
            Ok(state.streams().filter_map(|(name, _)| state.describe(name)).collect())
        })
    }

    fn describe(&self, stream: Name, consistency: Consistency) -> BoxFuture<'_, Result<StreamInfo, StreamError>> {
        Box::pin(async move {
            let state = self.state(consistency).await?;
            state.describe(&stream).ok_or(StreamError::NotFound(stream))
        })
    }

    fn give_way(&self, reach: Reach, waits: Waits) {
        self.replica().shared.wal.way().give(waits);
        if let Some(peers) = self.replica().shared.options.peers.as_ref().filter(|_| reach == Reach::Everywhere) {
            peers.tell_members(Kind::GiveWay, STREAMS_GROUP, &payload(&(waits == Waits::UnderWay)));
        }
    }

    fn not_serving(&self) -> Option<NotServing> {
        self.replica().not_serving()
    }

    fn metrics(&self) -> StreamsMetrics {
        let shared = &self.replica().shared;
        let (log_bytes, _) = shared.wal.size_and_last_fsync();
        let streams = lock(&shared.view).streams.clone();
        let kept_bytes: BTreeMap<Name, u64> =
            streams.streams().map(|(name, record)| (name.clone(), record.bytes)).collect();
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let part = shared.streams.as_ref();
        StreamsMetrics {
            appended_entries: part.map_or(0, |part| count(&part.appended_entries)),
            appended_bytes: part.map_or(0, |part| count(&part.appended_bytes)),
            kept_bytes,
            log_bytes,
            gave_way: shared.wal.way().asked(),
            limit_bytes: part.map_or(0, |part| part.limit.bytes() as u64),
        }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StreamError>> {
        Box::pin(async move {
            self.in_flight.close();
            if let Some(part) = &self.replica().shared.streams {
                part.restarted();
            }
            self.node.begin_stop();
            let mut stopped = self.node.stopped.clone();
            stopped.wait_for(|stopped| *stopped).await.map_err(|_| StreamError::Unknown)?;
            self.replica().serving().map_err(StreamError::from)
        })
    }
}
