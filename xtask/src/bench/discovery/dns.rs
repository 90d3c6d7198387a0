//! Answers by DNS, beside dnsmasq: each held to one core, asked by `dnsperf` on the other, in turn.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::client::Client;
use crate::bench::process::{LOAD_CORE, PROXY_CORE, Running, free_port, pinned};

/// Services that are asked for.
const SERVICES: usize = 1000;
/// Instances of each.
const INSTANCES: usize = 3;
/// Windows of each server; the median counts.
const ROUNDS: usize = 5;

/// One window.
struct Window {
    per_second: f64,
    lost: u64,
    milliseconds: f64,
}

/// Measures; the lines for the report.
pub fn run(program: &Path, folder: &Path, seconds: u64) -> Result<String> {
    fs::create_dir_all(folder)?;
    for tool in ["dnsperf", "dnsmasq"] {
        if Command::new(tool).arg("--version").output().is_err() {
            bail!("no {tool} here: apt-get install dnsperf dnsmasq-base");
        }
    }
    let (own, own_address, api) = own(program, folder)?;
    fill(api)?;
    let (peer, peer_address) = peer(folder)?;
    let mut text = String::new();
    for kind in ["A", "SRV"] {
        let (own_file, peer_file) = (folder.join(format!("own-{kind}")), folder.join(format!("peer-{kind}")));
        let (mut own_lines, mut peer_lines) = (String::new(), String::new());
        for number in 0..SERVICES {
            writeln!(own_lines, "web-{number}.service.consul {kind}")?;
            let peer_name = if kind == "A" { format!("web-{number}.peer") } else { format!("_web-{number}._tcp.peer") };
            writeln!(peer_lines, "{peer_name} {kind}")?;
        }
        fs::write(&own_file, own_lines)?;
        fs::write(&peer_file, peer_lines)?;
        let (mut own_seen, mut peer_seen) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let mut turns = [(&own_file, own_address, &mut own_seen), (&peer_file, peer_address, &mut peer_seen)];
            if round % 2 == 1 {
                turns.reverse();
            }
            for (file, address, seen) in turns {
                seen.push(ask(file, address, (seconds / 4).max(2))?);
            }
        }
        let lost: u64 = own_seen.iter().map(|window| window.lost).sum();
        let (own, peer) = (median(&own_seen), median(&peer_seen));
        writeln!(
            text,
            "- **DNS, {kind}**, {INSTANCES} instances, one core, `dnsperf` on the other: **{:.0} a second** (average {:.2} ms, \
             {lost} lost); dnsmasq with the same answers {:.0} a second. The median of {ROUNDS} windows each, in turn.",
            own.0, own.1, peer.0,
        )?;
    }
    print!("{text}");
    drop((own, peer));
    Ok(text)
}

fn own(program: &Path, folder: &Path) -> Result<(Running, SocketAddr, SocketAddr)> {
    let api = free_port()?;
    let file = folder.join("seawall.yaml");
    let text = format!(
        "node: {{ name: bench, dataDir: {:?} }}\napi: {{ listen: \"{api}\" }}\ndns: {{ listen: \"127.0.0.1:0\" }}\n\
         gateway: {{ listen: [\"127.0.0.1:0\"] }}\n",
        folder.join("data"),
    );
    fs::write(&file, text)?;
    let mut command = pinned(PROXY_CORE, program)?;
    command.arg("up").arg(&file);
    let mut running = Running::start(command, folder.join("seawall.log"))?;
    running.wait_listening(api)?;
    let dns = running.wait_for("line that it is ready", |said| {
        let line = said.lines().find_map(|line| line.strip_prefix("ready "))?;
        serde_json::from_str::<serde_json::Value>(line).ok()?["dns"].as_str()?.parse().ok()
    })?;
    Ok((running, dns, api))
}

fn address(number: usize, instance: usize) -> String {
    format!("10.{}.{}.{}", instance + 1, number / 250, number % 250 + 1)
}

fn fill(api: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut client = Client::connect(api).await?;
        for number in 0..SERVICES {
            for instance in 0..INSTANCES {
                let body = format!(
                    r#"{{"ID":"web-{number}-{instance}","Name":"web-{number}","Address":"{}","Port":80}}"#,
                    address(number, instance)
                );
                client.done("PUT", "/v1/agent/service/register", &body).await?;
            }
        }
        Ok(())
    })
}

fn peer(folder: &Path) -> Result<(Running, SocketAddr)> {
    let port = free_port()?;
    let mut hosts = String::new();
    let mut more = format!(
        "no-resolv\nno-hosts\nkeep-in-foreground\nport={}\nlisten-address=127.0.0.1\nbind-interfaces\nlocal=/peer/\naddn-hosts={}\n",
        port.port(),
        folder.join("hosts").display()
    );
    for number in 0..SERVICES {
        for instance in 0..INSTANCES {
            writeln!(hosts, "{} web-{number}.peer web-{number}-{instance}.peer", address(number, instance))?;
            writeln!(more, "srv-host=_web-{number}._tcp.peer,web-{number}-{instance}.peer,80")?;
        }
    }
    fs::write(folder.join("hosts"), hosts)?;
    let file = folder.join("dnsmasq.conf");
    fs::write(&file, more)?;
    let mut command = pinned(PROXY_CORE, Path::new("dnsmasq"))?;
    command.args(["--user=root", "--group=root", "--pid-file=", "-C"]).arg(&file);
    let mut running = Running::start(command, folder.join("dnsmasq.log"))?;
    running.wait_listening(port)?;
    Ok((running, port))
}

fn ask(file: &Path, server: SocketAddr, seconds: u64) -> Result<Window> {
    let mut command = Command::new("taskset");
    command.args(["-c", &LOAD_CORE.to_string(), "dnsperf", "-s", &server.ip().to_string()]);
    command
        .args(["-p", &server.port().to_string(), "-l", &seconds.to_string(), "-c", "4", "-q", "200", "-d"])
        .arg(file);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let number = |name: &str| -> Result<f64> {
        let line = said.lines().map(str::trim).find(|line| line.starts_with(name)).with_context(|| said.to_string())?;
        let word = line[name.len()..].split_whitespace().next().context("a number")?;
        Ok(word.parse()?)
    };
    if !said.contains("NOERROR") || said.contains("NXDOMAIN") || said.contains("REFUSED") {
        bail!("not all answers are good:\n{said}");
    }
    Ok(Window {
        per_second: number("Queries per second:")?,
        lost: number("Queries lost:")? as u64,
        milliseconds: number("Average Latency (s):")? * 1000.0,
    })
}

fn median(windows: &[Window]) -> (f64, f64) {
    let middle = |of: fn(&Window) -> f64| {
        let mut all: Vec<f64> = windows.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    (middle(|window| window.per_second), middle(|window| window.milliseconds))
}
