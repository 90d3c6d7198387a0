//! The command line against a running node: what it prints, its exit codes, and `restart`.

use std::time::Duration;

use serde_json::Value;

use crate::support::load::{Load, Options};
use crate::support::{Seawall, wait};

const SHOP: &str = r"
services:
  orders:
    command: [DEMO, --latency-ms, '20']
    replicas: 3
    minAvailable: 2
    labels: { app: shop }
    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 }
    restartBackoff: { initial: 50ms, max: 100ms }
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
  strict: { command: [DEMO], replicas: 2, minAvailable: 2 }
routes:
  - { match: { pathPrefix: /ledger }, to: { service: ledger } }
  - { to: { service: orders } }
";

fn load(seawall: &Seawall, path: &str) -> Load {
    let pause = Duration::from_millis(2);
    Load::start(
        seawall.gateway,
        &Options { connections: 16, path: path.into(), timeout: Duration::from_secs(30), pause },
    )
}

#[test]
fn a_restart_keeps_enough_instances_and_fails_nothing() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.pids("orders");
    let load_running = load(&seawall, "/");
    let watching = {
        let (api, stop) = (seawall.api, std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut fewest = u64::MAX;
            while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
                let status = crate::support::http::request(api, "GET", "/api/v1/status", &[], b"").unwrap().json();
                fewest = fewest.min(crate::support::service(&status, "orders")["ready"].as_u64().unwrap());
            }
            fewest
        });
        (stop, thread)
    };
    let (out, _) = seawall.cli_exits(0, &["restart", "orders"]);
    assert!(out.contains("3 instances replaced, all ready"), "{out}");
    watching.0.store(true, std::sync::atomic::Ordering::SeqCst);
    let fewest = watching.1.join().unwrap();
    let ledger = load_running.finish();
    println!("restart under load: fewest ready {fewest}; {}", ledger.summary());
    assert!(fewest >= 2, "only {fewest} were ready at one moment");
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    let after = seawall.pids("orders");
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
}

#[test]
fn a_restart_of_a_primary_hands_over_first() {
    let seawall = Seawall::up(SHOP);
    let epoch = seawall.service("ledger")["epoch"].as_u64();
    let load = load(&seawall, "/ledger");
    seawall.cli_exits(0, &["restart", "ledger"]);
    let ledger = load.finish();
    println!("restart of a primary-standby service under load: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    ledger.check_epochs();
    assert!(seawall.service("ledger")["epoch"].as_u64() > epoch);
    assert_eq!(seawall.events_of("primary-lost").len(), 0);
}

#[test]
fn restarts_that_would_break_a_promise_are_refused() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.pids("strict");
    let (_, err) = seawall.cli_exits(1, &["restart", "strict"]);
    assert!(err.contains("minAvailable 2 of 2 replicas") && err.contains("add a replica"), "{err}");
    let (_, err) = seawall.cli_exits(2, &["restart", "order"]);
    assert!(err.contains("no service `order`; did you mean `orders`?"), "{err}");
    assert_eq!(seawall.pids("strict"), before);
    assert_eq!(seawall.events_of("roll-started").len(), 0);
}

#[test]
fn a_restart_whose_process_does_not_come_up_is_given_up() {
    let seawall = Seawall::up(&SHOP.replace(
        "command: [DEMO, --latency-ms, '20']",
        "command: [sh, -c, 'test ! -e broken || exit 5; exec \"$@\"', sh, DEMO]",
    ));
    let before = seawall.pids("orders");
    std::fs::write(seawall.folder().join("broken"), "").unwrap();
    let load = load(&seawall, "/");
    let (_, err) = seawall.cli_exits(1, &["restart", "orders"]);
    assert!(err.contains("the restart was given up") && err.contains("exit code 5"), "{err}");
    let ledger = load.finish();
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    let after = seawall.pids("orders");
    assert_eq!(before.iter().filter(|pid| after.contains(pid)).count(), 2, "the others were left alone");
    seawall.event("roll-aborted", "orders");
    std::fs::remove_file(seawall.folder().join("broken")).unwrap();
    seawall.wait_ready("orders");
}

#[test]
fn status_events_and_logs_say_what_is_so() {
    let seawall = Seawall::up(SHOP);
    assert_eq!(seawall.ready()["notReady"], Value::Null);
    let (table, _) = seawall.cli_exits(0, &["status"]);
    let layers: Vec<usize> = ["runtime", "guard", "discovery", "health", "data", "traffic", "region"]
        .iter()
        .map(|layer| table.find(&format!("\n{layer} ")).unwrap_or_else(|| panic!("no {layer} in\n{table}")))
        .collect();
    assert!(layers.is_sorted(), "the seven layers in their order:\n{table}");
    assert!(table.contains("orders-2") && table.contains("primary"), "{table}");
    let (json, _) = seawall.cli_exits(0, &["status", "ledger", "-o", "json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["services"].as_array().unwrap().len(), 1);
    let (_, err) = seawall.cli_exits(2, &["status", "ledgre"]);
    assert!(err.contains("did you mean `ledger`?"), "{err}");

    let (lines, _) = seawall.cli_exits(0, &["events", "-o", "json"]);
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let promoted = events.iter().find(|event| event["kind"] == "promoted").unwrap();
    for field in ["at", "kind", "service", "instance", "epoch", "cause", "message"] {
        assert!(!promoted[field].is_null(), "{field} in {promoted}");
    }
    let (some, _) = seawall.cli_exits(0, &["events", "ledger", "-n", "2", "-o", "json"]);
    assert_eq!(some.lines().count(), 2);
    assert!(some.lines().all(|line| line.contains("\"service\":\"ledger\"")), "{some}");

    wait("the log lines of all three", || {
        let (logs, _) = seawall.cli_exits(0, &["logs", "orders"]);
        (logs.lines().filter(|line| line.contains(" out ") && line.contains("listens on")).count() == 3).then_some(())
    });
    let (one, _) = seawall.cli_exits(0, &["logs", "orders", "--instance", "orders-1", "-n", "1"]);
    assert!(one.lines().count() == 1 && one.contains("orders-1"), "{one}");
    let (_, err) = seawall.cli_exits(2, &["events", "ledgre"]);
    assert!(err.contains("no service `ledgre`") && err.contains("did you mean `ledger`?"), "{err}");
    for follow in
        [vec!["events", "nope", "--follow"], vec!["events", "orders", "nope"], vec!["status", "orders", "nope"]]
    {
        seawall.cli_exits(2, &follow);
    }
    let (_, err) = seawall.cli_exits(2, &["logs", "nothing"]);
    assert!(err.contains("nothing"), "{err}");
}

#[test]
fn key_value_verbs() {
    let seawall = Seawall::up(SHOP);
    let kv = |code: i32, arguments: &[&str]| {
        let mut all = vec!["kv"];
        all.extend_from_slice(arguments);
        seawall.cli_exits(code, &all)
    };
    let (out, _) = kv(0, &["put", "a/1", "one"]);
    assert!(out.starts_with("revision ") && out.contains("(sync)"), "{out}");
    let revision = out.split(' ').nth(1).unwrap().to_owned();
    kv(0, &["put", "a/2", "two"]);
    kv(0, &["put", "ab", "three"]);
    assert_eq!(kv(0, &["get", "a/1"]).0, "one");
    assert_eq!(kv(0, &["list", "a/"]).0, "a/1\na/2\n");
    assert_eq!(kv(0, &["list"]).0, "a/1\na/2\nab\n");
    let (_, err) = kv(1, &["put", "a/1", "uno", "--cas", "0"]);
    assert!(err.contains(&format!("changed meanwhile, at revision {revision}")), "{err}");
    kv(0, &["put", "a/1", "uno", "--cas", &revision]);
    assert_eq!(kv(0, &["get", "a/1"]).0, "uno");
    let (_, err) = kv(2, &["get", "nothing"]);
    assert!(err.contains("no key `nothing`"), "{err}");
    assert!(kv(0, &["delete", "a/", "--prefix"]).0.starts_with("2 deleted"));
    assert_eq!(kv(0, &["list"]).0, "ab\n");
}
