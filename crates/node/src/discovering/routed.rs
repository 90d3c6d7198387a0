//! Services that no file declares, and to which a route leads all the same: their instances follow the registry into the
//! gateway. An instance gets requests while none of its checks is critical.
//! Last link of its own small walk: check -> registry -> here -> gateway. Deliberately absent: primaries, and holding but for a start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use discovery::record::CheckStatus;
use discovery::select::{self, Wanted};
use discovery::{Registry, Topic};
use gateway::{Endpoint, Endpoints, HoldPolicy, Readiness, Table};
use model::{InstanceId, ServiceName};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Asked;

/// A name that instances gave as their address is looked up this often.
const LOOK_UP: Duration = Duration::from_secs(10);
/// And that may take so long.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(2);
/// The registry is read this often though nothing seems to have happened.
const LOOK: Duration = Duration::from_secs(10);
/// Instances that the gateway is told of at most.
const MAX_INSTANCES: usize = 10_000;
/// So long requests wait for a node that has just started to read the registry.
const UNREAD: Duration = Duration::from_secs(5);
/// And so many for each service.
const UNREAD_REQUESTS: usize = 1024;
/// An instance with Consul's weight 1.
const WEIGHT: u32 = 100;

/// Names that were looked up: what they came to, and when.
pub(super) type Names = BTreeMap<String, (Option<IpAddr>, Instant)>;

/// Follows the services that routes name until the node ends.
pub async fn run(registry: Arc<Registry>, table: Arc<Table>, mut asked: watch::Receiver<Asked>) {
    let mut following: BTreeMap<ServiceName, JoinHandle<()>> = BTreeMap::new();
    loop {
        let wanted = asked.borrow_and_update().routed.clone();
        following.retain(|name, task| {
            let stays = wanted.contains(name);
            if !stays {
                task.abort();
            }
            stays
        });
        for name in wanted {
            let follow = || tokio::spawn(follow(Arc::clone(&registry), Arc::clone(&table), name.clone()));
            following.entry(name.clone()).or_insert_with(follow);
        }
        if asked.changed().await.is_err() {
            return;
        }
    }
}

/// Until the registry has been read, requests for what routes name wait for that: what is not known yet is not nothing.
/// To be called before the gateway takes connections.
pub fn expect(table: &Table, asked: &Asked) {
    for name in &asked.routed {
        let hold = Some(HoldPolicy { max_wait: UNREAD, max_requests: UNREAD_REQUESTS });
        let endpoints = Endpoints { holding: true, hold, ..Endpoints::default() };
        // It cannot be of an older epoch: it has none.
        let _ = table.service(name).set_endpoints(endpoints);
    }
}

async fn follow(registry: Arc<Registry>, table: Arc<Table>, name: ServiceName) {
    let topic = Topic::Health(name.to_string());
    let mut told = None;
    let mut names = BTreeMap::new();
    loop {
        let (seen, found) = {
            let catalog = registry.read();
            (catalog.index(&topic), instances(&registry, &catalog, name.as_str()))
        };
        let mut endpoints = Vec::with_capacity(found.len());
        for (host, port, endpoint) in found {
            if let Some(ip) = address(&mut names, &host).await {
                endpoints.push(Endpoint { address: SocketAddr::new(ip, port), ..endpoint });
            }
        }
        let endpoints = Endpoints { endpoints, ..Endpoints::default() };
        // What is not known yet is not nothing: a node that has just started keeps requests waiting no longer than that.
        if registry.read().is_known() && told.as_ref() != Some(&endpoints) {
            match table.service(&name).set_endpoints(endpoints.clone()) {
                Ok(()) => told = Some(endpoints),
                Err(error) => tracing::error!(service = %name, %error, "the gateway refused new endpoints"),
            }
        }
        registry.wait(&topic, seen, LOOK).await;
    }
}

fn instances(registry: &Registry, catalog: &discovery::Catalog, name: &str) -> Vec<(String, u16, Endpoint)> {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let found = select::instances(catalog, name, &Wanted::default()).into_iter();
    let endpoint = |instance: select::Instance<'_>| {
        let weights = instance.service.record.weights;
        let (readiness, weight) = match instance.status() {
            CheckStatus::Passing => (Readiness::Ready, weights.passing),
            CheckStatus::Warning => (Readiness::Ready, weights.warning),
            CheckStatus::Critical => (Readiness::NotReady, weights.passing),
        };
        let endpoint = Endpoint {
            id: InstanceId::new(format!("{}/{}", instance.node_name, instance.id)),
            address: nowhere,
            version: None,
            readiness,
            weight: u32::from(weight) * WEIGHT,
            local: instance.node_name == registry.node(),
        };
        (instance.address().to_owned(), instance.service.record.port, endpoint)
    };
    found.take(MAX_INSTANCES).map(endpoint).filter(|(_, port, _)| *port > 0).collect()
}

/// The address of a host; of a name, the first that it has, which is kept for a while.
pub(super) async fn address(names: &mut Names, host: &str) -> Option<IpAddr> {
    if let Ok(ip) = host.parse() {
        return Some(ip);
    }
    if let Some((ip, _)) = names.get(host).filter(|(_, at)| at.elapsed() < LOOK_UP) {
        return *ip;
    }
    let before = names.get(host).and_then(|(ip, _)| *ip);
    let found = match tokio::time::timeout(LOOK_UP_LIMIT, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(mut found)) => found.next().map(|address| address.ip()),
        Ok(Err(_)) | Err(_) => before,
    };
    if names.len() >= MAX_INSTANCES {
        names.clear();
    }
    names.insert(host.to_owned(), (found, Instant::now()));
    found
}
