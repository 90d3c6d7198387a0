//! Three servers and an agent: what the cluster runs is run there, too; its gateway and its API are like any other node's;
//! the loss of a server, of the leader and of the agent itself is survived. Real binaries, real TLS, real kills.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::joining::shorten;
use super::{Cluster, name};
use crate::placed::SHOP;
use crate::support::processes::{is_running, signal};
use crate::support::{Seawall, http, run, service, start_failing, wait};

const AGENT: &str = "a1";

/// One beside the servers; it gets its certificate for a token.
fn agent(cluster: &Cluster) -> Seawall {
    up(joined(cluster))
}

/// Its folder, with its certificate and its file.
fn joined(cluster: &Cluster) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let (token, _) = cluster.node(0).cli_exits(0, &["cluster", "token", AGENT]);
    let dir = folder.path().join("pki");
    let output = run(&["cluster", "join", token.trim(), "--dir", &dir.to_string_lossy()], None);
    assert!(output.status.success(), "{output:?}");
    write(cluster, folder.path());
    folder
}

fn write(cluster: &Cluster, folder: &std::path::Path) {
    // Where two of them are now; the third is told by these.
    let places = cluster.up_places().into_iter().take(2);
    let join: Vec<String> = places.map(|place| cluster.node(place).ready()["peers"].to_string()).collect();
    let text = format!(
        "node: {{ name: {AGENT}, role: agent, advertise: 127.0.0.1, peers: {{ join: [{}] }} }}\n\
         cluster: {{ name: shop, tls: {{ dir: {:?} }}{} }}\n\
         api: {{ listen: \"127.0.0.1:0\" }}\n\
         gateway: {{ listen: [\"127.0.0.1:0\"] }}\n",
        join.join(", "),
        folder.join("pki"),
        cluster.settings,
    );
    std::fs::write(folder.join("seawall.yaml"), text).unwrap();
}

fn up(folder: tempfile::TempDir) -> Seawall {
    let agent = Seawall::up_beside(folder);
    agent.wait_for("servers answer", |status| (status["store"]["serving"] == true).then_some(()));
    agent
}

/// The shop with one replica of `orders` for each node, placed while all four are there.
fn shop(cluster: &Cluster, agent: &Seawall) {
    for place in 0..3 {
        cluster.node(place).wait_for("the agent is there", |status| member(status, AGENT).map(drop));
    }
    agent.apply(0, &SHOP.replace("replicas: 3", "replicas: 4").replace("replicas: 2", "replicas: 4"));
    settled(agent);
    cluster.up_places().into_iter().for_each(|place| settled(cluster.node(place)));
}

fn settled(node: &Seawall) {
    node.wait_for("all of the shop is ready", |status| {
        let ready = |name| (service(status, name)["state"] == "ready").then_some(());
        ready("orders").and(ready("ledger"))
    });
}

fn member(status: &Value, name: &str) -> Option<Value> {
    status["cluster"]["members"].as_array()?.iter().find(|member| member["name"] == name).cloned()
}

/// Which instance of a service is where.
fn placed(status: &Value, of: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let shown = service(status, of);
    let instances = shown["instances"].as_array().into_iter().flatten();
    instances.map(|one| (text(&one["id"]), text(&one["node"]))).collect()
}

fn nodes(status: &Value, of: &str) -> BTreeSet<String> {
    placed(status, of).into_iter().map(|(_, node)| node).collect()
}

fn primary(status: &Value) -> Option<(String, String)> {
    let id = service(status, "ledger")["primary"].as_str()?.to_owned();
    placed(status, "ledger").into_iter().find(|(instance, _)| *instance == id)
}

/// Makes the agent's own instance of `ledger` the primary; its id.
fn own_primary(agent: &Seawall) -> String {
    let status = agent.status();
    let (own, _) = placed(&status, "ledger").into_iter().find(|(_, node)| node == AGENT).expect("one is on the agent");
    if primary(&status).is_none_or(|(id, _)| id != own) {
        agent.cli_exits(0, &["promote", "ledger", &own, "--wait"]);
    }
    settled(agent);
    own
}

#[test]
fn an_agent_runs_what_is_placed_on_it_and_serves_like_any_node() {
    let mut cluster = Cluster::up();
    let mut agent = agent(&cluster);
    assert_eq!(agent.ready()["peers"], Value::Null, "nobody connects to it");
    shop(&cluster, &agent);
    let status = agent.status();
    for of in ["orders", "ledger"] {
        let all = ["a1", "n1", "n2", "n3"].map(str::to_owned);
        assert_eq!(nodes(&status, of), BTreeSet::from(all), "{of}");
    }
    // Its gateway asks its own instance, and reaches the primary wherever that is; so do the others.
    let own = placed(&status, "orders").into_iter().find(|(_, node)| node == AGENT).unwrap().0;
    assert_eq!(agent.get("/orders").json()["instance"], own.as_str());
    agent.cli_exits(0, &["promote", "ledger", "--wait"]);
    settled(&agent);
    let (holder, _) = primary(&agent.status()).unwrap();
    for node in (0..3).map(|place| cluster.node(place)).chain([&agent]) {
        node.wait_for("the new primary is known", |status| (primary(status)?.0 == holder).then_some(()));
        assert_eq!(node.get("/ledger").json()["instance"], holder.as_str());
    }
    signal(agent.instance(&own)["pid"].as_u64().unwrap(), "KILL");
    assert_eq!(agent.get("/orders").status, 200, "others answer meanwhile");
    settled(&agent);

    // It is shown, and counted nowhere.
    let seen = cluster.node(0).status();
    let shown = member(&seen, AGENT).unwrap();
    assert_eq!(
        (&shown["role"], &shown["state"], &shown["address"]),
        (&"agent".into(), &"there".into(), &"127.0.0.1".into())
    );
    let (out, _) = agent.cli_exits(0, &["cluster", "members"]);
    assert!(
        out.lines().any(|line| line.starts_with("a1") && line.contains("agent") && line.contains("there")),
        "{out}"
    );
    assert!(agent.status()["layers"].to_string().contains("an agent: asks servers"));
    assert!(!agent.data_dir().join("store").exists(), "it stores nothing");

    // Keys and streams.
    agent.cli_exits(0, &["kv", "put", "greeting", "hello"]);
    assert_eq!(cluster.get(2, "greeting").as_deref(), Some("hello"));
    assert_eq!(cluster.put(1, "answer", "back").status, 200);
    assert_eq!(agent.cli_exits(0, &["kv", "get", "answer"]).0.trim(), "back");
    let (first, _) = agent.cli_exits(0, &["stream", "append", "s", "one", "--producer", "me", "--seq", "1"]);
    let (again, _) = agent.cli_exits(0, &["stream", "append", "s", "one", "--producer", "me", "--seq", "1"]);
    assert!(first.contains("offset 0") && again.contains("there already"), "{first} {again}");
    let read = agent.api("GET", "/api/v1/streams/s?from=0", b"");
    assert!(read.text().contains("\"one\""), "{}", read.text());
    let refused = agent.api("GET", "/api/v1/snapshot", b"");
    assert!(refused.status == 503 && refused.text().contains("this node is an agent"), "{}", refused.text());

    // The leader is killed: the agent goes on, by those that are left.
    for round in 0..2 {
        let leader = cluster.leader();
        cluster.kill(leader);
        wait("the next acknowledged write", || {
            let put = agent.api("PUT", &format!("/api/v1/kv/without-{round}"), b"1");
            (put.status == 200).then_some(())
        });
        assert_eq!(agent.get("/orders").status, 200);
        wait("the primary, an old one or a new one", || (agent.get("/ledger").status == 200).then_some(()));
        cluster.start(leader);
        settled(&agent);
    }
    agent.cli_exits(0, &["stream", "append", "s", "two", "--producer", "me", "--seq", "2"]);
    assert!(agent.stop().success(), "it stops in good order");
    cluster.node(0).wait_for("that is shown", |status| (member(status, AGENT)?["state"] == "stopped").then_some(()));
}

#[test]
fn the_instances_of_a_lost_agent_are_run_elsewhere() {
    let cluster = Cluster::up_with(", rescheduleAfter: 1s");
    let agent = agent(&cluster);
    shop(&cluster, &agent);
    own_primary(&agent);
    signal(agent.keeper(), "KILL");
    for place in 0..3 {
        let node = cluster.node(place);
        node.wait_for("everything has moved", |status| {
            let used: BTreeSet<String> = nodes(status, "orders").union(&nodes(status, "ledger")).cloned().collect();
            (used == BTreeSet::from([name(0), name(1), name(2)])).then_some(())
        });
        settled(node);
        assert_eq!((node.get("/orders").status, node.get("/ledger").status), (200, 200));
    }
    let status = cluster.node(0).status();
    assert_eq!(member(&status, AGENT).unwrap()["state"], "missing");
    assert_eq!(placed(&status, "orders").len(), 4);
    // Back again it serves what runs elsewhere.
    let folder = agent.into_folder();
    write(&cluster, folder.path());
    let back = up(folder);
    settled(&back);
    assert_eq!((back.get("/orders").status, back.get("/ledger").status), (200, 200));
    cluster.node(0).wait_for("it is there", |status| (member(status, AGENT)?["state"] == "there").then_some(()));
}

#[test]
fn the_primary_of_an_agent_that_hangs_has_ended_before_another_is_chosen() {
    let cluster = Cluster::up();
    let agent = agent(&cluster);
    shop(&cluster, &agent);
    let own = own_primary(&agent);
    let process = agent.instance(&own)["pid"].as_u64().unwrap();
    let node = agent.node();
    signal(node, "STOP");
    cluster.node(0).wait_for("another primary", |status| {
        let (now, _) = primary(status)?;
        // The keeper, which runs, has ended it when its lease ran out.
        assert!(now == own || !is_running(process), "two primaries");
        (now != own).then_some(())
    });
    signal(node, "CONT");
    settled(&agent);
    settled(cluster.node(0));
    assert_ne!(primary(&agent.status()).unwrap().0, own, "it is a standby now");
}

#[test]
fn an_agent_whose_node_process_is_killed_takes_over_what_runs() {
    let cluster = Cluster::up();
    let agent = agent(&cluster);
    shop(&cluster, &agent);
    let own = own_primary(&agent);
    let pids = |of: &str| agent.pids(of);
    let before = (pids("orders"), pids("ledger"));
    let old = agent.node();
    signal(old, "KILL");
    wait("another node process", || (agent.node() != old).then_some(()));
    wait("it serves", || {
        let answered = http::request(agent.api, "GET", "/api/v1/status", &[], b"").ok()?;
        (answered.json()["store"]["serving"] == true).then_some(())
    });
    settled(&agent);
    wait("it runs what it ran", || ((pids("orders"), pids("ledger")) == before).then_some(()));
    assert_eq!(primary(&agent.status()).unwrap().0, own, "its primary went on");
    assert_eq!(agent.get("/ledger").json()["instance"], own.as_str());
}

#[test]
fn an_agent_without_servers_says_so_serves_on_and_ends_its_primary() {
    let mut cluster = Cluster::up();
    let agent = agent(&cluster);
    shop(&cluster, &agent);
    let own = own_primary(&agent);
    let process = agent.instance(&own)["pid"].as_u64().unwrap();
    (0..3).for_each(|place| cluster.kill(place));
    let problem = agent.wait_for("it says so", |status| {
        status["store"]["problem"]
            .as_str()
            // Whom it asked in vain is told once that has been tried.
            .filter(|problem| problem.contains("no server of the cluster") && problem.contains("127.0.0.1:"))
            .map(str::to_owned)
    });
    assert!(problem.contains("has answered for"), "{problem}");
    agent.event("store-state", "");
    assert_eq!(agent.get("/orders").status, 200, "its own instance serves on");
    wait("its primary has ended", || (!is_running(process)).then_some(()));
    let refused = agent.api("PUT", "/api/v1/kv/x", b"1");
    assert!(refused.status == 503 && refused.text().contains("no server of the cluster"), "{}", refused.text());
    agent.cli_exits(4, &["kv", "get", "x"]);
    // All come back at other addresses than those that the agent knows; one of them is told to it by its file's.
    (0..3).for_each(|place| cluster.start_somewhere(place));
    cluster.leader();
    let folder = agent.into_folder();
    write(&cluster, folder.path());
    let back = up(folder);
    settled(&back);
    assert_eq!(back.get("/ledger").status, 200);
}

#[test]
fn an_agents_certificate_is_renewed_like_a_servers() {
    let cluster = Cluster::up();
    let folder = joined(&cluster);
    shorten(&folder.path().join("pki"), AGENT, &cluster.pki.path().join("pki"), Duration::from_secs(40));
    let agent = up(folder);
    wait("it is renewed", || (!agent.events_of("node-certificate-renewed").is_empty()).then_some(()));
    wait("it is in force", || agent.stderr().contains("the node's changed certificate is in force").then_some(()));
    // A connection that is made now shows the new one.
    let node = agent.node();
    signal(node, "KILL");
    wait("another node process", || (agent.node() != node).then_some(()));
    wait("it is let in", || {
        let put = http::request(agent.api, "PUT", "/api/v1/kv/after", &[], b"1").ok()?;
        (put.status == 200).then_some(())
    });
}

#[test]
fn a_directory_of_a_member_and_a_name_of_a_member_are_no_agents() {
    let mut cluster = Cluster::up();
    cluster.kill(2);
    let folder = cluster.down.remove(&2).expect("it was killed");
    let file = folder.path().join("seawall.yaml");
    let text = std::fs::read_to_string(&file).unwrap().replace("role: server", "role: agent");
    std::fs::write(&file, text).unwrap();
    let (exit, err) = start_failing(&file, &folder.path().join("data"));
    assert_eq!(exit, Some(1), "{err}");
    for words in ["holds the data of a member", "Set node.role back", "seawall cluster remove n3"] {
        assert!(err.contains(words), "`{words}` is missing in: {err}");
    }
    std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    let refused = Seawall::up_beside(folder);
    let problem = refused.wait_for("it is refused", |status| {
        status["store"]["problem"].as_str().filter(|problem| problem.contains("is a member")).map(str::to_owned)
    });
    assert!(problem.contains("n3 is a member of the cluster"), "{problem}");
    cluster.node(0).cli_exits(0, &["cluster", "remove", "n3"]);
    refused.wait_for("it is served", |status| (status["store"]["serving"] == true).then_some(()));
}
