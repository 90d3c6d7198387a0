//! An in-memory store: the state machine without an engine, for the tests of those who build on [`Store`].
//! Passes the same conformance suite as the real ones. Loses everything when dropped.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use model::Revision;

use crate::conformance::Setup;
use crate::{
    BoxFuture, Command, Consistency, Durability, KeyRange, LeaseClock, LeaseGrant, LeaseId, LeaseInfo, MAX_TTL,
    MIN_TTL, RaftRole, RangeRequest, RangeResult, Response, StateMachine, Status, Store, StoreError, StoreMetrics, Txn,
    TxnOutcome, WatchHub, WatchStream,
};

/// A store without a disk.
pub struct MemoryStore(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    leases_changed: Condvar,
    hub: WatchHub,
    quota_bytes: u64,
}

#[derive(Default)]
struct Inner {
    state: StateMachine,
    clock: LeaseClock,
    applied: u64,
    closed: bool,
}

impl MemoryStore {
    /// An empty store with the default limits.
    pub fn new() -> Arc<Self> {
        Self::with(Setup::default())
    }

    /// An empty store with these limits.
    pub fn with(setup: Setup) -> Arc<Self> {
        let shared = Arc::new(Shared {
            inner: Mutex::default(),
            leases_changed: Condvar::new(),
            hub: WatchHub::new(Revision(0), setup.history),
            quota_bytes: setup.quota_bytes,
        });
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("memory-leases".into())
            .spawn(move || expire_leases(&weak))
            .expect("a test can start a thread");
        Arc::new(Self(shared))
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.0.lock();
        if inner.closed { Err(StoreError::Closed) } else { Ok(inner) }
    }
}

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.leases_changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, inner: &mut Inner, command: &Command) -> Response {
        let applied = inner.state.apply(command);
        inner.applied += 1;
        self.hub.publish(applied.revision, applied.events);
        match &applied.response {
            Response::LeaseGranted { lease, ttl } => inner.clock.start(*lease, *ttl, 0, Instant::now()),
            Response::LeaseEnded { lease, .. } => inner.clock.remove(*lease),
            _ => return applied.response,
        }
        self.leases_changed.notify_all();
        applied.response
    }
}

/// Ends leases when their time is up, until the store is gone.
fn expire_leases(shared: &Weak<Shared>) {
    while let Some(shared) = shared.upgrade() {
        let mut inner = shared.lock();
        if inner.closed {
            return;
        }
        for (lease, renewal) in inner.clock.take_due(Instant::now()) {
            shared.apply(&mut inner, &Command::LeaseExpire { lease, renewal });
        }
        let wait = inner
            .clock
            .next_deadline()
            .map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        drop(shared.leases_changed.wait_timeout(inner, wait).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Store for MemoryStore {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(async move {
            txn.validate()?;
            let mut inner = self.open()?;
            let quota_bytes = txn.quota_of(self.0.quota_bytes);
            match self.0.apply(&mut inner, &Command::Txn { txn, quota_bytes }) {
                Response::Txn { succeeded: true, revision, results } => {
                    Ok(TxnOutcome::Committed { revision, results, durability: Durability::Async })
                }
                Response::Txn { succeeded: false, revision, results } => Ok(TxnOutcome::Rejected { revision, results }),
                Response::Failed(error) => Err(error),
                _ => Ok(TxnOutcome::Unknown),
            }
        })
    }

    fn range(&self, request: RangeRequest, _: Consistency) -> BoxFuture<'_, Result<RangeResult, StoreError>> {
        Box::pin(async move { Ok(self.open()?.state.range(&request)) })
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream, StoreError> {
        let _inner = self.open()?;
        self.0.hub.subscribe(range, from).ok_or(StoreError::Closed)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(async move {
            if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
                return Err(StoreError::Invalid { what: "a lease lives between 100 milliseconds and one day" });
            }
            let mut inner = self.open()?;
            match self.0.apply(&mut inner, &Command::LeaseGrant { ttl }) {
                Response::LeaseGranted { lease, ttl } => Ok(LeaseGrant { lease, ttl }),
                _ => Err(StoreError::Unknown),
            }
        })
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        Box::pin(async move {
            let mut inner = self.open()?;
            let (record, _) = inner.state.lease(lease).ok_or(StoreError::LeaseNotFound(lease))?;
            if !inner.clock.keep_alive(lease, Instant::now()) {
                return Err(StoreError::LeaseNotFound(lease));
            }
            Ok(LeaseGrant { lease, ttl: record.ttl })
        })
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            let mut inner = self.open()?;
            match self.0.apply(&mut inner, &Command::LeaseRevoke { lease }) {
                Response::LeaseEnded { revision, .. } => Ok(revision),
                Response::Failed(error) => Err(error),
                _ => Err(StoreError::Unknown),
            }
        })
    }

    fn lease_info(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseInfo, StoreError>> {
        Box::pin(async move {
            let inner = self.open()?;
            let (record, keys) = inner.state.lease(lease).ok_or(StoreError::LeaseNotFound(lease))?;
            let remaining = inner.clock.remaining(lease, Instant::now()).unwrap_or_default();
            Ok(LeaseInfo { lease, ttl: record.ttl, remaining, keys })
        })
    }

    fn status(&self) -> Status {
        let inner = self.0.lock();
        Status {
            role: RaftRole::Leader,
            leader: Some(1),
            term: 1,
            revision: inner.state.revision(),
            applied_index: inner.applied,
            used_bytes: inner.state.used_bytes(),
            quota_bytes: self.0.quota_bytes,
            wal_bytes: 0,
            last_fsync: None,
            durability: Durability::Async,
            not_serving: None,
        }
    }

    fn metrics(&self) -> StoreMetrics {
        let (watchers, lagged_watchers) = self.0.hub.counts();
        StoreMetrics { watchers, lagged_watchers, ..StoreMetrics::default() }
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.0.lock().closed = true;
            self.0.leases_changed.notify_all();
            self.0.hub.close();
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryStore;

    #[tokio::test]
    async fn conforms() {
        crate::conformance::all(&|setup| MemoryStore::with(setup)).await;
    }
}
