//! Records as Consul's JSON. Deliberately absent: choosing what is shown.

use std::time::Duration;

use discovery::catalog::Stored;
use discovery::record::{
    Behavior, CheckDefinition, EventRecord, NodeRecord, QueryRecord, ServiceRecord, SessionRecord,
};
use discovery::select::{Instance, NamedCheck};
use discovery::{NodeEntry, duration};
use serde_json::{Map, Value, json};

/// A machine.
pub fn node(datacenter: &str, name: &str, node: &Stored<NodeRecord>) -> Value {
    let record = &node.record;
    json!({
        "ID": record.id, "Node": name, "Address": record.address, "Datacenter": datacenter,
        "TaggedAddresses": record.tagged_addresses, "Meta": record.meta,
        "CreateIndex": node.create, "ModifyIndex": node.modify,
    })
}

fn addresses(record: &ServiceRecord) -> Value {
    let one = |(tag, address): (&String, &discovery::record::ServiceAddress)| {
        (tag.clone(), json!({ "Address": address.address, "Port": address.port }))
    };
    Value::Object(record.tagged_addresses.iter().map(one).collect())
}

fn weights(record: &ServiceRecord) -> Value {
    json!({ "Passing": record.weights.passing, "Warning": record.weights.warning })
}

/// An instance in the catalog's list of a service.
pub fn catalog_service(datacenter: &str, instance: &Instance<'_>) -> Value {
    let (node, service) = (&instance.node.record, &instance.service.record);
    json!({
        "ID": node.id, "Node": instance.node_name, "Address": node.address, "Datacenter": datacenter,
        "TaggedAddresses": node.tagged_addresses, "NodeMeta": node.meta,
        "ServiceKind": service.kind, "ServiceID": instance.id, "ServiceName": service.service,
        "ServiceTags": service.tags, "ServiceAddress": service.address, "ServiceTaggedAddresses": addresses(service),
        "ServiceWeights": weights(service), "ServiceMeta": service.meta, "ServicePort": service.port,
        "ServiceSocketPath": "", "ServiceEnableTagOverride": service.enable_tag_override,
        "ServiceProxy": { "Mode": "", "MeshGateway": {}, "Expose": {} }, "ServiceConnect": {}, "ServiceLocality": null,
        "CreateIndex": instance.service.create, "ModifyIndex": instance.service.modify,
    })
}

/// An instance by itself.
pub fn service(id: &str, service: &Stored<ServiceRecord>) -> Value {
    let record = &service.record;
    json!({
        "Kind": record.kind, "ID": id, "Service": record.service, "Tags": record.tags, "Address": record.address,
        "TaggedAddresses": addresses(record), "Meta": record.meta, "Port": record.port, "SocketPath": "",
        "Weights": weights(record), "EnableTagOverride": record.enable_tag_override,
        "Proxy": { "Mode": "", "MeshGateway": {}, "Expose": {} }, "Connect": {}, "PeerName": "",
        "CreateIndex": service.create, "ModifyIndex": service.modify,
    })
}

/// An instance as its agent shows it.
pub fn agent_service(datacenter: &str, id: &str, known: &Stored<ServiceRecord>) -> Value {
    let record = &known.record;
    let mut value = json!({
        "ID": id, "Service": record.service, "Tags": record.tags, "Address": record.address, "Meta": record.meta,
        "Port": record.port, "Weights": weights(record), "EnableTagOverride": record.enable_tag_override,
        "Datacenter": datacenter,
    });
    // Consul leaves out what is empty here, and some clients compare the whole.
    if !record.tagged_addresses.is_empty() {
        value["TaggedAddresses"] = addresses(record);
    }
    value
}

fn millis(ms: u64) -> String {
    if ms == 0 { String::new() } else { duration::show(Duration::from_millis(ms)) }
}

fn definition(definition: Option<&CheckDefinition>) -> Value {
    let Some(known) = definition else { return json!({}) };
    let mut shown = Map::new();
    let texts = [
        ("HTTP", &known.http),
        ("Method", &known.method),
        ("Body", &known.body),
        ("TLSServerName", &known.tls_server_name),
        ("TCP", &known.tcp),
        ("UDP", &known.udp),
        ("GRPC", &known.grpc),
        ("H2PING", &known.h2ping),
        ("AliasNode", &known.alias_node),
        ("AliasService", &known.alias_service),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        shown.insert(key.into(), text.as_str().into());
    }
    let flags = [
        ("TLSSkipVerify", known.tls_skip_verify),
        ("TCPUseTLS", known.tcp_use_tls),
        ("GRPCUseTLS", known.grpc_use_tls),
        ("DisableRedirects", known.disable_redirects),
    ];
    for (key, _) in flags.into_iter().filter(|(_, flag)| *flag) {
        shown.insert(key.into(), true.into());
    }
    if !known.h2ping.is_empty() {
        shown.insert("H2PingUseTLS".into(), known.h2ping_use_tls.into());
    }
    // Values of header fields may be secrets.
    if !known.header.is_empty() {
        let hidden = known.header.keys().map(|name| (name.clone(), json!(["<hidden>"]))).collect();
        shown.insert("Header".into(), Value::Object(hidden));
    }
    let times = [
        ("Interval", known.interval_ms),
        ("Timeout", known.timeout_ms),
        ("TTL", known.ttl_ms),
        ("DeregisterCriticalServiceAfter", known.deregister_after_ms),
    ];
    for (key, ms) in times.into_iter().filter(|(_, ms)| *ms > 0) {
        shown.insert(key.into(), millis(ms).into());
    }
    Value::Object(shown)
}

/// A check; `entry` is its node, for its service's tags.
pub fn check(node: &str, entry: Option<&NodeEntry>, (id, check): &NamedCheck<'_>) -> Value {
    let record = &check.record;
    let tags = entry.and_then(|entry| entry.services.get(&record.service_id)).map(|service| &service.record.tags);
    let how = record.definition.as_ref();
    json!({
        "Node": node, "CheckID": id, "Name": record.name, "Status": record.status.as_str(), "Notes": record.notes,
        "Output": record.output, "ServiceID": record.service_id, "ServiceName": record.service,
        "ServiceTags": tags.cloned().unwrap_or_default(), "Type": record.kind,
        "Interval": how.map(|how| millis(how.interval_ms)).unwrap_or_default(),
        "Timeout": how.map(|how| millis(how.timeout_ms)).unwrap_or_default(),
        "ExposedPort": 0, "Definition": definition(how), "PeerName": "",
        "CreateIndex": check.create, "ModifyIndex": check.modify,
    })
}

/// An instance with its node and checks.
pub fn health(datacenter: &str, instance: &Instance<'_>, entry: Option<&NodeEntry>) -> Value {
    let checks: Vec<Value> = instance.checks.iter().map(|one| check(instance.node_name, entry, one)).collect();
    json!({
        "Node": node(datacenter, instance.node_name, instance.node),
        "Service": service(instance.id, instance.service),
        "Checks": checks,
    })
}

/// A session. Consul's lock delay is a number of nanoseconds.
pub fn session(id: &str, session: &Stored<SessionRecord>) -> Value {
    let record = &session.record;
    let behavior = match record.behavior {
        Behavior::Release => "release",
        Behavior::Delete => "delete",
    };
    json!({
        "ID": id, "Name": record.name, "Node": record.node, "LockDelay": record.lock_delay_ms * 1_000_000,
        "Behavior": behavior, "TTL": record.ttl, "Checks": record.checks, "NodeChecks": record.checks,
        "ServiceChecks": null, "CreateIndex": session.create, "ModifyIndex": session.modify,
    })
}

/// A fired event.
pub fn event(id: &str, event: &Stored<EventRecord>) -> Value {
    let record = &event.record;
    json!({
        "ID": id, "Name": record.name, "Payload": record.payload, "NodeFilter": record.node_filter,
        "ServiceFilter": record.service_filter, "TagFilter": record.tag_filter, "Version": 1, "LTime": event.create,
    })
}

/// A prepared query.
pub fn query(id: &str, query: &Stored<QueryRecord>) -> Value {
    let record = &query.record;
    let template = record.prefix_template.then(|| {
        json!({ "Type": "name_prefix_match", "Regexp": record.template_regexp, "RemoveEmptyTags": record.remove_empty_tags })
    });
    let mut value = json!({
        "ID": id, "Name": record.name, "Session": record.session, "Token": "",
        "Service": {
            "Service": record.service,
            "Failover": { "NearestN": record.nearest_n, "Datacenters": record.datacenters, "Targets": null },
            "OnlyPassing": record.only_passing, "IgnoreCheckIDs": record.ignore_check_ids, "Near": record.near,
            "Tags": record.tags, "NodeMeta": record.node_meta, "ServiceMeta": record.service_meta, "Connect": false,
            "Peer": "",
        },
        "DNS": { "TTL": record.dns_ttl }, "CreateIndex": query.create, "ModifyIndex": query.modify,
    });
    if let Some(template) = template {
        value["Template"] = template;
    }
    value
}
