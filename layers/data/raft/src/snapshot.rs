//! Snapshot files: two fixed slots, written in blocks with a CRC each and one over the whole.
//! The superblock names the current slot; the other is free to be overwritten. Nothing is renamed, which Windows
//! would refuse over an open file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use data::{KeyValue, LeaseRecord, Revision, StateMachine, StreamsState};
pub(crate) use encoder::Encoder;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskFile, RealDisk, read_exact_at};
use crate::open_error::OpenError;
use crate::streams::STREAMS_GROUP;
use crate::streams::pieces::Piece;
use crate::streams::wire::StreamV1;
use crate::superblock::SnapshotPointerV1;
use crate::surroundings::planted;
use crate::wire::{Bin, LeaseV1, LogIdV1, MembershipV1, PairV1, decode};

mod encoder;

/// Flushed at once while a snapshot is written: more would stand before the log's next flush at the disk.
const FLUSH_BYTES: u64 = 512 * 1024;

const MAGIC: &[u8; 8] = b"SWALSNAP";
const VERSION: u32 = 1;
const FILE_HEADER: usize = 16;
const BLOCK_HEADER: usize = 12;
/// Longest block a reader believes in.
const MAX_BLOCK: usize = 8 * 1024 * 1024;

const META: u32 = 1;
const LEASES: u32 = 2;
const PAIRS: u32 = 3;
const END: u32 = 4;
const STREAMS: u32 = 5;
const STREAM: u32 = 6;
/// Only in a snapshot that was saved to a file of its own.
const MADE: u32 = 7;
/// Likewise: a piece of a segment of the streams.
const SEGMENT: u32 = 8;

/// What a snapshot holds besides leases and pairs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MetaV1 {
    pub store_id: [u8; 16],
    pub group: u16,
    pub sequence: u64,
    /// The last entry it includes.
    pub last: LogIdV1,
    pub membership_log: Option<LogIdV1>,
    pub membership: MembershipV1,
    pub revision: u64,
    last_lease: u64,
}

/// When a snapshot was saved, and by whom.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct MadeV1 {
    /// In milliseconds since the Unix epoch, by the clock of the node that saved it.
    pub at_ms: u64,
    /// The cluster's name; empty on a machine by itself.
    pub cluster: String,
    /// The node that saved it.
    pub node: String,
}

#[derive(Serialize, Deserialize)]
struct StreamsV1 {
    next_id: u64,
    streams: u64,
}

/// A piece of a segment: the pieces of one stand in order, and are all of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct SegmentPieceV1 {
    /// The number of its stream, and its first offset.
    pub name: (u64, u64),
    /// Where in it the piece begins.
    pub position: u64,
    pub bytes: Bin,
}

impl From<Piece> for SegmentPieceV1 {
    fn from(piece: Piece) -> Self {
        Self { name: piece.name, position: piece.position, bytes: Bin(piece.bytes.into()) }
    }
}

#[derive(Serialize, Deserialize)]
struct EndV1 {
    leases: u64,
    pairs: u64,
    /// CRC of everything before this block.
    whole: u32,
}

/// A complete snapshot in memory; the state is shared with the live one, so it costs nothing to hold briefly.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub last: LogIdV1,
    pub membership_log: Option<LogIdV1>,
    pub membership: MembershipV1,
    pub state: StateMachine,
    /// In the group of streams: the manifest of segments and all else about them.
    pub streams: Option<StreamsState>,
}

pub(crate) fn path(directory: &Path, slot: u8) -> PathBuf {
    directory.join(if slot == 0 { "snapshot-a" } else { "snapshot-b" })
}

/// Writes `image` into a slot, durably. The superblock must be told afterwards.
pub(crate) fn write(
    disk: &dyn Disk,
    directory: &Path,
    (store_id, group): ([u8; 16], u16),
    (slot, sequence): (u8, u64),
    image: &Image,
) -> io::Result<SnapshotPointerV1> {
    let path = path(directory, slot);
    // Over what is there: to give its space back first, and take it anew, is felt by whoever flushes meanwhile.
    let file = disk.open(&path, true)?;
    let pointer = SnapshotPointerV1 { slot, sequence, last: image.last };
    let blocks = Encoder::new(image.clone(), (store_id, group), sequence, None);
    if let Err(error) = write_all(&*file, blocks) {
        // Gives the space back; the old snapshot is in the other slot.
        let _ = file.truncate(0);
        return Err(io::Error::new(error.kind(), format!("writing {}: {error}", path.display())));
    }
    disk.sync_directory(directory)?;
    Ok(pointer)
}

/// Writes blocks one after the other, and flushes, also on the way.
fn write_all(file: &dyn DiskFile, blocks: impl Iterator<Item = io::Result<Vec<u8>>>) -> io::Result<()> {
    let (mut offset, mut flushed) = (0, 0);
    for block in blocks {
        let block = block?;
        file.write_all_at(&block, offset)?;
        file.begin_write_back(offset, block.len() as u64);
        offset += block.len() as u64;
        if offset - flushed >= FLUSH_BYTES {
            file.sync()?;
            flushed = offset;
        }
    }
    if file.length()? > offset {
        file.truncate(offset)?;
    }
    if planted("snapshot-before-sync") { Ok(()) } else { file.sync() }
}

/// Whether these are the segments that the streams have, each of them whole.
fn are_all(streams: &StreamsState, segments: &BTreeMap<(u64, u64), u64>) -> bool {
    let named = streams.streams().flat_map(|(_, record)| record.segments.iter().map(|segment| (record.id, segment)));
    let named = named.filter(|(_, segment)| segment.bytes > 0);
    let named: BTreeMap<_, _> = named.map(|(id, segment)| ((id, segment.first), segment.bytes)).collect();
    named == *segments
}

fn block_checksum(kind_and_length: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind_and_length);
    hasher.update(payload);
    hasher.finalize()
}

/// Reads the meta block only.
pub(crate) fn read_meta(disk: &dyn Disk, directory: &Path, pointer: SnapshotPointerV1) -> Result<MetaV1, OpenError> {
    let mut reader = Reader::open(disk, path(directory, pointer.slot))?;
    let meta = reader.meta()?;
    reader.expect(&meta, pointer)?;
    Ok(meta)
}

/// Reads and checks a whole snapshot.
pub(crate) fn read(disk: &dyn Disk, directory: &Path, pointer: SnapshotPointerV1) -> Result<Image, OpenError> {
    let mut reader = Reader::open(disk, path(directory, pointer.slot))?;
    let meta = reader.meta()?;
    reader.expect(&meta, pointer)?;
    reader.rest(meta, &mut |_| Ok(())).map(|(image, _)| image)
}

/// A snapshot that was saved to a file of its own, outside of any data directory.
pub(crate) struct Saved {
    pub store_id: [u8; 16],
    pub made: Option<MadeV1>,
    pub image: Image,
    /// The file's size.
    pub bytes: u64,
}

/// Reads and checks one, to its last byte. What it has of segments goes to `put`, in order, before all of it is checked.
pub(crate) fn read_saved(file: &Path, put: Put<'_>) -> Result<Saved, OpenError> {
    let opened = RealDisk.open_to_read(file).map_err(OpenError::io("open", file))?;
    let mut reader = Reader::over(opened, file.to_path_buf())?;
    let meta = reader.meta()?;
    let (store_id, group) = (meta.store_id, meta.group);
    if group != 0 {
        return Err(reader.corrupt("it is not of a key-value store"));
    }
    let (image, made) = reader.rest(meta, put)?;
    let bytes = reader.file.length().map_err(OpenError::io("measure", file))?;
    if bytes != reader.offset {
        return Err(reader.corrupt("there is something behind its end"));
    }
    Ok(Saved { store_id, made, image, bytes })
}

/// Takes a piece of a segment.
pub(crate) type Put<'a> = &'a mut dyn FnMut(SegmentPieceV1) -> Result<(), OpenError>;

struct Reader {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    offset: u64,
    whole: crc32fast::Hasher,
}

impl Reader {
    fn open(disk: &dyn Disk, path: PathBuf) -> Result<Self, OpenError> {
        let file = disk.open(&path, false).map_err(OpenError::io("open", &path))?;
        Self::over(file, path)
    }

    fn over(file: Box<dyn DiskFile>, path: PathBuf) -> Result<Self, OpenError> {
        let mut reader = Self { file, path, offset: 0, whole: crc32fast::Hasher::new() };
        let header = reader.take(FILE_HEADER)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        if &header[..8] != MAGIC || crc32fast::hash(&header[..12]) != word(12) {
            return Err(OpenError::corrupt(&reader.path, 0, "the snapshot's header is invalid"));
        }
        if word(8) != VERSION {
            let what = format!("a snapshot of version {}", word(8));
            return Err(OpenError::UnknownFormat { file: reader.path, what });
        }
        Ok(reader)
    }

    /// Everything behind the description.
    fn rest(&mut self, meta: MetaV1, put: Put<'_>) -> Result<(Image, Option<MadeV1>), OpenError> {
        let mut made = None;
        let mut segments: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        let mut state = StateMachine::restore(Revision(meta.revision), meta.last_lease);
        let mut leases = 0_u64;
        let mut streams: Option<(StreamsState, u64)> = None;
        loop {
            let whole = self.whole.clone().finalize();
            let (kind, payload) = self.block()?;
            match kind {
                LEASES => {
                    let records: Vec<LeaseV1> = self.decode(&payload)?;
                    leases += records.len() as u64;
                    records.into_iter().for_each(|record| state.restore_lease(&LeaseRecord::from(record)));
                }
                PAIRS => {
                    for pair in self.decode::<Vec<PairV1>>(&payload)? {
                        state.restore_pair(KeyValue::try_from(pair).map_err(|error| self.corrupt(error.to_string()))?);
                    }
                }
                STREAMS => {
                    let begin: StreamsV1 = self.decode(&payload)?;
                    streams = Some((StreamsState::restore(begin.next_id), begin.streams));
                }
                STREAM => {
                    let stream: StreamV1 = self.decode(&payload)?;
                    let (name, record) = stream.into_record().map_err(|error| self.corrupt(error.to_string()))?;
                    let (streams, _) =
                        streams.as_mut().ok_or_else(|| self.corrupt("a stream stands where none is expected"))?;
                    streams.restore_stream(name, record);
                }
                MADE => made = Some(self.decode(&payload)?),
                SEGMENT => {
                    let piece: SegmentPieceV1 = self.decode(&payload)?;
                    let end = segments.entry(piece.name).or_default();
                    if piece.position != *end {
                        return Err(self.corrupt("a piece of a segment stands where another one is expected"));
                    }
                    *end += piece.bytes.0.len() as u64;
                    put(piece)?;
                }
                END => {
                    let end: EndV1 = self.decode(&payload)?;
                    if end.whole != whole || end.leases != leases || end.pairs != state.len() as u64 {
                        return Err(self.corrupt("the snapshot's totals do not match its content"));
                    }
                    if streams.as_ref().is_some_and(|(streams, count)| streams.streams().count() as u64 != *count) {
                        return Err(self.corrupt("the snapshot does not have as many streams as it says"));
                    }
                    // The streams' own snapshots name segments that lie beside them.
                    if meta.group != STREAMS_GROUP
                        && streams.as_ref().is_some_and(|(streams, _)| !are_all(streams, &segments))
                    {
                        return Err(self.corrupt("the snapshot does not have all entries of its streams"));
                    }
                    break;
                }
                other => {
                    let what = format!("a snapshot block of kind {other}");
                    return Err(OpenError::UnknownFormat { file: self.path.clone(), what });
                }
            }
        }
        let image = Image {
            last: meta.last,
            membership_log: meta.membership_log,
            membership: meta.membership,
            state,
            streams: streams.map(|(streams, _)| streams),
        };
        Ok((image, made))
    }

    fn meta(&mut self) -> Result<MetaV1, OpenError> {
        let (kind, payload) = self.block()?;
        if kind != META {
            return Err(self.corrupt("the snapshot does not begin with its description"));
        }
        self.decode(&payload)
    }

    fn expect(&self, meta: &MetaV1, pointer: SnapshotPointerV1) -> Result<(), OpenError> {
        if meta.sequence != pointer.sequence || meta.last != pointer.last {
            return Err(self.corrupt("the snapshot is not the one the superblock names"));
        }
        Ok(())
    }

    fn block(&mut self) -> Result<(u32, Vec<u8>), OpenError> {
        let start = self.offset;
        let header = self.take(BLOCK_HEADER)?;
        let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let length = word(4) as usize;
        if length > MAX_BLOCK {
            return Err(OpenError::corrupt(&self.path, start, "a snapshot block is impossibly long"));
        }
        let payload = self.take(length)?;
        if block_checksum(&header[..8], &payload) != word(8) {
            return Err(OpenError::corrupt(&self.path, start, "a snapshot block is invalid"));
        }
        Ok((word(0), payload))
    }

    fn take(&mut self, length: usize) -> Result<Vec<u8>, OpenError> {
        let mut bytes = vec![0; length];
        match read_exact_at(&*self.file, &mut bytes, self.offset) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.corrupt("the snapshot ends too early"));
            }
            Err(error) => return Err(OpenError::io("read", &self.path)(error)),
        }
        self.whole.update(&bytes);
        self.offset += length as u64;
        Ok(bytes)
    }

    fn decode<'a, T: Deserialize<'a>>(&self, payload: &'a [u8]) -> Result<T, OpenError> {
        decode(payload).map_err(|error| self.corrupt(error.to_string()))
    }

    fn corrupt(&self, what: impl Into<String>) -> OpenError {
        OpenError::corrupt(&self.path, self.offset, what)
    }
}
