//! What clients ask of the catalog: instances of a service with their checks, by tags, by what nodes say of themselves, by
//! how they stand, the nearest first. Pure functions of a catalog; deliberately absent: Consul's JSON, and waiting.

use std::collections::BTreeMap;

use crate::catalog::{ALIVE, Catalog, NodeEntry, Stored};
use crate::record::{CheckRecord, CheckStatus, NodeRecord, ServiceRecord};

/// The check by which a whole node is in maintenance; Consul's id, which clients look for.
pub const NODE_MAINTENANCE: &str = "_node_maintenance";
/// In front of the id of an instance that is in maintenance.
pub const SERVICE_MAINTENANCE: &str = "_service_maintenance:";

/// A check with its id.
pub type NamedCheck<'a> = (&'a str, &'a Stored<CheckRecord>);

/// An instance as it is asked for.
#[derive(Clone, Debug)]
pub struct Instance<'a> {
    /// Its node's name.
    pub node_name: &'a str,
    /// Its node.
    pub node: &'a Stored<NodeRecord>,
    /// Its id.
    pub id: &'a str,
    /// Itself.
    pub service: &'a Stored<ServiceRecord>,
    /// Checks of its node and its own.
    pub checks: Vec<NamedCheck<'a>>,
}

impl Instance<'_> {
    /// Where it is reached: its own address, else its node's.
    pub fn address(&self) -> &str {
        let own = &self.service.record.address;
        if own.is_empty() { &self.node.record.address } else { own }
    }

    /// The worst of its checks.
    pub fn status(&self) -> CheckStatus {
        worst(&self.checks)
    }

    /// It or its node is in maintenance.
    pub fn in_maintenance(&self) -> bool {
        self.checks.iter().any(|(id, _)| *id == NODE_MAINTENANCE || id.starts_with(SERVICE_MAINTENANCE))
    }
}

/// The worst status; passing without any.
pub fn worst(checks: &[NamedCheck<'_>]) -> CheckStatus {
    checks.iter().map(|(_, check)| check.record.status).max().unwrap_or(CheckStatus::Passing)
}

/// What instances are asked for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// All of these tags.
    pub tags: Vec<String>,
    /// What their nodes say of themselves.
    pub node_meta: BTreeMap<String, String>,
    /// Only those all of whose checks pass.
    pub passing: bool,
}

/// All checks of a node, its own aliveness among them.
pub fn node_checks(entry: &NodeEntry) -> Vec<NamedCheck<'_>> {
    let alive = entry.alive_check().map(|check| (ALIVE, check));
    alive.into_iter().chain(entry.checks.iter().map(|(id, check)| (id.as_str(), check))).collect()
}

/// The checks that count for an instance: its node's and its own.
pub fn checks_of<'a>(entry: &'a NodeEntry, id: &str) -> Vec<NamedCheck<'a>> {
    let alive = entry.alive_check().map(|check| (ALIVE, check));
    let own = (!id.is_empty()).then(|| entry.checks_of(id)).into_iter().flatten();
    alive.into_iter().chain(entry.checks_of("")).chain(own).collect()
}

/// Instances of a service, by node and id.
pub fn instances<'a>(catalog: &'a Catalog, service: &str, wanted: &Wanted) -> Vec<Instance<'a>> {
    let with_checks = catalog.instances(service).filter_map(|(node_name, id, service, entry)| {
        let node = entry.node.as_ref()?;
        let tagged = wanted.tags.iter().all(|tag| has_tag(&service.record, tag));
        if !tagged || !has_meta(&node.record.meta, &wanted.node_meta) {
            return None;
        }
        let instance = Instance { node_name, node, id, service, checks: checks_of(entry, id) };
        (!wanted.passing || instance.status() == CheckStatus::Passing).then_some(instance)
    });
    with_checks.collect()
}

/// Whether an instance has a tag, in any case.
pub fn has_tag(service: &ServiceRecord, tag: &str) -> bool {
    service.tags.iter().any(|known| known.eq_ignore_ascii_case(tag))
}

/// Whether somebody says all of these of itself.
pub fn has_meta(said: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| said.get(key) == Some(value))
}

/// The nearest first, as far as is known: what is on the node itself, then the rest as it was. Round-trip times are not
/// measured, so all other nodes are equally far.
pub fn nearest_first<T>(list: &mut [T], node: &str, of: impl Fn(&T) -> &str) {
    list.sort_by_key(|one| !of(one).eq_ignore_ascii_case(node));
}

/// All checks by node and id, those of machines that are known; `status` narrows them.
pub fn all_checks(catalog: &Catalog, status: Option<CheckStatus>) -> Vec<(&str, &NodeRecord, NamedCheck<'_>)> {
    let of_node = |(name, node, entry)| {
        let node: &Stored<NodeRecord> = node;
        node_checks(entry).into_iter().map(move |check| (name, &node.record, check))
    };
    let fits = |check: &Stored<CheckRecord>| status.is_none_or(|status| check.record.status == status);
    catalog.nodes().flat_map(of_node).filter(|(_, _, (_, check))| fits(check)).collect()
}
