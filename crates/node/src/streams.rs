//! The op-logs of services as a part of the node: opened beside the store, closed before it.

use std::sync::Arc;
use std::time::Duration;

use data::{Retention, Streams};
use data_raft::{RaftStore, StreamOptions};
use model::Config;

/// Entries kept in the log for members that are a little behind: the largest take half a gibibyte.
const ENTRIES_BEHIND_SNAPSHOT: u64 = 1000;

/// Opens them beside the store.
///
/// # Errors
/// What is wrong with their directory, and what to do.
pub fn open(store: &RaftStore, config: &Config) -> Result<Arc<dyn Streams>, String> {
    let milliseconds = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let retention =
        Retention { max_bytes: config.streams.max_bytes, max_age_ms: config.streams.max_age.map(milliseconds) };
    let mut options = StreamOptions::new(retention);
    if config.cluster.is_some() {
        options.entries_behind_snapshot = ENTRIES_BEHIND_SNAPSHOT;
    }
    let streams = store.open_streams(options).map_err(|error| error.to_string())?;
    Ok(streams)
}
