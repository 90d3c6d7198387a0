//! The superblock: identity, vote and markers, kept in two slots so that a torn write never loses both.
//! A change is written and flushed to one slot, then written to the other: either slot alone is enough to start from.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, DiskFile, read_all};
use crate::open_error::OpenError;
use crate::wire::{LogIdV1, VoteV1};

const MAGIC: &[u8; 8] = b"SWSUPER\0";
const VERSION: u32 = 1;
/// Of a witness's directory, with the same content: versions that know no witness must not take its empty state for the
/// cluster's.
const WITNESS_VERSION: u32 = 2;
/// One disk page each, so that a torn write of one cannot touch the other.
const SLOT: usize = 4096;
const HEADER: usize = 28;
pub(crate) const FILE_NAME: &str = "superblock";

/// The content, version 1.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SuperblockV1 {
    /// Random, drawn when the directory was made.
    pub store_id: [u8; 16],
    pub node_id: u64,
    pub group: u16,
    pub vote: Option<VoteV1>,
    /// Log entries up to here are gone.
    pub purged: Option<LogIdV1>,
    pub snapshot: Option<SnapshotPointerV1>,
    /// The newest segment that was ever begun.
    pub newest_segment: u64,
    /// Where the log ended when it was closed in good order; absent while it is open.
    pub clean_end: Option<CleanEndV1>,
}

/// Which snapshot slot is the current one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotPointerV1 {
    pub slot: u8,
    pub sequence: u64,
    pub last: LogIdV1,
}

/// The end of a log that was closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct CleanEndV1 {
    pub segment: u64,
    pub offset: u64,
    pub crc: u32,
}

/// The open superblock.
#[derive(Debug)]
pub(crate) struct Superblock {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    version: u32,
    sequence: u64,
    content: SuperblockV1,
}

impl Superblock {
    /// Reads the newest valid slot; `None` if the file does not exist or was never completely made.
    pub(crate) fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<Self>, OpenError> {
        let path = directory.join(FILE_NAME);
        let file = match disk.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("open", &path)(error)),
        };
        let bytes = read_all(&*file).map_err(OpenError::io("read", &path))?;
        let mut newest: Option<(u64, u32, SuperblockV1)> = None;
        for slot in bytes.chunks(SLOT).take(2) {
            let Some((version, sequence, payload)) = decode_slot(slot) else { continue };
            if version != VERSION && version != WITNESS_VERSION {
                return Err(OpenError::UnknownFormat { file: path, what: format!("superblock version {version}") });
            }
            let content = postcard::from_bytes(payload)
                .map_err(|error| OpenError::corrupt(&path, 0, format!("the superblock does not decode ({error})")))?;
            if newest.as_ref().is_none_or(|(best, ..)| *best < sequence) {
                newest = Some((sequence, version, content));
            }
        }
        match newest {
            Some((sequence, version, content)) => {
                let mut superblock = Self { file, path, version, sequence, content };
                // After a flush that failed it may have been read from the operating system's memory, and be nowhere else:
                // a vote that another process gave must not be forgotten by a power cut after this one has told it.
                superblock.write().map_err(OpenError::io("write", &superblock.path))?;
                Ok(Some(superblock))
            }
            // The very first write was cut off: there cannot be a log yet (the caller checks).
            None => Ok(None),
        }
    }

    /// Makes the file and writes both slots.
    pub(crate) fn create(
        disk: &dyn Disk,
        directory: &Path,
        is_witness: bool,
        content: SuperblockV1,
    ) -> io::Result<Self> {
        let path = directory.join(FILE_NAME);
        let file = disk.open(&path, true)?;
        file.preallocate(2 * SLOT as u64)?;
        let version = if is_witness { WITNESS_VERSION } else { VERSION };
        let mut superblock = Self { file, path, version, sequence: 0, content };
        superblock.write()?;
        disk.sync_directory(directory)?;
        Ok(superblock)
    }

    pub(crate) fn content(&self) -> &SuperblockV1 {
        &self.content
    }

    /// Whether the directory was made for a witness.
    pub(crate) fn is_witness(&self) -> bool {
        self.version == WITNESS_VERSION
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the content, durably. After an error the file holds the old content or the new.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut SuperblockV1)) -> io::Result<()> {
        let before = self.content.clone();
        change(&mut self.content);
        if self.content == before {
            return Ok(());
        }
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.sequence += 1;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{FILE_NAME}: {error}"));
        let slot = encode_slot(self.version, self.sequence, &self.content);
        // The slot that is overwritten first alternates, so a tear always leaves the other one whole. The second copy
        // guards against a bad page later on; nothing waits for it, the next flush of the file takes it along.
        let first = self.sequence % 2;
        self.file.write_all_at(&slot, first * SLOT as u64).map_err(named)?;
        self.file.sync().map_err(named)?;
        self.file.write_all_at(&slot, (1 - first) * SLOT as u64).map_err(named)?;
        Ok(())
    }
}

fn encode_slot(version: u32, sequence: u64, content: &SuperblockV1) -> Vec<u8> {
    let payload = postcard::to_allocvec(content).expect("plain data encodes");
    let length = u32::try_from(payload.len()).expect("a superblock is small");
    let mut slot = Vec::with_capacity(SLOT);
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&version.to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&sequence.to_le_bytes());
    slot.extend_from_slice(&[0; 4]);
    slot.extend_from_slice(&payload);
    assert!(slot.len() <= SLOT, "a superblock fits its slot");
    slot.resize(SLOT, 0);
    let crc = slot_checksum(&slot);
    slot[24..HEADER].copy_from_slice(&crc.to_le_bytes());
    slot
}

/// Version, sequence and payload of a valid slot.
fn decode_slot(slot: &[u8]) -> Option<(u32, u64, &[u8])> {
    if slot.len() != SLOT || &slot[..8] != MAGIC {
        return None;
    }
    let word = |at: usize| u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
    if slot_checksum(slot) != word(24) {
        return None;
    }
    let sequence = u64::from(word(16)) | u64::from(word(20)) << 32;
    let payload = slot.get(HEADER..HEADER + word(12) as usize)?;
    Some((word(8), sequence, payload))
}

fn slot_checksum(slot: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&slot[..24]);
    hasher.update(&slot[HEADER..]);
    hasher.finalize()
}
