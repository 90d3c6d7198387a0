//! Entries on disk: a file for each segment of each stream, only ever appended to. What stands where is the state's
//! decision, so a segment has the same bytes on every replica, and writing one again after a crash changes nothing.
//! Written without a flush (the log holds the entry until a snapshot), flushed before a snapshot that names them. The
//! system begins to write them long before: a flush of much at once would hold up those of the store's log.
//! Deliberately absent: which entries there are (`data::StreamsState`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use data::{ENTRY_OVERHEAD, MAX_ENTRY_BYTES, Place, SegmentRecord, StreamEntry};

use crate::disk::going::Going;
use crate::disk::{Disk, DiskFile};
use crate::options::Options;
use crate::wal::lock;

/// Files kept open for writing.
const OPEN_FILES: usize = 64;
/// Segments of which places of entries are remembered.
const INDEXES: usize = 256;
/// Bytes after which the system begins to write them.
const WRITE_BACK_BYTES: u64 = 1024 * 1024;
/// One place in so many entries is remembered.
const STRIDE: u64 = 64;
/// Bytes read at once.
const READ_BYTES: usize = 256 * 1024;
const PREFIX: &str = "entries-";

/// A segment's name: its stream's number and its first offset.
pub(crate) type SegmentName = (u64, u64);

/// All segment files of a directory.
#[derive(Debug)]
pub(crate) struct Segments {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    files: Mutex<Files>,
    indexes: Mutex<BTreeMap<SegmentName, Vec<u64>>>,
}

#[derive(Debug, Default)]
struct Files {
    open: BTreeMap<SegmentName, Open>,
    uses: u64,
    /// Written since they were last flushed.
    dirty: BTreeSet<SegmentName>,
}

#[derive(Debug)]
struct Open {
    file: Arc<dyn DiskFile>,
    /// When it was last used.
    used: u64,
    /// Where what the system has not begun to write begins, and where it ends.
    written: (u64, u64),
}

impl Segments {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            disk: options.disk.clone(),
            directory: options.directory.clone(),
            files: Mutex::default(),
            indexes: Mutex::default(),
        }
    }

    pub(crate) fn path(&self, (id, first): SegmentName) -> PathBuf {
        self.directory.join(format!("{PREFIX}{id:010}-{first:020}"))
    }

    /// Writes an entry to its place.
    pub(crate) fn write(&self, place: &Place, entry: &Bytes) -> io::Result<()> {
        self.write_bytes((place.id, place.segment), place.position, &encode(place, entry))
    }

    /// Writes a piece of a segment.
    pub(crate) fn write_bytes(&self, name: SegmentName, position: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.open(name)?;
        file.write_all_at(bytes, position).map_err(|error| named(&self.path(name), &error))?;
        let mut files = lock(&self.files);
        // Only now: a flush that has begun before the write may have missed it.
        files.dirty.insert(name);
        let ready = files.open.get_mut(&name).and_then(|open| open.wrote(position, bytes.len() as u64));
        drop(files);
        if let Some((begin, end)) = ready {
            file.begin_write_back(begin, end - begin);
        }
        Ok(())
    }

    fn open(&self, name: SegmentName) -> io::Result<Arc<dyn DiskFile>> {
        let mut files = lock(&self.files);
        files.uses += 1;
        let now = files.uses;
        if let Some(open) = files.open.get_mut(&name) {
            open.used = now;
            return Ok(open.file.clone());
        }
        if files.open.len() >= OPEN_FILES
            && let Some(oldest) = files.open.iter().min_by_key(|(_, open)| open.used).map(|(name, _)| *name)
        {
            files.open.remove(&oldest);
        }
        let path = self.path(name);
        let file: Arc<dyn DiskFile> = self.disk.open(&path, true).map_err(|error| named(&path, &error))?.into();
        files.open.insert(name, Open { file: file.clone(), used: now, written: (0, 0) });
        Ok(file)
    }

    /// Makes everything written so far durable. After an error nothing is known: it must not be tried again.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let dirty = std::mem::take(&mut lock(&self.files).dirty);
        if dirty.is_empty() {
            return Ok(());
        }
        for name in dirty {
            let open = lock(&self.files).open.get(&name).map(|open| open.file.clone());
            let path = self.path(name);
            let flushed = match open {
                Some(file) => file.sync(),
                None => match self.disk.open(&path, false) {
                    Ok(file) => file.sync(),
                    // Its stream has been deleted meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    Err(error) => Err(error),
                },
            };
            flushed.map_err(|error| named(&path, &error))?;
        }
        self.disk.sync_directory(&self.directory)
    }

    /// Checks that a file is there as long as it must be.
    pub(crate) fn check(&self, name: SegmentName, bytes: u64) -> io::Result<()> {
        let path = self.path(name);
        let length =
            self.disk.open(&path, false).and_then(|file| file.length()).map_err(|error| named(&path, &error))?;
        if length < bytes {
            let text = format!("{} has {length} bytes of {bytes}", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(())
    }

    /// Opens a segment for reading.
    pub(crate) fn reader(&self, name: SegmentName) -> io::Result<Box<dyn DiskFile>> {
        let path = self.path(name);
        self.disk.open(&path, false).map_err(|error| named(&path, &error))
    }

    /// Removes the names of files that are `unwanted`; what remains to be given back. Who reads one sees it end early.
    pub(crate) fn remove(&self, unwanted: impl Fn(SegmentName) -> bool) -> io::Result<Vec<Going>> {
        let mut gone = Vec::new();
        for file in self.disk.list(&self.directory)? {
            let Some(name) = parse(&file).filter(|name| unwanted(*name)) else { continue };
            let mut files = lock(&self.files);
            files.open.remove(&name);
            files.dirty.remove(&name);
            drop(files);
            lock(&self.indexes).remove(&name);
            let path = self.path(name);
            let opened =
                self.disk.open(&path, false).and_then(|file| file.length().map(|length| Going::new(file, length)));
            self.disk.remove(&path)?;
            // One that could not be opened gives back everything at once.
            gone.extend(opened);
        }
        Ok(gone)
    }

    /// Adds entries of a segment from `from` on, until there are `limit` or their bytes reach `max_bytes`. Blocks.
    pub(crate) fn read(
        &self,
        id: u64,
        segment: &SegmentRecord,
        from: u64,
        (limit, max_bytes): (usize, usize),
        out: &mut Vec<StreamEntry>,
    ) -> io::Result<()> {
        let name = (id, segment.first);
        let file = self.reader(name)?;
        let mut place = self.nearest(name, segment, from);
        let mut taken: usize = out.iter().map(|entry| entry.data.len()).sum();
        let mut window = Window { file: &*file, begin: 0, bytes: Vec::new(), end: segment.bytes };
        let damaged = |position: u64| {
            let text = format!("{} is damaged at offset {position}", self.path(name).display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        while place.offset < segment.first + segment.entries && out.len() < limit {
            let header = window.get(place.position, ENTRY_OVERHEAD)?.ok_or_else(|| damaged(place.position))?;
            let length = word(header, 4) as usize;
            if length > MAX_ENTRY_BYTES || long(header, 8) != place.offset {
                return Err(damaged(place.position));
            }
            if place.offset >= from {
                if taken > 0 && taken + length > max_bytes {
                    break;
                }
                let whole = window.get(place.position, ENTRY_OVERHEAD + length)?;
                let whole = whole.ok_or_else(|| damaged(place.position))?;
                let entry = decode(id, whole).ok_or_else(|| damaged(place.position))?;
                taken += length;
                out.push(entry);
            }
            self.remember(name, segment, place);
            place = Found { offset: place.offset + 1, position: place.position + (ENTRY_OVERHEAD + length) as u64 };
        }
        Ok(())
    }

    /// Reads a whole segment to see whether it is what it was. Blocks.
    pub(crate) fn verify(&self, id: u64, segment: &SegmentRecord) -> io::Result<()> {
        let mut next = segment.first;
        while next < segment.first + segment.entries {
            let mut out = Vec::new();
            self.read(id, segment, next, (usize::MAX, READ_BYTES), &mut out)?;
            next += out.len() as u64;
        }
        Ok(())
    }

    /// The nearest remembered place at or before `from`.
    fn nearest(&self, name: SegmentName, segment: &SegmentRecord, from: u64) -> Found {
        let indexes = lock(&self.indexes);
        let wanted = from.saturating_sub(segment.first) / STRIDE;
        let known = indexes.get(&name).map(Vec::as_slice).unwrap_or_default();
        let nearest = wanted.min((known.len() as u64).saturating_sub(1));
        let position = usize::try_from(nearest).ok().and_then(|nearest| known.get(nearest)).copied();
        position.map_or(Found { offset: segment.first, position: 0 }, |position| Found {
            offset: segment.first + nearest * STRIDE,
            position,
        })
    }

    fn remember(&self, name: SegmentName, segment: &SegmentRecord, place: Found) {
        let count = place.offset - segment.first;
        if !count.is_multiple_of(STRIDE) {
            return;
        }
        let mut indexes = lock(&self.indexes);
        if !indexes.contains_key(&name) && indexes.len() >= INDEXES {
            indexes.pop_first();
        }
        let known = indexes.entry(name).or_default();
        if known.len() as u64 == count / STRIDE {
            known.push(place.position);
        }
    }
}

impl Open {
    /// Notes what was written; what the system is to begin with, once that is enough.
    fn wrote(&mut self, position: u64, length: u64) -> Option<(u64, u64)> {
        let (begin, end) = self.written;
        self.written = (if position == end { begin } else { position }, position + length);
        let ready = self.written;
        (ready.1 - ready.0 >= WRITE_BACK_BYTES).then(|| {
            self.written.0 = ready.1;
            ready
        })
    }
}

/// An entry's place in a segment.
#[derive(Clone, Copy)]
struct Found {
    offset: u64,
    position: u64,
}

/// A piece of a file.
struct Window<'a> {
    file: &'a dyn DiskFile,
    begin: u64,
    bytes: Vec<u8>,
    end: u64,
}

impl Window<'_> {
    /// Bytes at a position; `None` past the end.
    fn get(&mut self, position: u64, length: usize) -> io::Result<Option<&[u8]>> {
        if position + length as u64 > self.end {
            return Ok(None);
        }
        let have = self.begin + self.bytes.len() as u64;
        if position < self.begin || position + length as u64 > have {
            let left = usize::try_from(self.end - position).unwrap_or(usize::MAX);
            self.bytes.resize(left.min(READ_BYTES.max(length)), 0);
            self.begin = position;
            match crate::disk::read_exact_at(self.file, &mut self.bytes, position) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.bytes.clear();
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let start = usize::try_from(position - self.begin).map_err(io::Error::other)?;
        Ok(self.bytes.get(start..start + length))
    }
}

fn named(path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn parse(file: &str) -> Option<SegmentName> {
    let (id, first) = file.strip_prefix(PREFIX)?.split_once('-')?;
    Some((id.parse().ok()?, first.parse().ok()?))
}

/// CRC of everything after it, length, offset, time, the stream's number, then the bytes. Little-endian, version 1: a
/// change is another prefix of the file's name.
fn encode(place: &Place, entry: &Bytes) -> Vec<u8> {
    let length = u32::try_from(entry.len()).expect("entries are bounded");
    let mut bytes = Vec::with_capacity(ENTRY_OVERHEAD + entry.len());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&length.to_le_bytes());
    for word in [place.offset, place.at_ms, place.id] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.extend_from_slice(entry);
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(id: u64, whole: &[u8]) -> Option<StreamEntry> {
    if crc32fast::hash(&whole[4..]) != word(whole, 0) || long(whole, 24) != id {
        return None;
    }
    let data = Bytes::copy_from_slice(&whole[ENTRY_OVERHEAD..]);
    Some(StreamEntry { offset: long(whole, 8), at_ms: long(whole, 16), data })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use data::{ENTRY_OVERHEAD, Place, SegmentRecord, StreamEntry};

    use super::Segments;
    use crate::options::Options;

    fn filled(directory: &std::path::Path, count: u64) -> (Segments, SegmentRecord, Vec<StreamEntry>) {
        let segments = Segments::new(&Options::new(directory));
        let mut record = SegmentRecord { first: 1000, entries: 0, bytes: 0, first_at_ms: 0, last_at_ms: 0 };
        let mut entries = Vec::new();
        for number in 0..count {
            let data = Bytes::from(format!("entry {number} ").repeat(usize::try_from(number % 50).unwrap()));
            let (offset, at_ms) = (1000 + number, number * 3);
            segments.write(&Place { id: 7, segment: 1000, position: record.bytes, offset, at_ms }, &data).unwrap();
            record.entries += 1;
            record.bytes += (data.len() + ENTRY_OVERHEAD) as u64;
            entries.push(StreamEntry { offset, at_ms, data });
        }
        (segments, record, entries)
    }

    #[test]
    fn what_was_written_is_read_from_any_offset_on_in_any_order() {
        let directory = tempfile::tempdir().unwrap();
        let (segments, record, entries) = filled(directory.path(), 1000);
        for from in [999, 500, 0, 64, 63, 65, 128, 998, 1, 700] {
            for limit in [1, 10, 2000] {
                let mut out = Vec::new();
                segments.read(7, &record, 1000 + from, (limit, usize::MAX), &mut out).unwrap();
                let from = usize::try_from(from).unwrap();
                assert!(out == entries[from..entries.len().min(from.saturating_add(limit))], "{from} {limit}");
            }
        }
        let mut out = Vec::new();
        segments.read(7, &record, 1049, (100, 1000), &mut out).unwrap();
        assert!(out.iter().map(|entry| entry.data.len()).sum::<usize>() <= 1000 && !out.is_empty());
        let mut out = Vec::new();
        segments.read(7, &record, 1049, (100, 1), &mut out).unwrap();
        assert_eq!(out.len(), 1, "a single entry is always given");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let (segments, record, _) = filled(directory.path(), 4);
        segments.flush().unwrap();
        let path = segments.path((7, 1000));
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &damaged).unwrap();
            let read = segments.read(7, &record, 1000, (10, usize::MAX), &mut Vec::new());
            assert!(read.unwrap_err().to_string().contains("is damaged at offset"), "bit {bit}");
        }
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(segments.check((7, 1000), record.bytes).is_err());
        assert!(segments.read(7, &record, 1000, (10, usize::MAX), &mut Vec::new()).is_err());
    }

    #[test]
    fn unwanted_files_go_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let (segments, record, entries) = filled(directory.path(), 3);
        for first in 0..100 {
            let place = Place { id: 8, segment: first, position: 0, offset: first, at_ms: 0 };
            segments.write(&place, &Bytes::from_static(b"more files than are kept open")).unwrap();
        }
        segments.remove(|(id, first)| id == 8 && first != 50).unwrap();
        segments.flush().unwrap();
        assert!(segments.path((8, 50)).exists() && !segments.path((8, 51)).exists());
        let mut out = Vec::new();
        segments.read(7, &record, 1000, (10, usize::MAX), &mut out).unwrap();
        assert_eq!(out, entries);
    }
}
