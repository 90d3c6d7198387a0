//! The parts of the file about this machine: `node`, `api`, `gateway`, `notify`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::acme::Acme;
use super::cluster::{NodeRole, Peers};
use super::decode::{Decode, FilePath, Places, record, text, words, wrong};
use super::limits::Overload;
use super::listener::Listen;
use super::yaml::Node;
use crate::diagnostic::Diagnostics;
use crate::id::NodeName;
use crate::network::Network;

record! {
    /// This machine.
    NodeConfig as "`node`" {
        /// The node's name; unique in a cluster.
        name: NodeName = NodeName::from("node-1"),
        /// In a cluster: what it does there.
        role: NodeRole = NodeRole::Server,
        /// Of a witness: the most bytes of each of its logs for the sake of a server that is away; past that, that one votes no more until it is back. From 67108864 to 1099511627776.
        witness_log_limit: u64 = 1_073_741_824,
        /// In a cluster: the host or IP address at which other nodes reach it; that of `peers.listen` when absent.
        advertise: Option<String> = None,
        /// In a cluster: how nodes find each other.
        peers: Option<Peers> = None,
        /// The site it stands in.
        region: String = "local".to_owned(),
        /// Where state, logs and the write-ahead log are kept; relative to the file.
        data_dir: String = "./seawall-data".to_owned(),
        /// Ports handed to instances as `${port}` are taken from here, one for each: below the range the system uses for outgoing connections.
        instance_ports: PortRange = PortRange { first: 20_000, last: 29_999 },
        /// `sync`: a write is acknowledged once it is on disk. `async`: before; a crash may lose the last moments.
        durability: Durability = Durability::Sync,
        /// An instance's log file is rotated at this size, in mebibytes; at least 1.
        log_max_mib: u32 = 16,
        /// How many rotated log files are kept for each instance.
        log_keep: u32 = 3,
    }
}

impl Default for NodeConfig {
    fn default() -> Self {
        default_of()
    }
}

words! {
    /// When a write is acknowledged.
    Durability {
        /// After it is on disk.
        Sync = "sync",
        /// Before it is on disk; named in every acknowledgement.
        Async = "async",
    }
}

record! {
    /// The control API. It can stop and start everything, so it listens on loopback only.
    Api as "`api`" {
        /// Address and port; port 0 picks a free one.
        listen: String = "127.0.0.1:8500".to_owned(),
        /// More `Host` names that requests may carry, without port, besides loopback's own.
        allowed_hosts: Vec<String> = Vec::new(),
    }
}

impl Default for Api {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// What each op-log of a service keeps; the oldest entries go first.
    StreamsConfig as "`streams`" {
        /// The most bytes of a stream, 32 for each entry included; at least 1048576.
        max_bytes: u64 = 67_108_864,
        /// How old an entry may become; without a bound when absent.
        max_age: Option<Duration> = None,
    }
}

impl Default for StreamsConfig {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// Where traffic enters, and its bounds.
    GatewayConfig as "`gateway`" {
        /// What this gateway as a whole bears; beyond it requests are answered 503 at once.
        overload: Option<Overload> = None,
        /// Addresses and ports, or mappings with `address` and how its connections are treated.
        listen: Vec<Listen> = vec![Listen::from("127.0.0.1:8080")],
        /// Worker threads; 0 is one for each core.
        workers: u32 = 0,
        /// The most client connections at a time; more are refused.
        max_connections: u32 = 65_536,
        /// How long a client may take to send a request's head.
        header_timeout: Duration = Duration::from_secs(10),
        /// How long an idle keep-alive connection is kept.
        idle_timeout: Duration = Duration::from_secs(75),
        /// How long to wait for an instance to accept a connection.
        connect_timeout: Duration = Duration::from_secs(1),
        /// How long a client may take nothing, or send nothing of a body it owes, before it is cut off.
        stall_timeout: Duration = Duration::from_secs(30),
        /// How long a tunnel (WebSocket, TCP) on which nothing moves is kept.
        tunnel_idle_timeout: Duration = Duration::from_secs(3600),
        /// The most connections of one client address, over all listeners; 0 is no bound.
        max_connections_per_client: u32 = 0,
        /// Proxies in front of the gateway: what they say in `X-Forwarded-For`, `-Proto` and `-Host` is believed. What anybody else says there is replaced.
        trusted_proxies: Vec<Network> = Vec::new(),
        /// The most bytes of a request's body; more is answered 413. No bound when absent.
        max_body_bytes: Option<u64> = None,
        /// Pages for the gateway's own answers, by status (`503`) or class (`5xx`): HTML files, relative to the file. Clients that ask for JSON get JSON.
        error_pages: BTreeMap<String, FilePath> = BTreeMap::new(),
        /// Whether answers of instances tell, in `Server-Timing`, how long the request was on its way to the instance and how long the instance took to begin its answer.
        server_timing: bool = false,
        /// Whom certificates are ordered from that listeners do not have as files.
        acme: Option<Acme> = None,
        /// How long requests under way may finish when the node stops.
        drain_timeout: Duration = Duration::from_secs(15),
        /// One JSON line for each request.
        access_log: AccessLog = AccessLog::default(),
    }
}

impl Default for GatewayConfig {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// One JSON line a request, in `access.log` under the data directory.
    AccessLog as "`accessLog`" {
        /// On or off.
        enabled: bool = false,
    }
}

impl Default for AccessLog {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// A receiver of notices. Each notice is delivered at least once.
    Notify as "an item of `notify`" {
        /// The URL that gets a POST with a JSON body.
        webhook: String,
        /// Which notices, at least one; all when absent.
        on: Vec<NotifyKind> = vec![NotifyKind::PrimaryLost, NotifyKind::CrashLoop, NotifyKind::NoReadyInstance],
    }
}

words! {
    /// What a notice is about.
    NotifyKind {
        /// A primary died or was given up.
        PrimaryLost = "primary-lost",
        /// An instance keeps exiting.
        CrashLoop = "crash-loop",
        /// A service has no ready instance left.
        NoReadyInstance = "no-ready-instance",
    }
}

/// An inclusive range of ports, written `20000-29999`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// The lowest port.
    pub first: u16,
    /// The highest port.
    pub last: u16,
}

impl Decode for PortRange {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a range of ports such as 20000-29999";
        let written = text(node, EXPECTED, diagnostics)?;
        let parsed = written
            .split_once('-')
            .and_then(|(first, last)| Some((first.trim().parse().ok()?, last.trim().parse().ok()?)));
        match parsed {
            Some((first, last)) if first > 0 && first <= last => Some(Self { first, last }),
            _ => {
                wrong(node, EXPECTED, diagnostics);
                None
            }
        }
    }

    fn encode(&self) -> Value {
        format!("{}-{}", self.first, self.last).into()
    }

    fn schema(_: &mut std::collections::BTreeMap<String, Value>) -> Value {
        json!({ "type": "string", "pattern": "^[0-9]+-[0-9]+$" })
    }
}

/// A record with nothing written: every field has its default.
pub(super) fn default_of<T: Decode>() -> T {
    let nothing = Node { kind: super::yaml::Kind::Null, place: Places::default().whole };
    T::decode(&nothing, &mut Diagnostics::default()).expect("the record has a default for every field")
}
