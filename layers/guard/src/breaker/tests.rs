//! The breaker's states and thresholds, with the tools whose meaning they have.

use super::{Breaker, BreakerPolicy, Comparator, Ending, Forced, Reached, Refused, State, WHOLE, Window};
use std::time::{Duration, Instant};

const OPEN_FOR: Duration = Duration::from_secs(5);

/// Hystrix' defaults: at least half of 20 or more in 10 s, 5 s, one probe.
fn hystrix() -> BreakerPolicy {
    BreakerPolicy {
        error_ratio: Some(WHOLE / 2),
        slow: None,
        error_count: None,
        comparator: Comparator::AtLeast,
        window: Window::Time(Duration::from_secs(10)),
        min_requests: 20,
        open_for: OPEN_FOR,
        probes: 1,
    }
}

struct Bench {
    policy: BreakerPolicy,
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(policy: BreakerPolicy) -> Self {
        let now = Instant::now();
        Self { breaker: Breaker::new(&policy, now), policy, now }
    }

    fn request(&mut self, failed: bool, took_ms: u64) {
        let (pass, _) = self.breaker.ask(&self.policy, self.now);
        let ending = Ending::Answered { failed, took: Duration::from_millis(took_ms) };
        self.breaker.ended(&self.policy, pass.expect("let through"), ending, self.now);
    }

    fn requests(&mut self, good: u32, bad: u32) -> State {
        (0..good).for_each(|_| self.request(false, 1));
        (0..bad).for_each(|_| self.request(true, 1));
        self.breaker.state()
    }

    fn is_let_through(&mut self) -> bool {
        self.breaker.ask(&self.policy, self.now).0.is_ok()
    }
}

#[test]
fn thresholds_by_the_tools_that_have_them() {
    let sentinel = BreakerPolicy { comparator: Comparator::Above, min_requests: 5, ..hystrix() };
    let all = |comparator| BreakerPolicy { error_ratio: Some(WHOLE), comparator, min_requests: 5, ..hystrix() };
    let count = |comparator| BreakerPolicy {
        error_ratio: None,
        error_count: Some(3),
        comparator,
        min_requests: 1,
        ..hystrix()
    };
    for (what, policy, good, bad, want) in [
        ("Hystrix: 19 are too few", hystrix(), 0, 19, State::Closed),
        ("Hystrix opens at half", hystrix(), 10, 10, State::Open),
        ("Hystrix stays closed below", hystrix(), 11, 9, State::Closed),
        ("Sentinel: half is not more than half", sentinel.clone(), 3, 3, State::Closed),
        ("Sentinel: more than half", sentinel.clone(), 3, 4, State::Open),
        ("Sentinel: fewer than minRequestAmount", sentinel, 0, 4, State::Closed),
        ("Sentinel: equal at 1.0", all(Comparator::Above), 0, 5, State::Open),
        ("not all", all(Comparator::AtLeast), 1, 5, State::Closed),
        ("Sentinel: exception count, strictly more", count(Comparator::Above), 9, 3, State::Closed),
        ("Sentinel: exception count", count(Comparator::Above), 9, 4, State::Open),
        ("at least so many", count(Comparator::AtLeast), 9, 3, State::Open),
    ] {
        assert_eq!(Bench::new(policy).requests(good, bad), want, "{what}");
    }
}

#[test]
fn slow_requests_open_it_and_a_slow_probe_keeps_it_open() {
    let slow = Some((WHOLE / 2, Duration::from_millis(100)));
    let policy = BreakerPolicy { error_ratio: None, slow, min_requests: 4, ..hystrix() };
    let mut bench = Bench::new(policy);
    for took in [100, 100, 101] {
        bench.request(true, took);
    }
    assert_eq!(bench.breaker.state(), State::Closed, "100 ms is not slower than 100 ms, and errors do not count");
    bench.request(false, 500);
    assert_eq!(bench.breaker.state(), State::Open);
    assert_eq!(bench.breaker.why().map(|why| (why.what, why.slow, why.requests)), Some((Reached::SlowRatio, 2, 4)));
    bench.now += OPEN_FOR;
    bench.request(false, 101);
    assert_eq!(bench.breaker.state(), State::Open);
}

#[test]
fn nothing_passes_while_it_is_open_and_one_probe_closes_it() {
    let mut bench = Bench::new(hystrix());
    assert_eq!(bench.requests(0, 20), State::Open);
    bench.now += OPEN_FOR - Duration::from_millis(1);
    assert_eq!(bench.breaker.ask(&bench.policy, bench.now), (Err(Refused(Duration::from_millis(1))), None));
    bench.now += Duration::from_millis(1);
    let (probe, turn) = bench.breaker.ask(&bench.policy, bench.now);
    assert_eq!(turn.map(|turn| (turn.from, turn.to)), Some((State::Open, State::HalfOpen)));
    assert!(!bench.is_let_through(), "one probe at a time");
    let good = Ending::Answered { failed: false, took: Duration::ZERO };
    let turn = bench.breaker.ended(&bench.policy, probe.unwrap(), good, bench.now);
    assert_eq!(turn.map(|turn| turn.to), Some(State::Closed));
    assert_eq!(bench.requests(0, 19), State::Closed, "what was counted before is forgotten");
}

#[test]
fn a_failed_probe_opens_it_again_for_the_whole_time() {
    let mut bench = Bench::new(hystrix());
    bench.requests(0, 20);
    bench.now += OPEN_FOR;
    bench.request(true, 1);
    assert_eq!(bench.breaker.state(), State::Open);
    bench.now += OPEN_FOR / 2;
    assert!(!bench.is_let_through());
    bench.now += OPEN_FOR / 2;
    assert!(bench.is_let_through());
}

/// resilience4j: `permittedNumberOfCallsInHalfOpenState` calls, judged together by the failure rate.
#[test]
fn several_probes_are_judged_together() {
    let policy = BreakerPolicy { probes: 4, window: Window::Requests(20), ..hystrix() };
    for (bad, want) in [(1, State::Closed), (2, State::Open)] {
        let mut bench = Bench::new(policy.clone());
        bench.requests(0, 20);
        bench.now += OPEN_FOR;
        (0..bad).for_each(|_| bench.request(true, 1));
        if want == State::Closed {
            (0..2).for_each(|_| bench.request(false, 1));
            assert_eq!(bench.breaker.state(), State::HalfOpen, "three of four");
            bench.request(false, 1);
        }
        assert_eq!(bench.breaker.state(), want, "{bad} of 4");
    }
}

#[test]
fn a_probe_that_tells_nothing_gives_its_place_back_and_one_that_hangs_loses_it() {
    let mut bench = Bench::new(hystrix());
    bench.requests(0, 20);
    bench.now += OPEN_FOR;
    let (probe, _) = bench.breaker.ask(&bench.policy, bench.now);
    bench.breaker.ended(&bench.policy, probe.unwrap(), Ending::Unknown, bench.now);
    assert!(bench.is_let_through(), "the client of the first one left");
    assert!(!bench.is_let_through());
    bench.now += OPEN_FOR;
    assert!(bench.is_let_through(), "the second hangs");
}

#[test]
fn what_began_before_a_change_says_nothing_after_it() {
    let mut bench = Bench::new(hystrix());
    let (old, _) = bench.breaker.ask(&bench.policy, bench.now);
    bench.requests(0, 20);
    bench.now += OPEN_FOR;
    assert!(bench.is_let_through(), "the probe, under way");
    let good = Ending::Answered { failed: false, took: Duration::ZERO };
    assert_eq!(bench.breaker.ended(&bench.policy, old.unwrap(), good, bench.now), None);
    assert_eq!(bench.breaker.state(), State::HalfOpen);
}

#[test]
fn an_operators_word_stands_until_it_is_taken_back() {
    let mut bench = Bench::new(hystrix());
    let turn = bench.breaker.force(&bench.policy, Some(Forced::Open), bench.now);
    assert_eq!(turn.map(|turn| (turn.from, turn.to)), Some((State::Closed, State::Open)));
    bench.now += OPEN_FOR * 10;
    assert!(!bench.is_let_through(), "no probe");
    bench.breaker.force(&bench.policy, Some(Forced::Closed), bench.now);
    assert_eq!(bench.requests(0, 100), State::Closed, "whatever happens");
    assert_eq!(bench.breaker.force(&bench.policy, None, bench.now), None);
    assert_eq!(bench.requests(0, 20), State::Open, "it judges again");
}
