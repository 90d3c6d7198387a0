//! `/v1/acl/policy`: rules under a name. A mistake in them is refused with its place. The two builtin ones are there without
//! being made, and are not changed.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use bytes::Bytes;
use discovery::acl::bind::BUILTIN;
use discovery::acl::records::PolicyRecord;
use discovery::acl::state::{MANAGEMENT_RULES, READ_ONLY_RULES};
use discovery::acl::{Acls, GLOBAL_MANAGEMENT, Rules};
use discovery::fields::Fields;
use discovery::key::{About, AclKind};
use discovery::{Stored, Topic, definition, writing};
use serde_json::{Value, json};

use super::super::ask::Ask;
use super::super::body_of;
use super::super::reply::{Answer, Trouble, blocking, json as reply_json, truth};
use super::{hash_of, is_name, is_uuid, require_read, require_write};
use crate::Context;

/// Policies at most.
const MAX_POLICIES: usize = 10_000;

fn builtin(id: &str) -> Option<Stored<PolicyRecord>> {
    let (id, name) = BUILTIN.iter().find(|(known, _)| *known == id)?;
    let (rules, description) = if *id == GLOBAL_MANAGEMENT {
        (MANAGEMENT_RULES, "A policy that grants unlimited access")
    } else {
        (READ_ONLY_RULES, "A policy that grants unlimited read-only access to all components")
    };
    let (name, rules, description) = ((*name).to_owned(), rules.to_owned(), description.to_owned());
    Some(Stored { record: PolicyRecord { name, description, rules, datacenters: Vec::new() }, create: 1, modify: 1 })
}

fn read_policy(body: &Bytes) -> Result<(String, PolicyRecord), Trouble> {
    let value = body_of(body)?;
    let mut fields = Fields::of(&value, "")?;
    let id = fields.text("id")?;
    let record = PolicyRecord {
        name: fields.text("name")?,
        description: fields.text("description")?,
        rules: fields.text("rules")?,
        datacenters: fields.texts("datacenters")?,
    };
    if !is_name(&record.name, 128) {
        let text = "Invalid Policy: invalid Name. Only alphanumeric characters, '-' and '_' are allowed, 128 at most";
        return Err(Trouble::bad(text));
    }
    Rules::parse(&record.rules).map_err(|error| Trouble::bad(format!("Failed to parse ACL rules: {error}")))?;
    Ok((id, record))
}

/// Refuses a name that another one has.
fn unique(acls: &Acls, id: &str, name: &str) -> Result<(), Trouble> {
    let same = acls.policies().any(|(known, policy)| known != id && policy.record.name == name);
    if same || BUILTIN.iter().any(|(_, known)| *known == name) {
        return Err(Trouble::bad(format!("Invalid Policy: A Policy with Name {name:?} already exists")));
    }
    Ok(())
}

async fn keep(context: &Context, ask: &Ask, id: &str, record: PolicyRecord, must_exist: bool) -> Answer {
    definition::bounded(&record, "")?;
    let decide = |acls: &Acls| {
        unique(acls, id, &record.name)?;
        let before = acls.policy(id).map(|known| known.create);
        match before {
            None if must_exist => return Err(not_there()),
            None if acls.policies().count() >= MAX_POLICIES => {
                return Err(Trouble::failed(format!("{MAX_POLICIES} policies already: delete some")));
            }
            _ => {}
        }
        Ok((vec![writing::put(&About::Acl(AclKind::Policy, id.to_owned()), &record)?], before))
    };
    let (before, revision) = context.discovery.change_acls(decide).await?;
    let stored = Stored { record, create: before.unwrap_or(revision), modify: revision };
    Ok(reply_json(ask, &shown(id, &stored, true)))
}

fn not_there() -> Trouble {
    Trouble::missing("Requested policy does not exist: ACL not found")
}

fn refuse_builtin(id: &str) -> Result<(), Trouble> {
    match BUILTIN.iter().find(|(known, _)| *known == id) {
        Some((_, name)) => {
            let text = format!("Changing the builtin {name} policy is not permitted");
            Err(Trouble::new(StatusCode::FORBIDDEN, text))
        }
        None => Ok(()),
    }
}

/// Makes one.
pub async fn create(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let (id, record) = read_policy(&body)?;
    if !id.is_empty() {
        return Err(Trouble::bad("Cannot specify the ID when creating a new policy"));
    }
    keep(&context, &ask, &uuid::Uuid::new_v4().to_string(), record, false).await
}

/// Puts another in its place.
pub async fn update(State(context): State<Context>, Path(id): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    refuse_builtin(&id)?;
    let (given, record) = read_policy(&body)?;
    if !given.is_empty() && given != id {
        return Err(Trouble::bad("Policy ID in URL and payload do not match"));
    }
    keep(&context, &ask, &id, record, true).await
}

/// Takes one away: whoever was given it has it no more.
pub async fn remove(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    require_write(&ask)?;
    refuse_builtin(&id)?;
    let decide = |acls: &Acls| {
        acls.policy(&id).ok_or_else(not_there)?;
        Ok::<_, Trouble>((vec![writing::delete(&About::Acl(AclKind::Policy, id.clone()))?], ()))
    };
    context.discovery.change_acls(decide).await?;
    Ok(truth(true))
}

fn shown(id: &str, policy: &Stored<PolicyRecord>, with_rules: bool) -> Value {
    let record = &policy.record;
    let mut value = json!({
        "ID": id, "Name": record.name, "Description": record.description, "Hash": hash_of(record),
        "CreateIndex": policy.create, "ModifyIndex": policy.modify,
    });
    if with_rules {
        value["Rules"] = record.rules.as_str().into();
    }
    if !record.datacenters.is_empty() {
        value["Datacenters"] = json!(record.datacenters);
    }
    value
}

/// All of them, without their rules.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let builtin = BUILTIN.iter().filter_map(|(id, _)| Some(shown(id, &builtin(id)?, false)));
        Ok(builtin.chain(catalog.acls().policies().map(|(id, policy)| shown(id, policy, false))).collect())
    })
    .await
}

/// One of them.
pub async fn read(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        if !is_uuid(&id) {
            return Err(Trouble::bad(format!("the ID of a policy is a UUID, not {id:?}")));
        }
        let found = builtin(&id).or_else(|| catalog.acls().policy(&id).cloned()).ok_or_else(not_there)?;
        Ok(shown(&id, &found, true))
    })
    .await
}

/// One of them by its name.
pub async fn by_name(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let own =
            BUILTIN.iter().find(|(_, known)| *known == name).and_then(|(id, _)| Some(shown(id, &builtin(id)?, true)));
        let mut all = catalog.acls().policies();
        let found = all.find(|(_, policy)| policy.record.name == name).map(|(id, policy)| shown(id, policy, true));
        own.or(found).ok_or_else(not_there)
    })
    .await
}
