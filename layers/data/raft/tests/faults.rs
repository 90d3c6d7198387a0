//! A disk that fails at every call in turn: what was acknowledged stays, the rest is refused with a reason, a restart heals.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use data::{Consistency, NotServing, RangeRequest, Store, StoreError, TxnOutcome};
use data_raft::{FaultyDisk, OpenError, Operation, Options, RaftStore};
use support::{UnsyncedDisk, content, key, must_put, put, small};

/// Writes made while the disk fails; enough for several segments and snapshots.
const WRITES: usize = 30;

fn options(directory: &Path, disk: &FaultyDisk) -> Options {
    Options { snapshot_entries: 12, segment_bytes: 2048, disk: Arc::new(disk.clone()), ..small(directory) }
}

fn name(number: usize) -> String {
    format!("k{number:02}")
}

/// Runs with the fault armed at call `after`; false once the fault is past everything that happens.
async fn run(operation: Operation, kind: ErrorKind, after: u64, while_opening: bool) -> bool {
    let context = format!("{operation:?} {kind:?} after {after}, while opening: {while_opening}");
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(UnsyncedDisk::default()));
    let before = disk.calls(operation);
    if while_opening {
        disk.fail(operation, after, kind, true);
    }
    let mut acknowledged = Vec::new();
    let mut hit = false;
    match RaftStore::open(options(directory.path(), &disk)) {
        Ok(store) => {
            if !while_opening {
                disk.fail(operation, after, kind, true);
            }
            for number in 0..WRITES {
                match put(&*store, &name(number), &[b'v'; 300]).await {
                    Ok(TxnOutcome::Committed { .. }) => acknowledged.push(name(number)),
                    Ok(TxnOutcome::Unknown) => {}
                    Err(StoreError::NotServing(_)) => hit = true,
                    other => panic!("{context}: {other:?}"),
                }
            }
            if hit {
                check_refusals(&*store, kind, &context).await;
            }
            hit |= disk.calls(operation) - before > after && store.metrics().snapshot_failures > 0;
        }
        Err(error) => {
            assert!(while_opening, "{context}: {error}");
            hit = true;
        }
    }
    disk.heal();
    let store = RaftStore::open(options(directory.path(), &disk)).unwrap_or_else(|error| panic!("{context}: {error}"));
    let found = content(&*store).await;
    for name in &acknowledged {
        assert!(found.iter().any(|pair| pair.starts_with(&format!("{name}="))), "{context}: lost {name}");
    }
    for pair in &found {
        assert_eq!(pair.len(), 4 + 300, "{context}: half a write: {pair}");
    }
    must_put(&*store, "after", b"1").await;
    hit
}

async fn check_refusals(store: &dyn Store, kind: ErrorKind, context: &str) {
    let reason = store.status().not_serving.unwrap_or_else(|| panic!("{context}: status says it serves"));
    match (&reason, kind) {
        (NotServing::DiskFull { .. }, ErrorKind::StorageFull) => {
            assert!(reason.to_string().contains("Free at least"), "{reason}");
        }
        (NotServing::FlushFailed { .. } | NotServing::WriteFailed { .. }, ErrorKind::Other) => {
            assert!(reason.to_string().contains("restart this node"), "{reason}");
        }
        _ => panic!("{context}: {reason:?}"),
    }
    let refused = StoreError::NotServing(reason);
    assert_eq!(put(store, "late", b"x").await, Err(refused.clone()), "{context}");
    let request = || RangeRequest::key(&key("k00"));
    assert_eq!(store.range(request(), Consistency::Linearizable).await, Err(refused.clone()), "{context}");
    assert!(store.range(request(), Consistency::Stale).await.is_ok(), "{context}: the node is read-only, not dead");
    assert_eq!(store.lease_keep_alive(data::LeaseId(1)).await, Err(refused), "{context}");
}

async fn at_every_call(operation: Operation, while_opening: bool) {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        let mut after = 0;
        while run(operation, kind, after, while_opening).await {
            after += 1;
        }
        assert!(after > 1, "{operation:?} {kind:?}: only {after} calls were failed");
    }
}

#[tokio::test]
async fn writes_failing_at_every_call() {
    at_every_call(Operation::Write, false).await;
}

#[tokio::test]
async fn flushes_failing_at_every_call() {
    at_every_call(Operation::Sync, false).await;
}

#[tokio::test]
async fn reservations_failing_at_every_call() {
    at_every_call(Operation::Preallocate, false).await;
}

#[tokio::test]
async fn everything_failing_at_every_call_from_the_first_open_on() {
    for operation in [Operation::Write, Operation::Sync, Operation::Preallocate] {
        at_every_call(operation, true).await;
    }
}

#[tokio::test]
async fn a_failed_flush_is_never_retried() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(UnsyncedDisk::default()));
    let store = RaftStore::open(options(directory.path(), &disk)).unwrap();
    must_put(&*store, "a", b"1").await;
    // Once only: a retry would succeed, and would lie.
    disk.fail(Operation::Sync, 0, ErrorKind::Other, false);
    assert_eq!(put(&*store, "b", b"2").await, Ok(TxnOutcome::Unknown), "it may be on disk");
    let (flushes, writes) = (disk.calls(Operation::Sync), disk.calls(Operation::Write));
    for _ in 0..3 {
        let refused = put(&*store, "c", b"3").await;
        assert!(matches!(refused, Err(StoreError::NotServing(NotServing::FlushFailed { .. }))), "{refused:?}");
    }
    let closed = store.close().await;
    assert!(matches!(closed, Err(StoreError::NotServing(NotServing::FlushFailed { .. }))), "{closed:?}");
    assert_eq!(
        (disk.calls(Operation::Sync), disk.calls(Operation::Write)),
        (flushes, writes),
        "the log was touched again"
    );
    let store = RaftStore::open(options(directory.path(), &disk)).unwrap();
    assert_eq!(content(&*store).await[0], "a=1");
}

#[tokio::test]
async fn a_full_disk_gives_up_the_reserve_and_a_restart_takes_it_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(UnsyncedDisk::default()));
    let store = RaftStore::open(options(directory.path(), &disk)).unwrap();
    let reserve = directory.path().join("reserve");
    assert_eq!(std::fs::metadata(&reserve).unwrap().len(), 4096);
    disk.fail(Operation::Preallocate, 0, ErrorKind::StorageFull, true);
    while put(&*store, "k", &[b'x'; 300]).await.is_ok_and(|outcome| outcome.is_committed()) {}
    assert!(!reserve.exists(), "the reserve was not given up");
    drop(store);
    let refused = RaftStore::open(options(directory.path(), &disk)).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::DiskFull { need_bytes: 6144, .. }), "{refused:?}");
    assert!(refused.to_string().contains("nothing acknowledged is lost"), "{refused}");
    disk.heal();
    let store = RaftStore::open(options(directory.path(), &disk)).unwrap();
    assert!(reserve.exists());
    must_put(&*store, "k", b"again").await;
}

#[tokio::test]
async fn a_failed_snapshot_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(UnsyncedDisk::default()));
    let store = RaftStore::open(Options { snapshot_entries: u64::MAX, ..options(directory.path(), &disk) }).unwrap();
    must_put(&*store, "a", b"1").await;
    store.snapshot().await.unwrap();
    must_put(&*store, "b", b"2").await;
    disk.fail(Operation::Write, 0, ErrorKind::StorageFull, false);
    let failed = store.snapshot().await;
    assert!(matches!(failed, Err(StoreError::NotServing(NotServing::SnapshotFailed { .. }))), "{failed:?}");
    assert_eq!(store.metrics().snapshot_failures, 1);
    must_put(&*store, "c", b"3").await;
    drop(store);
    let store = RaftStore::open(options(directory.path(), &disk)).unwrap();
    assert_eq!(content(&*store).await, ["a=1", "b=2", "c=3"]);
}
