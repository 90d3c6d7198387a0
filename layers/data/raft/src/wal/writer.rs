//! The log's thread: takes orders, writes, flushes, answers. Appends that wait together share one flush.

mod begin;
mod hold;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use data::{Durability, NotServing};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::Instant;

use begin::begin_segment;
pub(crate) use begin::need_bytes;

use super::positions::Position;
use super::recover::Tail;
use super::{Done, Order, Segment, Shared, lock};
use crate::disk::going::{self, Going};
use crate::open_error::OpenError;
use crate::options::Options;
use crate::record::{Kind, Place, Record, encode};
use crate::streams::STREAMS_GROUP;
use crate::superblock::{CleanEndV1, Superblock, SuperblockV1};
use crate::surroundings::{self, planted};
use crate::wire::{self, LogIdV1};

/// Orders taken into one round.
const ROUND_ORDERS: usize = 1024;
/// Bytes gathered before a write.
const WRITE_BYTES: usize = 1024 * 1024;
/// With less than this before it that was written once, the store's log goes on to
const AHEAD_BYTES: u64 = 64 * 1024;
/// so much more.
const AHEAD_PIECE: usize = 256 * 1024;

pub(crate) struct Writer {
    options: Options,
    shared: Arc<Shared>,
    superblock: Superblock,
    segment: Arc<Segment>,
    /// Where the next record goes.
    offset: u64,
    /// CRC of the last record.
    crc: u32,
    /// Everything before this offset of the segment is flushed.
    synced: u64,
    /// Up to here the segment's bytes were written and flushed once, if only with zeros.
    ahead: u64,
    /// Encoded, not yet written; ends at `offset`.
    buffer: Vec<u8>,
    /// What to note once the buffer is written.
    unwritten: Vec<Note>,
    /// Records written since the last flush.
    unflushed_records: u64,
    /// When the oldest unflushed write happened (async durability).
    dirty_since: Option<Instant>,
    /// A segment was removed since the directory was last flushed.
    removed: bool,
    /// Segments whose entries are purged and whose files are there yet, the oldest first,
    doomed: VecDeque<Arc<Segment>>,
    /// what is left of the last one whose name has gone,
    going: Option<Going>,
    /// and when there is something to do about them.
    removal_due: Option<Instant>,
    waiting: Vec<Done>,
    /// Something waits that does not give way.
    urgent: bool,
}

enum Note {
    Entry(u64, Position),
    TruncateAfter(Option<u64>),
}

impl Writer {
    /// Continues at `tail`, or begins the first segment.
    pub(crate) fn new(
        options: Options,
        mut superblock: Superblock,
        shared: Arc<Shared>,
        tail: Option<Tail>,
    ) -> Result<Self, OpenError> {
        let tail = match tail {
            Some(tail) => tail,
            None => begin_segment(&options, &mut superblock, &shared, 1, 0, 0).map_err(|error| {
                if error.kind() == io::ErrorKind::StorageFull {
                    return OpenError::DiskFull {
                        directory: options.directory.clone(),
                        need_bytes: need_bytes(&options),
                    };
                }
                OpenError::Io { action: "begin the log in", file: options.directory.clone(), source: error }
            })?,
        };
        Ok(Self {
            options,
            shared,
            superblock,
            segment: tail.segment,
            offset: tail.offset,
            crc: tail.crc,
            synced: tail.offset,
            ahead: tail.offset,
            buffer: Vec::new(),
            unwritten: Vec::new(),
            unflushed_records: 0,
            dirty_since: None,
            removed: false,
            doomed: VecDeque::new(),
            going: None,
            removal_due: None,
            waiting: Vec::new(),
            urgent: false,
        })
    }

    /// Until [`Order::Close`], or until every handle is gone.
    pub(crate) fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let deadline = self.flush_deadline().into_iter().chain(self.removal_due).min();
            let waiting = inbox.try_recv().ok();
            if waiting.is_none() {
                self.attempt(Self::write_ahead);
            }
            let first = match (waiting, deadline) {
                (Some(order), _) => Ok(order),
                (None, None) => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (None, Some(deadline)) => inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(order) => {
                    let closed = self.gather(order, || inbox.try_recv().ok());
                    if let Some(closed) = closed.or_else(|| self.hold(inbox)) {
                        return self.close(closed);
                    }
                    self.attempt(Self::commit);
                }
                Err(RecvTimeoutError::Timeout) if self.flush_deadline().is_some_and(|due| due <= Instant::now()) => {
                    self.attempt(Self::flush);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.attempt(Self::flush),
            }
            if self.removal_due.is_some_and(|due| due <= Instant::now()) {
                match self.shared.way.given_until() {
                    Some(until) => self.removal_due = Some(until),
                    None => self.remove_doomed(),
                }
            }
        }
    }

    /// The same as a task of a simulated world, where time passes between a write and its flush.
    pub(crate) async fn run_simulated(mut self, mut inbox: UnboundedReceiver<Order>) {
        loop {
            let first = match self.flush_deadline() {
                None => Ok(inbox.recv().await),
                Some(deadline) => tokio::time::timeout_at(deadline, inbox.recv()).await,
            };
            match first {
                Ok(Some(order)) => {
                    let mut closed = self.gather(order, || inbox.try_recv().ok());
                    if closed.is_none() {
                        closed = self.hold_simulated(&mut inbox).await;
                    }
                    if let Some(closed) = closed {
                        return self.close(closed);
                    }
                    self.attempt(Self::write);
                    surroundings::disk_time().await;
                    self.attempt(Self::commit);
                    self.attempt(Self::write_ahead);
                }
                Ok(None) => return self.attempt(Self::flush),
                Err(_) => self.attempt(Self::flush),
            }
        }
    }

    /// Takes an order, and others that wait already; who closes the log, if one does.
    fn gather(&mut self, first: Order, next: impl FnMut() -> Option<Order>) -> Option<Done> {
        let rest = std::iter::from_fn(next).take(ROUND_ORDERS);
        for order in std::iter::once(first).chain(rest) {
            if let Order::Close { done } = order {
                return Some(done);
            }
            self.take(order);
        }
        None
    }

    fn flush_deadline(&self) -> Option<Instant> {
        if self.shared.health.get().is_some() {
            return None;
        }
        self.dirty_since.map(|since| since + self.options.flush_interval)
    }

    fn take(&mut self, order: Order) {
        self.urgent |= hold::is_urgent(&order);
        match order {
            Order::Append { records, done } => {
                self.waiting.push(done);
                self.attempt(|writer| records.iter().try_for_each(|record| writer.push(record)));
            }
            Order::TruncateAfter { last, done } => self.alone(done, |writer| writer.truncate_after(last)),
            Order::SaveVote { vote, done } => self.alone(done, |writer| {
                writer.update(|content| {
                    content.vote = Some(vote);
                    content.clean_end = None;
                })
            }),
            Order::SaveSnapshot { pointer, done } => self.alone(done, |writer| {
                writer.update(|content| content.snapshot = Some(pointer))?;
                writer.shared.unsnapshotted_bytes.store(0, Ordering::Relaxed);
                lock(&writer.shared.metrics).snapshots += 1;
                Ok(())
            }),
            Order::Purge { upto, done } => self.alone(done, |writer| writer.purge(upto)),
            Order::Close { .. } => unreachable!("handled in gather"),
        }
    }

    /// Carries out an order that shares no flush: everything before it is made durable first.
    fn alone(&mut self, done: Done, action: impl FnOnce(&mut Self) -> io::Result<()>) {
        self.attempt(Self::commit);
        self.waiting.push(done);
        self.attempt(action);
        self.answer();
    }

    /// Runs a step, unless the log is closed for good; an error closes it.
    fn attempt(&mut self, step: impl FnOnce(&mut Self) -> io::Result<()>) {
        if self.shared.health.get().is_none()
            && let Err(error) = step(self)
        {
            self.fail(&error, false);
        }
        if self.shared.health.get().is_some() {
            self.answer();
        }
    }

    /// Tells everyone who waits how it went.
    fn answer(&mut self) {
        self.urgent = false;
        let health = self.shared.health.get();
        for done in self.waiting.drain(..) {
            done(health.map_or(Ok(()), |reason| Err(io::Error::other(reason.clone()))));
        }
    }

    /// Closes the log for good and says why.
    fn fail(&mut self, error: &io::Error, flushing: bool) {
        let (file, text) = (self.segment.path.display().to_string().into(), error.to_string().into());
        let reason = if error.kind() == io::ErrorKind::StorageFull {
            // Room for the rest of the node to stop in good order.
            let reserve = self.options.directory.join(crate::lock::RESERVE);
            if self.options.reserve_bytes > 0
                && let Err(error) = self.options.disk.remove(&reserve)
            {
                tracing::warn!(%error, "cannot give up the reserve file");
            }
            let directory = self.options.directory.display().to_string().into();
            NotServing::DiskFull { directory, need_bytes: need_bytes(&self.options) }
        } else if flushing {
            NotServing::FlushFailed { file, error: text }
        } else {
            NotServing::WriteFailed { file, error: text }
        };
        if self.shared.health.set(reason.clone()).is_ok() {
            tracing::error!(%reason, "the log is closed for good");
        }
        self.buffer.clear();
        self.unwritten.clear();
    }

    fn push(&mut self, record: &Record) -> io::Result<()> {
        let length = record.encoded_length();
        if self.offset + length as u64 > self.segment.length {
            self.write()?;
            self.flush()?;
            self.begin_segment(length)?;
        }
        let offset = u32::try_from(self.offset).map_err(io::Error::other)?;
        let synced = u32::try_from(self.synced).map_err(io::Error::other)?;
        let place = Place { seed: self.segment.seed, group: self.options.group, previous: self.crc, synced };
        self.crc = encode(record, place, &mut self.buffer);
        self.offset += length as u64;
        self.unflushed_records += 1;
        if record.kind != Kind::Truncate {
            let length = u32::try_from(length).map_err(io::Error::other)?;
            let position = Position { term: record.term, segment: self.segment.sequence, offset, length };
            self.unwritten.push(Note::Entry(record.index, position));
        }
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    /// Writes the buffer; from here on its entries can be read.
    fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        if self.superblock.content().clean_end.is_some() {
            self.update(|content| content.clean_end = None)?;
        }
        let bytes = self.buffer.len() as u64;
        self.segment.file.write_all_at(&self.buffer, self.offset - bytes)?;
        self.buffer.clear();
        // A burst of large values must not stay resident.
        self.buffer.shrink_to(WRITE_BYTES);
        self.dirty_since.get_or_insert_with(Instant::now);
        let mut state = self.shared.state();
        for note in self.unwritten.drain(..) {
            match note {
                Note::Entry(index, position) => {
                    let pushed = state.positions.push(index, position);
                    assert!(pushed, "the engine appends consecutive entries");
                }
                Note::TruncateAfter(last) => state.positions.truncate_after(last),
            }
        }
        drop(state);
        self.count(bytes);
        Ok(())
    }

    fn count(&self, bytes: u64) {
        lock(&self.shared.metrics).appended_bytes += bytes;
        let before = self.shared.unsnapshotted_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes >= self.options.snapshot_log_bytes {
            self.shared.snapshot_due.notify_one();
        }
    }

    /// Makes what was written durable. The one place that decides the fate of a failed flush.
    fn flush(&mut self) -> io::Result<()> {
        if self.dirty_since.take().is_none() {
            return Ok(());
        }
        let start = Instant::now();
        let mut flushed = self.segment.file.sync();
        if planted("retried-flush") {
            flushed = flushed.or_else(|_| self.segment.file.sync());
        }
        if let Err(error) = flushed {
            self.fail(&error, true);
            return Err(error);
        }
        let took = start.elapsed();
        self.synced = self.offset;
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX - 1);
        self.shared.last_fsync_micros.store(micros, Ordering::Relaxed);
        let mut metrics = lock(&self.shared.metrics);
        metrics.fsync_micros.record_duration(took);
        metrics.batch_records.record(self.unflushed_records);
        metrics.appended_records += self.unflushed_records;
        self.unflushed_records = 0;
        Ok(())
    }

    /// Ends a round: everything is written and, with sync durability, flushed; then everyone is answered.
    fn commit(&mut self) -> io::Result<()> {
        self.write()?;
        let overdue = self.dirty_since.is_some_and(|since| since.elapsed() >= self.options.flush_interval);
        if self.options.durability == Durability::Sync || overdue {
            self.flush()?;
        }
        self.answer();
        Ok(())
    }

    /// Writes zeros where the next records go, when there is nothing else to do: to flush what stands where nothing was
    /// written before, a file system must change what it knows of the file, and with that flush what others have written.
    /// Streams have large entries, and nobody is that urgent there.
    fn write_ahead(&mut self) -> io::Result<()> {
        let from = self.ahead.max(self.offset);
        let length = usize::try_from(self.segment.length - from).map_or(AHEAD_PIECE, |left| left.min(AHEAD_PIECE));
        if self.options.group == STREAMS_GROUP || from - self.offset >= AHEAD_BYTES || length == 0 {
            return Ok(());
        }
        self.segment.file.write_all_at(&vec![0; length], from)?;
        if let Err(error) = self.segment.file.sync() {
            self.fail(&error, true);
            return Err(error);
        }
        self.ahead = from + length as u64;
        Ok(())
    }

    fn truncate_after(&mut self, last: Option<LogIdV1>) -> io::Result<()> {
        if planted("truncation-not-written") {
            self.shared.state().positions.truncate_after(last.map(|last| last.index));
            return Ok(());
        }
        let (term, index) = last.map_or((0, 0), |last| (last.term, last.index));
        self.push(&Record { kind: Kind::Truncate, term, index, payload: wire::encode(&last).into() })?;
        self.unwritten.push(Note::TruncateAfter(last.map(|last| last.index)));
        self.write()?;
        self.flush()
    }

    fn purge(&mut self, upto: LogIdV1) -> io::Result<()> {
        self.update(|content| content.purged = content.purged.max(Some(upto)))?;
        let mut state = self.shared.state();
        state.positions.purge(upto.index);
        let oldest = state.positions.oldest_segment().unwrap_or(self.segment.sequence);
        let kept = state.segments.split_off(&oldest);
        let gone = std::mem::replace(&mut state.segments, kept);
        drop(state);
        self.doomed.extend(gone.into_values());
        self.removal_due = Some(Instant::now());
        while surroundings::is_simulated() && self.removal_due.is_some() {
            self.remove_doomed();
        }
        Ok(())
    }

    /// Removes the oldest doomed segment, a step after appends have been answered: its name, then its space a piece at a time.
    /// One that is left, after an error too, is ignored at recovery, since its entries are below the purge mark, and goes with
    /// a later purge.
    fn remove_doomed(&mut self) {
        self.removal_due = None;
        if let Some(going) = &mut self.going {
            if !going.step() {
                self.going = None;
            }
        } else if let Some(segment) = self.doomed.front().cloned() {
            if let Err(error) = self.remove(&segment.path) {
                tracing::warn!(file = %segment.path.display(), %error, "cannot remove an old log segment");
                return;
            }
            drop(segment);
            // Who reads it still keeps it whole.
            let gone = self.doomed.pop_front().and_then(Arc::into_inner);
            self.going = gone.map(|segment| Going::new(segment.file, segment.length));
        }
        let more = self.going.is_some() || !self.doomed.is_empty();
        self.removal_due = more.then(|| Instant::now() + going::PAUSE);
    }

    /// Segments go for good in their order: a power cut that brings one back, and not the one after it, would leave a gap.
    fn remove(&mut self, path: &Path) -> io::Result<()> {
        if self.removed && !planted("removals-in-any-order") {
            self.options.disk.sync_directory(&self.options.directory)?;
            self.removed = false;
        }
        self.options.disk.remove(path)?;
        self.removed = true;
        Ok(())
    }

    fn update(&mut self, change: impl FnOnce(&mut SuperblockV1)) -> io::Result<()> {
        self.superblock.update(change)?;
        self.shared.state().superblock = self.superblock.content().clone();
        Ok(())
    }

    fn begin_segment(&mut self, record_length: usize) -> io::Result<()> {
        let sequence = self.segment.sequence + 1;
        let tail = begin_segment(&self.options, &mut self.superblock, &self.shared, sequence, self.crc, record_length)?;
        self.segment = tail.segment;
        self.offset = tail.offset;
        self.synced = tail.offset;
        self.ahead = tail.offset;
        // The directory was flushed with it.
        self.removed = false;
        Ok(())
    }

    fn close(mut self, done: Done) {
        self.attempt(Self::commit);
        self.waiting.push(done);
        self.attempt(Self::flush);
        let (segment, offset, crc) = (self.segment.sequence, self.offset, self.crc);
        self.attempt(|writer| writer.update(|content| content.clean_end = Some(CleanEndV1 { segment, offset, crc })));
        self.answer();
    }
}
