//! An agent of a cluster in one process.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use data::Store as _;
use data_raft::{PeerOptions, Peers, RemoteOptions, RemoteStore, Transport};

use super::cluster::{Cluster, eventually, name};

/// One of this name that begins to look for the servers of a cluster.
pub fn begin(cluster: &Cluster, called: &str) -> Arc<RemoteStore> {
    let options = PeerOptions {
        cluster: "test".into(),
        name: called.to_owned(),
        advertise: called.to_owned(),
        // The others are told by this one.
        join: vec![name(0), name(1)],
        founders: Vec::new(),
        voter: false,
        witness: false,
        agent: true,
    };
    let transport = cluster.network.attach(called);
    let make = move || -> std::io::Result<Arc<dyn Transport>> { Ok(Arc::new(transport)) };
    RemoteStore::open(RemoteOptions { peers: Peers::start(options, make).unwrap(), directory: None })
}

/// The same, once it is served.
pub async fn agent(cluster: &Cluster) -> Arc<RemoteStore> {
    let agent = begin(cluster, "a1");
    eventually("the agent is served", async || agent.status().not_serving.is_none()).await;
    agent
}
