//! Clients that call one thing after the other and write down when each call began, when it was answered, and how.
//! Deliberately absent: pauses; what is measured is the longest time without an answer.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use crate::rounds::http::{Answer, Connection};
use crate::rounds::network::{Network, enter};

/// Where the gateway of a node listens, in its own namespace.
const GATEWAY: &str = "127.0.0.1:8080";
const TIMEOUT: Duration = Duration::from_secs(30);
/// A client that adds to the ledger asks again, under the same key, after this time: what it sent may be with a node that
/// nobody hears any more, where it stays until the route's timeout.
const PATIENCE: Duration = Duration::from_millis(200);

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    pub sent: Instant,
    pub done: Instant,
    /// The status; 0 if there was no answer.
    pub status: u16,
    /// What the body said of the epoch; 0 if nothing.
    pub epoch: u64,
    /// The key that was acknowledged.
    pub key: String,
}

/// What clients do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Write keys through the API.
    Put,
    /// Add to the ledger through the gateway, each key until it is acknowledged.
    Post,
    /// Read from a service through the gateway.
    Get(&'static str),
    /// Append 64 KiB to a stream of their own through the API.
    Flood,
}

/// Running clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<Mutex<Vec<Call>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// `clients` on each of `places`.
    pub fn start(network: &Network, places: &[usize], clients: usize, doing: Doing) -> Result<Self> {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let mut threads = Vec::new();
        for place in places {
            for _ in 0..clients {
                let (stop, calls) = (Arc::clone(&stop), Arc::clone(&calls));
                let namespace = network.open()?.swap_remove(*place);
                threads.push(std::thread::spawn(move || client(&namespace, doing, &stop, &calls)));
            }
        }
        Ok(Self { stop, calls, clients: threads })
    }

    /// The first success that was asked for after `since` and that `fits`.
    pub fn first(&self, since: Instant, fits: impl Fn(&Call) -> bool) -> Option<Call> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let late = calls.iter().rev().take_while(|call| call.done > since);
        late.filter(|call| call.status == 200 && fits(call)).min_by_key(|call| call.done).cloned()
    }

    /// Successes so far.
    pub fn acknowledged(&self) -> usize {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.iter().filter(|call| call.status == 200).count()
    }

    /// Everything so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops and gives everything.
    pub fn finish(mut self) -> Vec<Call> {
        self.stop.store(true, Ordering::SeqCst);
        for client in std::mem::take(&mut self.clients) {
            // Ignored: what it saw before is there.
            let _ = client.join();
        }
        self.calls()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn client(namespace: &File, doing: Doing, stop: &AtomicBool, calls: &Mutex<Vec<Call>>) {
    static KEYS: AtomicU64 = AtomicU64::new(0);
    if enter(namespace).is_err() {
        return;
    }
    if doing == Doing::Flood {
        give_way();
    }
    let mut connection = None;
    let flood = vec![b'x'; 64 * 1024];
    let mut key = String::new();
    while !stop.load(Ordering::SeqCst) {
        if key.is_empty() {
            key = format!("bench-{}", KEYS.fetch_add(1, Ordering::Relaxed));
        }
        let sent = Instant::now();
        let answer = call(&mut connection, doing, &key, &flood);
        if answer.is_err() {
            connection = None;
        }
        let (status, body) = answer.map_or((0, Value::Null), |answer| (answer.status, answer.json()));
        let one = Call {
            sent,
            done: Instant::now(),
            status,
            epoch: body["epoch"].as_u64().unwrap_or_default(),
            key: if status == 200 { key.clone() } else { String::new() },
        };
        calls.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        if status == 200 || doing != Doing::Post {
            key.clear();
        }
        if status != 200 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Who floods stands for other machines: beside what is measured, its own work takes the processors last. It still takes all that
/// is left of them.
fn give_way() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, 19);
}

fn call(open: &mut Option<Connection>, doing: Doing, key: &str, flood: &[u8]) -> std::io::Result<Answer> {
    if open.is_none() {
        *open = Some(match doing {
            Doing::Put | Doing::Flood => Connection::open(TIMEOUT)?,
            Doing::Get(_) => Connection::to(GATEWAY, TIMEOUT)?,
            Doing::Post => Connection::to(GATEWAY, PATIENCE)?,
        });
    }
    let Some(connection) = open else { return Err(std::io::ErrorKind::NotConnected.into()) };
    match doing {
        Doing::Put => connection.send("PUT", &format!("/api/v1/kv/bench/{}", key.len()), key.as_bytes()),
        Doing::Flood => connection.send("POST", "/api/v1/streams/flood", flood),
        Doing::Get(path) => connection.send("GET", path, b""),
        Doing::Post => connection.send_with("POST", "/ledger?amount=1", &format!("idempotency-key: {key}\r\n"), b""),
    }
}
