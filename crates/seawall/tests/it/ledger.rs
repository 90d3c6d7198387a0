//! A ledger whose balance is in a stream: whoever is killed, its next primary has every amount that was acknowledged, each
//! once, and nobody becomes primary who has not read them all.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, name};
use crate::support::http::{self, Connection};
use crate::support::{Seawall, processes, service, wait};

const LEDGER: &str = r"
services:
  ledger:
    mode: primary-standby
    replicas: REPLICAS
    command: [DEMO, --host, '${address}']
    stream: { name: ledger, catchUp: 1s }
    livenessProbe: { httpGet: { path: /health }, periodSeconds: 1, failureThreshold: 2 }
    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 }
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
    restartBackoff: { initial: 50ms, max: 100ms }
routes:
  - { to: { service: ledger } }
";

fn ledger(replicas: u32) -> String {
    LEDGER.replace("REPLICAS", &replicas.to_string())
}

/// What a client has had acknowledged, and how often it had to ask again.
#[derive(Default)]
struct Posted {
    acknowledged: Vec<String>,
    failures: Vec<String>,
}

/// Clients that add 1 over and over, each time under a key of its own, which they repeat until it is acknowledged.
struct Posting {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Posted>>,
}

impl Posting {
    fn start(gateways: &[SocketAddr], clients: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        // No two loads of a test have a key in common.
        static LOADS: AtomicUsize = AtomicUsize::new(0);
        let load = LOADS.fetch_add(1, Ordering::SeqCst);
        let client = |number: usize| {
            let (stop, acknowledged) = (Arc::clone(&stop), Arc::clone(&acknowledged));
            let gateway = gateways[number % gateways.len()];
            std::thread::spawn(move || post_until(&stop, &acknowledged, gateway, &format!("load{load}-{number}")))
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, acknowledged, clients }
    }

    /// Waits for so many more acknowledgements: the service is at work again.
    fn more(&self, count: usize) {
        let now = self.acknowledged.load(Ordering::SeqCst);
        wait("more acknowledgements", || (self.acknowledged.load(Ordering::SeqCst) >= now + count).then_some(()));
    }

    fn finish(self) -> Posted {
        self.stop.store(true, Ordering::SeqCst);
        let mut all = Posted::default();
        for client in self.clients {
            let posted = client.join().unwrap();
            all.acknowledged.extend(posted.acknowledged);
            all.failures.extend(posted.failures);
        }
        all
    }
}

fn post_until(stop: &AtomicBool, acknowledged: &AtomicUsize, gateway: SocketAddr, client: &str) -> Posted {
    let mut posted = Posted::default();
    let mut connection: Option<Connection> = None;
    for count in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let key = format!("{client}-{count}");
        loop {
            if connection.as_ref().is_none_or(|open| open.closing) {
                connection = Connection::open(gateway, Duration::from_secs(30)).ok();
            }
            let sent = connection
                .as_mut()
                .map(|open| open.send("POST", "/add?amount=1", &[("Idempotency-Key", key.as_str())], b""));
            match sent {
                Some(Ok(answer)) if answer.status == 200 => break,
                Some(Ok(answer)) => posted.failures.push(format!("{} {}", answer.status, answer.text())),
                Some(Err(error)) => {
                    posted.failures.push(error.to_string());
                    connection = None;
                }
                None => posted.failures.push("cannot connect".to_owned()),
            }
            // What nobody acknowledges before the end counts as not done.
            if stop.load(Ordering::SeqCst) {
                return posted;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        posted.acknowledged.push(key);
        acknowledged.fetch_add(1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
    }
    posted
}

/// Every entry of the stream, in order.
fn entries(seawall: &Seawall) -> Vec<Value> {
    let mut found: Vec<Value> = Vec::new();
    loop {
        let answer = seawall.api("GET", &format!("/api/v1/streams/ledger?from={}&limit=1000", found.len()), b"");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let more: Vec<Value> =
            lines.map(|line| serde_json::from_str(line["data"].as_str().unwrap()).unwrap()).collect();
        if more.is_empty() {
            return found;
        }
        found.extend(more);
    }
}

/// The balance is the sum of what was acknowledged: nothing is missing, nothing was added twice, and each primary went on
/// from where the one before it had ended.
fn check(seawall: &Seawall, posted: &Posted) {
    let entries = entries(seawall);
    let mut balance = 0;
    let mut keys = BTreeSet::new();
    for (offset, entry) in entries.iter().enumerate() {
        balance += entry["amount"].as_i64().unwrap();
        assert_eq!(entry["balance"], balance, "entry {offset} went on from another balance: {entry}");
        assert!(keys.insert(entry["key"].as_str().unwrap().to_owned()), "entry {offset} is there twice: {entry}");
    }
    for key in &posted.acknowledged {
        assert!(keys.contains(key), "{key} was acknowledged and is missing");
    }
    assert!(!posted.acknowledged.is_empty());
    let told = wait("the primary's balance", || {
        let answer = http::request(seawall.gateway, "GET", "/", &[], b"").ok().filter(|answer| answer.status == 200)?;
        Some(answer.json())
    });
    assert_eq!((&told["balance"], &told["role"]), (&balance.into(), &"primary".into()), "{told}");
    println!(
        "{} acknowledged, {} entries, asked again {} times",
        posted.acknowledged.len(),
        entries.len(),
        posted.failures.len()
    );
}

fn primary(status: &Value) -> Option<(String, u64, u64)> {
    let ledger = service(status, "ledger");
    let id = ledger["primary"].as_str()?.to_owned();
    let instance = ledger["instances"].as_array()?.iter().find(|one| one["id"] == id.as_str())?;
    Some((id, instance["pid"].as_u64()?, ledger["epoch"].as_u64()?))
}

fn cursor(seawall: &Seawall, id: &str) -> u64 {
    let answer = seawall.api("GET", &format!("/api/v1/streams/ledger/cursors/{id}"), b"");
    if answer.status == 200 { answer.json()["offset"].as_u64().unwrap() } else { 0 }
}

fn end(seawall: &Seawall) -> u64 {
    seawall.api("GET", "/api/v1/streams/ledger/describe", b"").json()["next"].as_u64().unwrap()
}

#[test]
fn a_balance_survives_every_kill_of_the_primary_and_nothing_is_added_twice() {
    const KILLS: usize = 20;
    let seawall = Seawall::up(&ledger(2));
    let posting = Posting::start(&[seawall.gateway], 4);
    let mut epoch = 0;
    for kill in 0..KILLS {
        posting.more(10);
        let (pid, now) = wait("a primary with a ready standby", || {
            let status = seawall.status();
            let (_, pid, now) = primary(&status)?;
            (now > epoch && service(&status, "ledger")["ready"] == 2).then_some((pid, now))
        });
        epoch = now;
        assert!(processes::signal(pid, "KILL"), "kill {kill}");
    }
    posting.more(10);
    seawall.wait_ready("ledger");
    let posted = posting.finish();
    check(&seawall, &posted);
    // The seal is part of each promotion: its event, the status and the role tell where the terms before ended.
    let promoted = seawall.events_of("promoted");
    assert!(promoted.len() > KILLS, "{}", promoted.len());
    assert!(promoted.iter().all(|event| event["message"].as_str().unwrap().contains("the stream ledger to its end")));
    let (id, _, epoch) = primary(&seawall.status()).unwrap();
    let sealed = seawall.api("GET", "/api/v1/streams/ledger/describe", b"").json();
    assert_eq!(sealed["sealedEpoch"], epoch);
    let stream = seawall.service("ledger")["stream"].clone();
    assert_eq!(stream["name"], "ledger");
    assert!(stream["end"].as_u64().unwrap() > 0, "{stream}");
    assert_eq!(seawall.api("GET", &format!("/api/v1/role?instance={id}"), b"").json()["stream"], stream);
    // An old primary that goes on believing is refused.
    let late = http::request(
        seawall.api,
        "POST",
        "/api/v1/streams/ledger",
        &[("Seawall-Epoch", &(epoch - 1).to_string())],
        b"{\"amount\":1000000}",
    );
    assert_eq!(late.unwrap().status, 409);
    // The old primary is back as a standby and reads what it missed.
    let standby = if id == "ledger-0" { "ledger-1" } else { "ledger-0" };
    wait("the standby has read everything", || (cursor(&seawall, standby) == end(&seawall)).then_some(()));
}

#[test]
fn planned_switches_of_a_ledger_fail_no_request() {
    let seawall = Seawall::up(&ledger(2));
    let posting = Posting::start(&[seawall.gateway], 4);
    posting.more(10);
    let mut last = primary(&seawall.status()).unwrap();
    for _ in 0..8 {
        seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
        let now = primary(&seawall.status()).unwrap();
        assert!(now.0 != last.0 && now.2 > last.2, "{last:?} to {now:?}");
        let before = end(&seawall);
        posting.more(10);
        assert!(seawall.service("ledger")["stream"]["end"].as_u64().unwrap() <= before);
        last = now;
    }
    // Both processes are new after that, and have read everything again.
    seawall.cli_exits(0, &["restart", "ledger"]);
    posting.more(10);
    let posted = posting.finish();
    assert_eq!(posted.failures, Vec::<String>::new());
    check(&seawall, &posted);
    assert_eq!(seawall.events_of("primary-lost").len(), 0);
    assert_eq!(seawall.events_of("promote-behind").len(), 0);
}

#[test]
fn hooks_are_told_where_the_stream_was_sealed() {
    // The one hook by its command, the other by its request.
    let exec = ledger(2).replace(
        "onPromote: { httpPost: { path: /promote } }",
        "onPromote: { exec: { command: [sh, -c, 'echo $SEAWALL_STREAM $SEAWALL_STREAM_END $SEAWALL_API >> told'] } }",
    );
    let seawall = Seawall::up(&exec);
    let told = || std::fs::read_to_string(seawall.folder().join("told")).unwrap_or_default();
    assert_eq!(told(), format!("ledger 0 http://{}\n", seawall.api));
    let (_, pid, epoch) = primary(&seawall.status()).unwrap();
    for _ in 0..3 {
        let epoch = epoch.to_string();
        let append = http::request(seawall.api, "POST", "/api/v1/streams/ledger", &[("Seawall-Epoch", &epoch)], b"{}");
        assert_eq!(append.unwrap().status, 200);
    }
    processes::signal(pid, "KILL");
    wait("another primary", || primary(&seawall.status()).filter(|now| now.2 > epoch));
    assert_eq!(told().lines().nth(1).unwrap(), format!("ledger 3 http://{}", seawall.api));

    let seawall = Seawall::up_beside_with(&ledger(2));
    let posting = Posting::start(&[seawall.gateway], 1);
    posting.more(5);
    posting.finish();
    let at = end(&seawall);
    seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
    let (out, _) = seawall.cli_exits(0, &["logs", "ledger"]);
    assert!(out.contains(&format!(", after offset {at} of its stream")), "{out}");
}

#[test]
fn a_standby_that_reads_no_more_is_passed_over() {
    let seawall = Seawall::up(&ledger(3));
    let (old, pid, _) = primary(&seawall.status()).unwrap();
    // The one that would be chosen by its name.
    let mut standbys = ["ledger-0", "ledger-1", "ledger-2"].into_iter().filter(|id| *id != old);
    let (stuck, fit) = (standbys.next().unwrap(), standbys.next().unwrap());
    seawall.fault(stuck, "deaf");
    let posting = Posting::start(&[seawall.gateway], 2);
    posting.more(50);
    processes::signal(pid, "KILL");
    let new = wait("another primary", || primary(&seawall.status()).filter(|now| now.1 != pid));
    assert_eq!(new.0, fit, "{stuck} has not read what was acknowledged");
    posting.more(10);
    let posted = posting.finish();
    check(&seawall, &posted);
    // An operator who wants it all the same does not get it, and nobody notices but that it takes the time for catching up.
    let posting = Posting::start(&[seawall.gateway], 2);
    posting.more(10);
    let (_, told) = seawall.cli_exits(1, &["promote", "ledger", stuck, "--wait"]);
    assert!(told.contains("could not take over"), "{told}");
    let behind = seawall.event("promote-behind", "ledger");
    let message = behind["message"].as_str().unwrap();
    assert!(message.contains(stuck) && message.contains("entries are missing"), "{message}");
    posting.more(10);
    let posted = posting.finish();
    assert_eq!(posted.failures, Vec::<String>::new());
}

#[test]
fn nobody_is_promoted_while_nobody_has_read_everything_and_it_is_said() {
    let seawall = Seawall::up(&ledger(2).replace("initial: 50ms, max: 100ms", "initial: 4s, max: 4s"));
    let (old, pid, _) = primary(&seawall.status()).unwrap();
    let stuck = if old == "ledger-0" { "ledger-1" } else { "ledger-0" };
    seawall.fault(stuck, "deaf");
    let posting = Posting::start(&[seawall.gateway], 2);
    posting.more(20);
    let posted = posting.finish();
    let (end, read) = (end(&seawall), cursor(&seawall, stuck));
    assert!(read < end);
    processes::signal(pid, "KILL");
    let behind = seawall.event("promote-behind", "ledger");
    let message = behind["message"].as_str().unwrap();
    let gap = format!("{stuck} has read up to {read}, {} entries are missing", end - read);
    assert!(message.contains(&gap), "{message}");
    assert_eq!(behind["cause"], seawall.event("primary-lost", &old)["cause"]);
    let shown = seawall.service("ledger");
    assert!(shown["primary"].is_null() && shown["note"].as_str().unwrap().contains(&gap), "{shown}");
    assert_eq!(seawall.events_of("promoted").len(), 1, "only the first one");
    // The one that has written it all is started again, reads it from the beginning, and is promoted.
    let back = wait("a primary again", || primary(&seawall.status()));
    assert_eq!(back.0, old);
    check(&seawall, &posted);
}

#[test]
fn a_balance_survives_the_loss_of_the_primarys_node() {
    let mut cluster = Cluster::up_with("");
    cluster.node(0).apply(0, &ledger(2));
    let settled = |cluster: &Cluster| {
        for place in cluster.up_places() {
            cluster.node(place).wait_ready("ledger");
        }
    };
    settled(&cluster);
    for round in 0..3 {
        let status = cluster.node(0).status();
        let (old, ..) = primary(&status).unwrap();
        let instances = service(&status, "ledger")["instances"].as_array().unwrap().clone();
        let node = instances.iter().find(|one| one["id"] == old.as_str()).unwrap()["node"].clone();
        let lost = (0..3).find(|place| node == name(*place).as_str()).unwrap();
        let gateways: Vec<SocketAddr> =
            (0..3).filter(|place| *place != lost).map(|place| cluster.node(place).gateway).collect();
        let posting = Posting::start(&gateways, 4);
        posting.more(20);
        cluster.kill(lost);
        let killed = Instant::now();
        let other = (lost + 1) % 3;
        let (new, ..) =
            cluster.node(other).wait_for("another primary", |status| primary(status).filter(|(now, ..)| *now != old));
        println!("round {round}: node killed to {new} routed: {:?}", killed.elapsed());
        posting.more(20);
        let posted = posting.finish();
        check(cluster.node(other), &posted);
        cluster.start(lost);
        let back = Instant::now();
        settled(&cluster);
        wait("the old primary has read what it missed", || {
            (cursor(cluster.node(lost), &old) == end(cluster.node(other))).then_some(())
        });
        println!("round {round}: back to having read everything: {:?}", back.elapsed());
        assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    }
}

#[test]
fn planned_switches_of_a_ledger_go_over_nodes_without_a_failed_request() {
    let cluster = Cluster::up_with("");
    cluster.node(0).apply(0, &ledger(2));
    (0..3).for_each(|place| drop(cluster.node(place).wait_ready("ledger")));
    let gateways: Vec<SocketAddr> = (0..3).map(|place| cluster.node(place).gateway).collect();
    let posting = Posting::start(&gateways, 3);
    for round in 0..4 {
        posting.more(20);
        let (old, ..) = primary(&cluster.node(1).status()).unwrap();
        cluster.node(round % 3).cli_exits(0, &["promote", "ledger", "--wait"]);
        (0..3).for_each(|place| drop(cluster.node(place).wait_ready("ledger")));
        assert_ne!(primary(&cluster.node(1).status()).unwrap().0, old, "round {round}");
    }
    posting.more(20);
    let posted = posting.finish();
    assert_eq!(posted.failures, Vec::<String>::new());
    check(cluster.node(2), &posted);
}
