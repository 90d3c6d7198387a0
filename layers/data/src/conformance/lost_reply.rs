//! Clauses on lost replies: a request took effect (or not) and the caller is not told. Retrying with a compare is safe.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Make, Setup, clause, get, key, put};
use crate::{
    BoxFuture, Compare, Consistency, KeyRange, LeaseGrant, LeaseId, LeaseInfo, Op, RangeRequest, RangeResult, Revision,
    Status, Store, StoreError, StoreMetrics, Txn, TxnOutcome, WatchStream,
};

pub(super) async fn all(make: Make<'_>) {
    clause("a retry by compare happens once", retried_once(make(Setup::default()))).await;
}

/// A store whose transactions lose their reply, and every other time the request too.
pub struct LosesReplies {
    inner: Arc<dyn Store>,
    calls: AtomicU64,
}

impl LosesReplies {
    /// Wraps a store; its calls 1, 4, 7 ... lose the reply, calls 2, 5, 8 ... the request; the rest go through.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, calls: AtomicU64::new(0) }
    }
}

impl Store for LosesReplies {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>> {
        Box::pin(async move {
            match self.calls.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => self.inner.txn(txn).await.map(|_| TxnOutcome::Unknown),
                1 => Ok(TxnOutcome::Unknown),
                _ => self.inner.txn(txn).await,
            }
        })
    }

    fn range(&self, request: RangeRequest, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, StoreError>> {
        self.inner.range(request, consistency)
    }

    fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream, StoreError> {
        self.inner.watch(range, from)
    }

    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        self.inner.lease_grant(ttl)
    }

    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseGrant, StoreError>> {
        self.inner.lease_keep_alive(lease)
    }

    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.inner.lease_revoke(lease)
    }

    fn lease_info(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseInfo, StoreError>> {
        self.inner.lease_info(lease)
    }

    fn status(&self) -> Status {
        self.inner.status()
    }

    fn metrics(&self) -> StoreMetrics {
        self.inner.metrics()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.close()
    }
}

/// Ten increments through a store that loses replies: each happens exactly once, because each writes its own marker
/// key only if it is absent, together with the increment.
async fn retried_once(store: Arc<dyn Store>) {
    put(&*store, "n", "0").await;
    let lossy = LosesReplies::new(store.clone());
    for number in 0..10 {
        let marker = key(&format!("done/{number}"));
        loop {
            let old = get(&lossy, "n").await.expect("n exists");
            let value: u64 = String::from_utf8_lossy(&old.value).parse().expect("a number");
            let txn = Txn::put(key("n"), (value + 1).to_string())
                .then(Op::put(marker.clone(), ""))
                .when(Compare::absent(marker.clone()))
                .when(Compare::mod_revision(key("n"), old.mod_revision));
            match lossy.txn(txn).await.expect("runs") {
                TxnOutcome::Committed { .. } | TxnOutcome::Rejected { .. } => break,
                TxnOutcome::Unknown => {}
            }
        }
    }
    assert_eq!(&get(&*store, "n").await.expect("n exists").value[..], b"10");
}
