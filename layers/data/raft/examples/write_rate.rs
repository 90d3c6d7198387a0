//! Acknowledged writes a second, beside the disk's raw flush rate: `cargo run --release -p data-raft --example write_rate [DIRECTORY]`.
//! Prints, for 1, 16 and 64 concurrent writers, the rate with sync durability, flushes a second and writes per flush;
//! also the time from open to serving and the resident memory.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Key, Store, Txn};
use data_raft::{Disk, Options, RaftStore, RealDisk};

const SECONDS: u64 = 3;
const VALUE_BYTES: usize = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let scratch = tempfile::tempdir()?;
    let directory = std::env::args().nth(1).map_or_else(|| scratch.path().to_path_buf(), Into::into);
    let before = raw_flush_rate(&directory)?;
    println!("raw flush rate            {before:>8.0}/s");
    print_memory("before the first open");
    let begun = Instant::now();
    let store = RaftStore::open(Options::new(directory.join("fresh")))?;
    println!("fresh directory           {:>8.1} ms to serving", begun.elapsed().as_secs_f64() * 1e3);
    print_memory("idle, one store open");
    store.close().await?;
    for writers in [1, 16, 64] {
        let store_directory = directory.join(format!("store-{writers}"));
        let store = RaftStore::open(Options::new(&store_directory))?;
        let rate = write_rate(&store, writers).await?;
        let metrics = store.metrics();
        println!(
            "{writers:>2} writers                {rate:>8.0}/s   {:>6.0} flushes/s   {:>5.1} writes/flush",
            metrics.fsync_micros.count() as f64 / SECONDS as f64,
            metrics.batch_records.sum() as f64 / metrics.batch_records.count() as f64,
        );
        store.close().await?;
        let begun = Instant::now();
        let store = RaftStore::open(Options::new(&store_directory))?;
        println!(
            "   reopened ({:>6} keys)   {:>8.1} ms to serving",
            store.status().revision,
            begun.elapsed().as_secs_f64() * 1e3
        );
        store.close().await?;
    }
    println!("raw flush rate            {:>8.0}/s", raw_flush_rate(&directory)?);
    print_memory("at the end");
    Ok(())
}

/// Where the system tells it.
fn print_memory(when: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    lines.for_each(|line| println!("memory, {when}: {line}"));
}

/// How often a small append can be flushed, one after the other.
fn raw_flush_rate(directory: &Path) -> std::io::Result<f64> {
    let path = directory.join("raw");
    RealDisk.create_directory(directory)?;
    let file = RealDisk.open(&path, true)?;
    file.preallocate(16 * 1024 * 1024)?;
    file.sync()?;
    let begun = Instant::now();
    let mut flushes = 0_u64;
    while begun.elapsed() < Duration::from_secs(1) {
        file.write_all_at(&[1; VALUE_BYTES + 60], flushes * 160 % (15 * 1024 * 1024))?;
        file.sync()?;
        flushes += 1;
    }
    drop(file);
    RealDisk.remove(&path)?;
    Ok(flushes as f64 / begun.elapsed().as_secs_f64())
}

async fn write_rate(store: &Arc<RaftStore>, writers: usize) -> Result<f64, Box<dyn std::error::Error>> {
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut written = 0_u64;
                while Instant::now() < until {
                    let key = Key::try_from(format!("bench/{writer}/{}", written % 1000))?;
                    store.txn(Txn::put(key, vec![b'v'; VALUE_BYTES])).await?;
                    written += 1;
                }
                Ok::<_, data::StoreError>(written)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / SECONDS as f64)
}
