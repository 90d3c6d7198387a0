//! `/v1/acl/role`: what several tokens are given together.

use axum::extract::{Path, State};
use bytes::Bytes;
use discovery::acl::Acls;
use discovery::acl::records::RoleRecord;
use discovery::fields::Fields;
use discovery::key::{About, AclKind};
use discovery::{Stored, Topic, definition, writing};
use serde_json::{Value, json};

use super::super::ask::Ask;
use super::super::body_of;
use super::super::reply::{Answer, Trouble, blocking, json as reply_json, truth};
use super::grants::{self, Written};
use super::{hash_of, is_name, is_uuid, require_read, require_write};
use crate::Context;

/// Roles at most.
const MAX_ROLES: usize = 10_000;

struct Asked {
    id: String,
    name: String,
    description: String,
    grants: Written,
}

fn read_role(body: &Bytes) -> Result<Asked, Trouble> {
    let value = body_of(body)?;
    let mut fields = Fields::of(&value, "")?;
    let (id, name) = (fields.text("id")?, fields.text("name")?);
    if !is_name(&name, 256) {
        let text = "Invalid Role: invalid Name. Only alphanumeric characters, '-' and '_' are allowed, 256 at most";
        return Err(Trouble::bad(text));
    }
    let description = fields.text("description")?;
    Ok(Asked { id, name, description, grants: Written::read(&mut fields, false, false)? })
}

async fn keep(context: &Context, ask: &Ask, id: &str, asked: Asked, must_exist: bool) -> Answer {
    let decide = |acls: &Acls| {
        if acls.roles().any(|(known, role)| known != id && role.record.name == asked.name) {
            return Err(Trouble::bad(format!("Invalid Role: A Role with Name {:?} already exists", asked.name)));
        }
        let before = acls.role(id).map(|known| known.create);
        match before {
            None if must_exist => return Err(not_there()),
            None if acls.roles().count() >= MAX_ROLES => {
                return Err(Trouble::failed(format!("{MAX_ROLES} roles already: delete some")));
            }
            _ => {}
        }
        let record = RoleRecord {
            name: asked.name.clone(),
            description: asked.description.clone(),
            grants: asked.grants.resolved(acls)?,
        };
        definition::bounded(&record, "")?;
        Ok((vec![writing::put(&About::Acl(AclKind::Role, id.to_owned()), &record)?], (record, before)))
    };
    let ((record, before), revision) = context.discovery.change_acls(decide).await?;
    let stored = Stored { record, create: before.unwrap_or(revision), modify: revision };
    let reading = context.discovery.read();
    Ok(reply_json(ask, &shown(reading.acls(), id, &stored)))
}

fn not_there() -> Trouble {
    Trouble::missing("Requested role does not exist: ACL not found")
}

/// Makes one.
pub async fn create(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let asked = read_role(&body)?;
    if !asked.id.is_empty() {
        return Err(Trouble::bad("Cannot specify the ID when creating a new role"));
    }
    keep(&context, &ask, &uuid::Uuid::new_v4().to_string(), asked, false).await
}

/// Puts another in its place.
pub async fn update(State(context): State<Context>, Path(id): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let asked = read_role(&body)?;
    if !asked.id.is_empty() && asked.id != id {
        return Err(Trouble::bad("Role ID in URL and payload do not match"));
    }
    keep(&context, &ask, &id, asked, true).await
}

/// Takes one away: whoever was given it has it no more.
pub async fn remove(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    require_write(&ask)?;
    let decide = |acls: &Acls| {
        acls.role(&id).ok_or_else(not_there)?;
        Ok::<_, Trouble>((vec![writing::delete(&About::Acl(AclKind::Role, id.clone()))?], ()))
    };
    context.discovery.change_acls(decide).await?;
    Ok(truth(true))
}

fn shown(acls: &Acls, id: &str, role: &Stored<RoleRecord>) -> Value {
    let record = &role.record;
    let mut value = json!({
        "ID": id, "Name": record.name, "Description": record.description, "Hash": hash_of(record),
        "CreateIndex": role.create, "ModifyIndex": role.modify,
    });
    if let Some(object) = value.as_object_mut() {
        grants::show(acls, &record.grants, object);
    }
    value
}

/// All of them, or those that are given a policy.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    let policy = ask.get("policy");
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let acls = catalog.acls();
        let fits = |role: &RoleRecord| policy.is_none_or(|id| role.grants.policies.iter().any(|one| one == id));
        Ok(acls.roles().filter(|(_, role)| fits(&role.record)).map(|(id, role)| shown(acls, id, role)).collect())
    })
    .await
}

/// One of them.
pub async fn read(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        if !is_uuid(&id) {
            return Err(Trouble::bad(format!("the ID of a role is a UUID, not {id:?}")));
        }
        let role = catalog.acls().role(&id).ok_or_else(not_there)?;
        Ok(shown(catalog.acls(), &id, role))
    })
    .await
}

/// One of them by its name.
pub async fn by_name(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let acls = catalog.acls();
        let found = acls.roles().find(|(_, role)| role.record.name == name);
        found.map(|(id, role)| shown(acls, id, role)).ok_or_else(not_there)
    })
    .await
}
