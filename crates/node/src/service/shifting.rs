//! What a shift wants to know of the instances it leads to. Deliberately absent: the shift (`crate::shifts`).

use std::collections::BTreeMap;
use std::net::SocketAddr;

use model::{Incarnation, InstanceId, VersionName};

use super::Service;

impl Service {
    /// Whether others take its requests when it fails.
    pub fn has_backups(&self) -> bool {
        self.definition.traffic.as_ref().is_some_and(|traffic| !traffic.backup.is_empty())
    }

    /// How often each instance of a version, or of all, has been started again, on every node.
    pub fn restart_counts(&self, version: Option<&VersionName>) -> BTreeMap<InstanceId, u32> {
        let own = self.instances.values();
        let own = own.map(|instance| (instance.id(), instance.plan.version.as_ref(), instance.restarts));
        let elsewhere = self.restarts_elsewhere();
        let all = elsewhere.chain(own).filter(|(_, of, _)| version.is_none() || *of == version);
        all.map(|(id, _, restarts)| (id.clone(), restarts)).collect()
    }

    /// The ready instances of a version, or of all, on this node: which process, its pid, where it listens.
    pub fn serving_here(
        &self,
        version: Option<&VersionName>,
    ) -> Vec<(InstanceId, Incarnation, Option<u32>, SocketAddr)> {
        let wanted = self
            .instances
            .values()
            .filter(|instance| instance.is_ready() && (version.is_none() || instance.plan.version.as_ref() == version));
        wanted
            .filter_map(|instance| {
                let process = instance.process.as_ref()?;
                Some((instance.id().clone(), process.incarnation, process.pid, instance.address?))
            })
            .collect()
    }
}
