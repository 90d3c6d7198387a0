//! Project chores, run as `cargo xtask VERB`. Deliberately no shell scripts: the same verbs work on Windows.

mod bench;
mod conformance;
mod fuzz;
mod rounds;
mod sim;
mod tidy;
mod tools;
mod windows;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "usage: cargo xtask VERB
  test     all tests, as the README says
  ci       everything that must hold before a change lands: format, clippy, tidy, test, windows
  tidy     the house style, as far as a machine can check it
  conformance  the gateway against h2spec, which is built with Go
  tools    installs the tools that tests use: curl, wrk, h2load, hey, Chromium, dig, Prometheus
  rounds   a real cluster under random faults: cargo xtask rounds [--rounds N] [--seconds S] [--seed X] [--parallel P]
  sim      simulated clusters under seeded faults: cargo xtask sim [--seeds N] [--from S] [--parallel P] [--plant NAME] [--record]
  fuzz     the fuzz targets of the gateway's codec, DNS and filters: cargo xtask fuzz [TARGET] [--minutes N]
  bench    figures: cargo xtask bench gateway | churn | failover | shop | store | wal | switch";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["test", ..] => test(),
        ["ci", ..] => ci(),
        ["tidy", ..] => tidy::run(&root()),
        ["bench", ..] => bench::bench(&arguments[1..]),
        ["conformance"] => conformance::conformance(),
        ["tools"] => tools::tools(&root()),
        ["fuzz", ref rest @ ..] => fuzz::fuzz(&root(), rest),
        ["rounds", ref rest @ ..] => rounds::rounds(rest),
        ["sim", ..] => sim::sim(&arguments[1..]),
        ["windows", ..] => windows::windows(&root()),
        // Processes of `bench gateway`.
        ["bench-backend", bytes] => bench::serve(bytes.parse()?),
        ["bench-idle", address, count] => bench::idle(address.parse()?, count.parse()?),
        _ => bail!("{USAGE}"),
    }
}

fn test() -> Result<()> {
    cargo(&["test", "--workspace", "--locked"])?;
    sim::short()?;
    rounds::short()
}

fn ci() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    tidy::run(&root())?;
    test()
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    // Of the tree it is run in, which need not be the one it was built in: cargo says it to what it runs.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("xtask stands in the workspace").to_owned()
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).args(arguments).current_dir(root()))
}

/// Runs a command with this terminal; an exit code other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {command:?}");
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
