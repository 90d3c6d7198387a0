//! Recovery of the log: walk every segment along the CRC chain, cut a torn tail, refuse damage.
//!
//! A torn tail is an invalid place in the last segment such that no valid record after it was written when that place
//! was already flushed. What lies there was never acknowledged (sync durability), so it is cut. Anything else is damage
//! to something acknowledged: the directory is left as it is and the error names file, offset and cure.
//! What no log can see: damage inside the last flushed batch before a crash, which looks like a tear. A log closed in
//! good order has its end in the superblock, so there even that is noticed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::positions::{Position, Positions};
use super::window::Window;
use super::{Segment, segment_path};
use crate::disk::{DiskFile, read_exact_at};
use crate::open_error::OpenError;
use crate::options::Options;
use crate::record::{Found, HeaderFault, Kind, SEGMENT_HEADER, SegmentHeader};
use crate::superblock::{CleanEndV1, Superblock, SuperblockV1};
use crate::surroundings::planted;
use crate::wire::{LogIdV1, decode};

/// Bytes that are written again at once.
const PIECE: usize = 256 * 1024;

/// Where the writer goes on.
#[derive(Debug, Clone)]
pub(crate) struct Tail {
    pub segment: Arc<Segment>,
    pub offset: u64,
    /// CRC of the last record.
    pub crc: u32,
}

#[derive(Debug)]
pub(crate) struct Recovered {
    pub positions: Positions,
    pub segments: BTreeMap<u64, Arc<Segment>>,
    /// `None` in a new directory.
    pub tail: Option<Tail>,
    pub bytes_after_snapshot: u64,
}

/// Reads the whole log.
pub(crate) fn recover(options: &Options, superblock: &Superblock) -> Result<Recovered, OpenError> {
    let content = superblock.content();
    let sequences = existing_segments(options, content)?;
    let mut walk = Walk {
        content,
        recovered: Recovered {
            positions: Positions::starting_at(content.purged.map_or(0, |purged| purged.index + 1)),
            segments: BTreeMap::new(),
            tail: None,
            bytes_after_snapshot: 0,
        },
    };
    let newest = sequences.last().copied();
    for sequence in sequences {
        walk.segment(options, sequence, Some(sequence) == newest)?;
    }
    Ok(walk.recovered)
}

/// Sequences of the segments that count, checked to be without a gap.
fn existing_segments(options: &Options, content: &SuperblockV1) -> Result<Vec<u64>, OpenError> {
    let names = options.disk.list(&options.directory).map_err(OpenError::io("list", &options.directory))?;
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| name.strip_prefix("wal-")?.parse().ok()).collect();
    sequences.sort_unstable();
    // Begun but not yet in the superblock: nothing was ever written there.
    if let Some(index) = sequences.iter().position(|sequence| *sequence == content.newest_segment + 1) {
        let path = segment_path(&options.directory, sequences.remove(index));
        options.disk.remove(&path).map_err(OpenError::io("remove", &path))?;
    }
    let missing = match (sequences.first(), sequences.last()) {
        (Some(first), Some(_)) => (*first..=content.newest_segment).zip(&sequences).find(|(want, have)| want != *have),
        _ => None,
    }
    .map(|(want, _)| want)
    .or_else(|| (sequences.last().copied().unwrap_or(0) != content.newest_segment).then_some(content.newest_segment));
    if let Some(missing) = missing {
        let path = segment_path(&options.directory, missing);
        return Err(OpenError::corrupt(&path, 0, "the log segment is missing or out of order"));
    }
    Ok(sequences)
}

/// The records of a segment: where they end, with which CRC, and up to where the last of them knew them flushed.
struct Chain {
    offset: u64,
    crc: u32,
    synced: u64,
}

struct Walk<'a> {
    content: &'a SuperblockV1,
    recovered: Recovered,
}

impl Walk<'_> {
    fn segment(&mut self, options: &Options, sequence: u64, newest: bool) -> Result<(), OpenError> {
        let path = segment_path(&options.directory, sequence);
        let file = options.disk.open(&path, false).map_err(OpenError::io("open", &path))?;
        let length = file.length().map_err(OpenError::io("measure", &path))?;
        let mut begin = vec![0; usize::try_from(length).map_or(SEGMENT_HEADER, |length| length.min(SEGMENT_HEADER))];
        read_exact_at(&*file, &mut begin, 0).map_err(OpenError::io("read", &path))?;
        let (header, seed) = self.header(&path, &begin, sequence)?;
        if let Some(tail) = &self.recovered.tail
            && tail.crc != header.previous
        {
            let what = "the chain of records does not reach the next segment";
            return Err(OpenError::corrupt(&tail.segment.path, tail.offset, what));
        }
        let segment = Segment { sequence, path, file, seed, length };
        let mut window = Window::new(&*segment.file, length);
        let Chain { offset, crc, synced } = self.records(&segment, &mut window, header.previous)?;
        if newest {
            check_end(self.content, &segment, &mut window, offset, crc)?;
            if self.content.clean_end.is_none() && !planted("tail-not-written-again") {
                write_again(&*segment.file, synced, offset).map_err(OpenError::io("write again", &segment.path))?;
            }
        }
        let segment = Arc::new(segment);
        self.recovered.segments.insert(sequence, segment.clone());
        self.recovered.tail = Some(Tail { segment, offset, crc });
        Ok(())
    }

    fn header(&self, path: &Path, bytes: &[u8], sequence: u64) -> Result<(SegmentHeader, u32), OpenError> {
        let (header, seed) = match SegmentHeader::decode(bytes) {
            Ok(decoded) => decoded,
            Err(HeaderFault::Damaged) => return Err(OpenError::corrupt(path, 0, "the segment's header is invalid")),
            Err(HeaderFault::Version(version)) => {
                let what = format!("a log segment of version {version}");
                return Err(OpenError::UnknownFormat { file: path.to_path_buf(), what });
            }
        };
        if header.store_id != self.content.store_id {
            return Err(OpenError::ForeignFile { file: path.to_path_buf() });
        }
        if header.sequence != sequence || header.group != self.content.group {
            return Err(OpenError::corrupt(path, 0, "the segment's header names another segment"));
        }
        Ok((header, seed))
    }

    /// Takes in the records of a segment.
    fn records(&mut self, segment: &Segment, window: &mut Window<'_>, previous: u32) -> Result<Chain, OpenError> {
        let begin = SEGMENT_HEADER as u64;
        let mut chain = Chain { offset: begin, crc: previous, synced: begin };
        loop {
            let found = window.record(chain.offset, segment.seed).map_err(OpenError::io("read", &segment.path))?;
            let Some(found) = found.filter(|found| found.previous == chain.crc) else { return Ok(chain) };
            self.record(segment, chain.offset, &found)?;
            chain.crc = found.crc;
            chain.offset += found.length() as u64;
            chain.synced = chain.synced.max(u64::from(found.synced));
        }
    }

    fn record(&mut self, segment: &Segment, at: u64, found: &Found<'_>) -> Result<(), OpenError> {
        let record = found.record().map_err(|what| OpenError::UnknownFormat { file: segment.path.clone(), what })?;
        if found.group != self.content.group {
            return Err(OpenError::corrupt(&segment.path, at, "the record belongs to another group"));
        }
        let positions = &mut self.recovered.positions;
        if record.kind == Kind::Truncate {
            let last: Option<LogIdV1> =
                decode(&record.payload).map_err(|error| OpenError::corrupt(&segment.path, at, error.to_string()))?;
            positions.truncate_after(last.map(|last| last.index));
            return Ok(());
        }
        let purged = self.content.purged.map_or(0, |purged| purged.index + 1);
        if record.index < purged {
            return Ok(());
        }
        if self.content.snapshot.is_none_or(|snapshot| snapshot.last.index < record.index) {
            self.recovered.bytes_after_snapshot += found.length() as u64;
        }
        let position = Position {
            term: record.term,
            segment: segment.sequence,
            offset: u32::try_from(at).expect("segments are smaller than 4 GiB"),
            length: u32::try_from(found.length()).expect("records are smaller than 4 GiB"),
        };
        if positions.push(record.index, position) {
            return Ok(());
        }
        let what = format!("entry {} follows entry {}", record.index, positions.next().wrapping_sub(1));
        Err(OpenError::corrupt(&segment.path, at, what))
    }
}

/// Decides what the first invalid place of the newest segment is: the end, a torn tail (cut here), or damage.
fn check_end(
    content: &SuperblockV1,
    segment: &Segment,
    window: &mut Window<'_>,
    offset: u64,
    crc: u32,
) -> Result<(), OpenError> {
    let forgiving = planted("mid-log-truncation");
    if let Some(clean) = content.clean_end.filter(|_| !forgiving) {
        if clean == (CleanEndV1 { segment: segment.sequence, offset, crc }) {
            return Ok(());
        }
        let what = "the log was closed in good order and does not end where it was closed";
        return Err(OpenError::corrupt(&segment.path, offset, what));
    }
    let reading = |error| OpenError::io("read", &segment.path)(error);
    let end = window.end_of_content(offset).map_err(reading)?;
    for place in offset..end {
        let later = window.record(place, segment.seed).map_err(reading)?;
        if later.is_some_and(|found| u64::from(found.synced) > offset) && !forgiving {
            let what = format!("an invalid record, and a later record at {place} shows that it was once flushed");
            return Err(OpenError::corrupt(&segment.path, offset, what));
        }
    }
    if end > offset {
        tracing::warn!(file = %segment.path.display(), offset, bytes = end - offset, "cut a torn tail off the log");
        cut(&*segment.file, offset, end).map_err(OpenError::io("cut the torn tail of", &segment.path))?;
    }
    Ok(())
}

/// Writes what may be in the operating system's memory only: when a flush has failed it is read from there and yet never
/// written, and nobody would be told. The process that saw the failure is gone; this one acknowledges what it has read.
fn write_again(file: &dyn DiskFile, from: u64, end: u64) -> std::io::Result<()> {
    let mut bytes = vec![0; PIECE];
    let mut offset = from;
    while offset < end {
        let length = usize::try_from(end - offset).map_or(PIECE, |left| left.min(PIECE));
        read_exact_at(file, &mut bytes[..length], offset)?;
        file.write_all_at(&bytes[..length], offset)?;
        offset += length as u64;
    }
    file.sync()
}

/// Zeroes what was torn, so that no piece of it can ever be taken for a record.
fn cut(file: &dyn DiskFile, mut offset: u64, end: u64) -> std::io::Result<()> {
    const ZEROS: [u8; 4096] = [0; 4096];
    while offset < end {
        let length = usize::try_from(end - offset).map_or(ZEROS.len(), |length| length.min(ZEROS.len()));
        file.write_all_at(&ZEROS[..length], offset)?;
        offset += length as u64;
    }
    file.sync()
}
