//! The way to a backup and back, end to end: a whole set is killed under load, its breaker opens, the fallback answers, the
//! backup takes over by steps, and the requests come back by steps once the set is healthy. Seen by a client's ledger.

use std::time::Duration;

use serde_json::Value;

use crate::support::load::{Ledger, Load, Options, Outcome, Sample};
use crate::support::{Seawall, processes, wait};

/// What is killed stays away for six seconds.
const PAIR: &str = r#"
services:
  orders:
    command: [DEMO]
    replicas: 3
    restartBackoff: { initial: 6s }
    hold: { maxWait: 0 }
    traffic:
      circuitBreaker: { preset: source, window: 1s, minRequests: 10, openFor: 1s }
      fallback: { status: 200, body: '{"degraded":true}', headers: { content-type: application/json } }
      backup: [gone, orders-dr]
      failover: { shift: { steps: [10, 50, 100], hold: 1s, every: 500ms }, failBackAfter: 2s }
  gone: { command: [DEMO], replicas: 0 }
  orders-dr: { command: [DEMO], replicas: 2 }
routes:
  - { to: { service: orders } }
"#;

fn when(load_began: jiff::Timestamp, event: &Value) -> Duration {
    let at: jiff::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    Duration::try_from(at.duration_since(load_began)).unwrap()
}

/// In hundredths of the answers in a stretch: those of the set, of the backup, and of nobody (the fallback).
fn shares(ledger: &Ledger, from: Duration, until: Duration) -> ([f64; 3], usize) {
    let settle = Duration::from_millis(60);
    let inside = |sample: &&Sample| sample.sent > from + settle && sample.done + settle < until;
    let answers: Vec<&Sample> = ledger.samples().filter(inside).collect();
    let part = |of: &dyn Fn(&str) -> bool| {
        answers.iter().filter(|sample| of(&sample.instance)).count() as f64 * 100.0 / answers.len() as f64
    };
    let backup = |instance: &str| instance.starts_with("orders-dr-");
    let set = |instance: &str| instance.starts_with("orders-") && !backup(instance);
    ([part(&set), part(&backup), part(&|instance| instance.is_empty())], answers.len())
}

#[test]
fn a_set_that_is_killed_is_replaced_by_its_backup_step_by_step_and_gets_its_requests_back_the_same_way() {
    let seawall = Seawall::up_alone(PAIR);
    seawall.wait_ready("orders");
    seawall.wait_ready("orders-dr");
    let (timeout, pause) = (Duration::from_secs(10), Duration::from_millis(4));
    let load = Load::start(seawall.gateway, &Options { connections: 8, path: "/".into(), timeout, pause }).under_way();
    let began = jiff::Timestamp::now() - jiff::SignedDuration::try_from(load.now()).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let killed = load.now();
    for pid in seawall.pids("orders") {
        processes::signal(pid, "KILL");
    }
    wait("the backup serves", || (seawall.service("orders")["shift"]["state"] == "done").then_some(()));
    let (table, _) = seawall.cli_exits(0, &["status"]);
    assert!(table.contains("backup in use, requests go to orders-dr: 100 % there"), "{table}");
    let finished = seawall.event("fail-back-finished", "orders");
    std::thread::sleep(Duration::from_millis(700));
    let ended = load.now();
    let ledger = load.finish();
    println!("{}", ledger.summary());

    // Phases in order, one chain.
    let cause = &finished["cause"];
    let kinds = [
        "no-ready-instance",
        "breaker-opened",
        "backup-engaged",
        "backup-stepped",
        "backup-full",
        "fail-back-started",
        "fail-back-stepped",
        "fail-back-finished",
    ];
    let first = |kind: &str| {
        let found = seawall.events_of(kind).into_iter().find(|event| event["cause"] == *cause);
        when(began, &found.unwrap_or_else(|| panic!("no {kind} in the chain {cause}")))
    };
    let times: Vec<Duration> = kinds.iter().map(|kind| first(kind)).collect();
    println!("killed at {killed:?}: {:?}", kinds.iter().zip(&times).collect::<Vec<_>>());
    assert!(times[1..].windows(2).all(|pair| pair[0] <= pair[1]), "{times:?}");
    assert!(times[0] >= killed && times[0] < times[2], "{times:?}");
    assert_eq!(first("instance-died").max(killed), first("instance-died"), "it began with a death");
    let closed = first("breaker-closed");
    assert!(closed > times[5], "it closes when a request has come back");

    // What clients saw: the gradient there, the fallback meanwhile, the gradient back.
    let stepped = |kind: &str| -> Vec<Duration> {
        let events = seawall.events_of(kind);
        events.iter().filter(|event| event["cause"] == *cause).map(|event| when(began, event)).collect()
    };
    let (there, back) = (stepped("backup-stepped"), stepped("fail-back-stepped"));
    assert_eq!((there.len(), back.len()), (2, 2));
    let stretches = [
        ("10 % there", times[2], there[0], [0.0, 10.0, 90.0]),
        ("50 % there", there[0], there[1], [0.0, 50.0, 50.0]),
        ("all there", there[1], times[5], [0.0, 100.0, 0.0]),
        ("50 % back", back[0], back[1], [50.0, 50.0, 0.0]),
        ("all back", times[7], ended, [100.0, 0.0, 0.0]),
    ];
    for (what, from, until, wanted) in stretches {
        let (seen, count) = shares(&ledger, from, until);
        println!("{what}: set {:.1} %, backup {:.1} %, fallback {:.1} % of {count}", seen[0], seen[1], seen[2]);
        let close = seen.iter().zip(wanted).all(|(seen, wanted)| (seen - wanted).abs() <= 2.0);
        assert!(close, "{what}: {seen:?} of {count}");
    }
    // The first requests that come back try the set out: the rest of them get the fallback for that moment.
    let (begin, _) = shares(&ledger, times[5], back[0]);
    assert!((begin[1] - 90.0).abs() <= 2.0, "90 % with the backup still: {begin:?}");
    let failed = ledger.samples().filter(|sample| sample.outcome != Outcome::Success).count();
    assert!(failed <= 40, "until the breaker has opened, no more: {}", ledger.summary());
    assert_eq!(seawall.service("orders")["shift"], Value::Null);
}
