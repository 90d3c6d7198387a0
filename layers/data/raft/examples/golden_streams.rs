//! Writes the golden directory of streams: `cargo run -p data-raft --example golden_streams -- DIRECTORY`.
//! Run it only to add a directory for a new format version; the old ones stay and must open for ever.

use std::path::Path;

use data::{Append, DEFAULT_MAX_BYTES, Name, Retention, StreamError, Streams};
use data_raft::{Options, RaftStore, StreamOptions};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: golden_streams DIRECTORY")?;
    let directory = Path::new(&directory);
    let store = RaftStore::open(Options { segment_bytes: 4096, reserve_bytes: 0, ..Options::new(directory) })?;
    let retention = Retention { max_bytes: DEFAULT_MAX_BYTES, max_age_ms: None };
    let streams = store.open_streams(StreamOptions::new(retention))?;
    fill(&*streams).await?;
    streams.snapshot().await?;
    change(&*streams).await?;
    streams.close().await?;
    data::Store::close(&*store).await?;
    for transient in ["lock", "owner", "streams/lock", "streams/owner"] {
        std::fs::remove_file(directory.join(transient))?;
    }
    Ok(())
}

async fn append(streams: &dyn Streams, stream: &str, seq: u64, epoch: Option<u64>) -> Result<(), StreamError> {
    let entry = format!("{stream} {seq}").into();
    let producer = Some((Name::new("p")?, seq));
    streams.append(Append { stream: Name::new(stream)?, producer, epoch, entry }).await.map(drop)
}

/// What the snapshot and the segments hold.
async fn fill(streams: &dyn Streams) -> Result<(), StreamError> {
    for seq in 1..20 {
        append(streams, "orders", seq, None).await?;
    }
    append(streams, "gone", 1, None).await?;
    streams.seal(Name::new("sealed")?, 4).await?;
    streams.commit(Name::new("orders")?, Name::new("billing")?, 7).await
}

/// What the log holds: every kind of command that is asked for.
async fn change(streams: &dyn Streams) -> Result<(), StreamError> {
    append(streams, "orders", 20, None).await?;
    append(streams, "sealed", 1, Some(5)).await?;
    streams.seal(Name::new("orders")?, 2).await?;
    streams.delete(Name::new("gone")?, None).await?;
    streams.commit(Name::new("orders")?, Name::new("billing")?, 9).await
}
