//! The parts of the file about other machines: `cluster`, and `peers` of `node`.

use std::time::Duration;

use super::decode::{record, words};

record! {
    /// The cluster this machine belongs to.
    Cluster as "`cluster`" {
        /// Its name; nodes of another cluster are refused.
        name: String,
        /// Where this machine's part of the cluster's certificates is.
        tls: ClusterTls,
        /// Instances of a node that has been away for so long are run by others; the leader's file counts.
        reschedule_after: Duration = Duration::from_secs(30),
        /// What becomes of this server's primaries while no quorum can be reached, so that their lease cannot be renewed. `stop`: they end with it. `keepPrimary`: they go on while every other voter answers, and none of them reaches a quorum either.
        failsafe: Failsafe = Failsafe::Stop,
    }
}

words! {
    /// What becomes of primaries without a quorum.
    Failsafe {
        /// They end when their lease does.
        Stop = "stop",
        /// They go on while every other voter agrees; else they end.
        KeepPrimary = "keepPrimary",
    }
}

record! {
    /// Mutual TLS between nodes, made by `seawall cluster init`.
    ClusterTls as "`cluster.tls`" {
        /// The folder with `ca.pem`, `founders`, and `NAME.pem` and `NAME.key` of this node; relative to the file.
        dir: String,
    }
}

record! {
    /// How this machine and the others find each other.
    Peers as "`node.peers`" {
        /// Address and port for other nodes. Nobody connects to an agent: of its own, only the address counts, and only without `node.advertise`.
        listen: String = "127.0.0.1:8300".to_owned(),
        /// Addresses (`host:port`) at which other nodes may be found, this node's own among them or not. One that answers is enough. An agent's names servers.
        join: Vec<String> = Vec::new(),
    }
}

words! {
    /// What a node does in its cluster.
    NodeRole {
        /// Votes and stores.
        Server = "server",
        /// Votes, so that two servers survive the loss of one, and keeps the log for that; it has no data and runs nothing.
        Witness = "witness",
        /// Neither votes nor stores: it runs what the cluster places on it, and asks servers for everything else.
        Agent = "agent",
    }
}
