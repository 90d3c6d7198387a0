//! What is kept in the store, one key for each thing: nodes, instances, checks, sessions, prepared queries, events, and
//! what Consul's clients hang on a key of a user. JSON; fields are only ever added. The words are Consul's: whoever reads a
//! record knows them.
//! Deliberately absent: anything that a reader could derive.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Text by text.
pub type Map = BTreeMap<String, String>;

/// Who wrote a record, and so who may take it away again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// Seawall itself: an instance that it runs.
    Seawall,
    /// A program that registered with the node it runs on; that node runs its checks.
    #[default]
    Agent,
    /// A definition file of its node, which runs its checks.
    File,
    /// Somebody who wrote it into the catalog; nobody runs its checks.
    Catalog,
}

/// A machine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeRecord {
    /// Its id, a UUID; empty where nobody gave one.
    pub id: String,
    /// Where it is reached.
    pub address: String,
    /// More addresses, by purpose.
    pub tagged_addresses: Map,
    /// What its owner says of it.
    pub meta: Map,
    /// A Seawall runs there: whether it is alive shows in the store.
    pub agent: bool,
}

/// An address with its port.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceAddress {
    /// A host or an IP address.
    pub address: String,
    /// Its port.
    pub port: u16,
}

/// How much of the traffic an instance gets, for those who look at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Weights {
    /// While all its checks pass.
    pub passing: u16,
    /// While one of them warns.
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// An instance of a service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceRecord {
    /// The service's name.
    pub service: String,
    /// Its labels.
    pub tags: Vec<String>,
    /// Where it listens; its node's address when empty.
    pub address: String,
    /// Its port; 0 is none.
    pub port: u16,
    /// What its owner says of it.
    pub meta: Map,
    /// More addresses, by purpose.
    pub tagged_addresses: BTreeMap<String, ServiceAddress>,
    /// Its share.
    pub weights: Weights,
    /// Others may change its tags.
    pub enable_tag_override: bool,
    /// Consul's kind; empty for what is ordinary.
    pub kind: String,
    /// Who wrote it.
    pub owner: Owner,
}

/// How a check stands. The later, the worse.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// All is well.
    Passing,
    /// Something is not, and it still serves.
    Warning,
    /// It does not serve.
    #[default]
    Critical,
}

impl CheckStatus {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    /// Reads its word, in any case.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical].into_iter().find(|one| one.as_str().eq_ignore_ascii_case(word))
    }
}

/// A check of an instance, or of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckRecord {
    /// Its name, for people.
    pub name: String,
    /// How it stands.
    pub status: CheckStatus,
    /// What its author says of it.
    pub notes: String,
    /// What was found last.
    pub output: String,
    /// The instance it is about; empty for one of the node.
    pub service_id: String,
    /// That instance's service.
    pub service: String,
    /// Consul's word for how it is made: `http`, `ttl`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// How it is made; absent where somebody else makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<CheckDefinition>,
    /// Who wrote it.
    pub owner: Owner,
}

/// How a check is made. Times in milliseconds; 0 is none.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CheckDefinition {
    /// A URL that answers 2xx; 429 is a warning.
    pub http: String,
    /// The method; GET when empty.
    pub method: String,
    /// Header fields.
    pub header: BTreeMap<String, Vec<String>>,
    /// The body.
    pub body: String,
    /// Whom the other side's certificate must be for.
    pub tls_server_name: String,
    /// Its certificate is not looked at.
    pub tls_skip_verify: bool,
    /// A redirect is an answer of its own.
    pub disable_redirects: bool,
    /// `HOST:PORT` that takes a connection.
    pub tcp: String,
    /// The same under TLS.
    pub tcp_use_tls: bool,
    /// `HOST:PORT` that does not refuse a datagram.
    pub udp: String,
    /// `HOST:PORT[/SERVICE]` that answers gRPC's health protocol.
    pub grpc: String,
    /// The same under TLS.
    pub grpc_use_tls: bool,
    /// `HOST:PORT` that answers an HTTP/2 ping.
    pub h2ping: String,
    /// The same under TLS.
    pub h2ping_use_tls: bool,
    /// A program and its arguments: 0 passes, 1 warns.
    pub args: Vec<String>,
    /// A node whose state is taken over.
    pub alias_node: String,
    /// An instance whose state is taken over.
    pub alias_service: String,
    /// The owner must speak up within this time.
    pub ttl_ms: u64,
    /// Between two looks.
    pub interval_ms: u64,
    /// The longest one may take.
    pub timeout_ms: u64,
    /// So many successes in a row make it pass.
    pub success_before_passing: u32,
    /// So many failures in a row make it warn.
    pub failures_before_warning: u32,
    /// So many failures in a row make it critical.
    pub failures_before_critical: u32,
    /// An instance that was critical for so long is taken out.
    pub deregister_after_ms: u64,
    /// The most bytes of output that are kept.
    pub output_max_size: u32,
}

/// What becomes of a key when the session that holds it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Behavior {
    /// It is free.
    #[default]
    Release,
    /// It is deleted.
    Delete,
}

/// A session: what locks hang on.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionRecord {
    /// Its name, for people.
    pub name: String,
    /// The node it belongs to.
    pub node: String,
    /// Checks of that node it lives on.
    pub checks: Vec<String>,
    /// For so long nobody gets a lock after it ended in another way than in good order.
    pub lock_delay_ms: u64,
    /// See [`Behavior`].
    pub behavior: Behavior,
    /// Its time as written; empty for none.
    pub ttl: String,
    /// The lease it lives on, with a time.
    pub lease: Option<u64>,
}

/// What Consul's clients hang on a key of a user. It counts while it is not older than the key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KeyRecord {
    /// Any number.
    pub flags: u64,
    /// How often it was locked.
    pub lock_index: u64,
    /// Who holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// A prepared query.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueryRecord {
    /// Its name.
    pub name: String,
    /// Matches names by their beginning.
    pub prefix_template: bool,
    /// For a template: what finds its parts.
    pub template_regexp: String,
    /// For a template: tags that come out empty are left out.
    pub remove_empty_tags: bool,
    /// The session it lives on.
    pub session: String,
    /// The service asked for.
    pub service: String,
    /// Only instances of which no check warns.
    pub only_passing: bool,
    /// Sorted by their distance from here.
    pub near: String,
    /// Tags all of which must be there; with `!` in front, must not.
    pub tags: Vec<String>,
    /// What nodes must say of themselves.
    pub node_meta: Map,
    /// What instances must say of themselves.
    pub service_meta: Map,
    /// Checks that do not count.
    pub ignore_check_ids: Vec<String>,
    /// So many nearest other sites are asked when there is nobody here.
    pub nearest_n: u64,
    /// Other sites that are asked when there is nobody here.
    pub datacenters: Vec<String>,
    /// For how long DNS answers may be kept; Consul's text.
    pub dns_ttl: String,
}

/// An event that somebody fired.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EventRecord {
    /// Its name.
    pub name: String,
    /// What came with it, as base64.
    pub payload: Option<String>,
    /// For which nodes.
    pub node_filter: String,
    /// For which services.
    pub service_filter: String,
    /// For which tags.
    pub tag_filter: String,
}
