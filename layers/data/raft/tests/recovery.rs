//! What is left after damage: everything acknowledged, or a refusal that names the place. Never a guess.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::path::{Path, PathBuf};

use data::Store;
use data_raft::{OpenError, RaftStore};
use support::{close, content, copy, key, must_put, small, used};

const FIRST: &str = "wal-0000000000000001";

/// Writes `a=1 ... e=5`, one flush each, and returns where each record ended in the first segment.
async fn write_five(store: &dyn Store, directory: &Path) -> Vec<usize> {
    let mut ends = Vec::new();
    for (number, name) in ["a", "b", "c", "d", "e"].iter().enumerate() {
        must_put(store, name, (number + 1).to_string().as_bytes()).await;
        ends.push(used(&directory.join(FIRST)));
    }
    ends
}

fn expected(count: usize) -> Vec<String> {
    ["a=1", "b=2", "c=3", "d=4", "e=5"][..count].iter().map(ToString::to_string).collect()
}

async fn reopen(directory: &Path) -> Result<Vec<String>, OpenError> {
    let store = RaftStore::open(small(directory))?;
    let found = content(&*store).await;
    // A recovered store must also go on working.
    must_put(&*store, "after", b"").await;
    close(store).await;
    let store = RaftStore::open(small(directory))?;
    assert_eq!(content(&*store).await.len(), found.len() + 1);
    Ok(found)
}

struct Images {
    _directory: tempfile::TempDir,
    crashed: PathBuf,
    closed: PathBuf,
    ends: Vec<usize>,
}

async fn images() -> Images {
    let directory = tempfile::tempdir().unwrap();
    let live = directory.path().join("live");
    let crashed = directory.path().join("crashed");
    let store = RaftStore::open(small(&live)).unwrap();
    let ends = write_five(&*store, &live).await;
    copy(&live, &crashed);
    close(store).await;
    Images { closed: live, crashed, ends, _directory: directory }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_the_log_is_noticed_or_costs_only_the_last_record() {
    let images = images().await;
    let end = *images.ends.last().unwrap();
    let last_begins = images.ends[images.ends.len() - 2];
    for offset in 0..end {
        let scratch = tempfile::tempdir().unwrap();
        copy(&images.crashed, scratch.path());
        flip(&scratch.path().join(FIRST), offset);
        match reopen(scratch.path()).await {
            Err(OpenError::Corrupt { .. } | OpenError::UnknownFormat { .. }) => {}
            // After a crash the last record cannot be told from a torn one: there, and only there, it is cut.
            Ok(found) if offset >= last_begins => assert_eq!(found, expected(4), "flip at {offset}"),
            other => panic!("flip at {offset}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_a_log_closed_in_good_order_is_noticed() {
    let images = images().await;
    for offset in 0..used(&images.closed.join(FIRST)) {
        let scratch = tempfile::tempdir().unwrap();
        copy(&images.closed, scratch.path());
        flip(&scratch.path().join(FIRST), offset);
        let refused = reopen(scratch.path()).await;
        assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "flip at {offset}: {refused:?}");
    }
    let text = {
        let scratch = tempfile::tempdir().unwrap();
        copy(&images.closed, scratch.path());
        flip(&scratch.path().join(FIRST), images.ends[1] + 45);
        reopen(scratch.path()).await.unwrap_err().to_string()
    };
    assert!(
        text.contains(FIRST) && text.contains(&format!("offset {}", images.ends[1])) && text.contains("backup"),
        "{text}"
    );
}

#[tokio::test]
async fn a_flipped_bit_in_either_superblock_copy_costs_nothing() {
    let images = images().await;
    for copy_offset in [0, 4096] {
        for offset in (0..160).chain([4095]) {
            let scratch = tempfile::tempdir().unwrap();
            copy(&images.crashed, scratch.path());
            flip(&scratch.path().join("superblock"), copy_offset + offset);
            assert_eq!(reopen(scratch.path()).await.unwrap(), expected(5), "flip at {}", copy_offset + offset);
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    copy(&images.crashed, scratch.path());
    flip(&scratch.path().join("superblock"), 9);
    flip(&scratch.path().join("superblock"), 4096 + 9);
    let refused = reopen(scratch.path()).await;
    assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "both copies gone: {refused:?}");
}

#[tokio::test]
async fn a_log_cut_at_any_byte_keeps_everything_acknowledged_before_the_cut() {
    let images = images().await;
    for cut in images.ends[0]..=*images.ends.last().unwrap() {
        let survivors = images.ends.iter().filter(|end| **end <= cut).count();
        for shorten in [false, true] {
            let scratch = tempfile::tempdir().unwrap();
            copy(&images.crashed, scratch.path());
            let path = scratch.path().join(FIRST);
            let mut bytes = std::fs::read(&path).unwrap();
            if shorten {
                bytes.truncate(cut);
            } else {
                bytes[cut..].fill(0);
            }
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(reopen(scratch.path()).await.unwrap(), expected(survivors), "cut at {cut}, shorten {shorten}");
        }
    }
}

#[tokio::test]
async fn garbage_after_the_end_is_cut_off() {
    let images = images().await;
    let end = *images.ends.last().unwrap();
    for length in [1, 39, 40, 41, 200] {
        let scratch = tempfile::tempdir().unwrap();
        copy(&images.crashed, scratch.path());
        let path = scratch.path().join(FIRST);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[end..end + length].fill(0xa5);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(reopen(scratch.path()).await.unwrap(), expected(5), "{length} bytes of garbage");
    }
}

#[tokio::test]
async fn a_missing_segment_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(directory.path())).unwrap();
    for number in 0..40 {
        must_put(&*store, &format!("k{number}"), &[b'x'; 300]).await;
    }
    close(store).await;
    for missing in [1, 2, 4] {
        let scratch = tempfile::tempdir().unwrap();
        copy(directory.path(), scratch.path());
        std::fs::remove_file(scratch.path().join(format!("wal-{missing:016}"))).unwrap();
        let refused = RaftStore::open(small(scratch.path())).map(drop);
        assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "without segment {missing}: {refused:?}");
    }
}

#[tokio::test]
async fn a_foreign_segment_is_refused() {
    let (one, two) = (images().await, images().await);
    std::fs::copy(one.crashed.join(FIRST), two.crashed.join(FIRST)).unwrap();
    let refused = RaftStore::open(small(&two.crashed)).map(drop);
    assert!(matches!(refused, Err(OpenError::ForeignFile { .. })), "{refused:?}");
}

#[tokio::test]
async fn snapshots_shorten_the_log_and_reopen_to_the_same_content() {
    let directory = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(directory.path())).unwrap();
    let lease = store.lease_grant(std::time::Duration::from_secs(3600)).await.unwrap().lease;
    let leased = data::Txn::default().then(data::Op::put_leased(key("leased"), "x", lease));
    assert!(store.txn(leased).await.unwrap().is_committed());
    for round in 0..3 {
        for number in 0..40 {
            must_put(&*store, &format!("k{number}"), format!("{round}").repeat(200).as_bytes()).await;
        }
        let before = store.metrics().segments;
        store.snapshot().await.unwrap();
        assert!(before > 1 && store.metrics().segments == 1, "{before} segments before the snapshot");
    }
    must_put(&*store, "after", b"the snapshot").await;
    let (want, revision) = (content(&*store).await, store.status().revision);
    let crashed = tempfile::tempdir().unwrap();
    copy(directory.path(), crashed.path());
    close(store).await;
    for image in [directory.path(), crashed.path()] {
        let store = RaftStore::open(small(image)).unwrap();
        assert_eq!(content(&*store).await, want);
        assert_eq!(store.status().revision, revision);
        assert_eq!(store.lease_info(lease).await.unwrap().keys, [key("leased")]);
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_the_snapshot_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(directory.path())).unwrap();
    must_put(&*store, "a", b"1").await;
    store.snapshot().await.unwrap();
    close(store).await;
    for offset in 0..used(&directory.path().join("snapshot-a")) {
        let scratch = tempfile::tempdir().unwrap();
        copy(directory.path(), scratch.path());
        flip(&scratch.path().join("snapshot-a"), offset);
        let refused = RaftStore::open(small(scratch.path())).map(drop);
        assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "flip at {offset}: {refused:?}");
    }
}

#[tokio::test]
async fn snapshots_come_by_themselves_after_enough_entries_or_bytes() {
    for (snapshot_entries, snapshot_log_bytes) in [(20, u64::MAX), (u64::MAX, 20_000)] {
        let directory = tempfile::tempdir().unwrap();
        let options = data_raft::Options { snapshot_entries, snapshot_log_bytes, ..small(directory.path()) };
        let store = RaftStore::open(options).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while store.metrics().snapshots < 3 {
            must_put(&*store, "k", &[b'x'; 1000]).await;
            assert!(std::time::Instant::now() < deadline, "no snapshot came");
        }
        assert!(store.status().wal_bytes < 1_000_000, "the log is purged behind them");
    }
}

#[tokio::test]
async fn a_directory_in_use_is_refused_and_free_again_after_close() {
    let directory = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(directory.path())).unwrap();
    let refused = RaftStore::open(small(directory.path())).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains(&format!("process {}", std::process::id())) && text.contains("stop that one"), "{text}");
    close(store).await;
    drop(RaftStore::open(small(directory.path())).unwrap());
    drop(RaftStore::open(small(directory.path())).unwrap());
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_refused_with_a_cure() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let refused = RaftStore::open(small(&file.join("data"))).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::NotWritable { .. }), "{refused:?}");
    assert!(refused.to_string().contains("make it writable"), "{refused}");
}

#[tokio::test]
async fn another_node_id_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    close(RaftStore::open(small(directory.path())).unwrap()).await;
    let refused = RaftStore::open(data_raft::Options { node_id: 2, ..small(directory.path()) }).map(drop);
    assert!(matches!(refused, Err(OpenError::ForeignFile { .. })), "{refused:?}");
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 1 << (offset % 8);
    std::fs::write(path, bytes).unwrap();
}
