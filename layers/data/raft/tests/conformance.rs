//! The embedded store keeps every clause of the `Store` contract.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

use std::cell::RefCell;

use data::conformance::{self, Setup};
use data_raft::{Options, RaftStore};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_store_conforms() {
    let directories = RefCell::new(Vec::new());
    let make = |setup: Setup| -> std::sync::Arc<dyn data::Store> {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            quota_bytes: setup.quota_bytes,
            history: setup.history,
            segment_bytes: 256 * 1024,
            ..Options::new(directory.path())
        };
        directories.borrow_mut().push(directory);
        RaftStore::open(options).unwrap()
    };
    conformance::all(&make).await;
}
