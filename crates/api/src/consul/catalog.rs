//! `/v1/catalog`: what is registered, whether it works or not; and writing into it for machines that have no Seawall.

use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use discovery::acl::{Access, Kind};
use discovery::definition::{self, Strict};
use discovery::fields::{FieldError, Fields};
use discovery::key::About;
use discovery::record::{CheckRecord, NodeRecord, Owner, ServiceRecord};
use discovery::select::{self, has_meta, nearest_first};
use discovery::{Catalog, Topic, writing};
use serde_json::{Map, Value, json};

use super::ask::Ask;
use super::reply::{Answer, Trouble, blocking, fresh, truth, waited, with_headers};
use super::{body_of, own_if_agent, render};
use crate::Context;

/// The sites that are known: this one.
pub async fn datacenters(State(context): State<Context>, _: Ask) -> Json<Value> {
    Json(json!([context.discovery.datacenter()]))
}

/// All machines.
pub async fn nodes(State(context): State<Context>, ask: Ask) -> Answer {
    let meta = ask.node_meta();
    let near = super::near(&context, &ask);
    blocking(&context, &ask, Topic::Nodes, |catalog| {
        let mut found: Vec<_> = catalog.nodes().filter(|(_, node, _)| has_meta(&node.record.meta, &meta)).collect();
        found.retain(|(name, ..)| ask.sees(Kind::Node, name));
        if let Some(near) = &near {
            nearest_first(&mut found, near, |(name, ..)| name);
        }
        let datacenter = context.discovery.datacenter();
        Ok(found.into_iter().map(|(name, node, _)| render::node(datacenter, name, node)).collect())
    })
    .await
}

/// All services with their tags. A filter is asked of each instance; its name and tags are what such filters name.
pub async fn services(State(context): State<Context>, ask: Ask) -> Answer {
    let meta = ask.node_meta();
    let wide = !meta.is_empty() || ask.has("filter");
    let filter = ask.filter()?;
    let unfiltered = ask.without("filter");
    let answer = |catalog: &discovery::Reading<'_>| {
        if !wide {
            let seen = catalog.names().filter(|(name, _)| ask.sees(Kind::Service, name));
            return Ok(Value::Object(
                seen.map(|(name, entry)| (name.to_owned(), entry.tags.keys().cloned().collect())).collect(),
            ));
        }
        let wanted = select::Wanted { node_meta: meta.clone(), ..Default::default() };
        let mut found: Map<String, Value> = Map::new();
        for (name, _) in catalog.names() {
            for instance in select::instances(catalog, name, &wanted) {
                if !ask.sees_on(instance.node_name, name) {
                    continue;
                }
                let fits = match &filter {
                    None => true,
                    Some(filter) => filter
                        .fits(&render::catalog_service(context.discovery.datacenter(), &instance))
                        .map_err(|error| Trouble::bad(error.to_string()))?,
                };
                if !fits {
                    continue;
                }
                let tags = found.entry(name.to_owned()).or_insert_with(|| json!([]));
                let Value::Array(tags) = tags else { continue };
                for tag in &instance.service.record.tags {
                    if !tags.iter().any(|known| known == tag) {
                        tags.push(tag.clone().into());
                    }
                }
            }
        }
        Ok(Value::Object(found))
    };
    let topic = if wide { Topic::Instances } else { Topic::Services };
    blocking(&context, &unfiltered, topic, answer).await
}

/// The instances of a service.
pub async fn service(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    let name = of_peer(&ask, name);
    let wanted = select::Wanted { passing: false, ..ask.wanted() };
    let near = super::near(&context, &ask);
    blocking(&context, &ask, Topic::Service(name.clone()), |catalog| {
        let mut found = select::instances(catalog, &name, &wanted);
        found.retain(|instance| ask.sees_on(instance.node_name, &instance.service.record.service));
        if let Some(near) = &near {
            nearest_first(&mut found, near, |instance| instance.node_name);
        }
        let datacenter = context.discovery.datacenter();
        Ok(found.iter().map(|instance| render::catalog_service(datacenter, instance)).collect())
    })
    .await
}

/// There are no peers: what is asked of one is nothing, as in Consul.
pub fn of_peer(ask: &Ask, name: String) -> String {
    if ask.get("peer").is_some() { String::new() } else { name }
}

/// A machine with its instances, as an object; `null` if there is none.
pub async fn node(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    let filter = ask.filter()?;
    let whole = ask.without("filter");
    let answer = |catalog: &discovery::Reading<'_>| node_with(&context, &ask, catalog, &name, filter.as_ref(), false);
    blocking(&context, &whole, Topic::NodeServices(known_name(&context, &name)), answer).await
}

/// The same with the instances as a list.
pub async fn node_services(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    let filter = ask.filter()?;
    let whole = ask.without("filter");
    let answer = |catalog: &discovery::Reading<'_>| node_with(&context, &ask, catalog, &name, filter.as_ref(), true);
    let (value, index) = waited(&context, &whole, Topic::NodeServices(known_name(&context, &name)), answer).await?;
    Ok(with_headers(&context, &ask, index, super::reply::json(&ask, &value)))
}

/// A machine's name as it is registered.
pub fn known_name(context: &Context, name: &str) -> String {
    context.discovery.read().find_node(name).unwrap_or(name).to_owned()
}

fn node_with(
    context: &Context,
    ask: &Ask,
    catalog: &Catalog,
    name: &str,
    filter: Option<&discovery::bexpr::Filter>,
    list: bool,
) -> Result<Value, Trouble> {
    let known = catalog.find_node(name).and_then(|name| Some((name, catalog.node(name)?)));
    let Some((name, (node, entry))) = known.filter(|(name, _)| ask.sees(Kind::Node, name)) else {
        return Ok(if list { json!({ "Node": null, "Services": [] }) } else { Value::Null });
    };
    let seen = entry.services.iter().filter(|(_, service)| ask.sees(Kind::Service, &service.record.service));
    let mut services: Vec<Value> = seen.map(|(id, service)| render::service(id, service)).collect();
    if let Some(filter) = filter {
        filter.keep(&mut services).map_err(|error| Trouble::bad(error.to_string()))?;
    }
    let services = if list {
        Value::Array(services)
    } else {
        let named = |service: Value| (service["ID"].as_str().unwrap_or_default().to_owned(), service);
        Value::Object(services.into_iter().map(named).collect())
    };
    Ok(json!({ "Node": render::node(context.discovery.datacenter(), name, node), "Services": services }))
}

/// Writes a machine, an instance or checks into the catalog.
pub async fn register(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    let value = body_of(&body)?;
    let mut fields = Fields::of(&value, "")?;
    super::check_datacenter(&context, &mut fields)?;
    let name = fields.name("node")?;
    if name.is_empty() {
        return Err(Trouble::bad("Must provide node"));
    }
    let new = NodeRecord {
        id: fields.text("id")?,
        address: fields.text("address")?,
        tagged_addresses: fields.map("taggedaddresses")?,
        meta: fields.map("nodemeta")?,
        agent: false,
    };
    definition::bounded(&new, "")?;
    let skip = fields.flag("skipnodeupdate")?;
    let service = fields.get("service").map(|value| read_service(value, "Service")).transpose()?;
    let checks = read_checks(&mut fields)?;
    fresh(&context, &ask).await?;
    let ops = {
        let catalog = context.discovery.read();
        let name = catalog.find_node(&name).unwrap_or(&name);
        let known = catalog.node(name);
        let mut ops = Vec::new();
        match known {
            // Seawall writes its own machines.
            Some((known, _)) if known.record.agent || skip => {
                if service.is_none() && checks.is_empty() {
                    ask.require(Kind::Node, name, Access::Write)?;
                }
            }
            None if new.address.is_empty() => {
                return Err(Trouble::bad("Must provide address if SkipNodeUpdate is not set"));
            }
            Some((known, _)) => {
                let keep = NodeRecord {
                    id: if new.id.is_empty() { known.record.id.clone() } else { new.id },
                    address: if new.address.is_empty() { known.record.address.clone() } else { new.address },
                    ..new
                };
                ops.extend(writing::node_op(&catalog, name, &keep)?);
            }
            None => ops.extend(writing::node_op(&catalog, name, &new)?),
        }
        if !ops.is_empty() {
            ask.require(Kind::Node, name, Access::Write)?;
        }
        let entry = known.map(|(_, entry)| entry);
        if let Some((id, record)) = &service {
            ask.require(Kind::Service, &record.service, Access::Write)?;
            if let Some(known) = entry.and_then(|entry| entry.services.get(id)) {
                ask.require(Kind::Service, &known.record.service, Access::Write)?;
            }
            super::refuse_own(&catalog, name, id)?;
            let same = entry.and_then(|entry| entry.services.get(id)).is_some_and(|same| same.record == *record);
            if !same {
                ops.push(writing::put(&About::Service(name.into(), id.clone()), record)?);
            }
        }
        for (id, mut record) in checks {
            if !record.service_id.is_empty() {
                super::refuse_own(&catalog, name, &record.service_id)?;
                let of_it = service.as_ref().filter(|(id, _)| *id == record.service_id).map(|(_, new)| &new.service);
                let there =
                    entry.and_then(|entry| entry.services.get(&record.service_id)).map(|one| &one.record.service);
                let Some(found) = of_it.or(there) else {
                    return Err(Trouble::failed(format!(
                        "Unknown service ID {:?} for check ID {id:?}",
                        record.service_id
                    )));
                };
                record.service.clone_from(found);
            }
            ask.require_change(name, &record.service)?;
            let there = entry.and_then(|entry| entry.checks.get(&id));
            if let Some(there) = there {
                ask.require_change(name, &there.record.service)?;
            }
            let same = there.is_some_and(|same| same.record == record);
            if !same {
                ops.push(writing::put(&About::Check(name.into(), id), &record)?);
            }
        }
        ops
    };
    context.discovery.change(ops).await?;
    Ok(truth(true))
}

/// An instance as its author writes it, with its id.
pub fn read_service(value: &Value, path: &str) -> Result<(String, ServiceRecord), FieldError> {
    let mut fields = Fields::of(value, path)?;
    let name = fields.name("service")?;
    let id = fields.text("id")?;
    if name.is_empty() && id.is_empty() {
        return Err(FieldError::new(fields.path("service"), "Must provide service name"));
    }
    let record = ServiceRecord {
        service: if name.is_empty() { id.clone() } else { name.clone() },
        tags: fields.texts("tags")?,
        address: fields.text("address")?,
        port: definition::port(&mut fields)?,
        meta: fields.map("meta")?,
        tagged_addresses: definition::tagged_addresses(&mut fields)?,
        weights: definition::weights(&mut fields)?,
        enable_tag_override: fields.flag("enabletagoverride")?,
        kind: fields.text("kind")?,
        owner: Owner::Catalog,
    };
    definition::bounded(&record, path)?;
    Ok((if id.is_empty() { name } else { id }, record))
}

fn read_checks(fields: &mut Fields<'_>) -> Result<Vec<(String, CheckRecord)>, FieldError> {
    let one = fields.get("check").map(|value| ("Check".to_owned(), value));
    let many = fields.get("checks").and_then(Value::as_array).into_iter().flatten();
    let many = many.enumerate().map(|(index, value)| (format!("Checks[{index}]"), value));
    let mut read = Vec::new();
    for (path, value) in one.into_iter().chain(many) {
        if read.len() >= definition::MAX_CHECKS {
            return Err(FieldError::new(path, format!("{} checks at most", definition::MAX_CHECKS)));
        }
        read.push(read_check(value, &path)?);
    }
    Ok(read)
}

/// A check as its author writes it, with its id.
pub fn read_check(value: &Value, path: &str) -> Result<(String, CheckRecord), FieldError> {
    let mut given = value.clone();
    // Nobody here runs it, so how it is made is only kept with whoever runs it.
    if let Some(object) = given.as_object_mut() {
        object.retain(|key, _| !matches!(key.to_ascii_lowercase().as_str(), "definition" | "interval" | "timeout"));
    }
    let (id, mut record) = definition::check(&given, path, Strict::No)?;
    (record.definition, record.owner) = (None, Owner::Catalog);
    let id = id.unwrap_or_else(|| record.name.clone());
    if id.is_empty() {
        return Err(FieldError::new(path, "a check needs `CheckID` or `Name`"));
    }
    if record.name.is_empty() {
        record.name.clone_from(&id);
    }
    Ok((id, record))
}

/// Takes a machine, an instance or a check out of the catalog.
pub async fn deregister(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    let value = body_of(&body)?;
    let mut fields = Fields::of(&value, "")?;
    super::check_datacenter(&context, &mut fields)?;
    let (name, service, check) = (fields.text("node")?, fields.text("serviceid")?, fields.text("checkid")?);
    if name.is_empty() {
        return Err(Trouble::bad("Must provide node"));
    }
    fresh(&context, &ask).await?;
    let ops = {
        let catalog = context.discovery.read();
        let name = catalog.find_node(&name).unwrap_or(&name);
        require_deregister(&ask, &catalog, name, &service, &check)?;
        if !service.is_empty() {
            super::refuse_own(&catalog, name, &service)?;
            writing::deregister(&catalog, name, &service)?
        } else if !check.is_empty() {
            super::refuse_own_check(&catalog, name, &check)?;
            vec![writing::delete(&About::Check(name.into(), check))?]
        } else {
            own_if_agent(&catalog, name)?;
            writing::remove_node(name)?
        }
    };
    context.discovery.change(ops).await?;
    Ok(truth(true))
}

/// Whoever may write a machine may take out what is on it; else the service must be theirs.
fn require_deregister(ask: &Ask, catalog: &Catalog, node: &str, service: &str, check: &str) -> Result<(), Trouble> {
    if ask.require(Kind::Node, node, Access::Write).is_ok() {
        return Ok(());
    }
    let entry = catalog.node(node).map(|(_, entry)| entry);
    let of_service = entry.and_then(|entry| entry.services.get(service)).map(|known| &known.record.service);
    let of_check = || entry.and_then(|entry| entry.checks.get(check)).map(|known| &known.record.service);
    let name = if service.is_empty() && !check.is_empty() { of_check() } else { of_service };
    ask.require_change(node, name.map_or("", String::as_str))
}

/// Nothing of a service mesh is here: no instance is part of one.
pub async fn no_mesh(State(context): State<Context>, ask: Ask) -> Answer {
    let response: Response = super::reply::json(&ask, &json!([]));
    fresh(&context, &ask).await?;
    let index = context.discovery.read().index(&Topic::Services);
    Ok(with_headers(&context, &ask, index, response))
}
