//! Project chores, run as `cargo xtask VERB`. Deliberately no shell scripts: the same verbs work on Windows.

mod bench;
mod tidy;
mod windows;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "usage: cargo xtask VERB
  test     all tests, as the README says
  ci       everything that must hold before a change lands: format, clippy, tidy, test, windows
  tidy     the house style, as far as a machine can check it
  bench    figures: cargo xtask bench shop | wal | switch";

fn main() -> Result<()> {
    let verb = std::env::args().nth(1).unwrap_or_default();
    match verb.as_str() {
        "test" => test(),
        "ci" => ci(),
        "tidy" => tidy::run(&root()),
        "bench" => bench::bench(&std::env::args().nth(2).unwrap_or_default()),
        "windows" => windows::windows(&root()),
        _ => bail!("{USAGE}"),
    }
}

fn test() -> Result<()> {
    cargo(&["test", "--workspace", "--locked"])
}

fn ci() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    tidy::run(&root())?;
    test()
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
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
