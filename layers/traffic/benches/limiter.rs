//! What one decision of a rate limit costs: `cargo bench -p traffic`. Time is an argument, so that no clock is read in it.
//! Deliberately absent: its p99, also beside another thread (`examples/decide.rs`), and the request around it
//! (`cargo xtask bench gateway --guards`).

use std::hash::{BuildHasher as _, RandomState};
use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use traffic::{Behaviour, LimitPolicy, Limiter};

/// Clients that have the rate each for itself, and keys that are remembered: all have room.
const CLIENTS: usize = 5_000;
const ROOM: usize = 10_000;
/// From one decision to the next.
const STEP: Duration = Duration::from_micros(1);
/// A rate that is never reached, and one that always is.
const HIGH: u32 = 1_000_000_000;
const LOW: u32 = 1;

fn main() {
    let (warm_up, measured) = (Duration::from_secs(1), Duration::from_secs(3));
    let base = Criterion::default().warm_up_time(warm_up).measurement_time(measured);
    let mut criterion = base.configure_from_args();
    let warms_up = Behaviour::WarmUp { period: Duration::from_secs(10), cold_factor: 3 };
    for (name, behaviour, qps, keyed) in [
        ("reject", Behaviour::Reject, HIGH, false),
        ("reject, refused", Behaviour::Reject, LOW, false),
        ("window", Behaviour::Window, HIGH, false),
        ("window, refused", Behaviour::Window, LOW, false),
        ("warmUp", warms_up, HIGH, false),
        ("queue", Behaviour::Queue(Duration::from_millis(500)), HIGH, false),
        ("bucket by key", Behaviour::Bucket, HIGH, true),
        ("reject by key", Behaviour::Reject, HIGH, true),
        ("reject by key, refused", Behaviour::Reject, LOW, true),
    ] {
        let keys = keyed.then_some(ROOM);
        let policy = LimitPolicy { qps, per: Duration::from_secs(1), burst: qps / 20, behaviour, keys };
        let limiter = Limiter::new(&policy);
        let (hasher, mut turn, mut now) = (RandomState::new(), 0, Duration::from_secs(1));
        let clients: Vec<String> =
            (0..CLIENTS).map(|number| format!("10.0.{}.{}", number / 256, number % 256)).collect();
        criterion.bench_function(&format!("limiter: {name}"), |bench| {
            bench.iter(|| {
                (turn, now) = ((turn + 7) % CLIENTS, now + STEP);
                // The key is hashed with a seed, as in the gateway.
                let hash = if keyed { hasher.hash_one(&clients[turn]) } else { 0 };
                black_box(limiter.ask(hash, now))
            });
        });
    }
    criterion.final_summary();
}
