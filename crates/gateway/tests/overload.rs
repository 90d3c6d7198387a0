//! Overload, as clients see it: services that stay down by themselves after a trigger, and do not with guards; how much of
//! what a service bears is still served when three times as much comes; one instance that is slow, and one that hangs.
//! What a server bears is reckoned, not slept: it works on one request after the other, also for callers that have gone, so
//! that nothing here depends on how fast the machine is. One test at a time. `--nocapture` shows the figures.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Client, Instance, Rig, endpoints_of, ok};
use gateway::{
    Action, AdaptivePolicy, Balance, Concurrency, Endpoints, Options, Places, Policy, RetryBudget, RetryPolicy, Route,
    Target, Traffic,
};

/// They would take each other's time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A server that works on one request at a time, in the order in which they come.
struct Server {
    instance: Instance,
    /// Until when it has work.
    busy: Arc<Mutex<Instant>>,
}

impl Server {
    fn start(each: Duration) -> Self {
        let busy = Arc::new(Mutex::new(Instant::now()));
        let line = busy.clone();
        let instance = Instance::start(move |mut conn| {
            while conn.head().is_some() {
                let done = {
                    let mut busy = line.lock().unwrap();
                    *busy = (*busy).max(Instant::now()) + each;
                    *busy
                };
                std::thread::sleep(done.saturating_duration_since(Instant::now()));
                if !conn.send(ok("done")) {
                    return;
                }
            }
        });
        Self { instance, busy }
    }

    /// It does nothing for so long.
    fn stall(&self, time: Duration) {
        let mut busy = self.busy.lock().unwrap();
        *busy = (*busy).max(Instant::now()) + time;
    }
}

/// One request of a load: when it was due, how long it took from then, whether it was answered well.
struct Asked {
    due: Instant,
    took: Duration,
    good: bool,
}

/// So many requests a second, whatever becomes of them.
fn offer(address: SocketAddr, each_second: u32, time: Duration) -> Vec<Asked> {
    let (begun, gap) = (Instant::now(), Duration::from_secs(1) / each_second);
    let count = (time.as_secs_f64() * f64::from(each_second)) as u32;
    let ask = move |due: Instant| {
        std::thread::spawn(move || {
            let mut client = Client::to(address);
            client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
            let good = client.response().status == 200;
            Asked { due, took: due.elapsed(), good }
        })
    };
    let asked: Vec<_> = (0..count)
        .map(|index| {
            let due = begun + gap * index;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            ask(due)
        })
        .collect();
    asked.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// Of a load's requests that were due in a time, how many were answered well.
fn goodput(load: &[Asked], from: Instant, time: Duration) -> f64 {
    let due: Vec<&Asked> = load.iter().filter(|asked| asked.due >= from && asked.due < from + time).collect();
    due.iter().filter(|asked| asked.good).count() as f64 / due.len().max(1) as f64
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[(times.len() * 99).div_ceil(100) - 1]
}

/// All requests go to the rig's service, with this time and these repeats.
fn route(rig: &Rig, timeout: Duration, retry: Option<RetryPolicy>) {
    let route = Route {
        name: "all".into(),
        series: None,
        hosts: Vec::new(),
        matches: Vec::new(),
        action: Action::Forward(Target { service: "s".into(), version: None }),
        timeout: Some(timeout),
        retry,
        policy: Policy::default(),
    };
    rig.table.set_routes(vec![route]).unwrap();
}

/// Each attempt that does not answer in time is made again, twice.
fn impatient() -> RetryPolicy {
    RetryPolicy {
        total: 3,
        connect: true,
        reset: true,
        timeout: true,
        garbage: false,
        statuses: Vec::new(),
        server_errors: false,
        non_idempotent: false,
        per_try: Some(ms(400)),
        within: None,
        backoff: ms(25),
    }
}

const EACH_SECOND: u32 = 50;

/// Two servers that bear 100 requests a second get 50, and do nothing for two seconds: what was answered well before, and in
/// each second after they work again.
fn after_a_trigger(traffic: Traffic, seconds: u32) -> (f64, Vec<f64>) {
    let servers = [Server::start(ms(20)), Server::start(ms(20))];
    let rig = Rig::new(endpoints_of(&[&servers[0].instance, &servers[1].instance]));
    route(&rig, ms(1_500), Some(impatient()));
    rig.service.set_traffic(Some(traffic));
    let (before, trigger) = (Duration::from_secs(2), Duration::from_secs(2));
    let address = rig.address;
    let begun = Instant::now();
    let load =
        std::thread::spawn(move || offer(address, EACH_SECOND, before + trigger + Duration::from_secs(1) * seconds));
    std::thread::sleep((begun + before).saturating_duration_since(Instant::now()));
    servers.iter().for_each(|server| server.stall(trigger));
    let load = load.join().unwrap();
    let begun = load[0].due;
    // Requests of the last second before the trigger may wait into it.
    let good = goodput(&load, begun, before - ms(1_000));
    let end = begun + before + trigger;
    (good, (0..seconds).map(|second| goodput(&load, end + Duration::from_secs(1) * second, ms(1_000))).collect())
}

/// More than is asked of them: as if there were none.
fn no_budget() -> RetryBudget {
    RetryBudget { part: 1_000_000, min: 100_000 }
}

/// Bronson et al., "Metastable Failures in Distributed Systems" (HotOS 2021): what keeps it down is the work of repeats.
#[test]
fn without_guards_a_service_stays_down_after_its_trigger() {
    let _alone = alone();
    let (before, after) = after_a_trigger(Traffic { retry_budget: no_budget(), ..Traffic::default() }, 6);
    println!(
        "figure: a standstill of 2 s, without a retry budget: {before:.2} answered well before it, then second by second {after:.2?}"
    );
    assert!(before >= 0.9, "{before}");
    assert!(after[3..].iter().all(|good| *good <= 0.2), "{after:?}");
}

#[test]
fn with_guards_it_recovers() {
    let _alone = alone();
    let places = Places { max: 10, pending: 10 };
    let concurrency = Some(Concurrency { places, max_wait: ms(500) });
    let (before, after) = after_a_trigger(Traffic { concurrency, ..Traffic::default() }, 6);
    println!(
        "figure: the same with a retry budget and a concurrency limit: {before:.2} before it, then second by second {after:.2?}"
    );
    assert!(before >= 0.9, "{before}");
    assert!(after[5] >= 0.9, "{after:?}");
}

/// Two servers that bear 40 requests a second get 120; so much of what they bear is answered in time.
fn at_three_times_the_load(traffic: Traffic) -> f64 {
    let servers = [Server::start(ms(50)), Server::start(ms(50))];
    let rig = Rig::new(endpoints_of(&[&servers[0].instance, &servers[1].instance]));
    route(&rig, ms(1_000), None);
    rig.service.set_traffic(Some(traffic));
    let load = offer(rig.address, 120, Duration::from_secs(7));
    let (from, time) = (load[0].due + Duration::from_secs(3), Duration::from_secs(4));
    let good = load.iter().filter(|asked| asked.good && asked.due >= from).count();
    assert!(load.iter().all(|asked| asked.took < common::PATIENCE));
    good as f64 / (40.0 * time.as_secs_f64())
}

fn adaptive() -> AdaptivePolicy {
    AdaptivePolicy {
        min: 3,
        max: 1_000,
        interval: ms(100),
        min_rtt_interval: Duration::from_secs(60),
        min_rtt_requests: 50,
        buffer: 250_000,
    }
}

#[test]
fn three_times_too_much_costs_less_than_a_tenth() {
    let _alone = alone();
    let places = Places { max: 6, pending: 10 };
    let concurrency = Some(Concurrency { places, max_wait: ms(500) });
    let fixed = Traffic { concurrency, ..Traffic::default() };
    let found = Traffic { adaptive: Some(adaptive()), ..fixed.clone() };
    let without = at_three_times_the_load(Traffic::default());
    let (fixed, found) = (at_three_times_the_load(fixed), at_three_times_the_load(found));
    println!(
        "figure: three times what they bear; of what they bear is answered well {without:.2} without guards, {fixed:.2} with a \
         concurrency limit, {found:.2} with an adaptive one"
    );
    assert!(without <= 0.5, "{without}");
    assert!(fixed >= 0.9, "{fixed}");
    assert!(found >= 0.9, "{found}");
}

/// An instance that answers after `quick`, or a hundred times that while it is told to.
fn lame(quick: Duration, slow: &Arc<AtomicBool>, seen: &Arc<AtomicUsize>) -> Instance {
    let (slow, seen) = (slow.clone(), seen.clone());
    Instance::start(move |mut conn| {
        while conn.head().is_some() {
            seen.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(if slow.load(Ordering::SeqCst) { quick * 100 } else { quick });
            conn.send(ok("done"));
        }
    })
}

/// So many clients ask one after the other for a time.
fn crowd(address: SocketAddr, clients: usize, time: Duration) -> Vec<Duration> {
    let until = Instant::now() + time;
    let one = move || {
        let (mut client, mut times) = (Client::to(address), Vec::new());
        while Instant::now() < until {
            let begun = Instant::now();
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(client.response().status, 200);
            times.push(begun.elapsed());
        }
        times
    };
    let threads: Vec<_> = (0..clients).map(|_| std::thread::spawn(one)).collect();
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn one_of_three_that_is_a_hundred_times_slower_is_left_alone() {
    let _alone = alone();
    let (slow, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (never, others) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let quick = ms(10);
    let instances = [lame(quick, &never, &others), lame(quick, &never, &others), lame(quick, &slow, &seen)];
    let endpoints = endpoints_of(&instances.iter().collect::<Vec<_>>());
    let rig = Rig::new(Endpoints { balance: Balance::PeakEwma, ..endpoints });
    let usual = p99(crowd(rig.address, 6, Duration::from_secs(2)));
    assert!(seen.load(Ordering::SeqCst) > 0, "all three serve");
    slow.store(true, Ordering::SeqCst);
    crowd(rig.address, 6, Duration::from_secs(3));
    let before = seen.load(Ordering::SeqCst);
    let times = crowd(rig.address, 6, Duration::from_secs(3));
    let (count, to_slow) = (times.len(), seen.load(Ordering::SeqCst) - before);
    let now = p99(times);
    println!(
        "figure: one of three a hundred times slower: p99 {usual:.2?} before, {now:.2?} from 3 s after, {to_slow} of {count} \
         requests to the slow one"
    );
    assert!(to_slow * 100 < count, "{to_slow} of {count}");
    assert!(now < quick * 100, "{now:?}");
}

/// Clients of one that hangs.
const WAITING: u32 = 20;
/// So often each of them asks; many times where figures are made.
const ASKED_OF_HUNG: u32 = if cfg!(debug_assertions) { 10 } else { 50 };

/// How much later than their deadline requests end, at the 99th percentile. Clients begin one after the other within a
/// deadline, as clients do that know nothing of each other: twenty threads at once would wait for processors first.
fn beyond_the_deadline(instance: &Instance, timeout: Duration, retry: Option<RetryPolicy>) -> Duration {
    let options = Options { workers: 2, ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[instance]), None);
    // A repeat that the budget has no place for ends a request before its time.
    let may_end_early = retry.is_some();
    route(&rig, timeout, retry);
    let address = rig.address;
    let ask = move || {
        let mut client = Client::to(address);
        let begun = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        client.until_end();
        begun.elapsed()
    };
    let one = move |index| {
        std::thread::sleep(timeout / WAITING * index);
        (0..ASKED_OF_HUNG).map(|_| ask()).collect::<Vec<_>>()
    };
    let threads: Vec<_> = (0..WAITING).map(|index| std::thread::spawn(move || one(index))).collect();
    let times: Vec<Duration> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert!(may_end_early || times.iter().all(|time| *time >= timeout), "{times:?}");
    p99(times).saturating_sub(timeout)
}

#[test]
fn nobody_waits_for_one_that_hangs() {
    let _alone = alone();
    let deaf = || Instance::start(|mut conn| while !conn.some().is_empty() {});
    let stalling = Instance::start(|mut conn| {
        while conn.head().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
        }
    });
    let timeout = ms(200);
    let plain = beyond_the_deadline(&deaf(), timeout, None);
    let per_try = RetryPolicy { per_try: Some(ms(70)), ..impatient() };
    let again = beyond_the_deadline(&deaf(), timeout, Some(per_try));
    let body = beyond_the_deadline(&stalling, timeout, None);
    println!(
        "figure: an instance that hangs, p99 of how long after the deadline clients had their answer: {plain:.2?} when it says \
         nothing, {again:.2?} with retries, {body:.2?} when it stops in the body"
    );
    // Wide: how soon threads run is the machine's.
    assert!([plain, again, body].iter().all(|late| *late < Duration::from_secs(2)));
}
