//! What nodes tell each other through the store, and under which keys: the configuration, who is there, where instances
//! belong, and what has become of them. A node writes its own node and instances only, bound to its lease: when the
//! lease goes, so does everything it said. Fields are only ever added.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use data::Key;
use model::{Epoch, Incarnation, InstanceId, NodeName, Revision, ServiceName, VersionName};
use runtime::placement::Placed;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::shifts::record::{MEASURE, SHIFT};

/// Everything that nodes and the leader write.
pub const CONTROL: &str = "control/";
/// The configuration in force: services and routes.
pub const CONFIG: &str = "control/config";
/// Before a service's name: where its instances belong.
pub const PLACEMENT: &str = "control/placement/";
/// Before a node's name: it is there.
pub const NODE: &str = "control/node/";
/// Before a service's name: a switch of its primary that was agreed on.
pub const SWITCH: &str = "control/switch/";
/// Before a service's name: its newest restart.
pub const RESTART: &str = "control/restart/";
/// Before `service/instance/node`.
pub const INSTANCE: &str = "control/instance/";

/// One instance, as the node that runs it says.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceRecord {
    /// Its process; absent once nothing of its tree is left.
    pub incarnation: Option<Incarnation>,
    /// Where it listens.
    pub address: Option<SocketAddr>,
    /// It runs and nobody is stopping it, or it still does its work while it is.
    pub alive: bool,
    /// It may get traffic.
    pub ready: bool,
    /// It gets no new requests.
    pub leaving: bool,
    /// It refused to be primary a moment ago.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// The term whose `onPromote` it has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Epoch>,
    /// The term in which it has stepped down in good order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demoted: Option<Epoch>,
    /// Of the definition it runs.
    pub fingerprint: u64,
    /// The newest restart that had been agreed on when it was started.
    #[serde(default)]
    pub generation: u64,
    /// Its version, where the service has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<VersionName>,
    /// For screens.
    pub shown: Shown,
}

/// What only screens need.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Its process's id on its node.
    pub pid: Option<u32>,
    /// The word for its state.
    pub state: String,
    /// Since when.
    pub since: String,
    /// Starts after the first.
    pub restarts: u32,
    /// The last thing worth knowing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The chain of events it is in.
    pub cause: String,
}

/// A node that is there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRecord {
    /// Its API.
    pub api: String,
    /// Its gateway.
    pub gateway: Vec<String>,
    /// The site it stands in.
    pub region: String,
    /// What it is in the cluster; a server where nothing is said.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub role: String,
    /// Of an agent, which no list of members has: where what it runs is reached.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// It is being stopped on purpose.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// Services in a switch whose old primary gets nothing from its gateway any more, and which switch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drained: BTreeMap<ServiceName, Revision>,
    /// Services whose breaker is open at its gateway, and the chain of events of that.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub open: BTreeMap<ServiceName, String>,
    /// Processes of other nodes that are about to stop, and that get nothing from its gateway any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub left: BTreeMap<InstanceId, Incarnation>,
}

/// Where a service's instances belong.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PlacementRecord {
    /// Node of each instance.
    pub instances: Placed,
}

/// The configuration in force, as it is written out; see `model::config`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ConfigRecord {
    /// The services by name.
    pub services: BTreeMap<String, Value>,
    /// The routes in order.
    pub routes: Vec<Value>,
}

/// What a key is about.
#[derive(Debug, PartialEq, Eq)]
pub enum About {
    /// The configuration.
    Config,
    /// Where a service's instances belong.
    Placement(ServiceName),
    /// A switch of a service's primary.
    Switch(ServiceName),
    /// A restart of a service.
    Restart(ServiceName),
    /// A breaker that is held by hand.
    Breaker(ServiceName),
    /// A shift of a service's requests.
    Shift(ServiceName),
    /// What a node has counted in a shift.
    Measure(ServiceName, NodeName),
    /// A node.
    Node(NodeName),
    /// An instance on a node.
    Instance(ServiceName, InstanceId, NodeName),
    /// The primary of a service.
    Primary(ServiceName),
    /// A decision's event.
    Decision,
    /// Something this version does not know.
    Other,
}

impl About {
    /// Reads a key.
    pub fn of(key: &str) -> Self {
        if key == CONFIG {
            return Self::Config;
        }
        if let Some(service) = key.strip_prefix(PLACEMENT) {
            return Self::Placement(service.into());
        }
        if let Some(service) = key.strip_prefix(SWITCH) {
            return Self::Switch(service.into());
        }
        if let Some(service) = key.strip_prefix(RESTART) {
            return Self::Restart(service.into());
        }
        if let Some(service) = key.strip_prefix(crate::breakers::BREAKER) {
            return Self::Breaker(service.into());
        }
        if let Some(service) = key.strip_prefix(SHIFT) {
            return Self::Shift(service.into());
        }
        if let Some((service, node)) = key.strip_prefix(MEASURE).and_then(|rest| rest.split_once('/')) {
            return Self::Measure(service.into(), node.into());
        }
        if let Some(node) = key.strip_prefix(NODE) {
            return Self::Node(node.into());
        }
        if let Some(service) = key.strip_prefix("control/primary/") {
            return Self::Primary(service.into());
        }
        if key.starts_with(crate::service::events_prefix()) {
            return Self::Decision;
        }
        let mut parts = key.strip_prefix(INSTANCE).unwrap_or_default().split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(service), Some(instance), Some(node), None) => {
                Self::Instance(service.into(), instance.into(), node.into())
            }
            _ => Self::Other,
        }
    }
}

/// The key of an instance on a node.
pub fn instance_key(service: &ServiceName, instance: &InstanceId, node: &NodeName) -> Key {
    key(&format!("{INSTANCE}{service}/{instance}/{node}"))
}

/// A key made of names, which are short.
pub fn key(text: &str) -> Key {
    Key::new(text.to_owned().into_bytes()).expect("names are short")
}

#[cfg(test)]
mod tests {
    use super::{About, instance_key};

    #[test]
    fn keys_are_read_as_they_are_written() {
        let written = instance_key(&"shop".into(), &"shop-v1-0".into(), &"n1".into());
        let read = About::of(written.as_str().unwrap());
        assert_eq!(read, About::Instance("shop".into(), "shop-v1-0".into(), "n1".into()));
        assert_eq!(About::of("control/config"), About::Config);
        assert_eq!(About::of("control/placement/shop"), About::Placement("shop".into()));
        assert_eq!(About::of("control/switch/shop"), About::Switch("shop".into()));
        assert_eq!(About::of("control/restart/shop"), About::Restart("shop".into()));
        assert_eq!(About::of("control/breaker/shop"), About::Breaker("shop".into()));
        assert_eq!(About::of("control/shift/shop"), About::Shift("shop".into()));
        assert_eq!(About::of("control/measure/shop/n1"), About::Measure("shop".into(), "n1".into()));
        assert_eq!(About::of("control/node/n1"), About::Node("n1".into()));
        assert_eq!(About::of("control/primary/shop"), About::Primary("shop".into()));
        assert_eq!(About::of("control/events/shop/1/2"), About::Decision);
        for unknown in ["control/instance/shop/shop-0", "control/instance/a/b/c/d", "control/new/x", "x"] {
            assert_eq!(About::of(unknown), About::Other, "{unknown}");
        }
    }
}
