//! What an acknowledgement is worth, in both modes, and that concurrent writers lose nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Durability, NotServing, Store, TxnOutcome};
use data_raft::{FaultyDisk, Operation, Options, RaftStore};
use support::{UnsyncedDisk, close, content, copy, must_put, put, small};

fn durability(outcome: &TxnOutcome) -> Durability {
    let TxnOutcome::Committed { durability, .. } = outcome else { panic!("{outcome:?}") };
    *durability
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn sync_flushes_before_every_acknowledgement() {
    let directory = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(directory.path())).unwrap();
    for number in 0..10 {
        let before = store.metrics().fsync_micros.count();
        let outcome = put(&*store, "k", b"v").await.unwrap();
        assert_eq!(durability(&outcome), Durability::Sync);
        assert!(store.metrics().fsync_micros.count() > before, "write {number} was acknowledged without a flush");
    }
    assert!(store.status().last_fsync.is_some());
}

#[tokio::test]
async fn async_says_so_and_flushes_soon_after_without_further_writes() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(UnsyncedDisk::default()));
    let flush_interval = Duration::from_millis(20);
    let (durable, seam) = (Durability::Async, Arc::new(disk.clone()));
    let options = Options { durability: durable, flush_interval, disk: seam, ..small(directory.path()) };
    let store = RaftStore::open(options).unwrap();
    let before = store.metrics().fsync_micros.count();
    assert_eq!(durability(&put(&*store, "a", b"1").await.unwrap()), Durability::Async);
    assert_eq!(store.status().durability, Durability::Async);
    until("the background flush", || store.metrics().fsync_micros.count() > before).await;
    // A background flush that fails closes the store like any other.
    disk.fail(Operation::Sync, 0, ErrorKind::Other, true);
    must_put(&*store, "b", b"2").await;
    until("the store says that it stopped", || {
        matches!(store.status().not_serving, Some(NotServing::FlushFailed { .. }))
    })
    .await;
}

#[tokio::test]
async fn async_loses_nothing_when_closed_in_good_order() {
    let directory = tempfile::tempdir().unwrap();
    let flush_interval = Duration::from_secs(3600);
    let disk = FaultyDisk::new(Arc::new(UnsyncedDisk::default()));
    let seam = || Arc::new(disk.clone());
    let options = || Options { durability: Durability::Async, flush_interval, disk: seam(), ..small(directory.path()) };
    let store = RaftStore::open(options()).unwrap();
    must_put(&*store, "a", b"1").await;
    let before = disk.calls(Operation::Sync);
    close(store).await;
    assert_eq!(disk.calls(Operation::Sync) - before, 2, "one flush of the log, then one of its end in the superblock");
    assert_eq!(content(&*RaftStore::open(options()).unwrap()).await, ["a=1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_share_flushes_and_lose_nothing() {
    const WRITERS: usize = 32;
    const EACH: usize = 20;
    let directory = tempfile::tempdir().unwrap();
    let options = || Options { disk: Arc::new(data_raft::RealDisk), ..small(directory.path()) };
    let store = RaftStore::open(options()).unwrap();
    let before = store.metrics().fsync_micros.count();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in 0..EACH {
                    must_put(&*store, &format!("{writer:02}/{number:02}"), b"v").await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let flushes = store.metrics().fsync_micros.count() - before;
    assert!(flushes < (WRITERS * EACH / 2) as u64, "{flushes} flushes for {} writes", WRITERS * EACH);
    let crashed = tempfile::tempdir().unwrap();
    copy(directory.path(), crashed.path());
    drop(store);
    for image in [directory.path(), crashed.path()] {
        let store = RaftStore::open(small(image)).unwrap();
        assert_eq!(content(&*store).await.len(), WRITERS * EACH);
    }
}

#[tokio::test]
async fn an_idle_store_wakes_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(directory.path())).unwrap();
    must_put(&*store, "a", b"1").await;
    let before = (store.status().term, store.status().applied_index, store.metrics().fsync_micros.count());
    // Longer than any election or heartbeat time the engine was given.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(before, (store.status().term, store.status().applied_index, store.metrics().fsync_micros.count()));
}
