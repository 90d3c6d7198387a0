//! Watches: one view of the changes per node, fanned out to bounded queues.
//! A slow watcher is told that it lagged and dropped; it never holds up apply.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use model::Revision;
use tokio::sync::mpsc;

use crate::{Key, KeyRange, KeyValue};

/// Items a watcher may have waiting before it counts as lagged.
const QUEUE_ITEMS: usize = 256;
/// A watcher nothing happened for is told the revision this often, so that its resume point stays in the history.
const PROGRESS_EVERY_REVISIONS: u64 = 1000;

/// One change of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Created or changed; the pair as it is now.
    Put(KeyValue),
    /// Removed by a delete or with its lease.
    Delete {
        /// The key.
        key: Key,
        /// When.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put(kv) => &kv.key,
            Self::Delete { key, .. } => key,
        }
    }

    fn bytes(&self) -> usize {
        let value = if let Self::Put(kv) = self { kv.value.len() } else { 0 };
        self.key().as_bytes().len() + value + size_of::<Self>()
    }
}

/// What a watch yields.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchItem {
    /// All changes of one revision within the watched range, in the order they were made.
    Events {
        /// The revision.
        revision: Revision,
        /// Never empty.
        events: Arc<[Event]>,
    },
    /// Everything up to and including this revision was delivered. Comes once after the backlog, then now and then.
    Progress(Revision),
    /// The history asked for is no longer kept; the oldest revision one can watch from. The stream ends:
    /// read the range, then watch from the revision after that read.
    Compacted(Revision),
    /// The watcher was too slow and items were dropped. The stream ends: resume after the last revision seen.
    Lagged,
}

/// How much history is kept for watches from a past revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HistoryLimits {
    /// Most revisions.
    pub revisions: usize,
    /// Most bytes.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { revisions: 10_000, bytes: 4 * 1024 * 1024 }
    }
}

/// The view: takes each applied change once and hands it to every watcher it concerns.
#[derive(Clone, Debug)]
pub struct WatchHub(Arc<Mutex<Hub>>);

#[derive(Debug)]
struct Hub {
    limits: HistoryLimits,
    revision: Revision,
    /// Changes up to this revision are not kept.
    compacted: Revision,
    history: VecDeque<(Revision, Arc<[Event]>)>,
    history_bytes: usize,
    watchers: BTreeMap<u64, Watcher>,
    next_id: u64,
    lagged: u64,
    closed: bool,
}

#[derive(Debug)]
struct Watcher {
    range: KeyRange,
    from: Revision,
    told: Revision,
    queue: mpsc::Sender<WatchItem>,
    lagged: Arc<std::sync::atomic::AtomicBool>,
}

impl WatchHub {
    /// A view that begins at `revision`; nothing before it can be watched.
    pub fn new(revision: Revision, limits: HistoryLimits) -> Self {
        Self(Arc::new(Mutex::new(Hub {
            limits,
            revision,
            compacted: revision,
            history: VecDeque::new(),
            history_bytes: 0,
            watchers: BTreeMap::new(),
            next_id: 0,
            lagged: 0,
            closed: false,
        })))
    }

    /// Takes the changes of one revision. Never blocks on a watcher.
    pub fn publish(&self, revision: Revision, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        let mut hub = self.lock();
        let events: Arc<[Event]> = events.into();
        hub.revision = revision;
        hub.remember(revision, &events);
        hub.fan_out(revision, &events);
    }

    /// Starts over from `revision` (a snapshot was installed): every watcher lags, history is empty.
    pub fn reset(&self, revision: Revision) {
        let mut hub = self.lock();
        hub.revision = revision;
        hub.compacted = revision;
        hub.history.clear();
        hub.history_bytes = 0;
        let watchers = std::mem::take(&mut hub.watchers);
        hub.lagged += watchers.len() as u64;
        watchers.into_values().for_each(Watcher::lag);
    }

    /// Ends every stream.
    pub fn close(&self) {
        let mut hub = self.lock();
        hub.closed = true;
        hub.watchers.clear();
    }

    /// Follows `range` from revision `from` (inclusive), or from the next change on. `None` after [`Self::close`].
    pub fn subscribe(&self, range: KeyRange, from: Option<Revision>) -> Option<WatchStream> {
        let mut hub = self.lock();
        if hub.closed {
            return None;
        }
        let from = from.unwrap_or(Revision(hub.revision.0 + 1));
        if from <= hub.compacted {
            let oldest = Revision(hub.compacted.0 + 1);
            return Some(WatchStream::ended(WatchItem::Compacted(oldest)));
        }
        let mut backlog = VecDeque::new();
        let first = hub.history.partition_point(|(revision, _)| *revision < from);
        for (revision, events) in hub.history.range(first..) {
            if let Some(events) = select(&range, events) {
                backlog.push_back(WatchItem::Events { revision: *revision, events });
            }
        }
        backlog.push_back(WatchItem::Progress(hub.revision));
        let (queue, receiver) = mpsc::channel(QUEUE_ITEMS);
        let lagged = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let id = hub.next_id;
        hub.next_id += 1;
        let told = hub.revision;
        hub.watchers.insert(id, Watcher { range, from, told, queue, lagged: lagged.clone() });
        let _registration = Some(Registration { hub: Arc::downgrade(&self.0), id });
        Some(WatchStream { backlog, receiver: Some(receiver), lagged, _registration })
    }

    /// Watchers attached now, and how many lagged so far.
    pub fn counts(&self) -> (u64, u64) {
        let hub = self.lock();
        (hub.watchers.len() as u64, hub.lagged)
    }

    fn lock(&self) -> MutexGuard<'_, Hub> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hub {
    fn remember(&mut self, revision: Revision, events: &Arc<[Event]>) {
        self.history_bytes += events.iter().map(Event::bytes).sum::<usize>();
        self.history.push_back((revision, events.clone()));
        while self.history.len() > self.limits.revisions || self.history_bytes > self.limits.bytes {
            let Some((oldest, events)) = self.history.pop_front() else { break };
            self.history_bytes -= events.iter().map(Event::bytes).sum::<usize>();
            self.compacted = oldest;
        }
    }

    fn fan_out(&mut self, revision: Revision, events: &Arc<[Event]>) {
        let mut lagged = 0;
        self.watchers.retain(|_, watcher| match watcher.offer(revision, events) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
            Err(mpsc::error::TrySendError::Full(_)) => {
                lagged += 1;
                watcher.lagged.store(true, std::sync::atomic::Ordering::Release);
                false
            }
        });
        self.lagged += lagged;
    }
}

impl Watcher {
    fn offer(&mut self, revision: Revision, events: &Arc<[Event]>) -> Result<(), mpsc::error::TrySendError<WatchItem>> {
        if revision < self.from {
            return Ok(());
        }
        if let Some(events) = select(&self.range, events) {
            self.queue.try_send(WatchItem::Events { revision, events })?;
            self.told = revision;
        } else if revision.0 - self.told.0 >= PROGRESS_EVERY_REVISIONS {
            // A full queue has newer news than this waiting anyway.
            if self.queue.try_send(WatchItem::Progress(revision)).is_ok() {
                self.told = revision;
            }
        }
        Ok(())
    }

    fn lag(self) {
        self.lagged.store(true, std::sync::atomic::Ordering::Release);
    }
}

/// The events inside `range`; shares the list when it is all of them.
fn select(range: &KeyRange, events: &Arc<[Event]>) -> Option<Arc<[Event]>> {
    let inside = events.iter().filter(|event| range.contains(event.key())).count();
    match inside {
        0 => None,
        all if all == events.len() => Some(events.clone()),
        _ => Some(events.iter().filter(|event| range.contains(event.key())).cloned().collect()),
    }
}

/// A running watch. Dropping it ends it.
#[derive(Debug)]
pub struct WatchStream {
    backlog: VecDeque<WatchItem>,
    receiver: Option<mpsc::Receiver<WatchItem>>,
    lagged: Arc<std::sync::atomic::AtomicBool>,
    _registration: Option<Registration>,
}

impl WatchStream {
    /// The next item; `None` after `Compacted` or `Lagged`, or when the store closes. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchItem> {
        if let Some(item) = self.backlog.pop_front() {
            return Some(item);
        }
        if let Some(item) = self.receiver.as_mut()?.recv().await {
            return Some(item);
        }
        self.receiver = None;
        self.lagged.load(std::sync::atomic::Ordering::Acquire).then_some(WatchItem::Lagged)
    }

    /// A stream fed by another engine, which sends `Compacted` or `Lagged` itself.
    pub fn from_receiver(receiver: mpsc::Receiver<WatchItem>) -> Self {
        let lagged = Arc::default();
        Self { backlog: VecDeque::new(), receiver: Some(receiver), lagged, _registration: None }
    }

    fn ended(item: WatchItem) -> Self {
        Self { backlog: VecDeque::from([item]), receiver: None, lagged: Arc::default(), _registration: None }
    }
}

/// Takes the watcher off the hub when its stream is dropped.
#[derive(Debug)]
struct Registration {
    hub: Weak<Mutex<Hub>>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.lock().unwrap_or_else(PoisonError::into_inner).watchers.remove(&self.id);
        }
    }
}
