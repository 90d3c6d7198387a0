//! What the Raft engine (`openraft`) counts for its own statistics: sizes of batches, times between stages. It takes the
//! place of the crate `base2histogram`, whose first use fills 26 MB of tables for precisions that nobody asks for, in
//! every process; here a value is counted by its number of bits, and a histogram is 512 bytes.
//! Only what the engine calls is here, under the names it calls it by. Nothing decides by these numbers.

use std::fmt;
use std::marker::PhantomData;

/// Numbers of bits a value can have, 0 to 64.
const BUCKETS: usize = 65;

/// How often values of each size were seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Histogram<T = ()> {
    counts: Box<[u64; BUCKETS]>,
    _slots: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// Nothing was seen.
    pub fn new() -> Self {
        Self { counts: Box::new([0; BUCKETS]), _slots: PhantomData }
    }

    /// A value was seen.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// A value was seen so often.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bits = u64::BITS - value.leading_zeros();
        let bucket = &mut self.counts[bits as usize];
        *bucket = bucket.saturating_add(count);
    }

    /// The largest value of the size that the value at this place, of all that were seen, has; 0 if there is none.
    fn at(&self, permille: u64) -> u64 {
        let samples = self.samples();
        let rank = u64::try_from((u128::from(samples) * u128::from(permille)).div_ceil(1000)).unwrap_or(samples).max(1);
        let mut seen = 0_u64;
        let bits = self.counts.iter().position(|count| {
            seen = seen.saturating_add(*count);
            seen >= rank
        });
        bits.map_or(0, |bits| if bits == 64 { u64::MAX } else { (1 << bits) - 1 })
    }

    fn samples(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Percentiles of what was seen, each at most twice what it was.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.samples(),
            p0_1: self.at(1),
            p1: self.at(10),
            p5: self.at(50),
            p10: self.at(100),
            p50: self.at(500),
            p90: self.at(900),
            p99: self.at(990),
            p99_9: self.at(999),
        }
    }
}

/// Percentiles of a histogram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PercentileStats {
    /// Values that were seen.
    pub samples: u64,
    /// The 0.1st percentile.
    pub p0_1: u64,
    /// The 1st percentile.
    pub p1: u64,
    /// The 5th percentile.
    pub p5: u64,
    /// The 10th percentile.
    pub p10: u64,
    /// The median.
    pub p50: u64,
    /// The 90th percentile.
    pub p90: u64,
    /// The 99th percentile.
    pub p99: u64,
    /// The 99.9th percentile.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(f, "n={samples} p50<={p50} p90<={p90} p99<={p99} p99.9<={p99_9}")
    }
}

/// Histograms beside each other, as text.
#[derive(Clone, Default, Debug)]
pub struct AsciiChart(Vec<(String, Histogram)>);

impl AsciiChart {
    /// Without any.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn add(mut self, name: impl Into<String>, histogram: Histogram) -> Self {
        self.0.push((name.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, histogram)| writeln!(f, "{name}: {}", histogram.percentile_stats()))
    }
}

#[cfg(test)]
mod tests {
    use super::{AsciiChart, Histogram};

    #[test]
    fn a_percentile_is_at_least_the_value_and_less_than_twice_as_much() {
        let mut seen = Histogram::<()>::new();
        assert_eq!((seen.percentile_stats().samples, seen.percentile_stats().p99), (0, 0));
        (1..=1000).for_each(|value| seen.record(value));
        let told = seen.percentile_stats();
        assert_eq!((told.samples, told.p0_1, told.p50, told.p99_9), (1000, 1, 511, 1023));
        seen.record_n(u64::MAX, 9000);
        assert_eq!((seen.percentile_stats().p10, seen.percentile_stats().p50), (1023, u64::MAX));
        seen.record_n(0, u64::MAX);
        assert_eq!(seen.percentile_stats().samples, u64::MAX);
        assert!(AsciiChart::new().add("batches", seen).to_string().starts_with("batches: n="));
    }
}
