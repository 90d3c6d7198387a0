//! Installs the tools that tests point at the gateway (`crates/gateway/tests/clients/tools.rs`) and at the registry: Debian's packages with
//! apt, hey with Go. Not needed for `cargo xtask test`, which skips what is not there and says so.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::run;

/// Programs and Debian's packages they come in.
const PACKAGES: [(&str, &str); 7] = [
    ("curl", "curl"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("chromium", "chromium"),
    ("dig", "dnsutils"),
    ("nginx", "nginx-light"),
    ("prometheus", "prometheus"),
];
/// A load generator in Go.
const HEY: &str = "github.com/rakyll/hey@v0.1.5";

/// Installs what is not there.
pub fn tools(root: &Path) -> Result<()> {
    let missing: Vec<&str> =
        PACKAGES.iter().filter(|(program, _)| !starts(program)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        ensure!(starts("apt-get"), "install these by hand, there is no apt-get here: {}", missing.join(", "));
        let apt = |arguments: &[&str]| {
            let mut apt = Command::new("apt-get");
            // The run level keeps Debian from starting what it installs.
            apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
            run(&mut apt).context("apt-get needs root")
        };
        apt(&["update", "--quiet"])?;
        apt(&[&["install", "--yes", "--quiet", "--no-install-recommends"], &missing[..]].concat())?;
    }
    let place = root.join("target/tools");
    if !place.join("hey").exists() && !starts("hey") {
        std::fs::create_dir_all(&place)?;
        run(Command::new("go").args(["install", HEY]).env("GOBIN", &place))
            .context("hey is built with Go: install it, https://go.dev/dl")?;
    }
    println!("tools: all there");
    Ok(())
}

/// Whether a program can be started; what it says to `--version` does not matter.
fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok()
}
