//! `/v1/kv`, writing: plain, compared, locked. What hangs on a key (flags, who holds it) is written in the same transaction.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::Bytes;
use data::{Compare, KeyRange, LeaseId, MAX_VALUE_BYTES, Op};
use discovery::acl::{Access, Kind};
use discovery::locks::{Change, Entry, change_ops};
use discovery::record::{Behavior, KeyRecord, SessionRecord};
use discovery::writing::user_key;
use discovery::{Written, key::About};
use model::Revision;

use super::ask::Ask;
use super::kv::range_of;
use super::reply::{Answer, Trouble, truth};
use crate::Context;

/// PUT. Answers whether it was written.
pub async fn write(State(context): State<Context>, Path(key): Path<String>, ask: Ask, value: Bytes) -> Answer {
    ask.check(context.discovery.datacenter())?;
    ask.require(Kind::Key, &key, Access::Write)?;
    if value.len() > MAX_VALUE_BYTES {
        let text = format!(
            "Request body({} bytes) too large, max size: {MAX_VALUE_BYTES} bytes. See https://developer.hashicorp.com/docs/agent/config/config-files#kv_max_value_size.",
            value.len()
        );
        return Err(Trouble::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let flags = ask.number("flags")?.unwrap_or(0);
    let ways = ["cas", "acquire", "release"].into_iter().filter(|way| ask.has(way)).count();
    if ways > 1 {
        return Err(Trouble::bad("Conflicting flags: one of cas, acquire and release"));
    }
    let bytes = key.as_bytes();
    if let Some(session) = ask.get("acquire") {
        return acquire(&context, bytes, session, flags, &value).await;
    }
    if let Some(session) = ask.get("release") {
        let decide = |entry: &Entry| {
            (entry.holder() == Some(session)).then(|| {
                let record = KeyRecord { flags, session: None, ..hanging(entry) };
                Change { value: value.clone(), record, lease: None }
            })
        };
        return Ok(truth(context.discovery.change_key(bytes, None, decide).await?));
    }
    let cas = ask.number("cas")?;
    if cas.is_none() && plain(&context, bytes, flags, &value).await? {
        return Ok(truth(true));
    }
    let decide = |entry: &Entry| {
        let now = entry.kv.as_ref().map_or(0, |kv| kv.mod_revision.0);
        let record = KeyRecord { flags, ..hanging(entry) };
        let lease = kept_lease(&context, entry);
        cas.is_none_or(|cas| cas == now).then(|| Change { value: value.clone(), record, lease })
    };
    Ok(truth(context.discovery.change_key(bytes, None, decide).await?))
}

/// The short way of a write without conditions, for keys that nothing hangs on. False if something does.
async fn plain(context: &Context, key: &[u8], flags: u64, value: &Bytes) -> Result<bool, Trouble> {
    if flags != 0 || context.discovery.read().keys().any(|(known, _)| known == key) {
        return Ok(false);
    }
    let nothing = Compare::absent(About::Kv(key.to_vec()).key()?);
    let txn = data::Txn::put(user_key(key)?, value.clone()).when(nothing);
    match context.store.txn(txn).await? {
        data::TxnOutcome::Committed { .. } => Ok(true),
        data::TxnOutcome::Rejected { .. } => Ok(false),
        data::TxnOutcome::Unknown => Err(discovery::RegistryError::Unknown.into()),
    }
}

fn hanging(entry: &Entry) -> KeyRecord {
    entry.record.as_ref().map(|known| known.record.clone()).unwrap_or_default()
}

/// A key that goes with its session still does after a plain write.
fn kept_lease(context: &Context, entry: &Entry) -> Option<LeaseId> {
    let session = entry.holder()?;
    let catalog = context.discovery.read();
    catalog.session(session).and_then(|found| lease_of(&found.record))
}

/// The lease that keys of a session go with.
pub fn lease_of(session: &SessionRecord) -> Option<LeaseId> {
    session.lease.filter(|_| session.behavior == Behavior::Delete).map(LeaseId)
}

async fn acquire(context: &Context, key: &[u8], session: &str, flags: u64, value: &Bytes) -> Answer {
    let registry = &context.discovery;
    let invalid = || Trouble::failed(format!("rpc error making call: invalid session {session:?}"));
    registry.catch_up().await?;
    let known = registry.read().session(session).map(|found| found.record.clone()).ok_or_else(invalid)?;
    let decide = |entry: &Entry| {
        let before = hanging(entry);
        let lock_index = match entry.holder() {
            Some(holder) if holder == session => before.lock_index,
            // A session that has ended holds nothing.
            Some(holder) if registry.read().session(holder).is_some() => return None,
            _ if registry.is_delayed(key) => return None,
            _ => before.lock_index + 1,
        };
        let record = KeyRecord { flags, lock_index, session: Some(session.to_owned()) };
        Some(Change { value: value.clone(), record, lease: lease_of(&known) })
    };
    match registry.change_key(key, Some(session), decide).await {
        Ok(done) => Ok(truth(done)),
        Err(
            discovery::RegistryError::NoSession(_)
            | discovery::RegistryError::Store(data::StoreError::LeaseNotFound(_)),
        ) => Err(invalid()),
        Err(error) => Err(error.into()),
    }
}

/// DELETE without a key: of all, which must be asked for.
pub async fn remove_all(state: State<Context>, ask: Ask) -> Answer {
    remove(state, Path(String::new()), ask).await
}

/// DELETE: a key, or all that begin so.
pub async fn remove(State(context): State<Context>, Path(key): Path<String>, ask: Ask) -> Answer {
    ask.check(context.discovery.datacenter())?;
    let (recurse, cas) = (ask.has("recurse"), ask.number("cas")?);
    if key.is_empty() && !recurse {
        return Err(Trouble::bad("Missing key name"));
    }
    if recurse {
        require_tree(&ask, &key)?;
    } else {
        ask.require(Kind::Key, &key, Access::Write)?;
    }
    if recurse && cas.is_some() {
        return Err(Trouble::bad("Conflicting flags: cas and recurse"));
    }
    let hanging = if recurse {
        KeyRange::prefix([b"registry/kv/", key.as_bytes()].concat())
    } else {
        KeyRange::key(&About::Kv(key.as_bytes().to_vec()).key()?)
    };
    let ops = vec![Op::Delete { range: range_of(&key, recurse)? }, Op::Delete { range: hanging }];
    let compares = match cas {
        None => Vec::new(),
        // Consul: a key that is not there fits index 0.
        Some(index) => vec![Compare::mod_revision(user_key(key.as_bytes())?, Revision(index))],
    };
    let written = context.discovery.write(compares, ops).await?;
    Ok(truth(written != Written::Refused))
}

/// Refuses who may not write every key that begins so.
pub fn require_tree(ask: &Ask, prefix: &str) -> Result<(), Trouble> {
    match ask.limited() {
        Some(caller) if !caller.identity().rights.may_write_tree(prefix) => {
            Err(caller.denied(Kind::Key.word(), Access::Write, Some(prefix)))
        }
        _ => Ok(()),
    }
}

/// Operations of a change in a transaction of several.
pub fn ops_of(key: &[u8], change: &Change) -> Result<Vec<Op>, Trouble> {
    Ok(change_ops(key, change)?)
}
