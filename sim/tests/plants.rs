//! Bugs on purpose: each is found, by the invariant it offends, within so many worlds. A simulation that finds nothing
//! says something only if it would find these.
#![cfg(feature = "planted")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sim::Plant;

/// The bug, a seed from which it is found within [`WORLDS`], and who finds it.
const PLANTS: &[(&str, u64, &[&str])] = &[];

/// Worlds until it must have been found.
const WORLDS: u64 = 40;

#[test]
fn every_planted_bug_is_caught_by_name() {
    let named: Vec<&str> = PLANTS.iter().map(|(name, ..)| *name).collect();
    let all: Vec<&str> = Plant::ALL.iter().map(|plant| plant.name()).collect();
    assert_eq!(named, all, "each has its line here");
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((name, from, by)) = PLANTS.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(problem) = missed_by(name, *from, by) {
                        missed.lock().expect("nobody panics holding it").push(problem);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("nobody panics holding it");
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

fn missed_by(name: &str, from: u64, by: &[&str]) -> Option<String> {
    let plant = Plant::named(name).expect("it has just been compared");
    for seed in from..from + WORLDS {
        let world = thread::spawn(move || sim::run(seed, Some(plant), false));
        let outcome = world.join().expect("the world does not panic");
        if let Some(violation) = outcome.violation {
            let known = by.contains(&violation.invariant);
            return (!known).then(|| format!("{name}: found by {}: {}", violation.invariant, violation.message));
        }
    }
    Some(format!("{name}: not found in seeds {from} to {}", from + WORLDS - 1))
}
