//! `/v1/txn`: several operations on keys, machines, instances and checks, all or none. Each is judged in order against what is there; what they come to is
//! one transaction of the store, under the condition that nothing of it has changed meanwhile.
//! Deliberately absent: how machines, instances and checks are judged (`txn_catalog.rs`).

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use data::{Consistency, KeyRange, KeyValue, LeaseId, MAX_VALUE_BYTES, Op, RangeRequest, Revision};
use discovery::Written;
use discovery::acl::{Access, Kind};
use discovery::fields::Fields;
use discovery::key::About;
use discovery::locks::{Change, Entry};
use discovery::record::KeyRecord;
use discovery::writing::{self, user_key};
use serde_json::{Value, json};

use super::ask::Ask;
use super::body_of;
use super::kv::range_of;
use super::kv_write::{lease_of, ops_of, require_tree};
use super::reply::{Answer, Trouble, fresh, json as reply_json, with_headers};
use super::txn_catalog::{self, Working};
use crate::Context;

/// Operations at most; Consul's bound.
const MAX_OPS: usize = 64;
/// Keys that a transaction touches at most, those of trees among them: the store's transactions have a bound.
const MAX_KEYS: usize = 30;
/// Changes of one transaction of the store, with room for what is added to it.
const MAX_WRITES: usize = 100;
/// Against others who change the same keys.
const ATTEMPTS: usize = 16;

enum Operation {
    Key(OnKey),
    Catalog(Box<txn_catalog::Operation>),
}

/// What an operation shows.
enum Shown {
    /// A key, with its value or without.
    Key(String, bool),
    Catalog(Value),
}

struct OnKey {
    verb: String,
    key: String,
    value: Bytes,
    flags: u64,
    index: u64,
    session: String,
}

/// A key as the operations so far have left it.
#[derive(Clone, Debug)]
struct Now {
    read: Entry,
    there: Option<(Bytes, KeyRecord, Option<LeaseId>)>,
    changed: bool,
}

/// Runs one.
pub async fn run(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    ask.check(context.discovery.datacenter())?;
    let value = body_of(&body)?;
    let Some(list) = value.as_array() else { return Err(Trouble::bad("a list of operations is expected")) };
    if list.len() > MAX_OPS {
        return Err(Trouble::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Transaction contains too many operations ({} > {MAX_OPS})", list.len()),
        ));
    }
    let operations = list.iter().enumerate().map(|(at, one)| operation(at, one)).collect::<Result<Vec<_>, _>>()?;
    fresh(&context, &ask).await?;
    for _ in 0..ATTEMPTS {
        let mut keys = read(&context, &operations).await?;
        let (mut results, mut errors) = (Vec::new(), Vec::new());
        let mut working = Working::default();
        for (at, one) in operations.iter().enumerate() {
            let judged = match one {
                Operation::Key(one) => require(&ask, one)
                    .map_err(|refused| refused.text().to_owned())
                    .and_then(|()| judge(&context, one, &mut keys))
                    .map(|shown| shown_keys(&ask, shown)),
                Operation::Catalog(one) => working
                    .judge(&context.discovery.read(), context.discovery.datacenter(), &ask, one)
                    .map(|shown| shown.map(Shown::Catalog).into_iter().collect()),
            };
            match judged {
                Ok(shown) => results.extend(shown),
                Err(what) => errors.push(json!({ "OpIndex": at, "What": what })),
            }
        }
        if !errors.is_empty() {
            let answer = reply_json(&ask, &json!({ "Results": null, "Errors": errors }));
            return Ok((StatusCode::CONFLICT, answer).into_response());
        }
        let (mut compares, mut ops) = (working.compares, working.ops);
        for (key, now) in &keys {
            compares.extend(now.read.unchanged(key.as_bytes())?);
            if !now.changed {
                continue;
            }
            match &now.there {
                Some((value, record, lease)) => {
                    let change = Change { value: value.clone(), record: record.clone(), lease: *lease };
                    ops.extend(ops_of(key.as_bytes(), &change)?);
                }
                None => {
                    ops.push(Op::Delete { range: KeyRange::key(&user_key(key.as_bytes())?) });
                    ops.push(writing::delete(&About::Kv(key.as_bytes().to_vec()))?);
                }
            }
        }
        if ops.is_empty() && operations.len() == 1 {
            // One read is one moment by itself.
            return Ok(answer(&context, &ask, &results, 0, &keys));
        }
        if ops.len() > MAX_WRITES {
            let text = format!("the operations come to {} changes; {MAX_WRITES} in one transaction at most", ops.len());
            return Err(Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        if let Written::At(revision) = context.discovery.write(compares, ops).await? {
            return Ok(answer(&context, &ask, &results, revision, &keys));
        }
        // Somebody was faster, which this node is about to see.
        context.discovery.catch_up().await?;
    }
    Err(discovery::RegistryError::Busy.into())
}

/// Refuses who may not do this to a key. What a tree shows is left out instead.
fn require(ask: &Ask, one: &OnKey) -> Result<(), Trouble> {
    match one.verb.as_str() {
        "get-tree" => Ok(()),
        "delete-tree" => require_tree(ask, &one.key),
        verb if verb.starts_with("get") || verb.starts_with("check") => ask.require(Kind::Key, &one.key, Access::Read),
        _ => ask.require(Kind::Key, &one.key, Access::Write),
    }
}

fn shown_keys(ask: &Ask, shown: Vec<(String, bool)>) -> Vec<Shown> {
    // Whoever has written a key may read it.
    let seen = shown.into_iter().filter(|(key, _)| ask.sees(Kind::Key, key));
    seen.map(|(key, whole)| Shown::Key(key, whole)).collect()
}

fn operation(at: usize, value: &Value) -> Result<Operation, Trouble> {
    let mut fields = Fields::of(value, &format!("[{at}]"))?;
    if let Some(operation) = txn_catalog::Operation::read(&mut fields, &format!("[{at}]"))? {
        return Ok(Operation::Catalog(Box::new(operation)));
    }
    let Some(kv) = fields.get("kv") else {
        return Err(Trouble::bad(format!("[{at}]: one of `KV`, `Node`, `Service` and `Check` is expected")));
    };
    let mut kv = Fields::of(kv, &format!("[{at}].KV"))?;
    let text = kv.text("value")?;
    let value = STANDARD.decode(&text).map_err(|_| Trouble::bad(format!("[{at}].KV.Value: base64 is expected")))?;
    if value.len() > MAX_VALUE_BYTES {
        return Err(Trouble::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("Value for key is too large ({} > {MAX_VALUE_BYTES} bytes)", value.len()),
        ));
    }
    let operation = OnKey {
        verb: kv.text("verb")?,
        key: kv.text("key")?,
        value: value.into(),
        flags: kv.number("flags", u64::MAX)?.unwrap_or(0),
        index: kv.number("index", u64::MAX)?.unwrap_or(0),
        session: kv.text("session")?,
    };
    const VERBS: [&str; 14] = [
        "set",
        "cas",
        "lock",
        "unlock",
        "get",
        "get-or-empty",
        "get-tree",
        "check-index",
        "check-session",
        "check-not-exists",
        "delete",
        "delete-tree",
        "delete-cas",
        "check-exists",
    ];
    if !VERBS.contains(&operation.verb.as_str()) {
        return Err(Trouble::bad(format!("[{at}].KV.Verb: {:?} is none", operation.verb)));
    }
    Ok(Operation::Key(operation))
}

async fn read(context: &Context, operations: &[Operation]) -> Result<BTreeMap<String, Now>, Trouble> {
    let mut names: Vec<String> = Vec::new();
    for one in operations {
        let Operation::Key(one) = one else { continue };
        if one.verb.ends_with("-tree") {
            let request = RangeRequest::new(range_of(&one.key, true)?).limit(MAX_KEYS);
            let found = context.store.range(request, Consistency::Linearizable).await?;
            let shown =
                |kv: &KeyValue| kv.key.as_str().and_then(|key| key.strip_prefix(data::USER_KEYS)).map(str::to_owned);
            names.extend(found.kvs.iter().filter_map(shown));
            if found.more {
                return Err(Trouble::bad(format!(
                    "{:?} has more than {MAX_KEYS} keys, which is too many for a transaction",
                    one.key
                )));
            }
        } else {
            names.push(one.key.clone());
        }
    }
    names.sort_unstable();
    names.dedup();
    if names.len() > MAX_KEYS {
        return Err(Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{MAX_KEYS} keys in one transaction at most")));
    }
    let mut keys = BTreeMap::new();
    for name in names {
        let read = context.discovery.entry(name.as_bytes()).await?;
        let there = read.kv.as_ref().map(|kv| {
            let record = read.record.as_ref().map(|known| known.record.clone()).unwrap_or_default();
            let catalog = context.discovery.read();
            let lease =
                record.session.as_ref().and_then(|id| catalog.session(id)).and_then(|one| lease_of(&one.record));
            (kv.value.clone(), record, lease)
        });
        keys.insert(name, Now { read, there, changed: false });
    }
    Ok(keys)
}

/// What an operation shows, or why it fails.
fn judge(context: &Context, one: &OnKey, keys: &mut BTreeMap<String, Now>) -> Result<Vec<(String, bool)>, String> {
    let key = &one.key;
    if one.verb.ends_with("-tree") {
        let below: Vec<String> = keys.keys().filter(|known| known.starts_with(key.as_str())).cloned().collect();
        if one.verb == "get-tree" {
            let there = below.into_iter().filter(|key| keys[key].there.is_some());
            return Ok(there.map(|key| (key, true)).collect());
        }
        for name in below {
            if let Some(now) = keys.get_mut(&name) {
                (now.there, now.changed) = (None, true);
            }
        }
        return Ok(Vec::new());
    }
    let Some(now) = keys.get_mut(key) else { return Err(format!("key {key:?} was not read")) };
    // What was changed before in the same transaction has no index yet.
    let index = if now.changed { u64::MAX } else { now.read.kv.as_ref().map_or(0, |kv| kv.mod_revision.0) };
    let before = now.there.clone();
    let held = before.as_ref().and_then(|(_, record, _)| record.session.clone());
    let mut put = |record: KeyRecord, lease| {
        (now.there, now.changed) = (Some((one.value.clone(), record, lease)), true);
        Ok(vec![(key.clone(), false)])
    };
    let (record, lease) = before.as_ref().map(|(_, record, lease)| (record.clone(), *lease)).unwrap_or_default();
    let record = KeyRecord { flags: one.flags, ..record };
    match one.verb.as_str() {
        "set" => put(record, lease),
        "cas" if index == one.index => put(record, lease),
        "cas" => Err(format!("failed to set key {key:?}, index is stale")),
        "lock" => {
            let catalog = context.discovery.read();
            let Some(session) = catalog.session(&one.session) else {
                return Err(format!("failed to lock key {key:?}: invalid session {:?}", one.session));
            };
            let lock_index = match &held {
                Some(holder) if *holder == one.session => record.lock_index,
                Some(holder) if catalog.session(holder).is_some() => {
                    return Err(format!("failed to lock key {key:?}, lock is already held"));
                }
                _ if context.discovery.is_delayed(key.as_bytes()) => {
                    return Err(format!("failed to lock key {key:?}, lock delay in effect"));
                }
                _ => record.lock_index + 1,
            };
            let lease = lease_of(&session.record);
            put(KeyRecord { lock_index, session: Some(one.session.clone()), ..record }, lease)
        }
        "unlock" if held.as_ref() == Some(&one.session) => put(KeyRecord { session: None, ..record }, None),
        "unlock" => Err(format!("failed to unlock key {key:?}, lock isn't held, or is held by another session")),
        "get" if before.is_some() => Ok(vec![(key.clone(), true)]),
        "get" => Err(format!("key {key:?} doesn't exist")),
        "get-or-empty" => Ok(vec![(key.clone(), true)]),
        "check-index" if before.is_some() && index == one.index => Ok(vec![(key.clone(), false)]),
        "check-index" => {
            Err(format!("failed index check for key {key:?}, current modify index {index} != {}", one.index))
        }
        "check-session" if held.as_ref() == Some(&one.session) => Ok(vec![(key.clone(), false)]),
        "check-session" => Err(format!(
            "failed session check for key {key:?}, current session {:?} != {:?}",
            held.unwrap_or_default(),
            one.session
        )),
        "check-not-exists" if before.is_none() => Ok(Vec::new()),
        "check-not-exists" => Err(format!("key {key:?} exists")),
        "check-exists" if before.is_some() => Ok(Vec::new()),
        "check-exists" => Err(format!("key {key:?} doesn't exist")),
        "delete-cas" if index != one.index => Err(format!("failed to delete key {key:?}, index is stale")),
        _ => {
            (now.there, now.changed) = (None, true);
            Ok(Vec::new())
        }
    }
}

fn answer(
    context: &Context,
    ask: &Ask,
    results: &[Shown],
    revision: u64,
    keys: &BTreeMap<String, Now>,
) -> axum::response::Response {
    let one = |shown: &Shown| {
        let (key, with_value) = match shown {
            Shown::Catalog(value) => return Some(txn_catalog::committed(value.clone(), revision)),
            Shown::Key(key, with_value) => (key, with_value),
        };
        let now = keys.get(key)?;
        let name = user_key(key.as_bytes()).ok()?;
        let Some((value, record, _)) = &now.there else { return Some(json!({ "KV": { "Key": key, "Value": null } })) };
        let read = now.read.kv.as_ref();
        let at =
            |before: Option<Revision>| if now.changed { Revision(revision) } else { before.unwrap_or(Revision(0)) };
        let kv = KeyValue {
            key: name,
            value: value.clone(),
            create_revision: read.map_or(Revision(revision), |kv| kv.create_revision),
            mod_revision: at(read.map(|kv| kv.mod_revision)),
            version: 0,
            lease: None,
        };
        let mut value = super::kv::shown(context, &kv);
        (value["Flags"], value["LockIndex"]) = (record.flags.into(), record.lock_index.into());
        match &record.session {
            Some(session) => value["Session"] = session.clone().into(),
            None => drop(value.as_object_mut().and_then(|object| object.remove("Session"))),
        }
        if !with_value {
            value["Value"] = Value::Null;
        }
        Some(json!({ "KV": value }))
    };
    let results: Vec<Value> = results.iter().filter_map(one).collect();
    let value = json!({ "Results": results, "Errors": null });
    with_headers(context, ask, revision.max(1), reply_json(ask, &value))
}
