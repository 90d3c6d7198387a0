//! A disk that fails under the streams: they stop and say so, the store goes on, and nothing acknowledged is lost.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use data::{Consistency, Key, NotServing, Store, StreamError, Streams, Txn};
use data_raft::{FaultyDisk, Operation, Options, RealDisk, StreamOptions};
use support::{Alone, RETENTION, all, by, name, put};

fn open(directory: &Path, disk: &FaultyDisk) -> Alone {
    let options = Options {
        segment_bytes: 256 * 1024,
        reserve_bytes: 0,
        disk: Arc::new(disk.clone()),
        ..Options::new(directory)
    };
    Alone::open(options, StreamOptions::new(RETENTION))
}

async fn store_goes_on(alone: &Alone) {
    let written = alone.store.txn(Txn::put(Key::try_from("k").unwrap(), "1")).await;
    assert!(written.is_ok_and(|outcome| outcome.is_committed()), "the store has another log");
}

#[tokio::test]
async fn a_segment_that_cannot_be_written_stops_the_streams_alone_and_loses_nothing() {
    for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
        let directory = tempfile::tempdir().unwrap();
        let disk = FaultyDisk::new(Arc::new(RealDisk));
        let alone = open(directory.path(), &disk);
        put(&alone.streams, by("p", 1, "first")).await.unwrap();
        // The log takes it, its segment does not.
        disk.fail(Operation::Write, 1, kind, false);
        assert_eq!(put(&alone.streams, by("p", 2, "second")).await, Err(StreamError::Unknown));
        let reason = alone.streams.not_serving().unwrap();
        match (&reason, kind) {
            (NotServing::DiskFull { directory: full, .. }, ErrorKind::StorageFull) => {
                assert_eq!(Path::new(&**full), directory.path().join("streams"));
            }
            (NotServing::WriteFailed { file, .. }, ErrorKind::Other) => assert!(file.contains("entries-"), "{file}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(put(&alone.streams, by("p", 3, "third")).await, Err(StreamError::NotServing(reason)));
        assert_eq!(all(&alone.streams, "s", Consistency::Stale).await.len(), 1, "what was there is read");
        store_goes_on(&alone).await;
        // It does not close in good order, as it says.
        assert!(alone.streams.close().await.is_err());
        alone.store.close().await.unwrap();
        tokio::task::spawn_blocking(move || drop(alone)).await.unwrap();

        let alone = open(directory.path(), &disk);
        assert_eq!(put(&alone.streams, by("p", 2, "second")).await, Ok((1, true)), "the log had it");
        assert_eq!(put(&alone.streams, by("p", 3, "third")).await, Ok((2, false)));
        let found = all(&alone.streams, "s", Consistency::Linearizable).await;
        assert!(found.iter().map(|entry| &entry.data[..]).eq([&b"first"[..], b"second", b"third"]));
        alone.close().await;
    }
}

#[tokio::test]
async fn a_segment_whose_flush_fails_is_never_flushed_again() {
    let directory = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new(Arc::new(RealDisk));
    let alone = open(directory.path(), &disk);
    put(&alone.streams, by("p", 1, "first")).await.unwrap();
    disk.fail(Operation::Sync, 0, ErrorKind::Other, false);
    assert!(matches!(alone.streams.snapshot().await, Err(StreamError::NotServing(NotServing::SnapshotFailed { .. }))));
    let reason = alone.streams.not_serving();
    assert!(matches!(&reason, Some(NotServing::FlushFailed { file, .. }) if file.contains("entries-")), "{reason:?}");
    // The disk works again, but what the flush was to keep may be gone: only the log is believed.
    let syncs = disk.calls(Operation::Sync);
    assert!(alone.streams.snapshot().await.is_err());
    assert!(put(&alone.streams, by("p", 2, "second")).await.is_err());
    assert_eq!(disk.calls(Operation::Sync), syncs);
    store_goes_on(&alone).await;
    assert!(alone.streams.close().await.is_err());
    alone.store.close().await.unwrap();
    tokio::task::spawn_blocking(move || drop(alone)).await.unwrap();
    let alone = open(directory.path(), &disk);
    let described = alone.streams.describe(name("s"), Consistency::Linearizable).await.unwrap();
    assert_eq!(described.next, 1);
    alone.streams.snapshot().await.unwrap();
    alone.close().await;
}
