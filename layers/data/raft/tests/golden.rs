//! Data directories written by earlier versions open and read the same for ever.
//! `examples/golden.rs` wrote them; a new format version gets a new directory, the old ones are never touched.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::path::Path;
use std::time::Duration;

use data::{LeaseId, Revision, Store};
use data_raft::{Options, RaftStore};
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
