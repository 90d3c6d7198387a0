//! Clients that we did not write, unmodified, against the real binary. Each is fetched once by the package manager it is
//! published for; where that cannot be, its test says so in one line and is skipped.

mod go_consul;
mod nginx;
mod node_consul;
mod prometheus;
mod py_consul;
mod traefik;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::Seawall;

/// Fetching takes no longer on a slow line.
const FETCHING: Duration = Duration::from_secs(300);

/// The folder of a client, made by `make` if it is not there yet; `None`, and one line that says why, where it cannot be had.
fn obtained(what: &str, make: impl FnOnce(&Path) -> Result<(), String>) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(what);
    if folder.exists() {
        return Some(folder);
    }
    // Elsewhere first: what was interrupted must not look finished.
    let fresh = folder.with_extension(format!("new-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).unwrap();
    match make(&fresh) {
        Ok(()) => {
            std::fs::rename(&fresh, &folder).unwrap();
            Some(folder)
        }
        Err(why) => {
            // Ignored: what is left of it disturbs nobody.
            let _ = std::fs::remove_dir_all(&fresh);
            skipped(what, &why);
            None
        }
    }
}

/// Past the capture of the test's output: nobody must take a test that did not run for one that passed.
fn skipped(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: the test with {what}, which cannot be had here: {why}");
}

/// Runs a program to its end, a bounded time; its output.
fn run(command: &mut Command, patience: Duration) -> Result<(bool, String), String> {
    let name = format!("{:?}", command.get_program());
    let output = tempfile::NamedTempFile::new().unwrap();
    let both = File::options().append(true).open(output.path()).unwrap();
    let child = command.stdin(Stdio::null()).stdout(both.try_clone().unwrap()).stderr(both).spawn();
    let mut child = Ended(child.map_err(|error| format!("{name}: {error}"))?);
    let deadline = Instant::now() + patience;
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            return Err(format!("{name} has not ended within {patience:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Ok((status.success(), std::fs::read_to_string(output.path()).unwrap_or_default()))
}

/// The same for a step of fetching: its last line is why it failed.
fn fetch(command: &mut Command) -> Result<(), String> {
    match run(command, FETCHING)? {
        (true, _) => Ok(()),
        (false, said) => Err(said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it failed").to_owned()),
    }
}

/// Tells apart what is made of this from what is made of something else.
fn digest(of: &impl std::hash::Hash) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    of.hash(&mut hasher);
    format!("{:x}", std::hash::Hasher::finish(&hasher))
}

/// A process of a client; killed when dropped.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Ignored: it may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that nobody here runs: answers every request with its name until it is dropped.
struct Program {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
}

impl Program {
    fn start(name: &'static str) -> Self {
        Self::start_at(name, TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn start_at(name: &'static str, listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let ends = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&ends);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                if ending.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::spawn(move || {
                    let mut head = [0; 4096];
                    // Ignored: whoever only connects has gone.
                    let _ = stream.read(&mut head);
                    // What Prometheus takes for metrics, too.
                    let body = format!("# {name}\n");
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = stream.write_all(answer.as_bytes());
                });
            }
        });
        Self { address, ends }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // Wakes it; its port refuses afterwards, as that of a process that has ended.
        drop(std::net::TcpStream::connect(self.address));
    }
}

/// Registers a program, checked every second.
fn register(seawall: &Seawall, service: &str, id: &str, program: &Program) {
    let body = json!({ "Name": service, "ID": id, "Address": program.address.ip().to_string(), "Port": program.address.port(), "Tags": ["v1"],
        "Check": { "HTTP": format!("http://{}/", program.address), "Interval": "1s" } });
    let answer = seawall.api("PUT", "/v1/agent/service/register", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}
