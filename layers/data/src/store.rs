//! The `Store` trait: what every engine offers and every domain rule builds on.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use model::Revision;

use crate::{
    KeyRange, LeaseGrant, LeaseId, LeaseInfo, RangeRequest, RangeResult, Status, StoreError, StoreMetrics, Txn,
    TxnOutcome, WatchStream,
};

/// Most bytes of keys and values (with overhead) in a store.
pub const DEFAULT_QUOTA_BYTES: u64 = 256 * 1024 * 1024;

/// A boxed future, so that callers can hold an `Arc<dyn Store>`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// Sees every write acknowledged before the read began.
    Linearizable,
    /// What this node has applied: always answers, may be old.
    Stale,
}

/// A revisioned key-value store with etcd's semantics.
///
/// Dropping a future abandons the wait, not the request: a transaction may still commit.
pub trait Store: Send + Sync + 'static {
    /// Runs a transaction at one revision.
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnOutcome, StoreError>>;

    /// Reads keys of the newest state.
    fn range(&self, request: RangeRequest, consistency: Consistency) -> BoxFuture<'_, Result<RangeResult, StoreError>>;

    /// Follows the changes of `range`: those from revision `from` on (inclusive), or those after now.
    ///
    /// # Errors
    /// [`StoreError::Closed`]. A `from` that is no longer kept is told by the stream, as `Compacted`.
    fn watch(&self, range: KeyRange, from: Option<Revision>) -> Result<WatchStream, StoreError>;

    /// Grants a lease; keys put with it go when it goes. Without keep-alives it expires after `ttl`, never before.
    fn lease_grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseGrant, StoreError>>;

    /// Restarts a lease's time. Acknowledged only after a quorum round begun after the call arrived.
    fn lease_keep_alive(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseGrant, StoreError>>;

    /// Asks every other voter to let a lease go on while no quorum can be reached. Each that agrees ends it, whoever comes to
    /// lead, no sooner than its time to live from now on; one that does reach a quorum refuses. It holds only if the lease
    /// has not run out meanwhile: whoever asks looks at the time of its last renewal again when the answer is there.
    ///
    /// # Errors
    /// [`NotServing::Unconfirmed`](crate::NotServing::Unconfirmed) with who did not agree and why;
    /// [`StoreError::Invalid`] of a store that is no voter's.
    fn lease_confirm(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        let _ = lease;
        Box::pin(async { Err(StoreError::Invalid { what: "no voter: there is nobody to ask" }) })
    }

    /// Ends a lease and deletes its keys, in one revision.
    fn lease_revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// A lease's remaining time and keys, as the leader sees them.
    fn lease_info(&self, lease: LeaseId) -> BoxFuture<'_, Result<LeaseInfo, StoreError>>;

    /// This moment's state of the node's store.
    fn status(&self) -> Status;

    /// This moment's counters.
    fn metrics(&self) -> StoreMetrics;

    /// Flushes, stops and releases everything. Requests after it get [`StoreError::Closed`]; a second call does nothing.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}
