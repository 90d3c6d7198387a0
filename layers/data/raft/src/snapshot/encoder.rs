//! A snapshot as bytes, a block at a time: whoever wants the next one asks for it, so that a slow disk or a slow client
//! holds up nothing but itself. The image that is encoded shares its content with the live state.
//! Deliberately absent: I/O, and reading it back (`snapshot.rs`).

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;

use data::{Key, KeyRange, RangeRequest};

use super::{
    BLOCK_HEADER, END, EndV1, FILE_HEADER, Image, LEASES, MADE, MAGIC, META, MadeV1, MetaV1, PAIRS, SEGMENT, STREAM,
    STREAMS, SegmentPieceV1, StreamsV1, VERSION, block_checksum,
};
use crate::streams::pieces::Pieces;
use crate::streams::wire::StreamV1;
use crate::wire::{LeaseV1, PairV1, encode};

/// Pairs are gathered into blocks of about this size,
const BLOCK_BYTES: usize = 64 * 1024;
/// looked up so many at a time.
const PIECE_PAIRS: usize = 64;

/// The blocks of a snapshot, the file's header first.
pub(crate) struct Encoder {
    image: Image,
    meta: MetaV1,
    made: Option<MadeV1>,
    /// The entries of the image's streams, for a file of its own.
    pieces: Option<Pieces>,
    stage: Stage,
    /// CRC of everything so far.
    whole: crc32fast::Hasher,
}

enum Stage {
    Header,
    Meta,
    Made,
    Leases,
    /// From this key on.
    Pairs(Vec<u8>),
    Streams,
    Stream(VecDeque<Vec<u8>>),
    Segments,
    End,
    Done,
}

impl Encoder {
    /// Of an image of this store's group. `made` is for one that goes into a file of its own.
    pub(crate) fn new(image: Image, (store_id, group): ([u8; 16], u16), sequence: u64, made: Option<MadeV1>) -> Self {
        let meta = MetaV1 {
            store_id,
            group,
            sequence,
            last: image.last,
            membership_log: image.membership_log,
            membership: image.membership.clone(),
            revision: image.state.revision().0,
            last_lease: image.state.last_lease(),
        };
        Self { image, meta, made, pieces: None, stage: Stage::Header, whole: crc32fast::Hasher::new() }
    }

    /// The same with the entries of its streams.
    pub(crate) fn with_pieces(mut self, pieces: Option<Pieces>) -> Self {
        self.pieces = pieces;
        self
    }

    /// One block of pairs, and from which key on the next one goes, if there are more.
    fn pairs(&self, from: Vec<u8>) -> (Vec<u8>, Option<Vec<u8>>) {
        let (mut pairs, mut gathered, mut next) = (Vec::new(), 0, from);
        loop {
            let piece = RangeRequest::new(KeyRange::between(next, None)).limit(PIECE_PAIRS);
            let found = self.image.state.range(&piece).kvs;
            let is_last = found.len() < PIECE_PAIRS;
            let mut after: Option<Key> = None;
            let filled = found.into_iter().try_for_each(|kv| {
                gathered += kv.key.as_bytes().len() + kv.value.len();
                after = Some(kv.key.clone());
                pairs.push(PairV1::from(kv));
                if gathered >= BLOCK_BYTES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            let Some(after) = after else { return (encode(&pairs), None) };
            // The first key behind it.
            next = [after.as_bytes(), &[0]].concat();
            match filled {
                ControlFlow::Break(()) => return (encode(&pairs), Some(next)),
                ControlFlow::Continue(()) if is_last => return (encode(&pairs), None),
                ControlFlow::Continue(()) => {}
            }
        }
    }

    fn streams(&self) -> VecDeque<Vec<u8>> {
        let Some(streams) = &self.image.streams else { return VecDeque::new() };
        streams.streams().map(|(name, record)| encode(&StreamV1::new(name, record))).collect()
    }

    /// What comes next: a block's kind and payload, and the stage behind it.
    fn block(&mut self, stage: Stage) -> io::Result<Option<(u32, Vec<u8>, Stage)>> {
        let (kind, payload, next) = match stage {
            Stage::Header | Stage::Done => return Ok(None),
            Stage::Meta => (META, encode(&self.meta), Stage::Made),
            Stage::Made => match &self.made {
                Some(made) => (MADE, encode(made), Stage::Leases),
                None => return self.block(Stage::Leases),
            },
            Stage::Leases => {
                let leases: Vec<LeaseV1> = self.image.state.leases().map(LeaseV1::from).collect();
                (LEASES, encode(&leases), Stage::Pairs(Vec::new()))
            }
            Stage::Pairs(from) => {
                let (payload, next) = self.pairs(from);
                (PAIRS, payload, next.map_or(Stage::Streams, Stage::Pairs))
            }
            Stage::Streams => match &self.image.streams {
                Some(streams) => {
                    let queue = self.streams();
                    let begin = StreamsV1 { next_id: streams.next_id(), streams: queue.len() as u64 };
                    (STREAMS, encode(&begin), Stage::Stream(queue))
                }
                None => return self.block(Stage::End),
            },
            Stage::Stream(mut queue) => match queue.pop_front() {
                Some(stream) => (STREAM, stream, Stage::Stream(queue)),
                None => return self.block(Stage::Segments),
            },
            Stage::Segments => match self.pieces.as_mut().map_or(Ok(None), Pieces::next)? {
                Some(piece) => (SEGMENT, encode(&SegmentPieceV1::from(piece)), Stage::Segments),
                None => return self.block(Stage::End),
            },
            Stage::End => {
                let state = &self.image.state;
                let (leases, pairs) = (state.leases().count() as u64, state.len() as u64);
                (END, encode(&EndV1 { leases, pairs, whole: self.whole.clone().finalize() }), Stage::Done)
            }
        };
        Ok(Some((kind, payload, next)))
    }
}

impl Iterator for Encoder {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        let bytes = match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Header => {
                self.stage = Stage::Meta;
                header().to_vec()
            }
            stage => {
                let (kind, payload, next) = match self.block(stage).transpose()? {
                    Ok(block) => block,
                    Err(error) => return Some(Err(error)),
                };
                self.stage = next;
                framed(kind, &payload)
            }
        };
        self.whole.update(&bytes);
        Some(Ok(bytes))
    }
}

fn header() -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn framed(kind: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a block holds little more than the largest value");
    let mut bytes = Vec::with_capacity(BLOCK_HEADER + payload.len());
    bytes.extend_from_slice(&kind.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&block_checksum(&bytes, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
