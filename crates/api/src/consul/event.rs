//! `/v1/event`: words that somebody calls out and others read. They lie in the store, the newest of them, so that every node
//! shows the same.

use axum::extract::{Path, State};
use bytes::Bytes;
use discovery::acl::{Access, Kind};
use discovery::key::About;
use discovery::record::EventRecord;
use discovery::{Topic, writing};

use super::ask::Ask;
use super::render;
use super::reply::{Answer, Trouble, blocking, fresh, json};
use crate::Context;
use crate::kv::base64;

/// Events that are kept, as in Consul.
const KEPT: usize = 256;
/// The bytes of one at most; Consul's practical bound is lower.
const MAX_PAYLOAD: usize = 4096;

/// Fires one.
pub async fn fire(State(context): State<Context>, Path(name): Path<String>, ask: Ask, payload: Bytes) -> Answer {
    ask.require(Kind::Event, &name, Access::Write)?;
    if payload.len() > MAX_PAYLOAD || name.len() > 255 {
        return Err(Trouble::bad(format!("an event has {MAX_PAYLOAD} bytes and a name of 255 at most")));
    }
    fresh(&context, &ask).await?;
    let text = |name: &str| ask.get(name).unwrap_or_default().to_owned();
    let record = EventRecord {
        name,
        payload: (!payload.is_empty()).then(|| base64(&payload)),
        node_filter: text("node"),
        service_filter: text("service"),
        tag_filter: text("tag"),
    };
    let id = uuid::Uuid::new_v4().to_string();
    let mut ops = vec![writing::put(&About::Fired(id.clone()), &record)?];
    let (stored, old) = {
        let catalog = context.discovery.read();
        let mut known: Vec<(u64, &str)> = catalog.events().map(|(id, event)| (event.create, id)).collect();
        known.sort_unstable();
        let old: Vec<String> =
            known.iter().take(known.len().saturating_sub(KEPT - 1)).take(64).map(|(_, id)| (*id).to_owned()).collect();
        (discovery::Stored { record, create: 0, modify: 0 }, old)
    };
    for id in old {
        ops.push(writing::delete(&About::Fired(id))?);
    }
    context.discovery.change(ops).await?;
    Ok(json(&ask, &render::event(&id, &stored)))
}

/// Those that are kept, the oldest first.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    let name = ask.get("name").map(str::to_owned);
    blocking(&context, &ask, Topic::Fired, |catalog| {
        let mut found: Vec<_> =
            catalog.events().filter(|(_, event)| name.as_ref().is_none_or(|name| event.record.name == *name)).collect();
        found.retain(|(_, event)| ask.sees(Kind::Event, &event.record.name));
        found.sort_by_key(|(_, event)| event.create);
        Ok(found.into_iter().map(|(id, event)| render::event(id, event)).collect())
    })
    .await
}
