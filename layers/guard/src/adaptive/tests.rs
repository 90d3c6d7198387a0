//! The limit against a simulated server: so many requests are worked on at a time, the rest waits there.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Adaptive, AdaptivePolicy, Sample, Samples};
use crate::breaker::WHOLE;

const POLICY: AdaptivePolicy = AdaptivePolicy {
    min: 3,
    max: 1000,
    interval: Duration::from_millis(100),
    min_rtt_interval: Duration::from_secs(60),
    min_rtt_requests: 50,
    buffer: WHOLE / 4,
};

const STEP: Duration = Duration::from_millis(1);

/// Serves `slots` at a time, each in `service`; `demand` requests want in at any moment.
struct World {
    adaptive: Adaptive,
    policy: AdaptivePolicy,
    now: Instant,
    slots: usize,
    service: Duration,
    demand: usize,
    /// Begin of each that waits at the server.
    waiting: VecDeque<Instant>,
    /// Begin and end of each that is worked on.
    working: Vec<(Instant, Instant)>,
    done: usize,
    least: usize,
}

impl World {
    fn new(policy: AdaptivePolicy, slots: usize, service: Duration, demand: usize) -> Self {
        let now = Instant::now();
        let adaptive = Adaptive::new(&policy, now);
        let (waiting, working) = (VecDeque::new(), Vec::new());
        Self { adaptive, policy, now, slots, service, demand, waiting, working, done: 0, least: usize::MAX }
    }

    fn active(&self) -> usize {
        self.waiting.len() + self.working.len()
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            let now = self.now;
            let ended: Vec<Instant> =
                self.working.iter().filter(|(_, until)| *until <= now).map(|(begun, _)| *begun).collect();
            for begun in ended {
                let sample = Sample { begun, took: now - begun, active: self.active() };
                self.adaptive.ended(&self.policy, sample, now, 500);
                self.done += 1;
            }
            self.working.retain(|(_, until)| *until > now);
            while self.active() < self.adaptive.limit().min(self.demand) {
                self.waiting.push_back(now);
            }
            while self.working.len() < self.slots
                && let Some(begun) = self.waiting.pop_front()
            {
                self.working.push((begun, now + self.service));
            }
            self.least = self.least.min(self.adaptive.limit());
        }
    }
}

#[test]
fn it_comes_to_what_the_server_bears_and_stays_there() {
    for slots in [1, 8, 40, 200] {
        let mut world = World::new(POLICY, slots, Duration::from_millis(20), usize::MAX);
        world.run(Duration::from_secs(20));
        let (mut low, mut high) = (usize::MAX, 0);
        world.done = 0;
        for _ in 0..200 {
            world.run(Duration::from_millis(100));
            (low, high) = (low.min(world.adaptive.limit()), high.max(world.adaptive.limit()));
        }
        let knee = slots.max(POLICY.min);
        assert!(low * 4 >= knee * 3 && high <= knee * 5 / 2 + 6, "{slots} slots: {low} to {high}");
        let capacity = slots * 50 * 20;
        assert!(world.done * 100 >= capacity * 95, "{slots} slots: {} of {capacity}", world.done);
        assert!(world.least >= POLICY.min);
    }
}

#[test]
fn it_falls_when_answers_take_longer_and_recovers() {
    let mut world = World::new(POLICY, 40, Duration::from_millis(20), usize::MAX);
    world.run(Duration::from_secs(20));
    let before = world.adaptive.limit();
    world.service = Duration::from_millis(200);
    world.run(Duration::from_secs(3));
    let fallen = world.adaptive.limit();
    assert!(fallen <= before / 2, "{before} to {fallen}");
    world.service = Duration::from_millis(20);
    world.run(Duration::from_secs(5));
    assert!(world.adaptive.limit() >= 40, "{}", world.adaptive.limit());
    assert!(world.least >= POLICY.min);
}

#[test]
fn what_is_slower_for_good_is_measured_anew() {
    let policy = AdaptivePolicy { min_rtt_interval: Duration::from_secs(30), ..POLICY };
    let mut world = World::new(policy, 40, Duration::from_millis(20), usize::MAX);
    world.run(Duration::from_secs(20));
    world.service = Duration::from_millis(100);
    world.run(Duration::from_secs(50));
    assert!(world.adaptive.limit() >= 40, "{}", world.adaptive.limit());
    assert!(world.adaptive.min_rtt().unwrap() >= Duration::from_millis(90));
}

#[test]
fn a_limit_that_is_not_used_does_not_grow() {
    let mut world = World::new(POLICY, 1000, Duration::from_millis(20), 10);
    world.run(Duration::from_secs(30));
    assert!((10..=40).contains(&world.adaptive.limit()), "{}", world.adaptive.limit());
}

#[test]
fn bounds_are_kept() {
    let policy = AdaptivePolicy { min: 5, max: 12, ..POLICY };
    let mut world = World::new(policy, 1000, Duration::from_millis(20), usize::MAX);
    for _ in 0..500 {
        world.run(Duration::from_millis(20));
        assert!((5..=12).contains(&world.adaptive.limit()));
    }
    assert_eq!(world.adaptive.limit(), 12);
}

#[test]
fn a_measurement_that_gets_few_requests_ends() {
    let now = Instant::now();
    let mut adaptive = Adaptive::new(&POLICY, now);
    let at = |seconds| Sample { begun: now, took: Duration::from_secs(seconds), active: 1 };
    assert_eq!(adaptive.ended(&POLICY, at(2), now + Duration::from_secs(2), 0), None);
    assert_eq!(adaptive.min_rtt(), None);
    adaptive.ended(&POLICY, at(2), now + Duration::from_secs(6), 0);
    assert!(adaptive.min_rtt().is_some());
}

#[test]
fn medians_are_known_to_six_percent() {
    for micros in [0_u64, 1, 15, 16, 17, 999, 20_000, 1_234_567, 3_600_000_000] {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), None);
        for took in [0, micros, micros, u64::MAX] {
            samples.add(Duration::from_micros(took));
        }
        let median = samples.median().unwrap().as_micros() as f64;
        assert!((median - micros as f64).abs() <= micros as f64 * 0.0625, "{micros}: {median}");
    }
}
