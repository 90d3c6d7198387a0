//! Cleans up, on the node that leads: keys of sessions that ran out are freed, sessions whose node or check has
//! failed end, tokens whose time is over go.

use std::sync::Arc;
use std::time::Duration;

use data::RaftRole;
use discovery::record::{CheckStatus, SessionRecord};
use discovery::{Catalog, Registry, RegistryError, Topic, select};

/// Between two looks though nothing seems to have happened.
const LOOK: Duration = Duration::from_secs(1);

/// Cleans up until the store is closed.
pub async fn run(registry: Arc<Registry>) {
    loop {
        let seen = registry.read().index(&Topic::Sessions);
        if registry.store().status().role == RaftRole::Leader
            && let Err(error) = clean(&registry).await
        {
            if matches!(error, RegistryError::Store(data::StoreError::Closed)) {
                return;
            }
            tracing::debug!(%error, "what has ended could not be cleaned up after; trying again");
        }
        registry.wait(&Topic::Sessions, seen, LOOK).await;
    }
}

async fn clean(registry: &Registry) -> Result<(), RegistryError> {
    let failed: Vec<(String, SessionRecord)> = {
        let catalog = registry.read();
        let failed = catalog.sessions().filter(|(_, session)| has_failed(&catalog, &session.record));
        failed.map(|(id, session)| (id.to_owned(), session.record.clone())).collect()
    };
    for (id, session) in failed {
        tracing::info!(session = id, node = session.node, "a session ends: a check of its node has failed");
        registry.end_session(&id, &session).await?;
    }
    for id in registry.orphans() {
        registry.free_keys(&id, registry.behavior_of_ended(&id)).await?;
    }
    // They are refused already.
    while registry.remove_expired_tokens().await? > 0 {}
    Ok(())
}

/// Its node is no more, or one of its checks is gone or critical.
fn has_failed(catalog: &Catalog, session: &SessionRecord) -> bool {
    let Some((node, entry)) = catalog.node(&session.node) else { return true };
    let checks = select::node_checks(entry);
    session.checks.iter().any(|wanted| {
        match checks.iter().find(|(id, _)| *id == wanted) {
            Some((_, check)) => check.record.status == CheckStatus::Critical,
            // A machine without a Seawall has nothing that says whether it is alive.
            None => wanted != discovery::ALIVE || node.record.agent,
        }
    })
}
