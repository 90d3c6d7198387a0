//! Services of a cluster: spread over the nodes, reached through every gateway, moved when a node is lost, replaced one at
//! a time wherever they run. Real binaries, real kills.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, name};
use crate::support::load::{Load, Options};
use crate::support::processes::signal;
use crate::support::{PATIENCE, http, service, wait};

/// An active-active service and one with a primary, each under the path of its name.
pub const SHOP: &str = r#"services:
  orders:
    command: [DEMO]
    replicas: 3
    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 }
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    livenessProbe: { httpGet: { path: /health }, periodSeconds: 1, failureThreshold: 2 }
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
routes:
  - { match: { pathPrefix: /orders }, to: { service: orders } }
  - { match: { pathPrefix: /ledger }, to: { service: ledger } }
"#;

/// Applies through one node, and waits until every node shows all of it ready.
pub fn shop(cluster: &Cluster, through: usize, body: &str) {
    cluster.node(through).apply(0, body);
    settled(cluster);
}

fn settled(cluster: &Cluster) {
    for place in cluster.up_places() {
        cluster.node(place).wait_for("all of the shop is ready", |status| {
            let ready = |name| {
                let service = status["services"].as_array()?.iter().find(|service| service["name"] == name)?;
                (service["state"] == "ready").then_some(())
            };
            ready("orders").and(ready("ledger"))
        });
    }
}

/// Where the instances of a service are, in the order of their ids.
fn nodes_of(status: &Value, name: &str) -> Vec<String> {
    let of = service(status, name);
    of["instances"].as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap().to_owned()).collect()
}

fn place_of(node: &str) -> usize {
    (0..3).find(|place| name(*place) == node).unwrap()
}

/// The place of the node with the primary of `ledger`, and the primary's id.
pub fn primary(cluster: &Cluster, seen_from: usize) -> (usize, String) {
    let status = cluster.node(seen_from).status();
    let ledger = service(&status, "ledger");
    let id = ledger["primary"].as_str().unwrap().to_owned();
    let instances = ledger["instances"].as_array().unwrap();
    let node = instances.iter().find(|instance| instance["id"] == id.as_str()).unwrap()["node"].as_str().unwrap();
    (place_of(node), id)
}

pub fn ask(cluster: &Cluster, place: usize, path: &str) -> http::Answer {
    cluster.node(place).get(path)
}

#[test]
fn services_are_spread_and_every_gateway_reaches_all_of_them() {
    let mut cluster = Cluster::up_with("");
    shop(&cluster, 1, SHOP);
    let status = cluster.node(0).status();
    assert_eq!(nodes_of(&status, "orders").into_iter().collect::<BTreeSet<_>>().len(), 3, "one on each node");
    assert_eq!(nodes_of(&status, "ledger").into_iter().collect::<BTreeSet<_>>().len(), 2);
    let (_, first) = primary(&cluster, 0);
    for place in 0..3 {
        assert_eq!(nodes_of(&cluster.node(place).status(), "orders"), nodes_of(&status, "orders"));
        // Nearest first: each gateway asks the instance of its own node.
        let own = nodes_of(&status, "orders").iter().position(|node| *node == name(place)).unwrap();
        for _ in 0..5 {
            assert_eq!(ask(&cluster, place, "/orders").json()["instance"], format!("orders-{own}"));
        }
        assert_eq!(ask(&cluster, place, "/ledger").json()["instance"], first.as_str());
    }
    // One that is killed comes back where it was; meanwhile others answer.
    let own = nodes_of(&status, "orders").iter().position(|node| *node == name(2)).unwrap();
    let victim = cluster.node(2).instance(&format!("orders-{own}"))["pid"].as_u64().unwrap();
    signal(victim, "KILL");
    assert_eq!(ask(&cluster, 2, "/orders").status, 200);
    settled(&cluster);
    // A node that is stopped and started again takes up what it had: its file says nothing of services.
    cluster.stop(1);
    assert_eq!(ask(&cluster, 0, "/orders").status, 200);
    assert_eq!(ask(&cluster, 0, "/ledger").status, 200);
    cluster.start(1);
    settled(&cluster);
    assert_eq!(nodes_of(&cluster.node(1).status(), "orders"), nodes_of(&status, "orders"), "nothing was moved");
    assert_eq!(ask(&cluster, 1, "/orders").status, 200);
}

#[test]
fn the_primary_of_a_lost_node_is_replaced_by_one_elsewhere() {
    let mut cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    let (lost, old) = primary(&cluster, 0);
    let other = (lost + 1) % 3;
    let load = Load::start(
        cluster.node(other).gateway,
        &Options { connections: 4, path: "/ledger".into(), timeout: PATIENCE, pause: Duration::from_millis(2) },
    )
    .under_way();
    cluster.kill(lost);
    let killed = Instant::now();
    let standby = cluster.node(other).wait_for("another primary", |status| {
        let primary = service(status, "ledger")["primary"].as_str()?.to_owned();
        (primary != old).then_some(primary)
    });
    println!("node killed to another primary: {:?}", killed.elapsed());
    assert_eq!(ask(&cluster, other, "/ledger").json()["instance"], standby.as_str());
    let ledger = load.finish();
    println!("{}", ledger.summary());
    ledger.check_epochs();
    // What was on its way to the primary when it died cannot be known; everything else waited.
    assert!(ledger.failures().values().sum::<usize>() <= 4, "{}", ledger.summary());
    assert!(ledger.longest_gap() < Duration::from_secs(6), "{}", ledger.summary());
    cluster.node(other).event("node-lost", "");
    cluster.start(lost);
    settled(&cluster);
    let status = cluster.node(lost).status();
    let back = service(&status, "ledger")["instances"].as_array().unwrap().clone();
    let back = back.iter().find(|instance| instance["id"] == old.as_str()).unwrap();
    assert_eq!((&back["node"], &back["role"]), (&name(lost).into(), &"standby".into()), "it rejoins as standby");
}

#[test]
fn a_primary_whose_node_hangs_has_ended_before_another_is_chosen() {
    let cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    let (hung, old) = primary(&cluster, 0);
    let other = (hung + 1) % 3;
    let process = cluster.node(hung).instance(&old)["pid"].as_u64().unwrap();
    let node = cluster.node(hung).node();
    signal(node, "STOP");
    cluster.node(other).wait_for("another primary", |status| {
        let primary = service(status, "ledger")["primary"].as_str()?.to_owned();
        // The keeper, which runs, has ended it when its lease ran out.
        assert!(primary == old || !crate::support::processes::is_running(process), "two primaries");
        (primary != old).then_some(())
    });
    signal(node, "CONT");
    settled(&cluster);
    assert_ne!(primary(&cluster, hung).1, old);
}

#[test]
fn instances_of_a_node_that_stays_away_are_run_elsewhere() {
    let mut cluster = Cluster::up_with(", rescheduleAfter: 1s");
    shop(&cluster, 0, SHOP);
    let lost = 2;
    cluster.kill(lost);
    for place in cluster.up_places() {
        cluster.node(place).wait_for("everything has moved", |status| {
            let nodes = nodes_of(status, "orders").into_iter().chain(nodes_of(status, "ledger"));
            (nodes.collect::<BTreeSet<_>>() == BTreeSet::from([name(0), name(1)])).then_some(())
        });
    }
    settled(&cluster);
    for place in cluster.up_places() {
        assert_eq!(ask(&cluster, place, "/orders").status, 200);
    }
    // Back again it runs none of them, and its gateway reaches them all.
    cluster.start(lost);
    settled(&cluster);
    assert!(!nodes_of(&cluster.node(lost).status(), "orders").contains(&name(lost)));
    assert_eq!(ask(&cluster, lost, "/orders").status, 200);
    assert_eq!(ask(&cluster, lost, "/ledger").status, 200);
}

#[test]
fn a_new_definition_is_rolled_over_all_nodes_and_a_bad_one_taken_back() {
    let cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    let pids = |seen_from: usize| -> BTreeSet<u64> {
        let status = cluster.node(seen_from).status();
        let services = status["services"].as_array().unwrap().clone();
        let instances = services.iter().flat_map(|service| service["instances"].as_array().unwrap().clone());
        instances.filter_map(|instance| instance["pid"].as_u64()).collect()
    };
    let before = pids(0);
    let load = Load::start(
        cluster.node(1).gateway,
        &Options { connections: 4, path: "/orders".into(), timeout: PATIENCE, pause: Duration::from_millis(5) },
    )
    .under_way();
    let changed = SHOP.replace("command: [DEMO]", "env: { RELEASE: \"2\" }\n    command: [DEMO]");
    cluster.node(2).apply(0, &changed);
    wait("every instance is a new one", || (before.is_disjoint(&pids(0)) && pids(0).len() == 5).then_some(()));
    settled(&cluster);
    let ledger = load.finish();
    println!("{}", ledger.summary());
    assert_eq!(ledger.failures().values().sum::<usize>(), 0, "{}", ledger.summary());

    let bad = changed.replace(
        "RELEASE: \"2\" }\n    command: [DEMO]\n    replicas: 3",
        "RELEASE: \"3\" }\n    command: [\"/no/such/program\"]\n    replicas: 3",
    );
    assert_ne!(bad, changed);
    let load = Load::start(
        cluster.node(1).gateway,
        &Options { connections: 4, path: "/orders".into(), timeout: PATIENCE, pause: Duration::from_millis(5) },
    )
    .under_way();
    let (_, told) = cluster.node(0).apply(1, &bad);
    assert!(told.contains("taken back"), "{told}");
    wait("one node says that it does not come up", || {
        let said = |place: &usize| !cluster.node(*place).events_of("roll-aborted").is_empty();
        cluster.up_places().iter().any(said).then_some(())
    });
    settled(&cluster);
    let ledger = load.finish();
    assert_eq!(ledger.failures().values().sum::<usize>(), 0, "{}", ledger.summary());
}

fn load(cluster: &Cluster, place: usize, path: &str) -> Load {
    let options = Options { connections: 4, path: path.into(), timeout: PATIENCE, pause: Duration::from_millis(3) };
    Load::start(cluster.node(place).gateway, &options).under_way()
}

#[test]
fn a_planned_switch_goes_over_nodes_without_a_failed_request() {
    let cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    let (from, old) = primary(&cluster, 0);
    // Asked on a node that runs neither, while another gateway has traffic.
    let outside = (0..3).find(|place| !nodes_of(&cluster.node(0).status(), "ledger").contains(&name(*place))).unwrap();
    let load = load(&cluster, outside, "/ledger");
    for round in 0..4 {
        let (before, holder) = primary(&cluster, outside);
        let (out, _) = cluster.node(outside).cli_exits(0, &["promote", "ledger", "--wait"]);
        let (after, now) = primary(&cluster, outside);
        assert!(now != holder && after != before && out.contains(&now), "round {round}: {out}");
        settled(&cluster);
    }
    assert_eq!(primary(&cluster, outside), (from, old.clone()), "there and back, twice");
    let ledger = load.finish();
    println!("{}", ledger.summary());
    ledger.check_epochs();
    assert_eq!(ledger.failures().values().sum::<usize>(), 0, "{}", ledger.summary());
    let (_, refused) = cluster.node(0).cli_exits(1, &["promote", "ledger", &old]);
    assert!(refused.contains("is the primary already"), "{refused}");
}

#[test]
fn a_restart_replaces_every_process_wherever_it_runs() {
    let cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    let pids = || -> BTreeSet<u64> {
        let of = service(&cluster.node(0).status(), "ledger");
        of["instances"].as_array().unwrap().iter().filter_map(|instance| instance["pid"].as_u64()).collect()
    };
    let before = pids();
    let load = load(&cluster, 1, "/ledger");
    cluster.node(2).cli_exits(0, &["restart", "ledger"]);
    wait("both are new", || (before.is_disjoint(&pids()) && pids().len() == 2).then_some(()));
    settled(&cluster);
    let ledger = load.finish();
    println!("{}", ledger.summary());
    ledger.check_epochs();
    assert_eq!(ledger.failures().values().sum::<usize>(), 0, "{}", ledger.summary());
}

#[test]
fn a_rolling_restart_of_all_nodes_fails_no_request() {
    let mut cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    for place in 0..3 {
        // Traffic through a gateway that stays, of a service that runs on the one that goes.
        for path in ["/ledger", "/orders"] {
            let load = load(&cluster, (place + 1) % 3, path);
            cluster.stop(place);
            cluster.start(place);
            settled(&cluster);
            let ledger = load.finish();
            println!("{} restarted, {path}: {}", name(place), ledger.summary());
            if path == "/ledger" {
                ledger.check_epochs();
            }
            assert_eq!(ledger.failures().values().sum::<usize>(), 0, "{}", ledger.summary());
        }
    }
}

#[test]
fn a_switch_outlives_the_node_process_that_carries_it_out() {
    let cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    for round in 0..6 {
        let (from, _) = primary(&cluster, 0);
        let asked = (from + 1) % 3;
        let node = cluster.node(from).node();
        cluster.node(asked).cli_exits(0, &["promote", "ledger"]);
        std::thread::sleep(Duration::from_millis(round * 15));
        signal(node, "KILL");
        // Whatever became of it: soon somebody answers, on every gateway, and it says so.
        for place in 0..3 {
            wait("an answer", || (ask(&cluster, place, "/ledger").status == 200).then_some(()));
        }
        settled(&cluster);
    }
}

#[test]
fn nodes_that_start_again_do_not_act_on_what_was_before() {
    let mut cluster = Cluster::up_with("");
    shop(&cluster, 0, SHOP);
    let only = "services:\n  other: { command: [DEMO], replicas: 3 }\nroutes:\n  - { to: { service: other } }\n";
    cluster.node(0).apply(0, only);
    let only_other = |cluster: &Cluster, place: usize| {
        cluster.node(place).wait_for("nothing but the new service", |status| {
            let services = status["services"].as_array()?;
            (services.len() == 1 && services[0]["name"] == "other" && services[0]["state"] == "ready").then_some(())
        });
    };
    (0..3).for_each(|place| only_other(&cluster, place));
    for place in 0..3 {
        cluster.kill(place);
        cluster.start(place);
        only_other(&cluster, place);
    }
    for place in 0..3 {
        only_other(&cluster, place);
        let started = cluster.node(place).events_of("instance-started");
        let since_start = started.iter().rev().take_while(|event| event["service"] == "other").count();
        assert!(since_start > 0, "{started:?}");
        let log = cluster.node(place).stderr();
        let last_start = log.rfind("event=\"node-started\"").unwrap();
        assert!(!log[last_start..].contains("service=\"ledger\""), "{}", &log[last_start..]);
    }
}
