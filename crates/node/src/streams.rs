//! The op-logs of services as a part of the node: opened beside the store, closed before it, counted for the metrics.

use std::sync::Arc;
use std::time::Duration;

use data::{Retention, Streams};
use data_raft::{RaftStore, StreamOptions};
use model::Config;
use observe::metrics::{StreamGauges, StreamLabels};

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

/// Copies the figures of this moment.
pub fn count(streams: &dyn Streams, gauges: &StreamGauges) {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    gauges.serving.set(i64::from(streams.not_serving().is_none()));
    let counted = streams.metrics();
    gauges.appended.set(whole(counted.appended_entries));
    gauges.appended_bytes.set(whole(counted.appended_bytes));
    gauges.wal_bytes.set(whole(counted.log_bytes));
    // One that was deleted leaves no figure behind.
    gauges.kept_bytes.clear();
    for (stream, bytes) in counted.kept_bytes {
        gauges.kept_bytes.get_or_create(&StreamLabels { stream: stream.to_string() }).set(whole(bytes));
    }
}
