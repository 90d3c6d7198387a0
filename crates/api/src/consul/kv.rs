//! `/v1/kv`, reading: the users' keys, which `/api/v1/kv` serves as well. The index of an answer is the store's revision
//! when it was read; whoever waits is woken by changes of the keys asked for alone, which the store's own watches tell.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use data::{Consistency, Event, Key, KeyRange, KeyValue, RangeRequest, RangeResult, Revision, USER_KEYS, WatchItem};
use discovery::acl::{Access, Kind};
use discovery::writing::user_key;
use serde_json::{Value, json};

use super::ask::Ask;
use super::caller::Caller;
use super::reply::{Answer, Trouble, json as reply_json, with_headers};
use crate::Context;
use crate::kv::base64;

/// Keys of one answer at most.
const MAX_KEYS: usize = 100_000;
/// Their values together at most, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// All keys: only a listing makes sense.
pub async fn read_all(state: State<Context>, ask: Ask) -> Answer {
    read(state, Path(String::new()), ask).await
}

/// A key, all below it, or their names.
pub async fn read(State(context): State<Context>, Path(key): Path<String>, ask: Ask) -> Answer {
    ask.check(context.discovery.datacenter())?;
    let keys = ask.has("keys");
    let many = ask.has("recurse") || keys;
    if key.is_empty() && !many {
        return Err(Trouble::bad("Missing key name"));
    }
    if !many {
        ask.require(Kind::Key, &key, Access::Read)?;
    }
    let range = range_of(&key, many)?;
    let (mut found, index) = waited(&context, &ask, range, if many { MAX_KEYS } else { 1 }).await?;
    if !many {
        // Its token may have been changed while it waited.
        ask.require(Kind::Key, &key, Access::Read)?;
    }
    found.kvs.retain(|kv| ask.sees(Kind::Key, &name_of(&kv.key)));
    if found.more || found.kvs.iter().map(|kv| kv.value.len()).sum::<usize>() > MAX_BYTES && !keys {
        let text = format!("more than {MAX_KEYS} keys or {MAX_BYTES} bytes: ask for a longer prefix, or for `keys`");
        return Err(Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    if found.kvs.is_empty() {
        return Ok(with_headers(&context, &ask, index, (StatusCode::NOT_FOUND, Body::empty()).into_response()));
    }
    let response = if keys {
        reply_json(&ask, &names(&found.kvs, &key, ask.get("separator").unwrap_or_default()))
    } else if ask.has("raw") {
        raw(&found.kvs)
    } else {
        reply_json(&ask, &found.kvs.iter().map(|kv| shown(&context, kv)).collect())
    };
    Ok(with_headers(&context, &ask, index, response))
}

/// The first one's bytes, never anything that a browser would run.
fn raw(kvs: &[KeyValue]) -> Response {
    let value = kvs.first().map(|kv| kv.value.clone()).unwrap_or_default();
    let fields = [
        (header::CONTENT_TYPE, "text/plain"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "sandbox"),
    ];
    (fields, value).into_response()
}

/// Which keys.
pub fn range_of(key: &str, many: bool) -> Result<KeyRange, Trouble> {
    if many {
        return Ok(KeyRange::prefix(Bytes::from([USER_KEYS.as_bytes(), key.as_bytes()].concat())));
    }
    Ok(KeyRange::key(&user_key(key.as_bytes())?))
}

/// The keys, when there is something newer than what the client has; and the index of that.
async fn waited(context: &Context, ask: &Ask, range: KeyRange, limit: usize) -> Result<(RangeResult, u64), Trouble> {
    let (known, wait) = (ask.index()?, ask.wait()?);
    let request = RangeRequest::new(range.clone()).limit(limit);
    let consistency = if ask.is_stale() { Consistency::Stale } else { Consistency::Linearizable };
    let store = &context.store;
    let now = store.range(request.clone(), consistency).await?;
    let Some(index) = known.filter(|index| *index <= now.revision.0) else {
        let index = now.revision.0;
        return Ok((now, index));
    };
    let rights = ask.limited().map(Caller::identity);
    let seen = |kv: &KeyValue| {
        rights.as_ref().is_none_or(|known| known.rights.may(Kind::Key, &name_of(&kv.key), Access::Read))
    };
    if now.kvs.iter().any(|kv| kv.mod_revision.0 > index && seen(kv)) {
        let index = now.revision.0;
        return Ok((now, index));
    }
    let changed = changes(context, ask, range, index, wait).await?;
    if let Some(caller) = ask.caller() {
        caller.renew(context)?;
    }
    let found = store.range(request, consistency).await?;
    let newer = changed || found.kvs.iter().any(|kv| kv.mod_revision.0 > index && seen(kv));
    let index = if newer { found.revision.0.max(index) } else { index };
    Ok((found, index))
}

/// Waits for a change after `index`. True if there is one, or nobody can say any more.
async fn changes(context: &Context, ask: &Ask, range: KeyRange, index: u64, wait: Duration) -> Result<bool, Trouble> {
    let mut watch = context.store.watch(range, Some(Revision(index + 1)))?;
    let change = async {
        loop {
            match watch.next().await {
                Some(WatchItem::Progress(_)) => {}
                // What is kept from whoever waits does not wake them.
                Some(WatchItem::Events { events, .. }) if !is_seen(ask, &events) => {}
                Some(WatchItem::Events { .. } | WatchItem::Compacted(_) | WatchItem::Lagged) | None => return,
            }
        }
    };
    Ok(tokio::time::timeout(wait, change).await.is_ok())
}

fn is_seen(ask: &Ask, events: &[Event]) -> bool {
    ask.limited().is_none_or(|caller| {
        let rights = &caller.identity().rights;
        events.iter().any(|event| rights.may(Kind::Key, &name_of(event.key()), Access::Read))
    })
}

/// Names only; with a separator, up to the first one after what was asked for.
fn names(kvs: &[KeyValue], prefix: &str, separator: &str) -> Value {
    let mut names = BTreeSet::new();
    for kv in kvs {
        let name = name_of(&kv.key);
        let rest = name.strip_prefix(prefix).filter(|_| !separator.is_empty());
        let end = rest.and_then(|rest| rest.find(separator)).map(|at| prefix.len() + at + separator.len());
        names.insert(end.map_or(name.clone(), |end| name[..end].to_owned()));
    }
    names.into_iter().collect()
}

fn name_of(key: &Key) -> String {
    let bytes = key.as_bytes();
    String::from_utf8_lossy(bytes.strip_prefix(USER_KEYS.as_bytes()).unwrap_or(bytes)).into_owned()
}

/// A key as Consul shows it.
pub fn shown(context: &Context, kv: &KeyValue) -> Value {
    let bytes = kv.key.as_bytes();
    let user = bytes.strip_prefix(USER_KEYS.as_bytes()).unwrap_or(bytes);
    let catalog = context.discovery.read();
    let hanging = catalog.key(user, kv.create_revision.0).map(|found| found.record.clone()).unwrap_or_default();
    let mut value = json!({
        "LockIndex": hanging.lock_index, "Key": name_of(&kv.key), "Flags": hanging.flags,
        "Value": if kv.value.is_empty() { Value::Null } else { base64(&kv.value).into() },
        "CreateIndex": kv.create_revision.0, "ModifyIndex": kv.mod_revision.0,
    });
    // A session that has ended holds nothing, though nobody may have cleaned up yet.
    if let Some(session) = hanging.session.filter(|session| catalog.session(session).is_some()) {
        value["Session"] = session.into();
    }
    value
}
