//! Clients of the logs of a round: those that append to the stream `log` through the API of any node, and those that add to
//! the service `ledger` through any gateway. Each does one thing until it is acknowledged, under the same number or key,
//! whatever breaks meanwhile: that makes it exactly once. What is not acknowledged at the end may be there or not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::chance::Chance;
use super::client::Field;
use super::entries::{Entry, Log, Look};
use super::http::{API, Answer, Connection};
use super::network::enter;

/// Longest wait of a client.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// A node that did not answer is left alone for so long, in milliseconds, at least and at most.
const AVOIDS: (u64, u64) = (50, 1_000);
/// Where the gateway of a node listens, in its own namespace.
const GATEWAY: &str = "127.0.0.1:8080";
/// Entries in a look.
const LOOK: u64 = 50;

/// What a client writes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Into {
    /// The stream `log`.
    Log,
    /// The service `ledger`.
    Ledger,
}

/// What one client saw.
#[derive(Default)]
pub struct Saw {
    pub log: Log,
    /// Attempts that had to be repeated.
    pub again: u64,
    /// Answers nobody may get.
    pub odd: Vec<String>,
}

/// A client with its connections, one a node.
pub struct Scribe {
    into: Into,
    number: usize,
    field: Arc<Field>,
    connections: Vec<Option<Connection>>,
    avoid_until: Vec<Instant>,
    chance: Chance,
    saw: Saw,
}

/// What an answer to a write means.
enum Meaning {
    Acknowledged { offset: Option<u64>, epoch: Option<u64> },
    Again,
    Odd,
}

impl Scribe {
    /// A client that has done nothing yet.
    pub fn new(into: Into, number: usize, field: Arc<Field>, chance: Chance) -> Self {
        let nodes = field.namespaces.len();
        let (connections, avoid_until) = ((0..nodes).map(|_| None).collect(), vec![Instant::now(); nodes]);
        Self { into, number, field, connections, avoid_until, chance, saw: Saw::default() }
    }

    fn stopped(&self) -> bool {
        self.field.stop.load(Ordering::Relaxed)
    }

    /// Writes and looks until the round's end.
    pub fn run(mut self) -> Saw {
        let mut next = 1;
        while !self.stopped() && self.saw.odd.is_empty() {
            std::thread::sleep(Duration::from_millis(self.chance.between(0, self.field.think_ms / 2)));
            if self.chance.percent(25) {
                self.look(next);
            } else if self.write(next) {
                next += 1;
            }
        }
        self.saw
    }

    /// Writes one thing until it is acknowledged or the round ends; whether it is.
    fn write(&mut self, number: u64) -> bool {
        let what = format!("{}-{number}", self.number);
        let called = self.field.now();
        while !self.stopped() {
            let (path, more, body) = match self.into {
                Into::Log => {
                    let path = format!("/api/v1/streams/log?producer=p{}&seq={number}", self.number);
                    (path, String::new(), what.as_bytes())
                }
                Into::Ledger => ("/ledger?amount=1".to_owned(), format!("idempotency-key: {what}\r\n"), &[][..]),
            };
            let Some(answer) = self.ask("POST", &path, &more, body) else { continue };
            match self.meaning(&answer) {
                Meaning::Acknowledged { offset, epoch } => {
                    let returned = self.field.now();
                    self.saw.log.acknowledged.push(Entry { what, called, returned, offset, epoch });
                    return true;
                }
                Meaning::Again => {
                    self.saw.again += 1;
                    std::thread::sleep(Duration::from_millis(self.chance.between(2, 40)));
                }
                Meaning::Odd => {
                    let body = String::from_utf8_lossy(&answer.body).chars().take(300).collect::<String>();
                    self.saw.odd.push(format!("{:?} {path} was answered {} {body}", self.into, answer.status));
                    return false;
                }
            }
        }
        false
    }

    fn meaning(&self, answer: &Answer) -> Meaning {
        let told = answer.json();
        match (self.into, answer.status) {
            (Into::Log, 200) if told["durability"] != "sync" => Meaning::Odd,
            (_, 200) => Meaning::Acknowledged { offset: told["offset"].as_u64(), epoch: told["epoch"].as_u64() },
            (_, 500..600) => Meaning::Again,
            // From an instance that has stepped down.
            (Into::Ledger, 409) => Meaning::Again,
            _ => Meaning::Odd,
        }
    }

    fn look(&mut self, next: u64) {
        let called = self.field.now();
        match self.into {
            Into::Log => {
                // Others append too: some entries are new, some have been there for long.
                let from = self.chance.below(next * 2);
                let path = format!("/api/v1/streams/log?from={from}&limit={LOOK}");
                let Some(answer) = self.ask("GET", &path, "", b"").filter(|answer| answer.status == 200) else {
                    return;
                };
                let text = String::from_utf8_lossy(&answer.body);
                let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
                let entry =
                    |line: serde_json::Value| Some((line["offset"].as_u64()?, line["data"].as_str()?.to_owned()));
                let entries: Vec<_> = lines.map(entry).collect::<Option<_>>().unwrap_or_default();
                match answer.end {
                    Some(end) if entries.len() as u64 == end.saturating_sub(from).min(LOOK) => {
                        self.saw.log.looks.push(Look { called, end, epoch: None, entries });
                    }
                    end => self.saw.odd.push(format!("{path} gave {} entries, end {end:?}", entries.len())),
                }
            }
            Into::Ledger => {
                let Some(answer) = self.ask("GET", "/ledger", "", b"").filter(|answer| answer.status == 200) else {
                    return;
                };
                let told = answer.json();
                if let Some(end) = told["balance"].as_u64().filter(|_| told["role"] == "primary") {
                    let epoch = told["epoch"].as_u64();
                    self.saw.log.looks.push(Look { called, end, epoch, entries: Vec::new() });
                }
            }
        }
    }

    /// One attempt through some node; none if it did not answer.
    fn ask(&mut self, method: &str, path: &str, more: &str, body: &[u8]) -> Option<Answer> {
        let first = self.chance.place(self.connections.len());
        let nodes = (0..self.connections.len()).map(|step| (first + step) % self.connections.len());
        let Some(node) = nodes.into_iter().find(|node| self.avoid_until[*node] <= Instant::now()) else {
            std::thread::sleep(Duration::from_millis(5));
            return None;
        };
        let open = || {
            enter(&self.field.namespaces[node]).ok()?;
            if self.into == Into::Ledger {
                return Connection::to(GATEWAY, TIMEOUT).ok();
            }
            Connection::to(API, TIMEOUT).ok()?.with_token(self.field.tokens[node].as_deref()).ok()
        };
        let answer = self.connections[node].take().or_else(open).and_then(|mut connection| {
            let answer = connection.send_with(method, path, more, body).ok()?;
            Some((connection, answer))
        });
        let Some((connection, answer)) = answer else {
            self.saw.again += 1;
            self.avoid_until[node] = Instant::now() + Duration::from_millis(self.chance.between(AVOIDS.0, AVOIDS.1));
            return None;
        };
        if !answer.closing {
            self.connections[node] = Some(connection);
        }
        Some(answer)
    }
}

/// The file of a primary-standby service of `seawall demo-service`s that is reached under `/NAME`; `more` lines of it.
pub fn service(name: &str, more: &str) -> String {
    format!(
        "  {name}:\n    mode: primary-standby\n    replicas: 2\n    command: [seawall, demo-service, --name, {name}, --port, \"${{port}}\", --host, \"${{address}}\"]\n{more}    livenessProbe: {{ httpGet: {{ path: /health }}, periodSeconds: 1, failureThreshold: 3 }}\n    readinessProbe: {{ httpGet: {{ path: /ready }}, periodSeconds: 1 }}\n    onPromote: {{ httpPost: {{ path: /promote }} }}\n    onDemote: {{ httpPost: {{ path: /demote }} }}\n    restartBackoff: {{ initial: 50ms, max: 100ms }}\n    hold: {{ maxWait: 30s }}\n"
    )
}

/// Its route.
pub fn route(name: &str) -> String {
    format!("  - {{ match: {{ pathPrefix: /{name} }}, to: {{ service: {name} }}, timeout: 15s }}\n")
}
