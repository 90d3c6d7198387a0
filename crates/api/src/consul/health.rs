//! `/v1/health`: instances and how they stand.

use axum::extract::{Path, State};
use discovery::Topic;
use discovery::record::CheckStatus;
use discovery::select::{self, has_meta, nearest_first};
use serde_json::Value;

use super::ask::Ask;
use super::reply::{Answer, Trouble, blocking};
use super::{catalog, render};
use crate::Context;

/// Instances of a service with their checks.
pub async fn service(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    let name = catalog::of_peer(&ask, name);
    let wanted = ask.wanted();
    let near = super::near(&context, &ask);
    blocking(&context, &ask, Topic::Health(name.clone()), |catalog| {
        let mut found = select::instances(catalog, &name, &wanted);
        found.retain(|instance| ask.sees_on(instance.node_name, &instance.service.record.service));
        if let Some(near) = &near {
            nearest_first(&mut found, near, |instance| instance.node_name);
        }
        let datacenter = context.discovery.datacenter();
        let shown = |instance: &select::Instance<'_>| {
            let entry = catalog.node(instance.node_name).map(|(_, entry)| entry);
            render::health(datacenter, instance, entry)
        };
        Ok(found.iter().map(shown).collect())
    })
    .await
}

/// The checks of a machine.
pub async fn node(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    let topic = Topic::NodeChecks(catalog::known_name(&context, &name));
    blocking(&context, &ask, topic, |catalog| {
        let Some((name, (_, entry))) = catalog.find_node(&name).and_then(|name| Some((name, catalog.node(name)?)))
        else {
            return Ok(Value::Array(Vec::new()));
        };
        let seen = |check: &&select::NamedCheck<'_>| ask.sees_on(name, &check.1.record.service);
        let checks = select::node_checks(entry);
        Ok(checks.iter().filter(seen).map(|check| render::check(name, Some(entry), check)).collect())
    })
    .await
}

/// The checks of a service.
pub async fn checks(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    let meta = ask.node_meta();
    let near = super::near(&context, &ask);
    blocking(&context, &ask, Topic::ServiceChecks(name.clone()), |catalog| {
        let mut found = Vec::new();
        for (node_name, id, _, entry) in catalog.instances(&name) {
            let Some(node) = entry.node.as_ref().filter(|node| has_meta(&node.record.meta, &meta)) else { continue };
            let _ = node;
            if !ask.sees_on(node_name, &name) {
                continue;
            }
            found.extend(entry.checks_of(id).map(|check| (node_name, render::check(node_name, Some(entry), &check))));
        }
        if let Some(near) = &near {
            nearest_first(&mut found, near, |(node, _)| node);
        }
        Ok(found.into_iter().map(|(_, check)| check).collect())
    })
    .await
}

/// All checks that stand so.
pub async fn state(State(context): State<Context>, Path(state): Path<String>, ask: Ask) -> Answer {
    let (topic, status) = match state.as_str() {
        "any" => (Topic::Checks, None),
        word => {
            let status = CheckStatus::parse(word)
                .ok_or_else(|| Trouble::bad(format!("`any`, `passing`, `warning` or `critical`, not {word:?}")))?;
            (Topic::State(status), Some(status))
        }
    };
    let meta = ask.node_meta();
    let near = super::near(&context, &ask);
    blocking(&context, &ask, topic, |catalog| {
        let mut found = select::all_checks(catalog, status);
        found.retain(|(_, node, _)| has_meta(&node.meta, &meta));
        found.retain(|(node, _, (_, check))| ask.sees_on(node, &check.record.service));
        if let Some(near) = &near {
            nearest_first(&mut found, near, |(node, ..)| node);
        }
        let shown = |(node, _, check): &(&str, _, select::NamedCheck<'_>)| {
            render::check(node, catalog.node(node).map(|(_, entry)| entry), check)
        };
        Ok(found.iter().map(shown).collect())
    })
    .await
}
