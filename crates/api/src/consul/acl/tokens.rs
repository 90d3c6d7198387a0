//! `/v1/acl/token`: what people and programs show. A secret is shown to whoever may write ACLs, and to its holder. The node's own
//! management token and the anonymous one are there without being made.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::Bytes;
use discovery::acl::guard::now_ms;
use discovery::acl::records::{Grants, TokenRecord};
use discovery::acl::state::RESERVED;
use discovery::acl::{ANONYMOUS, ANONYMOUS_SECRET, Access, Acls, GLOBAL_MANAGEMENT, Scalar};
use discovery::fields::Fields;
use discovery::key::{About, AclKind};
use discovery::{Stored, Topic, definition, writing};
use serde_json::{Map, Value, json};

use super::super::ask::Ask;
use super::super::body_of;
use super::super::caller::not_found;
use super::super::reply::{Answer, Trouble, blocking, fresh, json as reply_json, truth};
use super::grants::{self, Written};
use super::{hash_of, is_uuid, require_read, require_write};
use crate::Context;

/// Tokens at most: each is in every node's memory.
pub const MAX_TOKENS: usize = 50_000;
/// How long a token may live if it does not for ever, in milliseconds. Consul's longest; its shortest is a minute.
pub const TTL_MS: (u64, u64) = (1000, 24 * 3600 * 1000);
/// What is shown in place of a secret.
const HIDDEN: &str = "<hidden>";

/// What a request says of a token.
struct Asked {
    accessor: String,
    secret: String,
    description: String,
    local: bool,
    expires_ms: Option<u64>,
    ttl_ms: u64,
    grants: Written,
}

fn read_asked(body: &Bytes) -> Result<Asked, Trouble> {
    let value = if body.is_empty() { json!({}) } else { body_of(body)? };
    let mut fields = Fields::of(&value, "")?;
    for unknown in ["rules", "type", "authmethod"] {
        if fields.get(unknown).is_some_and(|value| value.as_str() != Some("")) {
            return Err(Trouble::bad(format!("{} cannot be specified for this token", fields.path(unknown))));
        }
    }
    let local = fields.flag("local")?;
    let expires = fields.text("expirationtime")?;
    let expires_ms = if expires.is_empty() {
        None
    } else {
        let moment: jiff::Timestamp =
            expires.parse().map_err(|error| Trouble::bad(format!("ExpirationTime: {error}")))?;
        Some(u64::try_from(moment.as_millisecond()).unwrap_or(0))
    };
    Ok(Asked {
        accessor: fields.text("accessorid")?,
        secret: fields.text("secretid")?,
        description: fields.text("description")?,
        local,
        expires_ms,
        ttl_ms: fields.millis("expirationttl")?,
        grants: Written::read(&mut fields, local, true)?,
    })
}

/// Refuses an end that is too near or too far.
pub fn expires(now_ms: u64, at: Option<u64>, ttl_ms: u64) -> Result<Option<u64>, Trouble> {
    if at.is_some() && ttl_ms > 0 {
        return Err(Trouble::bad("Token Expiration TTL and Expiration Time cannot both be set"));
    }
    let Some(at) = at.or((ttl_ms > 0).then(|| now_ms.saturating_add(ttl_ms))) else { return Ok(None) };
    let left = at.saturating_sub(now_ms);
    if left < TTL_MS.0 || left > TTL_MS.1 {
        return Err(Trouble::bad("ExpirationTime must be between 1s and 24h in the future"));
    }
    Ok(Some(at))
}

/// An id that somebody has chosen, or a new one.
fn chosen(context: &Context, acls: &Acls, given: &str, what: &str) -> Result<String, Trouble> {
    if given.is_empty() {
        return Ok(uuid::Uuid::new_v4().to_string());
    }
    if !is_uuid(given) {
        return Err(Trouble::bad(format!("Invalid Token: {what} - not a valid UUID")));
    }
    if given.starts_with(RESERVED) {
        return Err(Trouble::bad(format!("Invalid Token: {what} - UUIDs with the prefix {RESERVED:?} are reserved")));
    }
    let (secret, accessor) = context.discovery.guard().map_or(("", ""), |guard| guard.management());
    if acls.token(given).is_some() || acls.token_of(given).is_some() || [secret, accessor].contains(&given) {
        return Err(Trouble::bad(format!("Invalid Token: {what} is already in use")));
    }
    Ok(given.to_owned())
}

fn put(accessor: &str, record: &TokenRecord) -> Result<data::Op, Trouble> {
    definition::bounded(record, "")?;
    Ok(writing::put(&About::Acl(AclKind::Token, accessor.to_owned()), record)?)
}

/// Keeps a new one.
pub async fn keep(context: &Context, make: impl Fn(&Acls) -> Result<(String, TokenRecord), Trouble>) -> Answer {
    let decide = |acls: &Acls| {
        if acls.tokens().count() >= MAX_TOKENS {
            return Err(Trouble::failed(format!("{MAX_TOKENS} tokens already: delete some")));
        }
        let (accessor, record) = make(acls)?;
        Ok((vec![put(&accessor, &record)?], (accessor, record)))
    };
    let ((accessor, record), revision) = context.discovery.change_acls(decide).await?;
    let stored = Stored { record, create: revision, modify: revision };
    let reading = context.discovery.read();
    Ok(reply_json(&Ask::default(), &shown(reading.acls(), &accessor, &stored, true)))
}

/// Makes one.
pub async fn create(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let asked = read_asked(&body)?;
    keep(&context, |acls| {
        let now_ms = now_ms();
        let accessor = chosen(&context, acls, &asked.accessor, "AccessorID")?;
        let secret = chosen(&context, acls, &asked.secret, "SecretID")?;
        let record = TokenRecord {
            secret,
            description: asked.description.clone(),
            grants: asked.grants.resolved(acls)?,
            local: asked.local,
            auth_method: String::new(),
            created_ms: now_ms,
            expires_ms: expires(now_ms, asked.expires_ms, asked.ttl_ms)?,
        };
        Ok((accessor, record))
    })
    .await
}

/// Makes one that may the same.
pub async fn copy(State(context): State<Context>, Path(id): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let asked = read_asked(&body)?;
    keep(&context, |acls| {
        let from = known(&context, acls, &id)?;
        if !from.record.auth_method.is_empty() {
            return Err(Trouble::bad("Cannot clone a token created from an auth method"));
        }
        let mut record = from.record;
        record.secret = uuid::Uuid::new_v4().to_string();
        record.created_ms = now_ms();
        if !asked.description.is_empty() {
            record.description.clone_from(&asked.description);
        }
        Ok((uuid::Uuid::new_v4().to_string(), record))
    })
    .await
}

/// Changes one. What is not said is taken away, as in Consul.
pub async fn update(State(context): State<Context>, Path(id): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let asked = read_asked(&body)?;
    if !asked.accessor.is_empty() && asked.accessor != id {
        return Err(Trouble::bad("Token Accessor ID in URL and payload do not match"));
    }
    refuse_management(&context, &id)?;
    let decide = |acls: &Acls| {
        let before = known(&context, acls, &id)?;
        if !asked.secret.is_empty() && asked.secret != before.record.secret {
            return Err(Trouble::bad("Changing a token's SecretID is not permitted"));
        }
        if asked.local != before.record.local {
            return Err(Trouble::bad(format!("Cannot toggle local mode of {id}")));
        }
        // A moment is shown in microseconds and kept in milliseconds.
        if asked.ttl_ms > 0 || asked.expires_ms.is_some() && asked.expires_ms != before.record.expires_ms {
            return Err(Trouble::bad(format!("Cannot change expiration time of {id}")));
        }
        let record = TokenRecord {
            description: asked.description.clone(),
            grants: asked.grants.resolved(acls)?,
            ..before.record
        };
        Ok((vec![put(&id, &record)?], (record, before.create)))
    };
    let ((record, create), revision) = context.discovery.change_acls(decide).await?;
    let create = if create == 0 { revision } else { create };
    let stored = Stored { record, create, modify: revision };
    let reading = context.discovery.read();
    Ok(reply_json(&ask, &shown(reading.acls(), &id, &stored, true)))
}

/// Takes one away, at once.
pub async fn remove(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    require_write(&ask)?;
    if id == ANONYMOUS {
        return Err(Trouble::new(StatusCode::FORBIDDEN, "Delete operation not permitted on the anonymous token"));
    }
    refuse_management(&context, &id)?;
    if ask.caller().is_some_and(|caller| caller.identity().accessor == id) {
        let text = "Deletion of the request's authorization token is not permitted";
        return Err(Trouble::new(StatusCode::FORBIDDEN, text));
    }
    let decide = |acls: &Acls| {
        acls.token(&id).ok_or_else(not_there)?;
        Ok::<_, Trouble>((vec![writing::delete(&About::Acl(AclKind::Token, id.clone()))?], ()))
    };
    context.discovery.change_acls(decide).await?;
    Ok(truth(true))
}

fn not_there() -> Trouble {
    Trouble::new(StatusCode::FORBIDDEN, "Requested token does not exist: ACL not found")
}

fn refuse_management(context: &Context, id: &str) -> Result<(), Trouble> {
    if context.discovery.guard().is_none_or(|guard| guard.management().1 != id) {
        return Ok(());
    }
    let text =
        "this is the node's own management token: remove the file `api-token` of its data directory, and start it anew";
    Err(Trouble::new(StatusCode::FORBIDDEN, text))
}

/// The node's own.
fn management(context: &Context) -> Option<(String, Stored<TokenRecord>)> {
    let (secret, accessor) = context.discovery.guard()?.management();
    let record = TokenRecord {
        secret: secret.to_owned(),
        description: "Initial Management Token".into(),
        grants: Grants { policies: vec![GLOBAL_MANAGEMENT.into()], ..Grants::default() },
        ..TokenRecord::default()
    };
    Some((accessor.to_owned(), Stored { record, create: 1, modify: 1 }))
}

fn anonymous() -> Stored<TokenRecord> {
    let record = TokenRecord {
        secret: ANONYMOUS_SECRET.into(),
        description: "Anonymous Token".into(),
        ..TokenRecord::default()
    };
    Stored { record, create: 0, modify: 0 }
}

/// One that is there and whose time is not over.
fn known(context: &Context, acls: &Acls, id: &str) -> Result<Stored<TokenRecord>, Trouble> {
    if !is_uuid(id) {
        return Err(Trouble::bad(format!("an AccessorID is a UUID, not {id:?}")));
    }
    let own = management(context).filter(|(accessor, _)| accessor == id).map(|(_, token)| token);
    let builtin = (id == ANONYMOUS).then(anonymous);
    let found = acls.token(id).cloned().or(own).or(builtin);
    found.filter(|token| !token.record.is_expired(now_ms())).ok_or_else(not_there)
}

fn shown(acls: &Acls, accessor: &str, token: &Stored<TokenRecord>, with_secret: bool) -> Value {
    let record = &token.record;
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("AccessorID", accessor.into());
    put("SecretID", if with_secret { record.secret.as_str() } else { HIDDEN }.into());
    put("Description", record.description.as_str().into());
    put("Local", record.local.into());
    if !record.auth_method.is_empty() {
        put("AuthMethod", record.auth_method.as_str().into());
    }
    let moment = |ms: u64| observe::at_unix_ms(i64::try_from(ms).unwrap_or(i64::MAX));
    put("CreateTime", moment(record.created_ms).into());
    if let Some(expires) = record.expires_ms {
        put("ExpirationTime", moment(expires).into());
    }
    put("Hash", hash_of(&(&record.description, &record.grants, record.local)).into());
    put("CreateIndex", token.create.max(1).into());
    put("ModifyIndex", token.modify.max(1).into());
    grants::show(acls, &record.grants, &mut object);
    Value::Object(object)
}

/// Whether a secret is shown. That of the node's own management token also opens `/api/v1`, so it is shown to its holder alone.
fn sees_secret(context: &Context, ask: &Ask, accessor: &str) -> bool {
    let Some(caller) = ask.caller() else { return false };
    let own = context.discovery.guard().is_some_and(|guard| guard.management().1 == accessor);
    let identity = caller.identity();
    identity.rights.may_in(Scalar::Acl, Access::Write) && (!own || identity.accessor == accessor)
}

/// All of them, or those that are given something.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    let (policy, role) = (ask.get("policy"), ask.get("role"));
    let (method, service) = (ask.get("authmethod"), ask.get("servicename"));
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let (acls, now_ms) = (catalog.acls(), now_ms());
        let mut all: Vec<(String, Stored<TokenRecord>)> = management(&context).into_iter().collect();
        if acls.token(ANONYMOUS).is_none() {
            all.push((ANONYMOUS.to_owned(), anonymous()));
        }
        all.extend(acls.tokens().map(|(accessor, token)| (accessor.to_owned(), token.clone())));
        let fits = |record: &TokenRecord| {
            let has = |list: &[String], wanted: Option<&str>| wanted.is_none_or(|id| list.iter().any(|one| one == id));
            has(&record.grants.policies, policy)
                && has(&record.grants.roles, role)
                && method.is_none_or(|name| record.auth_method == name)
                && service.is_none_or(|name| record.grants.services.iter().any(|one| one.name == name))
                && !record.is_expired(now_ms)
        };
        let shown = |(accessor, token): &(String, Stored<TokenRecord>)| {
            let mut value = shown(acls, accessor, token, sees_secret(&context, &ask, accessor));
            value["Legacy"] = false.into();
            value
        };
        Ok(all.iter().filter(|(_, token)| fits(&token.record)).map(shown).collect())
    })
    .await
}

/// One of them.
pub async fn read(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let token = known(&context, catalog.acls(), &id)?;
        Ok(shown(catalog.acls(), &id, &token, sees_secret(&context, &ask, &id)))
    })
    .await
}

/// The one that is shown with the request. Its holder knows the secret already.
pub async fn own(State(context): State<Context>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let caller = ask.caller().ok_or_else(super::off)?;
    let accessor = caller.identity().accessor.clone();
    let reading = context.discovery.read();
    let token = known(&context, reading.acls(), &accessor).map_err(|_| not_found())?;
    // Whoever has sent none is judged by the node's, and does not learn it.
    Ok(reply_json(&ask, &shown(reading.acls(), &accessor, &token, caller.secret().is_some())))
}
