//! The write-ahead log: one thread writes and flushes, many appends share a flush, anyone may read.
//! Knows records, not entries: what a payload means is `log_store`'s business. A failed write or flush closes the log
//! for good ([`Wal::health`]); it is never retried.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use data::{NotServing, StoreMetrics};

use crate::abort::AbortOnPanic;
use crate::disk::{DiskFile, read_exact_at};
use crate::open_error::OpenError;
use crate::options::Options;
use crate::record::{self, Record};
use crate::streams::STREAMS_GROUP;
use crate::superblock::{SnapshotPointerV1, Superblock, SuperblockV1};
use crate::surroundings;
use crate::way::Way;
use crate::wire::{LogIdV1, VoteV1};

mod positions;
mod recover;
mod window;
mod writer;

use positions::{Position, Positions};
pub(crate) use writer::need_bytes;

/// Longest piece of the log that is read at once, unless one record is longer.
const READ_BYTES: u32 = 256 * 1024;

/// Called once, from the log's thread, when an order is durable (or, with async durability, written) or failed.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// An order to the log's thread; orders are carried out one after the other.
pub(crate) enum Order {
    Append { records: Vec<Record>, done: Done },
    TruncateAfter { last: Option<LogIdV1>, done: Done },
    SaveVote { vote: VoteV1, done: Done },
    SaveSnapshot { pointer: SnapshotPointerV1, done: Done },
    Purge { upto: LogIdV1, done: Done },
    Close { done: Done },
}

/// The way to who carries orders out.
enum Orders {
    Thread(mpsc::Sender<Order>),
    /// In a simulated world.
    Task(tokio::sync::mpsc::UnboundedSender<Order>),
}

/// Handle of the log.
pub(crate) struct Wal {
    orders: Orders,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    need_bytes: u64,
}

/// What the log's thread tells the others.
pub(crate) struct Shared {
    state: Mutex<State>,
    metrics: Mutex<StoreMetrics>,
    last_fsync_micros: AtomicU64,
    health: OnceLock<NotServing>,
    /// Bytes appended since the last snapshot.
    unsnapshotted_bytes: AtomicU64,
    /// Poked when those pass the limit.
    snapshot_due: tokio::sync::Notify,
    /// Whether what is large waits.
    way: Way,
}

pub(crate) struct State {
    positions: Positions,
    segments: BTreeMap<u64, Arc<Segment>>,
    superblock: SuperblockV1,
}

/// A segment file.
#[derive(Debug)]
pub(crate) struct Segment {
    sequence: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// CRC of its header.
    seed: u32,
    length: u64,
}

impl Wal {
    /// Opens the log of a directory, recovering it: cuts a torn tail, refuses damage.
    pub(crate) fn open(options: &Options, superblock: Superblock) -> Result<Self, OpenError> {
        let recovered = recover::recover(options, &superblock)?;
        let wal_bytes = recovered.bytes_after_snapshot;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                positions: recovered.positions,
                segments: recovered.segments,
                superblock: superblock.content().clone(),
            }),
            metrics: Mutex::default(),
            last_fsync_micros: AtomicU64::new(u64::MAX),
            health: OnceLock::new(),
            unsnapshotted_bytes: AtomicU64::new(wal_bytes),
            snapshot_due: tokio::sync::Notify::new(),
            way: Way::default(),
        });
        let writer = writer::Writer::new(options.clone(), superblock, shared.clone(), recovered.tail)?;
        let need_bytes = need_bytes(options);
        if surroundings::is_simulated() {
            let (orders, inbox) = tokio::sync::mpsc::unbounded_channel();
            surroundings::spawn(writer.run_simulated(inbox));
            return Ok(Self { orders: Orders::Task(orders), shared, thread: Mutex::new(None), need_bytes });
        }
        let (orders, inbox) = mpsc::channel();
        let gives_way = options.group == STREAMS_GROUP;
        let thread = std::thread::Builder::new()
            .name("seawall-wal".into())
            .spawn(move || {
                // Else those who wait for a flush would wait for ever.
                let _guard = AbortOnPanic { doing: "writing the log" };
                if gives_way {
                    platform::thread::give_way();
                } else {
                    platform::thread::answer_soon();
                }
                writer.run(&inbox);
            })
            .map_err(OpenError::io("start a thread for", &options.directory))?;
        Ok(Self { orders: Orders::Thread(orders), shared, thread: Mutex::new(Some(thread)), need_bytes })
    }

    /// Gives an order. `done` is always called.
    pub(crate) fn order(&self, order: Order) {
        let refused = match &self.orders {
            Orders::Thread(orders) => orders.send(order).err().map(|mpsc::SendError(order)| order),
            Orders::Task(orders) => orders.send(order).err().map(|refused| refused.0),
        };
        if let Some(order) = refused {
            let (Order::Append { done, .. }
            | Order::TruncateAfter { done, .. }
            | Order::SaveVote { done, .. }
            | Order::SaveSnapshot { done, .. }
            | Order::Purge { done, .. }
            | Order::Close { done }) = order;
            done(Err(io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed")));
        }
    }

    /// Gives an order and waits for it.
    pub(crate) async fn order_and_wait(&self, order: impl FnOnce(Done) -> Order) -> io::Result<()> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.order(order(Box::new(move |result| {
            // The waiter may be gone; the order was carried out all the same.
            let _ = sender.send(result);
        })));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log's thread died")))
    }

    /// The written records with `from <= index < to`; those not written yet, or gone, are left out.
    pub(crate) fn read(&self, from: u64, to: u64) -> io::Result<Vec<Record>> {
        let runs = self.runs(from, to)?;
        let mut records = Vec::new();
        for (segment, run) in runs {
            segment.read(&run, &mut records)?;
        }
        Ok(records)
    }

    /// Neighbours on disk are read in one piece: a replay is mostly that.
    fn runs(&self, from: u64, to: u64) -> io::Result<Vec<(Arc<Segment>, Vec<Position>)>> {
        let state = self.shared.state();
        let mut runs: Vec<(Arc<Segment>, Vec<Position>)> = Vec::new();
        for position in state.positions.range(from, to) {
            match runs.last_mut() {
                Some((segment, run)) if segment.sequence == position.segment && joins(run, position) => {
                    run.push(position)
                }
                _ => {
                    let segment = state.segments.get(&position.segment).cloned();
                    let segment = segment.ok_or_else(|| io::Error::other("a log segment is missing"))?;
                    runs.push((segment, vec![position]));
                }
            }
        }
        Ok(runs)
    }

    /// The newest written entry, or what was purged last.
    pub(crate) fn last(&self) -> Option<LogIdV1> {
        let state = self.shared.state();
        state.positions.last().or(state.superblock.purged)
    }

    /// Index after the newest written entry.
    pub(crate) fn written_next(&self) -> u64 {
        self.shared.state().positions.next()
    }

    /// The superblock as last written.
    pub(crate) fn superblock(&self) -> SuperblockV1 {
        self.shared.state().superblock.clone()
    }

    /// Why the log is closed for good, if it is.
    pub(crate) fn health(&self) -> Option<NotServing> {
        self.shared.health.get().cloned()
    }

    /// Closes the log because what it is about cannot be kept in step with it: a file could not be written or flushed.
    pub(crate) fn close_for_good(&self, error: &io::Error, flushing: bool) {
        let text: Arc<str> = error.to_string().into();
        let file: Arc<str> = text.split(": ").next().unwrap_or_default().into();
        let reason = match (error.kind(), flushing) {
            (io::ErrorKind::StorageFull, _) => {
                let directory = Path::new(&*file).parent().unwrap_or(Path::new("")).display().to_string().into();
                NotServing::DiskFull { directory, need_bytes: self.need_bytes }
            }
            (_, true) => NotServing::FlushFailed { file, error: text },
            (_, false) => NotServing::WriteFailed { file, error: text },
        };
        if self.shared.health.set(reason.clone()).is_ok() {
            tracing::error!(%reason, "the log is closed for good");
        }
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> StoreMetrics {
        let mut metrics = lock(&self.shared.metrics).clone();
        metrics.segments = self.shared.state().segments.len() as u64;
        metrics
    }

    /// Bytes of log on disk, and how long the last flush took.
    pub(crate) fn size_and_last_fsync(&self) -> (u64, Option<Duration>) {
        let bytes = self.shared.state().segments.values().map(|segment| segment.length).sum();
        let micros = self.shared.last_fsync_micros.load(Ordering::Relaxed);
        (bytes, (micros != u64::MAX).then(|| Duration::from_micros(micros)))
    }

    /// Up to where entries must go, so that no more than so many bytes of log stay; none if it is no more. The segment
    /// that is written to stays in any case.
    pub(crate) fn excess(&self, bytes: u64) -> Option<u64> {
        let state = self.shared.state();
        let mut sum = 0;
        let newest_first = state.segments.values().rev();
        let fits = |segment: &&Arc<Segment>| {
            sum += segment.length;
            sum <= bytes
        };
        let oldest = newest_first.take_while(fits).last().or(state.segments.values().next_back())?;
        state.positions.last_before(oldest.sequence)
    }

    /// Returns when enough was appended since the last snapshot.
    pub(crate) async fn snapshot_due(&self) {
        self.shared.snapshot_due.notified().await;
    }

    /// Whether what is large waits here.
    pub(crate) fn way(&self) -> &Way {
        &self.shared.way
    }

    /// Bytes appended since the last snapshot.
    pub(crate) fn unsnapshotted_bytes(&self) -> u64 {
        self.shared.unsnapshotted_bytes.load(Ordering::Relaxed)
    }

    /// Waits for the log's thread, which ends after [`Order::Close`].
    pub(crate) fn join(&self) {
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Whether `next` follows the run closely enough to be read with it.
fn joins(run: &[Position], next: Position) -> bool {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return false };
    let end = last.offset + last.length;
    end == next.offset && next.offset + next.length - first.offset <= READ_BYTES
}

impl Segment {
    /// Reads entries that lie one after the other.
    fn read(&self, run: &[Position], records: &mut Vec<Record>) -> io::Result<()> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let mut bytes = vec![0; (last.offset + last.length - first.offset) as usize];
        read_exact_at(&*self.file, &mut bytes, u64::from(first.offset))?;
        for position in run {
            let start = (position.offset - first.offset) as usize;
            let damaged = || {
                let text = format!("{} is damaged at offset {}", self.path.display(), position.offset);
                io::Error::new(io::ErrorKind::InvalidData, text)
            };
            let found = record::decode(&bytes[start..], self.seed).ok_or_else(damaged)?;
            records.push(found.record().map_err(io::Error::other)?);
        }
        Ok(())
    }
}

/// Locks; a thread that panicked while holding one of these left plain data behind.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn segment_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("wal-{sequence:016}"))
}

#[cfg(test)]
mod tests;
