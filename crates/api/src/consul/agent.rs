//! `/v1/agent`: this node, what registered with it, and registering with it. Writes answer exactly 200 with nothing.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use discovery::acl::{Access, Kind};
use discovery::catalog::SERVERS;
use discovery::definition::{self, Strict};
use discovery::key::About;
use discovery::record::{CheckStatus, Owner};
use discovery::select::{self, Instance, NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use discovery::{NodeEntry, Topic, writing};
use serde_json::{Value, json};

use super::ask::{Ask, narrow};
use super::caller::Caller;
use super::misc::leader_address;
use super::reply::{Answer, Trouble, done, fresh, json};
use super::{SERVICE_CHECK, body_of, refuse_own, render};
use crate::Context;

/// This node, as far as Consul's clients ask.
pub async fn about(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require(Kind::Agent, context.discovery.node(), Access::Read)?;
    let (registry, facts) = (&context.discovery, &context.consul);
    let config = json!({
        "Datacenter": registry.datacenter(), "PrimaryDatacenter": registry.datacenter(), "NodeName": registry.node(),
        "NodeID": facts.node_id, "Server": true, "Revision": "", "Version": facts.version, "BuildDate": "",
    });
    let member = registry.read().node(registry.node()).map(|(node, entry)| {
        member(registry.datacenter(), registry.node(), &node.record.address, &node.record.id, entry.alive)
    });
    let value = json!({
        "Config": config,
        "DebugConfig": {
            "SessionTTLMin": "10s", "EnableRemoteScriptChecks": facts.script_checks, "Datacenter": registry.datacenter(),
        },
        "Coord": null, "Member": member, "Stats": { "agent": {}, "consul": { "server": "true", "leader_addr": leader_address(&context) } }, "Meta": {},
        "xDS": {},
    });
    Ok(json(&ask, &value))
}

fn member(datacenter: &str, name: &str, address: &str, id: &str, alive: bool) -> Value {
    json!({
        "Name": name, "Addr": address, "Port": 8300, "Status": if alive { 1 } else { 4 },
        "Tags": { "role": "consul", "dc": datacenter, "id": id },
        "ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2, "DelegateMin": 2, "DelegateMax": 5, "DelegateCur": 4,
    })
}

/// The machines that have a Seawall.
pub async fn members(State(context): State<Context>, ask: Ask) -> Answer {
    let datacenter = context.discovery.datacenter();
    let mut list: Value = {
        let catalog = context.discovery.read();
        let agents = catalog.nodes().filter(|(name, node, _)| node.record.agent && ask.sees(Kind::Node, name));
        // Across sites, names have their site behind them.
        let shown = |name: &str| if ask.is_on("wan") { format!("{name}.{datacenter}") } else { name.to_owned() };
        agents
            .map(|(name, node, entry)| {
                member(datacenter, &shown(name), &node.record.address, &node.record.id, entry.alive)
            })
            .collect()
    };
    narrow(ask.filter()?.as_ref(), &mut list)?;
    Ok(shown(&ask, &list))
}

/// What is on this node and has an agent: what it runs, and what registered with it.
pub async fn services(State(context): State<Context>, ask: Ask) -> Answer {
    let mut found = {
        let catalog = context.discovery.read();
        let entry = catalog.node(context.discovery.node()).map(|(_, entry)| entry);
        let own = entry.into_iter().flat_map(|entry| &entry.services);
        // Consul's servers do not show themselves here either.
        let is_server = |id: &str, owner| id == SERVERS && owner == Owner::Seawall;
        let own =
            own.filter(|(id, service)| service.record.owner != Owner::Catalog && !is_server(id, service.record.owner));
        let own = own.filter(|(_, service)| ask.sees(Kind::Service, &service.record.service));
        let shown = |id: &String, service| render::agent_service(context.discovery.datacenter(), id, service);
        Value::Object(own.map(|(id, service)| (id.clone(), shown(id, service))).collect())
    };
    narrow(ask.filter()?.as_ref(), &mut found)?;
    Ok(shown(&ask, &found))
}

/// What a node's own lists say; they have no index.
pub fn shown(ask: &Ask, value: &Value) -> Response {
    let mut response = json(ask, value);
    if ask.caller().is_some_and(Caller::has_filtered) {
        let yes = HeaderValue::from_static("true");
        response.headers_mut().insert("x-consul-results-filtered-by-acls", yes);
    }
    response
}

/// One of them. With `hash` it waits until it is another than that.
pub async fn service(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    ask.check(context.discovery.datacenter())?;
    let (registry, wait) = (&context.discovery, ask.wait()?);
    let topic = Topic::NodeServices(registry.node().to_owned());
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let (shown, index) = {
            let catalog = registry.read();
            let known = catalog.node(registry.node()).and_then(|(_, entry)| entry.services.get(&id));
            if let Some(known) = known {
                ask.require(Kind::Service, &known.record.service, Access::Read)?;
            }
            let shown = known.map(|known| render::agent_service(registry.datacenter(), &id, known));
            (shown, catalog.index(&topic))
        };
        let hash = shown.as_ref().map(hash_of);
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        if ask.get("hash").is_some() && hash.as_deref() == ask.get("hash") && !left.is_zero() {
            registry.wait(&topic, index, left).await;
            if let Some(caller) = ask.caller() {
                caller.renew(&context)?;
            }
            continue;
        }
        let (Some(mut shown), Some(hash)) = (shown, hash) else {
            return Err(Trouble::missing(format!("unknown service ID: {id}")));
        };
        shown["ContentHash"] = hash.clone().into();
        let mut response = json(&ask, &shown);
        if let Ok(hash) = HeaderValue::from_str(&hash) {
            response.headers_mut().insert("x-consul-contenthash", hash);
        }
        return Ok(response);
    }
}

fn hash_of(shown: &Value) -> String {
    let hash = shown
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// How an instance of this node stands, as a status code.
pub async fn health_by_id(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    let catalog = context.discovery.read();
    let found = own_instance(&context, &catalog, &id);
    let Some((instance, entry)) = found else {
        return Err(Trouble::missing(format!("ServiceId {id} not found")));
    };
    ask.require(Kind::Service, &instance.service.record.service, Access::Read)?;
    let (word, code) = aggregated(&instance);
    if ask.get("format") == Some("text") {
        return Ok((code, [(header::CONTENT_TYPE, "text/plain")], word).into_response());
    }
    Ok((code, json(&ask, &shown_health(&context, &instance, entry, word))).into_response())
}

/// How the instances of a service on this node stand: the worst as a status code.
pub async fn health_by_name(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    ask.require(Kind::Service, &name, Access::Read)?;
    let catalog = context.discovery.read();
    let all = select::instances(&catalog, &name, &select::Wanted::default());
    let own: Vec<_> = all.into_iter().filter(|one| one.node_name == context.discovery.node()).collect();
    if own.is_empty() {
        let text = if ask.get("format") == Some("text") { "Service not found" } else { "[]" };
        return Ok((StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "application/json")], text).into_response());
    }
    let (mut worst, mut code) = ("passing", StatusCode::OK);
    let mut list = Vec::new();
    for instance in &own {
        let (word, of_it) = aggregated(instance);
        // Among 200, 429 and 503 the larger is the worse.
        if of_it > code || word == "maintenance" {
            (worst, code) = (word, of_it);
        }
        let entry = catalog.node(instance.node_name).map(|(_, entry)| entry);
        list.push(shown_health(&context, instance, entry, word));
    }
    if ask.get("format") == Some("text") {
        return Ok((code, [(header::CONTENT_TYPE, "text/plain")], worst).into_response());
    }
    Ok((code, json(&ask, &Value::Array(list))).into_response())
}

fn own_instance<'a>(
    context: &'a Context,
    catalog: &'a discovery::Catalog,
    id: &'a str,
) -> Option<(Instance<'a>, Option<&'a NodeEntry>)> {
    let (node, entry) = catalog.node(context.discovery.node())?;
    let (id, service) = entry.services.get_key_value(id)?;
    let checks = select::checks_of(entry, id);
    Some((Instance { node_name: context.discovery.node(), node, id, service, checks }, Some(entry)))
}

fn shown_health(context: &Context, instance: &Instance<'_>, entry: Option<&NodeEntry>, word: &str) -> Value {
    let checks: Vec<Value> =
        instance.checks.iter().map(|check| render::check(instance.node_name, entry, check)).collect();
    let service = render::agent_service(context.discovery.datacenter(), instance.id, instance.service);
    json!({ "AggregatedStatus": word, "Service": service, "Checks": checks })
}

fn aggregated(instance: &Instance<'_>) -> (&'static str, StatusCode) {
    let maintenance = |(id, _): &select::NamedCheck<'_>| *id == NODE_MAINTENANCE || id.starts_with(SERVICE_MAINTENANCE);
    if instance.checks.iter().any(maintenance) {
        return ("maintenance", StatusCode::SERVICE_UNAVAILABLE);
    }
    match instance.status() {
        CheckStatus::Passing => ("passing", StatusCode::OK),
        CheckStatus::Warning => ("warning", StatusCode::TOO_MANY_REQUESTS),
        CheckStatus::Critical => ("critical", StatusCode::SERVICE_UNAVAILABLE),
    }
}

/// Registers an instance with this node, which runs its checks from now on.
pub async fn register(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    let read = definition::service(&body_of(&body)?, "", Strict::No)?;
    for (id, check) in &read.checks {
        refuse_script(&context, id, check)?;
    }
    fresh(&context, &ask).await?;
    let replace = ask.is_on("replace-existing-checks");
    let ops = {
        let catalog = context.discovery.read();
        let node = context.discovery.node();
        ask.require(Kind::Service, &read.record.service, Access::Write)?;
        require_known(&ask, &catalog, node, &read.id)?;
        // Nor may a check of somebody else be taken over by its id.
        let entry = catalog.node(node).map(|(_, entry)| entry);
        let there = read.checks.keys().filter_map(|id| entry?.checks.get(id));
        there.into_iter().try_for_each(|known| ask.require_change(node, &known.record.service))?;
        refuse_own(&catalog, node, &read.id)?;
        writing::register(&catalog, node, &read, replace)?
    };
    // A check that waits for its owner's word begins to wait now.
    read.checks.keys().for_each(|id| context.discovery.hear(id, false));
    context.discovery.change(ops).await?;
    Ok(done())
}

/// Refuses who may not change the instance that is there under this id.
fn require_known(ask: &Ask, catalog: &discovery::Catalog, node: &str, id: &str) -> Result<(), Trouble> {
    let known = catalog.node(node).and_then(|(_, entry)| entry.services.get(id));
    known.map_or(Ok(()), |known| ask.require(Kind::Service, &known.record.service, Access::Write))
}

/// Refuses a check that runs a program, unless this node allows that to whoever may call.
pub fn refuse_script(context: &Context, id: &str, check: &discovery::record::CheckRecord) -> Result<(), Trouble> {
    let runs = check.definition.as_ref().is_some_and(|how| !how.args.is_empty());
    if !runs || context.consul.script_checks {
        return Ok(());
    }
    let text = "Scripts are disabled on this agent; to enable, set `discovery: { remoteScriptChecks: true }`, or write the check into a definition file";
    Err(Trouble::bad(format!("check {:?}: {text}", id.strip_prefix(SERVICE_CHECK).unwrap_or(id))))
}

/// Takes an instance of this node out.
pub async fn deregister(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    let ops = {
        let catalog = context.discovery.read();
        let node = context.discovery.node();
        require_known(&ask, &catalog, node, &id)?;
        refuse_own(&catalog, node, &id)?;
        if catalog.node(node).is_none_or(|(_, entry)| !entry.services.contains_key(&id)) {
            let text =
                format!("Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name.");
            return Err(Trouble::missing(text));
        }
        let mut ops = writing::deregister(&catalog, node, &id)?;
        ops.push(writing::delete(&About::Check(node.into(), format!("{SERVICE_MAINTENANCE}{id}")))?);
        ops
    };
    context.discovery.change(ops).await?;
    Ok(done())
}
