//! Figures for the promises that have a number, each by one command. Results stand in `bench/RESULTS.md`, with the machine
//! and the command, because a figure without its circumstances is worth nothing; `shop`, `switch` and `wal` are
//! recorded by hand, the others write their own.

mod churn;
mod discovery;
mod failover;
mod gateway;
mod section;
mod store;
mod storm;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{root, run};

pub use gateway::{idle, process, serve};
pub use section::record;

/// Runs the bench that the first word names, with the words behind it.
pub fn bench(arguments: &[String]) -> Result<()> {
    let (which, rest) = arguments.split_first().map_or(("", arguments), |(which, rest)| (which.as_str(), rest));
    match which {
        // The whole product beside other proxies: processor time per request, latency, memory.
        "gateway" => gateway::gateway(rest),
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
        "wal" => cargo(
            &[
                &["run", "--release", "--locked", "--package", "data-raft", "--example", "write_rate", "--"],
                &rest.iter().map(String::as_str).collect::<Vec<_>>()[..],
            ]
            .concat(),
        ),
        // A rate limit under four times its load: how near to the rate it lets through.
        "limiter" => gateway::limiter(),
        // What guards do for those that are overloaded, slow or hung.
        "storm" => storm::storm(),
        // The gateway with a large table while endpoints and routes are swapped under load.
        "churn" => churn::churn(rest),
        // Three members beside three of etcd: writes, reads, processor time, memory.
        "store" => store::store(rest),
        // The registry: blocking queries, registrations, DNS beside dnsmasq.
        "discovery" => discovery::discovery(rest),
        // A cluster of namespaces whose leaders are killed, handed over and cut off, in release: until it is at work again.
        "failover" => failover::failover(rest),
        // The gateway's own part of a switch, from the swap of endpoints to the answer.
        "switch" => cargo(&["run", "--release", "--locked", "--package", "gateway", "--example", "switch"]),
        _ => bail!(
            "usage: cargo xtask bench gateway | churn | discovery | failover | limiter | shop | store | storm | wal | switch"
        ),
    }
}

/// The binary as it is shipped, built now, and a folder for what a bench leaves behind.
fn shipped() -> Result<(PathBuf, PathBuf)> {
    cargo(&["build", "--locked", "--profile", "dist", "--package", "seawall", "--bin", "seawall"])?;
    let target = std::env::current_exe()?.ancestors().nth(2).context("no target folder")?.to_owned();
    let place = target.join("bench");
    std::fs::create_dir_all(&place)?;
    Ok((target.join("dist/seawall"), place))
}

pub fn cargo(arguments: &[&str]) -> Result<()> {
    run(&mut cargo_command(arguments))
}

/// Cargo, as if this program had not been started by it: build scripts that look at the variables of the package that
/// runs (ring's does) would be run again each time.
pub fn cargo_command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO"));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command.args(arguments).current_dir(root());
    command
}
