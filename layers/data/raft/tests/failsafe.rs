//! Without a quorum a lease goes on while every other voter agrees, and not by the word of fewer.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cluster::{Cluster, eventually, name};
use data::{Consistency, Key, LeaseId, NotServing, Op, Store as _, StoreError, Txn};
use data_raft::{FaultyDisk, Operation, RealDisk};

const TTL: Duration = Duration::from_millis(1800);

/// Three nodes, each with a disk that can fail.
struct Shop {
    cluster: Cluster,
    disks: Arc<Mutex<BTreeMap<PathBuf, FaultyDisk>>>,
}

impl Shop {
    async fn start() -> (Self, usize) {
        let disks = Arc::<Mutex<BTreeMap<PathBuf, FaultyDisk>>>::default();
        let known = Arc::clone(&disks);
        let cluster = Cluster::start(3, move |options| {
            let mut known = known.lock().unwrap();
            let disk = known.entry(options.directory.clone()).or_insert_with(|| FaultyDisk::new(Arc::new(RealDisk)));
            options.disk = Arc::new(disk.clone());
        });
        let leader = cluster.leader(&[0, 1, 2]).await;
        (Self { cluster, disks }, leader)
    }

    fn disk(&self, place: usize) -> FaultyDisk {
        self.disks.lock().unwrap()[&self.cluster.path(place)].clone()
    }

    /// A lease of this node with a key.
    async fn lease(&self, place: usize) -> LeaseId {
        let lease = self.cluster.node(place).lease_grant(TTL).await.unwrap().lease;
        let put = Op::Put { key: Key::try_from("held").unwrap(), value: "1".into(), lease: Some(lease) };
        self.cluster.node(place).txn(Txn::default().then(put)).await.unwrap();
        lease
    }

    /// The disks of these are full, and their stores have noticed.
    async fn fill(&self, full: &[usize]) {
        for place in full {
            self.disk(*place).fail(Operation::Write, 0, ErrorKind::StorageFull, true);
        }
        eventually("the stores have stopped", async || {
            // It is answered by nobody.
            let put = Txn::put(Key::try_from("more").unwrap(), "1");
            let _ = tokio::time::timeout(Duration::from_millis(100), self.cluster.node(full[0]).txn(put)).await;
            let stopped = |place: &usize| {
                matches!(self.cluster.node(*place).status().not_serving, Some(NotServing::DiskFull { .. }))
            };
            full.iter().all(stopped)
        })
        .await;
    }

    async fn refusal(&self, place: usize, lease: LeaseId) -> String {
        match self.cluster.node(place).lease_confirm(lease).await {
            Err(StoreError::NotServing(NotServing::Unconfirmed { why })) => why.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_goes_on_while_most_disks_are_full_and_is_there_afterwards() {
    let (mut shop, leader) = Shop::start().await;
    let place = (leader + 1) % 3;
    let full = [leader, (leader + 2) % 3];
    let lease = shop.lease(place).await;
    shop.fill(&full).await;
    assert!(shop.cluster.node(place).lease_keep_alive(lease).await.is_err(), "nobody can renew it");
    eventually("all agree", async || shop.cluster.node(place).lease_confirm(lease).await.is_ok()).await;
    // Far longer than it would live.
    let until = Instant::now() + TTL * 2;
    while Instant::now() < until {
        assert_eq!(shop.cluster.node(place).lease_confirm(lease).await, Ok(()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for place in full {
        shop.disk(place).heal();
        let stopped = shop.cluster.nodes[place].take();
        tokio::task::spawn_blocking(move || drop(stopped)).await.unwrap();
        shop.cluster.start_node(place);
    }
    shop.cluster.leader(&[0, 1, 2]).await;
    shop.cluster.node(place).lease_keep_alive(lease).await.unwrap();
    assert_eq!(shop.cluster.get(place, "held", Consistency::Linearizable).await, Ok(Some("1".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reaches_a_quorum_refuses() {
    let (shop, leader) = Shop::start().await;
    let place = (leader + 1) % 3;
    let lease = shop.lease(place).await;
    assert_eq!(shop.refusal(place, lease).await, "this node: it reaches a quorum, which is what decides");
    // It hears nobody, so it does not know: but then it cannot ask either.
    shop.cluster.network.isolate(&name(place));
    eventually("it has noticed", async || shop.cluster.node(place).status().not_serving.is_some()).await;
    let why = shop.refusal(place, lease).await;
    let others = [leader, (leader + 2) % 3].map(|other| format!("{}: ", name(other)));
    assert!(others.iter().any(|other| why.starts_with(other)), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_own_disk_is_full_is_refused_by_those_that_decide_without_it() {
    let (shop, leader) = Shop::start().await;
    let place = (leader + 1) % 3;
    let lease = shop.lease(place).await;
    shop.fill(&[place]).await;
    let why = shop.refusal(place, lease).await;
    assert!(!why.starts_with("this node") && why.ends_with(": it reaches a quorum, which is what decides"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_cannot_be_reached_or_knows_no_such_lease_is_named() {
    let (shop, leader) = Shop::start().await;
    let (place, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let lease = shop.lease(place).await;
    shop.fill(&[leader, third]).await;
    eventually("all agree", async || shop.cluster.node(place).lease_confirm(lease).await.is_ok()).await;
    assert_eq!(shop.refusal(place, LeaseId(4711)).await, "this node: it does not hold the lease");
    shop.cluster.network.cut(&name(third), &name(place));
    let why = shop.refusal(place, lease).await;
    assert!(why.starts_with(&format!("{}: ", name(third))), "{why}");
}
