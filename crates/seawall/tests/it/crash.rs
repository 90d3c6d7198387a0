//! The node process or the keeper is killed: who goes on, who does not, and what was acknowledged is still there.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::http;
use crate::support::load::{Load, Options, Outcome};
use crate::support::pebble::free_addresses;
use crate::support::{Chance, Seawall, configuration, processes, wait};

const SHOP: &str = r"
services:
  orders: { command: [DEMO], replicas: 3 }
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    onPromote: { httpPost: { path: /promote } }
    restartBackoff: { initial: 50ms, max: 100ms }
routes:
  - { match: { pathPrefix: /ledger }, to: { service: ledger } }
  - { to: { service: orders } }
";

/// A value that says itself whether it is whole.
fn value(key: u64) -> String {
    let body = format!("{key:08}").repeat(200);
    let sum = body.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("{body}:{sum:016x}")
}

/// Writes keys one after the other until stopped; returns those that were acknowledged and those of which nobody knows.
fn write_keys(api: std::net::SocketAddr, stop: &AtomicBool, acknowledged: &AtomicU64) -> BTreeMap<u64, bool> {
    let mut written = BTreeMap::new();
    let mut key = 0;
    while !stop.load(Ordering::SeqCst) {
        key += 1;
        let answer = http::request(api, "PUT", &format!("/api/v1/kv/crash/{key:08}"), &[], value(key).as_bytes());
        let known = answer.is_ok_and(|answer| answer.status == 200);
        acknowledged.fetch_add(u64::from(known), Ordering::SeqCst);
        written.insert(key, known);
    }
    written
}

#[test]
fn fifty_kills_of_the_node_process() {
    const KILLS: u32 = 50;
    let seawall = Seawall::up(SHOP);
    let orders = seawall.pids("orders");
    let mut chance = Chance::seeded("fifty_kills_of_the_node_process");
    let load = Load::start(
        seawall.gateway,
        &Options {
            connections: 8,
            path: "/".into(),
            timeout: Duration::from_secs(30),
            pause: Duration::from_millis(10),
        },
    );
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writer = {
        let (api, stop, acknowledged) = (seawall.api, Arc::clone(&stop), Arc::clone(&acknowledged));
        std::thread::spawn(move || write_keys(api, &stop, &acknowledged))
    };
    let mut short = 0;
    for kill in 1..=KILLS {
        let node = seawall.node();
        // Any moment of a node's life, its start included. The keeper slows down when several in a row die young, so
        // every fourth is left to live a little.
        let life = if short == 3 { 2000 + chance.below(300) } else { chance.below(1200) };
        short = if life >= 2000 { 0 } else { short + 1 };
        std::thread::sleep(Duration::from_millis(life));
        assert!(processes::signal(node, "KILL"), "kill {kill}");
        wait("the killed node process's end", || (!processes::is_running(node)).then_some(()));
    }
    seawall.wait_ready("orders");
    seawall.wait_ready("ledger");
    let so_far = acknowledged.load(Ordering::SeqCst);
    wait("a write after the last kill", || (acknowledged.load(Ordering::SeqCst) > so_far).then_some(()));
    stop.store(true, Ordering::SeqCst);
    let written = writer.join().unwrap();
    let ledger = load.finish();
    println!(
        "node process, {KILLS} kills: {}; {} keys acknowledged, {} unknown",
        ledger.summary(),
        written.values().filter(|known| **known).count(),
        written.values().filter(|known| !**known).count()
    );
    assert_eq!(ledger.count(&Outcome::Refused), 0, "a connection was refused");
    assert_eq!(ledger.count(&Outcome::TimedOut), 0, "a request hung");
    assert!(
        ledger.failures().keys().all(|outcome| *outcome == Outcome::Reset),
        "only what was under way in the killed process may break: {:?}",
        ledger.failures()
    );
    assert_eq!(seawall.pids("orders"), orders, "no instance was restarted");
    assert_eq!(seawall.status()["node"]["nodeStarts"], KILLS + 1);
    check_keys(&seawall, &written);
}

fn check_keys(seawall: &Seawall, written: &BTreeMap<u64, bool>) {
    let mut found = BTreeMap::new();
    for (key, known) in written {
        let answer = seawall.api("GET", &format!("/api/v1/kv/crash/{key:08}"), b"");
        match answer.status {
            200 => {
                assert_eq!(answer.text(), value(*key), "key {key} is damaged");
                found.insert(*key, ());
            }
            404 => assert!(!known, "key {key} was acknowledged and is gone"),
            other => panic!("key {key}: {other} {}", answer.text()),
        }
    }
    assert!(found.len() > 50, "only {} keys were written: this proves nothing", found.len());
}

#[test]
fn a_killed_keeper_leaves_nothing_behind() {
    let seawall = Seawall::up_alone(
        r#"
services:
  orders: { command: [DEMO], replicas: 2 }
  ledger: { mode: primary-standby, replicas: 2, command: [DEMO] }
  family: { command: [sh, -c, "sleep 1000 & setsid sleep 1000 & (sleep 1000 & sleep 1000) & exec sleep 1000"], replicas: 2 }
routes:
  - { to: { service: orders } }
"#,
    );
    // 2 + 2 demo services, 2 x (leader, child, own session, subshell with 2), keeper and node.
    let all = wait("the whole family", || Some(seawall.processes()).filter(|all| all.len() >= 4 + 2 * 5 + 2));
    let killed = Instant::now();
    assert!(processes::signal(seawall.keeper(), "KILL"));
    wait("the end of everything", || all.iter().all(|pid| !processes::is_running(*pid)).then_some(()));
    let took = killed.elapsed();
    println!("keeper killed: {} processes gone after {took:?}", all.len());
    assert!(took <= Duration::from_secs(1), "{took:?}");
    assert_eq!(seawall.processes(), Vec::<u64>::new());
}

/// The last of a killed process that goes may be a flush, and its sockets go with it.
#[test]
fn a_port_that_is_held_for_a_moment_by_what_ran_before_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let [gateway] = free_addresses();
    let text = configuration("services:\n  demo: { command: [DEMO] }\n");
    let text = text.replace("listen: [\"127.0.0.1:0\"]", &format!("listen: [\"{gateway}\"]"));
    std::fs::write(folder.path().join("seawall.yaml"), text).unwrap();
    let folder = Seawall::up_in(folder).into_folder();
    let held = wait("the port is free", || TcpListener::bind(gateway).ok());
    let passing = std::thread::spawn(move || {
        // Long enough that a keeper that does not wait has been refused.
        std::thread::sleep(Duration::from_millis(500));
        drop(held);
    });
    let seawall = Seawall::up_in(folder);
    passing.join().unwrap();
    assert_eq!(seawall.ready()["gateway"][0], gateway.to_string());
}

#[test]
fn a_node_process_that_is_stopped_does_not_outlive_its_keeper() {
    let mut seawall =
        Seawall::up_alone("services:\n  orders: { command: [DEMO] }\nroutes:\n  - { to: { service: orders } }\n");
    seawall.wait_ready("orders");
    let all = seawall.processes();
    assert!(processes::signal(seawall.node(), "STOP"));
    assert!(processes::signal(seawall.keeper(), "KILL"));
    seawall.ended();
    wait("the end of everything", || all.iter().all(|pid| !processes::is_running(*pid)).then_some(()));
}

#[test]
fn a_stopped_node_process_costs_the_primary_its_place_and_nobody_else() {
    let seawall = Seawall::up(SHOP);
    let orders = seawall.pids("orders");
    let before = seawall.service("ledger");
    let node = seawall.node();
    assert!(processes::signal(node, "STOP"));
    // Nobody renews the primary's lease: the keeper ends it in time, whatever the node does later.
    let primary = before["instances"].as_array().unwrap().iter().find(|one| one["id"] == before["primary"]).unwrap();
    let primary = primary["pid"].as_u64().unwrap();
    let stopped = Instant::now();
    wait("the primary's end", || (!processes::is_running(primary)).then_some(()));
    let took = stopped.elapsed();
    assert!(took <= Duration::from_millis(1800), "the primary outlived its lease: {took:?}");
    assert!(orders.iter().all(|pid| processes::is_running(*pid)), "active-active instances go on");
    let client = std::thread::spawn({
        let gateway = seawall.gateway;
        move || http::request(gateway, "GET", "/", &[], b"").unwrap().status
    });
    assert!(processes::signal(node, "CONT"));
    assert_eq!(client.join().unwrap(), 200, "a request that came meanwhile was only late");
    let after = seawall.wait_for("another primary", |status| {
        let ledger = crate::support::service(status, "ledger");
        (ledger["state"] == "ready" && ledger["epoch"].as_u64() > before["epoch"].as_u64()).then_some(ledger)
    });
    assert_ne!(after["primary"], before["primary"]);
    assert_eq!(seawall.pids("orders"), orders);
    let died = seawall.event("instance-died", before["primary"].as_str().unwrap());
    assert!(died["message"].as_str().unwrap().contains("lease ran out"), "{died}");
    println!("node process stopped by SIGSTOP: its primary ended after {took:?}");
}

#[test]
fn a_primary_outlives_a_node_process_that_cannot_come_back_for_seconds() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.service("ledger");
    let pids = seawall.pids("ledger");
    // Nothing can be read from a store that is a file: every new node process ends at once, and the keeper starts more.
    let (store, away) = (seawall.data_dir().join("store"), seawall.data_dir().join("store.away"));
    std::fs::rename(&store, &away).unwrap();
    std::fs::write(&store, b"").unwrap();
    assert!(processes::signal(seawall.node(), "KILL"));
    let killed = Instant::now();
    wait("several node processes that cannot start", || {
        (seawall.stderr().matches("the node process ended").count() >= 7).then_some(())
    });
    std::fs::remove_file(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    seawall.event("node-recovered", "");
    let took = killed.elapsed();
    assert!(took > Duration::from_millis(1500), "it was back within the lease, which proves nothing: {took:?}");
    seawall.wait_ready("ledger");
    let after = seawall.service("ledger");
    assert_eq!((&after["primary"], &after["epoch"]), (&before["primary"], &before["epoch"]));
    assert_eq!(seawall.pids("ledger"), pids, "nobody was restarted");
    println!("no node process for {took:?}: the primary went on");
}

#[test]
fn a_node_process_that_hangs_is_started_anew() {
    let seawall = Seawall::up(SHOP);
    let orders = seawall.pids("orders");
    let node = seawall.node();
    let stopped = Instant::now();
    assert!(processes::signal(node, "STOP"));
    wait("all of it stopped", || processes::is_stopped(node).then_some(()));
    assert_eq!(seawall.get("/").status, 200, "a request that came meanwhile was only late");
    println!("node process stopped for good: answers again after {:?}", stopped.elapsed());
    assert!(!processes::is_running(node));
    assert!(stopped.elapsed() < Duration::from_secs(20), "{:?}", stopped.elapsed());
    seawall.event("node-recovered", "");
    seawall.wait_ready("ledger");
    assert_eq!(seawall.pids("orders"), orders, "no instance was restarted");
}

#[test]
fn a_primary_that_died_while_no_node_process_ran_is_reported_lost() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.service("ledger");
    let id = before["primary"].as_str().unwrap();
    let pid = seawall.instance(id)["pid"].as_u64().unwrap();
    let node = seawall.node();
    assert!(processes::signal(node, "STOP"));
    assert!(processes::signal(pid, "KILL"));
    wait("its end", || (!processes::is_running(pid)).then_some(()));
    assert!(processes::signal(node, "KILL"));
    let lost = seawall.event("primary-lost", id);
    let routed = seawall.event("routed", "ledger");
    assert!(routed["epoch"].as_u64() >= before["epoch"].as_u64());
    wait("another primary with the same cause", || {
        seawall.events_of("routed").into_iter().find(|event| event["cause"] == lost["cause"])
    });
}
