//! `cargo xtask bench limiter`: what a rate limit lets through in ten seconds of four times its rate, over 64 connections that
//! send evenly. Between one second after the begin, when the burst of a pause is used up, and the end.
//! Deliberately absent: peers (`--guards`), and what a decision costs (`cargo run --release -p traffic --example decide`).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;

use super::process::{LOAD_CORE, PROXY_CORE, Running, load_average, pinned, tail};
use super::{build_own, proxy, start_backend};
use crate::bench::{section, shipped};
use crate::root;

/// What its section is called.
const NAME: &str = "Rate limits under four times their load";
/// Requests a second.
const LIMITS: [u32; 3] = [50, 1_000, 20_000];
/// The load, in limits.
const LOAD: u32 = 4;
const CONNECTIONS: u32 = 64;
/// One `h2load` sends for all of its clients at the same moment; several stand between each other's. A low rate needs one for each
/// connection: what comes together would be more than the burst of a limit.
const GENERATORS: [u32; 2] = [64, 8];
/// The limit from which on the second number is enough.
const HIGH: u32 = 1_000;
const SECONDS: u64 = 10;
/// Before it is counted.
const SETTLE: u64 = 1;

/// Measures, prints, records.
pub fn limiter() -> Result<()> {
    ensure!(cfg!(target_os = "linux"), "this bench holds processes to cores: it runs on Linux only");
    proxy::apt("h2load", "nghttp2-client")?;
    let (program, _) = shipped()?;
    let own = build_own(program.ancestors().nth(2).context("no target folder")?, "dist")?;
    let folder = tempfile::Builder::new().prefix("seawall-bench-").tempdir()?;
    let (backend, _backend) = start_backend(&own, folder.path(), 65)?;
    let mut text = format!(
        "### {NAME}\n\n\
         | limit, QPS | came a second | let through a second | beside the limit |\n| ---: | ---: | ---: | ---: |\n"
    );
    for qps in LIMITS {
        let (came, admitted) = measure(&program, folder.path(), backend, qps)?;
        let (came, admitted) = (came as f64 / SECONDS as f64, admitted as f64 / SECONDS as f64);
        let error = (admitted / f64::from(qps) - 1.0) * 100.0;
        writeln!(text, "| {qps} | {came:.0} | {admitted:.1} | {error:+.2} % |")?;
        eprintln!("{qps} QPS: {came:.0} came a second, {admitted:.1} were let through: {error:+.2} %");
    }
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    writeln!(
        text,
        "\n{CONNECTIONS} connections, {SECONDS} s; load average {:.1}. Linux {}.",
        load_average()?,
        kernel.trim()
    )?;
    println!("\n{text}");
    section::record(&root().join("bench/RESULTS.md"), "limiter", NAME, &text)
}

/// How many requests came, and how many were let through.
fn measure(program: &Path, folder: &Path, backend: std::net::SocketAddr, qps: u32) -> Result<(u64, u64)> {
    let config = json!({
        "node": { "name": "bench", "dataDir": folder.join(format!("data-{qps}")) },
        "api": { "listen": "127.0.0.1:0" },
        "gateway": { "listen": ["127.0.0.1:0"] },
        "services": { "backend": { "endpoints": [backend.to_string()], "traffic": { "rateLimit": { "qps": qps } } } },
        "routes": [{ "to": { "service": "backend" } }],
    });
    let file = folder.join(format!("seawall-{qps}.yaml"));
    fs::write(&file, config.to_string())?;
    let mut command = pinned(PROXY_CORE, program)?;
    command.arg("up").arg(&file);
    let mut running = Running::start(command, folder.join(format!("seawall-{qps}.log")))?;
    let address: String = running.wait_for("line `ready`", |said| {
        let ready = said.lines().find_map(|line| line.strip_prefix("ready "))?;
        let ready: serde_json::Value = serde_json::from_str(ready).ok()?;
        Some(ready["gateway"][0].as_str()?.to_owned())
    })?;
    let count = GENERATORS[usize::from(qps >= HIGH)];
    let clients = CONNECTIONS / count;
    let turn = Duration::from_secs_f64(f64::from(clients) / f64::from(qps * LOAD));
    let each = f64::from(qps * LOAD) / f64::from(CONNECTIONS);
    let mut generators = Vec::new();
    for number in 0..count {
        let log = folder.join(format!("load-{qps}-{number}.log"));
        let mut command = pinned(LOAD_CORE, Path::new("h2load"))?;
        command.args(["--h1", "--clients", &clients.to_string(), "--rps", &format!("{each:.4}")]);
        command.args(["--duration", &format!("{}s", SECONDS + 2 * SETTLE), "--log-file"]).arg(&log);
        command.arg(format!("http://{address}/")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        generators.push((command.spawn().with_context(|| format!("cannot run {command:?}"))?, log));
        // Each sends every 10 ms at most.
        std::thread::sleep(turn.max(Duration::from_millis(10) / count));
    }
    let mut requests = Vec::new();
    for (child, log) in generators {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "h2load: {}", tail(&String::from_utf8_lossy(&output.stderr)));
        for line in fs::read_to_string(&log)?.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [at, status, ..] = fields[..] else { bail!("h2load wrote `{line}`") };
            requests.push((at.parse::<u64>()?, status.parse::<i32>()?));
        }
    }
    let first = requests.iter().map(|(at, _)| *at).min().context("nobody came")?;
    let from = first + SETTLE * 1_000_000;
    let counted = || requests.iter().filter(|(at, _)| (from..from + SECONDS * 1_000_000).contains(at));
    let odd = counted().find(|(_, status)| ![200, 429].contains(status));
    ensure!(odd.is_none(), "an answer of the status {odd:?}: {}", tail(&running.output()));
    Ok((counted().count() as u64, counted().filter(|(_, status)| *status == 200).count() as u64))
}
