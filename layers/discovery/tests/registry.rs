//! The registry over a store: what was acknowledged is shown, what was taken out stays out, and only those who asked about
//! what changed are woken.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use data::memory::MemoryStore;
use discovery::definition::ServiceDefinition;
use discovery::record::{CheckRecord, CheckStatus, NodeRecord, ServiceRecord};
use discovery::select::{self, Wanted};
use discovery::{Registry, Topic, writing};

const SOON: Duration = Duration::from_secs(5);

async fn started() -> Arc<Registry> {
    let registry = Arc::new(Registry::new(MemoryStore::new(), "n1", "local"));
    tokio::spawn(Arc::clone(&registry).follow());
    let node = NodeRecord { address: "10.0.0.1".into(), ..NodeRecord::default() };
    let op = writing::node_op(&registry.read(), "n1", &node).unwrap().unwrap();
    registry.change(vec![op]).await.unwrap();
    registry
}

fn definition(name: &str, id: &str, tags: &[&str]) -> ServiceDefinition {
    let record = ServiceRecord {
        service: name.into(),
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        port: 80,
        ..ServiceRecord::default()
    };
    let check = CheckRecord { name: "c".into(), service_id: id.into(), service: name.into(), ..CheckRecord::default() };
    ServiceDefinition { id: id.into(), record, checks: BTreeMap::from([(format!("service:{id}"), check)]) }
}

async fn register(registry: &Registry, definition: &ServiceDefinition) {
    let ops = writing::register(&registry.read(), "n1", definition, false).unwrap();
    registry.change(ops).await.unwrap();
}

fn passing(registry: &Registry, name: &str) -> usize {
    select::instances(&registry.read(), name, &Wanted { passing: true, ..Wanted::default() }).len()
}

#[tokio::test]
async fn what_is_acknowledged_is_shown_and_what_is_taken_out_stays_out() {
    let registry = started().await;
    register(&registry, &definition("web", "web-1", &["v1"])).await;
    assert_eq!(passing(&registry, "web"), 0, "its check has not passed yet");
    assert!(registry.stands("n1", "service:web-1", CheckStatus::Passing, "fine").await.unwrap());
    assert_eq!(passing(&registry, "web"), 1);
    // Registered again, it keeps how it stands.
    register(&registry, &definition("web", "web-1", &["v2"])).await;
    assert_eq!(passing(&registry, "web"), 1);
    assert_eq!(registry.read().name("web").unwrap().tags.keys().collect::<Vec<_>>(), ["v2"]);
    let ops = writing::deregister(&registry.read(), "n1", "web-1").unwrap();
    registry.change(ops).await.unwrap();
    assert!(registry.read().name("web").is_none());
    // A result that comes late brings nothing back.
    assert!(!registry.stands("n1", "service:web-1", CheckStatus::Passing, "late").await.unwrap());
    assert!(registry.read().node("n1").unwrap().1.checks.is_empty());
}

#[tokio::test]
async fn only_what_was_asked_about_wakes() {
    let registry = started().await;
    register(&registry, &definition("web", "web-1", &[])).await;
    let topics = [
        Topic::Service("web".into()),
        Topic::Health("web".into()),
        Topic::Services,
        Topic::Nodes,
        Topic::ServiceChecks("web".into()),
    ];
    let before: Vec<u64> = topics.iter().map(|topic| registry.read().index(topic)).collect();
    for n in 0..100 {
        register(&registry, &definition("other", &format!("other-{n}"), &[])).await;
    }
    let after: Vec<u64> = topics.iter().map(|topic| registry.read().index(topic)).collect();
    // The list of services has a new one, once.
    assert_eq!((before[0], before[1], before[3], before[4]), (after[0], after[1], after[3], after[4]));
    let waiting = {
        let (registry, index) = (Arc::clone(&registry), after[1]);
        tokio::spawn(async move { registry.wait(&Topic::Health("web".into()), index, SOON).await })
    };
    while registry.waiters() == 0 {
        tokio::task::yield_now().await;
    }
    register(&registry, &definition("other", "other-last", &[])).await;
    assert!(!waiting.is_finished());
    registry.stands("n1", "service:web-1", CheckStatus::Passing, "").await.unwrap();
    assert!(waiting.await.unwrap());
    assert_eq!(registry.waiters(), 0);
}

#[tokio::test]
async fn the_last_instance_leaves_its_index_behind() {
    let registry = started().await;
    register(&registry, &definition("web", "web-1", &[])).await;
    let topic = Topic::Health("web".into());
    let there = registry.read().index(&topic);
    let ops = writing::deregister(&registry.read(), "n1", "web-1").unwrap();
    registry.change(ops).await.unwrap();
    let gone = registry.read().index(&topic);
    assert!(gone > there, "{gone} after {there}");
    // Another node that reads everything anew is not behind.
    let other = Arc::new(Registry::new(Arc::clone(registry.store()), "n2", "local"));
    tokio::spawn(Arc::clone(&other).follow());
    other.catch_up().await.unwrap();
    assert!(other.read().index(&topic) >= gone);
}
