//! How programs and their clients find each other: what may be registered from outside.

use super::decode::{FilePath, record};
use super::node::default_of;

record! {
    /// The registry, which Consul's HTTP API under `/v1` reads and writes.
    Discovery as "`discovery`" {
        /// Whether checks that run programs may be registered over HTTP: whoever may register then runs programs as this user. Checks of definition files always may.
        remote_script_checks: bool = false,
        /// Files of service definitions as Consul has them (`service` or `services`, JSON), registered with this node; relative to the file. `include: [{ consul: FILE }]` adds one.
        definitions: Vec<FilePath> = Vec::new(),
    }
}

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
    }
}
