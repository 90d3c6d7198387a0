//! A table of 1,000 services with 100 instances each and 10,000 routes, under load, in one process: what requests feel
//! while endpoints, routes and one service of 100,000 endpoints are swapped. `churn [REPEATS] [SECONDS]`; the section
//! for `bench/RESULTS.md` on stdout, progress on stderr. Windows alternate quiet, swapping, swapping, quiet.

mod backend;
mod client;
mod report;
mod table;

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant};

use gateway::{Gateway, Listener, Metrics, Options, Table};

use client::{Load, Sample};
use report::{Part, resident_mib};
use table::{Fleet, big, changes, routes};

/// Services in the table.
const SERVICES: usize = 1_000;
/// Instances of each.
const INSTANCES: usize = 100;
/// Services that get requests: one connection per instance and worker must fit the process's open files.
const HOT: usize = 20;
/// Routes of each service.
const ROUTES_EACH: usize = 10;
/// Endpoints of the one big service.
const BIG: usize = 100_000;
/// Changes of endpoints in a second.
const CHANGES: u64 = 1_000;
/// Swaps of all routes in a second.
const ROUTE_SWAPS: u64 = 10;
/// Swaps of the big service in a second.
const BIG_SWAPS: u64 = 20;
/// Between two windows.
const PAUSE: Duration = Duration::from_millis(200);
/// Load before the first window.
const WARM_UP: Duration = Duration::from_secs(8);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the parts share.
pub struct Stage {
    /// What is swapped.
    pub table: Arc<Table>,
    /// Which window samples belong to; zero: none.
    pub window: AtomicU8,
    /// Whether whoever swaps does so now.
    pub swapping: AtomicBool,
    /// The part has ended.
    pub over: AtomicBool,
    /// The backend's port, on any loopback address.
    pub port: u16,
}

fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let repeats: usize = words.next().map_or(Ok(30), |word| word.parse())?;
    let window = Duration::try_from_secs_f64(words.next().map_or(Ok(0.5), |word| word.parse())?)?;
    if repeats * 4 > usize::from(u8::MAX) {
        return Err("at most 63 repeats".into());
    }
    let port = backend::start()?;
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = Metrics::register(&mut registry);
    let table = Table::new(metrics.clone());
    let (swapping, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let stage = Stage { table: table.clone(), window: AtomicU8::new(0), swapping, over, port };

    let before = resident_mib();
    let begun = Instant::now();
    let mut fleet = Fleet::new(&stage);
    let setup = begun.elapsed();
    eprintln!("{SERVICES} services: {setup:?}, {:.0} MiB", resident_mib() - before);
    table.set_routes(routes())?;
    let setup_mib = resident_mib() - before;

    let socket = TcpListener::bind("127.0.0.1:0")?;
    let listen = socket.local_addr()?;
    let (signals, _unheard) = tokio::sync::mpsc::channel(16);
    let listeners = vec![Listener { address: listen, sockets: vec![socket], manner: Arc::default() }];
    let _gateway = Gateway::start(Options::default(), listeners, table, metrics, signals)?;
    let load = Load { stage: &stage, gateway: listen };

    let mut parts = Vec::new();
    let repeat = |name, swap: &mut (dyn FnMut(&Stage) -> Vec<Duration> + Send)| run(name, &load, repeats, window, swap);
    parts.push(repeat("endpoints", &mut |stage| changes(stage, &mut fleet))?);
    parts.push(repeat("routes", &mut table::swap_routes)?);
    let before = resident_mib();
    let begun = Instant::now();
    let mut one = big(&stage);
    let (big_setup, big_mib) = (begun.elapsed(), resident_mib() - before);
    eprintln!("one service of {BIG}: {big_setup:?}, {big_mib:.0} MiB");
    parts.push(repeat("big", &mut |stage| table::swap_big(stage, &mut one))?);
    let all_new = table::replace_big(&stage, &mut one);
    let mut text = String::new();
    let begun = Instant::now();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    let scrape = (begun.elapsed(), text.len());
    let once = report::Once { setup, setup_mib, big_setup, big_mib, all_new, scrape };
    println!("{}", report::section(&parts, &once, repeats, window));
    if parts.iter().any(|part| part.failed > 0) {
        return Err("requests failed".into());
    }
    Ok(())
}

/// Load, and one kind of swap in every second window.
fn run(
    name: &'static str,
    load: &Load<'_>,
    repeats: usize,
    window: Duration,
    swap: &mut (dyn FnMut(&Stage) -> Vec<Duration> + Send),
) -> Result<Part, Failure> {
    let stage = load.stage;
    stage.over.store(false, Ordering::Relaxed);
    let pattern: Vec<bool> = (0..repeats).flat_map(|_| [false, true, true, false]).collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..client::CLIENTS).map(|seed| scope.spawn(move || load.client(seed))).collect();
        let prober = scope.spawn(|| load.prober());
        let swapper = scope.spawn(|| swap(stage));
        std::thread::sleep(WARM_UP);
        for (index, &swaps) in pattern.iter().enumerate() {
            stage.swapping.store(swaps, Ordering::Relaxed);
            stage.window.store(index as u8 + 1, Ordering::Relaxed);
            std::thread::sleep(window);
            stage.window.store(0, Ordering::Relaxed);
            std::thread::sleep(PAUSE);
        }
        stage.over.store(true, Ordering::Relaxed);
        let mut part = Part::new(name, pattern.len());
        for client in clients {
            let client = client.join().map_err(|_| "a client panicked")?;
            part.failed += client.failed;
            client.samples.iter().for_each(|&Sample { window, took }| part.add(window, took));
        }
        let probes = prober.join().map_err(|_| "the prober panicked")?;
        part.failed += probes.failed;
        for Sample { window, took } in probes.samples {
            if pattern[usize::from(window) - 1] {
                part.routed.push(took);
            }
        }
        part.swaps = swapper.join().map_err(|_| "the swapper panicked")?;
        part.swapped_for = (window + PAUSE) * pattern.iter().filter(|&&swaps| swaps).count() as u32;
        part.finish(&pattern);
        Ok(part)
    })
}
