//! The engine's view of the log: entries in, records out, and the newest entries kept decoded for apply.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader};

use crate::record::{Kind, Record};
use crate::types::{self, Content, Entry, LogId, Proposal, Types, Vote};
use crate::wal::{Order, Wal, lock};
use crate::wire::{self, LogIdV1, MembershipV1};

/// Bytes of written entries kept decoded; older ones are read back from disk.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// Bytes of entries sent to a follower in one round, unless a single one is larger.
const ROUND_BYTES: usize = 4 * 1024 * 1024;
/// Entries looked at at once for a round.
const ROUND_PIECE: u64 = 16;

/// Entries read at once when many are asked for.
const PIECE_ENTRIES: u64 = 64;

/// Clones share the log.
#[derive(Clone)]
pub(crate) struct LogStore {
    wal: Arc<Wal>,
    cache: Arc<Mutex<Cache>>,
}

/// The newest entries, consecutive. Entries that are not written yet are always here.
#[derive(Default)]
struct Cache {
    entries: VecDeque<(Entry, usize)>,
    bytes: usize,
}

impl LogStore {
    pub(crate) fn new(wal: Arc<Wal>) -> Self {
        Self { wal, cache: Arc::default() }
    }

    fn read(&self, from: u64, to: u64) -> io::Result<Vec<Entry>> {
        let (first, cached): (u64, Vec<Entry>) = {
            let cache = lock(&self.cache);
            let first = cache.entries.front().map_or(u64::MAX, |(entry, _)| entry.log_id.index);
            // Entries are consecutive, so a place is an index.
            let place = |index: u64| {
                usize::try_from(index.saturating_sub(first)).unwrap_or(usize::MAX).min(cache.entries.len())
            };
            let (start, end) = (place(from), place(to));
            (first, cache.entries.range(start..end.max(start)).map(|(entry, _)| entry.clone()).collect())
        };
        let mut entries = Vec::with_capacity(cached.len());
        for record in self.wal.read(from, to.min(first))? {
            entries.push(entry(&record)?);
        }
        entries.extend(cached);
        Ok(entries)
    }
}

impl Cache {
    fn push(&mut self, entry: Entry, bytes: usize) {
        self.entries.push_back((entry, bytes));
        self.bytes += bytes;
    }

    /// Lets go of the oldest entries that can be read from disk.
    fn shrink(&mut self, written_next: u64) {
        while self.bytes > CACHE_BYTES
            && self.entries.front().is_some_and(|(entry, _)| entry.log_id.index < written_next)
            && let Some((_, bytes)) = self.entries.pop_front()
        {
            self.bytes -= bytes;
        }
    }

    fn retain(&mut self, keep: impl Fn(u64) -> bool) {
        self.entries.retain(|(entry, _)| keep(entry.log_id.index));
        self.bytes = self.entries.iter().map(|(_, bytes)| bytes).sum();
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = half_open(&range);
        self.read(from, to)
    }

    /// In pieces: a replay must not hold the whole log in memory.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let (from, to) = half_open(&range);
        let pieces = stream::try_unfold(from, move |next| {
            let end = to.min(next.saturating_add(PIECE_ENTRIES));
            let read = if next < to { log.read(next, end) } else { Ok(Vec::new()) };
            std::future::ready(read.map(|piece| (!piece.is_empty()).then_some((piece, end))))
        });
        Box::pin(pieces.map_ok(|piece| stream::iter(piece).map(Ok)).try_flatten())
    }

    /// For a round of entries to a follower: no more than a frame holds, and at least one.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let (mut entries, mut bytes): (Vec<Entry>, usize) = (Vec::new(), 0);
        let mut next = start;
        while next < end && bytes < ROUND_BYTES {
            let piece = self.read(next, end.min(next + ROUND_PIECE))?;
            if piece.is_empty() {
                break;
            }
            next += piece.len() as u64;
            for entry in piece {
                bytes += size(&entry);
                if bytes > ROUND_BYTES && !entries.is_empty() {
                    return Ok(entries);
                }
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.wal.superblock().vote.map(types::vote))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let last_purged_log_id = self.wal.superblock().purged.map(types::log_id);
        Ok(LogState { last_purged_log_id, last_log_id: self.wal.last().map(types::log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = types::vote_dto(vote);
        self.wal.order_and_wait(|done| Order::SaveVote { vote, done }).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut cache = lock(&self.cache);
            cache.shrink(self.wal.written_next());
            for entry in entries {
                let record = record(&entry);
                cache.push(entry, record.encoded_length());
                records.push(record);
            }
        }
        let done = Box::new(move |result| callback.io_completed(result));
        self.wal.order(Order::Append { records, done });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let last = last.map(|last| types::log_id_dto(&last));
        lock(&self.cache).retain(|index| last.is_some_and(|last| index <= last.index));
        self.wal.order_and_wait(|done| Order::TruncateAfter { last, done }).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = types::log_id_dto(&upto);
        lock(&self.cache).retain(|index| index > upto.index);
        self.wal.order_and_wait(|done| Order::Purge { upto, done }).await
    }
}

/// What an entry takes in a frame, nearly.
fn size(entry: &Entry) -> usize {
    const AROUND_IT: usize = 64;
    AROUND_IT + if let EntryPayload::Normal(proposal) = &entry.payload { proposal.encoded.len() } else { 0 }
}

fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// An entry as it is written and sent.
pub(crate) fn record(entry: &Entry) -> Record {
    let (kind, payload) = match &entry.payload {
        EntryPayload::Blank => (Kind::Blank, Bytes::new()),
        EntryPayload::Normal(proposal) => {
            let kind = match proposal.content {
                Content::Store(_) => Kind::Commands,
                Content::Streams(_) => Kind::StreamCommand,
            };
            (kind, proposal.encoded.clone())
        }
        EntryPayload::Membership(members) => (Kind::Membership, wire::encode(&types::membership_dto(members)).into()),
    };
    let LogIdV1 { term, index } = types::log_id_dto(&entry.log_id);
    Record { kind, term, index, payload }
}

/// A record as it was written or sent.
pub(crate) fn entry(record: &Record) -> io::Result<Entry> {
    let payload = match record.kind {
        Kind::Blank => EntryPayload::Blank,
        Kind::Commands => EntryPayload::Normal(Proposal::decode(record.payload.clone()).map_err(io::Error::other)?),
        Kind::Command => EntryPayload::Normal(Proposal::decode_one(&record.payload).map_err(io::Error::other)?),
        Kind::StreamCommand => {
            EntryPayload::Normal(Proposal::decode_of_streams(record.payload.clone()).map_err(io::Error::other)?)
        }
        Kind::Membership => {
            let membership: MembershipV1 = wire::decode(&record.payload).map_err(io::Error::other)?;
            EntryPayload::Membership(types::membership(membership))
        }
        Kind::Truncate => return Err(io::Error::other("a truncation is not an entry")),
    };
    Ok(Entry { log_id: types::log_id(LogIdV1 { term: record.term, index: record.index }), payload })
}
