//! Snapshot files: two fixed slots, written in blocks with a CRC each and one over the whole.
//! The superblock names the current slot; the other is free to be overwritten. Nothing is renamed, which Windows
//! would refuse over an open file.

use std::io;
use std::path::{Path, PathBuf};

use data::{KeyValue, LeaseRecord, Revision, StateMachine, StreamsState};
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskFile, read_exact_at};
use crate::open_error::OpenError;
use crate::streams::wire::StreamV1;
use crate::superblock::SnapshotPointerV1;
use crate::surroundings::planted;
use crate::wire::{LeaseV1, LogIdV1, MembershipV1, PairV1, decode, encode};

const MAGIC: &[u8; 8] = b"SWALSNAP";
const VERSION: u32 = 1;
const FILE_HEADER: usize = 16;
const BLOCK_HEADER: usize = 12;
/// Pairs are gathered into blocks of about this size.
const BLOCK_BYTES: usize = 64 * 1024;
/// Longest block a reader believes in.
const MAX_BLOCK: usize = 8 * 1024 * 1024;

const META: u32 = 1;
const LEASES: u32 = 2;
const PAIRS: u32 = 3;
const END: u32 = 4;
const STREAMS: u32 = 5;
const STREAM: u32 = 6;

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
    revision: u64,
    last_lease: u64,
}

#[derive(Serialize, Deserialize)]
struct StreamsV1 {
    next_id: u64,
    streams: u64,
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
    let file = disk.open(&path, true)?;
    file.truncate(0)?;
    let pointer = SnapshotPointerV1 { slot, sequence, last: image.last };
    if let Err(error) = write_blocks(&*file, store_id, group, sequence, image) {
        // Gives the space back; the old snapshot is in the other slot.
        let _ = file.truncate(0);
        return Err(io::Error::new(error.kind(), format!("writing {}: {error}", path.display())));
    }
    disk.sync_directory(directory)?;
    Ok(pointer)
}

fn write_blocks(file: &dyn DiskFile, store_id: [u8; 16], group: u16, sequence: u64, image: &Image) -> io::Result<()> {
    let mut out = BlockWriter::new(file)?;
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
    out.block(META, &encode(&meta))?;
    let leases: Vec<LeaseV1> = image.state.leases().map(LeaseV1::from).collect();
    out.block(LEASES, &encode(&leases))?;
    let (mut pairs, mut gathered) = (Vec::new(), 0);
    for kv in image.state.pairs() {
        gathered += kv.key.as_bytes().len() + kv.value.len();
        pairs.push(PairV1::from(kv));
        if gathered >= BLOCK_BYTES {
            out.block(PAIRS, &encode(&pairs))?;
            pairs.clear();
            gathered = 0;
        }
    }
    out.block(PAIRS, &encode(&pairs))?;
    if let Some(streams) = &image.streams {
        let count = streams.streams().count() as u64;
        out.block(STREAMS, &encode(&StreamsV1 { next_id: streams.next_id(), streams: count }))?;
        for (name, record) in streams.streams() {
            out.block(STREAM, &encode(&StreamV1::new(name, record)))?;
        }
    }
    let end =
        EndV1 { leases: leases.len() as u64, pairs: image.state.len() as u64, whole: out.whole.clone().finalize() };
    out.block(END, &encode(&end))?;
    if planted("snapshot-before-sync") { Ok(()) } else { file.sync() }
}

struct BlockWriter<'a> {
    file: &'a dyn DiskFile,
    offset: u64,
    whole: crc32fast::Hasher,
}

impl<'a> BlockWriter<'a> {
    fn new(file: &'a dyn DiskFile) -> io::Result<Self> {
        let mut header = [0; FILE_HEADER];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let crc = crc32fast::hash(&header[..12]);
        header[12..].copy_from_slice(&crc.to_le_bytes());
        let mut writer = Self { file, offset: 0, whole: crc32fast::Hasher::new() };
        writer.put(&header)?;
        Ok(writer)
    }

    fn block(&mut self, kind: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(BLOCK_HEADER + payload.len());
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&block_checksum(&bytes, payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.offset)?;
        self.whole.update(bytes);
        self.offset += bytes.len() as u64;
        Ok(())
    }
}

fn block_checksum(kind_and_length: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind_and_length);
    hasher.update(payload);
    hasher.finalize()
}

/// Reads the meta block only.
pub(crate) fn read_meta(disk: &dyn Disk, directory: &Path, pointer: SnapshotPointerV1) -> Result<MetaV1, OpenError> {
    Reader::open(disk, directory, pointer)?.meta(pointer)
}

/// Reads and checks a whole snapshot.
pub(crate) fn read(disk: &dyn Disk, directory: &Path, pointer: SnapshotPointerV1) -> Result<Image, OpenError> {
    let mut reader = Reader::open(disk, directory, pointer)?;
    let meta = reader.meta(pointer)?;
    let mut state = StateMachine::restore(Revision(meta.revision), meta.last_lease);
    let mut leases = 0_u64;
    let mut streams: Option<(StreamsState, u64)> = None;
    loop {
        let whole = reader.whole.clone().finalize();
        let (kind, payload) = reader.block()?;
        match kind {
            LEASES => {
                let records: Vec<LeaseV1> = reader.decode(&payload)?;
                leases += records.len() as u64;
                records.into_iter().for_each(|record| state.restore_lease(&LeaseRecord::from(record)));
            }
            PAIRS => {
                for pair in reader.decode::<Vec<PairV1>>(&payload)? {
                    state.restore_pair(KeyValue::try_from(pair).map_err(|error| reader.corrupt(error.to_string()))?);
                }
            }
            STREAMS => {
                let begin: StreamsV1 = reader.decode(&payload)?;
                streams = Some((StreamsState::restore(begin.next_id), begin.streams));
            }
            STREAM => {
                let stream: StreamV1 = reader.decode(&payload)?;
                let (name, record) = stream.into_record().map_err(|error| reader.corrupt(error.to_string()))?;
                let (streams, _) =
                    streams.as_mut().ok_or_else(|| reader.corrupt("a stream stands where none is expected"))?;
                streams.restore_stream(name, record);
            }
            END => {
                let end: EndV1 = reader.decode(&payload)?;
                if end.whole != whole || end.leases != leases || end.pairs != state.len() as u64 {
                    return Err(reader.corrupt("the snapshot's totals do not match its content"));
                }
                if streams.as_ref().is_some_and(|(streams, count)| streams.streams().count() as u64 != *count) {
                    return Err(reader.corrupt("the snapshot does not have as many streams as it says"));
                }
                break;
            }
            other => {
                let what = format!("a snapshot block of kind {other}");
                return Err(OpenError::UnknownFormat { file: reader.path, what });
            }
        }
    }
    Ok(Image {
        last: meta.last,
        membership_log: meta.membership_log,
        membership: meta.membership,
        state,
        streams: streams.map(|(streams, _)| streams),
    })
}

struct Reader {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    offset: u64,
    whole: crc32fast::Hasher,
}

impl Reader {
    fn open(disk: &dyn Disk, directory: &Path, pointer: SnapshotPointerV1) -> Result<Self, OpenError> {
        let path = path(directory, pointer.slot);
        let file = disk.open(&path, false).map_err(OpenError::io("open", &path))?;
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

    fn meta(&mut self, pointer: SnapshotPointerV1) -> Result<MetaV1, OpenError> {
        let (kind, payload) = self.block()?;
        if kind != META {
            return Err(self.corrupt("the snapshot does not begin with its description"));
        }
        let meta: MetaV1 = self.decode(&payload)?;
        if meta.sequence != pointer.sequence || meta.last != pointer.last {
            return Err(self.corrupt("the snapshot is not the one the superblock names"));
        }
        Ok(meta)
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
