//! `cargo xtask bench store`: three members of the product beside three of etcd, on the same disk, in turn.
//! The walk: options -> both clusters -> rounds (A B, B A, ...) of windows -> table -> `bench/RESULTS.md`.
//! A figure is a ratio of windows that lay side by side in time. Members, load and kernel share all cores; members of the
//! product speak TLS to each other, etcd's do not. Deliberately absent: faults (`rounds`), and a network between members.

mod etcd;
mod load;
pub mod members;
mod report;

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::gateway::load_average;
use super::{cargo, section, shipped};
use crate::root;
use load::{Asked, Seen};
use members::Cluster;

/// Windows of a trial have no median worth keeping.
const LEAST_ROUNDS: usize = 3;

/// What is measured, and how often.
pub struct Options {
    rounds: usize,
    seconds: u64,
    clients: usize,
    bytes: Vec<usize>,
    only: Option<String>,
}

/// One kind of load.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// All clients write values of so many bytes.
    Writes(usize),
    /// One client does.
    OneWriter(usize),
    /// All clients read, linearizably.
    Reads(usize),
    /// All clients write, ten on a connection.
    SharedWrites(usize),
    /// All clients read, ten on a connection.
    SharedReads(usize),
}

/// What one window showed.
pub struct Window {
    /// What the clients saw.
    pub seen: Seen,
    /// Its length in seconds.
    pub seconds: f64,
}

/// The windows of one load: the product's and the peer's, a pair a round.
pub struct Pairs {
    /// Which load.
    pub load: Load,
    /// Side by side.
    pub windows: Vec<[Window; 2]>,
}

/// What was measured.
pub struct Findings {
    /// By load.
    pub pairs: Vec<Pairs>,
    /// The peer's name and version.
    pub peer: String,
    /// Bare flushes a second, before each round.
    pub flushes: Vec<f64>,
    /// The lowest and the highest load average seen.
    pub load_average: (f64, f64),
}

/// Measures, prints, records.
pub fn store(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    ensure!(cfg!(target_os = "linux"), "this bench reads /proc: it runs on Linux only");
    if cfg!(debug_assertions) {
        // Clients share the cores with the members: what they waste neither make can use.
        let again = ["run", "--quiet", "--locked", "--release", "--package", "xtask", "--", "bench", "store"];
        return cargo(&again.into_iter().chain(arguments.iter().map(String::as_str)).collect::<Vec<_>>());
    }
    let (own, place) = shipped()?;
    let (program, peer) = etcd::built(&place)?;
    let folder = tempfile::Builder::new().prefix("store-").tempdir_in(&place)?;
    let clusters = [
        Cluster::of_seawall(&own, &folder.path().join("seawall"))?,
        Cluster::of_etcd(&program, &folder.path().join("etcd"))?,
    ];
    let mut findings = Findings { pairs: options.pairs(), peer, flushes: Vec::new(), load_average: (f64::MAX, 0.0) };
    for round in 0..options.rounds {
        let now = load_average()?;
        findings.load_average = (findings.load_average.0.min(now), findings.load_average.1.max(now));
        findings.flushes.push(members::bare_flushes(folder.path())?);
        for pairs in &mut findings.pairs {
            let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
            let mut windows = [None, None];
            for which in order {
                let window = measure(&clusters[which], pairs.load, &options)?;
                println!(
                    "round {} {:<8} {:?}: {}",
                    round + 1,
                    clusters[which].name(),
                    pairs.load,
                    report::line(&window)
                );
                windows[which] = Some(window);
            }
            let [Some(own), Some(other)] = windows else { bail!("a window is missing") };
            pairs.windows.push([own, other]);
        }
    }
    let text = report::section(&options, &findings)?;
    println!("\n{text}");
    if options.rounds < LEAST_ROUNDS || options.only.is_some() {
        println!("a trial is not recorded: at least {LEAST_ROUNDS} rounds of everything are");
        return Ok(());
    }
    section::record(&root().join("bench/RESULTS.md"), "store", report::TITLE, &text)
}

fn measure(cluster: &Cluster, load: Load, options: &Options) -> Result<Window> {
    let (clients, bytes, asked) = match load {
        Load::Writes(bytes) => (options.clients, bytes, Asked::Write),
        Load::OneWriter(bytes) => (1, bytes, Asked::Write),
        Load::SharedWrites(bytes) => (options.clients, bytes, Asked::Write),
        Load::Reads(bytes) | Load::SharedReads(bytes) => (options.clients, bytes, Asked::Read),
    };
    if asked == Asked::Read {
        load::fill(cluster, bytes)?;
    }
    let seconds = Duration::from_secs(options.seconds);
    let shared = matches!(load, Load::SharedReads(_) | Load::SharedWrites(_));
    let seen = load::run(cluster, asked, (clients, shared), bytes, seconds)?;
    ensure!(seen.failed == 0, "{} of {}'s answers were no success", seen.failed, cluster.name());
    Ok(Window { seconds: seen.elapsed.as_secs_f64(), seen })
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self { rounds: 5, seconds: 5, clients: 1000, bytes: vec![256, 1024], only: None };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { bail!("{USAGE}") };
            match name.as_str() {
                "--rounds" => options.rounds = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--clients" => options.clients = value.parse()?,
                "--bytes" => options.bytes = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                "--only" => options.only = Some(value.clone()),
                _ => bail!("{USAGE}"),
            }
        }
        ensure!(options.rounds > 0 && options.seconds > 0 && options.clients > 0, "{USAGE}");
        Ok(options)
    }

    fn pairs(&self) -> Vec<Pairs> {
        let writes = self.bytes.iter().map(|bytes| Load::Writes(*bytes));
        let one = self.bytes.iter().take(1).map(|bytes| Load::OneWriter(*bytes));
        let reads = self.bytes.iter().take(1).map(|bytes| Load::Reads(*bytes));
        let shared = |load: fn(usize) -> Load| self.bytes.iter().take(1).map(move |bytes| load(*bytes));
        let wanted = |load: &Load| match self.only.as_deref() {
            Some("writes") => matches!(load, Load::Writes(_) | Load::SharedWrites(_)),
            Some("one") => matches!(load, Load::OneWriter(_)),
            Some("reads") => matches!(load, Load::Reads(_) | Load::SharedReads(_)),
            _ => true,
        };
        let shared = shared(Load::SharedWrites).chain(shared(Load::SharedReads));
        writes
            .chain(one)
            .chain(reads)
            .chain(shared)
            .filter(wanted)
            .map(|load| Pairs { load, windows: Vec::new() })
            .collect()
    }
}

const USAGE: &str =
    "usage: cargo xtask bench store [--rounds N] [--seconds N] [--clients N] [--bytes N,N] [--only writes|one|reads]";
