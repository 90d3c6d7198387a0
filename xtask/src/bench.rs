//! Figures for the promises that have a number, each by one command. Results are recorded by hand in `bench/RESULTS.md`,
//! with the machine and the command, because a figure without its circumstances is worth nothing.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{root, run};

/// Runs the bench named `which`.
pub fn bench(which: &str) -> Result<()> {
    match which {
        // Kills under load, with the release build: gaps, failures, memory. The tests fail where a promise does not hold.
        "shop" => cargo(&[
            "test",
            "--release",
            "--locked",
            "--package",
            "seawall",
            "--test",
            "it",
            "--",
            "--nocapture",
            "--test-threads",
            "1",
            "active::",
            "primary::",
            "crash::",
            "stop::both_processes",
        ]),
        // Writes a second with one, 16 and 64 writers, beside the rate of bare flushes on the same disk.
        "wal" => cargo(&["run", "--release", "--locked", "--package", "data-raft", "--example", "write_rate"]),
        // The gateway's own part of a switch, from the swap of endpoints to the answer.
        "switch" => cargo(&["run", "--release", "--locked", "--package", "gateway", "--example", "switch"]),
        _ => bail!("usage: cargo xtask bench shop | wal | switch"),
    }
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).args(arguments).current_dir(root()))
}
