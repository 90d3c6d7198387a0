//! `/v1/acl/templated-policy`: the builtin policies into which a name is filled, and what they come to with one.

use axum::extract::{Path, State};
use bytes::Bytes;
use discovery::acl::template::{self, TEMPLATES, Template};
use discovery::fields::Fields;
use serde_json::{Map, Value, json};

use super::super::ask::Ask;
use super::super::body_of;
use super::super::reply::{Answer, Trouble, fresh, json as reply_json, with_headers};
use super::{hash_of, require_read};
use crate::Context;

/// What must be filled in, as a JSON schema.
const NAME_SCHEMA: &str = r##"{"type":"object","properties":{"name":{"type":"string","$ref":"#/definitions/min-length-one"}},"required":["name"],"definitions":{"min-length-one":{"type":"string","minLength":1}}}"##;

fn shown(template: &Template) -> Value {
    json!({
        "TemplateName": template.name, "Schema": if template.needs_name { NAME_SCHEMA } else { "" },
        "Template": template.text, "Description": template.description,
    })
}

fn find(name: &str) -> Result<&'static Template, Trouble> {
    template::find(name).ok_or_else(|| Trouble::bad(format!("Invalid templated policy Name: {name}")))
}

/// All of them by name.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    require_read(&ask)?;
    fresh(&context, &ask).await?;
    let all: Map<String, Value> = TEMPLATES.iter().map(|one| (one.name.to_owned(), shown(one))).collect();
    Ok(with_headers(&context, &ask, 1, reply_json(&ask, &Value::Object(all))))
}

/// One of them.
pub async fn read(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    require_read(&ask)?;
    fresh(&context, &ask).await?;
    Ok(with_headers(&context, &ask, 1, reply_json(&ask, &shown(find(&name)?))))
}

/// The policy that it comes to.
pub async fn preview(State(context): State<Context>, Path(name): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_read(&ask)?;
    let template = find(&name)?;
    let value = if body.is_empty() { json!({}) } else { body_of(&body)? };
    let filled = Fields::of(&value, "")?.text("name")?;
    if template.needs_name && !template::is_name(&filled) {
        let text = "validation error for templated policy: `name` needs lowercase alphanumeric characters, '-' and '_'";
        return Err(Trouble::bad(text));
    }
    fresh(&context, &ask).await?;
    let rules = template.filled(&filled);
    let id = hexadecimal(ring::digest::digest(&ring::digest::SHA256, rules.as_bytes()).as_ref());
    let value = json!({
        "ID": id, "Name": format!("synthetic-policy-{id}"), "Rules": rules, "Hash": hash_of(&rules), "Datacenters": null,
        "Description": format!("synthetic policy generated from templated policy: {name}"),
        "CreateIndex": 0, "ModifyIndex": 0,
    });
    Ok(with_headers(&context, &ask, 1, reply_json(&ask, &value)))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
