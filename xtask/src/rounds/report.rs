//! What rounds say: a line each, a table of all, and the section of `bench/ROUNDS.md`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::plan::Fault;
use super::round::Outcome;
use crate::bench::record as write_section;
use crate::root;

/// The line of a round; what is wrong below it, with the command that repeats it.
pub fn tell(outcome: &Outcome, seconds: u64, nodes: usize) {
    let faults: u64 = outcome.faults.values().sum();
    let result = if outcome.violations.is_empty() { "holds" } else { "WRONG" };
    println!(
        "seed {}: {result}; {} acknowledged ({} writes, {} entries, {} added in {} terms), {} unknown, {} refused, {} \
         unreachable, {faults} faults of {} kinds, longest without a write {} ms, without an amount added {} ms",
        outcome.seed,
        outcome.acknowledged(),
        outcome.writes,
        outcome.entries[0],
        outcome.entries[1],
        outcome.terms,
        outcome.unknown,
        outcome.refused,
        outcome.unreachable,
        outcome.faults.len(),
        outcome.longest_gap.as_millis(),
        outcome.longest_without.as_millis(),
    );
    for violation in &outcome.violations {
        println!("  {}", violation.replace('\n', "\n  "));
    }
    if !outcome.violations.is_empty() {
        let nodes = if nodes == 3 { String::new() } else { format!(" --nodes {nodes}") };
        println!(
            "  everything of it: {}\n  again: cargo xtask rounds --seed {} --seconds {seconds}{nodes}",
            outcome.folder.display(),
            outcome.seed
        );
    }
}

/// Totals of all rounds.
pub fn table(outcomes: &[Outcome], words: &str, took: Duration, version: &str) -> String {
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).sum::<u64>();
    let wrong = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).count();
    let gaps = |of: fn(&Outcome) -> Duration| {
        let mut gaps: Vec<u128> = outcomes.iter().map(|outcome| of(outcome).as_millis()).collect();
        gaps.sort_unstable();
        let (median, most) = (gaps.get(gaps.len() / 2).copied().unwrap_or(0), gaps.last().copied().unwrap_or(0));
        format!("median of the rounds {median} ms, most {most} ms")
    };
    let least = outcomes.iter().map(Outcome::acknowledged).min().unwrap_or(0);
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    for (fault, count) in outcomes.iter().flat_map(|outcome| &outcome.faults) {
        *faults.entry(*fault).or_default() += count;
    }
    let faults: Vec<String> = faults.iter().map(|(fault, count)| format!("{} {count}", fault.words())).collect();
    format!(
        "`{words}`, {version}, {} s:\n\n| what | figure |\n| --- | --- |\n\
         | rounds | {} |\n| rounds with a violation | {wrong} |\n| operations acknowledged | {}, the fewest in a round \
         {least}; of them {} writes of keys, {} entries of a stream, {} amounts added by {} primaries |\n| comparisons \
         that failed, as they must | {} |\n| writes of keys whose end is unknown | {} |\n| writes of keys refused for \
         certain | {} |\n| attempts at entries and amounts that were repeated | {} |\n| longest time without an \
         acknowledged write of a key while a majority was whole and connected | {} |\n| the same without an amount added; \
         this includes kills of the primary and of its node | {} |\n| faults | {} |\n",
        took.as_secs(),
        outcomes.len(),
        sum(Outcome::acknowledged),
        sum(|one| one.writes),
        sum(|one| one.entries[0]),
        sum(|one| one.entries[1]),
        sum(|one| one.terms),
        sum(|one| one.conflicts),
        sum(|one| one.unknown),
        sum(|one| one.refused),
        sum(|one| one.again),
        gaps(|one| one.longest_gap),
        gaps(|one| one.longest_without),
        faults.join(", "),
    )
}

/// Writes the table to `bench/ROUNDS.md`, in place of that of the same command.
pub fn record(outcomes: &[Outcome], words: &str, took: Duration, version: &str) -> Result<()> {
    let text = table(outcomes, words, took, version);
    write_section(&root().join("bench/ROUNDS.md"), "rounds", words, &text)
}
