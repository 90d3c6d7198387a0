//! Load at a fixed rate on kept connections, and the prober: how soon a change is routed.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gateway::{Endpoints, Readiness};

use crate::table::{endpoint, random};
use crate::{Failure, HOT, INSTANCES, ROUTES_EACH, Stage};

/// Connections of the load.
pub const CLIENTS: u64 = 8;
/// Between two requests of a connection.
const PACE: Duration = Duration::from_millis(2);
/// Between two probes.
const PROBE_PACE: Duration = Duration::from_millis(20);
/// A client waits no longer for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One request's time.
pub struct Sample {
    pub window: u8,
    pub took: Duration,
}

/// What a client saw.
#[derive(Default)]
pub struct Seen {
    pub samples: Vec<Sample>,
    /// Answers that were none, connections that ended.
    pub failed: u64,
}

pub struct Load<'a> {
    pub stage: &'a Stage,
    pub gateway: SocketAddr,
}

impl Load<'_> {
    /// One connection's requests, to a hot service at random each. A request that was due while the one before was
    /// under way has waited since then.
    pub fn client(&self, seed: u64) -> Seen {
        let (mut seen, mut state) = (Seen::default(), seed);
        let mut stream = self.connect();
        let mut due = Instant::now() + PACE * (seed as u32) / CLIENTS as u32;
        while !self.stage.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            let mut begun = due;
            if now < due {
                std::thread::sleep(due - now);
                begun = Instant::now();
            }
            due += PACE;
            let drawn = random(&mut state) as usize;
            let (service, route) = (drawn % HOT, drawn / HOT % ROUTES_EACH);
            let window = self.stage.window.load(Ordering::Relaxed);
            match stream.as_mut().map_err(|_| "not connected".into()).and_then(|stream| ask(stream, service, route)) {
                Ok(_) if window > 0 => seen.samples.push(Sample { window, took: begun.elapsed() }),
                Ok(_) => {}
                Err(error) => {
                    eprintln!("lost: {error}");
                    seen.failed += 1;
                    stream = self.connect();
                }
            }
        }
        seen
    }

    /// Makes another instance the only ready one of a service of its own, again and again, and asks until it answers.
    pub fn prober(&self) -> Seen {
        let mut seen = Seen::default();
        let service = self.stage.table.service(&"probe".into());
        let mut stream = self.connect();
        for number in 0_u64.. {
            if self.stage.over.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(PROBE_PACE);
            let ready = number as usize % INSTANCES;
            let of = |slot| {
                let one = endpoint("probe", slot as u64 + number / INSTANCES as u64 * INSTANCES as u64, self.stage);
                let readiness = if slot == ready { Readiness::Ready } else { Readiness::NotReady };
                gateway::Endpoint { readiness, ..one }
            };
            let endpoints: Vec<_> = (0..INSTANCES).map(of).collect();
            let wanted = endpoints[ready].address.ip().to_string();
            let window = self.stage.window.load(Ordering::Relaxed);
            let begun = Instant::now();
            service.set_endpoints(Endpoints { endpoints, ..Endpoints::default() }).expect("no epoch");
            let outcome = loop {
                let Ok(stream) = stream.as_mut() else { break Err("not connected".into()) };
                match ask_host(stream, "probe", 0) {
                    Ok(answer) if answer.ends_with(&wanted) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            };
            match outcome {
                Ok(()) if window > 0 => seen.samples.push(Sample { window, took: begun.elapsed() }),
                Ok(()) => {}
                Err(error) => {
                    eprintln!("probe lost: {error}");
                    seen.failed += 1;
                    stream = self.connect();
                }
            }
        }
        seen
    }

    fn connect(&self) -> Result<TcpStream, Failure> {
        let stream = TcpStream::connect(self.gateway)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    }
}

fn ask(stream: &mut TcpStream, service: usize, route: usize) -> Result<String, Failure> {
    ask_host(stream, &format!("s-{service}"), route)
}

/// One request; the answer, head and body, if it is a good one.
fn ask_host(stream: &mut TcpStream, host: &str, route: usize) -> Result<String, Failure> {
    stream.write_all(format!("GET /r-{route}/x HTTP/1.1\r\nHost: {host}.example\r\n\r\n").as_bytes())?;
    let (mut answer, mut filled) = ([0; 2_048], 0);
    loop {
        let count = stream.read(&mut answer[filled..])?;
        if count == 0 {
            return Err("closed instead of answered".into());
        }
        filled += count;
        let text = std::str::from_utf8(&answer[..filled])?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if !head.starts_with("HTTP/1.1 200") {
            return Err(text.into());
        }
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if length == Some(body.len()) {
            return Ok(text.to_owned());
        }
    }
}
