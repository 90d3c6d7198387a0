//! What every [`Store`] must do, as a suite over any implementation: one function per clause, each on a fresh store.
//! Run [`all`] from a test of the implementation.

use std::sync::Arc;
use std::time::Duration;

use crate::{
    Consistency, DEFAULT_QUOTA_BYTES, HistoryLimits, Key, KeyValue, RangeRequest, Revision, Store, Txn, TxnOutcome,
    WatchItem, WatchStream,
};

mod lease;
mod lost_reply;
mod txn;
mod watch;

pub use lost_reply::LosesReplies;

/// What a clause needs its store to be made with.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Most bytes of keys and values.
    pub quota_bytes: u64,
    /// History for watches.
    pub history: HistoryLimits,
}

impl Default for Setup {
    fn default() -> Self {
        Self { quota_bytes: DEFAULT_QUOTA_BYTES, history: HistoryLimits::default() }
    }
}

/// Makes a fresh, empty store.
pub type Make<'a> = &'a dyn Fn(Setup) -> Arc<dyn Store>;

/// Runs every clause; panics at the first that is broken.
pub async fn all(make: &dyn Fn(Setup) -> Arc<dyn Store>) {
    txn::all(make).await;
    watch::all(make).await;
    lease::all(make).await;
    lost_reply::all(make).await;
    clause("a closed store refuses everything", closed(make(Setup::default()))).await;
}

/// Longest a clause may take.
const CLAUSE_LIMIT: Duration = Duration::from_secs(120);

async fn clause(name: &str, body: impl Future<Output = ()>) {
    // Captured by the test harness; shown when the clause panics.
    eprintln!("clause: {name}");
    assert!(tokio::time::timeout(CLAUSE_LIMIT, body).await.is_ok(), "clause took too long: {name}");
}

fn key(text: &str) -> Key {
    Key::try_from(text).expect("a test's key is valid")
}

async fn put(store: &dyn Store, name: &str, value: &str) -> Revision {
    committed(store, Txn::put(key(name), value.to_owned())).await
}

async fn committed(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await {
        Ok(TxnOutcome::Committed { revision, .. }) => revision,
        other => panic!("expected a commit, got {other:?}"),
    }
}

async fn get(store: &dyn Store, name: &str) -> Option<KeyValue> {
    let read = store.range(RangeRequest::key(&key(name)), Consistency::Linearizable).await.expect("a read");
    read.kvs.into_iter().next()
}

/// The next item that is not a progress report.
async fn next_news(stream: &mut WatchStream) -> Option<WatchItem> {
    loop {
        match stream.next().await {
            Some(WatchItem::Progress(_)) => {}
            other => return other,
        }
    }
}

async fn closed(store: Arc<dyn Store>) {
    let mut stream = store.watch(crate::KeyRange::all(), None).expect("a watch");
    put(&*store, "a", "1").await;
    store.close().await.expect("closes");
    store.close().await.expect("closing twice is fine");
    let refused = store.txn(Txn::put(key("a"), "2")).await;
    assert_eq!(refused, Err(crate::StoreError::Closed));
    let read = store.range(RangeRequest::key(&key("a")), Consistency::Stale).await;
    assert_eq!(read, Err(crate::StoreError::Closed));
    assert_eq!(store.watch(crate::KeyRange::all(), None).err(), Some(crate::StoreError::Closed));
    assert!(matches!(next_news(&mut stream).await, Some(WatchItem::Events { .. })));
    assert_eq!(next_news(&mut stream).await, None, "a watch ends with its store");
}
