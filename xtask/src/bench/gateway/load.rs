//! Load generators: `wrk` for the most that HTTP/1.1 gives, `h2load` for HTTP/2 and for a fixed rate.
//! Around both: what a proxy used meanwhile. Deliberately absent: which proxy, how often, in which order.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::process::{LOAD_CORE, cpu_seconds, pinned, resident_mib, tail};
use super::proxy::Proxy;
use super::{Place, Scenario};

/// Requests under way at a time.
pub const IN_FLIGHT: usize = 64;
/// Connections of HTTP/2, each with its share of the requests under way.
pub const H2_CONNECTIONS: usize = 16;

/// How many `h2load` make up a fixed rate.
const GENERATORS: usize = 8;
/// Between two moments at which one of them sends.
const WAVES: Duration = Duration::from_millis(10);

/// What `wrk` prints at its end; its own table lacks the last percentile.
const WRK_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("result %d %d %d %.0f %.0f %.0f\n", summary.requests, failed, summary.duration,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// How hard.
#[derive(Clone, Copy)]
pub enum Pace {
    /// As much as the proxy can.
    Most,
    /// So many requests a second, whoever the proxy is.
    Fixed(f64),
}

/// One window of load on one proxy.
#[derive(Clone, Copy)]
pub struct Window {
    /// Answered with 200.
    pub requests: f64,
    /// The window's length.
    pub seconds: f64,
    /// Latencies in microseconds: 50, 99 and 99.9 %.
    pub latency_us: [f64; 3],
    /// Processor time of the proxy.
    pub cpu_seconds: f64,
    /// Its memory at the end.
    pub resident_mib: f64,
}

impl Window {
    /// Microseconds of the proxy's processor time for one request.
    pub fn cpu_us(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.requests
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests / self.seconds
    }
}

/// Puts load on `proxy` for `seconds` and says what came of it. A failed request fails the measurement.
pub fn load(place: &Place, proxy: &Proxy, pace: Pace, seconds: u64) -> Result<Window> {
    let scenario = &place.scenario;
    let before = cpu_seconds(&proxy.cpu_of)?;
    let seen = match pace {
        Pace::Most if !scenario.h2 => wrk(place, proxy, seconds)?,
        pace => h2load(place, proxy, pace, seconds)?,
    };
    let cpu_seconds = cpu_seconds(&proxy.cpu_of)? - before;
    if seen.failed > 0 || seen.requests == 0 {
        bail!("{}: {} requests answered, {} failed; {}", proxy.kind.name(), seen.requests, seen.failed, seen.said);
    }
    Ok(Window {
        requests: seen.requests as f64,
        seconds: seen.seconds,
        latency_us: seen.latency_us,
        cpu_seconds,
        resident_mib: resident_mib(&proxy.memory_of)?,
    })
}

/// Writes what the generators read.
pub fn prepare(place: &Place) -> Result<()> {
    let mut script = WRK_SCRIPT.to_owned();
    if let Some(bytes) = place.scenario.posted() {
        script += &format!("wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", {bytes})\n");
        fs::write(place.file("body"), vec![b'x'; bytes])?;
    }
    Ok(fs::write(place.file("wrk.lua"), script)?)
}

/// What a generator saw.
struct Seen {
    requests: u64,
    failed: u64,
    seconds: f64,
    latency_us: [f64; 3],
    said: String,
}

fn wrk(place: &Place, proxy: &Proxy, seconds: u64) -> Result<Seen> {
    let mut command = pinned(LOAD_CORE, Path::new("wrk"))?;
    command.args(["--threads", "1", "--connections", &IN_FLIGHT.to_string(), "--timeout", "10s"]);
    command.args(["--duration", &format!("{seconds}s"), "--script"]).arg(place.file("wrk.lua"));
    let output = command.arg(url(&place.scenario, proxy)).output().context("cannot run wrk")?;
    let printed = printed(&output)?;
    let line = printed.lines().find_map(|line| line.strip_prefix("result "));
    let line = line.with_context(|| format!("wrk gave no result:\n{}", tail(&printed)))?;
    let fields: Vec<f64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    let [requests, failed, duration_us, latency_us @ ..] = &fields[..] else { bail!("wrk's result is short: {line}") };
    Ok(Seen {
        requests: *requests as u64,
        failed: *failed as u64,
        seconds: duration_us / 1e6,
        latency_us: latency_us.try_into().context("wrk gave too few percentiles")?,
        said: tail(&printed),
    })
}

/// `h2load` wakes its clients together, every 10 ms at most: at a fixed rate several of it, started one after the other,
/// put their waves between each other's.
fn h2load(place: &Place, proxy: &Proxy, pace: Pace, seconds: u64) -> Result<Seen> {
    let generators = if matches!(pace, Pace::Fixed(_)) { GENERATORS } else { 1 };
    let connections = if place.scenario.h2 { H2_CONNECTIONS } else { IN_FLIGHT } / generators;
    let mut running = Vec::new();
    for number in 0..generators {
        let log = place.file(&format!("h2load-{number}.log"));
        let _ = fs::remove_file(&log);
        let mut command = pinned(LOAD_CORE, Path::new("h2load"))?;
        command.args(["--clients", &connections.to_string(), "--duration", &format!("{seconds}s")]);
        command.args(["--max-concurrent-streams", &(IN_FLIGHT / connections / generators).to_string(), "--log-file"]);
        command.arg(&log);
        if !place.scenario.h2 {
            command.arg("--h1");
        }
        if let Pace::Fixed(rate) = pace {
            command.args(["--rps", &format!("{:.3}", rate / (connections * generators) as f64)]);
        }
        if place.scenario.posted().is_some() {
            command.arg("--data").arg(place.file("body"));
        }
        command.arg(url(&place.scenario, proxy)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        running.push((command.spawn().with_context(|| format!("cannot run {command:?}"))?, log));
        std::thread::sleep(WAVES / GENERATORS as u32);
    }
    let (mut took, mut failed, mut said) = (Vec::new(), 0, String::new());
    for (child, log) in running {
        said = printed(&child.wait_with_output()?)?;
        for line in fs::read_to_string(&log).unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [_, status, us, ..] = fields[..] else { bail!("h2load wrote `{line}`") };
            if status == "200" {
                took.push(us.parse::<f64>()?);
            } else {
                failed += 1;
            }
        }
    }
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
    let latency_us = [at(0.5), at(0.99), at(0.999)];
    Ok(Seen { requests: took.len() as u64, failed, seconds: seconds as f64, latency_us, said: tail(&said) })
}

fn url(scenario: &Scenario, proxy: &Proxy) -> String {
    format!("{}://{}/", if scenario.tls { "https" } else { "http" }, proxy.address)
}

fn printed(output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the load generator ended with {}\n{}", output.status, tail(&text));
    Ok(text)
}
