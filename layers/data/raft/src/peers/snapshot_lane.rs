//! A snapshot on its way to a node that is too far behind for the log: the file in blocks, each with the CRC of its
//! frame, one CRC over the whole, then the answer once it is in force there. A connection for each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};

use super::frame::{Frame, Kind};
use super::hello::{Frames, Greeted};
use super::message::{SnapshotBeginV1, SnapshotEndV1, SnapshotReplyV1, payload};
use super::{Peers, segment_lane};
use crate::disk::read_exact_at;
use crate::machine::{Shared, SnapshotFile};
use crate::members;
use crate::replica::Replica;
use crate::snapshot::{self, Image};
use crate::snapshots;
use crate::superblock::SnapshotPointerV1;
use crate::surroundings::{self, planted};
use crate::types::{self, Types};
use crate::wire;

/// Bytes of a block.
pub(super) const BLOCK: usize = 256 * 1024;
/// Longest wait for one block to be taken.
pub(super) const STALL: Duration = Duration::from_secs(10);
/// Longest wait for a complete snapshot to be in force.
const INSTALL: Duration = Duration::from_secs(120);

/// Sends a snapshot, without its content if the `target` is a witness; the answer is the receiver's vote.
pub(crate) async fn send(
    peers: &Peers,
    shared: &Arc<Shared>,
    target: (u64, bool),
    vote: &VoteOf<Types>,
    snapshot: &SnapshotOf<Types, SnapshotFile>,
) -> io::Result<VoteOf<Types>> {
    let pointer = snapshot.snapshot.pointer;
    let membership = &snapshot.meta.last_membership;
    let begin = SnapshotBeginV1 {
        vote: types::vote_dto(vote),
        last: pointer.last,
        membership_log: membership.log_id().as_ref().map(types::log_id_dto),
        membership: types::membership_dto(membership.membership()),
        sequence: pointer.sequence,
        length: 0,
    };
    let (done, sent) = oneshot::channel();
    let (sender, shared, group) = (peers.clone(), shared.clone(), shared.options.group);
    // Where connections live: the engine's thread has better to do than reading files.
    peers.spawn_for(group, async move {
        let sending = send_file(&sender, &shared, (target, group), begin, pointer);
        // Who waits for it may have given up.
        let _ = done.send(sending.await);
    });
    sent.await.unwrap_or_else(|_| Err(io::Error::other("this node is stopping")))
}

async fn send_file(
    peers: &Peers,
    shared: &Shared,
    ((target, is_witness), group): ((u64, bool), u16),
    begin: SnapshotBeginV1,
    pointer: SnapshotPointerV1,
) -> io::Result<VoteOf<Types>> {
    // The slot is not written to meanwhile.
    let _reading = shared.snapshots.reading(pointer.slot).await;
    let path = snapshot::path(&shared.options.directory, pointer.slot);
    let file = shared.options.disk.open(&path, false)?;
    let length = if is_witness { 0 } else { file.length()? };
    let Greeted { mut frames, mut out, hello, .. } = peers.dial(target).await?;
    tracing::info!(node = hello.name, bytes = length, "sending a snapshot");
    let mut whole = crc32fast::Hasher::new();
    let mut bytes = BytesMut::new();
    let frame = |kind, payload| Frame { kind, group, call: 1, payload };
    frame(Kind::SnapshotBegin, payload(&SnapshotBeginV1 { length, ..begin })).encode(&mut bytes);
    let mut offset = 0;
    while offset < length {
        let size = usize::try_from(length - offset).map_or(BLOCK, |left| left.min(BLOCK));
        let mut block = vec![0; size];
        read_exact_at(&*file, &mut block, offset)?;
        whole.update(&block);
        frame(Kind::SnapshotBlock, Bytes::from(block)).encode(&mut bytes);
        in_time(STALL, out.write_all_buf(&mut bytes)).await?;
        offset += size as u64;
    }
    frame(Kind::SnapshotEnd, payload(&SnapshotEndV1 { whole: whole.finalize() })).encode(&mut bytes);
    in_time(STALL, out.write_all_buf(&mut bytes)).await?;
    in_time(STALL, out.flush()).await?;
    let mut reply = in_time(INSTALL, frames.next()).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if reply.kind == Kind::SegmentsWanted {
        segment_lane::send(shared, group, &reply.payload, &mut out).await?;
        reply = in_time(INSTALL, frames.next()).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    }
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let reply: SnapshotReplyV1 = wire::decode(&reply.payload).map_err(invalid)?;
    Ok(types::vote(reply.vote))
}

/// Takes a snapshot over: onto this node's disk, checked, then into force.
pub(crate) async fn receive(
    replica: &Replica,
    frames: &mut Frames,
    answers: &mpsc::Sender<Frame>,
    (call, begin): (&Frame, SnapshotBeginV1),
) -> io::Result<SnapshotReplyV1> {
    let shared = &replica.shared;
    let is_witness = shared.options.is_witness();
    check_sender(&begin)?;
    // One at a time, and not while this node writes one of its own.
    let writing = shared.snapshots.writing().await;
    let current = shared.wal.superblock().snapshot;
    let slot = current.map_or(0, |current| 1 - current.slot);
    let _free = shared.snapshots.free(slot).await;
    let path = snapshot::path(&shared.options.directory, slot);
    let file = shared.options.disk.open(&path, true)?;
    file.truncate(0)?;
    tracing::info!(bytes = begin.length, "taking over a snapshot of the leader");
    let (mut offset, mut whole) = (0_u64, crc32fast::Hasher::new());
    let damaged = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot {what}"));
    loop {
        let frame = in_time(STALL, frames.next()).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        match frame.kind {
            Kind::SnapshotBlock if offset + frame.payload.len() as u64 <= begin.length => {
                if !is_witness {
                    file.write_all_at(&frame.payload, offset)?;
                }
                whole.update(&frame.payload);
                offset += frame.payload.len() as u64;
            }
            Kind::SnapshotEnd => {
                let end: SnapshotEndV1 = wire::decode(&frame.payload).map_err(|_| damaged("has no end"))?;
                if offset != begin.length || end.whole != whole.finalize() {
                    return Err(damaged("did not arrive whole"));
                }
                break;
            }
            _ => return Err(damaged("is longer than announced")),
        }
    }
    let pointer = SnapshotPointerV1 { slot, sequence: begin.sequence, last: begin.last };
    let checking = shared.clone();
    let without_content = is_witness.then(|| Image {
        last: begin.last,
        membership_log: begin.membership_log,
        membership: begin.membership.clone(),
        state: data::StateMachine::default(),
        streams: shared.streams.is_some().then(data::StreamsState::default),
    });
    let checked = surroundings::blocking(move || {
        if let Some(image) = &without_content {
            let (options, superblock) = (&checking.options, checking.wal.superblock());
            let identity = (superblock.store_id, superblock.group);
            snapshot::write(&*options.disk, &options.directory, identity, (slot, begin.sequence), image)?;
        }
        file.sync()?;
        let (disk, directory) = (&*checking.options.disk, &checking.options.directory);
        disk.sync_directory(directory)?;
        snapshot::read(disk, directory, pointer).map_err(io::Error::other)
    });
    let image = checked.await??;
    if let Some(streams) = &image.streams {
        segment_lane::receive(shared, streams, frames, answers, call).await?;
    }
    let meta = snapshots::meta(&pointer, begin.membership_log, begin.membership);
    let snapshot = openraft::Snapshot { meta, snapshot: SnapshotFile { pointer, image: Some(image) } };
    let installed = replica.raft.install_full_snapshot(types::vote(begin.vote), snapshot).await;
    drop(writing);
    let installed = installed.map_err(io::Error::other)?;
    Ok(SnapshotReplyV1 { vote: types::vote_dto(&installed.vote) })
}

/// A witness has no state: whatever it sends is none.
fn check_sender(begin: &SnapshotBeginV1) -> io::Result<()> {
    let membership = types::membership(begin.membership.clone());
    if membership.get_node(&begin.vote.node).is_some_and(members::is_witness) && !planted("witness-snapshot") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a witness has no snapshots"));
    }
    Ok(())
}

pub(super) async fn in_time<T>(limit: Duration, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
