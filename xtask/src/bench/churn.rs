//! `cargo xtask bench churn`: what requests feel while a large table is swapped under them.
//! The walk: the gateway's own example `churn`, in release -> its report -> `bench/RESULTS.md`. Deliberately absent: the
//! load and the table, which the example has in one process with the gateway.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};

use super::gateway::load_average;
use super::{cargo_command, section};
use crate::root;

const TITLE: &str = "A large table while it is swapped";
/// Four windows each. Many short ones rather than a few long ones: whenever the system takes a processor away for a moment, as
/// this happens every second or so, one in a hundred requests is late, and two long windows differ by that alone.
const REPEATS: &str = "30";
/// Of one window.
const SECONDS: &str = "0.5";

/// Measures, prints, records. Words: `--repeats N` (four windows each), `--seconds N` (a window).
pub fn churn(arguments: &[String]) -> Result<()> {
    let (mut repeats, mut seconds) = (REPEATS, SECONDS);
    for pair in arguments.chunks(2) {
        match pair {
            [name, value] if name == "--repeats" => repeats = value,
            [name, value] if name == "--seconds" => seconds = value,
            _ => bail!("usage: cargo xtask bench churn [--repeats N] [--seconds N]"),
        }
    }
    ensure!(cfg!(target_os = "linux"), "this bench reads /proc: it runs on Linux only");
    let before = load_average()?;
    let example =
        ["run", "--release", "--locked", "--package", "gateway", "--example", "churn", "--", repeats, seconds];
    let mut command = cargo_command(&example);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    let report = String::from_utf8(output.stdout)?;
    println!("{report}");
    ensure!(output.status.success(), "nothing is recorded: the run failed ({})", output.status);
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let text = format!(
        "### {TITLE}\n\n`cargo xtask bench churn --repeats {repeats} --seconds {seconds}`: {report}\nLinux {}, {cores} cores for \
         everything; load average {before:.1} before and {:.1} at the end, the bench included.\n",
        kernel.trim(),
        load_average()?
    );
    section::record(&root().join("bench/RESULTS.md"), "churn", TITLE, &text)
}
