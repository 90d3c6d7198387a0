//! Helpers of the storage tests: small stores, crash images, a disk that does not wait for the platters.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io;
use std::path::Path;
use std::sync::Arc;

use data::{Consistency, Key, KeyRange, Op, RangeRequest, Revision, Store, StoreError, Txn, TxnOutcome};
use data_raft::{Disk, DiskFile, FileLock, Options, RaftStore, RealDisk};

/// Real files whose flush does nothing: the tests that use it simulate the power cut themselves.
#[derive(Debug, Default)]
pub struct UnsyncedDisk(RealDisk);

#[derive(Debug)]
struct UnsyncedFile(Box<dyn DiskFile>);

impl Disk for UnsyncedDisk {
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.0.create_directory(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.0.list(directory)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(UnsyncedFile(self.0.open(path, create)?)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.remove(path)
    }

    fn sync_directory(&self, _directory: &Path) -> io::Result<()> {
        Ok(())
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.0.replace(path, content)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        self.0.lock(path)
    }
}

impl DiskFile for UnsyncedFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buffer, offset)
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        self.0.preallocate(length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.truncate(length)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }
}

/// Options of a store of a few kilobytes.
pub fn small(directory: &Path) -> Options {
    Options {
        segment_bytes: 4096,
        reserve_bytes: 4096,
        disk: Arc::new(UnsyncedDisk::default()),
        ..Options::new(directory)
    }
}

pub fn key(text: &str) -> Key {
    Key::try_from(text).unwrap()
}

pub async fn put(store: &dyn Store, name: &str, value: &[u8]) -> Result<TxnOutcome, StoreError> {
    store.txn(Txn::default().then(Op::put(key(name), value.to_vec()))).await
}

pub async fn must_put(store: &dyn Store, name: &str, value: &[u8]) -> Revision {
    match put(store, name, value).await {
        Ok(TxnOutcome::Committed { revision, .. }) => revision,
        other => panic!("expected a commit, got {other:?}; the store: {:?}", store.status()),
    }
}

/// Everything in the store, as `key=value`.
pub async fn content(store: &dyn Store) -> Vec<String> {
    let read = store.range(RangeRequest::new(KeyRange::all()), Consistency::Linearizable).await.unwrap();
    read.kvs.iter().map(|kv| format!("{}={}", kv.key, String::from_utf8_lossy(&kv.value))).collect()
}

/// What a power cut would leave, given that everything written is on disk: a copy of the files.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "lock" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Opens a store and closes it in good order.
pub async fn close(store: Arc<RaftStore>) {
    store.close().await.unwrap();
}

/// Length of a file without the zeros at its end.
pub fn used(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}
