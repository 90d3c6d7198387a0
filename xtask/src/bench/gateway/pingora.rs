//! Pingora is a library: the smallest proxy on it (`bench/pingora/main.rs`) is built in the target folder.
//! As published it compresses with zlib-ng, which needs cmake; nothing is compressed here, so a copy of its manifest asks
//! for the Rust backend instead.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{root, run};

const MANIFEST: &str = r#"[package]
name = "pingora-bench"
version = "0.1.0"
edition = "2024"

[dependencies]
async-trait = "0.1"
pingora-core = "0.9"
pingora-http = "0.9"
pingora-proxy = "0.9"

[workspace]
"#;

const PATCH: &str = "
[patch.crates-io]
pingora-core = { path = \"pingora-core\" }
";

/// Builds it in `folder`; the binary.
pub fn build(folder: &Path) -> Result<PathBuf> {
    let core = folder.join("pingora-core");
    fs::create_dir_all(folder.join("src"))?;
    fs::copy(root().join("bench/pingora/main.rs"), folder.join("src/main.rs"))?;
    if !core.join("Cargo.toml").exists() {
        fs::write(folder.join("Cargo.toml"), MANIFEST)?;
        copy(Path::new(manifest_path(folder)?.trim_end_matches("Cargo.toml")), &core)?;
        let manifest = fs::read_to_string(core.join("Cargo.toml"))?;
        ensure!(manifest.contains("\"zlib-ng\""), "pingora-core no longer asks for zlib-ng: the copy can go");
        fs::write(core.join("Cargo.toml"), manifest.replace("\"zlib-ng\"", "\"rust_backend\""))?;
    }
    fs::write(folder.join("Cargo.toml"), MANIFEST.to_owned() + PATCH)?;
    run(Command::new(env!("CARGO")).args(["build", "--quiet", "--release"]).current_dir(folder))?;
    Ok(folder.join("target/release/pingora-bench"))
}

/// The version of the crate.
pub fn version(folder: &Path) -> Result<String> {
    let manifest = fs::read_to_string(folder.join("pingora-core/Cargo.toml"))?;
    let line =
        manifest.lines().find_map(|line| line.strip_prefix("version = ")).context("pingora-core has no version")?;
    Ok(line.trim_matches('"').to_owned())
}

/// Where cargo keeps the source of pingora-core.
fn manifest_path(folder: &Path) -> Result<String> {
    let output =
        Command::new(env!("CARGO")).args(["metadata", "--format-version", "1"]).current_dir(folder).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let core = packages.iter().find(|package| package["name"] == "pingora-core").context("no pingora-core")?;
    Ok(core["manifest_path"].as_str().context("no path of pingora-core")?.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
