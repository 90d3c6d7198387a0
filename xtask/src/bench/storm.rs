//! `cargo xtask bench storm`: what guards do in a storm, as the gateway's own tests of it see it, in release.
//! The walk: the test `overload` -> the figures it prints -> `bench/RESULTS.md`. Deliberately absent: the loads, and what
//! must hold, which the test has.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use super::gateway::load_average;
use super::{cargo_command, section};
use crate::root;

const TITLE: &str = "Storms, slow instances and hung ones";

/// Measures, prints, records.
pub fn storm() -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this bench reads /proc: it runs on Linux only");
    let before = load_average()?;
    let words = ["test", "--release", "--locked", "--package", "gateway", "--test", "overload", "--", "--nocapture"];
    let mut command = cargo_command(&[&words[..], &["--test-threads", "1"]].concat());
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {command:?}"))?;
    let report = String::from_utf8(output.stdout)?;
    println!("{report}");
    ensure!(output.status.success(), "nothing is recorded: the run failed ({})", output.status);
    let figures: Vec<String> = report.lines().filter_map(figure).collect();
    ensure!(!figures.is_empty(), "the test printed no figure");
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let text = format!(
        "### {TITLE}\n\n`cargo xtask bench storm`; clients, gateway and instances in one process.\n\n{}\n\nLinux {}, {cores} cores \
         for everything; load average {before:.1} before and {:.1} at the end, the bench included.\n",
        figures.join("\n"),
        kernel.trim(),
        load_average()?
    );
    section::record(&root().join("bench/RESULTS.md"), "storm", TITLE, &text)
}

/// A line of figures begins with this, wherever the harness has put it.
const MARK: &str = "figure: ";

fn figure(line: &str) -> Option<String> {
    line.split_once(MARK).map(|(_, figure)| format!("- {figure}"))
}

#[cfg(test)]
mod tests {
    use super::figure;

    #[test]
    fn figures_are_told_from_what_the_harness_prints() {
        assert_eq!(figure("test hangs ... figure: p99 3 ms").as_deref(), Some("- p99 3 ms"));
        assert_eq!(figure("test hangs ... ok"), None);
    }
}
