//! The registry at work: the catalog followed from the store, questions that wait for their own topic, and writes that
//! answer once this node shows them too. What the store has acknowledged is the only truth: nothing is kept here that is
//! not there.
//! Deliberately absent: who runs checks (`node`), Consul's JSON (`api`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use data::{
    Compare, Consistency, Event, KeyRange, KeyValue, Op, RangeRequest, Revision, Store, StoreError, Txn, TxnOutcome,
    WatchItem,
};
use tokio::sync::{Notify, watch};

use crate::acl::Guard;
use crate::catalog::{Catalog, Held};
use crate::key::{About, REGISTRY};
use crate::record::Behavior;
use crate::topic::{Indices, Topic};

/// Between two attempts to read everything.
const AGAIN: Duration = Duration::from_millis(100);
/// What is confirmed elsewhere must show here within this time.
const SETTLE: Duration = Duration::from_secs(5);
/// Locks whose delay is remembered at most.
const MAX_DELAYS: usize = 10_000;

/// See the file. Shared by everybody who asks.
pub struct Registry {
    store: Arc<dyn Store>,
    /// This node's name.
    node: String,
    /// This node's site, which Consul calls a datacenter.
    datacenter: String,
    view: RwLock<View>,
    waiting: Mutex<HashMap<Topic, Waiting>>,
    waiters: AtomicUsize,
    revision: watch::Sender<u64>,
    delays: Mutex<HashMap<Vec<u8>, Instant>>,
    /// Sessions that ended while they held something, and what is to become of that.
    ended: Mutex<HashMap<String, Behavior>>,
    led: Mutex<Instant>,
    heard: Mutex<HashMap<String, Heard>>,
    guard: Option<Guard>,
}

/// When somebody spoke up for a check of this node.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// Last, whatever was said.
    pub at: Instant,
    /// Last to say that it serves.
    pub serves: Option<Instant>,
}

#[derive(Default)]
struct View {
    catalog: Catalog,
    indices: Indices,
    revision: u64,
    /// It has been read once.
    known: bool,
}

struct Waiting {
    notify: Arc<Notify>,
    waiters: usize,
}

/// Why a question or a write has no answer.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The store's words.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody knows whether it was written.
    #[error("it is not known whether this was written: look, and do it again, which does no harm")]
    Unknown,
    /// This node has not caught up in time.
    #[error("this node has not caught up with the others within 5 s")]
    Behind,
    /// The session that a lock was to hang on has ended.
    #[error("invalid session {0:?}")]
    NoSession(String),
    /// Others change the same thing all the time.
    #[error("others have changed the same at each of 32 attempts: try again")]
    Busy,
}

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// It is there since this revision.
    At(u64),
    /// A condition did not hold.
    Refused,
}

/// The catalog at a moment.
pub struct Reading<'a>(RwLockReadGuard<'a, View>);

impl std::ops::Deref for Reading<'_> {
    type Target = Catalog;

    fn deref(&self) -> &Catalog {
        &self.0.catalog
    }
}

impl Reading<'_> {
    /// When the answer to a question changed last.
    pub fn index(&self, topic: &Topic) -> u64 {
        self.0.indices.of(topic)
    }

    /// How far it is.
    pub fn revision(&self) -> u64 {
        self.0.revision
    }

    /// Whether anything has been read yet.
    pub fn is_known(&self) -> bool {
        self.0.known
    }
}

impl Registry {
    /// Over `store`; empty until [`Self::follow`] runs.
    pub fn new(store: Arc<dyn Store>, node: &str, datacenter: &str) -> Self {
        Self {
            store,
            node: node.to_owned(),
            datacenter: datacenter.to_owned(),
            view: RwLock::default(),
            waiting: Mutex::default(),
            waiters: AtomicUsize::new(0),
            revision: watch::Sender::new(0),
            delays: Mutex::default(),
            ended: Mutex::default(),
            led: Mutex::new(Instant::now()),
            heard: Mutex::default(),
            guard: None,
        }
    }

    /// With ACLs on.
    #[must_use]
    pub fn guarded(mut self, guard: Guard) -> Self {
        self.guard = Some(guard);
        self
    }

    /// Who may what; nothing while ACLs are off.
    pub fn guard(&self) -> Option<&Guard> {
        self.guard.as_ref()
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// This node's site.
    pub fn datacenter(&self) -> &str {
        &self.datacenter
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What is registered, as far as this node knows. Held for as long as an answer is put together, never over a wait.
    pub fn read(&self) -> Reading<'_> {
        Reading(self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows the store until it is closed.
    pub async fn follow(self: Arc<Self>) {
        let mut from = None;
        loop {
            let after = match from {
                Some(revision) => revision,
                None => match self.list().await {
                    Ok(revision) => revision,
                    Err(StoreError::Closed) => return,
                    Err(error) => {
                        tracing::debug!(%error, "the registry cannot be read yet");
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                },
            };
            let Ok(mut watched) = self.store.watch(KeyRange::prefix(REGISTRY), Some(Revision(after + 1))) else {
                return;
            };
            from = Some(after);
            loop {
                match watched.next().await {
                    Some(WatchItem::Events { revision, events }) => {
                        self.changed(revision.0, &events);
                        from = Some(revision.0);
                    }
                    Some(WatchItem::Progress(revision)) => {
                        self.settled(revision.0);
                        from = from.max(Some(revision.0));
                    }
                    Some(WatchItem::Compacted(_)) => from = None,
                    Some(WatchItem::Lagged) => {}
                    None => break,
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn list(&self) -> Result<u64, StoreError> {
        let all = RangeRequest::new(KeyRange::prefix(REGISTRY));
        // What was confirmed; and what this node has, rather than nothing, while nobody can confirm.
        let found = match self.store.range(all.clone(), Consistency::Linearizable).await {
            Err(StoreError::NotServing(_)) if !self.read().is_known() => {
                self.store.range(all, Consistency::Stale).await?
            }
            found => found?,
        };
        let mut catalog = Catalog::default();
        let mut touched = Vec::new();
        for kv in &found.kvs {
            catalog.apply(&kv.key, Some(held(kv)), kv.mod_revision.0, &mut touched);
        }
        let revision = found.revision.0;
        {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            view.indices.restart(revision);
            (view.catalog, view.known) = (catalog, true);
            view.revision = view.revision.max(revision);
        }
        self.waiting().values().for_each(|waiting| waiting.notify.notify_waiters());
        self.settled(revision);
        Ok(revision)
    }

    fn changed(&self, revision: u64, events: &[Event]) {
        let mut touched = Vec::new();
        {
            let mut view = self.view.write().unwrap_or_else(PoisonError::into_inner);
            for event in events {
                let kept = match event {
                    Event::Put(kv) => Some(held(kv)),
                    Event::Delete { .. } => None,
                };
                if let (About::Session(id), None) = (About::of(event.key()), &kept) {
                    self.ends(&view.catalog, &id);
                }
                view.catalog.apply(event.key(), kept, revision, &mut touched);
            }
            for topic in &touched {
                view.indices.touch(topic.clone(), revision);
            }
            view.revision = revision;
        }
        let waiting = self.waiting();
        if !waiting.is_empty() {
            touched.iter().filter_map(|topic| waiting.get(topic)).for_each(|waiting| waiting.notify.notify_waiters());
        }
        drop(waiting);
        self.settled(revision);
    }

    fn settled(&self, revision: u64) {
        self.revision.send_if_modified(|known| {
            let newer = *known < revision;
            *known = revision.max(*known);
            newer
        });
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Topic, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the answer about `topic` is newer than `index`, at most so long. True when it is.
    pub async fn wait(&self, topic: &Topic, index: u64, most: Duration) -> bool {
        let waiter = Waiter::of(self, topic);
        let deadline = tokio::time::Instant::now() + most;
        loop {
            let mut notified = std::pin::pin!(waiter.notify.notified());
            notified.as_mut().enable();
            if self.read().index(topic) > index {
                return true;
            }
            if tokio::time::timeout_at(deadline, notified).await.is_err() {
                return self.read().index(topic) > index;
            }
        }
    }

    /// Questions that wait now.
    pub fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }

    /// Returns once this node shows everything up to `revision`.
    ///
    /// # Errors
    /// [`RegistryError::Behind`].
    pub async fn shows(&self, revision: u64) -> Result<(), RegistryError> {
        let mut seen = self.revision.subscribe();
        let there = seen.wait_for(|known| *known >= revision);
        match tokio::time::timeout(SETTLE, there).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(RegistryError::Behind),
        }
    }

    /// Returns once this node shows everything that was acknowledged before the call.
    ///
    /// # Errors
    /// The store does not serve, or this node is behind.
    pub async fn catch_up(&self) -> Result<(), RegistryError> {
        let key = About::Sequence.key()?;
        let found = self.store.range(RangeRequest::key(&key), Consistency::Linearizable).await?;
        match found.kvs.first() {
            Some(kv) => self.shows(kv.mod_revision.0).await,
            None => Ok(()),
        }
    }

    /// Writes, and returns once this node shows it.
    ///
    /// # Errors
    /// The store's; [`RegistryError::Unknown`].
    pub async fn write(&self, compares: Vec<Compare>, mut then: Vec<Op>) -> Result<Written, RegistryError> {
        then.push(Op::put(About::Sequence.key()?, ""));
        match self.store.txn(Txn { compares, then, otherwise: Vec::new() }).await? {
            TxnOutcome::Committed { revision, .. } => {
                // Written is written: that this node is slow to show it is no failure of the write.
                let _ = self.shows(revision.0).await;
                Ok(Written::At(revision.0))
            }
            TxnOutcome::Rejected { .. } => Ok(Written::Refused),
            TxnOutcome::Unknown => Err(RegistryError::Unknown),
        }
    }

    /// For how long the store has had no leader that this node knows of; `None` while it has one.
    pub fn leaderless(&self) -> Option<Duration> {
        let serving = self.store.status().not_serving.is_none();
        let mut led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        if serving {
            *led = Instant::now();
            return None;
        }
        Some(led.elapsed())
    }

    /// Somebody spoke up for a check of this node that waits for that, perhaps to say that it `serves`.
    pub fn hear(&self, check: &str, serves: bool) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now();
        let before = heard.get(check).and_then(|before| before.serves);
        heard.insert(check.to_owned(), Heard { at, serves: if serves { Some(at) } else { before } });
    }

    /// When somebody did so last.
    pub fn heard(&self, check: &str) -> Option<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(check).copied()
    }

    /// A check is no more.
    pub fn forget_heard(&self, check: &str) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).remove(check);
    }

    /// A session has ended: what it held is freed by whoever leads, and is not given to anybody else for a while, so that
    /// its holder has time to notice.
    fn ends(&self, catalog: &Catalog, session: &str) {
        let Some(found) = catalog.session(session) else { return };
        let held = catalog.keys().filter(|(_, key)| key.record.session.as_deref() == Some(session));
        let held: Vec<Vec<u8>> = held.map(|(key, _)| key.to_vec()).collect();
        if held.is_empty() {
            return;
        }
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() < MAX_DELAYS {
            ended.insert(session.to_owned(), found.record.behavior);
        }
        drop(ended);
        if found.record.lock_delay_ms == 0 {
            return;
        }
        let until = Instant::now() + Duration::from_millis(found.record.lock_delay_ms);
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        if delays.len() + held.len() > MAX_DELAYS {
            let now = Instant::now();
            delays.retain(|_, until| *until > now);
        }
        let room = MAX_DELAYS.saturating_sub(delays.len());
        delays.extend(held.into_iter().take(room).map(|key| (key, until)));
    }

    /// What is to become of the keys of a session that has ended, as far as this node has seen its end.
    pub fn behavior_of_ended(&self, session: &str) -> Behavior {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.get(session).copied().unwrap_or_default()
    }

    /// They are free.
    pub(crate) fn is_freed(&self, session: &str) {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }

    /// Whether a user's key is not given to anybody yet, because the session that held it has just ended.
    pub fn is_delayed(&self, key: &[u8]) -> bool {
        let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
        match delays.get(key) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                delays.remove(key);
                false
            }
            None => false,
        }
    }
}

fn held(kv: &KeyValue) -> Held<'_> {
    Held { value: &kv.value, create: kv.create_revision.0, modify: kv.mod_revision.0 }
}

/// A place among those who wait; given back when dropped, also when its client has gone.
struct Waiter<'a> {
    registry: &'a Registry,
    topic: &'a Topic,
    notify: Arc<Notify>,
}

impl<'a> Waiter<'a> {
    fn of(registry: &'a Registry, topic: &'a Topic) -> Self {
        let mut waiting = registry.waiting();
        let entry = waiting.entry(topic.clone()).or_insert_with(|| Waiting { notify: Arc::default(), waiters: 0 });
        entry.waiters += 1;
        let notify = Arc::clone(&entry.notify);
        drop(waiting);
        registry.waiters.fetch_add(1, Ordering::Relaxed);
        Self { registry, topic, notify }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.registry.waiters.fetch_sub(1, Ordering::Relaxed);
        let mut waiting = self.registry.waiting();
        let Some(entry) = waiting.get_mut(self.topic) else { return };
        entry.waiters -= 1;
        if entry.waiters == 0 {
            waiting.remove(self.topic);
        }
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("node", &self.node).finish_non_exhaustive()
    }
}
