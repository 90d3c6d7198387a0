//! How programs and their clients find each other: what may be registered from outside.

use std::net::{IpAddr, SocketAddr};

use super::decode::{FilePath, OneOrMany, record, words};
use super::node::default_of;

record! {
    /// The registry, which Consul's HTTP API under `/v1` reads and writes.
    Discovery as "`discovery`" {
        /// Whether checks that run programs may be registered over HTTP: whoever may register then runs programs as this user. Checks of definition files always may.
        remote_script_checks: bool = false,
        /// Files of service definitions as Consul has them (`service` or `services`, JSON), registered with this node; relative to the file. `include: [{ consul: FILE }]` adds one.
        definitions: Vec<FilePath> = Vec::new(),
        /// Files that are kept up to date for programs that read who is there from one.
        feeds: Feeds = Feeds::default(),
        /// Who may what under `/v1`: Consul's tokens, policies and roles. Read at a start; the same on every node of a cluster.
        acl: Acl = Acl::default(),
    }
}

record! {
    /// Consul's ACLs, for `/v1` and DNS. `DATA_DIR/api-token` is the management token of its node, and the tokens, policies and roles made with it lie in the store.
    Acl as "`discovery.acl`" {
        /// Whether each request is judged by its token. DNS then answers what a request without a token may see.
        enabled: bool = false,
        /// What holds where no rule of a token's policies says anything.
        default_policy: DefaultPolicy = DefaultPolicy::Allow,
    }
}

words! {
    /// What holds where no rule says anything.
    DefaultPolicy {
        /// Everything but ACLs and snapshots is allowed; Consul's default.
        Allow = "allow",
        /// Nothing is.
        Deny = "deny",
    }
}

impl Default for Acl {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// Files written from the registry. Each is replaced as a whole, and only when what it says has changed.
    Feeds as "`discovery.feeds`" {
        /// Prometheus' targets as its `file_sd_configs` reads them, what `/api/v1/sd/prometheus` answers; relative to the file.
        prometheus: Option<FilePath> = None,
        /// nginx' `upstream` blocks.
        nginx: Option<NginxFeed> = None,
    }
}

impl Default for Feeds {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// A file with an `upstream` block for each service, for an `include` in nginx' `http` block.
    NginxFeed as "`discovery.feeds.nginx`" {
        /// Where it is written; relative to the file.
        file: FilePath,
        /// The services, each of which has a block whether or not anybody registered it; `all` are those that are registered.
        services: OneOrMany = OneOrMany(vec![ALL.to_owned()]),
        /// Program and arguments, run without a shell after a change and once at the start, ten seconds at most: `[nginx, -s, reload]`.
        reload: Vec<String> = Vec::new(),
    }
}

/// Of `services`: all that are registered.
pub const ALL: &str = "all";

impl Default for Discovery {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// DNS answered from the registry, over UDP and TCP; not served when absent.
    Dns as "`dns`" {
        /// Address and port; port 0 picks a free one.
        listen: String = "127.0.0.1:8600".to_owned(),
        /// The domain under which services and nodes have their names.
        domain: String = "consul".to_owned(),
        /// DNS servers that are asked about all other names, as `IP` or `IP:port` (53 when absent); one after the other until
        /// one answers within 2 s. Without any, such questions are refused.
        forward: Vec<String> = Vec::new(),
    }
}

impl Dns {
    /// The address of one of `forward`; `None` if it is none.
    pub fn server(text: &str) -> Option<SocketAddr> {
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 53)))
    }
}
