//! DNS from the registry, in Consul's forms: services, nodes, addresses, prepared queries. Answers come from what this node
//! knows, so they go on when the store does not serve. Decisions are functions of a catalog and a question
//! ([`answer`]); the rest is two sockets, and questions about other names passed on where that is wanted.
//! Deliberately absent: recursion of our own, and DNSSEC.

mod answer;
mod asked;
mod forward;
mod server;

pub use answer::{Transport, respond, respond_to};
pub use server::{Server, serve};

/// What is served, and under which names.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The domain, without a dot at its end: `consul`.
    pub domain: String,
    /// This site, which names may have behind them.
    pub datacenter: String,
    /// This node's name.
    pub node: String,
    /// What is not ours is passed on to others.
    pub forwards: bool,
}
