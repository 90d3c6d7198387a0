//! A cluster in one process: real stores on real disks, over a network in memory whose cables can be cut.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Consistency, Key, RangeRequest, Store, StoreError, Txn, TxnOutcome};
use data_raft::{MemoryNetwork, OpenError, Options, PeerOptions, Peers, RaftStore, Transport};

/// Longer than anything here takes; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Nodes by their place; one that is stopped is absent.
pub struct Cluster {
    pub network: MemoryNetwork,
    pub nodes: Vec<Option<Arc<RaftStore>>>,
    directory: tempfile::TempDir,
    founders: usize,
    /// The one that has no data, if one has none.
    pub witness: Option<usize>,
    adjust: Box<dyn Fn(&mut Options)>,
}

pub fn name(place: usize) -> String {
    format!("n{}", place + 1)
}

impl Cluster {
    /// Starts so many founders.
    pub fn start(founders: usize, adjust: impl Fn(&mut Options) + 'static) -> Self {
        let mut cluster = Self::prepare(founders, adjust);
        for place in 0..founders {
            cluster.start_node(place);
        }
        cluster
    }

    /// The same without starting any of them.
    pub fn prepare(founders: usize, adjust: impl Fn(&mut Options) + 'static) -> Self {
        Self {
            network: MemoryNetwork::default(),
            nodes: vec![None; founders],
            directory: tempfile::tempdir().unwrap(),
            founders,
            witness: None,
            adjust: Box::new(adjust),
        }
    }

    /// Two with data, and a third that only votes.
    pub fn with_a_witness(adjust: impl Fn(&mut Options) + 'static) -> Self {
        let mut cluster = Self::prepare(3, adjust);
        cluster.witness = Some(2);
        (0..3).for_each(|place| cluster.start_node(place));
        cluster
    }

    pub fn path(&self, place: usize) -> PathBuf {
        self.directory.path().join(name(place))
    }

    /// Starts a node that is stopped, or a new one.
    pub fn start_node(&mut self, place: usize) {
        self.start_node_as(place, true);
    }

    /// The same, as one that votes or only follows.
    pub fn start_node_as(&mut self, place: usize, voter: bool) {
        if place == self.nodes.len() {
            self.nodes.push(None);
        }
        self.nodes[place] = Some(self.open_node_as(place, voter).unwrap());
    }

    /// Tries to open a node's store.
    pub fn open_node(&self, place: usize) -> Result<Arc<RaftStore>, OpenError> {
        self.open_node_as(place, true)
    }

    fn open_node_as(&self, place: usize, voter: bool) -> Result<Arc<RaftStore>, OpenError> {
        let names: Vec<String> = (0..self.founders).map(name).collect();
        let options = PeerOptions {
            cluster: "test".into(),
            name: name(place),
            advertise: name(place),
            join: names.clone(),
            founders: names,
            voter,
            witness: self.witness == Some(place),
            agent: false,
        };
        let transport = self.network.attach(&name(place));
        let make = move || -> std::io::Result<Arc<dyn Transport>> { Ok(Arc::new(transport)) };
        let mut options = Options {
            segment_bytes: 256 * 1024,
            reserve_bytes: 0,
            peers: Some(Peers::start(options, make).unwrap()),
            ..Options::new(self.path(place))
        };
        (self.adjust)(&mut options);
        RaftStore::open(options)
    }

    pub fn node(&self, place: usize) -> &Arc<RaftStore> {
        self.nodes[place].as_ref().expect("the node runs")
    }

    /// Stops a node in good order.
    pub async fn stop_node(&mut self, place: usize) {
        let node = self.nodes[place].take().expect("the node runs");
        node.close().await.unwrap();
        // Its threads end with the last handle.
        tokio::task::spawn_blocking(move || drop(node)).await.unwrap();
    }

    /// Waits until one node leads, by the word of all that are asked.
    pub async fn leader(&self, among: &[usize]) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            let leads = |place: &&usize| self.node(**place).status().role == data::RaftRole::Leader;
            let serves = |place: &usize| {
                let status = self.node(*place).status();
                status.leader.is_some() && status.not_serving.is_none()
            };
            if among.iter().all(serves)
                && let Some(leader) = among.iter().find(leads)
            {
                return *leader;
            }
            assert!(Instant::now() < until, "no leader");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn put(&self, place: usize, key: &str, value: &str) {
        let outcome = self.node(place).txn(Txn::put(Key::try_from(key).unwrap(), value.to_owned())).await;
        assert!(matches!(outcome, Ok(TxnOutcome::Committed { .. })), "{key} through {}: {outcome:?}", name(place));
    }

    pub async fn get(&self, place: usize, key: &str, how: Consistency) -> Result<Option<String>, StoreError> {
        let read = self.node(place).range(RangeRequest::key(&Key::try_from(key).unwrap()), how).await?;
        Ok(read.kvs.into_iter().next().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
    }
}

/// Waits for a condition.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
