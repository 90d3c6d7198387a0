//! What a circuit breaker costs a request: asked before it and told how it ended, or refused while it is open:
//! `cargo bench -p guard`. Time is an argument, so that no clock is read in it. Deliberately absent: the lock that a
//! gateway's workers share it by, and the request around it (`cargo xtask bench gateway --guards`).

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use guard::breaker::{Comparator, Ending, Forced, Window};
use guard::{Breaker, BreakerPolicy};

/// From one request to the next.
const STEP: Duration = Duration::from_micros(1);

/// Hystrix' defaults, or resilience4j's.
fn policy(window: Window) -> BreakerPolicy {
    BreakerPolicy {
        error_ratio: Some(500_000),
        slow: Some((900_000, Duration::from_secs(60))),
        error_count: None,
        comparator: Comparator::AtLeast,
        window,
        min_requests: 20,
        open_for: Duration::from_secs(5),
        probes: 1,
    }
}

fn main() {
    let (warm_up, measured) = (Duration::from_secs(1), Duration::from_secs(3));
    let base = Criterion::default().warm_up_time(warm_up).measurement_time(measured);
    let mut criterion = base.configure_from_args();
    let windows =
        [("a window of 10 s", Window::Time(Duration::from_secs(10))), ("the last 100", Window::Requests(100))];
    for (name, window) in windows {
        let policy = policy(window);
        let mut now = Instant::now();
        let mut breaker = Breaker::new(&policy, now);
        let mut request = 0_u32;
        criterion.bench_function(&format!("breaker: closed, {name}"), |bench| {
            bench.iter(|| {
                now += STEP;
                request = request.wrapping_add(1);
                let (asked, _) = breaker.ask(&policy, now);
                // One of four fails, so that it counts and stays closed.
                let ending = Ending::Answered { failed: request.is_multiple_of(4), took: STEP };
                asked.map(|pass| black_box(breaker.ended(&policy, pass, ending, now)))
            });
        });
        breaker.force(&policy, Some(Forced::Open), now);
        criterion.bench_function(&format!("breaker: open, {name}"), |bench| {
            bench.iter(|| {
                now += STEP;
                black_box(breaker.ask(&policy, now))
            });
        });
    }
    criterion.final_summary();
}
