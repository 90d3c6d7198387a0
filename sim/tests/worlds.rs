//! The simulation itself: the same seed is the same world, and worlds by the hundred violate nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// Far from the seeds that `cargo xtask sim` begins with.
const FROM: u64 = 5_000_000;

#[test]
fn the_same_seed_twice_is_the_same_world_line_by_line() {
    for seed in FROM..FROM + 6 {
        let first = thread::spawn(move || sim::run(seed, None, true)).join().expect("the world does not panic");
        let second = thread::spawn(move || sim::run(seed, None, true)).join().expect("the world does not panic");
        let differs = first.trace.lines().zip(second.trace.lines()).find(|(one, other)| one != other);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((first.hash, first.lines), (second.hash, second.lines), "seed {seed}");
        assert!(first.lines > 500 && first.revisions > 10, "something happens in it: {} lines", first.lines);
    }
}

#[test]
fn different_seeds_are_different_worlds() {
    let hash = |seed| thread::spawn(move || sim::run(seed, None, false).hash).join().expect("the world does not panic");
    assert_ne!(hash(FROM), hash(FROM + 1));
}

#[test]
fn a_hundred_worlds_violate_nothing() {
    violate_nothing(FROM);
}

#[test]
fn a_hundred_worlds_with_a_witness_violate_nothing() {
    violate_nothing(sim::WITNESS_WORLDS);
}

#[test]
fn a_hundred_worlds_whose_primaries_go_on_without_a_quorum_violate_nothing() {
    violate_nothing(sim::FAILSAFE_WORLDS);
}

fn violate_nothing(from: u64) {
    let next = AtomicU64::new(from);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + 100 {
                        return;
                    }
                    // On a thread of its own: what it leaves behind in the thread ends with it.
                    let world = thread::spawn(move || sim::run(seed, None, false));
                    let outcome = world.join().expect("the world does not panic");
                    assert_eq!(outcome.violation, None, "seed {seed}\n{}", outcome.trace);
                }
            });
        }
    });
}
