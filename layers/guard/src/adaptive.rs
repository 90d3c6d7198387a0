//! How many requests a service bears at once, found out while it serves: as long as its answers take little longer than
//! with few requests at a time, it gets more at once, and fewer when they take longer.
//! Envoy's gradient controller (`adaptive_concurrency`): the shortest time is measured now and then under the least
//! concurrency; the limit follows `limit * gradient + sqrt(limit * gradient)`, the gradient being that time and a buffer by
//! the present median, between a half and two. Different from Envoy: a limit that is not used does not grow, a measurement
//! that gets too few requests ends all the same, and answers that failed at once are no measure.
//! Beside the bulkhead in the request walk, whose places it sets. Deliberately absent: clocks, locks, randomness.

use std::time::{Duration, Instant};

use crate::breaker::{Millionths, WHOLE};

/// Bounds of the limit, and how it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdaptivePolicy {
    /// Never fewer at once; zero counts as one. The shortest time is measured with so many.
    pub min: usize,
    /// Never more.
    pub max: usize,
    /// How often the limit is worked out.
    pub interval: Duration,
    /// How often the shortest time is measured; up to 15 % later each time, so that not all gateways do at once.
    pub min_rtt_interval: Duration,
    /// Of how many requests.
    pub min_rtt_requests: u32,
    /// By how much answers may take longer before the limit falls.
    pub buffer: Millionths,
}

/// So many intervals in a row at the least limit mean that the shortest time is not true any more.
const STUCK: u32 = 5;

/// A measurement of the shortest time takes no longer, if anything was measured.
const LONGEST_MEASUREMENT: Duration = Duration::from_secs(5);

/// Later by so much of the interval at most.
const JITTER_PERCENT: u32 = 15;

/// One request that has been answered, or waited for in vain.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it got its place.
    pub begun: Instant,
    /// How long it took from then.
    pub took: Duration,
    /// How many had a place when it ended, itself included.
    pub active: usize,
}

/// One service's limit.
#[derive(Debug)]
pub struct Adaptive {
    limit: usize,
    min_rtt: Option<Duration>,
    phase: Phase,
    since: Instant,
    measured_next: Instant,
    samples: Samples,
    /// The most that had a place in this interval.
    busiest: usize,
    /// Intervals in a row at the least limit.
    stuck: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The shortest time is measured; then this is the limit again.
    Measuring {
        limit: usize,
    },
    Following,
}

impl Adaptive {
    /// It begins with a measurement.
    pub fn new(policy: &AdaptivePolicy, now: Instant) -> Self {
        let limit = policy.min.max(1);
        Self {
            limit,
            min_rtt: None,
            phase: Phase::Measuring { limit },
            since: now,
            measured_next: now,
            samples: Samples::default(),
            busiest: 0,
            stuck: 0,
        }
    }

    /// How many at once.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The shortest time, once it has been measured.
    pub fn min_rtt(&self) -> Option<Duration> {
        self.min_rtt
    }

    /// A request has ended. The limit, if that has changed it. `random` spreads measurements.
    pub fn ended(&mut self, policy: &AdaptivePolicy, sample: Sample, now: Instant, random: u64) -> Option<usize> {
        if sample.begun < self.since && matches!(self.phase, Phase::Measuring { .. }) {
            return None; // It had more beside it than is measured with.
        }
        self.samples.add(sample.took);
        self.busiest = self.busiest.max(sample.active);
        let before = self.limit;
        let age = now.saturating_duration_since(self.since);
        match self.phase {
            Phase::Measuring { limit } => {
                if self.samples.count >= policy.min_rtt_requests.max(1) || age >= LONGEST_MEASUREMENT {
                    self.min_rtt = self.samples.median();
                    self.limit = limit;
                    let jitter = policy.min_rtt_interval * JITTER_PERCENT / 100;
                    let part = u32::try_from(random % 1_000).unwrap_or(0);
                    self.measured_next = now + policy.min_rtt_interval + jitter * part / 1_000;
                    self.enter(Phase::Following, now);
                }
            }
            Phase::Following if age >= policy.interval => {
                self.follow(policy);
                if self.stuck >= STUCK || now >= self.measured_next {
                    let limit = self.limit;
                    self.limit = policy.min.max(1);
                    self.enter(Phase::Measuring { limit }, now);
                    self.stuck = 0;
                } else {
                    self.enter(Phase::Following, now);
                }
            }
            Phase::Following => {}
        }
        (self.limit != before).then_some(self.limit)
    }

    /// Works the limit out from what the last interval took.
    fn follow(&mut self, policy: &AdaptivePolicy) {
        let (Some(min_rtt), Some(median)) = (self.min_rtt, self.samples.median()) else { return };
        let borne = min_rtt.as_secs_f64() * (1.0 + f64::from(policy.buffer) / f64::from(WHOLE));
        let gradient = (borne / median.as_secs_f64().max(1e-6)).clamp(0.5, 2.0);
        let scaled = self.limit as f64 * gradient;
        let (least, most) = (policy.min.max(1), policy.max.max(policy.min.max(1)));
        let next = ((scaled + scaled.sqrt()) as usize).clamp(least, most);
        // Nothing is known of a concurrency that was not there.
        let is_used = self.busiest * 2 >= self.limit;
        self.stuck = if self.limit == least && next == least { self.stuck + 1 } else { 0 };
        if next < self.limit || is_used {
            self.limit = next;
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        (self.phase, self.since, self.busiest) = (phase, now, 0);
        self.samples.clear();
    }
}

/// Parts into which each doubling of a time is cut: a median is known to 6 %.
const PARTS: usize = 16;

/// Doublings beyond the first parts: up to 19 hours in microseconds.
const DOUBLINGS: usize = 32;

/// Times, counted by their size.
#[derive(Debug)]
struct Samples {
    counts: Box<[u32; PARTS * (DOUBLINGS + 1)]>,
    count: u32,
}

impl Default for Samples {
    fn default() -> Self {
        Self { counts: Box::new([0; PARTS * (DOUBLINGS + 1)]), count: 0 }
    }
}

impl Samples {
    fn add(&mut self, took: Duration) {
        let place = Self::place(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        self.counts[place] = self.counts[place].saturating_add(1);
        self.count = self.count.saturating_add(1);
    }

    fn clear(&mut self) {
        self.counts.fill(0);
        self.count = 0;
    }

    fn median(&self) -> Option<Duration> {
        let mut left = u64::from(self.count).div_ceil(2);
        for (place, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            left = left.saturating_sub(u64::from(*count));
            if left == 0 {
                return Some(Duration::from_micros(Self::middle(place)));
            }
        }
        None
    }

    fn place(micros: u64) -> usize {
        let parts = PARTS as u64;
        if micros < parts {
            return micros as usize;
        }
        let doubling = micros.ilog2() - parts.ilog2();
        let part = (micros >> doubling) - parts;
        (PARTS * (doubling as usize + 1) + part as usize).min(PARTS * (DOUBLINGS + 1) - 1)
    }

    fn middle(place: usize) -> u64 {
        let Some(doubling) = (place / PARTS).checked_sub(1) else { return place as u64 };
        let width = 1_u64 << doubling;
        (PARTS + place % PARTS) as u64 * width + width / 2
    }
}

#[cfg(test)]
mod tests;
