//! Status as it is shown: the same words on the wire, on screens and in scripts. Fields are only ever added.

mod traffic;

use model::{Epoch, InstanceId, NodeName, ServiceName, VersionName};
use serde::{Deserialize, Serialize};

pub use traffic::{
    AdaptiveView, AtOnceView, BreakerView, ConcurrencyView, EjectionView, OverloadView, RateLimitView, RefusingView,
    ShiftView, TrafficView,
};

/// Everything `seawall status` shows.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// This machine.
    pub node: Node,
    /// The seven layers, in order, as far as this version has them.
    pub layers: Vec<Layer>,
    /// The store.
    pub store: StoreView,
    /// The cluster, for a machine that is in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterView>,
    /// The services, by name.
    pub services: Vec<ServiceView>,
    /// Background tasks.
    pub tasks: Vec<Task>,
    /// Certificates shown to clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<CertificateView>,
    /// Services that Seawall does not run, which registered themselves or stand in definition files: the first by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub registered: Vec<RegisteredView>,
    /// How many more of them there are.
    #[serde(default, skip_serializing_if = "is_none")]
    pub registered_more: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// A service that Seawall does not run, by how the checks of its instances stand.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisteredView {
    /// Its name.
    pub name: String,
    /// Instances all of whose checks pass.
    pub passing: u32,
    /// Instances of which a check warns; they are sent requests.
    pub warning: u32,
    /// Instances of which a check is critical; they are sent none.
    pub critical: u32,
}

/// A certificate that a listener shows.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// The listener's address, as configured.
    pub listener: String,
    /// The file it was read from; `acme:` with its names if it is ordered.
    pub file: String,
    /// The names it is for.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// When it ends, RFC 3339.
    pub expires: String,
    /// The same in seconds since the Unix epoch.
    pub expires_unix: i64,
    /// Why what is in its file now is not in force, or why it could not be ordered or renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// When it is renewed, or tried again, RFC 3339; absent for files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// This machine.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub name: NodeName,
    /// Its region.
    pub region: String,
    /// `starting`, `serving` or `stopping`.
    pub state: String,
    /// The node process.
    pub pid: u32,
    /// Its parent.
    pub keeper_pid: u32,
    /// Node processes started by this keeper; more than 1 means it has crashed.
    pub node_starts: u32,
    /// When this node process started serving.
    pub since: String,
    /// The version of the binary.
    pub version: String,
    /// Where state is kept.
    pub data_dir: String,
    /// The API's address.
    pub api: String,
    /// The gateway's addresses.
    pub gateway: Vec<String>,
    /// The address for other nodes, in a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<String>,
    /// How much the gateway has to do, with `gateway.overload`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overload: Option<OverloadView>,
    /// Resident memory of both processes, where the system tells.
    pub resident_bytes: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            name: "node".into(),
            region: String::new(),
            state: "starting".into(),
            pid: 0,
            keeper_pid: 0,
            node_starts: 0,
            since: String::new(),
            version: String::new(),
            data_dir: String::new(),
            api: String::new(),
            gateway: Vec::new(),
            peers: None,
            overload: None,
            resident_bytes: 0,
        }
    }
}

/// One of the seven layers.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// `ok`, `degraded` or `down`.
    pub state: String,
    /// In one line, what is so.
    pub detail: String,
}

/// The store.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreView {
    /// True while it takes writes.
    pub serving: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its revision.
    pub revision: u64,
    /// `sync` or `async`.
    pub durability: String,
    /// Bytes of the write-ahead log on disk.
    pub wal_bytes: u64,
    /// The streams, which have a group of their own.
    pub streams: StreamsView,
}

/// The streams' group.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StreamsView {
    /// True while it takes entries.
    pub serving: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The cluster, as its leader sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterView {
    /// Its name.
    pub name: String,
    /// The leader; absent while there is none.
    pub leader: Option<NodeName>,
    /// The leader's term.
    pub term: u64,
    /// Its members, by name.
    pub members: Vec<MemberView>,
    /// Why the loss of one more node would stop everything, and what to do, where the members do not show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_failover: Option<String>,
}

/// A node of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemberView {
    /// Its name.
    pub name: NodeName,
    /// `server`, `witness`, `learner` while it takes the log over, or `agent`, which is no member of the store.
    pub role: String,
    /// `leader`, `follower`, `missing`, or `unknown` while there is no leader that could say; of an agent `there`,
    /// `stopping`, `stopped` or `missing`.
    pub state: String,
    /// Log entries it does not hold yet.
    pub lag: Option<u64>,
    /// Where the node that answers reaches it: where it was last heard of, else where it was let in. Of an agent, where
    /// what it runs is reached.
    pub address: String,
}

/// A service.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    /// Its name.
    pub name: ServiceName,
    /// `active-active` or `primary-standby`.
    pub mode: String,
    /// `ready`, `degraded`, `down`, `switching`, `rolling`.
    pub state: String,
    /// The primary that gets traffic.
    pub primary: Option<InstanceId>,
    /// Its epoch.
    pub epoch: Option<Epoch>,
    /// Its stream, for a service that has one, once there is a primary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamView>,
    /// How many instances are ready.
    pub ready: u32,
    /// How many there should be.
    pub desired: u32,
    /// Requests that wait for somebody to answer them.
    pub held: u32,
    /// What guards its requests in this node's gateway, for a service with `traffic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficView>,
    /// The shift of its requests, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<ShiftView>,
    /// What an operator should know, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The instances.
    pub instances: Vec<InstanceView>,
}

/// The stream of a service, as its newest primary took it over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StreamView {
    /// Its name.
    pub name: String,
    /// The offset after the last entry of the terms before: the primary has read up to there.
    pub end: u64,
}

/// An instance.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// Its id.
    pub id: InstanceId,
    /// The node it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Its process; absent while there is none.
    pub pid: Option<u32>,
    /// Where it listens.
    pub address: String,
    /// Its version, where the service has versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionName>,
    /// `primary` or `standby`; absent in an active-active service.
    pub role: Option<String>,
    /// `starting`, `ready`, `unready`, `draining`, `stopping`, `back-off`, `stopped`, `stuck`;
    /// `unknown` where its node says nothing.
    pub state: String,
    /// Starts after the first.
    pub restarts: u32,
    /// When it got into this state.
    pub since: String,
    /// The last thing worth knowing: a failed probe, how it ended, when it is started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A background task.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: String,
    /// Its last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}
