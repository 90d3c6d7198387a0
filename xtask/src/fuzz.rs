//! The fuzz targets, one after the other, each for a while. What every seed and past finding does is checked by `cargo test`
//! already; this looks for more. Deliberately absent: what is promised (`tests/targets` of each crate).

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{bench, run};

/// Each with the crate that it is about.
const TARGETS: [(&str, &str); 7] = [
    ("request_head", "crates/gateway"),
    ("chunked", "crates/gateway"),
    ("response_head", "crates/gateway"),
    ("differential", "crates/gateway"),
    ("http2_head", "crates/gateway"),
    ("dns", "crates/dns"),
    ("filter", "crates/dns"),
];
const USAGE: &str = "usage: cargo xtask fuzz [TARGET] [--minutes N]";
/// Without `--minutes`.
const MINUTES: u32 = 10;
/// Longer inputs find nothing that shorter ones do not, but more slowly.
const MAX_LEN: u32 = 2_048;

/// Fuzzes one target, or each.
pub fn fuzz(root: &Path, arguments: &[&str]) -> Result<()> {
    let (mut targets, mut minutes) = (TARGETS.to_vec(), MINUTES);
    let mut arguments = arguments.iter();
    while let Some(&argument) = arguments.next() {
        if argument == "--minutes" {
            minutes = arguments.next().context(USAGE)?.parse().context("--minutes N")?;
        } else {
            targets.retain(|(name, _)| *name == argument);
            ensure!(
                !targets.is_empty(),
                "no target `{argument}`: {}\n{USAGE}",
                TARGETS.map(|(name, _)| name).join(", ")
            );
        }
    }
    install()?;
    let sanitizer = if has_sanitizer()? { "address" } else { "none" };
    for (target, of) in targets {
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(root.join(of).join(&corpus))?;
        let mut command = bench::cargo_command(&["fuzz", "run", "--sanitizer", sanitizer, target]);
        command.args([corpus.as_str(), &format!("fuzz/seeds/{target}"), "--"]);
        command.args([
            &format!("-max_total_time={}", minutes * 60),
            &format!("-max_len={MAX_LEN}"),
            "-print_final_stats=1",
        ]);
        // Its flags for coverage are unstable; the toolchain is the product's all the same.
        command.env("RUSTC_BOOTSTRAP", "1").current_dir(root.join(of));
        run(&mut command).with_context(|| {
            format!(
                "{target}: if it found something, the input lies in {of}/fuzz/artifacts/{target}: mend it and \
                 keep the input as fuzz/seeds/{target}/found-NAME. If it did not build: it needs a C++ compiler"
            )
        })?;
        println!("{target}: {minutes} minutes without a finding (sanitizer: {sanitizer})");
    }
    Ok(())
}

fn install() -> Result<()> {
    let mut version = bench::cargo_command(&["fuzz", "--version"]);
    if version.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    run(&mut bench::cargo_command(&["install", "cargo-fuzz", "--locked"])).context("cargo-fuzz could not be installed")
}

/// Whether the toolchain brings the runtime of AddressSanitizer.
fn has_sanitizer() -> Result<bool> {
    let output = Command::new("rustc").args(["--print", "target-libdir"]).output().context("cannot run rustc")?;
    if !output.status.success() {
        bail!("rustc --print target-libdir: {}", output.status);
    }
    let folder = String::from_utf8(output.stdout)?;
    let mut files = std::fs::read_dir(folder.trim())?;
    Ok(files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().ends_with("_rt.asan.a"))))
}
