//! Clients of a round: each calls one thing after the other, on a random key through a random node, and writes down
//! what it saw. What is not certain is unknown: a time-out, a break after the request was sent, 504.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::chance::Chance;
use super::history::{Did, NEVER, Operation};
use super::http::{Answer, Connection};
use super::network::enter;

/// Longest wait of a client; shorter than the product's own patience, so that some of its answers come too late.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// A client asks others for so long after a node did not answer, in milliseconds, at least and at most.
const AVOIDS: (u64, u64) = (100, 3_000);

/// What clients share.
pub struct Field {
    pub began: Instant,
    pub namespaces: Vec<File>,
    /// Of each node's API, if it needs one.
    pub tokens: Vec<Option<PathBuf>>,
    pub keys: usize,
    /// Longest pause between two calls.
    pub think_ms: u64,
    /// Values have this many bytes at least.
    pub value_bytes: usize,
    pub stop: AtomicBool,
    /// The next value; none is written twice.
    pub next_value: AtomicU64,
}

/// What one client saw.
#[derive(Default)]
pub struct Seen {
    pub history: Vec<Operation>,
    /// Calls that could not be begun: nobody took the connection.
    pub unreachable: u64,
    /// Answers no request of a round may get.
    pub odd: Vec<String>,
}

impl Field {
    /// Microseconds since the round began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a round lasts less than 500 000 years")
    }
}

/// A client with its connections, one a node.
pub struct Client {
    number: usize,
    field: Arc<Field>,
    connections: Vec<Option<Connection>>,
    avoid_until: Vec<Instant>,
    /// It asks this one only.
    home: Option<usize>,
    chance: Chance,
    /// The newest revision it knows of each key, for comparisons.
    known: BTreeMap<usize, u64>,
    pub seen: Seen,
}

/// What to do.
#[derive(Clone, Copy)]
enum Call {
    Read,
    Write { value: u64, cas: Option<u64> },
}

impl Client {
    /// A client that has done nothing yet.
    pub fn new(number: usize, field: Arc<Field>, chance: Chance) -> Self {
        let nodes = field.namespaces.len();
        let (connections, avoid_until) = ((0..nodes).map(|_| None).collect(), vec![Instant::now(); nodes]);
        // The first ones stay with a node each, so that no node that hangs can keep all clients.
        let home = (number < nodes).then_some(number);
        Self { number, field, connections, avoid_until, home, chance, known: BTreeMap::new(), seen: Seen::default() }
    }

    /// Calls until the round's end.
    pub fn run(mut self) -> Seen {
        while !self.field.stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(self.chance.between(0, self.field.think_ms)));
            let node = self.home.unwrap_or_else(|| self.chance.place(self.connections.len()));
            if self.avoid_until[node] > Instant::now() {
                continue;
            }
            let key = self.chance.place(self.field.keys);
            let call = match self.chance.below(100) {
                0..35 => Call::Read,
                dice => {
                    let cas = (dice >= 75).then(|| self.known.get(&key).copied().unwrap_or(0));
                    Call::Write { value: self.field.next_value.fetch_add(1, Ordering::Relaxed), cas }
                }
            };
            self.call(node, key, call);
        }
        self.seen
    }

    /// One linearizable read that counts; whether there was an answer.
    pub fn read(&mut self, node: usize, key: usize) -> bool {
        let before = self.seen.history.len();
        self.call(node, key, Call::Read);
        self.seen.history.len() > before
    }

    fn connection(&mut self, node: usize) -> Option<Connection> {
        if let Some(connection) = self.connections[node].take() {
            return Some(connection);
        }
        let opened = enter(&self.field.namespaces[node]).ok().and_then(|()| Connection::open(TIMEOUT).ok());
        let opened = opened.and_then(|open| open.with_token(self.field.tokens[node].as_deref()).ok());
        if opened.is_none() {
            self.seen.unreachable += 1;
            self.avoid_until[node] = Instant::now() + Duration::from_millis(AVOIDS.0);
        }
        opened
    }

    fn call(&mut self, node: usize, key: usize, call: Call) {
        let Some(mut connection) = self.connection(node) else { return };
        let path = format!("/api/v1/kv/key-{key}");
        let called = self.field.now();
        let answer = match call {
            Call::Read => connection.send("GET", &path, b""),
            Call::Write { value, cas } => {
                let path = cas.map_or(path.clone(), |cas| format!("{path}?cas={cas}"));
                connection.send("PUT", &path, format!("{value:<width$}", width = self.field.value_bytes).as_bytes())
            }
        };
        let returned = self.field.now();
        let did = match &answer {
            Ok(answer) => self.judge(node, call, answer),
            Err(_) => unknown(call),
        };
        match answer {
            Ok(_) => self.connections[node] = Some(connection),
            Err(_) => {
                let pause = Duration::from_millis(self.chance.between(AVOIDS.0, AVOIDS.1));
                self.avoid_until[node] = Instant::now() + pause;
            }
        }
        let Some(did) = did else { return };
        match did {
            Did::Read(Some((_, revision)))
            | Did::Wrote { revision, .. }
            | Did::Conflicted { current: revision, .. } => {
                self.known.insert(key, revision);
            }
            Did::Read(None) | Did::Unknown { .. } | Did::Refused { .. } => {}
        }
        let returned = if matches!(did, Did::Unknown { .. }) { NEVER } else { returned };
        self.seen.history.push(Operation { client: self.number, node, key, called, returned, did });
    }

    /// What an answer says of the call.
    fn judge(&mut self, node: usize, call: Call, answer: &Answer) -> Option<Did> {
        let number = |name: &str| answer.json()[name].as_u64();
        match (call, answer.status) {
            (Call::Read, 200) => {
                let text = String::from_utf8_lossy(&answer.body);
                if let (Ok(value), Some(revision)) = (text.trim().parse(), answer.revision) {
                    return Some(Did::Read(Some((value, revision))));
                }
            }
            (Call::Read, 404) => return Some(Did::Read(None)),
            (Call::Write { value, cas }, 200) => {
                if let Some(revision) = number("revision") {
                    return Some(Did::Wrote { value, cas, revision });
                }
            }
            (Call::Write { cas: Some(cas), .. }, 409) => {
                if let Some(current) = number("revision") {
                    return Some(Did::Conflicted { cas, current });
                }
            }
            // Documented: nothing was written. It is taken at its word.
            (Call::Write { value, .. }, 503 | 507) => return Some(Did::Refused { value }),
            (Call::Read, 503) => return None,
            (_, 504) => return unknown(call),
            _ => {}
        }
        let body = String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
        self.seen.odd.push(format!("n{} answered {} {body}", node + 1, answer.status));
        unknown(call)
    }
}

fn unknown(call: Call) -> Option<Did> {
    match call {
        // A read without an answer says nothing.
        Call::Read => None,
        Call::Write { value, cas } => Some(Did::Unknown { value, cas }),
    }
}
