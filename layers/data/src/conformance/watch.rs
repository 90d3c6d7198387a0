//! Clauses on watches: order, resumption, compaction, slow watchers.

use std::sync::Arc;

use super::{Make, Setup, clause, committed, key, next_news, put};
use crate::{Event, HistoryLimits, KeyRange, Op, Revision, Store, Txn, WatchItem};

pub(super) async fn all(make: Make<'_>) {
    clause("a watch yields every change of its range in order", order(make(Setup::default()))).await;
    clause("a watch resumes from a revision", resume(make(Setup::default()))).await;
    clause("a watch may begin in the future", future(make(Setup::default()))).await;
    clause("a change is visible before it is acknowledged", visible(make(Setup::default()))).await;
    let short = Setup { history: HistoryLimits { revisions: 5, bytes: 1 << 20 }, ..Setup::default() };
    clause("history that is gone is said to be compacted", compacted(make(short))).await;
    let light = Setup { history: HistoryLimits { revisions: 1000, bytes: 4096 }, ..Setup::default() };
    clause("history is bounded in bytes", compacted_by_bytes(make(light))).await;
    clause("a slow watcher lags and holds up nobody", lagged(make(Setup::default()))).await;
    clause("an idle watcher is told of progress", progress(make(Setup::default()))).await;
    clause("a dropped watch is forgotten", dropped(make(Setup::default()))).await;
}

fn describe(item: Option<WatchItem>) -> String {
    let Some(WatchItem::Events { revision, events }) = item else { return format!("{item:?}") };
    let events: Vec<_> = events
        .iter()
        .map(|event| match event {
            Event::Put(kv) => format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value)),
            Event::Delete { key, .. } => format!("-{key}"),
        })
        .collect();
    format!("{revision}: {}", events.join(" "))
}

async fn order(store: Arc<dyn Store>) {
    let store = &*store;
    put(store, "w/before", "1").await;
    let mut stream = store.watch(KeyRange::prefix("w/"), None).expect("a watch");
    assert_eq!(stream.next().await, Some(WatchItem::Progress(Revision(1))), "where the watch begins");
    put(store, "w/a", "1").await;
    put(store, "other", "1").await;
    let txn = Txn::put(key("w/b"), "2").then(Op::put(key("other"), "2"));
    committed(store, txn.then(Op::Delete { range: KeyRange::key(&key("w/a")) })).await;
    assert_eq!(describe(next_news(&mut stream).await), "2: w/a=1");
    assert_eq!(describe(next_news(&mut stream).await), "4: w/b=2 -w/a", "one revision, one item");
}

async fn resume(store: Arc<dyn Store>) {
    let store = &*store;
    for number in 1..=5 {
        put(store, "k", &number.to_string()).await;
    }
    let mut stream = store.watch(KeyRange::all(), Some(Revision(3))).expect("a watch");
    for number in 3..=5 {
        assert_eq!(describe(stream.next().await), format!("{number}: k={number}"));
    }
    assert_eq!(stream.next().await, Some(WatchItem::Progress(Revision(5))));
    put(store, "k", "6").await;
    assert_eq!(describe(stream.next().await), "6: k=6", "no gap and no repetition at the seam");
}

async fn future(store: Arc<dyn Store>) {
    let store = &*store;
    let mut stream = store.watch(KeyRange::all(), Some(Revision(3))).expect("a watch");
    for number in 1..=3 {
        put(store, "k", &number.to_string()).await;
    }
    assert_eq!(describe(next_news(&mut stream).await), "3: k=3");
}

async fn visible(store: Arc<dyn Store>) {
    let store = &*store;
    let mut stream = store.watch(KeyRange::all(), None).expect("a watch");
    let _ = stream.next().await;
    for number in 0..20 {
        let revision = put(store, "k", &number.to_string()).await;
        let item = tokio::time::timeout(std::time::Duration::from_secs(5), stream.next()).await.expect("in time");
        assert!(matches!(item, Some(WatchItem::Events { revision: seen, .. }) if seen == revision));
    }
}

async fn compacted(store: Arc<dyn Store>) {
    let store = &*store;
    for number in 1..=20 {
        put(store, "k", &number.to_string()).await;
    }
    let mut stream = store.watch(KeyRange::all(), Some(Revision(3))).expect("a watch");
    let Some(WatchItem::Compacted(oldest)) = stream.next().await else { panic!("not compacted") };
    assert_eq!(oldest, Revision(16));
    assert_eq!(stream.next().await, None);
    let mut stream = store.watch(KeyRange::all(), Some(oldest)).expect("a watch");
    assert_eq!(describe(stream.next().await), "16: k=16");
}

async fn compacted_by_bytes(store: Arc<dyn Store>) {
    let store = &*store;
    for _ in 1..=20 {
        put(store, "k", &"x".repeat(1000)).await;
    }
    let mut stream = store.watch(KeyRange::all(), Some(Revision(2))).expect("a watch");
    assert!(matches!(stream.next().await, Some(WatchItem::Compacted(_))));
}

async fn lagged(store: Arc<dyn Store>) {
    let store = &*store;
    let mut slow = store.watch(KeyRange::all(), None).expect("a watch");
    let mut last = Revision(0);
    for number in 0..600 {
        last = put(store, "k", &number.to_string()).await;
    }
    let mut seen = Revision(0);
    loop {
        match slow.next().await {
            Some(WatchItem::Events { revision, .. }) => {
                assert_eq!(revision.0, seen.0 + 1, "what is delivered has no gap");
                seen = revision;
            }
            Some(WatchItem::Progress(_)) => {}
            Some(WatchItem::Lagged) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen < last, "it lagged");
    assert_eq!(slow.next().await, None);
    let mut resumed = store.watch(KeyRange::all(), Some(Revision(seen.0 + 1))).expect("a watch");
    while seen < last {
        let Some(WatchItem::Events { revision, .. }) = next_news(&mut resumed).await else { panic!("ended") };
        assert_eq!(revision.0, seen.0 + 1, "resuming misses nothing");
        seen = revision;
    }
    assert_eq!(store.metrics().lagged_watchers, 1);
}

async fn progress(store: Arc<dyn Store>) {
    let store = &*store;
    let mut idle = store.watch(KeyRange::prefix("idle/"), None).expect("a watch");
    assert_eq!(idle.next().await, Some(WatchItem::Progress(Revision(0))));
    for number in 0..1000 {
        put(store, "busy", &number.to_string()).await;
    }
    assert_eq!(idle.next().await, Some(WatchItem::Progress(Revision(1000))));
}

async fn dropped(store: Arc<dyn Store>) {
    let stream = store.watch(KeyRange::all(), None).expect("a watch");
    assert_eq!(store.metrics().watchers, 1);
    drop(stream);
    assert_eq!(store.metrics().watchers, 0);
}
