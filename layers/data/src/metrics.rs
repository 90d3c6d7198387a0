//! Counters a store hands to whoever exports metrics. No metrics library here: a snapshot of numbers.

use std::time::Duration;

/// Upper bounds of the latency buckets, in microseconds (an edge at 0.5 s, as everywhere in Seawall).
const LATENCY_BOUNDS_MICROS: &[u64] =
    &[50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000];
/// Upper bounds of the batch-size buckets, in records.
const BATCH_BOUNDS: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024];

/// A histogram with fixed bounds; the last count is everything above the last bound.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    counts: Vec<u64>,
    sum: u64,
}

impl Histogram {
    /// For durations, in microseconds.
    pub fn latency() -> Self {
        Self::new(LATENCY_BOUNDS_MICROS)
    }

    /// For group-commit batches, in records.
    pub fn batch() -> Self {
        Self::new(BATCH_BOUNDS)
    }

    fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0 }
    }

    /// Counts one observation.
    pub fn record(&mut self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// Counts one duration, as microseconds.
    pub fn record_duration(&mut self, duration: Duration) {
        self.record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Upper bound (inclusive) and count of each bucket, `None` for the last; counts are not cumulative.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> + '_ {
        self.bounds.iter().copied().map(Some).chain([None]).zip(self.counts.iter().copied())
    }

    /// Number of observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of the observations.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// Counters since the store was opened.
#[derive(Clone, PartialEq, Debug)]
pub struct StoreMetrics {
    /// Flush latency in microseconds; its count is the number of flushes.
    pub fsync_micros: Histogram,
    /// Records per flush.
    pub batch_records: Histogram,
    /// Bytes appended to the log, headers included.
    pub appended_bytes: u64,
    /// Records appended to the log.
    pub appended_records: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Snapshots that could not be written.
    pub snapshot_failures: u64,
    /// Log segments on disk.
    pub segments: u64,
    /// Watchers attached now.
    pub watchers: u64,
    /// Watchers dropped for being slow.
    pub lagged_watchers: u64,
    /// What the keys of each owner take who has a quota, by name, as far as this node has applied.
    pub owners: Vec<(String, OwnerBytes)>,
}

/// What the keys of an owner take, see [`Key::owner`](crate::Key::owner). In bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerBytes {
    /// Keys and values, with overhead.
    pub used: u64,
    /// Most they may take.
    pub quota: u64,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            fsync_micros: Histogram::latency(),
            batch_records: Histogram::batch(),
            appended_bytes: 0,
            appended_records: 0,
            snapshots: 0,
            snapshot_failures: 0,
            segments: 0,
            watchers: 0,
            lagged_watchers: 0,
            owners: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;

    #[test]
    fn values_fall_into_the_bucket_whose_bound_includes_them() {
        let mut histogram = Histogram::batch();
        for value in [1, 2, 3, 5000] {
            histogram.record(value);
        }
        let filled: Vec<_> = histogram.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(Some(1), 1), (Some(2), 1), (Some(4), 1), (None, 1)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 5006));
    }
}
