//! `/v1/query`: prepared queries, kept in the store and carried out here. Deliberately absent: other sites, none of which is
//! known: those that a query would go on to are passed over, as Consul does with sites that it does not know.

use axum::extract::{Path, State};
use bytes::Bytes;
use discovery::acl::{Access, Kind, Scalar};
use discovery::fields::{FieldError, Fields};
use discovery::key::About;
use discovery::prepared::{self, Found};
use discovery::record::QueryRecord;
use discovery::{Stored, Topic, definition, writing};
use serde_json::{Value, json};

use super::ask::Ask;
use super::reply::{Answer, Trouble, blocking, done, fresh, json as reply_json, with_headers};
use super::{body_of, render};
use crate::Context;

/// Queries at most.
const MAX_QUERIES: usize = 10_000;

fn read_query(value: &Value) -> Result<QueryRecord, FieldError> {
    let mut fields = Fields::of(value, "")?;
    let empty = json!({});
    let service = fields.get("service").unwrap_or(&empty);
    let mut service = Fields::of(service, "Service")?;
    let failover = service.get("failover").unwrap_or(&empty);
    let mut failover = Fields::of(failover, "Service.Failover")?;
    let dns = fields.get("dns").unwrap_or(&empty);
    let template = fields.get("template").unwrap_or(&empty);
    let mut template = Fields::of(template, "Template")?;
    let kind = template.text("type")?;
    if !kind.is_empty() && kind != "name_prefix_match" {
        return Err(FieldError::new(template.path("type"), "`name_prefix_match` is the only type"));
    }
    let targets = failover.get("targets").and_then(Value::as_array).into_iter().flatten();
    let mut datacenters = failover.texts("datacenters")?;
    for target in targets {
        datacenters.push(Fields::of(target, "Service.Failover.Targets")?.text("datacenter")?);
    }
    let record = QueryRecord {
        name: fields.text("name")?,
        prefix_template: !kind.is_empty(),
        template_regexp: template.text("regexp")?,
        remove_empty_tags: template.flag("removeemptytags")?,
        session: fields.text("session")?,
        service: service.text("service")?,
        only_passing: service.flag("onlypassing")?,
        near: service.text("near")?,
        tags: service.texts("tags")?,
        node_meta: service.map("nodemeta")?,
        service_meta: service.map("servicemeta")?,
        ignore_check_ids: service.texts("ignorecheckids")?,
        nearest_n: failover.number("nearestn", 1000)?.unwrap_or(0),
        datacenters,
        dns_ttl: Fields::of(dns, "DNS")?.text("ttl")?,
    };
    if record.service.is_empty() {
        return Err(FieldError::new("Service.Service", "Must provide a Service name to query"));
    }
    if !record.template_regexp.is_empty() && regex_of(&record.template_regexp).is_none() {
        return Err(FieldError::new("Template.Regexp", "this is no regular expression"));
    }
    definition::bounded(&record, "")?;
    Ok(record)
}

/// A query is carried out with the rights of whoever asks: one that was made to be carried out with others is refused.
fn refuse_token(ask: &Ask, value: &Value) -> Result<(), Trouble> {
    if ask.caller().is_none() || Fields::of(value, "")?.text("token")?.is_empty() {
        return Ok(());
    }
    Err(Trouble::bad("`Token` of a query is not supported: it is carried out with the token of whoever asks"))
}

fn regex_of(text: &str) -> Option<()> {
    prepared::is_regex(text).then_some(())
}

/// Keeps one; answers its id.
pub async fn create(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    let value = body_of(&body)?;
    refuse_token(&ask, &value)?;
    let record = read_query(&value)?;
    require(&ask, &record, Access::Write)?;
    fresh(&context, &ask).await?;
    let id = uuid::Uuid::new_v4().to_string();
    write(&context, &id, record).await?;
    Ok(reply_json(&ask, &json!({ "ID": id })))
}

/// Whose name rules are about. One without a name is for whoever knows its id, as in Consul.
fn named(record: &QueryRecord) -> Option<&str> {
    (record.prefix_template || !record.name.is_empty()).then_some(record.name.as_str())
}

fn require(ask: &Ask, record: &QueryRecord, access: Access) -> Result<(), Trouble> {
    match named(record) {
        Some(name) => ask.require(Kind::Query, name, access),
        // For whoever knows its id, but not for nobody: the store is not open to those without a token.
        None if access == Access::Write && ask.caller().is_some_and(|caller| !caller.shows_a_token()) => {
            ask.require(Kind::Query, "", access)
        }
        None => Ok(()),
    }
}

/// Refuses who may not change the query that is there.
fn require_known(context: &Context, ask: &Ask, id: &str) -> Result<(), Trouble> {
    context.discovery.read().query(id).map_or(Ok(()), |known| require(ask, &known.record, Access::Write))
}

async fn write(context: &Context, id: &str, record: QueryRecord) -> Result<(), Trouble> {
    {
        let catalog = context.discovery.read();
        let same_name = |(known, other): (&str, &discovery::Stored<QueryRecord>)| {
            known != id && !record.name.is_empty() && other.record.name == record.name
        };
        if catalog.queries().any(same_name) {
            return Err(Trouble::failed(format!("name {:?} aliases an existing query name", record.name)));
        }
        if catalog.queries().count() >= MAX_QUERIES && catalog.query(id).is_none() {
            return Err(Trouble::failed(format!("{MAX_QUERIES} queries already")));
        }
    }
    Ok(context.discovery.change(vec![writing::put(&About::Query(id.to_owned()), &record)?]).await?)
}

/// All of them.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Queries, |catalog| {
        // Those without a name are shown to whoever manages ACLs.
        let manages = ask.require_in(Scalar::Acl, Access::Write).is_ok();
        let seen = |query: &Stored<QueryRecord>| match (named(&query.record), ask.caller()) {
            (Some(name), _) => ask.sees(Kind::Query, name),
            (None, Some(caller)) if !manages => {
                caller.leave_out();
                false
            }
            (None, _) => true,
        };
        Ok(catalog.queries().filter(|(_, query)| seen(query)).map(|(id, query)| render::query(id, query)).collect())
    })
    .await
}

/// One of them, in a list.
pub async fn read(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Queries, |catalog| {
        let found = catalog.query(&id).ok_or_else(|| Trouble::missing("Query not found"))?;
        require(&ask, &found.record, Access::Read)?;
        Ok(json!([render::query(&id, found)]))
    })
    .await
}

/// Puts another in its place.
pub async fn update(State(context): State<Context>, Path(id): Path<String>, ask: Ask, body: Bytes) -> Answer {
    let value = body_of(&body)?;
    refuse_token(&ask, &value)?;
    let record = read_query(&value)?;
    require(&ask, &record, Access::Write)?;
    fresh(&context, &ask).await?;
    require_known(&context, &ask, &id)?;
    if context.discovery.read().query(&id).is_none() {
        return Err(Trouble::missing("Query not found"));
    }
    write(&context, &id, record).await?;
    Ok(done())
}

/// Takes one away.
pub async fn remove(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    require_known(&context, &ask, &id)?;
    context.discovery.change(vec![writing::delete(&About::Query(id))?]).await?;
    Ok(done())
}

/// Carries one out, by its id or its name.
pub async fn execute(State(context): State<Context>, Path(wanted): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let limit = ask.number("limit")?.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
    let catalog = context.discovery.read();
    let (id, query) = found(&catalog, &wanted)?;
    let near = super::near(&context, &ask).or_else(|| match query.record.near.as_str() {
        "" => None,
        "_agent" => Some(context.discovery.node().to_owned()),
        near => Some(near.to_owned()),
    });
    let mut instances = prepared::instances(&catalog, &query.record, near.as_deref());
    instances.retain(|instance| ask.sees_on(instance.node_name, &instance.service.record.service));
    if limit > 0 {
        instances.truncate(limit);
    }
    let datacenter = context.discovery.datacenter();
    let nodes: Vec<Value> = instances
        .iter()
        .map(|instance| render::health(datacenter, instance, catalog.node(instance.node_name).map(|(_, entry)| entry)))
        .collect();
    // Sites that were asked in place of this one. Consul passes over those that it does not know, and no other is known here.
    let failovers = 0;
    let value = json!({
        "Service": query.record.service, "Nodes": nodes, "DNS": { "TTL": query.record.dns_ttl },
        "Datacenter": datacenter, "Failovers": failovers, "QueryID": id, "Name": query.record.name,
    });
    let index = catalog.index(&Topic::Health(query.record.service.clone()));
    drop(catalog);
    Ok(with_headers(&context, &ask, index, reply_json(&ask, &value)))
}

/// What a name comes to, with a template's parts filled in.
pub async fn explain(State(context): State<Context>, Path(wanted): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let catalog = context.discovery.read();
    let (id, query) = found(&catalog, &wanted)?;
    require(&ask, &query.record, Access::Read)?;
    let shown = json!({ "Query": render::query(&id, &query) });
    drop(catalog);
    Ok(with_headers(&context, &ask, 1, reply_json(&ask, &shown)))
}

fn found(catalog: &discovery::Catalog, wanted: &str) -> Result<Found, Trouble> {
    prepared::find(catalog, wanted).ok_or_else(|| Trouble::missing("Query not found"))
}
