//! Rules of a machine in a cluster.

use std::net::SocketAddr;

use crate::config::{Cluster, Config, Failsafe, NodeRole, Peers};
use crate::diagnostic::Diagnostics;

/// Checks `cluster` with `node.peers`.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    match (&config.cluster, &config.node.peers) {
        (None, None) => {
            let without = match config.node.role {
                NodeRole::Server => None,
                NodeRole::Witness => Some("a witness without a cluster: there is nothing to vote on"),
                NodeRole::Agent => Some("an agent without a cluster: there are no servers to ask"),
            };
            if let Some(message) = without {
                let cure = "leave `role` out, or add `cluster` and `peers`";
                diagnostics.error(config.node.at.field("role"), message, cure);
            }
            if config.node.advertise.is_some() {
                let message = "`advertise` without a cluster: nobody asks where this machine is";
                diagnostics.error(
                    config.node.at.field("advertise"),
                    message,
                    "leave it out, or add `cluster` and `peers`",
                );
            }
        }
        (Some(cluster), None) => diagnostics.error(
            cluster.at.whole,
            "a cluster, but no `node.peers`: this machine cannot be found by the others",
            "add node: { peers: { listen: \"IP:8300\", join: [\"HOST:8300\", …] } }",
        ),
        (None, Some(peers)) => diagnostics.error(
            peers.at.whole,
            "`node.peers` without a cluster",
            "add cluster: { name: …, tls: { dir: … } }; `seawall cluster init` makes the folder",
        ),
        (Some(cluster), Some(peers)) => {
            check_name(cluster, diagnostics);
            check_witness(config, diagnostics);
            check_agent(config, peers, diagnostics);
            check_failsafe(config, cluster, diagnostics);
            if let Some((name, service)) = config.services.first_key_value() {
                let message = format!("service `{name}` in the file of a node in a cluster is not run by `up`");
                let cure = "a stale file must not roll the cluster back: put services and routes in force with `seawall apply -f`";
                diagnostics.warning(service.at.whole, message, cure);
            }
            addresses(config, peers, diagnostics);
        }
    }
}

fn check_name(cluster: &Cluster, diagnostics: &mut Diagnostics) {
    if cluster.name.is_empty() || cluster.name.len() > 100 || cluster.name.chars().any(char::is_control) {
        diagnostics.error(cluster.at.field("name"), "a cluster's name has 1 to 100 characters", "e.g. `shop`");
    }
}

fn addresses(config: &Config, peers: &Peers, diagnostics: &mut Diagnostics) {
    let listen = peers.at.field("listen");
    match peers.listen.parse::<SocketAddr>() {
        Err(_) => {
            let message = format!("`{}` is not an address", peers.listen);
            diagnostics.error(listen, message, "write an IP address and a port, e.g. 10.0.0.5:8300");
        }
        Ok(address) if address.ip().is_unspecified() && config.node.advertise.is_none() => diagnostics.error(
            listen,
            format!("{} is no address at which others could reach this machine", address.ip()),
            "add node: { advertise: … } with its host name or IP address",
        ),
        Ok(_) => {}
    }
    for address in &peers.join {
        let parts = address.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if parts.is_none() {
            let message = format!("`{address}` is not host:port");
            diagnostics.error(peers.at.field("join"), message, "e.g. 10.0.0.6:8300");
        }
    }
    let port = peers.listen.rsplit_once(':').map_or("", |(_, port)| port);
    let advertised = config.node.advertise.as_ref().map(|host| format!("{host}:{port}"));
    // A list that leaves this node out names the two others of three.
    let names_itself =
        peers.join.iter().any(|address| *address == peers.listen || Some(address) == advertised.as_ref());
    if peers.join.len() == 2 && names_itself && config.node.role != NodeRole::Agent {
        diagnostics.warning(
            peers.at.field("join"),
            "two voters cannot fail over: one alone is no majority, so the loss of either stops every decision",
            "add a third node, which may be a small one that only votes: node: { role: witness }",
        );
    }
}

fn check_agent(config: &Config, peers: &Peers, diagnostics: &mut Diagnostics) {
    if config.node.role != NodeRole::Agent {
        return;
    }
    if peers.join.is_empty() {
        let message = "an agent that knows no server: it asks servers for everything";
        diagnostics.error(peers.at.whole, message, "add join: [\"HOST:8300\", …] with the addresses of servers");
    }
    if config.node.advertise.is_none() && !peers.at.has("listen") {
        let message = "nothing says where other nodes reach what this agent runs";
        diagnostics.error(peers.at.whole, message, "add node: { advertise: … } with its host name or IP address");
    }
}

fn check_failsafe(config: &Config, cluster: &Cluster, diagnostics: &mut Diagnostics) {
    // On a witness it does no harm: nothing runs there.
    if config.node.role == NodeRole::Agent && cluster.failsafe == Failsafe::KeepPrimary {
        diagnostics.error(
            cluster.at.field("failsafe"),
            "`failsafe: keepPrimary` on an agent: it has no vote, and hears of the voters through servers alone",
            "leave it out here; primaries that are to go on without a quorum run on servers",
        );
    }
}

fn check_witness(config: &Config, diagnostics: &mut Diagnostics) {
    const LIMITS: std::ops::RangeInclusive<u64> = 64 << 20..=1 << 40;
    let node = &config.node;
    if node.role != NodeRole::Witness {
        if node.at.has("witnessLogLimit") {
            let message = "`witnessLogLimit` on a node that is no witness has no meaning";
            diagnostics.error(node.at.field("witnessLogLimit"), message, "leave it out, or add `role: witness`");
        }
        return;
    }
    if !LIMITS.contains(&node.witness_log_limit) {
        let message =
            format!("`witnessLogLimit: {}` is not from {} to {}", node.witness_log_limit, LIMITS.start(), LIMITS.end());
        diagnostics.error(node.at.field("witnessLogLimit"), message, "leave it out for 1073741824");
    }
}
