//! The entries that a saved snapshot takes along: segments as they were at one moment, in pieces. They stay on disk until
//! all of them are read, whatever retention or a newer snapshot would remove meanwhile.
//! Deliberately absent: where the pieces go (`snapshot/encoder.rs`).

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use data::StreamsState;

use super::segments::SegmentName;
use crate::disk::{DiskFile, read_exact_at};
use crate::machine::Shared;
use crate::wal::lock;

/// Bytes of a piece.
const PIECE_BYTES: u64 = 256 * 1024;

/// A piece of a segment.
pub(crate) struct Piece {
    pub name: SegmentName,
    /// Where in the segment it begins.
    pub position: u64,
    pub bytes: Vec<u8>,
}

/// The pieces that are still to be read.
pub(crate) struct Pieces {
    shared: Arc<Shared>,
    held: Arc<BTreeSet<SegmentName>>,
    /// With how many bytes each.
    left: VecDeque<(SegmentName, u64)>,
    open: Option<(Box<dyn DiskFile>, u64)>,
}

impl Pieces {
    /// Of this moment, and the state that names them. `None` before anything is known.
    pub(crate) fn of(shared: &Arc<Shared>) -> Option<(StreamsState, Self)> {
        let part = shared.streams.as_ref()?;
        // Under the lock: nothing that is named here is removed in between.
        let view = lock(&shared.view);
        view.applied?;
        let streams = view.streams.clone();
        let left: VecDeque<(SegmentName, u64)> = streams
            .streams()
            .flat_map(|(_, record)| record.segments.iter().map(|segment| ((record.id, segment.first), segment.bytes)))
            .collect();
        let held = Arc::new(left.iter().map(|(name, _)| *name).collect());
        lock(&part.held).push(Arc::clone(&held));
        drop(view);
        Some((streams, Self { shared: shared.clone(), held, left, open: None }))
    }

    /// The next piece. Blocks on the disk.
    pub(crate) fn next(&mut self) -> io::Result<Option<Piece>> {
        let Some(part) = &self.shared.streams else { return Ok(None) };
        while let Some((name, bytes)) = self.left.front().copied() {
            let (file, position) = match self.open.take() {
                Some(open) => open,
                None => (part.segments.reader(name)?, 0),
            };
            if position == bytes {
                self.left.pop_front();
                continue;
            }
            let length = (bytes - position).min(PIECE_BYTES);
            let mut piece = vec![0; usize::try_from(length).map_err(io::Error::other)?];
            read_exact_at(&*file, &mut piece, position)?;
            self.open = Some((file, position + length));
            return Ok(Some(Piece { name, position, bytes: piece }));
        }
        Ok(None)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let Some(part) = &self.shared.streams {
            lock(&part.held).retain(|held| !Arc::ptr_eq(held, &self.held));
        }
    }
}
