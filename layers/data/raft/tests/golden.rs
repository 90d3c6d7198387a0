//! Data directories written by earlier versions open and read the same for ever.
//! `examples/golden.rs`, `golden_streams.rs` and `golden_saved.rs` wrote them; a new format version gets a new directory, the old ones are never touched.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::path::Path;
use std::time::Duration;

use data::{
    Append, Consistency, DEFAULT_MAX_BYTES, LeaseId, Name, Retention, Revision, Store, StreamError, StreamInfo, Streams,
};
use data_raft::{Options, RaftStore, StreamOptions};
use support::{content, copy, key, must_put};

#[tokio::test]
async fn version_1_opens_and_reads_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1"), scratch.path());
    let options = Options { segment_bytes: 4096, reserve_bytes: 0, ..Options::new(scratch.path()) };
    let store = RaftStore::open(options).unwrap();
    assert_eq!(store.status().revision, Revision(27));
    let mut want: Vec<String> = (1..7).map(|number| format!("config/{number}=value {number}")).collect();
    want.insert(0, "config/0=changed".into());
    want.push("leased/a=lives".into());
    want.push(format!("long={}", "11 ".repeat(150)));
    want.push("otherwise=ran".into());
    let found = content(&*store).await;
    assert_eq!(found[..found.len() - 1], want);
    assert_eq!(found[found.len() - 1], "\u{fffd}\0=\0\u{1}\u{2}");
    let lease = store.lease_info(LeaseId(1)).await.unwrap();
    assert_eq!((lease.keys, lease.ttl), (vec![key("leased/a")], Duration::from_secs(3600)));
    assert!(store.lease_info(LeaseId(2)).await.is_err());
    assert_eq!(must_put(&*store, "new", b"1").await, Revision(28));
    assert_eq!(store.lease_grant(Duration::from_secs(1)).await.unwrap().lease, LeaseId(3), "ids are never reused");
}

#[tokio::test]
async fn streams_of_version_1_open_and_read_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/streams-v1");
    copy_files(&golden, scratch.path());
    copy_files(&golden.join("streams"), &scratch.path().join("streams"));
    let store =
        RaftStore::open(Options { segment_bytes: 4096, reserve_bytes: 0, ..Options::new(scratch.path()) }).unwrap();
    let retention = Retention { max_bytes: DEFAULT_MAX_BYTES, max_age_ms: None };
    let streams = store.open_streams(StreamOptions::new(retention)).unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let entry = |stream: &str, seq: u64, epoch| Append {
        stream: name(stream),
        producer: Some((name("p"), seq)),
        epoch,
        entry: format!("{stream} {seq}").into(),
    };
    let described = streams.list(Consistency::Linearizable).await.unwrap();
    let info = |stream: &str, next, bytes, sealed, seq, cursor: Option<u64>| StreamInfo {
        name: name(stream),
        first: 0,
        next,
        bytes,
        sealed: Some(sealed),
        producers: [(name("p"), seq)].into(),
        cursors: cursor.map(|offset| (name("billing"), offset)).into_iter().collect(),
    };
    assert_eq!(described, [info("orders", 20, 811, 2, 20, Some(9)), info("sealed", 1, 40, 4, 1, None)]);
    let read = streams.read(name("orders"), 0, 100, Consistency::Linearizable).await.unwrap();
    let found: Vec<_> = read.entries.iter().map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect();
    assert_eq!(found, (1..=20).map(|seq| format!("orders {seq}")).collect::<Vec<_>>());
    assert_eq!(streams.append(entry("orders", 20, None)).await.map(|appended| appended.offset), Ok(19));
    assert_eq!(streams.append(entry("orders", 21, Some(1))).await, Err(StreamError::Fenced { epoch: 2 }));
    assert_eq!(streams.append(entry("sealed", 2, Some(4))).await.map(|appended| appended.offset), Ok(1));
    streams.close().await.unwrap();
}

#[tokio::test]
async fn a_saved_snapshot_of_version_1_is_restored_the_same() {
    let scratch = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/saved-v1");
    let saved = data_raft::verify(&golden).unwrap();
    assert_eq!((saved.revision, saved.keys, saved.leases), (Revision(10), 10, 1));
    let directory = scratch.path().join("store");
    assert_eq!(data_raft::restore(&golden, &directory).unwrap(), saved);
    let store = RaftStore::open(Options { reserve_bytes: 0, ..Options::new(&directory) }).unwrap();
    let mut want: Vec<String> = (0..8).map(|number| format!("config/{number}=value {number}")).collect();
    want.extend(["leased/a=lives".into(), "\u{fffd}\0=\0\u{1}\u{2}".into()]);
    assert_eq!(content(&*store).await, want);
    let lease = store.lease_info(LeaseId(1)).await.unwrap();
    assert_eq!((lease.keys, lease.ttl), (vec![key("leased/a")], Duration::from_secs(3600)));
    assert_eq!(must_put(&*store, "new", b"1").await, Revision(11));
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}
