//! `cargo xtask bench gateway`: the whole product beside other proxies, on the same core, with the same duties, in turn.
//! The walk: options -> backend -> programs -> rounds (A B C, C B A, ...) -> table -> `bench/RESULTS.md`.
//! A figure is a ratio of windows that lay side by side in time, because the machine is never quiet. Deliberately absent:
//! more than one worker, and load over a real network.

mod backend;
mod config;
mod guards;
mod limiter;
mod load;
mod options;
mod pingora;
pub mod process;
mod proxy;
mod report;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tempfile::TempDir;

pub use backend::{idle, serve};
pub use limiter::limiter;
pub use process::load_average;

use super::{cargo, section};
use crate::root;
use load::{Pace, Window};
use options::{Options, Scenario};
use process::{LOAD_CORE, Running};
use proxy::{Kind, Proxy};

/// Seconds of load before each window that counts.
const WARM_UP: u64 = 1;
/// The moderate load at which latencies are compared, as a share of what the slowest can.
const MODERATE: f64 = 0.5;
/// Fewer rounds have no median worth keeping.
const LEAST_ROUNDS: usize = 3;
/// How long memory may settle after connections were opened.
const SETTLE: Duration = Duration::from_secs(2);

/// What guards a Seawall has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Guarding {
    /// What the plain comparison has: a bound on time.
    Plain,
    /// All, and rules that no request meets.
    Guarded,
    /// None.
    Bare,
}

/// Where and of what a measurement is.
pub struct Place {
    scenario: Scenario,
    profile: String,
    /// The target folder.
    target: PathBuf,
    /// Configurations, logs, keys.
    folder: TempDir,
    /// Who answers.
    backend: SocketAddr,
}

impl Place {
    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// One proxy and its windows, one a round.
struct Track {
    proxy: Proxy,
    most: Vec<Window>,
    fixed: Vec<Window>,
    /// MiB before and with idle connections.
    idle: Option<(f64, f64)>,
}

/// What was measured.
struct Findings {
    tracks: Vec<Track>,
    /// Who is not in the table, and why.
    missing: Vec<(Kind, String)>,
    /// Requests a second of the comparison at a fixed rate.
    fixed_rate: f64,
    /// The lowest and the highest load average seen.
    load_average: (f64, f64),
}

/// Measures, prints, records.
pub fn gateway(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    machine(&options)?;
    let target = std::env::current_exe()?.ancestors().nth(2).context("no target folder")?.to_owned();
    let own = build_own(&target, &options.profile)?;
    let folder = tempfile::Builder::new().prefix("seawall-bench-").tempdir()?;
    let (backend, _backend) = start_backend(&own, folder.path(), options.scenario.answered())?;
    let place = Place { scenario: options.scenario, profile: options.profile.clone(), target, folder, backend };
    if options.scenario.tls {
        proxy::apt("openssl", "openssl")?;
        config::certificate(&place)?;
    }
    load::prepare(&place)?;
    let mut findings =
        Findings { tracks: Vec::new(), missing: Vec::new(), fixed_rate: 0.0, load_average: (f64::MAX, 0.0) };
    start_proxies(&place, &options, &mut findings);
    match options.scenario.idle {
        Some(count) => idle_connections(&place, &own, count, &mut findings)?,
        None => rounds(&place, &options, &mut findings)?,
    }
    let text = report::section(&options, &findings)?;
    println!("\n{text}");
    if let Some((_, why)) = findings.missing.iter().find(|(kind, _)| *kind == Kind::Seawall) {
        bail!("nothing is recorded, because seawall was not measured: {why}");
    }
    if options.scenario.idle.is_none() && options.rounds < LEAST_ROUNDS {
        println!("a trial of fewer than {LEAST_ROUNDS} rounds is not recorded");
        return Ok(());
    }
    section::record(&root().join("bench/RESULTS.md"), "gateway", &options.scenario.title(), &text)
}

/// Refuses where no figure would mean anything.
fn machine(options: &Options) -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this bench reads /proc and holds processes to cores: it runs on Linux only");
    for tool in ["taskset", "prlimit", "setpriv"] {
        ensure!(proxy::on_path(tool).is_some(), "`{tool}` is missing; on Debian: apt-get install util-linux");
    }
    let cores = std::thread::available_parallelism()?.get();
    ensure!(cores > LOAD_CORE, "one core for the proxy and one for the load are needed; here is {cores}");
    let (files, wanted) = (process::most_files()?, options.scenario.idle.unwrap_or_default() as u64 + 1_000);
    ensure!(files >= wanted, "{wanted} open files are needed, {files} are allowed here (ulimit -Hn)");
    proxy::apt("wrk", "wrk")?;
    proxy::apt("h2load", "nghttp2-client").map(drop)
}

/// This program again, built to be fast: it is the backend.
fn build_own(target: &Path, profile: &str) -> Result<PathBuf> {
    cargo(&["build", "--locked", "--profile", profile, "--package", "xtask"])?;
    Ok(target.join(profile).join("xtask"))
}

fn start_backend(own: &Path, folder: &Path, bytes: usize) -> Result<(SocketAddr, Running)> {
    let mut command = process::pinned(LOAD_CORE, own)?;
    command.args(["bench-backend", &bytes.to_string()]);
    let mut running = Running::start(command, folder.join("backend.log"))?;
    let address = running.wait_for("address", |said| said.trim_end().strip_prefix("listening ")?.parse().ok())?;
    Ok((address, running))
}

/// Builds or finds all first, then starts all: nothing is compiled while something is measured.
fn start_proxies(place: &Place, options: &Options, findings: &mut Findings) {
    let mut programs = Vec::new();
    for kind in std::iter::once(Kind::Seawall).chain(options.peers.iter().copied()) {
        match kind.provide(place) {
            Ok(program) => programs.push((kind, program)),
            Err(error) => miss(findings, kind, &error),
        }
    }
    for (kind, program) in programs {
        match kind.start(place, &program) {
            Ok(proxy) => findings.tracks.push(Track { proxy, most: Vec::new(), fixed: Vec::new(), idle: None }),
            Err(error) => miss(findings, kind, &error),
        }
    }
}

fn miss(findings: &mut Findings, kind: Kind, error: &anyhow::Error) {
    eprintln!("{}: skipped: {error:#}", kind.name());
    findings.missing.push((kind, format!("{error:#}")));
}

/// First what each can, then all at the same moderate rate.
fn rounds(place: &Place, options: &Options, findings: &mut Findings) -> Result<()> {
    for round in 0..options.rounds {
        in_turn(place, options, findings, round, Pace::Most)?;
    }
    let slowest = |track: &Track| report::median(track.most.iter().map(Window::rate));
    findings.fixed_rate = findings.tracks.iter().map(slowest).fold(f64::MAX, f64::min) * MODERATE;
    for round in 0..options.rounds {
        in_turn(place, options, findings, round, Pace::Fixed(findings.fixed_rate))?;
    }
    Ok(())
}

/// One round; every second one goes backwards, so that what drifts meets all alike.
fn in_turn(place: &Place, options: &Options, findings: &mut Findings, round: usize, pace: Pace) -> Result<()> {
    let mut order: Vec<usize> = (0..findings.tracks.len()).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    let mut failed = Vec::new();
    for index in order {
        let track = &mut findings.tracks[index];
        let window = load::load(place, &track.proxy, pace, WARM_UP)
            .and_then(|_| load::load(place, &track.proxy, pace, options.seconds));
        match window {
            Ok(window) => {
                eprintln!("round {} {:15} {}", round + 1, track.proxy.kind.name(), report::line(&window));
                match pace {
                    Pace::Most => track.most.push(window),
                    Pace::Fixed(_) => track.fixed.push(window),
                }
            }
            Err(error) => failed.push((index, error)),
        }
        let average = process::load_average()?;
        let (low, high) = findings.load_average;
        findings.load_average = (low.min(average), high.max(average));
    }
    failed.sort_by_key(|(index, _)| std::cmp::Reverse(*index));
    for (index, error) in failed {
        let kind = findings.tracks.remove(index).proxy.kind;
        miss(findings, kind, &error);
    }
    ensure!(!findings.tracks.is_empty(), "no proxy is left to measure");
    Ok(())
}

/// Memory with many connections that do nothing.
fn idle_connections(place: &Place, own: &Path, count: usize, findings: &mut Findings) -> Result<()> {
    for track in &mut findings.tracks {
        let before = process::resident_mib(&track.proxy.memory_of)?;
        let mut command = process::pinned(LOAD_CORE, own)?;
        command.args(["bench-idle", &track.proxy.address.to_string(), &count.to_string()]);
        let mut client = Running::start(command, place.file("idle.log"))?;
        client.wait_for("open connections", |said| said.starts_with("open ").then_some(()))?;
        std::thread::sleep(SETTLE);
        track.idle = Some((before, process::resident_mib(&track.proxy.memory_of)?));
    }
    let average = process::load_average()?;
    findings.load_average = (average, average);
    Ok(())
}
