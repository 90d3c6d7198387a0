//! Several machines that keep one key-value store: any of them takes any request, the loss of any one is survived, and
//! nothing acknowledged is lost. Real binaries, real TLS, real kills.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::processes::signal;
use crate::support::{Chance, PATIENCE, Seawall, http, run, wait};

mod acl;
mod agent;
mod failsafe;
mod joining;
mod recovery;
mod registry;
mod streams;
mod witness;

/// Nodes by their place; one that is down is absent, and its folder waits for its return.
pub struct Cluster {
    nodes: Vec<Option<Seawall>>,
    down: BTreeMap<usize, tempfile::TempDir>,
    pki: tempfile::TempDir,
    first: String,
    /// More of `cluster` in each file.
    settings: &'static str,
    /// The one that only votes.
    witness: Option<usize>,
}

pub fn name(place: usize) -> String {
    format!("n{}", place + 1)
}

impl Cluster {
    /// Three founders. Only the first one's address is known to the others: they tell it theirs.
    fn up() -> Self {
        Self::up_with("")
    }

    pub fn up_with(settings: &'static str) -> Self {
        Self::up_as(settings, None)
    }

    /// The same, with one that is a witness, perhaps.
    pub fn up_as(settings: &'static str, witness: Option<usize>) -> Self {
        let pki = tempfile::tempdir().unwrap();
        let dir = pki.path().join("pki");
        let made = run(&["cluster", "init", "--dir", &dir.to_string_lossy(), "--nodes", "n1,n2,n3"], None);
        assert!(made.status.success(), "{made:?}");
        let mut cluster =
            Self { nodes: Vec::new(), down: BTreeMap::new(), pki, first: String::new(), settings, witness };
        for place in 0..3 {
            let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
            cluster.write(place, folder.path());
            let node = if place == 0 { Seawall::up_in(folder) } else { Seawall::up_beside(folder) };
            if place == 0 {
                node.ready()["peers"].as_str().unwrap().clone_into(&mut cluster.first);
            }
            cluster.nodes.push(Some(node));
        }
        cluster.leader();
        for place in 0..3 {
            cluster.node(place).wait_for("all three are members", |status| {
                (status["cluster"]["members"].as_array()?.len() == 3).then_some(())
            });
        }
        cluster
    }

    fn write(&self, place: usize, folder: &Path) {
        self.write_as(place, folder, "shop", &self.pki.path().join("pki"));
    }

    fn write_as(&self, place: usize, folder: &Path, cluster: &str, pki: &Path) {
        let join = if self.first.is_empty() { String::new() } else { format!("{:?}", self.first) };
        let text = format!(
            "node: {{ name: {}, role: {}, peers: {{ listen: \"127.0.0.1:0\", join: [{join}] }} }}\n\
             cluster: {{ name: {cluster}, tls: {{ dir: {pki:?} }}{} }}\n\
             api: {{ listen: \"127.0.0.1:0\" }}\n\
             gateway: {{ listen: [\"127.0.0.1:0\"] }}\n",
            name(place),
            if self.witness == Some(place) { "witness" } else { "server" },
            self.settings,
        );
        std::fs::write(folder.join("seawall.yaml"), text).unwrap();
    }

    pub fn node(&self, place: usize) -> &Seawall {
        self.nodes[place].as_ref().expect("it is up")
    }

    pub fn up_places(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|place| self.nodes[*place].is_some()).collect()
    }

    /// Kills everything of a node at once.
    pub fn kill(&mut self, place: usize) {
        let node = self.nodes[place].take().expect("it is up");
        signal(node.keeper(), "KILL");
        self.down.insert(place, node.into_folder());
    }

    /// Starts it again, and waits until all that are up know where it is now: it has another port each time, and two that
    /// both moved while the third was away would never find each other.
    pub fn start(&mut self, place: usize) {
        let folder = self.down.remove(&place).expect("it is down");
        self.nodes[place] = Some(Seawall::up_beside(folder));
        let at = self.node(place).ready()["peers"].clone();
        for other in self.up_places() {
            self.node(other).wait_for("it is known where the node is", |status| {
                let mut members = status["cluster"]["members"].as_array()?.iter();
                members.any(|member| member["name"] == *name(place) && member["address"] == at).then_some(())
            });
        }
    }

    /// Starts it again without waiting for the others: none of them is up, or it is none of theirs any more.
    fn start_somewhere(&mut self, place: usize) {
        let folder = self.down.remove(&place).expect("it is down");
        self.write(place, folder.path());
        let node = Seawall::up_beside(folder);
        if place == 0 {
            node.ready()["peers"].as_str().unwrap().clone_into(&mut self.first);
        }
        self.nodes[place] = Some(node);
    }

    /// Waits until all that are up agree on a leader that is up; its place.
    pub fn leader(&self) -> usize {
        wait("a leader", || {
            let leaders: Vec<Value> =
                self.up_places().iter().map(|place| self.node(*place).status()["cluster"]["leader"].clone()).collect();
            let leader = leaders.first()?.as_str()?;
            let place = self.up_places().into_iter().find(|place| name(*place) == leader)?;
            let serving = self.node(place).status()["store"]["serving"] == true;
            (serving && leaders.iter().all(|other| other == leader)).then_some(place)
        })
    }

    /// Stops a node in good order.
    pub fn stop(&mut self, place: usize) {
        let mut node = self.nodes[place].take().expect("it is up");
        assert!(node.stop().success(), "it stops in good order");
        self.down.insert(place, node.into_folder());
    }

    fn put(&self, place: usize, key: &str, value: &str) -> http::Answer {
        self.node(place).api("PUT", &format!("/api/v1/kv/{key}"), value.as_bytes())
    }

    fn get(&self, place: usize, key: &str) -> Option<String> {
        let answer = self.node(place).api("GET", &format!("/api/v1/kv/{key}"), b"");
        (answer.status == 200).then(|| answer.text())
    }
}

#[test]
fn any_node_takes_any_request_and_the_loss_of_each_is_survived() {
    let mut cluster = Cluster::up();
    for place in 0..3 {
        assert_eq!(cluster.put(place, &format!("from-{place}"), "1").status, 200);
        for reader in 0..3 {
            assert_eq!(cluster.get(reader, &format!("from-{place}")).as_deref(), Some("1"));
        }
    }
    for round in 0..2 {
        let leader = cluster.leader();
        cluster.kill(leader);
        let other = (leader + 1) % 3;
        let killed = Instant::now();
        wait("the next acknowledged write", || {
            (cluster.put(other, &format!("without-{round}"), "1").status == 200).then_some(())
        });
        println!("leader killed to next acknowledged write: {:?}", killed.elapsed());
        assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
        cluster.start(leader);
        wait("the node that was away has it", || cluster.get(leader, &format!("without-{round}")));
    }
    cluster.leader();
    wait("everybody follows", || {
        let status = cluster.node(0).status();
        let members = status["cluster"]["members"].as_array()?.clone();
        let there = members.iter().all(|member| member["state"] != "missing" && member["lag"] == 0);
        (members.len() == 3 && there).then_some(())
    });
}

#[test]
fn a_minority_answers_503_and_says_who_is_missing() {
    let mut cluster = Cluster::up();
    assert_eq!(cluster.put(0, "before", "1").status, 200);
    let left = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != left).collect();
    // It has followed, too: a follower that is left alone must not believe in a leader for ever.
    cluster.node(left).cli_exits(0, &["cluster", "transfer", &name(others[0])]);
    others.iter().for_each(|place| cluster.kill(*place));
    let node = cluster.node(left);
    let problem = node.wait_for("it says so", |status| status["store"]["problem"].as_str().map(str::to_owned));
    assert!(problem.contains("no quorum") && problem.contains(&name(others[0])), "{problem}");
    let begun = Instant::now();
    let refused = cluster.put(left, "alone", "1");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("has not been heard for"), "{}", refused.text());
    assert!(begun.elapsed() < Duration::from_secs(8), "within its patience: {:?}", begun.elapsed());
    assert_eq!(node.api("GET", "/api/v1/kv/before", b"").status, 503);
    assert_eq!(node.api("GET", "/api/v1/kv/before?stale=true", b"").text(), "1");
    let (out, _) = node.cli_exits(0, &["cluster", "members"]);
    assert!(out.contains("none: nothing can be decided") && out.contains("unknown"), "{out}");
    node.cli_exits(4, &["kv", "put", "alone", "1"]);
    cluster.start(others[0]);
    wait("two of three decide again", || (cluster.put(left, "again", "1").status == 200).then_some(()));
    assert_eq!(cluster.get(others[0], "alone"), None, "what was refused was not written");
}

#[test]
fn strangers_are_refused_by_name() {
    let cluster = Cluster::up();
    let foreign = tempfile::tempdir().unwrap();
    let dir = foreign.path().join("pki");
    assert!(run(&["cluster", "init", "--dir", &dir.to_string_lossy(), "--nodes", "n4"], None).status.success());
    // Its founders' list would have it found a cluster of its own.
    std::fs::remove_file(dir.join("founders")).unwrap();
    let own = cluster.pki.path().join("pki");
    assert!(run(&["cluster", "issue", "--dir", &own.to_string_lossy(), "n4"], None).status.success());
    for (of, pki) in [("shop", &dir), ("depot", &own)] {
        let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
        cluster.write_as(3, folder.path(), of, pki);
        let stranger = Seawall::up_beside(folder);
        if of == "depot" {
            wait("the refusal is in the log of who refused", || {
                cluster.node(0).stderr().contains("belongs to cluster depot").then_some(())
            });
        }
        // Nothing is heard of it, and it decides nothing.
        assert_eq!(stranger.api("PUT", "/api/v1/kv/x", b"1").status, 503);
        assert_eq!(cluster.node(0).status()["cluster"]["members"].as_array().unwrap().len(), 3);
    }
    // With the cluster's own certificate and name it is let in, votes, and holds what was written before.
    assert_eq!(cluster.put(1, "before", "1").status, 200);
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    cluster.write(3, folder.path());
    let fourth = Seawall::up_beside(folder);
    fourth.wait_for("a vote", |status| {
        let members = status["cluster"]["members"].as_array()?;
        members.iter().find(|member| member["name"] == "n4" && member["role"] == "server").map(drop)
    });
    assert_eq!(fourth.api("GET", "/api/v1/kv/before", b"").text(), "1");
    let (out, _) = fourth.cli_exits(0, &["cluster", "transfer", "n4"]);
    assert!(out.contains("leader n4"), "{out}");
    let (_, err) = fourth.cli_exits(2, &["cluster", "transfer", "n5"]);
    assert!(err.contains("no member is called `n5`; there are: n1, n2, n3, n4"), "{err}");
    let (out, _) = cluster.node(0).cli_exits(0, &["cluster", "remove", "n4"]);
    assert!(!out.contains("n4"), "{out}");
    let removed = Seawall::up_beside(fourth.into_folder());
    removed.wait_for("it says that it was removed, and what to do", |status| {
        let problem = status["store"]["problem"].as_str()?;
        problem.contains("n4 was removed from the cluster: wipe its data directory").then_some(())
    });
    assert_eq!(removed.api("PUT", "/api/v1/kv/x", b"1").status, 503);
    let stale = removed.api("GET", "/api/v1/kv/before?stale=true", b"");
    assert_ne!(stale.status, 404, "what it does not know yet is not what is not there: {}", stale.text());
}

#[test]
fn who_is_waited_for_is_said() {
    let pki = tempfile::tempdir().unwrap();
    let dir = pki.path().join("pki");
    assert!(run(&["cluster", "init", "--dir", &dir.to_string_lossy(), "--nodes", "n1,n2,n3"], None).status.success());
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let alone = Cluster {
        nodes: Vec::new(),
        down: BTreeMap::new(),
        pki,
        first: "127.0.0.1:1".into(),
        settings: "",
        witness: None,
    };
    alone.write(0, folder.path());
    let node = Seawall::up_in(folder);
    let problem = node.wait_for("it says for whom it waits", |status| {
        status["store"]["problem"].as_str().filter(|problem| problem.contains("127.0.0.1:1: ")).map(str::to_owned)
    });
    assert!(problem.contains("waiting for n2, n3"), "{problem}");
    let refused = node.api("PUT", "/api/v1/kv/x", b"1");
    assert!(refused.status == 503 && refused.text().contains("waiting for n2, n3"), "{}", refused.text());
    let nowhere = node.get("/");
    assert_eq!((nowhere.status, nowhere.header("seawall-reason")), (503, Some("routes-unknown")), "404 would be a lie");
    let events = node.events_of("store-state").len();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(node.events_of("store-state").len(), events, "how long it waits is no news");
}

#[test]
fn a_lost_disk_comes_back_and_certificates_are_not_made_over() {
    let mut cluster = Cluster::up();
    let lost = (cluster.leader() + 1) % 3;
    assert_eq!(cluster.put(lost, "before", "1").status, 200);
    cluster.kill(lost);
    std::fs::remove_dir_all(cluster.down[&lost].path().join("data")).unwrap();
    cluster.start(lost);
    wait("it holds everything again", || (cluster.get(lost, "before").as_deref() == Some("1")).then_some(()));
    wait("in the place of the one that was lost", || {
        let members = cluster.node(lost).status()["cluster"]["members"].as_array()?.clone();
        (members.len() == 3 && members.iter().all(|member| member["role"] == "server")).then_some(())
    });
    let dir = cluster.pki.path().join("pki");
    let again = run(&["cluster", "init", "--dir", &dir.to_string_lossy(), "--nodes", "n1"], None);
    assert_eq!(again.status.code(), Some(2), "an authority is not replaced by mistake");
}

/// A writer of one node: what was acknowledged, and what may have been written.
struct Ledger {
    acknowledged: Vec<String>,
    refused: usize,
    unknown: usize,
}

fn write_until(stop: &AtomicBool, api: &Mutex<Option<SocketAddr>>, place: usize) -> Ledger {
    let mut ledger = Ledger { acknowledged: Vec::new(), refused: 0, unknown: 0 };
    for count in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let Some(address) = *api.lock().unwrap() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let key = format!("w{place}-{count}");
        match http::request(address, "PUT", &format!("/api/v1/kv/{key}"), &[], b"1") {
            Ok(answer) if answer.status == 200 => ledger.acknowledged.push(key),
            Ok(answer) if answer.status == 503 => ledger.refused += 1,
            _ => ledger.unknown += 1,
        }
    }
    ledger
}

#[test]
fn nothing_acknowledged_is_lost_whatever_is_killed() {
    const FOR: Duration = Duration::from_secs(12);
    let mut chance = Chance::seeded("nothing_acknowledged_is_lost_whatever_is_killed");
    let mut cluster = Cluster::up();
    let stop = Arc::new(AtomicBool::new(false));
    let addresses: Vec<_> = (0..3).map(|place| Arc::new(Mutex::new(Some(cluster.node(place).api)))).collect();
    let writers: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(place, api)| {
            let (stop, api) = (Arc::clone(&stop), Arc::clone(api));
            std::thread::spawn(move || write_until(&stop, &api, place))
        })
        .collect();
    let begun = Instant::now();
    let mut faults = 0;
    while begun.elapsed() < FOR {
        let place = usize::try_from(chance.below(3)).unwrap();
        match chance.below(3) {
            // Everything of a machine.
            0 => {
                *addresses[place].lock().unwrap() = None;
                cluster.kill(place);
                std::thread::sleep(Duration::from_millis(chance.below(800)));
                cluster.start(place);
                *addresses[place].lock().unwrap() = Some(cluster.node(place).api);
            }
            // Its node process; the keeper starts another at once.
            1 => {
                signal(cluster.node(place).node(), "KILL");
            }
            // It stands still, as a machine that swaps or a virtual one that is moved.
            _ => {
                let node = cluster.node(place).node();
                signal(node, "STOP");
                std::thread::sleep(Duration::from_millis(chance.below(1500)));
                signal(node, "CONT");
            }
        }
        faults += 1;
        std::thread::sleep(Duration::from_millis(chance.below(700)));
    }
    stop.store(true, Ordering::Relaxed);
    let ledgers: Vec<Ledger> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    cluster.leader();
    let acknowledged: usize = ledgers.iter().map(|ledger| ledger.acknowledged.len()).sum();
    let (refused, unknown): (usize, usize) =
        (ledgers.iter().map(|ledger| ledger.refused).sum(), ledgers.iter().map(|ledger| ledger.unknown).sum());
    println!("{faults} faults, {acknowledged} acknowledged, {refused} refused, {unknown} unknown");
    assert!(acknowledged > 100 && faults > 3, "the test must have tested something");
    for place in 0..3 {
        // After a read that asks a quorum, this node has applied everything.
        wait("a read", || {
            let answer = cluster.node(place).api("GET", "/api/v1/kv/nothing", b"");
            (answer.status == 404).then_some(())
        });
        let mut connection = http::Connection::open(cluster.node(place).api, PATIENCE).unwrap();
        for key in ledgers.iter().flat_map(|ledger| &ledger.acknowledged) {
            let read = connection.send("GET", &format!("/api/v1/kv/{key}?stale=true"), &[], b"").unwrap();
            assert_eq!(read.status, 200, "{key} was acknowledged and is not on {}", name(place));
        }
    }
    assert!(begun.elapsed() < FOR + PATIENCE);
}
