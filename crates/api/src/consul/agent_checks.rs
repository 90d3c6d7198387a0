//! `/v1/agent/check`: checks of this node, and the word of those who speak up for themselves.

use axum::extract::{Path, State};
use bytes::Bytes;
use discovery::acl::Kind;
use discovery::definition::{self, MAX_OUTPUT, Strict};
use discovery::fields::Fields;
use discovery::key::About;
use discovery::record::{CheckStatus, Owner};
use discovery::writing;
use serde_json::Value;

use super::agent::{refuse_script, shown};
use super::ask::{Ask, narrow};
use super::reply::{Answer, Trouble, done, fresh};
use super::{body_of, refuse_own, refuse_own_check, render};
use crate::Context;

/// The checks of this node.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    let mut found = {
        let catalog = context.discovery.read();
        let node = context.discovery.node();
        let entry = catalog.node(node).map(|(_, entry)| entry);
        let checks = entry.into_iter().flat_map(|entry| &entry.checks);
        let own = checks.filter(|(_, check)| check.record.owner != Owner::Catalog);
        let own = own.filter(|(_, check)| match check.record.service.as_str() {
            "" => ask.sees(Kind::Node, node),
            service => ask.sees(Kind::Service, service),
        });
        let shown = |(id, check): (&String, &discovery::Stored<_>)| {
            (id.clone(), render::check(node, entry, &(id.as_str(), check)))
        };
        Value::Object(own.map(shown).collect())
    };
    narrow(ask.filter()?.as_ref(), &mut found)?;
    Ok(shown(&ask, &found))
}

/// Registers a check of this node, or of an instance on it.
pub async fn register(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    let (id, mut record) = definition::check(&body_of(&body)?, "", Strict::No)?;
    if record.name.is_empty() {
        return Err(Trouble::bad("Missing check name"));
    }
    if record.kind.is_empty() {
        return Err(Trouble::bad(
            "Invalid check: TTL must be > 0 or one of HTTP, TCP, UDP, GRPC, Args, Alias must be set",
        ));
    }
    let id = id.unwrap_or_else(|| record.name.clone());
    refuse_script(&context, &id, &record)?;
    fresh(&context, &ask).await?;
    let op = {
        let catalog = context.discovery.read();
        let node = context.discovery.node();
        refuse_own_check(&catalog, node, &id)?;
        let entry = catalog.node(node).map(|(_, entry)| entry);
        if !record.service_id.is_empty() {
            refuse_own(&catalog, node, &record.service_id)?;
            let of = entry.and_then(|entry| entry.services.get(&record.service_id));
            let Some(of) = of else {
                return Err(Trouble::missing(format!("ServiceID {:?} does not exist", record.service_id)));
            };
            record.service.clone_from(&of.record.service);
        }
        ask.require_change(node, &record.service)?;
        let known = entry.and_then(|entry| entry.checks.get(&id));
        if let Some(known) = known {
            ask.require_change(node, &known.record.service)?;
        }
        writing::check_op(node, &id, &record, known)?
    };
    context.discovery.hear(&id, false);
    context.discovery.change(op.into_iter().collect()).await?;
    Ok(done())
}

/// Takes a check of this node out.
pub async fn deregister(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let node = context.discovery.node();
    {
        let catalog = context.discovery.read();
        let known = catalog.node(node).and_then(|(_, entry)| entry.checks.get(&id));
        let Some(known) = known else { return Err(Trouble::missing(format!("Unknown check ID {id:?}"))) };
        ask.require_change(node, &known.record.service)?;
        refuse_own_check(&catalog, node, &id)?;
    }
    context.discovery.change(vec![writing::delete(&About::Check(node.into(), id))?]).await?;
    Ok(done())
}

/// All is well.
pub async fn pass(context: State<Context>, id: Path<String>, ask: Ask) -> Answer {
    let note = ask.get("note").unwrap_or_default().to_owned();
    heard(&context, &ask, &id, CheckStatus::Passing, note).await
}

/// Something is not.
pub async fn warn(context: State<Context>, id: Path<String>, ask: Ask) -> Answer {
    let note = ask.get("note").unwrap_or_default().to_owned();
    heard(&context, &ask, &id, CheckStatus::Warning, note).await
}

/// It does not serve.
pub async fn fail(context: State<Context>, id: Path<String>, ask: Ask) -> Answer {
    let note = ask.get("note").unwrap_or_default().to_owned();
    heard(&context, &ask, &id, CheckStatus::Critical, note).await
}

/// Any of these, as a body.
pub async fn update(context: State<Context>, id: Path<String>, ask: Ask, body: Bytes) -> Answer {
    let value = body_of(&body)?;
    let mut fields = Fields::of(&value, "")?;
    let (word, output) = (fields.text("status")?, fields.text("output")?);
    let status = CheckStatus::parse(&word).ok_or_else(|| Trouble::bad(format!("Invalid check status: {word:?}")))?;
    heard(&context, &ask, &id, status, output).await
}

async fn heard(context: &Context, ask: &Ask, id: &str, status: CheckStatus, output: String) -> Answer {
    let registry = &context.discovery;
    let known = {
        let catalog = registry.read();
        catalog.node(registry.node()).and_then(|(_, entry)| entry.checks.get(id).cloned())
    };
    let Some(known) = known else {
        return Err(Trouble::missing(format!(
            "Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name."
        )));
    };
    ask.require_change(registry.node(), &known.record.service)?;
    if known.record.kind != "ttl" {
        return Err(Trouble::failed(format!("CheckID {id:?} does not have associated TTL")));
    }
    registry.hear(id, status != CheckStatus::Critical);
    let there = registry.stands(registry.node(), id, status, &definition::cut(output, MAX_OUTPUT)).await?;
    if there { Ok(done()) } else { Err(Trouble::missing(format!("Unknown check ID {id:?}"))) }
}
