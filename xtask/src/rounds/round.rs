//! One round: a cluster, clients, faults, the end of the faults, the last reads, and the judgement of all that was seen.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::chance::Chance;
use super::client::{Client, Field, Seen};
use super::faults::{Faults, HEALING};
use super::history::{self, Did, Operation};
use super::machine::{Machine, Making};
use super::network::Network;
use super::plan::{self, Fault, Plan};
use super::{linear, order};

/// What a round is made of.
#[derive(Clone)]
pub struct Setting {
    pub seed: u64,
    pub seconds: u64,
    pub nodes: usize,
    pub binary: PathBuf,
    /// Folders of rounds are made in here.
    pub place: PathBuf,
    pub possible: Vec<Fault>,
    pub clock: Option<PathBuf>,
    /// The folder stays even if all is well.
    pub keep: bool,
}

/// What came of a round.
#[derive(Default)]
pub struct Outcome {
    pub seed: u64,
    pub writes: u64,
    pub reads: u64,
    pub conflicts: u64,
    pub unknown: u64,
    pub refused: u64,
    pub unreachable: u64,
    pub faults: BTreeMap<Fault, u64>,
    pub skipped: u64,
    /// Longest time without an answer while a majority was whole and connected.
    pub longest_gap: Duration,
    /// What must not be; empty if all is well.
    pub violations: Vec<String>,
    /// Where everything of it is, if something is wrong.
    pub folder: PathBuf,
}

impl Outcome {
    /// Everything that was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.writes + self.reads + self.conflicts
    }
}

/// Runs a round. An error is trouble with the machinery, not with the product.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let folder = setting.place.join(format!("seed-{}", setting.seed));
    // What an earlier run left under this seed.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let plan = plan::plan(setting.seed, setting.seconds, setting.nodes, &setting.possible);
    let (mut faults, field) = begin(setting, &plan, &folder)?;
    let clients: Vec<_> = clients(setting.seed)
        .map(|number| {
            let chance = Chance::new(setting.seed, 100 + number as u64);
            let client = Client::new(number, Arc::clone(&field), chance);
            std::thread::spawn(move || client.run())
        })
        .collect();
    let ran = faults.run(&plan, setting.seconds);
    field.stop.store(true, Ordering::Relaxed);
    let ended = field.now();
    let mut seen = Seen::default();
    for client in clients {
        let one = client.join().ok().context("a client panicked")?;
        seen.history.extend(one.history);
        seen.unreachable += one.unreachable;
        seen.odd.extend(one.odd);
    }
    ran?;
    let mut violations = Vec::new();
    violations.extend(faults.heal()?);
    let (last, trouble) = if violations.is_empty() { last_reads(&faults, &field) } else { Default::default() };
    violations.extend(trouble);
    violations.extend(seen.odd.iter().take(5).cloned());
    violations.extend(judge(&seen.history, &last, field.keys));
    violations.extend(faults.broken().err().map(|error| error.to_string()));
    let mut outcome = Outcome { seed: setting.seed, violations, folder: folder.clone(), ..Outcome::default() };
    count(&mut outcome, &seen, &mut faults, ended);
    if outcome.violations.is_empty() && !setting.keep {
        drop(faults);
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    } else {
        seen.history.extend(last);
        seen.history.sort_by_key(|operation| operation.called);
        fs::write(folder.join("history.jsonl"), history::lines(&seen.history))?;
        fs::write(folder.join("faults"), faults.told.join("\n") + "\n")?;
        fs::write(folder.join("violations"), outcome.violations.join("\n") + "\n")?;
    }
    Ok(outcome)
}

fn clients(seed: u64) -> std::ops::Range<usize> {
    0..usize::try_from(Chance::new(seed, 2).between(8, 32)).expect("it is small")
}

/// A cluster that serves, and what clients share.
fn begin(setting: &Setting, plan: &Plan, folder: &Path) -> Result<(Faults, Arc<Field>)> {
    let names: Vec<String> = (1..=setting.nodes).map(|place| format!("n{place}")).collect();
    let mut init = Command::new(&setting.binary);
    init.args(["cluster", "init", "--nodes", &names.join(","), "--dir"]).arg(folder.join("pki"));
    let made = init.output().with_context(|| format!("cannot run {init:?}"))?;
    ensure!(made.status.success(), "{init:?}: {}", String::from_utf8_lossy(&made.stderr));
    let network = Network::make(&format!("{}", setting.seed % 1_000_000), setting.nodes)?;
    let small_disk = plan.kinds.contains(&Fault::FullDisk);
    let mut machines = Vec::new();
    for (place, namespace) in network.open()?.into_iter().enumerate() {
        let clock = setting.clock.as_deref().filter(|_| plan.clock == Some(place));
        let making = Making { binary: &setting.binary, folder, nodes: setting.nodes, small_disk, clock };
        machines.push(Machine::make(place, namespace, &making)?);
    }
    machines.iter_mut().try_for_each(Machine::start)?;
    let mut chance = Chance::new(setting.seed, 3);
    let field = Arc::new(Field {
        began: Instant::now(),
        namespaces: network.open()?,
        keys: usize::try_from(chance.between(5, 20))?,
        // As many calls a second whatever the number of clients.
        think_ms: clients(setting.seed).len() as u64 * 2,
        // On a disk that is to be full, the log must need more of it; and now and then snapshots are to be taken and sent.
        value_bytes: if small_disk || chance.percent(25) { 12 * 1024 } else { 1 },
        stop: AtomicBool::new(false),
        next_value: AtomicU64::new(1),
    });
    let mut faults = Faults::new(machines, network, field.began);
    if let Some(trouble) = faults.heal()? {
        anyhow::bail!("the cluster does not even begin: {trouble}; see {}", folder.display());
    }
    // Nothing before now counts as a gap.
    faults.majority = vec![(field.now(), true)];
    Ok((faults, field))
}

/// Reads every key through every node, and compares what the nodes hold.
fn last_reads(faults: &Faults, field: &Arc<Field>) -> (Vec<Operation>, Option<String>) {
    let mut history = Vec::new();
    let mut contents: Vec<Value> = Vec::new();
    for machine in &faults.machines {
        let mut reader = Client::new(1_000 + machine.place, Arc::clone(field), Chance::new(0, 0));
        let until = Instant::now() + HEALING;
        for key in 0..field.keys {
            while !reader.read(machine.place, key) {
                if Instant::now() > until {
                    return (history, Some(format!("n{} answers no reads at the end", machine.place + 1)));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        history.extend(reader.seen.history);
        let Some(held) = machine.get("/api/v1/kv?prefix=true&stale=true", Duration::from_secs(10)) else {
            return (history, Some(format!("n{} does not list its keys at the end", machine.place + 1)));
        };
        contents.push(held["kvs"].clone());
    }
    for (place, held) in contents.iter().enumerate() {
        if *held != contents[0] {
            return (
                history,
                Some(format!("n1 and n{} hold different things:\n  {}\n  {held}", place + 1, contents[0])),
            );
        }
    }
    (history, None)
}

/// All that is wrong with what was seen.
fn judge(history: &[Operation], last: &[Operation], keys: usize) -> Vec<String> {
    let all = [history, last].concat();
    let checks = [
        order::nothing_lost(history, last),
        order::refused_is_refused(&all),
        order::never_backwards(&all),
        order::check(&all),
    ];
    let of_key = |key: usize| {
        let one: Vec<Operation> = all.iter().filter(|operation| operation.key == key).cloned().collect();
        linear::check(&one).map_err(|why| format!("key {key} is not linearizable: {why}"))
    };
    checks.into_iter().chain((0..keys).map(of_key)).filter_map(Result::err).collect()
}

fn count(outcome: &mut Outcome, seen: &Seen, faults: &mut Faults, ended: u64) {
    let mut answers = Vec::new();
    for operation in &seen.history {
        let counted = match operation.did {
            Did::Read(_) => &mut outcome.reads,
            Did::Wrote { .. } => &mut outcome.writes,
            Did::Conflicted { .. } => &mut outcome.conflicts,
            Did::Unknown { .. } => &mut outcome.unknown,
            Did::Refused { .. } => &mut outcome.refused,
        };
        *counted += 1;
        if matches!(operation.did, Did::Wrote { .. }) {
            answers.push(operation.returned);
        }
    }
    answers.sort_unstable();
    let (from, longest) = longest_gap(&answers, &faults.majority, ended);
    outcome.longest_gap = Duration::from_micros(longest);
    faults.told.push(format!("{from:>9} us  the longest time without a write begins: {longest} us"));
    faults.told.sort();
    (outcome.unreachable, outcome.skipped) = (seen.unreachable, faults.skipped);
    outcome.faults.clone_from(&faults.done);
}

/// The longest time without one of `answers` within the times of a majority, until `ended`: when it begins and
/// how long it is. Microseconds.
fn longest_gap(answers: &[u64], majority: &[(u64, bool)], ended: u64) -> (u64, u64) {
    let mut longest = (0, 0);
    for (place, (from, whole)) in majority.iter().enumerate() {
        let to = majority.get(place + 1).map_or(ended, |(to, _)| *to).min(ended);
        if !whole || *from >= to {
            continue;
        }
        let mut last = *from;
        let within = answers.iter().filter(|at| (*from..to).contains(*at));
        for at in within.chain([&to]) {
            if at - last > longest.1 {
                longest = (last, at - last);
            }
            last = *at;
        }
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::longest_gap;

    #[test]
    fn a_gap_counts_only_while_there_is_a_majority() {
        let majority = [(0, true), (100, false), (500, true)];
        assert_eq!(longest_gap(&[10, 90, 510, 600], &majority, 610), (510, 90));
        assert_eq!(longest_gap(&[10, 90], &majority, 610), (500, 110));
        assert_eq!(longest_gap(&[], &[(0, false)], 610), (0, 0));
    }
}
