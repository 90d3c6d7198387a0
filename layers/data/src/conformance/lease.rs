//! Clauses on leases.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Make, Setup, clause, committed, get, key, next_news, put};
use crate::{Event, KeyRange, LeaseId, Op, Store, StoreError, Txn, WatchItem};

const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(3600);

pub(super) async fn all(make: Make<'_>) {
    clause("an expired lease takes its keys in one revision", expires(make(Setup::default()))).await;
    clause("a kept lease lives", kept(make(Setup::default()))).await;
    clause("a revoked lease takes its keys", revoked(make(Setup::default()))).await;
    clause("a key leaves its lease when put without it", detached(make(Setup::default()))).await;
    clause("lease times are bounded", bounded(make(Setup::default()))).await;
}

async fn put_leased(store: &dyn Store, name: &str, lease: LeaseId) {
    committed(store, Txn::default().then(Op::put_leased(key(name), "v", lease))).await;
}

async fn expires(store: Arc<dyn Store>) {
    let store = &*store;
    let begun = Instant::now();
    let lease = store.lease_grant(SHORT).await.expect("granted").lease;
    put_leased(store, "a", lease).await;
    put_leased(store, "b", lease).await;
    put(store, "c", "v").await;
    let mut stream = store.watch(KeyRange::all(), None).expect("a watch");
    let Some(WatchItem::Events { events, revision }) = next_news(&mut stream).await else { panic!("ended") };
    assert!(begun.elapsed() >= SHORT, "a lease never expires early");
    let gone: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::Delete { key, revision: at } if *at == revision => key.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(gone, ["a", "b"]);
    assert!(get(store, "c").await.is_some());
    assert_eq!(store.lease_keep_alive(lease).await, Err(StoreError::LeaseNotFound(lease)));
    let late = store.txn(Txn::default().then(Op::put_leased(key("a"), "v", lease))).await;
    assert_eq!(late, Err(StoreError::LeaseNotFound(lease)));
}

async fn kept(store: Arc<dyn Store>) {
    let store = &*store;
    let lease = store.lease_grant(SHORT).await.expect("granted").lease;
    put_leased(store, "a", lease).await;
    let begun = Instant::now();
    while begun.elapsed() < SHORT * 3 {
        let kept = store.lease_keep_alive(lease).await.expect("still alive");
        assert_eq!((kept.lease, kept.ttl), (lease, SHORT));
        assert!(get(store, "a").await.is_some());
        tokio::time::sleep(SHORT / 8).await;
    }
    let info = store.lease_info(lease).await.expect("still alive");
    assert_eq!(info.keys, [key("a")]);
    assert!(info.remaining <= SHORT && info.remaining > Duration::ZERO);
}

async fn revoked(store: Arc<dyn Store>) {
    let store = &*store;
    let first = store.lease_grant(LONG).await.expect("granted").lease;
    let second = store.lease_grant(LONG).await.expect("granted").lease;
    assert_ne!(first, second);
    put_leased(store, "a", first).await;
    put_leased(store, "b", second).await;
    let revision = store.lease_revoke(first).await.expect("revoked");
    assert_eq!(revision, store.status().revision);
    assert_eq!(get(store, "a").await, None);
    assert_eq!(get(store, "b").await.expect("b exists").lease, Some(second));
    assert_eq!(store.lease_revoke(first).await, Err(StoreError::LeaseNotFound(first)));
    assert_eq!(store.lease_info(first).await, Err(StoreError::LeaseNotFound(first)));
}

async fn detached(store: Arc<dyn Store>) {
    let store = &*store;
    let lease = store.lease_grant(LONG).await.expect("granted").lease;
    put_leased(store, "a", lease).await;
    put_leased(store, "b", lease).await;
    put(store, "a", "free").await;
    assert_eq!(store.lease_info(lease).await.expect("alive").keys, [key("b")]);
    store.lease_revoke(lease).await.expect("revoked");
    assert!(get(store, "a").await.is_some());
    assert!(get(store, "b").await.is_none());
}

async fn bounded(store: Arc<dyn Store>) {
    for ttl in [Duration::ZERO, Duration::from_millis(1), Duration::from_secs(1_000_000)] {
        assert!(matches!(store.lease_grant(ttl).await, Err(StoreError::Invalid { .. })), "{ttl:?}");
    }
}
