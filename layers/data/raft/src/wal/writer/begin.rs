//! How the log goes on in a new file. Deliberately absent: when it does.

use std::io;
use std::sync::Arc;

use crate::options::Options;
use crate::record::{SEGMENT_HEADER, SegmentHeader};
use crate::superblock::Superblock;
use crate::wal::recover::Tail;
use crate::wal::{Segment, Shared, segment_path};

/// Makes a segment file, durably, then records in the superblock that it exists; only then is it written to.
pub(super) fn begin_segment(
    options: &Options,
    superblock: &mut Superblock,
    shared: &Shared,
    sequence: u64,
    previous: u32,
    record_length: usize,
) -> io::Result<Tail> {
    let path = segment_path(&options.directory, sequence);
    let content = superblock.content();
    let (header, seed) =
        SegmentHeader { group: content.group, sequence, previous, store_id: content.store_id }.encode();
    let length = options.segment_bytes.max((SEGMENT_HEADER + record_length) as u64);
    let file = options.disk.open(&path, true)?;
    if let Err(error) = file.preallocate(length) {
        // Best effort: an unfinished segment is also removed at the next start.
        drop(file);
        let _ = options.disk.remove(&path);
        return Err(error);
    }
    file.write_all_at(&header, 0)?;
    file.sync()?;
    options.disk.sync_directory(&options.directory)?;
    superblock.update(|content| {
        content.newest_segment = sequence;
        content.clean_end = None;
    })?;
    let segment = Arc::new(Segment { sequence, path, file, seed, length });
    let mut state = shared.state();
    state.superblock = superblock.content().clone();
    state.segments.insert(sequence, segment.clone());
    Ok(Tail { segment, offset: SEGMENT_HEADER as u64, crc: previous })
}

/// What a start needs to go on: a segment and the reserve.
pub(crate) fn need_bytes(options: &Options) -> u64 {
    options.segment_bytes + options.reserve_bytes
}
