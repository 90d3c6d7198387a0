//! The streams of one voter: what is acknowledged is there once, whatever is restarted, trimmed or damaged.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use data::{Append, Consistency, Durability, MAX_ENTRY_BYTES, Retention, StreamError, Streams};
use data_raft::{OpenError, Options, RaftStore, StreamOptions};
use support::{Alone, RETENTION, all, by, name, put};

fn options(directory: &Path) -> Options {
    Options { segment_bytes: 64 * 1024, reserve_bytes: 0, ..Options::new(directory) }
}

fn small(directory: &Path) -> Alone {
    Alone::open(options(directory), StreamOptions { snapshot_entries: 20, ..StreamOptions::new(RETENTION) })
}

#[tokio::test]
async fn entries_cursors_seals_and_producers_survive_restarts_and_snapshots() {
    let directory = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..4 {
        let alone = small(directory.path());
        for count in 0..37_u64 {
            let seq = round * 37 + count + 1;
            let entry = format!("entry {seq}").repeat(100);
            assert_eq!(put(&alone.streams, by("p", seq, entry.clone())).await, Ok((seq - 1, false)));
            expected.push(entry);
        }
        if round == 2 {
            alone.streams.snapshot().await.unwrap();
        }
        let newest = round * 37 + 37;
        assert_eq!(put(&alone.streams, by("p", newest, "again")).await, Ok((newest - 1, true)));
        let gap = put(&alone.streams, by("p", newest + 2, "gap")).await;
        assert_eq!(gap, Err(StreamError::OutOfSequence { expected: newest + 1 }));
        alone.streams.commit(name("s"), name("reader"), round * 10).await.unwrap();
        assert_eq!(alone.streams.seal(name("sealed"), round + 1).await, Ok(0));
        alone.close().await;
        let alone = small(directory.path());
        let found = all(&alone.streams, "s", Consistency::Linearizable).await;
        assert!(found.iter().map(|entry| &entry.data[..]).eq(expected.iter().map(String::as_bytes)), "round {round}");
        assert!(found.is_sorted_by_key(|entry| entry.at_ms));
        assert_eq!(put(&alone.streams, by("p", newest, "again")).await, Ok((newest - 1, true)));
        assert_eq!(alone.streams.cursor(name("s"), name("reader")).await, Ok(round * 10));
        let described = alone.streams.describe(name("sealed"), Consistency::Linearizable).await.unwrap();
        assert_eq!(described.sealed, Some(round + 1));
        alone.close().await;
    }
}

#[tokio::test]
async fn what_is_refused_is_refused_with_what_would_be_right() {
    let directory = tempfile::tempdir().unwrap();
    let Alone { streams, .. } = &small(directory.path());
    let nothing = streams.read(name("s"), 0, 1, Consistency::Linearizable).await;
    assert_eq!(nothing, Err(StreamError::NotFound(name("s"))));
    let large = streams.append(by("p", 1, vec![0; MAX_ENTRY_BYTES + 1])).await;
    let bytes = MAX_ENTRY_BYTES + 1;
    assert_eq!(large, Err(StreamError::TooLarge { what: "an entry", bytes, limit: MAX_ENTRY_BYTES }));
    let largest = streams.append(by("p", 1, vec![7; MAX_ENTRY_BYTES])).await.unwrap();
    assert_eq!((largest.offset, largest.durability), (0, Durability::Sync));
    let read = streams.read(name("s"), 0, 1, Consistency::Linearizable).await.unwrap();
    assert!(read.entries[0].data == vec![7; MAX_ENTRY_BYTES] && read.next == 1);
    let past = streams.read(name("s"), 2, 1, Consistency::Linearizable).await;
    assert_eq!(past, Err(StreamError::PastEnd { next: 1 }));
    assert_eq!(streams.commit(name("s"), name("c"), 2).await, Err(StreamError::PastEnd { next: 1 }));
    assert_eq!(streams.cursor(name("s"), name("c")).await, Err(StreamError::NoCursor(name("c"))));
    assert_eq!(streams.seal(name("s"), 5).await, Ok(1));
    assert_eq!(put(streams, by("p", 2, "late")).await, Err(StreamError::Fenced { epoch: 5 }));
    assert_eq!(put(streams, Append { epoch: Some(5), ..by("p", 2, "in time") }).await, Ok((1, false)));
    assert_eq!(streams.delete(name("s"), Some(4)).await, Err(StreamError::Fenced { epoch: 5 }));
    assert_eq!(streams.delete(name("s"), Some(5)).await, Ok(()));
    assert_eq!(streams.list(Consistency::Linearizable).await.unwrap(), []);
}

#[tokio::test]
async fn a_reader_that_waits_is_woken_by_its_stream_and_by_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let Alone { streams, .. } = &small(directory.path());
    put(streams, by("p", 1, "first")).await.unwrap();
    assert_eq!(streams.wait(name("s"), 0, Duration::from_secs(30)).await, Ok(true), "there is one already");
    let begun = Instant::now();
    assert_eq!(streams.wait(name("s"), 1, Duration::from_millis(50)).await, Ok(false));
    assert!(begun.elapsed() >= Duration::from_millis(50));
    let waiting = {
        let streams = streams.clone();
        tokio::spawn(async move { streams.wait(name("s"), 1, Duration::from_secs(30)).await })
    };
    put(streams, Append { stream: name("other"), ..by("p", 1, "elsewhere") }).await.unwrap();
    assert!(!waiting.is_finished());
    put(streams, by("p", 2, "second")).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(true));
    let deleted = {
        let streams = streams.clone();
        tokio::spawn(async move { streams.wait(name("s"), 2, Duration::from_secs(30)).await })
    };
    tokio::task::yield_now().await;
    streams.delete(name("s"), None).await.unwrap();
    assert_eq!(deleted.await.unwrap(), Err(StreamError::NotFound(name("s"))));
}

fn segments(directory: &Path) -> Vec<std::path::PathBuf> {
    let listed = std::fs::read_dir(directory.join("streams")).unwrap();
    let mut files: Vec<_> = listed
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("entries-")))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_stream_holds_what_it_is_allowed_to_on_disk_too() {
    let directory = tempfile::tempdir().unwrap();
    let retention = Retention { max_bytes: 1024 * 1024, max_age_ms: None };
    let stream = StreamOptions { snapshot_log_bytes: 512 * 1024, ..StreamOptions::new(retention) };
    let alone = Alone::open(options(directory.path()), stream.clone());
    for seq in 1..=400 {
        put(&alone.streams, by("p", seq, vec![b'x'; 20_000])).await.unwrap();
    }
    alone.streams.snapshot().await.unwrap();
    let described = alone.streams.describe(name("s"), Consistency::Linearizable).await.unwrap();
    assert!(described.bytes <= 1024 * 1024 && described.first > 300 && described.next == 400, "{described:?}");
    let on_disk = || segments(directory.path()).iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    assert!(on_disk() <= 2 * 1024 * 1024, "{} bytes of segments", on_disk());
    let trimmed = alone.streams.read(name("s"), 0, 1, Consistency::Linearizable).await;
    assert_eq!(trimmed, Err(StreamError::Trimmed { first: described.first }));
    assert_eq!(all(&alone.streams, "s", Consistency::Linearizable).await.len() as u64, 400 - described.first);
    alone.streams.delete(name("s"), None).await.unwrap();
    alone.streams.snapshot().await.unwrap();
    assert_eq!(segments(directory.path()).len(), 0);
    alone.close().await;
    Alone::open(options(directory.path()), stream).close().await;
}

#[tokio::test]
async fn entries_go_when_they_have_had_their_time_though_nobody_appends() {
    let directory = tempfile::tempdir().unwrap();
    let retention = Retention { max_age_ms: Some(300), ..RETENTION };
    let alone = Alone::open(options(directory.path()), StreamOptions::new(retention));
    let begun = Instant::now();
    put(&alone.streams, by("p", 1, "short-lived")).await.unwrap();
    cluster::eventually("it is gone", async || {
        alone.streams.describe(name("s"), Consistency::Stale).await.unwrap().first == 1
    })
    .await;
    assert!(begun.elapsed() >= Duration::from_millis(250), "not before its time: {:?}", begun.elapsed());
    assert_eq!(put(&alone.streams, by("p", 2, "next")).await, Ok((1, false)));
}

#[tokio::test]
async fn damage_is_named_and_a_lost_file_or_folder_refused() {
    let directory = tempfile::tempdir().unwrap();
    let alone = small(directory.path());
    for seq in 1..=10 {
        put(&alone.streams, by("p", seq, "0123456789")).await.unwrap();
    }
    alone.streams.snapshot().await.unwrap();
    let file = segments(directory.path()).pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[5 * 42 + 33] ^= 4;
    std::fs::write(&file, &damaged).unwrap();
    assert!(alone.streams.read(name("s"), 0, 5, Consistency::Linearizable).await.is_ok(), "what is whole is read");
    let read = alone.streams.read(name("s"), 5, 5, Consistency::Linearizable).await;
    assert!(matches!(&read, Err(StreamError::Damaged { what }) if what.contains("offset 210")), "{read:?}");
    alone.close().await;

    let open = || RaftStore::open(options(directory.path())).unwrap().open_streams(StreamOptions::new(RETENTION));
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(matches!(open().err(), Some(OpenError::Corrupt { file: named, .. }) if named == file));
    std::fs::write(&file, &whole).unwrap();
    assert!(open().is_ok());
    std::fs::remove_dir_all(directory.path().join("streams")).unwrap();
    let lost = open().err().map(|error| error.to_string()).unwrap_or_default();
    assert!(lost.contains("holds none"), "{lost}");
}

#[tokio::test]
async fn a_seal_is_not_behind_a_flood_of_appends() {
    /// Many times what may be on its way at once, which is as much as 64 of these.
    const APPENDS: u64 = 256;
    let directory = tempfile::tempdir().unwrap();
    let alone = small(directory.path());
    let begun = Arc::new(AtomicU64::new(0));
    let entry = bytes::Bytes::from(vec![0; MAX_ENTRY_BYTES]);
    let append = |_| {
        let (streams, begun) = (alone.streams.clone(), begun.clone());
        let append = Append { stream: name("s"), producer: None, epoch: None, entry: entry.clone() };
        tokio::spawn(async move {
            begun.fetch_add(1, Ordering::SeqCst);
            streams.append(append).await.is_ok()
        })
    };
    let flood: Vec<_> = (0..APPENDS).map(append).collect();
    while begun.load(Ordering::SeqCst) < APPENDS {
        tokio::task::yield_now().await;
    }
    let end = alone.streams.seal(name("s"), 1).await.unwrap();
    let mut taken = 0;
    for append in flood {
        taken += u64::from(append.await.unwrap());
    }
    assert_eq!(taken, end, "what comes after the seal is refused");
    assert!(end <= APPENDS / 2, "the seal waited for {end} of {APPENDS}");
    alone.close().await;
}

#[tokio::test]
async fn large_entries_stand_in_line_and_the_limit_follows_what_they_take() {
    let directory = tempfile::tempdir().unwrap();
    let alone = Alone::open(Options::new(directory.path()), StreamOptions::new(RETENTION));
    let first = alone.streams.metrics().limit_bytes;
    let clients = (0..20).map(|client| {
        let streams = Arc::clone(&alone.streams);
        tokio::spawn(async move {
            for seq in 1..=10 {
                put(&streams, by(&format!("p{client}"), seq, vec![b'x'; 64 * 1024])).await.unwrap();
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let metrics = alone.streams.metrics();
    assert_eq!(metrics.appended_entries, 200);
    assert_ne!(metrics.limit_bytes, first, "nothing was measured");
    alone.close().await;
}
