//! Another configuration for a running node: only what changed is touched, and what does not come up is taken back.

use std::time::Duration;

use serde_json::Value;

use crate::support::load::{Ledger, Load, Options};
use crate::support::{Seawall, processes, wait};

const SHOP: &str = r"
services:
  orders:
    command: [DEMO, --latency-ms, '20']
    replicas: 3
    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 }
    restartBackoff: { initial: 50ms, max: 100ms }
    terminationGracePeriodSeconds: 2
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
    restartBackoff: { initial: 50ms, max: 100ms }
    terminationGracePeriodSeconds: 2
routes:
  - { match: { pathPrefix: /ledger }, to: { service: ledger } }
  - { to: { service: orders } }
";

fn under_load(seawall: &Seawall, path: &str, act: impl FnOnce()) -> Ledger {
    let load = Load::start(
        seawall.gateway,
        &Options {
            connections: 16,
            path: path.into(),
            timeout: Duration::from_secs(30),
            pause: Duration::from_millis(2),
        },
    );
    act();
    load.finish()
}

#[test]
fn a_changed_command_rolls_one_at_a_time_and_fails_nothing() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.pids("orders");
    let ledger_pids = seawall.pids("ledger");
    let ledger = under_load(&seawall, "/", || {
        let (out, _) = seawall.apply(0, &SHOP.replace("'20'", "'21'"));
        assert!(out.contains("orders: rolled, all instances ready"), "{out}");
    });
    println!("apply of a changed command: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    let after = seawall.pids("orders");
    assert!(after.len() == 3 && before.iter().all(|pid| !after.contains(pid)), "{before:?} to {after:?}");
    assert_eq!(seawall.pids("ledger"), ledger_pids, "what did not change was not touched");
    // One at a time: in the order of events, an instance is ready again before the next one stops.
    let mut away = None;
    for event in seawall.events().iter().filter(|event| event["service"] == "orders") {
        let id = event["instance"].as_str().map(str::to_owned);
        match event["kind"].as_str().unwrap() {
            "instance-stopping" => {
                assert_eq!(away, None, "{id:?} stops while {away:?} is away");
                away = id;
            }
            "instance-ready" if away == id => away = None,
            _ => {}
        }
    }
    let kinds: Vec<Value> = seawall.events().into_iter().map(|event| event["kind"].clone()).collect();
    assert!(kinds.contains(&"roll-started".into()) && kinds.contains(&"roll-finished".into()));
}

#[test]
fn a_changed_command_of_a_primary_rolls_with_a_planned_switch() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.pids("ledger");
    let epoch = seawall.service("ledger")["epoch"].as_u64();
    let ledger = under_load(&seawall, "/ledger", || {
        seawall.apply(
            0,
            &SHOP.replacen("replicas: 2\n    command: [DEMO]", "replicas: 2\n    command: [DEMO, --name, ledger]", 1),
        );
    });
    println!("apply of a primary's changed command: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    ledger.check_epochs();
    let after = seawall.wait_ready("ledger");
    assert!(after["epoch"].as_u64() > epoch);
    assert!(before.iter().all(|pid| !processes::is_running(*pid)));
    assert_eq!(seawall.events_of("primary-lost").len(), 0);
}

#[test]
fn a_command_that_does_not_come_up_is_taken_back() {
    let seawall = Seawall::up(SHOP);
    let in_force = seawall.api("GET", "/api/v1/config", b"").json();
    let bad = SHOP.replace("'20'", "'20', --exit, '3'");
    let with_one_more = bad.replacen("replicas: 3", "replicas: 4", 1);
    for (file, untouched) in [(bad, 2), (with_one_more, 3)] {
        let before = seawall.pids("orders");
        let ledger = under_load(&seawall, "/", || {
            let (_, err) = seawall.apply(1, &file);
            assert!(err.contains("the new definition does not come up") && err.contains("exit code 3"), "{err}");
        });
        println!("apply of a command that does not come up: {}", ledger.summary());
        assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
        let after = seawall.wait_ready("orders");
        assert_eq!(after["instances"].as_array().unwrap().len(), 3, "one that was added is gone again: {after}");
        let after = seawall.pids("orders");
        assert_eq!(before.iter().filter(|pid| after.contains(pid)).count(), untouched, "{before:?} {after:?}");
    }
    assert_eq!(seawall.api("GET", "/api/v1/config", b"").json(), in_force, "the old definition is in force");
    assert!(seawall.event("roll-aborted", "orders")["message"].as_str().unwrap().contains("going back to the old one"));
}

#[test]
fn probes_routes_and_labels_change_without_a_restart() {
    let seawall = Seawall::up(SHOP);
    let before = (seawall.pids("orders"), seawall.pids("ledger"), seawall.service("ledger")["epoch"].clone());
    let changed = SHOP
        .replace("path: /ready }, periodSeconds: 1", "path: /health }, periodSeconds: 2")
        .replace("/ledger", "/books");
    let (out, _) = seawall.apply(0, &changed);
    assert!(out.contains("orders: changed in place") && out.contains("routes: changed"), "{out}");
    assert_eq!(seawall.get("/books").json()["role"], "primary");
    assert!(seawall.get("/ledger").json()["instance"].as_str().unwrap().starts_with("orders"));
    let after = (seawall.pids("orders"), seawall.pids("ledger"), seawall.service("ledger")["epoch"].clone());
    assert_eq!(before, after);
    let (out, _) = seawall.apply(0, &changed);
    assert!(!out.contains("orders") && !out.contains("routes"), "the same file again changes nothing: {out}");
}

#[test]
fn services_come_and_go() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.pids("orders");
    let (out, _) = seawall.apply(0, &SHOP.replacen("services:", "services:\n  extra: { command: [DEMO] }", 1));
    assert!(out.contains("extra: added"), "{out}");
    seawall.wait_ready("extra");
    let pid = seawall.pids("extra")[0];
    let (out, _) = seawall.apply(0, SHOP);
    assert!(out.contains("extra: removed"), "{out}");
    wait("its end", || (!processes::is_running(pid)).then_some(()));
    assert_eq!(seawall.pids("orders"), before);
    let (out, _) = seawall.apply(0, &SHOP.replacen("replicas: 3", "replicas: 5", 1));
    assert!(out.contains("orders: changed in place"), "{out}");
    seawall.wait_ready("orders");
    assert_eq!(seawall.pids("orders")[..3], before, "the first three stay");
}

#[test]
fn a_file_with_mistakes_changes_nothing() {
    let seawall = Seawall::up(SHOP);
    let before = (seawall.pids("orders"), seawall.api("GET", "/api/v1/config", b"").json());
    let (_, err) = seawall.apply(2, &SHOP.replace("replicas: 3", "replicsa: 3"));
    assert!(err.contains("did you mean `replicas`?") && err.contains("nothing was changed"), "{err}");
    let (_, err) = seawall.apply(2, &SHOP.replacen("pathPrefix: /ledger", "pathRegex: '('", 1));
    assert!(err.contains("nothing was changed"), "{err}");
    let text = std::fs::read_to_string(seawall.file()).unwrap().replace("name: test", "name: other");
    std::fs::write(seawall.file(), text.replace("pathRegex: '('", "pathPrefix: /ledger")).unwrap();
    let (_, err) = seawall.cli_exits(1, &["apply", "-f", &seawall.file().to_string_lossy()]);
    assert!(err.contains("cannot be changed while running"), "{err}");
    assert!(seawall.event("config-rejected", "")["message"].as_str().unwrap().contains("nothing was changed"));
    assert_eq!((seawall.pids("orders"), seawall.api("GET", "/api/v1/config", b"").json()), before);
    assert_eq!(seawall.get("/ledger").status, 200);
}

#[test]
fn a_hangup_reads_the_file_again() {
    let seawall = Seawall::up(SHOP);
    let before = seawall.pids("orders");
    let text = std::fs::read_to_string(seawall.file()).unwrap();
    std::fs::write(seawall.file(), text.replace("/ledger", "/books")).unwrap();
    processes::signal(seawall.keeper(), "HUP");
    seawall.event("config-applied", "");
    wait("the new route", || (seawall.get("/books").json()["role"] == "primary").then_some(()));
    // With mistakes: told, and nothing changes.
    std::fs::write(seawall.file(), "services: [").unwrap();
    processes::signal(seawall.keeper(), "HUP");
    let rejected = seawall.event("config-rejected", "");
    assert!(rejected["message"].as_str().unwrap().contains("nothing was changed"), "{rejected}");
    assert_eq!(seawall.get("/books").json()["role"], "primary");
    assert_eq!(seawall.pids("orders"), before);
}

#[test]
fn what_was_applied_outlives_the_node_process_and_an_edited_file_does_not_count() {
    let seawall = Seawall::up(SHOP);
    seawall.apply(0, &SHOP.replace("/ledger", "/books"));
    std::fs::write(seawall.file(), "no configuration at all").unwrap();
    let before = seawall.pids("orders");
    processes::signal(seawall.node(), "KILL");
    seawall.event("node-recovered", "");
    seawall.wait_ready("ledger");
    assert_eq!(seawall.get("/books").json()["role"], "primary");
    assert_eq!(seawall.pids("orders"), before);
}

#[test]
fn a_file_that_fails_in_one_part_goes_back_as_a_whole() {
    let two = format!(
        "{}  books: {{ command: [DEMO], replicas: 2, labels: {{ app: a }} }}\n",
        SHOP.split("routes:").next().unwrap()
    );
    let routes = format!("routes:{}", SHOP.split("routes:").nth(1).unwrap());
    let seawall = Seawall::up(&format!("{two}{routes}"));
    let in_force = seawall.api("GET", "/api/v1/config", b"").json();
    let pids = (seawall.pids("ledger"), seawall.pids("books"));
    let untouched = seawall.pids("orders")[..2].to_vec();
    // Another route in front, a service more, another definition that comes up, and one that does not.
    let broken = two
        .replace("command: [DEMO, --latency-ms, '20']", "command: [DEMO, --exit, '3']")
        .replace("labels: { app: a }", "labels: { app: b }, drainTimeout: 3s");
    let more = "  extra: { command: [DEMO] }\n";
    let changed = format!(
        "{broken}{more}routes:\n  - {{ match: {{ pathPrefix: /extra }}, to: {{ service: extra }} }}\n  - {{ to: {{ service: ledger }} }}\n"
    );
    let (_, err) = seawall.apply(1, &changed);
    assert!(err.contains("the new definition does not come up") && err.contains("exit code 3"), "{err}");
    assert!(err.contains("what was in force before is in force again"), "{err}");

    assert_eq!(seawall.api("GET", "/api/v1/config", b"").json(), in_force, "the definitions");
    assert!(seawall.get("/extra").json()["instance"].as_str().unwrap().starts_with("orders"), "the routes");
    assert!(seawall.get("/ledger").json()["instance"].as_str().unwrap().starts_with("ledger"), "the routes");
    seawall
        .wait_for("the added service's end", |status| crate::support::service(status, "extra").is_null().then_some(()));
    seawall.wait_ready("orders");
    assert_eq!(seawall.pids("orders")[..2], untouched, "one was tried, the others were left alone");
    assert_eq!((seawall.pids("ledger"), seawall.pids("books")), pids);
    seawall.event("config-rejected", "");
    // The next node process starts with what is in force, too; and the way is free for the next file.
    processes::signal(seawall.node(), "KILL");
    seawall.event("node-recovered", "");
    seawall.wait_ready("orders");
    assert_eq!(seawall.api("GET", "/api/v1/config", b"").json(), in_force);
    assert!(seawall.get("/extra").json()["instance"].as_str().unwrap().starts_with("orders"));
    let (out, _) = seawall.apply(0, &changed.replace("--exit, '3'", "--latency-ms, '5'"));
    for word in ["extra: added", "orders: rolled", "books: changed in place", "routes: changed"] {
        assert!(out.contains(word), "{out}");
    }
    wait("the added service", || (seawall.get("/extra").json()["instance"] == "extra-0").then_some(()));
}

#[test]
fn two_definitions_that_roll_go_back_together() {
    let seawall = Seawall::up(SHOP);
    let in_force = seawall.api("GET", "/api/v1/config", b"").json();
    // The ledger's new definition comes up; the orders' does not, so the ledger's goes back as well.
    let changed = SHOP
        .replace("command: [DEMO, --latency-ms, '20']", "command: [DEMO, --exit, '3']")
        .replace("    command: [DEMO]\n    onPromote", "    command: [DEMO, --latency-ms, '1']\n    onPromote");
    let ledger = under_load(&seawall, "/ledger", || {
        let (_, err) = seawall.apply(1, &changed);
        assert!(err.contains("orders: the new definition does not come up"), "{err}");
    });
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    ledger.check_epochs();
    assert_eq!(seawall.api("GET", "/api/v1/config", b"").json(), in_force);
    seawall.wait_ready("orders");
    seawall.wait_ready("ledger");
    let commands: Vec<String> = seawall
        .pids("ledger")
        .iter()
        .map(|pid| String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap()).into_owned())
        .collect();
    assert_eq!(commands.len(), 2);
    assert!(commands.iter().all(|line| !line.contains("--latency-ms")), "{commands:?}");
}
