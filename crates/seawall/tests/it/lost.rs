//! A machine that stands still: no connection tells of it, so requests under way to what it runs would hang. They end as
//! soon as the cluster knows that it is lost. Real binaries; a machine is stopped process by process.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, name};
use crate::support::http::{Answer, Connection};
use crate::support::processes::{is_stopped, signal};
use crate::support::{PATIENCE, service, wait};

const SHOP: &str = r#"services:
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    livenessProbe: { httpGet: { path: /health }, periodSeconds: 1, failureThreshold: 3 }
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
    hold: { maxWait: 60s }
  pair:
    replicas: 2
    command: [DEMO]
    hold: { maxWait: 60s }
routes:
  - { match: { pathPrefix: /ledger }, to: { service: ledger }, timeout: 60s }
  - { match: { pathPrefix: /pair }, to: { service: pair }, timeout: 60s }
"#;
/// Far from the routes' timeouts, and far more than a lease, an election and a promotion take.
const WELL_BEFORE: Duration = Duration::from_secs(20);

/// A cluster with all of it ready on every node.
fn shop() -> Cluster {
    let cluster = Cluster::up_with("");
    cluster.node(0).apply(0, SHOP);
    for place in 0..3 {
        cluster.node(place).wait_ready("ledger");
        cluster.node(place).wait_ready("pair");
    }
    cluster
}

/// Where the instances of a service are, with their ids and processes.
fn instances(cluster: &Cluster, of: &str) -> Vec<(usize, String, u64)> {
    let shown = service(&cluster.node(0).status(), of)["instances"].as_array().unwrap().clone();
    let one = |one: &serde_json::Value| {
        let place = (0..3).find(|place| one["node"] == name(*place).as_str()).unwrap();
        (place, one["id"].as_str().unwrap().to_owned(), one["pid"].as_u64().unwrap())
    };
    shown.iter().map(one).collect()
}

/// Stops one process of a machine: what is sent to it from now on is taken by its system, and not answered.
fn freeze(pid: u64) {
    assert!(signal(pid, "STOP"));
    wait("it stands still", || is_stopped(pid).then_some(()));
}

/// A request on its way.
fn begin(cluster: &Cluster, through: usize, method: &str, path: &str) -> Connection {
    let mut connection = Connection::open(cluster.node(through).gateway, PATIENCE).unwrap();
    connection.write(method, path, &[], b"amount=1").unwrap();
    connection
}

fn in_flight(cluster: &Cluster, through: usize, id: &str) -> usize {
    let metrics = cluster.node(through).api("GET", "/metrics", b"").text();
    let line = metrics.lines().find(|line| line.contains("in_flight") && line.contains(&format!("\"{id}\"")));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

fn reason(answer: &Answer) -> (u16, Option<&str>) {
    (answer.status, answer.header("seawall-reason"))
}

#[test]
fn requests_to_the_primary_of_a_machine_that_stands_still_end_when_it_is_fenced() {
    let cluster = shop();
    let old = service(&cluster.node(0).status(), "ledger")["primary"].as_str().unwrap().to_owned();
    let (lost, _, pid) = instances(&cluster, "ledger").into_iter().find(|(_, id, _)| *id == old).unwrap();
    let through = (lost + 1) % 3;
    let epoch = cluster.node(through).get("/ledger").json()["epoch"].as_u64().unwrap();
    freeze(pid);
    let mut get = begin(&cluster, through, "GET", "/ledger");
    let mut post = begin(&cluster, through, "POST", "/ledger");
    wait("both are under way", || (in_flight(&cluster, through, &old) == 2).then_some(()));
    let machine = [cluster.node(lost).keeper(), cluster.node(lost).node()];
    machine.into_iter().for_each(freeze);
    let stopped = Instant::now();
    assert_eq!(reason(&post.read(false).unwrap()), (502, Some("instance-closed")));
    let ended = stopped.elapsed();
    let answer = get.read(false).unwrap();
    println!("stopped to 502: {ended:?}, to the new primary's answer: {:?}", stopped.elapsed());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert!(answer["instance"] != old.as_str() && answer["epoch"].as_u64().unwrap() > epoch, "{answer}");
    assert!(stopped.elapsed() < WELL_BEFORE, "{:?}", stopped.elapsed());
    cluster.node(through).event("node-lost", "");
    for process in machine.into_iter().chain([pid]) {
        signal(process, "CONT");
    }
    for place in 0..3 {
        cluster.node(place).wait_ready("ledger");
    }
}

#[test]
fn requests_to_any_instance_of_a_machine_that_stands_still_go_to_others() {
    let cluster = shop();
    let pair = instances(&cluster, "pair");
    let through = (0..3).find(|place| pair.iter().all(|(other, ..)| other != place)).unwrap();
    let (lost, id, pid) = pair[0].clone();
    freeze(pid);
    // Whoever has fewer gets the next one.
    let mut gets: Vec<Connection> = (0..8).map(|_| begin(&cluster, through, "GET", "/pair")).collect();
    wait("some are under way", || (in_flight(&cluster, through, &id) > 0).then_some(()));
    let machine = [cluster.node(lost).keeper(), cluster.node(lost).node()];
    machine.into_iter().for_each(freeze);
    let stopped = Instant::now();
    for get in &mut gets {
        let answer = get.read(false).unwrap();
        assert_eq!((answer.status, &answer.json()["instance"]), (200, &pair[1].1.as_str().into()), "{}", answer.text());
    }
    println!("stopped to all answered: {:?}", stopped.elapsed());
    assert!(stopped.elapsed() < WELL_BEFORE, "{:?}", stopped.elapsed());
    for process in machine.into_iter().chain([pid]) {
        signal(process, "CONT");
    }
}
