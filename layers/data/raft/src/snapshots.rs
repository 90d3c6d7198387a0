//! When snapshots are taken. A background task writes them, then tells the engine, which purges the log behind.
//! A snapshot that cannot be written is counted, logged and tried again later: the log still holds everything.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::SnapshotMeta;
use openraft::type_config::alias::SnapshotMetaOf;
use tokio::sync::{Mutex, MutexGuard, Notify, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc, oneshot};

use crate::disk::going::{self, Going};
use crate::machine::Shared;
use crate::snapshot::{self, Image};
use crate::superblock::SnapshotPointerV1;
use crate::surroundings;
use crate::types::{self, Raft, StoredMembership, Types};
use crate::wal::{Order, lock};
use crate::wire::{LogIdV1, MembershipV1};

/// Pause after a snapshot that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Longest wait for the engine to purge the log behind a snapshot.
const PURGE_WAIT: Duration = Duration::from_secs(30);

/// What decides when the next snapshot is due.
#[derive(Default)]
pub(crate) struct Snapshots {
    entries: AtomicU64,
    entries_due: Notify,
    pub failures: AtomicU64,
    /// Held while a snapshot is written, by this node or off a peer.
    writing: Mutex<()>,
    /// The thread that writes, or has written, the newest one.
    thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Each slot's file, while it is sent to a peer or written to.
    slots: [RwLock<()>; 2],
}

impl Snapshots {
    /// Waits until nothing is written any more: whoever opens the directory next must find it alone.
    pub(crate) fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("a thread that wrote a snapshot panicked");
        }
    }

    /// Counts applied commands; a record may have several.
    pub(crate) fn count_entries(&self, count: u64, limit: u64) {
        if self.entries.fetch_add(count, Ordering::Relaxed) + count >= limit {
            self.entries_due.notify_one();
        }
    }

    /// One is due for another reason than entries.
    pub(crate) fn hurry(&self) {
        self.entries_due.notify_one();
    }

    /// The right to write one.
    pub(crate) async fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().await
    }

    /// A slot that is not written to meanwhile.
    pub(crate) async fn reading(&self, slot: u8) -> RwLockReadGuard<'_, ()> {
        self.slots[usize::from(slot & 1)].read().await
    }

    /// A slot that nobody reads meanwhile.
    pub(crate) async fn free(&self, slot: u8) -> RwLockWriteGuard<'_, ()> {
        self.slots[usize::from(slot & 1)].write().await
    }
}

/// What the engine wants to know of a snapshot.
pub(crate) fn meta(
    pointer: &SnapshotPointerV1,
    membership_log: Option<LogIdV1>,
    membership: MembershipV1,
) -> SnapshotMetaOf<Types> {
    let membership = StoredMembership::new(membership_log.map(types::log_id), types::membership(membership));
    SnapshotMeta { last_log_id: Some(types::log_id(pointer.last)), last_membership: membership }
}

/// Someone waits for a snapshot.
pub(crate) type Request = oneshot::Sender<io::Result<()>>;

/// The background task: by entries, by bytes of log, or on request.
pub(crate) async fn run(raft: Raft, shared: Arc<Shared>, mut requests: mpsc::Receiver<Request>) {
    loop {
        let request = tokio::select! {
            biased;
            request = requests.recv() => match request {
                Some(request) => Some(request),
                None => return,
            },
            () = shared.snapshots.entries_due.notified() => None,
            () = shared.wal.snapshot_due() => None,
        };
        if request.is_none() && !due(&shared) {
            continue;
        }
        let taken = take(&raft, &shared).await;
        if let Err(error) = &taken {
            shared.snapshots.failures.fetch_add(1, Ordering::Relaxed);
            tracing::error!(%error, "no snapshot could be taken: the log grows until one can");
        }
        let failed = taken.is_err();
        match request {
            // The caller may have gone.
            Some(request) => drop(request.send(taken)),
            None if failed => {
                tokio::time::sleep(RETRY_PAUSE).await;
                shared.snapshots.entries_due.notify_one();
            }
            None => {}
        }
    }
}

/// A poke may be old: a snapshot was taken since.
fn due(shared: &Shared) -> bool {
    shared.snapshots.entries.load(Ordering::Relaxed) >= shared.options.snapshot_entries
        || shared.wal.unsnapshotted_bytes() >= shared.options.snapshot_log_bytes
        || shared.streams.as_ref().is_some_and(|part| {
            part.garbage(lock(&shared.view).streams.garbage_bytes()) >= shared.options.snapshot_log_bytes
        })
}

pub(crate) async fn take(raft: &Raft, shared: &Arc<Shared>) -> io::Result<()> {
    let image = shared.image().ok_or_else(|| io::Error::other("nothing is applied yet"))?;
    let last = types::log_id(image.last);
    write(shared, image).await?;
    shared.snapshots.entries.store(0, Ordering::Relaxed);
    raft.trigger().snapshot().await.map_err(io::Error::other)?;
    let wait = raft.wait(Some(PURGE_WAIT));
    if shared.options.is_witness() {
        // What is behind it goes once others hold it.
        let known = wait.metrics(|metrics| metrics.snapshot >= Some(last), "the engine knows the snapshot");
        return known.await.map(drop).map_err(io::Error::other);
    }
    if shared.options.entries_behind_snapshot > 0 {
        // The engine counts entries; a few large ones fill a disk as well.
        let known = wait.metrics(|metrics| metrics.snapshot >= Some(last), "the engine knows the snapshot");
        known.await.map_err(io::Error::other)?;
        if let Some(upto) = shared.wal.excess(shared.options.bytes_behind_snapshot) {
            raft.trigger().purge_log(upto.min(last.index)).await.map_err(io::Error::other)?;
        }
        return Ok(());
    }
    let purged = wait.metrics(|metrics| metrics.purged >= Some(last), "the log behind the snapshot is purged");
    purged.await.map(drop).map_err(io::Error::other)
}

/// Writes a snapshot, durably, and makes it the current one.
pub(crate) async fn write(shared: &Arc<Shared>, image: Image) -> io::Result<()> {
    let _writing = shared.snapshots.writing().await;
    if shared.wal.superblock().snapshot.is_some_and(|current| current.last >= image.last) {
        // A peer's, which came meanwhile, is newer.
        return Ok(());
    }
    let slot = shared.wal.superblock().snapshot.map_or(0, |current| 1 - current.slot);
    let _free = shared.snapshots.free(slot).await;
    // Flushing much at once is felt by whoever else flushes.
    shared.wal.way().free().await;
    let streams = image.streams.clone();
    let pointer = write_on_its_own_thread(shared.clone(), image).await?;
    shared.wal.order_and_wait(|done| Order::SaveSnapshot { pointer, done }).await?;
    if let Some((part, kept)) = shared.streams.as_ref().zip(streams) {
        shared.wal.way().free().await;
        // One that is sent to a peer, or was until now, may name what this one does not: the next time, then.
        if let Ok(_unread) = shared.snapshots.slots[usize::from((1 - pointer.slot) & 1)].try_write() {
            give_back(shared, part.collect_garbage(&kept, &shared.view)).await;
        }
    }
    Ok(())
}

/// Gives back the space of segments that are gone, while nobody else has the way.
async fn give_back(shared: &Shared, gone: Vec<Going>) {
    if surroundings::is_simulated() {
        return;
    }
    for mut file in gone {
        while file.step() {
            tokio::time::sleep(going::PAUSE).await;
            shared.wal.way().free().await;
        }
    }
}

/// Encoding and writing take long: not on the engine's thread.
async fn write_on_its_own_thread(shared: Arc<Shared>, image: Image) -> io::Result<SnapshotPointerV1> {
    if surroundings::is_simulated() {
        surroundings::disk_time().await;
        return write_file(&shared, &image);
    }
    let (sender, receiver) = oneshot::channel();
    // The one before has ended, or ends now: one is written at a time.
    shared.snapshots.join();
    let kept = shared.clone();
    let thread = std::thread::Builder::new().name("seawall-snapshot".into()).spawn(move || {
        // The engine may have shut down meanwhile.
        let _ = sender.send(write_file(&shared, &image));
    })?;
    *lock(&kept.snapshots.thread) = Some(thread);
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the snapshot thread died")))
}

fn write_file(shared: &Shared, image: &Image) -> io::Result<SnapshotPointerV1> {
    let superblock = shared.wal.superblock();
    let (slot, sequence) = superblock.snapshot.map_or((0, 1), |current| (1 - current.slot, current.sequence + 1));
    let options = &shared.options;
    let identity = (superblock.store_id, superblock.group);
    // What it names must be as durable as itself.
    let flushed = shared.streams.as_ref().map_or(Ok(()), |part| part.segments.flush());
    flushed.inspect_err(|error| shared.wal.close_for_good(error, true))?;
    snapshot::write(&*options.disk, &options.directory, identity, (slot, sequence), image)
}
