//! The log and the store of one node beside the bare disk: `cargo xtask bench wal [DIRECTORY]`. Prints
//! - the flushes of the log alone beside `write` and `fdatasync` of as many bytes, by turns; and appends one after the other;
//! - acknowledged writes a second for 1, 16 and 64 concurrent writers, flushes a second and writes per flush;
//! - how long it takes to open a store with 1 GiB of log and no snapshot, in values of 1 KiB and of 64 KiB;
//! - the longest time without an acknowledged write while a snapshot is taken, and in as much time without one.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use data::{Key, Store, Txn};
use data_raft::{BareLog, Disk, Options, RaftStore, RealDisk};

const SECONDS: u64 = 3;
const VALUE_BYTES: usize = 100;
/// Of a record besides its value, about.
const AROUND: usize = 60;
/// Pairs of raw flushes and appends.
const PAIRS: usize = 11;
/// One of a pair takes so long.
const TURN: Duration = Duration::from_millis(400);
/// What is replayed.
const LOG_BYTES: usize = 1 << 30;
/// Keys in the store whose snapshot is taken, with values of 1 KiB.
const KEYS: usize = 200_000;

type Trouble = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Trouble> {
    let scratch = tempfile::tempdir()?;
    let directory = std::env::args().nth(1).map_or_else(|| scratch.path().to_path_buf(), Into::into);
    std::fs::create_dir_all(&directory)?;
    beside_the_disk(&directory)?;
    print_memory("before the first open");
    let begun = Instant::now();
    let store = RaftStore::open(Options::new(directory.join("fresh")))?;
    println!("fresh directory           {:>8.1} ms to serving", millis(begun.elapsed()));
    print_memory("idle, one store open");
    store.close().await?;
    for writers in [1, 16, 64] {
        rates(&directory.join(format!("store-{writers}")), writers).await?;
    }
    for bytes in [1024, 64 * 1024] {
        replay(&directory.join(format!("replay-{bytes}")), bytes).await?;
    }
    pauses(&directory.join("snapshot")).await?;
    print_memory("at the end");
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Where the system tells it.
fn print_memory(when: &str) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
    lines.for_each(|line| println!("memory, {when}: {line}"));
}

/// The log alone, by turns with bare flushes of as much.
fn beside_the_disk(directory: &Path) -> Result<(), Trouble> {
    let logs = directory.join("bare");
    std::fs::create_dir_all(&logs)?;
    let mut log = BareLog::create(&logs)?;
    let path = directory.join("raw");
    let file = RealDisk.open(&path, true)?;
    file.preallocate(16 * 1024 * 1024)?;
    file.sync()?;
    let payload = bytes::Bytes::from(vec![1; VALUE_BYTES]);
    let mut place = 0_u64;
    let (mut ratios, mut raws, mut flushes, mut appends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let raw = rate(|| {
            file.write_all_at(&[1; VALUE_BYTES + AROUND], place % (15 * 1024 * 1024))?;
            place += (VALUE_BYTES + AROUND) as u64;
            file.sync()
        })?;
        // The next one is there when a flush ends, as in a store with more than one client.
        let (before, begun) = (log.flushes(), Instant::now());
        log.append(payload.clone());
        rate(|| {
            log.append(payload.clone());
            log.flushed()
        })?;
        log.flushed()?;
        let flushed = (log.flushes() - before) as f64 / begun.elapsed().as_secs_f64();
        ratios.push(flushed / raw);
        raws.push(raw);
        flushes.push(flushed);
        appends.push(rate(|| {
            log.append(payload.clone());
            log.flushed()
        })?);
    }
    log.close()?;
    drop(file);
    RealDisk.remove(&path)?;
    println!("write and fdatasync       {}/s", median(&mut raws, 0));
    println!("the log's flushes         {}/s", median(&mut flushes, 0));
    println!("appends one by one        {}/s", median(&mut appends, 0));
    println!("the log's / bare flushes  {}", median(&mut ratios, 2));
    Ok(())
}

/// How often a second something can be done.
fn rate(mut once: impl FnMut() -> std::io::Result<()>) -> std::io::Result<f64> {
    let begun = Instant::now();
    let mut count = 0_u32;
    while begun.elapsed() < TURN {
        once()?;
        count += 1;
    }
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}

/// The middle one, with the least and the most.
fn median(figures: &mut [f64], decimals: usize) -> String {
    figures.sort_by(f64::total_cmp);
    let [first, .., last] = figures else { return String::new() };
    let (first, last) = (*first, *last);
    format!("{:>8.decimals$} ({first:.decimals$} to {last:.decimals$})", figures[figures.len() / 2])
}

async fn rates(directory: &Path, writers: usize) -> Result<(), Trouble> {
    let store = RaftStore::open(Options::new(directory))?;
    let rate = write_rate(&store, writers).await?;
    let metrics = store.metrics();
    println!(
        "{writers:>2} writers                {rate:>8.0}/s   {:>6.0} flushes/s   {:>5.1} writes/flush",
        metrics.fsync_micros.count() as f64 / SECONDS as f64,
        metrics.batch_records.sum() as f64 / metrics.batch_records.count() as f64,
    );
    store.close().await?;
    let begun = Instant::now();
    let store = RaftStore::open(Options::new(directory))?;
    println!("   reopened ({:>6} keys)   {:>8.1} ms to serving", store.status().revision, millis(begun.elapsed()));
    store.close().await?;
    Ok(())
}

async fn write_rate(store: &Arc<RaftStore>, writers: usize) -> Result<f64, Trouble> {
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut written = 0_u64;
                while Instant::now() < until {
                    put(&store, &format!("bench/{writer}/{}", written % 1000), VALUE_BYTES).await?;
                    written += 1;
                }
                Ok::<_, Trouble>(written)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / SECONDS as f64)
}

async fn put(store: &RaftStore, key: &str, bytes: usize) -> Result<(), Trouble> {
    store.txn(Txn::put(Key::try_from(key.to_owned())?, vec![b'v'; bytes])).await?;
    Ok(())
}

/// Writes `count` values of so many bytes, 256 at a time, over 1000 keys of each writer.
async fn fill(store: &Arc<RaftStore>, count: usize, bytes: usize, keys: usize) -> Result<(), Trouble> {
    const WRITERS: usize = 256;
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for number in (writer..count).step_by(WRITERS) {
                    put(&store, &format!("fill/{:07}", number % keys), bytes).await?;
                }
                Ok::<_, Trouble>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Opens a store whose log has 1 GiB, which no snapshot shortens.
async fn replay(directory: &Path, bytes: usize) -> Result<(), Trouble> {
    let options = Options { snapshot_entries: u64::MAX, snapshot_log_bytes: u64::MAX, ..Options::new(directory) };
    let store = RaftStore::open(options.clone())?;
    // As a store is: some values are live, most have been replaced.
    fill(&store, LOG_BYTES / bytes, bytes, 64 * 1024 * 1024 / bytes).await?;
    let (revision, size) = (store.status().revision, store.status().wal_bytes);
    store.close().await?;
    let begun = Instant::now();
    let store = RaftStore::open(options)?;
    let took = begun.elapsed();
    assert_eq!(store.status().revision, revision);
    println!(
        "replay of {:>4} MiB         {:>8.1} ms to serving   ({revision} writes of {bytes} bytes)",
        size >> 20,
        millis(took)
    );
    store.close().await?;
    std::fs::remove_dir_all(directory)?;
    Ok(())
}

/// One writer, one write after the other, while a snapshot is taken and in as much time before.
async fn pauses(directory: &Path) -> Result<(), Trouble> {
    let options = Options { snapshot_entries: u64::MAX, snapshot_log_bytes: u64::MAX, ..Options::new(directory) };
    let store = RaftStore::open(options)?;
    fill(&store, KEYS, 1024, KEYS).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut acknowledged = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                put(&store, "pause", 100).await?;
                acknowledged.push(Instant::now());
            }
            Ok::<_, Trouble>(acknowledged)
        }
    });
    let mut windows = Vec::new();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let begun = Instant::now();
        store.snapshot().await?;
        windows.push((begun, Instant::now()));
        // Another needs something new in it.
        put(&store, "again", 100).await?;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let acknowledged = writer.await??;
    let longest = |from: Instant, to: Instant| {
        let pairs = acknowledged.windows(2).filter(|pair| pair[1] > from && pair[0] < to);
        millis(pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default())
    };
    for (begun, ended) in windows {
        let took = ended - begun;
        println!(
            "snapshot of {KEYS} KiB   {:>8.1} ms   longest without an acknowledged write {:.1} ms, before it {:.1} ms",
            millis(took),
            longest(begun, ended),
            longest(begun - took.min(Duration::from_millis(450)), begun),
        );
    }
    store.close().await?;
    Ok(())
}
