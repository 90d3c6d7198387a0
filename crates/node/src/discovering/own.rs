//! What this node runs, written into the registry: its machine, that it is alive, its instances with their readiness as a
//! check. In a cluster all of it but the machine hangs on the node's lease: a node that is lost says nothing any more.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::view::{InstanceView, Status};
use data::{LeaseId, Op, StoreError};
use discovery::catalog::SERVERS;
use discovery::key::About;
use discovery::record::{CheckRecord, CheckStatus, NodeRecord, Owner, ServiceRecord};
use discovery::{Registry, writing};
use tokio::sync::watch;

/// What is there is looked at this often though nothing seems to have happened.
const LOOK: Duration = Duration::from_secs(1);
/// Until the registry has been read, or there is a lease.
const SOON: Duration = Duration::from_millis(5);
/// Where there is so much that to find out what should be there takes long: at most one of so many parts of the time.
const SHARE: u32 = 50;
/// What is quicker is done for each status.
const QUICK: Duration = Duration::from_millis(1);
/// The longest that the registry is behind the status for that reason.
const MAX_BEHIND: Duration = Duration::from_millis(500);
/// After a write that failed.
const AGAIN: Duration = Duration::from_millis(200);

/// See the file.
pub struct Own {
    pub registry: Arc<Registry>,
    pub node_id: String,
    pub version: String,
    pub host: IpAddr,
    /// Records hang on the node's lease.
    pub leased: bool,
    /// It is one of those that keep the registry.
    pub keeps_registry: bool,
}

/// What should be there: instances and checks by id.
#[derive(Clone, PartialEq, Eq, Default)]
struct Wanted {
    services: BTreeMap<String, ServiceRecord>,
    checks: BTreeMap<String, CheckRecord>,
}

impl Own {
    /// Keeps the registry true until the node ends.
    pub async fn keep(self, mut status: watch::Receiver<Arc<Status>>, mut lease: watch::Receiver<Option<LeaseId>>) {
        // What was written last, under which lease, and when.
        let mut last: Option<(Arc<Wanted>, Option<LeaseId>, Instant)> = None;
        let mut known: Option<(Arc<Status>, Arc<Wanted>)> = None;
        loop {
            // So that it is known since when there is no leader, whether somebody asks or not.
            self.registry.leaderless();
            let (newest, began) = (status.borrow_and_update().clone(), Instant::now());
            let wanted = match &known {
                Some((status, wanted)) if Arc::ptr_eq(status, &newest) => wanted.clone(),
                _ => Arc::new(self.wanted(&newest)),
            };
            let took = began.elapsed();
            known = Some((newest, wanted.clone()));
            let lease_now = lease.borrow_and_update().filter(|_| self.leased);
            let mut pause = LOOK;
            let same = last
                .as_ref()
                .is_some_and(|(before, under, at)| *before == wanted && *under == lease_now && at.elapsed() < LOOK);
            if !self.registry.read().is_known() || self.leased && lease_now.is_none() {
                pause = SOON;
            } else if !same {
                let anew = last.as_ref().is_none_or(|(_, under, _)| *under != lease_now);
                match self.write(&wanted, lease_now, anew).await {
                    Ok(()) => last = Some((wanted, lease_now, Instant::now())),
                    Err(discovery::RegistryError::Store(StoreError::Closed)) => return,
                    Err(error) => {
                        tracing::debug!(%error, "what this node runs could not be registered; trying again");
                        pause = AGAIN;
                    }
                }
            }
            if took > QUICK {
                tokio::time::sleep((took * SHARE).min(MAX_BEHIND)).await;
            }
            tokio::select! {
                changed = status.changed() => if changed.is_err() { return },
                changed = lease.changed() => if changed.is_err() { return },
                // Somebody else may have changed what is this node's.
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn write(&self, wanted: &Wanted, lease: Option<LeaseId>, anew: bool) -> Result<(), discovery::RegistryError> {
        let ops = self.ops(wanted, lease, anew)?;
        self.registry.change(ops).await
    }

    fn ops(&self, wanted: &Wanted, lease: Option<LeaseId>, anew: bool) -> Result<Vec<Op>, StoreError> {
        let catalog = self.registry.read();
        let name = self.registry.node();
        let node = NodeRecord {
            id: self.node_id.clone(),
            address: self.host.to_string(),
            tagged_addresses: ["lan", "wan"].map(|tag| (tag.to_owned(), self.host.to_string())).into(),
            meta: BTreeMap::from([("seawall-version".to_owned(), self.version.clone())]),
            agent: true,
        };
        let mut ops: Vec<Op> = writing::node_op(&catalog, name, &node)?.into_iter().collect();
        let entry = catalog.node(name).map(|(_, entry)| entry);
        if anew || entry.is_none_or(|entry| !entry.alive) {
            ops.push(writing::put_leased(&About::Alive(name.into()), &(), lease)?);
        }
        for (id, record) in &wanted.services {
            let known = entry.and_then(|entry| entry.services.get(id));
            if anew || known.is_none_or(|known| known.record != *record) {
                ops.push(writing::put_leased(&About::Service(name.into(), id.clone()), record, lease)?);
            }
        }
        for (id, record) in &wanted.checks {
            let known = entry.and_then(|entry| entry.checks.get(id));
            if anew || known.is_none_or(|known| known.record != *record) {
                ops.push(writing::put_leased(&About::Check(name.into(), id.clone()), record, lease)?);
            }
        }
        let Some(entry) = entry else { return Ok(ops) };
        let own = |owner: Owner| owner == Owner::Seawall;
        for (id, _) in
            entry.services.iter().filter(|(id, one)| own(one.record.owner) && !wanted.services.contains_key(*id))
        {
            ops.push(writing::delete(&About::Service(name.into(), id.clone()))?);
        }
        for (id, _) in entry.checks.iter().filter(|(id, one)| own(one.record.owner) && !wanted.checks.contains_key(*id))
        {
            ops.push(writing::delete(&About::Check(name.into(), id.clone()))?);
        }
        Ok(ops)
    }

    fn wanted(&self, status: &Status) -> Wanted {
        let mut wanted = Wanted::default();
        if self.keeps_registry {
            // Where it is reached by the others, or by its clients where there are none.
            let at = status.node.peers.as_ref().unwrap_or(&status.node.api);
            let port = at.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_default();
            let record =
                ServiceRecord { service: SERVERS.into(), port, owner: Owner::Seawall, ..ServiceRecord::default() };
            wanted.services.insert(SERVERS.into(), record);
        }
        for service in &status.services {
            let here = |instance: &&InstanceView| {
                instance.node.as_ref().is_none_or(|node| node.as_str() == self.registry.node())
            };
            for instance in service.instances.iter().filter(here) {
                let Some((host, port)) = instance.address.rsplit_once(':') else { continue };
                let Ok(port) = port.parse() else { continue };
                let id = instance.id.to_string();
                let tags = instance.version.iter().map(ToString::to_string).chain(instance.role.clone()).collect();
                let record = ServiceRecord {
                    service: service.name.to_string(),
                    tags,
                    address: host.trim_matches(['[', ']']).to_owned(),
                    port,
                    owner: Owner::Seawall,
                    ..ServiceRecord::default()
                };
                wanted.services.insert(id.clone(), record);
                wanted.checks.insert(format!("service:{id}"), readiness(&id, service.name.as_str(), instance));
            }
        }
        wanted
    }
}

/// An instance's readiness, as a check. Only what lasts is told: when it changes, whoever asks about the service is woken.
fn readiness(id: &str, service: &str, instance: &InstanceView) -> CheckRecord {
    let ready = instance.state == "ready";
    CheckRecord {
        name: "Seawall readiness".into(),
        status: if ready { CheckStatus::Passing } else { CheckStatus::Critical },
        output: instance.state.clone(),
        service_id: id.to_owned(),
        service: service.to_owned(),
        kind: "seawall".into(),
        owner: Owner::Seawall,
        ..CheckRecord::default()
    }
}
