//! `cargo xtask sim`: simulated clusters under seeded faults (`sim/`), built with optimization, and the planted bugs.

use std::process::Command;

use anyhow::{Result, bail};

/// Worlds of every `cargo xtask test`.
const CI_SEEDS: &str = "2000";
/// And so many of those with a witness,
const WITNESS_SEEDS: &str = "500";
/// which begin here (`sim::WITNESS_WORLDS`).
const WITNESS_WORLDS: &str = "1099511627776";
/// And so many of those whose primaries go on without a quorum,
const FAILSAFE_SEEDS: &str = "500";
/// which begin here (`sim::FAILSAFE_WORLDS`).
const FAILSAFE_WORLDS: &str = "2199023255552";

/// Where a long run is kept.
const RESULTS: &str = "sim/RESULTS.md";

/// Runs worlds: what follows `sim` on the command line goes to it; `--record` keeps the result in the tree.
pub fn sim(arguments: &[String]) -> Result<()> {
    let mut words: Vec<String> = arguments.to_vec();
    let record = words.iter().position(|word| word == "--record").map(|at| words.remove(at)).is_some();
    let planted = words.iter().any(|word| word == "--plant");
    let log = crate::root().join("target/sim-result.txt");
    if record {
        words.extend(["--record".to_owned(), log.display().to_string()]);
    }
    let mut command = cargo_run(planted);
    crate::run(command.args(&words))?;
    if record {
        keep(&std::fs::read_to_string(&log)?)?;
    }
    Ok(())
}

/// What every change goes through.
pub fn short() -> Result<()> {
    crate::run(cargo_run(true).args(["--seeds", CI_SEEDS]))?;
    crate::run(cargo_run(true).args(["--seeds", WITNESS_SEEDS, "--from", WITNESS_WORLDS]))?;
    crate::run(cargo_run(true).args(["--seeds", FAILSAFE_SEEDS, "--from", FAILSAFE_WORLDS]))?;
    let cargo = env!("CARGO");
    let arguments = ["test", "--release", "--locked", "-p", "sim", "--features", "planted", "--test", "plants"];
    crate::run(Command::new(cargo).args(arguments).current_dir(crate::root()))
}

fn cargo_run(planted: bool) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--release", "--locked", "-p", "sim"]).current_dir(crate::root());
    if planted {
        command.args(["--features", "planted"]);
    }
    command.arg("--");
    command
}

/// Replaces the part of the page between its fences.
fn keep(result: &str) -> Result<()> {
    let page = crate::root().join(RESULTS);
    let text = std::fs::read_to_string(&page)?;
    let mut parts = text.splitn(3, "```");
    let (Some(before), Some(_), Some(after)) = (parts.next(), parts.next(), parts.next()) else {
        bail!("{RESULTS} has no fenced part for the result");
    };
    std::fs::write(&page, format!("{before}```text\n{result}```{after}"))?;
    Ok(())
}
