//! A clean stop, a second start, and what the whole thing costs in memory.

use std::time::{Duration, Instant};

use crate::support::{Seawall, http, processes, wait};

const SHOP: &str = r"
services:
  orders: { command: [DEMO, --latency-ms, '1500'], replicas: 2 }
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    onPromote: { httpPost: { path: /promote } }
routes:
  - { match: { pathPrefix: /ledger }, to: { service: ledger } }
  - { to: { service: orders } }
";

#[test]
fn a_stop_finishes_what_was_begun_and_a_second_start_goes_on() {
    let mut seawall = Seawall::up(SHOP);
    let epoch = seawall.service("ledger")["epoch"].as_u64();
    seawall.cli_exits(0, &["kv", "put", "kept", "over the restart"]);
    let gateway = seawall.gateway;
    let mut slow = http::Connection::open(gateway, Duration::from_secs(30)).unwrap();
    slow.write("GET", "/", &[], b"").unwrap();
    wait("the request under way", || {
        let metrics = seawall.api("GET", "/metrics", b"").text();
        metrics
            .lines()
            .any(|line| line.contains("in_flight") && line.contains("orders") && line.ends_with(" 1"))
            .then_some(())
    });
    let all = seawall.processes();
    let began = Instant::now();
    processes::signal(seawall.keeper(), "TERM");
    let answer = slow.read(false).unwrap();
    assert_eq!(answer.status, 200, "the request under way was answered");
    let status = seawall.ended();
    println!("clean stop with a slow request under way: {:?}", began.elapsed());
    assert_eq!(status.code(), Some(0), "{}", seawall.stderr());
    assert!(all.iter().all(|pid| !processes::is_running(*pid)), "something is left");
    assert!(http::Connection::open(gateway, Duration::from_secs(1)).is_err(), "the port is free again");

    let seawall = Seawall::up_in(seawall.into_folder());
    let (value, _) = seawall.cli_exits(0, &["kv", "get", "kept"]);
    assert_eq!(value, "over the restart");
    assert!(seawall.service("ledger")["epoch"].as_u64() > epoch, "epochs go on growing");
    let kinds: Vec<_> = seawall.events().iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "node-started").count(), 2, "the journal goes on");
    assert!(kinds.iter().any(|kind| kind == "node-stopping"));
    assert!(!kinds.iter().any(|kind| kind == "primary-lost"), "a stop on purpose is no loss");
}

#[test]
fn a_second_request_to_stop_ends_everything_at_once() {
    let mut seawall = Seawall::up(
        r#"
services:
  stubborn: { command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"], terminationGracePeriodSeconds: 60 }
"#,
    );
    let all = seawall.processes();
    processes::signal(seawall.keeper(), "TERM");
    wait("the stop", || (seawall.status()["node"]["state"] == "stopping").then_some(()));
    let again = Instant::now();
    processes::signal(seawall.keeper(), "TERM");
    assert_eq!(seawall.ended().code(), Some(0));
    println!("a second request to stop: ended after {:?}", again.elapsed());
    assert!(again.elapsed() < Duration::from_secs(15), "{:?}", again.elapsed());
    assert!(all.iter().all(|pid| !processes::is_running(*pid)), "something is left");
}

#[test]
fn a_second_start_after_a_crash_of_everything_ends_strays_and_goes_on() {
    let seawall = Seawall::up(SHOP);
    let epoch = seawall.service("ledger")["epoch"].as_u64();
    let node = seawall.node();
    // A frozen node process cannot clean up after its keeper; the children of instances have nobody else.
    processes::signal(node, "STOP");
    processes::signal(seawall.keeper(), "KILL");
    let folder = seawall.into_folder();
    let seawall = Seawall::up_in(folder);
    seawall.wait_ready("ledger");
    assert!(seawall.service("ledger")["epoch"].as_u64() > epoch);
    assert_eq!(seawall.get("/").status, 200);
}

#[test]
fn both_processes_together_stay_small() {
    let shop = include_str!("../../../../examples/shop/seawall.yaml");
    let body = &shop[shop.find("services:").unwrap()..];
    let seawall = Seawall::up(&body.replace("[\"seawall\"", &format!("[{:?}", crate::support::BINARY)));
    for path in ["/orders", "/ledger"] {
        for _ in 0..200 {
            assert_eq!(seawall.get(path).status, 200);
        }
    }
    let (keeper, node) = (processes::resident(seawall.keeper()), processes::resident(seawall.node()));
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("resident memory with the shop: keeper {:.1} MiB, node {:.1} MiB", mib(keeper), mib(node));
    let limit = if cfg!(debug_assertions) { 120.0 } else { 80.0 };
    assert!(mib(keeper + node) < limit, "{:.1} MiB", mib(keeper + node));
}
