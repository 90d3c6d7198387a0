//! Versions side by side, and requests moved from one to another, seen from outside.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::support::load::{Ledger, Load, Options, Sample};
use crate::support::{Seawall, http, processes, wait};

const SHARED: &str = r#"
services:
  orders:
    command: [DEMO]
    versions: { v1: { replicas: 2 }, v2: { env: { COLOUR: green }, labels: { track: canary } } }
routes:
  - { match: { pathPrefix: /v2 }, to: { service: orders, version: v2 } }
  - match: { pathPrefix: /sticky }
    to: [ { service: orders, version: v1 }, { service: orders, version: v2 } ]
    sticky: { header: X-User }
  - to: [ { service: orders, version: v1, weight: 80 }, { service: orders, version: v2, weight: 20 } ]
"#;

/// Which version answered.
fn version(answer: &http::Answer) -> String {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let instance = body["instance"].as_str().unwrap().to_owned();
    instance.split('-').nth(1).unwrap().to_owned()
}

#[test]
fn versions_share_a_route_by_weight_and_status_names_them() {
    let seawall = Seawall::up(SHARED);
    seawall.wait_ready("orders");
    let shown = seawall.instance("orders-v2-0");
    assert_eq!(
        (shown["version"].as_str(), seawall.instance("orders-v1-1")["version"].as_str()),
        (Some("v2"), Some("v1"))
    );
    let seen = (0..100).filter(|_| version(&seawall.get("/")) == "v2").count();
    assert_eq!(seen, 20);
    assert!((0..10).all(|_| version(&seawall.get("/v2")) == "v2"));
    let ask = |user: &str| {
        let answer = http::request(seawall.gateway, "GET", "/sticky", &[("X-User", user)], b"").unwrap();
        version(&answer)
    };
    let users: Vec<String> = (0..40).map(|user| format!("user-{user}")).collect();
    let first: Vec<String> = users.iter().map(|user| ask(user)).collect();
    let second: Vec<String> = users.iter().map(|user| ask(user)).collect();
    assert_eq!(first, second);
    assert!(first.contains(&"v1".to_owned()) && first.contains(&"v2".to_owned()), "{first:?}");
}

const CONTRACT: &str = r#"
services:
  orders: { command: [DEMO], versions: { v1: {}, v2: {} }, traffic: { shift: { minRequests: 10 } } }
  stock: { command: [DEMO] }
routes:
  - match: { pathPrefix: /three }
    to: [ { service: orders, version: v1, weight: 60 }, { service: orders, version: v2, weight: 20 }, { service: stock, weight: 20 } ]
  - { to: [ { service: orders, version: v1, weight: 80 }, { service: orders, version: v2, weight: 20 } ] }
"#;

#[test]
fn a_shift_to_where_nobody_answers_is_refused() {
    let seawall = Seawall::up(
        "services: { orders: { command: [DEMO], versions: { v1: {}, v2: { command: [DEMO, --start-ms, \"600000\"] } }, \
         readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 } } }\n\
         routes: [ { to: [ { service: orders, version: v1 } ] } ]\n",
    );
    wait("v1 is ready", || (seawall.get("/").status == 200).then_some(()));
    let (_, err) = seawall.cli_exits(1, &["shift", "orders", "--to", "v2", "--steps", "20,100"]);
    assert!(err.contains("orders v2 has no ready instance"), "{err}");
    assert!(shift(&seawall).is_null(), "nothing was begun");
}

#[test]
fn a_shift_takes_over_a_routes_own_weights_and_gives_them_back() {
    let seawall = Seawall::up(CONTRACT);
    seawall.wait_ready("orders");
    seawall.wait_ready("stock");
    let of = |path: &str| {
        let ask = |_| {
            let body: Value = serde_json::from_slice(&seawall.get(path).body).unwrap();
            body["instance"].as_str().unwrap().to_owned()
        };
        let seen: Vec<String> = (0..100).map(ask).collect();
        ["orders-v1", "orders-v2", "stock"].map(|who| seen.iter().filter(|name| name.starts_with(who)).count())
    };
    assert_eq!((of("/"), of("/three")), ([80, 20, 0], [60, 20, 20]));
    // Its own share is more than the first step: nothing changes.
    let begin = ["shift", "orders", "--to", "v2", "--steps", "10,50,100", "--every", "500ms", "--hold", "500ms"];
    let (out, _) = seawall.cli_exits(0, &begin);
    assert!(out.contains("10 % of the requests go to v2"), "{out}");
    let started = seawall.event("shift-started", "orders");
    assert!(started["message"].as_str().unwrap().contains("25 % of its requests do already"), "{started}");
    assert_eq!((of("/"), of("/three")), ([80, 20, 0], [60, 20, 20]));
    let at = |percent: u64| {
        wait(&format!("{percent} %"), || {
            (0..10).for_each(|_| drop(seawall.get("/")));
            (shift(&seawall)["percent"] == percent).then_some(())
        });
    };
    at(50);
    seawall.cli_exits(0, &["shift", "orders", "pause"]);
    assert_eq!((of("/"), of("/three")), ([50, 50, 0], [40, 40, 20]), "what goes elsewhere stays there");
    seawall.cli_exits(0, &["shift", "orders", "resume"]);
    at(100);
    wait("it is done", || {
        (0..10).for_each(|_| drop(seawall.get("/")));
        (shift(&seawall)["state"] == "done").then_some(())
    });
    assert_eq!((of("/"), of("/three")), ([0, 100, 0], [0, 80, 20]));
    seawall.cli_exits(0, &["shift", "orders", "abort"]);
    assert_eq!((of("/"), of("/three")), ([80, 20, 0], [60, 20, 20]), "its own weights again");
    // A bad version is taken back to the route's own weights, not further.
    seawall.cli_exits(0, &["shift", "orders", "--to", "v2", "--steps", "50,100", "--every", "500ms"]);
    assert_eq!(of("/"), [50, 50, 0]);
    let bad = seawall.instance("orders-v2-0")["pid"].as_u64().unwrap();
    processes::signal(bad, "KILL");
    state_is(&seawall, "rolled-back");
    seawall.wait_ready("orders");
    assert_eq!(of("/"), [80, 20, 0]);
}

const SHOP: &str = r#"
services:
  orders:
    command: [DEMO]
    versions: { v1: { replicas: 2 }, v2: { replicas: 2 } }
  other: { command: [DEMO] }
  plain: { command: [DEMO] }
routes:
  - { match: { pathPrefix: /canary }, to: { service: orders, version: v2 } }
  - { match: { pathPrefix: /plain }, to: { service: plain } }
  - { to: { service: orders, version: v1 } }
"#;

fn shift(seawall: &Seawall) -> Value {
    seawall.service("orders")["shift"].clone()
}

/// When so many percent were seen to be in force: a step is decided, which its event tells, and then committed.
fn at(seawall: &Seawall, load: &Load, percent: u64) -> Duration {
    wait(&format!("{percent} %"), || (shift(seawall)["percent"] == percent).then_some(()));
    load.now()
}

fn state_is(seawall: &Seawall, state: &str) -> Value {
    wait(&format!("the shift is {state}"), || Some(shift(seawall)).filter(|shift| shift["state"] == state))
}

fn light() -> Options {
    let (timeout, pause) = (Duration::from_secs(10), Duration::from_millis(4));
    Options { connections: 8, path: "/".into(), timeout, pause }
}

/// Time since the load began at which an event happened.
fn when(load_began: jiff::Timestamp, event: &Value) -> Duration {
    let at: jiff::Timestamp = event["at"].as_str().unwrap().parse().unwrap();
    Duration::try_from(at.duration_since(load_began)).unwrap()
}

/// The part of the answers in a stretch that came from v2, in hundredths, and of how many.
fn share(ledger: &Ledger, from: Duration, until: Duration) -> (f64, usize) {
    let settle = Duration::from_millis(60);
    let inside = |sample: &&Sample| sample.sent > from + settle && sample.done + settle < until;
    let answers: Vec<&Sample> = ledger.samples().filter(inside).collect();
    let there = answers.iter().filter(|sample| sample.instance.contains("-v2-")).count();
    (there as f64 * 100.0 / answers.len() as f64, answers.len())
}

#[test]
fn a_good_version_gets_all_requests_step_by_step_and_none_fails() {
    let seawall = Seawall::up_alone(SHOP);
    seawall.wait_ready("orders");
    let load = Load::start(seawall.gateway, &light()).under_way();
    std::thread::sleep(Duration::from_millis(500));
    let began = jiff::Timestamp::now() - jiff::SignedDuration::try_from(load.now()).unwrap();
    let begin = ["shift", "orders", "--to", "v2", "--steps", "10,50,100", "--hold", "2s", "--every", "1s", "--wait"];
    let in_force = std::thread::scope(|scope| {
        let begin = scope.spawn(|| seawall.cli_exits(0, &begin));
        let in_force = [10, 50, 100].map(|percent| at(&seawall, &load, percent));
        let (out, _) = begin.join().unwrap();
        assert!(out.contains("100 % of the requests go to v2") && out.contains("done since"), "{out}");
        in_force
    });
    let ended = load.now();
    std::thread::sleep(Duration::from_millis(300));
    let ledger = load.finish();
    println!("{}", ledger.summary());
    assert_eq!(ledger.successes(), ledger.samples().count(), "{}", ledger.summary());
    let (started, finished) = (seawall.event("shift-started", "orders"), seawall.event("shift-finished", "orders"));
    let steps = seawall.events_of("shift-stepped");
    assert_eq!(steps.len(), 2);
    assert!(steps.iter().chain([&finished]).all(|event| event["cause"] == started["cause"]), "one chain");
    let times: Vec<Duration> = [&started].into_iter().chain(&steps).map(|event| when(began, event)).collect();
    let from = [Duration::ZERO].into_iter().chain(in_force);
    let until = times.into_iter().chain([ended]);
    for ((wanted, from), until) in [0.0, 10.0, 50.0, 100.0].into_iter().zip(from).zip(until) {
        let (percent, count) = share(&ledger, from, until);
        println!("{wanted} %: {percent:.2} % of {count}");
        assert!((percent - wanted).abs() <= 1.0, "{percent} % instead of {wanted} of {count}");
    }
    // It stays so, also for the next node process, until routes take over.
    processes::signal(seawall.node(), "KILL");
    wait("a node process", || (seawall.status()["node"]["nodeStarts"] == 2).then_some(()));
    assert!((0..20).all(|_| version(&seawall.get("/")) == "v2"));
    assert_eq!(shift(&seawall)["state"], "done");
    let moved = SHOP.replace("to: { service: orders, version: v1 }", "to: { service: orders, version: v2 }");
    seawall.apply(0, &moved);
    seawall.cli_exits(0, &["shift", "orders", "clear"]);
    assert!((0..20).all(|_| version(&seawall.get("/")) == "v2"));
    assert_eq!(shift(&seawall), Value::Null);
    seawall.event("shift-cleared", "orders");
}

#[test]
fn a_version_that_turns_bad_is_taken_back_by_itself() {
    let seawall = Seawall::up_alone(SHOP);
    seawall.wait_ready("orders");
    let load = Load::start(seawall.gateway, &light()).under_way();
    let begin = ["shift", "orders", "--to", "v2", "--steps", "10,50,100", "--hold", "2s", "--every", "1s"];
    seawall.cli_exits(0, &begin);
    wait("half of the requests", || (shift(&seawall)["percent"] == 50).then_some(()));
    std::thread::sleep(Duration::from_millis(700));
    for instance in ["orders-v2-0", "orders-v2-1"] {
        seawall.fault(instance, "fail");
    }
    let bad_since = load.now();
    let back = seawall.event("shift-rolled-back", "orders");
    println!("taken back {:?} after it turned bad: {}", load.now() - bad_since, back["message"]);
    std::thread::sleep(Duration::from_secs(4));
    let ledger = load.finish();
    println!("{}", ledger.summary());
    let failed = ledger.samples().count() - ledger.successes();
    assert!(failed > 0, "it was bad");
    assert!(failed * 200 <= ledger.samples().count(), "{failed} failed: {}", ledger.summary());
    let message = back["message"].as_str().unwrap();
    assert!(message.contains("50 % had gone there") && message.contains("failed (at most 1%)"), "{message}");
    assert_eq!(back["cause"], seawall.event("shift-started", "orders")["cause"]);
    let shown = shift(&seawall);
    assert_eq!((shown["state"].as_str(), shown["percent"].as_u64()), (Some("rolled-back"), Some(0)));
    let (table, _) = seawall.cli_exits(0, &["status"]);
    assert!(table.contains("rolled-back since"), "{table}");
    assert_eq!(version(&seawall.get("/")), "v1");
    assert_eq!(seawall.get("/canary").status, 500, "whoever asks for it gets it");
}

#[test]
fn a_shift_waits_for_an_operator_where_nothing_can_be_said() {
    let seawall = Seawall::up(SHOP);
    seawall.wait_ready("orders");
    seawall.cli_exits(0, &["shift", "orders", "--to", "v2", "--steps", "50,100", "--every", "500ms", "--hold", "1s"]);
    let (_, problem) = seawall.cli_exits(1, &["shift", "orders", "--to", "v2"]);
    assert!(problem.contains("is running at 50 %"), "{problem}");
    let paused = state_is(&seawall, "paused");
    assert!(paused["why"].as_str().unwrap().contains("only 0 requests came"), "{paused}");
    let seen = (0..10).filter(|_| version(&seawall.get("/")) == "v2").count();
    assert_eq!(seen, 5, "it stays where it is");
    seawall.cli_exits(0, &["shift", "orders", "resume"]);
    let (out, _) = seawall.cli_exits(0, &["shift", "orders", "pause"]);
    assert!(out.contains("paused") && out.contains("by hand"), "{out}");
    seawall.cli_exits(1, &["shift", "orders", "clear"]);
    let node = seawall.node();
    processes::signal(node, "KILL");
    wait("another node process", || (seawall.node() != node).then_some(()));
    wait("it is known", || http::request(seawall.api, "GET", "/api/v1/health", &[], b"").ok());
    assert_eq!(state_is(&seawall, "paused")["percent"], 50);
    let (out, _) = seawall.cli_exits(0, &["shift", "orders", "abort", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["state"], "aborted");
    assert!((0..10).all(|_| version(&seawall.get("/")) == "v1"));
    for kind in ["shift-paused", "shift-resumed", "shift-aborted"] {
        assert_eq!(seawall.event(kind, "orders")["cause"], shift(&seawall)["cause"], "{kind}");
    }

    // Instances that restart are no good sign, whatever they answer.
    seawall.cli_exits(0, &["shift", "orders", "--to", "v2", "--steps", "50,100", "--every", "500ms", "--hold", "1s"]);
    wait("it runs", || (shift(&seawall)["state"] == "running").then_some(()));
    processes::signal(seawall.instance("orders-v2-0")["pid"].as_u64().unwrap(), "KILL");
    let back = state_is(&seawall, "rolled-back");
    assert!(back["why"].as_str().unwrap().contains("1 restarts of its instances"), "{back}");

    // To another service, and what cannot be asked for.
    seawall.cli_exits(0, &["shift", "orders", "clear"]);
    seawall.cli_exits(0, &["shift", "plain", "--to", "other", "--steps", "20,100"]);
    let other = |_: &usize| seawall.get("/plain").text().contains("\"other-0\"");
    assert_eq!((0..20).filter(other).count(), 4);
    for (arguments, code, word) in [
        (&["shift", "orders", "--to", "v3"][..], 2, "did you mean `v"),
        (&["shift", "order", "--to", "v2"], 2, "did you mean `orders`"),
        (&["shift", "orders", "--to", "v2", "--steps", "50,20"], 2, "percentages that grow"),
        (&["shift", "orders", "--to", "v2", "--max-p99", "fast"], 2, "a duration"),
        (&["shift", "orders", "--to", "v2", "--preset", "sauce"], 2, "did you mean `source`"),
        (&["shift", "orders"], 2, "where to?"),
        (&["shift", "orders", "status"], 2, "no shift of orders"),
        (&["shift", "orders", "resume"], 2, "no shift of orders"),
    ] {
        let (_, problem) = seawall.cli_exits(code, arguments);
        assert!(problem.contains(word), "{arguments:?}: {problem}");
    }
}

const GATED: &str = r#"
services:
  orders:
    command: [DEMO]
    versions: { v1: {}, v2: { env: { TRACK: canary } } }
    traffic:
      shift:
        steps: [50, 100]
        hold: 1s
        every: 1s
        gates: { series: [{ name: [no_such_total, demo_requests_total], maxPerSecond: 5 }] }
routes:
  - { to: { service: orders, version: v1 } }
"#;

#[test]
fn a_shift_looks_at_what_instances_tell_of_themselves() {
    let seawall = Seawall::up_alone(GATED);
    seawall.wait_ready("orders");
    let _load = Load::start(seawall.gateway, &light()).under_way();
    let back = |arguments: &[&str], word: &str| {
        seawall.cli_exits(0, &[&["shift", "orders", "--to", "v2"], arguments].concat());
        let (_, problem) = seawall.cli_exits(1, &["shift", "orders", "--to", "v2"]);
        assert!(problem.contains("is running"), "{problem}");
        let back = state_is(&seawall, "rolled-back");
        assert!(back["why"].as_str().unwrap().contains(word), "{back}");
    };
    back(&[], "no_such_total or demo_requests_total a second ");
    back(&["--max-cpu", "0.01%"], "of a processor for each instance (at most 0.01%)");
    back(&["--max-p99", "10ms", "--max-p50", "0"], "P50 ");
    // The source document's table looks at garbage collection from the second step on, which this program does not tell.
    seawall
        .cli_exits(0, &["shift", "orders", "--to", "v2", "--preset", "source", "--every", "500ms", "--hold", "500ms"]);
    let paused = state_is(&seawall, "paused");
    assert!(
        paused["percent"] == 50 && paused["why"].as_str().unwrap().contains("go_gc_duration_seconds_count"),
        "{paused}"
    );
}

const SPREAD: &str = r#"
services:
  orders:
    command: [DEMO]
    versions: { v1: { replicas: 3 }, v2: { replicas: 3 } }
routes:
  - { to: { service: orders, version: v1 } }
"#;

#[test]
fn a_shift_goes_on_when_the_leader_that_moved_it_is_killed() {
    let mut cluster = Cluster::up_with("");
    cluster.node(0).apply(0, SPREAD);
    for place in 0..3 {
        cluster.node(place).wait_ready("orders");
    }
    let leader = cluster.leader();
    let entered = (leader + 1) % 3;
    // Nothing comes through the leader's own gateway: what the others count is taken together.
    let load = Load::start(cluster.node(entered).gateway, &light()).under_way();
    let began = jiff::Timestamp::now() - jiff::SignedDuration::try_from(load.now()).unwrap();
    let begin = ["shift", "orders", "--to", "v2", "--steps", "10,50,100", "--hold", "3s", "--every", "1s"];
    let lenient = ["--max-error-rate", "20%"];
    let (out, _) = cluster.node(entered).cli_exits(0, &[&begin[..], &lenient].concat());
    assert!(out.contains("10 % of the requests go to v2"), "{out}");
    let mut in_force = vec![load.now(), at(cluster.node(entered), &load, 50)];
    std::thread::sleep(Duration::from_secs(1));
    let killed = load.now();
    cluster.kill(leader);
    let next = cluster.leader();
    println!("{} leads instead of {}", next, leader);
    let survivor = cluster.node(entered);
    in_force.push(at(survivor, &load, 100));
    let done = state_is(survivor, "done");
    let ended = load.now();
    let ledger = load.finish();
    println!("{}", ledger.summary());
    assert_eq!(done["percent"], 100);
    let (started, finished) = (survivor.event("shift-started", "orders"), survivor.event("shift-finished", "orders"));
    assert_eq!(started["cause"], finished["cause"], "one chain, whoever leads");
    let steps: Vec<Duration> = survivor.events_of("shift-stepped").iter().map(|event| when(began, event)).collect();
    assert_eq!(steps.len(), 2, "each step once");
    assert!(steps[1] > killed, "the new leader took the last one");
    let until = [steps[0], killed, ended];
    for ((wanted, from), until) in [10.0, 50.0, 100.0].into_iter().zip(in_force).zip(until) {
        let (percent, count) = share(&ledger, from, until);
        println!("{wanted} %: {percent:.2} % of {count}");
        assert!((percent - wanted).abs() <= 1.0, "{percent} % instead of {wanted} of {count}");
    }
    let failed = ledger.samples().count() - ledger.successes();
    assert!(failed * 100 <= ledger.samples().count(), "a node was killed, no more: {}", ledger.summary());
}
