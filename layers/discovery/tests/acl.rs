//! ACLs over a store: names stay unique whoever is asked, identities follow what is written, and what is over goes.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::sync::Arc;

use data::memory::MemoryStore;
use discovery::acl::records::{Grants, PolicyRecord, TokenRecord};
use discovery::acl::{Access, Guard, Kind, Settings};
use discovery::key::{About, AclKind};
use discovery::{Registry, RegistryError, writing};

fn guarded(store: Arc<dyn data::Store>, node: &str) -> Arc<Registry> {
    let settings =
        Settings { allows_by_default: false, management: "root-secret".into(), management_accessor: "root".into() };
    let registry = Arc::new(Registry::new(store, node, "dc1").guarded(Guard::new(settings)));
    tokio::spawn(Arc::clone(&registry).follow());
    registry
}

async fn put(registry: &Registry, kind: AclKind, id: &str, record: &impl serde::Serialize) {
    let about = About::Acl(kind, id.to_owned());
    let decide = |_: &_| Ok::<_, RegistryError>((vec![writing::put(&about, record)?], ()));
    registry.change_acls(decide).await.unwrap();
}

#[tokio::test]
async fn of_many_who_take_the_same_name_at_once_one_gets_it() {
    let store: Arc<dyn data::Store> = MemoryStore::new();
    let nodes = [guarded(Arc::clone(&store), "n1"), guarded(Arc::clone(&store), "n2")];
    let tasks: Vec<_> = (0..20)
        .map(|n: usize| {
            let registry = Arc::clone(&nodes[n % 2]);
            tokio::spawn(async move {
                let decide = |acls: &discovery::acl::Acls| {
                    let taken = acls.policies().any(|(_, policy)| policy.record.name == "team");
                    let record = PolicyRecord { name: "team".into(), ..PolicyRecord::default() };
                    let put = writing::put(&About::Acl(AclKind::Policy, format!("p{n}")), &record)?;
                    Ok::<_, RegistryError>((if taken { Vec::new() } else { vec![put] }, !taken))
                };
                registry.change_acls(decide).await.unwrap().0
            })
        })
        .collect();
    let mut made = 0;
    for task in tasks {
        made += usize::from(task.await.unwrap());
    }
    assert_eq!(made, 1);
    for registry in &nodes {
        registry.catch_up().await.unwrap();
        assert_eq!(registry.read().acls().policies().count(), 1);
    }
}

#[tokio::test]
async fn an_identity_follows_what_is_written_and_what_is_over_goes() {
    let registry = guarded(MemoryStore::new(), "n1");
    let guard = registry.guard().unwrap();
    let may = |secret: &str| {
        guard.identity(&registry, Some(secret)).map(|found| found.rights.may(Kind::Key, "k", Access::Write))
    };
    assert_eq!(may("root-secret"), Some(true), "it needs nothing that is stored");
    let rules = |word: &str| PolicyRecord {
        name: "p".into(),
        rules: format!("key \"k\" {{ policy = \"{word}\" }}"),
        ..PolicyRecord::default()
    };
    let token = |expires_ms| TokenRecord {
        secret: "s".into(),
        grants: Grants { policies: vec!["p".into()], ..Grants::default() },
        expires_ms,
        ..TokenRecord::default()
    };
    put(&registry, AclKind::Policy, "p", &rules("read")).await;
    put(&registry, AclKind::Token, "t", &token(None)).await;
    assert_eq!((may("s"), may("other")), (Some(false), None));
    put(&registry, AclKind::Policy, "p", &rules("write")).await;
    assert_eq!(may("s"), Some(true), "what was kept in mind is not used any more");
    assert_eq!(registry.remove_expired_tokens().await.unwrap(), 0);
    put(&registry, AclKind::Token, "t", &token(Some(1))).await;
    assert_eq!(may("s"), None, "its time is over");
    assert_eq!(registry.remove_expired_tokens().await.unwrap(), 1);
    assert_eq!(registry.read().acls().tokens().count(), 0);
}
