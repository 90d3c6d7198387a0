//! The segments behind a snapshot of streams, on the connection of the snapshot: the receiver says which pieces it lacks,
//! each comes in blocks with a CRC over the piece, is flushed and read through before the next. What has arrived whole
//! is not asked for again after a broken connection. Disks are read and written apart from the connections' thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use data::{SegmentRecord, StreamsState};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::frame::{Frame, Kind};
use super::hello::Frames;
use super::message::{PieceV1, SegmentsWantedV1, SnapshotEndV1, payload};
use super::snapshot_lane::{BLOCK, STALL, in_time};
use crate::disk::read_exact_at;
use crate::machine::Shared;
use crate::streams::part::Part;
use crate::surroundings::blocking;
use crate::wal::lock;
use crate::wire;

/// Most bytes of a piece that a sender believes in: a segment and one entry.
const MAX_PIECE: u64 = 8 * 1024 * 1024;

/// Sends the pieces that are wanted.
pub(super) async fn send(
    shared: &Shared,
    group: u16,
    wanted: &[u8],
    out: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let part = shared.streams.as_ref().ok_or_else(|| damaged("has no segments"))?;
    let wanted: SegmentsWantedV1 = wire::decode(wanted).map_err(|_| damaged("is asked for what is not understood"))?;
    let frame = |kind, payload| Frame { kind, group, call: 1, payload };
    let mut bytes = BytesMut::new();
    tracing::info!(pieces = wanted.pieces.len(), "sending the segments of streams that a node lacks");
    for piece in wanted.pieces {
        let length = piece.to.checked_sub(piece.from).filter(|length| *length <= MAX_PIECE);
        let length = usize::try_from(length.ok_or_else(|| damaged("is asked for an impossible piece"))?)
            .map_err(io::Error::other)?;
        let file = part.segments.reader((piece.id, piece.first))?;
        let reading = blocking(move || {
            let mut content = vec![0; length];
            read_exact_at(&*file, &mut content, piece.from).map(|()| content)
        });
        let content = Bytes::from(reading.await??);
        let whole = crc32fast::hash(&content);
        for begin in (0..content.len()).step_by(BLOCK) {
            let block = content.slice(begin..content.len().min(begin + BLOCK));
            frame(Kind::SnapshotBlock, block).encode(&mut bytes);
            in_time(STALL, out.write_all_buf(&mut bytes)).await?;
        }
        frame(Kind::SnapshotEnd, payload(&SnapshotEndV1 { whole })).encode(&mut bytes);
        in_time(STALL, out.write_all_buf(&mut bytes)).await?;
    }
    in_time(STALL, out.flush()).await
}

/// Asks for what a snapshot names and this node lacks, and takes it over.
pub(super) async fn receive(
    shared: &Arc<Shared>,
    streams: &StreamsState,
    frames: &mut Frames,
    answers: &mpsc::Sender<Frame>,
    call: &Frame,
) -> io::Result<()> {
    let part = shared.streams.as_ref().ok_or_else(|| damaged("is of streams, which this group has not"))?;
    let wanted = wanted(shared, part, streams);
    let pieces: Vec<PieceV1> = wanted.iter().map(|(piece, _)| *piece).collect();
    tracing::info!(pieces = pieces.len(), "taking over segments of streams");
    let asked = payload(&SegmentsWantedV1 { pieces });
    let asking = Frame { kind: Kind::SegmentsWanted, group: call.group, call: call.call, payload: asked };
    answers.send(asking).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
    for (piece, segment) in wanted {
        let content = piece_of(frames, piece).await?;
        let writing = shared.clone();
        let written = blocking(move || {
            let Some(part) = &writing.streams else { return Ok(()) };
            part.segments.write_bytes((piece.id, piece.first), piece.from, &content)?;
            part.segments.verify(piece.id, &segment)
        });
        written.await??;
        lock(&part.received).insert((piece.id, piece.first), piece.to);
    }
    let flushing = shared.clone();
    let flushed = blocking(move || flushing.streams.as_ref().map_or(Ok(()), |part| part.segments.flush()));
    flushed.await?.inspect_err(|error| shared.wal.close_for_good(error, true))
}

/// The content of one segment file never changes, only grows: what this node has applied is there already.
fn wanted(shared: &Shared, part: &Part, streams: &StreamsState) -> Vec<(PieceV1, SegmentRecord)> {
    let mut here: BTreeMap<(u64, u64), u64> = lock(&part.received).clone();
    for (_, record) in lock(&shared.view).streams.streams() {
        for segment in &record.segments {
            let have = here.entry((record.id, segment.first)).or_default();
            *have = segment.bytes.max(*have);
        }
    }
    let mut wanted = Vec::new();
    for (_, record) in streams.streams() {
        for segment in &record.segments {
            let from = here.get(&(record.id, segment.first)).copied().unwrap_or_default();
            if from < segment.bytes {
                let piece = PieceV1 { id: record.id, first: segment.first, from, to: segment.bytes };
                wanted.push((piece, *segment));
            }
        }
    }
    wanted
}

async fn piece_of(frames: &mut Frames, piece: PieceV1) -> io::Result<Vec<u8>> {
    let length = usize::try_from(piece.to - piece.from).map_err(io::Error::other)?;
    let mut content = Vec::with_capacity(length);
    loop {
        let frame = in_time(STALL, frames.next()).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match frame.kind {
            Kind::SnapshotBlock if content.len() + frame.payload.len() <= length => {
                content.extend_from_slice(&frame.payload);
            }
            Kind::SnapshotEnd => {
                let end: SnapshotEndV1 = wire::decode(&frame.payload).map_err(|_| damaged("has no end"))?;
                if content.len() != length || end.whole != crc32fast::hash(&content) {
                    return Err(damaged("did not arrive whole"));
                }
                return Ok(content);
            }
            _ => return Err(damaged("is longer than announced")),
        }
    }
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a snapshot's segment {what}"))
}
