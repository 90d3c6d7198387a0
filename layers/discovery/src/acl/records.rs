//! What is kept of ACLs in the store, one key for each thing. Names of policies and roles are not kept where they are linked:
//! they may be renamed. A token's secret is kept as it is, since Consul shows it to whoever may write ACLs; the store's files
//! are their owner's alone.

use serde::{Deserialize, Serialize};

use crate::record::Map;

/// A token, under its accessor.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TokenRecord {
    /// What its holder sends.
    pub secret: String,
    /// What it is for.
    pub description: String,
    /// What it may.
    pub grants: Grants,
    /// Of this site alone.
    pub local: bool,
    /// By which it was made at a login; empty for others.
    pub auth_method: String,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: Option<u64>,
}

// A secret is in no log.
impl std::fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenRecord").field("grants", &self.grants).finish_non_exhaustive()
    }
}

impl TokenRecord {
    /// Whether its time is over at `now_ms`.
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires| expires <= now_ms)
    }
}

/// What a token or a role is given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Grants {
    /// Ids of policies.
    pub policies: Vec<String>,
    /// Ids of roles; tokens only.
    pub roles: Vec<String>,
    /// Services it speaks for.
    pub services: Vec<ServiceIdentity>,
    /// Machines it speaks for.
    pub nodes: Vec<NodeIdentity>,
    /// Builtin policies with a name filled in.
    pub templates: Vec<TemplatedPolicy>,
}

impl Grants {
    /// It gives nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// To register a service and see the others.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceIdentity {
    /// The service.
    pub name: String,
    /// Where that holds; everywhere if empty.
    pub datacenters: Vec<String>,
}

/// To register a machine and see services.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeIdentity {
    /// The machine.
    pub name: String,
    /// Where that holds.
    pub datacenter: String,
}

/// A builtin policy with what is filled in.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TemplatedPolicy {
    /// Its name, like `builtin/service`.
    pub template: String,
    /// What is filled in; empty where it needs nothing.
    pub name: String,
    /// Where that holds; everywhere if empty.
    pub datacenters: Vec<String>,
}

/// A policy, under its id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRecord {
    /// By which it is found.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// As they were written.
    pub rules: String,
    /// Where it holds; everywhere if empty.
    pub datacenters: Vec<String>,
}

/// A role, under its id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRecord {
    /// By which it is found.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What it gives.
    pub grants: Grants,
}

/// How somebody may log in, under its name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthMethodRecord {
    /// For people.
    pub display_name: String,
    /// What it is for.
    pub description: String,
    /// How long tokens of it live at most, in milliseconds; 0: for ever.
    pub max_token_ttl_ms: u64,
    /// `global` or `local`.
    pub token_locality: String,
    /// Who is believed.
    pub jwt: JwtConfig,
}

/// Whose word is believed, and what is taken from it. Consul's `jwt` with keys that are written down.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JwtConfig {
    /// Public keys, PEM.
    pub keys: Vec<String>,
    /// Which signatures count; `RS256` if empty.
    pub algorithms: Vec<String>,
    /// Who must have issued it; anybody if empty.
    pub bound_issuer: String,
    /// For whom it must be, one of them; anybody if empty.
    pub bound_audiences: Vec<String>,
    /// Claims by name that become `value.NAME`.
    pub claims: Map,
    /// Claims that are lists and become `list.NAME`.
    pub list_claims: Map,
    /// How long one without an end is good, in seconds.
    pub expiration_leeway: u64,
    /// How long before its issue one without a beginning is good, in seconds.
    pub not_before_leeway: u64,
    /// How far clocks may differ, in seconds.
    pub clock_skew_leeway: u64,
}

/// What somebody who has logged in gets, under its id.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BindingRuleRecord {
    /// Of which way to log in.
    pub auth_method: String,
    /// What it is for.
    pub description: String,
    /// Whom it is about; everybody if empty.
    pub selector: String,
    /// `service`, `node`, `role`, `policy` or `templated-policy`.
    pub bind_type: String,
    /// Its name, in which `${value.NAME}` is filled in.
    pub bind_name: String,
    /// What is filled into a templated policy.
    pub bind_vars: Option<String>,
}
