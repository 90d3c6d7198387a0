//! One round: a cluster with a service, clients, faults, the end of the faults, the last reads, and the judgement of all
//! that was seen.

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
use super::entries::{self, Log};
use super::faults::{Faults, HEALING};
use super::history::{self, Did, Operation};
use super::machine::{Machine, Making, Windows};
use super::network::Network;
use super::plan::{self, Fault, Plan};
use super::scribe::{self, Into, Saw, Scribe};
use super::{linear, order};

/// Clients that append to a stream, and clients of the service; each.
const SCRIBES: usize = 3;
/// Longest answer of a last look at a stream.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// What a round is made of.
#[derive(Clone)]
pub struct Setting {
    pub seed: u64,
    pub seconds: u64,
    pub nodes: usize,
    pub binary: PathBuf,
    /// What all nodes begin as, if not as that.
    pub older: Option<PathBuf>,
    /// Folders of rounds are made in here.
    pub place: PathBuf,
    pub possible: Vec<Fault>,
    pub clock: Option<PathBuf>,
    /// The last node is this one.
    pub windows: Option<Windows>,
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
    /// Entries that were acknowledged of the stream `log`, and of the service.
    pub entries: [u64; 2],
    /// Looks at them that were answered.
    pub looks: u64,
    /// Attempts at entries that had to be repeated.
    pub again: u64,
    /// Terms of primaries that wrote.
    pub terms: u64,
    pub faults: BTreeMap<Fault, u64>,
    pub skipped: u64,
    /// Longest time without an answer while a majority was whole and connected.
    pub longest_gap: Duration,
    /// The same for what the service was asked to add.
    pub longest_without: Duration,
    /// What must not be; empty if all is well.
    pub violations: Vec<String>,
    /// Where everything of it is, if something is wrong.
    pub folder: PathBuf,
}

impl Outcome {
    /// Everything that was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.writes + self.reads + self.conflicts + self.entries.iter().sum::<u64>() + self.looks
    }
}

/// Runs a round. An error is trouble with the machinery, not with the product.
pub fn run(setting: &Setting) -> Result<Outcome> {
    let folder = setting.place.join(format!("seed-{}", setting.seed));
    // What an earlier run left under this seed.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut plan = plan::plan(setting.seed, setting.seconds, setting.nodes, &setting.possible);
    if setting.older.is_some() {
        plan = plan.with_upgrades(setting.seed, setting.seconds, setting.nodes);
    }
    let (mut faults, field) = begin(setting, &plan, &folder)?;
    let clients: Vec<_> = clients(setting.seed)
        .map(|number| {
            let chance = Chance::new(setting.seed, 100 + number as u64);
            let client = Client::new(number, Arc::clone(&field), chance);
            std::thread::spawn(move || client.run())
        })
        .collect();
    let scribes = scribes(setting.seed, &field);
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
    let mut saw = [Saw::default(), Saw::default()];
    for (into, scribe) in scribes {
        let one = scribe.join().ok().context("a client panicked")?;
        let all = &mut saw[usize::from(into == Into::Ledger)];
        all.log.join(one.log);
        all.again += one.again;
        all.odd.extend(one.odd);
    }
    ran?;
    let mut violations = Vec::new();
    violations.extend(faults.heal()?);
    let (last, trouble) = if violations.is_empty() { last_reads(&faults, &field) } else { Default::default() };
    violations.extend(trouble);
    if violations.is_empty() {
        violations.extend(judge_logs(&faults, &saw));
    }
    violations.extend(seen.odd.iter().chain(&saw[0].odd).chain(&saw[1].odd).take(5).cloned());
    violations.extend(judge(&seen.history, &last, field.keys));
    violations.extend(faults.broken().err().map(|error| error.to_string()));
    let mut outcome = Outcome { seed: setting.seed, violations, folder: folder.clone(), ..Outcome::default() };
    count(&mut outcome, &seen, &saw, &mut faults, ended);
    if outcome.violations.is_empty() && !setting.keep {
        drop(faults);
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    } else {
        seen.history.extend(last);
        seen.history.sort_by_key(|operation| operation.called);
        fs::write(folder.join("history.jsonl"), history::lines(&seen.history))?;
        for (name, saw) in ["log", "ledger"].iter().zip(&saw) {
            fs::write(folder.join(format!("{name}.jsonl")), saw.log.lines())?;
        }
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
    let binary = setting.older.as_ref().unwrap_or(&setting.binary);
    let names: Vec<String> = (1..=setting.nodes).map(|place| format!("n{place}")).collect();
    let mut init = Command::new(binary);
    init.args(["cluster", "init", "--nodes", &names.join(","), "--dir"]).arg(folder.join("pki"));
    let made = init.output().with_context(|| format!("cannot run {init:?}"))?;
    ensure!(made.status.success(), "{init:?}: {}", String::from_utf8_lossy(&made.stderr));
    setting.windows.as_ref().map_or(Ok(()), Windows::prepare)?;
    let network = Network::make(&format!("{}", setting.seed % 1_000_000), setting.nodes)?;
    let small_disk = plan.kinds.contains(&Fault::FullDisk);
    let mut machines = Vec::new();
    for (place, namespace) in network.open()?.into_iter().enumerate() {
        let clock = setting.clock.as_deref().filter(|_| plan.clock == Some(place));
        // The last one, if any.
        let windows = setting.windows.as_ref().filter(|_| place + 1 == setting.nodes);
        let making = Making { binary, folder, nodes: setting.nodes, small_disk, clock, windows };
        machines.push(Machine::make(place, namespace, &making)?);
    }
    machines.iter_mut().try_for_each(Machine::start)?;
    let mut chance = Chance::new(setting.seed, 3);
    let field = Arc::new(Field {
        began: Instant::now(),
        namespaces: network.open()?,
        tokens: machines.iter().map(Machine::token).collect(),
        keys: usize::try_from(chance.between(5, 20))?,
        // As many calls a second whatever the number of clients.
        think_ms: clients(setting.seed).len() as u64 * 2,
        // On a disk that is to be full, the log must need more of it; and now and then snapshots are to be taken and sent.
        value_bytes: if small_disk || chance.percent(25) { 12 * 1024 } else { 1 },
        stop: AtomicBool::new(false),
        next_value: AtomicU64::new(1),
    });
    let mut faults = Faults::new(machines, network, field.began, setting.binary.clone());
    if let Some(trouble) = faults.heal()? {
        anyhow::bail!("the cluster does not even begin: {trouble}; see {}", folder.display());
    }
    let text = format!(
        "services:\n{}routes:\n{}",
        scribe::service("ledger", "    stream: { name: ledger }\n"),
        scribe::route("ledger")
    );
    faults.machines[0].verb_done(&["apply", "-f"], Some(&text))?;
    faults.services = 1;
    if let Some(trouble) = faults.heal()? {
        anyhow::bail!("the service does not even begin: {trouble}; see {}", folder.display());
    }
    // Nothing before now counts as a gap.
    faults.majority = vec![(field.now(), true)];
    Ok((faults, field))
}

fn scribes(seed: u64, field: &Arc<Field>) -> Vec<(Into, std::thread::JoinHandle<Saw>)> {
    let scribe = |number: usize| {
        let into = if number < SCRIBES { Into::Log } else { Into::Ledger };
        let scribe = Scribe::new(into, number, Arc::clone(field), Chance::new(seed, 1_000 + number as u64));
        (into, std::thread::spawn(move || scribe.run()))
    };
    (0..2 * SCRIBES).map(scribe).collect()
}

/// All that is wrong with the stream `log` and with the ledger, as clients saw them and as every node has them.
fn judge_logs(faults: &Faults, saw: &[Saw; 2]) -> Vec<String> {
    let judge = |name: &str, log: &Log| -> Result<(), String> {
        let mut before: Vec<String> = Vec::new();
        for machine in &faults.machines {
            let node = format!("n{}", machine.place + 1);
            let written = entries_of(machine, name).ok_or_else(|| format!("{node} does not give its entries"))?;
            let written = if name == "ledger" {
                let parsed =
                    written.iter().map(|text| serde_json::from_str(text).unwrap_or_default()).collect::<Vec<_>>();
                entries::keys(&parsed).map_err(|why| format!("{node}: {why}"))?
            } else {
                written
            };
            // What nobody was told of may still arrive between two looks; what was there stays.
            if let Some(place) = entries::first_difference(&before, &written) {
                let (was, is) = (before.get(place), written.get(place));
                return Err(format!("entry {place} is {is:?} on {node}, and was {was:?} on the node before it"));
            }
            log.check(&written)?;
            before = written;
        }
        Ok(())
    };
    let judged = [("log", &saw[0].log), ("ledger", &saw[1].log)];
    judged
        .into_iter()
        .filter_map(|(name, log)| judge(name, log).map_err(|why| format!("{name}: {why}")).err())
        .collect()
}

/// What is in a stream, as one node tells; nothing if nobody wrote.
fn entries_of(machine: &Machine, name: &str) -> Option<Vec<String>> {
    let mut found: Vec<String> = Vec::new();
    let until = Instant::now() + HEALING;
    machine.get("/api/v1/streams", LAST_LOOK)?["streams"].as_array()?.iter().find(|one| one["name"] == name)?;
    while Instant::now() < until {
        let path = format!("/api/v1/streams/{name}?from={}&limit=1000", found.len());
        let Some(lines) = machine.lines(&path, LAST_LOOK) else { continue };
        if lines.is_empty() {
            return Some(found);
        }
        for line in lines {
            found.push(line["data"].as_str()?.to_owned());
        }
    }
    None
}

/// Reads every key through every node, and compares what the nodes hold.
fn last_reads(faults: &Faults, field: &Arc<Field>) -> (Vec<Operation>, Option<String>) {
    let mut history = Vec::new();
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
    }
    (history, same_keys(faults).err())
}

/// Waits until every node holds the same keys: a write that nobody was told of may still be on its way to some.
fn same_keys(faults: &Faults) -> Result<(), String> {
    let until = Instant::now() + HEALING;
    loop {
        let mut held: Vec<Value> = Vec::new();
        for machine in &faults.machines {
            let Some(listed) = machine.get("/api/v1/kv?prefix=true&stale=true", LAST_LOOK) else {
                return Err(format!("n{} does not list its keys at the end", machine.place + 1));
            };
            held.push(listed["kvs"].clone());
        }
        let Some(other) = held.iter().position(|kvs| *kvs != held[0]) else { return Ok(()) };
        if Instant::now() > until {
            return Err(format!("n1 and n{} hold different things:\n  {}\n  {}", other + 1, held[0], held[other]));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
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

fn count(outcome: &mut Outcome, seen: &Seen, saw: &[Saw; 2], faults: &mut Faults, ended: u64) {
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
    outcome.entries = [0, 1].map(|which| saw[which].log.acknowledged.len() as u64);
    outcome.looks = saw.iter().map(|saw| saw.log.looks.len() as u64).sum();
    outcome.again = saw.iter().map(|saw| saw.again).sum();
    let added = &saw[1].log.acknowledged;
    let terms: std::collections::BTreeSet<u64> = added.iter().filter_map(|one| one.epoch).collect();
    outcome.terms = terms.len() as u64;
    let mut answers: Vec<u64> = added.iter().map(|one| one.returned).collect();
    answers.sort_unstable();
    let (from, longest) = longest_gap(&answers, &faults.majority, ended);
    outcome.longest_without = Duration::from_micros(longest);
    faults.told.push(format!("{from:>9} us  the longest time without an amount added begins: {longest} us"));
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
