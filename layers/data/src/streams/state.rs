//! The pure state of all streams: (state, command) -> (state, answer). It says where each entry goes in which segment,
//! so that segments are the same bytes on every replica; the entries themselves are not in here.
//! Deterministic: time is in the command (the leader's clock when it proposed), maps are ordered, limits travel along.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::{
    Append, Counted, MAX_CURSORS, MAX_PRODUCERS, MAX_STREAMS, Name, PRODUCER_IDLE, REMEMBERED_SEQS, StreamError,
    StreamInfo,
};

/// What an entry takes in a segment beyond its own bytes.
pub const ENTRY_OVERHEAD: usize = 32;
/// A segment is a sixteenth of what a stream keeps, at least and at most so many bytes.
const SEGMENT_BYTES: (u64, u64) = (64 * 1024, 4 * 1024 * 1024);
/// Parts of the retention that a segment makes up.
const PARTS: u64 = 16;

/// What a stream keeps: the leader's configuration when it proposed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Retention {
    /// Most bytes of a stream; one entry may stand over.
    pub max_bytes: u64,
    /// Entries older than this go, in milliseconds; `None` keeps them as long as there is room.
    pub max_age_ms: Option<u64>,
}

/// A change every replica applies in the same order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamCommand {
    /// The leader's clock when it proposed, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// What streams keep.
    pub retention: Retention,
    /// What is wanted.
    pub request: StreamRequest,
}

/// What is wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamRequest {
    /// One more entry.
    Append(Append),
    /// A cursor moves.
    Commit {
        /// Of this stream.
        stream: Name,
        /// Which.
        cursor: Name,
        /// To where.
        offset: u64,
    },
    /// Older epochs are shut out.
    Seal {
        /// Of this stream.
        stream: Name,
        /// From this one on.
        epoch: u64,
    },
    /// A stream goes.
    Delete {
        /// Which.
        stream: Name,
        /// In this epoch.
        epoch: Option<u64>,
    },
    /// Entries that have had their time go, in every stream.
    Trim,
}

/// What a command came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StreamAnswer {
    /// An entry has this offset.
    Appended {
        /// Its offset.
        offset: u64,
        /// It had it before.
        repeated: bool,
    },
    /// A cursor stands where it was wanted.
    Committed,
    /// Older epochs end here.
    Sealed {
        /// The offset after their last entry.
        end: u64,
    },
    /// A stream is gone.
    Deleted,
    /// What had had its time is gone.
    Trimmed,
    /// Nothing was changed.
    Failed(StreamError),
}

/// Where an entry's bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The stream's number.
    pub id: u64,
    /// The segment: its first offset.
    pub segment: u64,
    /// Bytes before it in the segment.
    pub position: u64,
    /// Its offset.
    pub offset: u64,
    /// Its time.
    pub at_ms: u64,
}

/// Consecutive entries in one file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentRecord {
    /// Offset of the first entry.
    pub first: u64,
    /// How many entries.
    pub entries: u64,
    /// Their bytes, overhead included.
    pub bytes: u64,
    /// Time of the first entry.
    pub first_at_ms: u64,
    /// Time of the last entry.
    pub last_at_ms: u64,
}

/// What is remembered of a producer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProducerRecord {
    /// Its newest sequence number.
    pub seq: u64,
    /// When that was appended.
    pub at_ms: u64,
    /// The offsets of its newest entries, the newest last; at most [`REMEMBERED_SEQS`].
    pub offsets: VecDeque<u64>,
}

/// One stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamRecord {
    /// Its number, never used again.
    pub id: u64,
    /// The oldest offset kept.
    pub first: u64,
    /// The offset of the next entry.
    pub next: u64,
    /// Bytes in segments.
    pub bytes: u64,
    /// Time of the newest entry.
    pub at_ms: u64,
    /// The newest epoch it was sealed with, and where the older ones end.
    pub sealed: Option<(u64, u64)>,
    /// Who has appended.
    pub producers: BTreeMap<Name, ProducerRecord>,
    /// Who has read how far.
    pub cursors: BTreeMap<Name, u64>,
    /// Its entries, the oldest first.
    pub segments: VecDeque<SegmentRecord>,
}

/// All streams. A clone shares them, which is what a snapshot takes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamsState {
    next_id: u64,
    streams: BTreeMap<Name, Arc<StreamRecord>>,
    garbage_bytes: u64,
}

/// What became of an append, before anything is changed.
enum Verdict {
    Repeated(u64),
    Taken { place: Place, forgets: Option<Name> },
}

impl StreamsState {
    /// Where the entry of this command will go, if it is an append that is taken. The next [`Self::apply`] of the same
    /// command agrees.
    pub fn place(&self, command: &StreamCommand) -> Option<Place> {
        let StreamRequest::Append(append) = &command.request else { return None };
        match self.judge(command, append) {
            Ok(Verdict::Taken { place, .. }) => Some(place),
            _ => None,
        }
    }

    /// Applies one command. Total: every command has an answer on every state.
    pub fn apply(&mut self, command: &StreamCommand) -> StreamAnswer {
        let done = match &command.request {
            StreamRequest::Append(append) => self.append(command, append),
            StreamRequest::Commit { stream, cursor, offset } => self.commit(stream, cursor, *offset),
            StreamRequest::Seal { stream, epoch } => self.seal(stream, *epoch),
            StreamRequest::Delete { stream, epoch } => self.delete(stream, *epoch),
            StreamRequest::Trim => {
                for name in self.overdue(command.now_ms, command.retention) {
                    self.trim(&name, command);
                }
                Ok(StreamAnswer::Trimmed)
            }
        };
        done.unwrap_or_else(StreamAnswer::Failed)
    }

    /// Streams with entries that have had their time.
    pub fn overdue(&self, now_ms: u64, retention: Retention) -> Vec<Name> {
        let due = |record: &StreamRecord| record.segments.front().is_some_and(|oldest| aged(oldest, now_ms, retention));
        self.streams.iter().filter(|(_, record)| due(record)).map(|(name, _)| name.clone()).collect()
    }

    /// One stream.
    pub fn stream(&self, name: &Name) -> Option<&Arc<StreamRecord>> {
        self.streams.get(name)
    }

    /// All streams by name.
    pub fn streams(&self) -> impl Iterator<Item = (&Name, &Arc<StreamRecord>)> + '_ {
        self.streams.iter()
    }

    /// The number that the next new stream gets.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Bytes in segments that went since this state began: what a snapshot lets go of.
    pub fn garbage_bytes(&self) -> u64 {
        self.garbage_bytes
    }

    /// An empty state, to be filled from a snapshot.
    pub fn restore(next_id: u64) -> Self {
        Self { next_id, ..Self::default() }
    }

    /// Puts back a stream of a snapshot.
    pub fn restore_stream(&mut self, name: Name, record: StreamRecord) {
        self.streams.insert(name, Arc::new(record));
    }

    /// A stream as its users see it.
    pub fn describe(&self, name: &Name) -> Option<StreamInfo> {
        let record = self.streams.get(name)?;
        Some(StreamInfo {
            name: name.clone(),
            first: record.first,
            next: record.next,
            bytes: record.bytes,
            sealed: record.sealed.map(|(epoch, _)| epoch),
            producers: record.producers.iter().map(|(name, producer)| (name.clone(), producer.seq)).collect(),
            cursors: record.cursors.clone(),
        })
    }

    fn judge(&self, command: &StreamCommand, append: &Append) -> Result<Verdict, StreamError> {
        let record = self.streams.get(&append.stream);
        let mut forgets = None;
        if let Some((name, seq)) = &append.producer {
            let known = record.and_then(|record| record.producers.get(name));
            let last = known.map_or(0, |producer| producer.seq);
            // What is there already stays there: a repetition gets its offset even from a stream that was sealed since.
            let back = usize::try_from(last.wrapping_sub(*seq)).unwrap_or(usize::MAX);
            if let Some(producer) = known
                && *seq <= last
                && let Some(at) = producer.offsets.len().checked_sub(back.saturating_add(1))
            {
                return Ok(Verdict::Repeated(producer.offsets[at]));
            }
            if last.checked_add(1) != Some(*seq) {
                return Err(StreamError::OutOfSequence { expected: last.saturating_add(1) });
            }
            if known.is_none() {
                forgets = record.map_or(Ok(None), |record| record.room_for_producer(command.now_ms))?;
            }
        }
        let sealed = record.and_then(|record| record.sealed);
        admitted(sealed, append.epoch, false)?;
        let Some(record) = record else {
            if self.streams.len() >= MAX_STREAMS {
                return Err(StreamError::Full(Counted::Streams));
            }
            let place = Place { id: self.next_id, segment: 0, position: 0, offset: 0, at_ms: command.now_ms };
            return Ok(Verdict::Taken { place, forgets });
        };
        let at_ms = command.now_ms.max(record.at_ms);
        let newest = record.segments.back();
        let going_on = newest.filter(|segment| !full(segment, bytes(append), at_ms, command.retention));
        let (segment, position) = going_on.map_or((record.next, 0), |segment| (segment.first, segment.bytes));
        Ok(Verdict::Taken { place: Place { id: record.id, segment, position, offset: record.next, at_ms }, forgets })
    }

    fn append(&mut self, command: &StreamCommand, append: &Append) -> Result<StreamAnswer, StreamError> {
        let (place, forgets) = match self.judge(command, append)? {
            Verdict::Repeated(offset) => return Ok(StreamAnswer::Appended { offset, repeated: true }),
            Verdict::Taken { place, forgets } => (place, forgets),
        };
        let record = self.make(&append.stream);
        if let Some(forgotten) = forgets {
            record.producers.remove(&forgotten);
        }
        let bytes = bytes(append);
        if place.position == 0 {
            record.segments.push_back(SegmentRecord {
                first: place.segment,
                entries: 0,
                bytes: 0,
                first_at_ms: place.at_ms,
                last_at_ms: place.at_ms,
            });
        }
        if let Some(segment) = record.segments.back_mut() {
            segment.entries += 1;
            segment.bytes += bytes;
            segment.last_at_ms = place.at_ms;
        }
        record.bytes += bytes;
        record.next += 1;
        record.at_ms = place.at_ms;
        if let Some((name, seq)) = &append.producer {
            let new = || ProducerRecord { seq: 0, at_ms: 0, offsets: VecDeque::new() };
            let producer = record.producers.entry(name.clone()).or_insert_with(new);
            (producer.seq, producer.at_ms) = (*seq, place.at_ms);
            producer.offsets.push_back(place.offset);
            if producer.offsets.len() > REMEMBERED_SEQS {
                producer.offsets.pop_front();
            }
        }
        self.trim(&append.stream, command);
        Ok(StreamAnswer::Appended { offset: place.offset, repeated: false })
    }

    fn commit(&mut self, stream: &Name, cursor: &Name, offset: u64) -> Result<StreamAnswer, StreamError> {
        let record = self.streams.get(stream).ok_or_else(|| StreamError::NotFound(stream.clone()))?;
        if offset > record.next {
            return Err(StreamError::PastEnd { next: record.next });
        }
        if !record.cursors.contains_key(cursor) && record.cursors.len() >= MAX_CURSORS {
            return Err(StreamError::Full(Counted::Cursors));
        }
        self.make(stream).cursors.insert(cursor.clone(), offset);
        Ok(StreamAnswer::Committed)
    }

    fn seal(&mut self, stream: &Name, epoch: u64) -> Result<StreamAnswer, StreamError> {
        let known = self.streams.get(stream);
        if known.is_none() && self.streams.len() >= MAX_STREAMS {
            return Err(StreamError::Full(Counted::Streams));
        }
        match known.and_then(|record| record.sealed) {
            Some((current, _)) if current > epoch => return Err(StreamError::Fenced { epoch: current }),
            Some((current, end)) if current == epoch => return Ok(StreamAnswer::Sealed { end }),
            _ => {}
        }
        let record = self.make(stream);
        let end = record.next;
        record.sealed = Some((epoch, end));
        Ok(StreamAnswer::Sealed { end })
    }

    fn delete(&mut self, stream: &Name, epoch: Option<u64>) -> Result<StreamAnswer, StreamError> {
        let record = self.streams.get(stream).ok_or_else(|| StreamError::NotFound(stream.clone()))?;
        admitted(record.sealed, epoch, true)?;
        self.garbage_bytes += record.bytes;
        self.streams.remove(stream);
        Ok(StreamAnswer::Deleted)
    }

    /// A stream to change; made if it does not exist.
    fn make(&mut self, name: &Name) -> &mut StreamRecord {
        let next_id = &mut self.next_id;
        let record = self.streams.entry(name.clone()).or_insert_with(|| {
            let record = StreamRecord { id: *next_id, ..StreamRecord::default() };
            *next_id += 1;
            Arc::new(record)
        });
        Arc::make_mut(record)
    }

    fn trim(&mut self, name: &Name, command: &StreamCommand) {
        let record = self.make(name);
        let mut gone = 0;
        while let Some(oldest) = record.segments.front()
            && (record.bytes > command.retention.max_bytes && record.segments.len() > 1
                || aged(oldest, command.now_ms, command.retention))
        {
            record.bytes -= oldest.bytes;
            gone += oldest.bytes;
            record.segments.pop_front();
        }
        record.first = record.segments.front().map_or(record.next, |oldest| oldest.first);
        self.garbage_bytes += gone;
    }
}

impl StreamRecord {
    /// Whom a new producer takes the place of, if there is no other.
    fn room_for_producer(&self, now_ms: u64) -> Result<Option<Name>, StreamError> {
        if self.producers.len() < MAX_PRODUCERS {
            return Ok(None);
        }
        let oldest = self.producers.iter().min_by_key(|(_, producer)| producer.at_ms);
        let idle_ms = u64::try_from(PRODUCER_IDLE.as_millis()).unwrap_or(u64::MAX);
        match oldest {
            Some((name, producer)) if producer.at_ms.saturating_add(idle_ms) <= now_ms => Ok(Some(name.clone())),
            _ => Err(StreamError::Full(Counted::Producers)),
        }
    }
}

/// Whether a request of this epoch passes a seal.
fn admitted(sealed: Option<(u64, u64)>, epoch: Option<u64>, without_too: bool) -> Result<(), StreamError> {
    match sealed {
        Some((sealed, _)) if epoch.map_or(!without_too, |epoch| epoch < sealed) => {
            Err(StreamError::Fenced { epoch: sealed })
        }
        _ => Ok(()),
    }
}

/// What an append takes in a segment.
fn bytes(append: &Append) -> u64 {
    (append.entry.len() + ENTRY_OVERHEAD) as u64
}

/// Whether the next entry begins another segment.
fn full(segment: &SegmentRecord, bytes: u64, at_ms: u64, retention: Retention) -> bool {
    let most = (retention.max_bytes / PARTS).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1);
    let span = retention.max_age_ms.map(|age| age / PARTS);
    segment.bytes + bytes > most || span.is_some_and(|span| at_ms.saturating_sub(segment.first_at_ms) > span)
}

/// Whether even the newest entry of a segment has had its time.
fn aged(segment: &SegmentRecord, now_ms: u64, retention: Retention) -> bool {
    retention.max_age_ms.is_some_and(|age| segment.last_at_ms.saturating_add(age) < now_ms)
}

#[cfg(test)]
mod tests;
