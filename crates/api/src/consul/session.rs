//! `/v1/session`: what locks hang on. A session with a time is a lease of the store; one without lives until it is ended, or
//! until a check of its node fails.

use std::time::Duration;

use axum::extract::{Path, State};
use bytes::Bytes;
use data::{LeaseId, StoreError};
use discovery::acl::{Access, Kind};
use discovery::fields::{FieldError, Fields};
use discovery::key::About;
use discovery::record::{Behavior, CheckStatus, SessionRecord};
use discovery::{ALIVE, Topic, duration, select, writing};
use serde_json::{Value, json};

use super::ask::Ask;
use super::reply::{Answer, Trouble, blocking, fresh, json as reply_json, truth};
use super::{body_of, render};
use crate::Context;

/// Consul's bounds.
const TTL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(86_400));
/// Consul's default and bound, in milliseconds.
const LOCK_DELAY_MS: (u64, u64) = (15_000, 60_000);
/// Sessions at most: each is in every node's memory.
const MAX_SESSIONS: usize = 50_000;

/// Begins one; answers its id.
pub async fn create(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    let value = if body.is_empty() { json!({}) } else { body_of(&body)? };
    let mut fields = Fields::of(&value, "")?;
    super::check_datacenter(&context, &mut fields)?;
    let node = fields.text("node")?;
    let ttl = fields.text("ttl")?;
    let time = match ttl.as_str() {
        "" | "0" | "0s" => None,
        text => {
            let time = duration::parse(text).ok_or_else(|| {
                Trouble::bad(format!("Session TTL {text:?} invalid: a duration like `30s` is expected"))
            })?;
            if time < TTL.0 || time > TTL.1 {
                return Err(Trouble::bad(format!(
                    "Invalid Session TTL '{}', must be between [10s=24h0m0s]",
                    time.as_nanos()
                )));
            }
            Some(time)
        }
    };
    let lock_delay_ms = match fields.get("lockdelay") {
        None => LOCK_DELAY_MS.0,
        // Consul's older clients write a number of seconds.
        Some(Value::Number(number)) if number.as_u64().is_some_and(|seconds| seconds < 1000) => {
            number.as_u64().unwrap_or(0) * 1000
        }
        Some(_) => fields.millis("lockdelay")?,
    };
    let behavior = match fields.text("behavior")?.as_str() {
        "" | "release" => Behavior::Release,
        "delete" => Behavior::Delete,
        other => return Err(Trouble::bad(format!("Invalid Behavior setting '{other}'"))),
    };
    let mut checks = fields.texts("nodechecks")?;
    if checks.is_empty() {
        checks = fields.texts("checks")?;
    }
    if checks.is_empty() && fields.get("checks").is_none() {
        checks.push(ALIVE.to_owned());
    }
    checks.extend(service_checks(&mut fields)?);
    let name = fields.text("name")?;
    if name.len() > 512 || checks.len() > 64 {
        return Err(Trouble::bad("a name of 512 bytes and 64 checks at most"));
    }
    fresh(&context, &ask).await?;
    let node = {
        let catalog = context.discovery.read();
        let wanted = if node.is_empty() { context.discovery.node() } else { &node };
        let known = catalog.find_node(wanted);
        ask.require(Kind::Session, known.unwrap_or(wanted), Access::Write)?;
        let Some(known) = known else {
            return Err(Trouble::failed("Missing node registration".to_owned()));
        };
        let stand = catalog.node(known).map(|(_, entry)| select::node_checks(entry)).unwrap_or_default();
        for wanted in &checks {
            match stand.iter().find(|(id, _)| id == wanted) {
                // A machine without a Seawall has nothing that says whether it is alive.
                None if wanted == ALIVE => {}
                None => return Err(Trouble::failed(format!("Missing check '{wanted}' registration"))),
                Some((_, check)) if check.record.status == CheckStatus::Critical => {
                    return Err(Trouble::failed(format!("Check '{wanted}' is in critical state")));
                }
                Some(_) => {}
            }
        }
        if catalog.sessions().count() >= MAX_SESSIONS {
            return Err(Trouble::failed(format!("{MAX_SESSIONS} sessions already: end some, or give them a TTL")));
        }
        known.to_owned()
    };
    let lease = match time {
        Some(time) => Some(context.store.lease_grant(time).await?.lease),
        None => None,
    };
    let record = SessionRecord {
        name,
        node,
        checks,
        lock_delay_ms: lock_delay_ms.min(LOCK_DELAY_MS.1),
        behavior,
        ttl,
        lease: lease.map(|lease| lease.0),
    };
    let id = uuid::Uuid::new_v4().to_string();
    let op = writing::put_leased(&About::Session(id.clone()), &record, lease)?;
    context.discovery.change(vec![op]).await?;
    Ok(reply_json(&ask, &json!({ "ID": id })))
}

/// Consul writes these as objects, since its larger edition has namespaces.
fn service_checks(fields: &mut Fields<'_>) -> Result<Vec<String>, Trouble> {
    let path = fields.path("servicechecks");
    let Some(written) = fields.get("servicechecks") else { return Ok(Vec::new()) };
    let Some(list) = written.as_array() else {
        return Err(FieldError::new(path, "a list is expected here").into());
    };
    let id = |(index, one): (usize, &Value)| {
        let mut one = Fields::of(one, &format!("{path}[{index}]"))?;
        let id = one.text("id")?;
        if id.is_empty() {
            return Err(FieldError::new(one.path("id"), "a check's id is expected here").into());
        }
        Ok(id)
    };
    list.iter().enumerate().map(id).collect()
}

/// Ends one and frees what it held.
pub async fn destroy(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let known = context.discovery.read().session(&id).map(|found| found.record.clone());
    if let Some(record) = known {
        ask.require(Kind::Session, &record.node, Access::Write)?;
        context.discovery.end_session(&id, &record).await?;
    }
    Ok(truth(true))
}

/// Restarts its time.
pub async fn renew(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let gone = || Trouble::missing(format!("Session id '{id}' not found"));
    let known = context.discovery.read().session(&id).cloned().ok_or_else(gone)?;
    ask.require(Kind::Session, &known.record.node, Access::Write)?;
    if let Some(lease) = known.record.lease {
        match context.store.lease_keep_alive(LeaseId(lease)).await {
            Ok(_) => {}
            Err(StoreError::LeaseNotFound(_)) => return Err(gone()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(reply_json(&ask, &json!([render::session(&id, &known)])))
}

/// One, in a list.
pub async fn info(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Session(id.clone()), |catalog| {
        let found = catalog.session(&id).filter(|found| ask.sees(Kind::Session, &found.record.node));
        Ok(found.map(|found| render::session(&id, found)).into_iter().collect())
    })
    .await
}

/// Those of a machine.
pub async fn of_node(State(context): State<Context>, Path(node): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::NodeSessions(node.clone()), |catalog| {
        let of = catalog.sessions().filter(|(_, found)| found.record.node.eq_ignore_ascii_case(&node));
        let of = of.filter(|(_, found)| ask.sees(Kind::Session, &found.record.node));
        Ok(of.map(|(id, found)| render::session(id, found)).collect())
    })
    .await
}

/// All of them.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Sessions, |catalog| {
        let seen = catalog.sessions().filter(|(_, found)| ask.sees(Kind::Session, &found.record.node));
        Ok(seen.map(|(id, found)| render::session(id, found)).collect())
    })
    .await
}
