//! How long one decision of a rate limit takes, alone and while a second thread asks the same limit: p50 and p99, asked is
//! a p99 under 1 us. `cargo run --release -p traffic --example decide`. Each figure holds one reading of the clock, whose
//! own part is the first row. Deliberately absent: the request around it (`cargo xtask bench gateway --guards`).

use std::hash::{BuildHasher as _, RandomState};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use traffic::{Behaviour, Decision, LimitPolicy, Limiter};

/// Decisions measured for each row, after a tenth of them that warm up.
const DECISIONS: usize = 2_000_000;
/// Addresses that ask where each has the rate for itself, and keys that are remembered: all have room.
const CLIENTS: usize = 5_000;
const ROOM: usize = 10_000;
/// A rate that is never reached, and one that always is.
const HIGH: u32 = 1_000_000_000;
const LOW: u32 = 1;

fn main() {
    println!("{:44} {:>8} {:>8} {:>8} {:>10}", "decision", "p50 ns", "p99 ns", "p99.9 ns", "admitted");
    row("none: the clock alone", &mut measure(|_| Decision::Admitted));
    let warm_up = Behaviour::WarmUp { period: Duration::from_secs(10), cold_factor: 3 };
    let queue = Behaviour::Queue(Duration::from_millis(500));
    let cases = [
        ("reject", Behaviour::Reject, HIGH, false),
        ("reject, refused", Behaviour::Reject, LOW, false),
        ("reject by key", Behaviour::Reject, HIGH, true),
        ("reject by key, refused", Behaviour::Reject, LOW, true),
        ("window", Behaviour::Window, HIGH, false),
        ("warmUp", warm_up, HIGH, false),
        ("queue", queue, HIGH, false),
    ];
    for (name, behaviour, qps, keyed) in cases {
        let limiter = || {
            Limiter::new(&LimitPolicy {
                qps,
                per: Duration::from_secs(1),
                burst: qps / 20,
                behaviour,
                keys: keyed.then_some(ROOM),
            })
        };
        row(name, &mut alone(&limiter(), keyed));
        row(&format!("{name}, two threads"), &mut beside_another(&limiter(), keyed));
    }
}

/// Nanoseconds of each decision, and how many let a request through.
struct Taken {
    nanos: Vec<u64>,
    admitted: usize,
}

fn alone(limiter: &Limiter, keyed: bool) -> Taken {
    measure(asking(limiter, keyed, Instant::now()))
}

/// The same while another thread asks as fast as it can.
fn beside_another(limiter: &Limiter, keyed: bool) -> Taken {
    let (over, begun) = (AtomicBool::new(false), Instant::now());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut ask = asking(limiter, keyed, begun);
            while !over.load(Ordering::Relaxed) {
                black_box(ask(Instant::now()));
            }
        });
        let taken = measure(asking(limiter, keyed, begun));
        over.store(true, Ordering::Relaxed);
        taken
    })
}

/// Asks as the gateway does: the key is hashed with a seed, if there is one, and time runs from the limit's begin.
fn asking(limiter: &Limiter, keyed: bool, begun: Instant) -> impl FnMut(Instant) -> Decision {
    let addresses: Vec<String> = (0..CLIENTS).map(|number| format!("10.0.{}.{}", number / 256, number % 256)).collect();
    let (hasher, mut turn) = (RandomState::new(), 0);
    move |at| {
        turn = (turn + 7) % CLIENTS;
        let hash = if keyed { hasher.hash_one(&addresses[turn]) } else { 0 };
        limiter.ask(hash, at.saturating_duration_since(begun) + Duration::from_secs(1))
    }
}

fn measure(mut ask: impl FnMut(Instant) -> Decision) -> Taken {
    for _ in 0..DECISIONS / 10 {
        black_box(ask(Instant::now()));
    }
    let (mut nanos, mut admitted) = (Vec::with_capacity(DECISIONS), 0);
    for _ in 0..DECISIONS {
        let begin = Instant::now();
        let decision = black_box(ask(begin));
        let took = begin.elapsed();
        nanos.push(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        admitted += usize::from(!matches!(decision, Decision::Refused(_)));
    }
    Taken { nanos, admitted }
}

fn row(name: &str, taken: &mut Taken) {
    taken.nanos.sort_unstable();
    let at = |thousandths: usize| taken.nanos[(taken.nanos.len() - 1) * thousandths / 1000];
    println!("{name:44} {:8} {:8} {:8} {:10}", at(500), at(990), at(999), taken.admitted);
}
