//! A load generator that keeps a ledger: what every client saw, request by request, with the moment it saw it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::http::Connection;

/// What became of one request.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Outcome {
    Success,
    Status(u16, String),
    /// Nobody listened.
    Refused,
    /// The connection broke.
    Reset,
    TimedOut,
}

/// One request as its client saw it; times since the load began.
#[derive(Clone, Debug)]
pub struct Sample {
    pub sent: Duration,
    pub done: Duration,
    pub outcome: Outcome,
    pub instance: String,
    pub pid: u64,
    pub epoch: u64,
    pub asked: u64,
    pub is_primary: bool,
}

/// How the load is made.
#[derive(Clone, Debug)]
pub struct Options {
    pub connections: usize,
    pub path: String,
    pub timeout: Duration,
    /// Between an answer and the next request.
    pub pause: Duration,
}

/// Running clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<Sample>>>,
    began: Instant,
    _turn: MutexGuard<'static, ()>,
}

/// Everything the clients saw.
#[derive(Debug)]
pub struct Ledger {
    pub clients: Vec<Vec<Sample>>,
    pub took: Duration,
}

/// Loads would disturb each other's figures on a small machine: one at a time in this test process.
static TURN: Mutex<()> = Mutex::new(());

impl Load {
    pub fn start(address: SocketAddr, options: &Options) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let clients = (0..options.connections)
            .map(|_| {
                let (options, stop, answered) = (options.clone(), Arc::clone(&stop), Arc::clone(&answered));
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || client(address, &options, &stop, &answered, began))
                    .unwrap()
            })
            .collect();
        Self { stop, answered, clients, began, _turn: turn }
    }

    /// Waits until the clients have had an answer: what is done to the service from now on is seen as a change.
    pub fn under_way(self) -> Self {
        super::wait("the first answers", || (self.answered.load(Ordering::SeqCst) >= self.clients.len()).then_some(()));
        self
    }

    /// Time since the load began, on the ledger's clock.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn finish(mut self) -> Ledger {
        self.stop.store(true, Ordering::SeqCst);
        let clients = std::mem::take(&mut self.clients).into_iter().map(|client| client.join().unwrap()).collect();
        Ledger { clients, took: self.began.elapsed() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn client(
    address: SocketAddr,
    options: &Options,
    stop: &AtomicBool,
    answered: &AtomicUsize,
    began: Instant,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut connection = None;
    while !stop.load(Ordering::SeqCst) {
        let sent = began.elapsed();
        let answer = exchange(&mut connection, address, options);
        let mut sample = Sample {
            sent,
            done: began.elapsed(),
            outcome: Outcome::Success,
            instance: String::new(),
            pid: 0,
            epoch: 0,
            asked: 0,
            is_primary: false,
        };
        match answer {
            Ok(answer) if (200..300).contains(&answer.status) => {
                let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                sample.instance = body["instance"].as_str().unwrap_or_default().to_owned();
                sample.pid = body["pid"].as_u64().unwrap_or_default();
                sample.epoch = body["epoch"].as_u64().unwrap_or_default();
                sample.asked = body["asked"].as_u64().unwrap_or_default();
                sample.is_primary = body["role"] == "primary";
            }
            Ok(answer) => sample.outcome = Outcome::Status(answer.status, answer.text().trim().to_owned()),
            Err(error) => {
                sample.outcome = match error.kind() {
                    io::ErrorKind::ConnectionRefused => Outcome::Refused,
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Outcome::TimedOut,
                    _ => Outcome::Reset,
                };
                connection = None;
            }
        }
        answered.fetch_add(usize::from(sample.outcome == Outcome::Success), Ordering::SeqCst);
        samples.push(sample);
        std::thread::sleep(options.pause);
    }
    samples
}

fn exchange(
    connection: &mut Option<Connection>,
    address: SocketAddr,
    options: &Options,
) -> io::Result<super::http::Answer> {
    if connection.as_ref().is_none_or(|open| open.closing) {
        *connection = Some(Connection::open(address, options.timeout)?);
    }
    let open = connection.as_mut().expect("just opened");
    open.send("GET", &options.path, &[], b"")
}

impl Ledger {
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.clients.iter().flatten()
    }

    pub fn successes(&self) -> usize {
        self.samples().filter(|sample| sample.outcome == Outcome::Success).count()
    }

    /// Everything that was no success, counted.
    pub fn failures(&self) -> BTreeMap<Outcome, usize> {
        let mut counted = BTreeMap::new();
        for sample in self.samples().filter(|sample| sample.outcome != Outcome::Success) {
            *counted.entry(sample.outcome.clone()).or_insert(0) += 1;
        }
        counted
    }

    pub fn count(&self, outcome: &Outcome) -> usize {
        self.samples().filter(|sample| sample.outcome == *outcome).count()
    }

    /// The longest time between two successes of one client.
    pub fn longest_gap(&self) -> Duration {
        self.clients.iter().map(|client| longest_gap(client, Duration::ZERO, Duration::MAX)).max().unwrap_or_default()
    }

    /// For each client, the longest gap between two successes that touches `from..until`.
    pub fn gaps(&self, from: Duration, until: Duration) -> Vec<Duration> {
        self.clients.iter().map(|client| longest_gap(client, from, until)).collect()
    }

    /// The process ids that answered.
    pub fn pids(&self) -> BTreeSet<u64> {
        self.samples().filter(|sample| sample.outcome == Outcome::Success).map(|sample| sample.pid).collect()
    }

    /// One line of figures.
    pub fn summary(&self) -> String {
        let mut latencies: Vec<Duration> = self.samples().map(|sample| sample.done - sample.sent).collect();
        latencies.sort();
        format!(
            "{} requests on {} connections in {:.1} s ({:.0}/s), {} succeeded, failures {:?}, p99 {:?}, slowest {:?}, longest gap {:?}",
            latencies.len(),
            self.clients.len(),
            self.took.as_secs_f64(),
            self.successes() as f64 / self.took.as_secs_f64(),
            self.successes(),
            self.failures(),
            percentile(&latencies, 99),
            latencies.last().copied().unwrap_or_default(),
            self.longest_gap(),
        )
    }

    /// Asserts the fencing promise from the clients' side: no client sees an older epoch after a newer one, and no two
    /// processes answer as primary in one epoch.
    pub fn check_epochs(&self) -> BTreeSet<u64> {
        let mut owners: BTreeMap<u64, u64> = BTreeMap::new();
        for client in &self.clients {
            let mut newest = 0;
            for (index, sample) in client.iter().enumerate().filter(|(_, sample)| sample.outcome == Outcome::Success) {
                let around = &client[index.saturating_sub(2)..(index + 3).min(client.len())];
                assert!(sample.is_primary, "a standby answered: {sample:?}; around it: {around:#?}");
                assert!(sample.epoch >= newest, "epoch {} after epoch {newest}: {sample:?}", sample.epoch);
                newest = sample.epoch;
                let owner = *owners.entry(sample.epoch).or_insert(sample.pid);
                assert_eq!(owner, sample.pid, "two processes answered as primary in epoch {}", sample.epoch);
            }
        }
        owners.into_keys().collect()
    }
}

/// The value below which `percent` of the sorted `values` lie.
pub fn percentile(values: &[Duration], percent: usize) -> Duration {
    let index = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(index).copied().unwrap_or_default()
}

fn longest_gap(client: &[Sample], from: Duration, until: Duration) -> Duration {
    let successes: Vec<Duration> =
        client.iter().filter(|sample| sample.outcome == Outcome::Success).map(|sample| sample.done).collect();
    successes
        .windows(2)
        .filter(|pair| pair[1] > from && pair[0] < until)
        .map(|pair| pair[1] - pair[0])
        .max()
        .unwrap_or_default()
}
