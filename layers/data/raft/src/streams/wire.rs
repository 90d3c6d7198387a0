//! Streams as they are persisted and sent: versioned DTOs, apart from domain types.
//! A field is never added to or taken from a V1 type: a change is a new record version.

use std::collections::{BTreeMap, VecDeque};

use data::{
    Append, Counted, Name, ProducerRecord, Retention, SegmentRecord, StreamAnswer, StreamCommand, StreamError,
    StreamRecord, StreamRequest,
};
use serde::{Deserialize, Serialize};

use crate::wire::{Bin, DecodeError};

/// A command as its record holds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StreamCommandV1 {
    now_ms: u64,
    max_bytes: u64,
    max_age_ms: Option<u64>,
    request: StreamRequestV1,
}

/// What is wanted, as it is sent to the leader.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum StreamRequestV1 {
    Append { stream: String, producer: Option<(String, u64)>, epoch: Option<u64>, entry: Bin },
    Commit { stream: String, cursor: String, offset: u64 },
    Seal { stream: String, epoch: u64 },
    Delete { stream: String, epoch: Option<u64> },
    Trim,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum StreamAnswerV1 {
    Appended {
        offset: u64,
        repeated: bool,
    },
    Committed,
    Sealed {
        end: u64,
    },
    Deleted,
    Trimmed,
    NotFound(String),
    OutOfSequence {
        expected: u64,
    },
    Fenced {
        epoch: u64,
    },
    PastEnd {
        next: u64,
    },
    Full(CountedV1),
    /// Refused for a reason that no replica of this version gives.
    Refused,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum CountedV1 {
    Streams,
    Producers,
    Cursors,
}

/// A stream in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StreamV1 {
    name: String,
    id: u64,
    first: u64,
    next: u64,
    at_ms: u64,
    sealed: Option<(u64, u64)>,
    producers: Vec<ProducerV1>,
    cursors: Vec<(String, u64)>,
    segments: Vec<SegmentV1>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProducerV1 {
    name: String,
    seq: u64,
    at_ms: u64,
    offsets: Vec<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SegmentV1 {
    first: u64,
    entries: u64,
    bytes: u64,
    first_at_ms: u64,
    last_at_ms: u64,
}

fn name(text: &str) -> Result<Name, DecodeError> {
    Name::new(text).map_err(|error| DecodeError(error.to_string()))
}

impl From<&StreamCommand> for StreamCommandV1 {
    fn from(command: &StreamCommand) -> Self {
        Self {
            now_ms: command.now_ms,
            max_bytes: command.retention.max_bytes,
            max_age_ms: command.retention.max_age_ms,
            request: StreamRequestV1::from(&command.request),
        }
    }
}

impl TryFrom<StreamCommandV1> for StreamCommand {
    type Error = DecodeError;

    fn try_from(command: StreamCommandV1) -> Result<Self, DecodeError> {
        let retention = Retention { max_bytes: command.max_bytes, max_age_ms: command.max_age_ms };
        Ok(Self { now_ms: command.now_ms, retention, request: command.request.try_into()? })
    }
}

impl From<&StreamRequest> for StreamRequestV1 {
    fn from(request: &StreamRequest) -> Self {
        match request {
            StreamRequest::Append(append) => Self::Append {
                stream: append.stream.to_string(),
                producer: append.producer.as_ref().map(|(producer, seq)| (producer.to_string(), *seq)),
                epoch: append.epoch,
                entry: Bin(append.entry.clone()),
            },
            StreamRequest::Commit { stream, cursor, offset } => {
                Self::Commit { stream: stream.to_string(), cursor: cursor.to_string(), offset: *offset }
            }
            StreamRequest::Seal { stream, epoch } => Self::Seal { stream: stream.to_string(), epoch: *epoch },
            StreamRequest::Delete { stream, epoch } => Self::Delete { stream: stream.to_string(), epoch: *epoch },
            StreamRequest::Trim => Self::Trim,
        }
    }
}

impl TryFrom<StreamRequestV1> for StreamRequest {
    type Error = DecodeError;

    fn try_from(request: StreamRequestV1) -> Result<Self, DecodeError> {
        Ok(match request {
            StreamRequestV1::Append { stream, producer, epoch, entry } => {
                let producer = producer.map(|(producer, seq)| name(&producer).map(|name| (name, seq))).transpose()?;
                Self::Append(Append { stream: name(&stream)?, producer, epoch, entry: entry.0 })
            }
            StreamRequestV1::Commit { stream, cursor, offset } => {
                Self::Commit { stream: name(&stream)?, cursor: name(&cursor)?, offset }
            }
            StreamRequestV1::Seal { stream, epoch } => Self::Seal { stream: name(&stream)?, epoch },
            StreamRequestV1::Delete { stream, epoch } => Self::Delete { stream: name(&stream)?, epoch },
            StreamRequestV1::Trim => Self::Trim,
        })
    }
}

impl From<StreamAnswer> for StreamAnswerV1 {
    fn from(answer: StreamAnswer) -> Self {
        match answer {
            StreamAnswer::Appended { offset, repeated } => Self::Appended { offset, repeated },
            StreamAnswer::Committed => Self::Committed,
            StreamAnswer::Sealed { end } => Self::Sealed { end },
            StreamAnswer::Deleted => Self::Deleted,
            StreamAnswer::Trimmed => Self::Trimmed,
            StreamAnswer::Failed(error) => match error {
                StreamError::NotFound(name) => Self::NotFound(name.to_string()),
                StreamError::OutOfSequence { expected } => Self::OutOfSequence { expected },
                StreamError::Fenced { epoch } => Self::Fenced { epoch },
                StreamError::PastEnd { next } => Self::PastEnd { next },
                StreamError::Full(Counted::Streams) => Self::Full(CountedV1::Streams),
                StreamError::Full(Counted::Producers) => Self::Full(CountedV1::Producers),
                StreamError::Full(Counted::Cursors) => Self::Full(CountedV1::Cursors),
                _ => Self::Refused,
            },
        }
    }
}

impl TryFrom<StreamAnswerV1> for StreamAnswer {
    type Error = DecodeError;

    fn try_from(answer: StreamAnswerV1) -> Result<Self, DecodeError> {
        Ok(match answer {
            StreamAnswerV1::Appended { offset, repeated } => Self::Appended { offset, repeated },
            StreamAnswerV1::Committed => Self::Committed,
            StreamAnswerV1::Sealed { end } => Self::Sealed { end },
            StreamAnswerV1::Deleted => Self::Deleted,
            StreamAnswerV1::Trimmed => Self::Trimmed,
            StreamAnswerV1::NotFound(stream) => Self::Failed(StreamError::NotFound(name(&stream)?)),
            StreamAnswerV1::OutOfSequence { expected } => Self::Failed(StreamError::OutOfSequence { expected }),
            StreamAnswerV1::Fenced { epoch } => Self::Failed(StreamError::Fenced { epoch }),
            StreamAnswerV1::PastEnd { next } => Self::Failed(StreamError::PastEnd { next }),
            StreamAnswerV1::Full(counted) => Self::Failed(StreamError::Full(match counted {
                CountedV1::Streams => Counted::Streams,
                CountedV1::Producers => Counted::Producers,
                CountedV1::Cursors => Counted::Cursors,
            })),
            StreamAnswerV1::Refused => Self::Failed(StreamError::Invalid { what: "the leader refused the request" }),
        })
    }
}

impl StreamV1 {
    pub(crate) fn new(name: &Name, record: &StreamRecord) -> Self {
        let producer = |(name, producer): (&Name, &ProducerRecord)| ProducerV1 {
            name: name.to_string(),
            seq: producer.seq,
            at_ms: producer.at_ms,
            offsets: producer.offsets.iter().copied().collect(),
        };
        let segment = |segment: &SegmentRecord| SegmentV1 {
            first: segment.first,
            entries: segment.entries,
            bytes: segment.bytes,
            first_at_ms: segment.first_at_ms,
            last_at_ms: segment.last_at_ms,
        };
        Self {
            name: name.to_string(),
            id: record.id,
            first: record.first,
            next: record.next,
            at_ms: record.at_ms,
            sealed: record.sealed,
            producers: record.producers.iter().map(producer).collect(),
            cursors: record.cursors.iter().map(|(name, offset)| (name.to_string(), *offset)).collect(),
            segments: record.segments.iter().map(segment).collect(),
        }
    }

    pub(crate) fn into_record(self) -> Result<(Name, StreamRecord), DecodeError> {
        let mut producers = BTreeMap::new();
        for producer in self.producers {
            let record = ProducerRecord { seq: producer.seq, at_ms: producer.at_ms, offsets: producer.offsets.into() };
            producers.insert(name(&producer.name)?, record);
        }
        let mut cursors = BTreeMap::new();
        for (cursor, offset) in self.cursors {
            cursors.insert(name(&cursor)?, offset);
        }
        let segment = |segment: SegmentV1| SegmentRecord {
            first: segment.first,
            entries: segment.entries,
            bytes: segment.bytes,
            first_at_ms: segment.first_at_ms,
            last_at_ms: segment.last_at_ms,
        };
        let segments: VecDeque<SegmentRecord> = self.segments.into_iter().map(segment).collect();
        let record = StreamRecord {
            id: self.id,
            first: self.first,
            next: self.next,
            bytes: segments.iter().map(|segment| segment.bytes).sum(),
            at_ms: self.at_ms,
            sealed: self.sealed,
            producers,
            cursors,
            segments,
        };
        Ok((name(&self.name)?, record))
    }
}
