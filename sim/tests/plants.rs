//! Bugs on purpose: each is found, by the invariant it offends, within so many worlds. A simulation that finds nothing
//! says something only if it would find these.
#![cfg(feature = "planted")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sim::Plant;

/// The bug, a seed from which it is found within [`WORLDS`], and who finds it.
const PLANTS: &[(&str, u64, &[&str])] = &[
    ("ack-before-sync", 0, &["stored_opens_again"]),
    ("vote-before-sync", 0, &["stored_opens_again"]),
    ("skipped-directory-sync", 0, &["stored_opens_again"]),
    ("promote-before-fenced", 0, &["one_primary_at_a_time"]),
    ("promote-without-quorum", 0, &["one_primary_at_a_time", "epochs_only_grow"]),
    ("deadline-ignored", 0, &["one_primary_at_a_time"]),
    ("deadline-from-answer", 0, &["one_primary_at_a_time"]),
    ("promoted-too-late", 430, &["one_primary_at_a_time", "epochs_only_grow"]),
    ("vouched-unread", 3580, &["one_primary_at_a_time"]),
    ("mid-log-truncation", 300, &["acked_writes_survive", "linearizable_reads", "replicas_agree"]),
    ("tail-not-written-again", 60, &["stored_opens_again"]),
    ("retried-flush", 0, &["stored_opens_again"]),
    ("truncation-not-written", 0, &["stored_opens_again"]),
    ("removals-in-any-order", 30, &["stored_opens_again"]),
    ("snapshot-before-sync", 0, &["stored_opens_again"]),
    ("snapshot-forgets-an-entry", 0, &["writes_happen_once", "replicas_agree"]),
    ("clock-inside-apply", 0, &["writes_happen_once", "replicas_agree"]),
    ("expiry-untold", 0, &["watches_miss_nothing"]),
    ("stale-read", 0, &["linearizable_reads"]),
    ("keep-alive-without-quorum", 900, &["leases_end_by_commit"]),
    ("stale-lease", 0, &["leases_end_by_commit", "one_primary_at_a_time"]),
    ("lead-not-looked-at", 3390, &["leases_end_by_commit"]),
    ("write-made-twice", 0, &["writes_happen_once"]),
    (
        "witness-snapshot",
        sim::WITNESS_WORLDS,
        &["acked_writes_survive", "linearizable_reads", "replicas_agree", "terms_only_grow", "writes_happen_once"],
    ),
    ("confirmed-by-some", sim::FAILSAFE_WORLDS + 100, &["one_primary_at_a_time"]),
    ("lost-answer-taken-for-refusal", 0, &["writes_happen_once"]),
];

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
