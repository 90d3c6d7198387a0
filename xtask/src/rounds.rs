//! `cargo xtask rounds`: real `seawall` processes as a cluster of namespaces under random faults, and what their clients
//! saw judged. The walk: a seed -> `plan` -> `round` (`machine`, `network`, `client`, `scribe`, `faults`) -> `linear`,
//! `order` and `entries`.
//! Deliberately absent: simulated time and simulated disks; those are the tests of `data-raft`.

mod chance;
mod client;
mod entries;
mod faults;
mod history;
pub mod http;
mod linear;
pub mod machine;
pub mod network;
mod older;
mod order;
mod plan;
mod report;
mod round;
pub mod scribe;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};

use crate::bench::cargo_command;
use crate::root;
use machine::Windows;
use plan::Fault;
use round::{Outcome, Setting};

const USAGE: &str = "usage: cargo xtask rounds [--rounds N] [--seconds S] [--seed X] [--nodes N] [--parallel P] [--release] [--windows] [--upgrade-from REVISION] [--record] [--keep]";
/// Where faketime's library may be.
const FAKETIME: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/lib64/faketime/libfaketime.so.1",
];

/// What was asked for.
struct Asked {
    rounds: u64,
    seconds: u64,
    seed: u64,
    nodes: usize,
    parallel: usize,
    release: bool,
    windows: bool,
    /// All nodes begin as this revision, and are upgraded one by one.
    upgrade_from: Option<String>,
    record: bool,
    keep: bool,
}

/// Runs rounds as the words say; fails if one found something.
pub fn rounds(arguments: &[&str]) -> Result<()> {
    let asked = asked(arguments)?;
    if let Some(why) = network::why_not() {
        println!("rounds: skipped, {why}");
        return Ok(());
    }
    let words = format!("cargo xtask rounds {}", arguments.join(" "));
    run(&asked, words.trim_end())
}

/// Ten short rounds with what every machine with root and `ip` has; skipped elsewhere with one line.
pub fn short() -> Result<()> {
    if let Some(why) = network::why_not() {
        println!("rounds: skipped, {why}");
        return Ok(());
    }
    let asked = Asked {
        rounds: 10,
        seconds: 5,
        seed: 1,
        nodes: 3,
        parallel: 2,
        release: false,
        windows: false,
        upgrade_from: None,
        record: false,
        keep: false,
    };
    run(&asked, "cargo xtask rounds --rounds 10 --seconds 5 --seed 1 --parallel 2")
}

fn asked(arguments: &[&str]) -> Result<Asked> {
    let clock = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
    let mut asked = Asked {
        rounds: 1,
        seconds: 60,
        seed: clock,
        nodes: 3,
        parallel: 1,
        release: false,
        windows: false,
        upgrade_from: None,
        record: false,
        keep: false,
    };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if *word == "--upgrade-from" {
            asked.upgrade_from = Some((*words.next().context(USAGE)?).to_owned());
            continue;
        }
        let mut number = || -> Result<u64> { words.next().context(USAGE)?.parse().context(USAGE) };
        match *word {
            "--rounds" => asked.rounds = number()?,
            "--seconds" => asked.seconds = number()?,
            "--seed" => asked.seed = number()?,
            "--nodes" => asked.nodes = usize::try_from(number()?)?,
            "--parallel" => asked.parallel = usize::try_from(number()?)?,
            "--release" => asked.release = true,
            "--windows" => asked.windows = true,
            "--record" => asked.record = true,
            "--keep" => asked.keep = true,
            _ => bail!(USAGE),
        }
    }
    ensure!((3..=9).contains(&asked.nodes), "3 to 9 nodes");
    ensure!(!asked.windows || asked.parallel == 1, "there is one Wine: --windows goes without --parallel");
    ensure!((1..=16).contains(&asked.parallel) && (1..=3_600).contains(&asked.seconds), "{USAGE}");
    Ok(asked)
}

fn run(asked: &Asked, words: &str) -> Result<()> {
    let binary = built(asked.release)?;
    let older = asked.upgrade_from.as_deref().map(|revision| older::built(revision, asked.release)).transpose()?;
    network::remove_leftovers();
    let clock = FAKETIME.into_iter().map(PathBuf::from).find(|path| path.exists());
    let possible: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| is_possible(*fault, clock.as_deref())).collect();
    let (begun, place) = (Instant::now(), root().join("target/rounds"));
    let (next, outcomes) = (Mutex::new(0), Mutex::new(Vec::<Outcome>::new()));
    let one = || -> Result<()> {
        loop {
            let number = {
                let mut next = next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                *next += 1;
                *next - 1
            };
            if number >= asked.rounds {
                return Ok(());
            }
            let setting = Setting {
                seed: asked.seed.wrapping_add(number),
                seconds: asked.seconds,
                nodes: asked.nodes,
                binary: binary.clone(),
                older: older.clone(),
                place: place.clone(),
                windows: asked.windows.then(|| Windows::of(&place)),
                possible: possible.clone(),
                clock: clock.clone(),
                keep: asked.keep,
            };
            let outcome = round::run(&setting).with_context(|| format!("the round of seed {}", setting.seed))?;
            report::tell(&outcome, asked.seconds, asked.nodes);
            outcomes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(outcome);
        }
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..asked.parallel).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a round panicked"))).collect()
    });
    let outcomes = outcomes.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("{}", report::table(&outcomes, words, begun.elapsed(), &version(&binary)?));
    if asked.record {
        report::record(&outcomes, words, begun.elapsed(), &version(&binary)?)?;
    }
    results.into_iter().collect::<Result<()>>()?;
    let wrong: Vec<&Outcome> = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).collect();
    // Said again, for what stands above is long.
    let found: Vec<String> = wrong.iter().map(|one| format!("seed {}: {}", one.seed, one.violations[0])).collect();
    ensure!(wrong.is_empty(), "rounds: {} of {} found something:\n{}", wrong.len(), outcomes.len(), found.join("\n"));
    Ok(())
}

/// Whether this machine can do it; what is missing is said once.
fn is_possible(fault: Fault, clock: Option<&Path>) -> bool {
    let missing = match fault {
        Fault::FlushError if !starts("strace") => "strace",
        Fault::Clock if clock.is_none() => "faketime",
        Fault::Slow if !starts("tc") => "tc",
        _ => return true,
    };
    println!("rounds: without `{}`, for there is no {missing}", fault.words());
    false
}

fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("-V").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// The binary, built if it is not current.
///
/// # Errors
/// It does not build.
pub fn built(release: bool) -> Result<PathBuf> {
    let mut words = vec!["build", "--locked", "--package", "seawall", "--message-format", "json-render-diagnostics"];
    words.extend(release.then_some("--release"));
    let output = cargo_command(&words).stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    ensure!(output.status.success(), "seawall does not build");
    let lines = String::from_utf8(output.stdout)?;
    let made = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let path = made.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).next_back();
    path.context("cargo names no binary")
}

/// What the binary says of itself.
///
/// # Errors
/// It does not run.
pub fn version(binary: &Path) -> Result<String> {
    let said = Command::new(binary).arg("--version").output().with_context(|| binary.display().to_string())?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}
