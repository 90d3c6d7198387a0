//! What the group of streams has that the store's has not: entries on disk, and readers that wait for more of them.
//! Stands between apply and the segments.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use data::{Name, Place, StreamCommand, StreamRequest, StreamsState};
use tokio::sync::Notify;

use super::limit::Limit;
use super::segments::{SegmentName, Segments};
use crate::disk::going::Going;
use crate::machine::View;
use crate::options::Options;
use crate::wal::lock;

/// The group's part of the shared state.
pub(crate) struct Part {
    pub segments: Segments,
    /// Large entries on their way through the log, as the leader.
    pub limit: Limit,
    /// Readers that wait, by stream; a stream without any is absent.
    waiting: Mutex<BTreeMap<Name, Arc<Notify>>>,
    pub appended_entries: AtomicU64,
    pub appended_bytes: AtomicU64,
    /// What had gone when the last snapshot was taken.
    collected: AtomicU64,
    /// Segments that are being read into a saved snapshot.
    pub held: Mutex<Vec<Arc<BTreeSet<SegmentName>>>>,
    /// Pieces of segments that a peer has sent while its snapshot was not yet whole: whole and flushed up to there.
    pub received: Mutex<BTreeMap<SegmentName, u64>>,
}

/// A place among those who wait for a stream; leaves it when dropped.
pub(crate) struct Waiting<'a> {
    part: &'a Part,
    stream: Name,
    pub notify: Arc<Notify>,
}

impl Part {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            segments: Segments::new(options),
            limit: Limit::new(),
            waiting: Mutex::default(),
            appended_entries: AtomicU64::new(0),
            appended_bytes: AtomicU64::new(0),
            collected: AtomicU64::new(0),
            held: Mutex::default(),
            received: Mutex::default(),
        }
    }

    /// Puts the entry of an append where the state says.
    pub(crate) fn write(&self, place: &Place, command: &StreamCommand) -> io::Result<()> {
        let StreamRequest::Append(append) = &command.request else { return Ok(()) };
        self.segments.write(place, &append.entry)?;
        self.appended_entries.fetch_add(1, Ordering::Relaxed);
        self.appended_bytes.fetch_add(append.entry.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Wakes who waits for what a command may have changed.
    pub(crate) fn applied(&self, command: &StreamCommand, appended: bool) {
        let stream = match &command.request {
            StreamRequest::Append(append) if appended => &append.stream,
            StreamRequest::Delete { stream, .. } => stream,
            _ => return,
        };
        if let Some(notify) = lock(&self.waiting).get(stream) {
            notify.notify_waiters();
        }
    }

    /// Everything may have changed.
    pub(crate) fn restarted(&self) {
        lock(&self.waiting).values().for_each(|notify| notify.notify_waiters());
        lock(&self.received).clear();
        // A state that was taken over counts from nothing.
        self.collected.store(0, Ordering::Relaxed);
    }

    pub(crate) fn wait_for(&self, stream: &Name) -> Waiting<'_> {
        let notify = lock(&self.waiting).entry(stream.clone()).or_default().clone();
        Waiting { part: self, stream: stream.clone(), notify }
    }

    /// Bytes in segments that went since the last snapshot: they lie on the disk until the next.
    pub(crate) fn garbage(&self, all: u64) -> u64 {
        all.saturating_sub(self.collected.load(Ordering::Relaxed))
    }

    /// Removes the segments that neither the newest snapshot nor the state has; what remains to be given back. Those to come
    /// have greater numbers.
    pub(crate) fn collect_garbage(&self, kept: &StreamsState, view: &Mutex<View>) -> Vec<Going> {
        let named: BTreeSet<SegmentName> = kept
            .streams()
            .flat_map(|(_, record)| record.segments.iter().map(move |segment| (record.id, segment.first)))
            .collect();
        let (next_id, firsts): (u64, BTreeMap<u64, u64>) = {
            let view = lock(view);
            let firsts = view.streams.streams().map(|(_, record)| (record.id, record.first)).collect();
            (view.streams.next_id(), firsts)
        };
        let is_held = |name: SegmentName| lock(&self.held).iter().any(|held| held.contains(&name));
        let unwanted = |name: SegmentName| {
            let (id, first) = name;
            !named.contains(&name)
                && !is_held(name)
                && firsts.get(&id).map_or(id < next_id, |kept_from| first < *kept_from)
        };
        let gone = self.segments.remove(unwanted).unwrap_or_else(|error| {
            // They are found again after the next snapshot.
            tracing::warn!(%error, "segments that are not needed any more could not be removed");
            Vec::new()
        });
        self.collected.store(kept.garbage_bytes(), Ordering::Relaxed);
        gone
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.part.waiting);
        // This one and the map's own.
        if Arc::strong_count(&self.notify) <= 2 {
            waiting.remove(&self.stream);
        }
    }
}
