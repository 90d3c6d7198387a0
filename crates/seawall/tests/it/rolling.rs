//! Every node of a cluster is stopped and started again, one after the other, while clients write through all gateways.
//! They behave as a balancer in front does: a node that takes no connection is passed over, and a connection that says it
//! closes is not used again. Nothing else is done twice, and nothing fails.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::cluster::{Cluster, name};
use crate::placed::SHOP;
use crate::support::http::Connection;
use crate::support::{PATIENCE, service, wait};

/// Clients on each gateway.
const CLIENTS: usize = 3;
/// What each of them sends.
const BODY: [u8; 2_000] = [b'x'; 2_000];

/// Where the gateways are; absent while their nodes are on their way down or up.
type Gateways = Arc<Mutex<Vec<Option<SocketAddr>>>>;

struct Writers {
    stop: Arc<AtomicBool>,
    done: Arc<Vec<AtomicUsize>>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Writers {
    fn start(gateways: &Gateways) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let done: Arc<Vec<AtomicUsize>> = Arc::new((0..3).map(|_| AtomicUsize::new(0)).collect());
        let client = |number: usize| {
            let (gateways, stop, done) = (Arc::clone(gateways), Arc::clone(&stop), Arc::clone(&done));
            let path = if number.is_multiple_of(2) { "/ledger" } else { "/orders" };
            std::thread::spawn(move || write(number % 3, path, &gateways, &stop, &done))
        };
        let clients = (0..3 * CLIENTS).map(client).collect();
        Self { stop, done, clients }
    }

    /// Waits until so many more were written through this gateway.
    fn more(&self, through: usize, count: usize) {
        let done = || self.done[through].load(Ordering::SeqCst);
        let before = done();
        wait("more was written", || (done() >= before + count).then_some(()));
    }

    /// What failed, and how much did not.
    fn finish(self) -> (Vec<String>, usize) {
        self.stop.store(true, Ordering::SeqCst);
        let failed = self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        (failed, self.done.iter().map(|done| done.load(Ordering::SeqCst)).sum())
    }
}

/// Writes through the gateway at `home`, or through the next one that takes connections, until told to stop; what failed.
fn write(home: usize, path: &str, gateways: &Gateways, stop: &AtomicBool, done: &[AtomicUsize]) -> Vec<String> {
    let mut failed = Vec::new();
    let mut open: Option<(usize, Connection)> = None;
    while !stop.load(Ordering::SeqCst) {
        // Back home as soon as that is there again.
        open = open.filter(|(at, connection)| {
            !connection.closing && (*at == home || gateways.lock().unwrap()[home].is_none())
        });
        if open.is_none() {
            let known = gateways.lock().unwrap().clone();
            let places = (0..3).map(|step| (home + step) % 3);
            open = places.filter_map(|place| Some((place, known[place]?))).find_map(|(place, address)| {
                Connection::open(address, PATIENCE).ok().map(|connection| (place, connection))
            });
        }
        let Some((at, connection)) = &mut open else {
            failed.push("no gateway takes a connection".to_owned());
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        match connection.send("POST", path, &[], &BODY) {
            Ok(answer) if answer.status == 200 => drop(done[*at].fetch_add(1, Ordering::SeqCst)),
            Ok(answer) => failed.push(format!("{path} through {at}: {} {}", answer.status, answer.text().trim())),
            Err(error) => {
                failed.push(format!("{path} through {at}: {error}"));
                open = None;
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    failed
}

fn counted(failed: &[String]) -> BTreeMap<&str, usize> {
    let mut counted = BTreeMap::new();
    failed.iter().for_each(|what| *counted.entry(what.as_str()).or_insert(0) += 1);
    counted
}

#[test]
fn a_rolling_restart_of_all_nodes_fails_no_post_through_any_gateway() {
    let mut cluster = Cluster::up_with("");
    // Patient with a machine that has much to do.
    cluster.node(0).apply(0, &SHOP.replace("failureThreshold: 2", "failureThreshold: 3"));
    let settled = |cluster: &Cluster| {
        for place in 0..3 {
            for name in ["orders", "ledger"] {
                cluster.node(place).wait_for("everything is ready", |status| {
                    (service(status, name)["state"] == "ready").then_some(())
                });
            }
        }
    };
    settled(&cluster);
    let gateways: Gateways = Arc::new(Mutex::new((0..3).map(|place| Some(cluster.node(place).gateway)).collect()));
    let writers = Writers::start(&gateways);
    (0..3).for_each(|place| writers.more(place, 10));
    for place in 0..3 {
        cluster.stop(place);
        gateways.lock().unwrap()[place] = None;
        writers.more((place + 1) % 3, 10);
        cluster.start(place);
        settled(&cluster);
        gateways.lock().unwrap()[place] = Some(cluster.node(place).gateway);
        writers.more(place, 10);
        println!("{} is back", name(place));
    }
    let (failed, done) = writers.finish();
    println!("{done} written, failed: {:#?}", counted(&failed));
    // While the cluster is there, for its log is shown.
    assert!(failed.is_empty(), "{:#?}", counted(&failed));
}
