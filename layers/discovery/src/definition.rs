//! Definitions of services and checks as Consul's users write them, in files and in requests, read into records. Bounds are
//! here: whoever registers a megabyte of tags is told so, and nothing is written.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::catalog::ALIVE;
use crate::fields::{FieldError, Fields};
use crate::record::{CheckDefinition, CheckRecord, CheckStatus, Owner, ServiceAddress, ServiceRecord, Weights};

/// Checks of an instance at most.
pub const MAX_CHECKS: usize = 64;
/// Tags of an instance at most.
pub const MAX_TAGS: usize = 256;
/// The bytes of a record at most.
pub const MAX_RECORD_BYTES: usize = 64 * 1024;
/// Output of a check that is kept, in bytes; Consul's default.
pub const MAX_OUTPUT: usize = 4096;
/// An instance is not taken out sooner, as in Consul.
pub const MIN_DEREGISTER: Duration = Duration::from_secs(60);
/// Checks are not made more often, as in Consul.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Consul's default for how long one may take.
const TIMEOUT_MS: u64 = 10_000;

/// How strict a reader is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Strict {
    /// A key that is not known is an error: a file was written by hand.
    Yes,
    /// It is passed over, as Consul does: clients send what newer versions know.
    No,
}

/// An instance with its checks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceDefinition {
    /// Its id; its name unless another is given.
    pub id: String,
    /// The instance.
    pub record: ServiceRecord,
    /// Its checks by id.
    pub checks: BTreeMap<String, CheckRecord>,
}

/// Reads a service's definition.
///
/// # Errors
/// What is wrong, and where.
pub fn service(value: &Value, path: &str, strict: Strict) -> Result<ServiceDefinition, FieldError> {
    let mut fields = Fields::of(value, path)?;
    let name = fields.name("name")?;
    let id = match (fields.name("id")?, fields.name("serviceid")?) {
        (id, other) if id.is_empty() => other,
        (id, _) => id,
    };
    if name.is_empty() {
        return Err(FieldError::new(fields.path("name"), "a service needs a name"));
    }
    if name.len() > crate::key::MAX_NAME_BYTES {
        return Err(FieldError::new(fields.path("name"), "a name has 255 bytes at most"));
    }
    let id = if id.is_empty() { name.clone() } else { id };
    let mut record = ServiceRecord {
        service: name,
        tags: fields.texts("tags")?,
        address: fields.text("address")?,
        port: port(&mut fields)?,
        meta: fields.map("meta")?,
        enable_tag_override: fields.flag("enabletagoverride")?,
        kind: fields.text("kind")?,
        owner: Owner::Agent,
        ..ServiceRecord::default()
    };
    if record.tags.len() > MAX_TAGS {
        return Err(FieldError::new(fields.path("tags"), format!("{MAX_TAGS} tags at most")));
    }
    if !record.kind.is_empty() {
        let message = "no service mesh here: only ordinary services, without `kind`";
        return Err(FieldError::new(fields.path("kind"), message));
    }
    record.weights = weights(&mut fields)?;
    record.tagged_addresses = tagged_addresses(&mut fields)?;
    let checks = checks_of(&mut fields, &id, &record.service, strict)?;
    // Known to Consul, and without a meaning here.
    for passed_over in ["token", "ns", "namespace", "partition", "locality", "ports", "peername"] {
        fields.get(passed_over);
    }
    for mesh in ["connect", "proxy"] {
        if fields.get(mesh).is_some_and(|value| value.as_object().is_none_or(|object| !object.is_empty()))
            && strict == Strict::Yes
        {
            return Err(FieldError::new(fields.path(mesh), "no service mesh here; leave it out"));
        }
    }
    if strict == Strict::Yes {
        fields.refuse_unknown()?;
    }
    bounded(&record, path)?;
    Ok(ServiceDefinition { id, record, checks })
}

fn checks_of(
    fields: &mut Fields<'_>,
    id: &str,
    service: &str,
    strict: Strict,
) -> Result<BTreeMap<String, CheckRecord>, FieldError> {
    let mut written = Vec::new();
    if let Some(one) = fields.get("check") {
        written.push((fields.path("check"), one));
    }
    if let Some(more) = fields.get("checks") {
        let path = fields.path("checks");
        let Some(list) = more.as_array() else { return Err(FieldError::new(path, "a list is expected here")) };
        written.extend(list.iter().enumerate().map(|(index, one)| (format!("{path}[{index}]"), one)));
    }
    if written.len() > MAX_CHECKS {
        return Err(FieldError::new(fields.path("checks"), format!("{MAX_CHECKS} checks at most")));
    }
    let mut checks = BTreeMap::new();
    let alone = written.len() == 1;
    for (index, (path, value)) in written.into_iter().enumerate() {
        // Consul's clients send an empty one.
        if value.as_object().is_some_and(serde_json::Map::is_empty) {
            continue;
        }
        let (given, mut record) = check(value, &path, strict)?;
        if record.kind.is_empty() {
            let message = "a check needs a type: `http`, `tcp`, `udp`, `grpc`, `h2ping`, `ttl`, `args` or an alias";
            return Err(FieldError::new(path, message));
        }
        id.clone_into(&mut record.service_id);
        service.clone_into(&mut record.service);
        if record.name.is_empty() {
            record.name = format!("Service '{service}' check");
        }
        let check_id = match given {
            Some(given) => given,
            None if alone => format!("service:{id}"),
            None => format!("service:{id}:{}", index + 1),
        };
        if checks.insert(check_id.clone(), record).is_some() {
            return Err(FieldError::new(path, format!("another check has the id `{check_id}`")));
        }
    }
    Ok(checks)
}

/// Reads a check's definition, and its id if it has one. Name and service are for the caller to fill in.
///
/// # Errors
/// What is wrong, and where.
pub fn check(value: &Value, path: &str, strict: Strict) -> Result<(Option<String>, CheckRecord), FieldError> {
    let mut fields = Fields::of(value, path)?;
    let ids = [fields.name("checkid")?, fields.name("id")?];
    if ids.iter().any(|id| id == ALIVE) {
        return Err(FieldError::new(path, format!("`{ALIVE}` is the node's own check: choose another id")));
    }
    let mut definition = how(&mut fields)?;
    let kind = kind_of(&definition);
    let timed = !matches!(kind, "ttl" | "alias" | "");
    if timed && definition.interval_ms == 0 {
        return Err(FieldError::new(path, format!("a check of type {kind} needs an `interval`, such as `10s`")));
    }
    if timed {
        definition.interval_ms = definition.interval_ms.max(MIN_INTERVAL.as_millis() as u64);
        definition.timeout_ms = if definition.timeout_ms == 0 { TIMEOUT_MS } else { definition.timeout_ms };
    }
    if definition.deregister_after_ms > 0 {
        definition.deregister_after_ms = definition.deregister_after_ms.max(MIN_DEREGISTER.as_millis() as u64);
    }
    let status = fields.text("status")?;
    let status = match status.as_str() {
        "" => CheckStatus::Critical,
        word => CheckStatus::parse(word).ok_or_else(|| {
            FieldError::new(fields.path("status"), format!("`passing`, `warning` or `critical`, not `{word}`"))
        })?,
    };
    let record = CheckRecord {
        name: fields.text("name")?,
        status,
        notes: fields.text("notes")?,
        output: cut(fields.text("output")?, MAX_OUTPUT),
        service_id: fields.text("serviceid")?,
        service: String::new(),
        kind: kind.to_owned(),
        definition: Some(definition),
        owner: Owner::Agent,
    };
    for passed_over in ["token", "namespace", "partition", "node", "servicename", "servicetags", "type"] {
        fields.get(passed_over);
    }
    if let Some(osservice) = fields.get("osservice").filter(|value| value.as_str() != Some("")) {
        return Err(FieldError::new(
            fields.path("osservice"),
            format!("checks of services of the system ({osservice}) are not made here"),
        ));
    }
    for elsewhere in ["shell", "dockercontainerid"] {
        if fields.get(elsewhere).is_some_and(|value| value.as_str() != Some("")) {
            return Err(FieldError::new(fields.path(elsewhere), "checks inside containers are not made here"));
        }
    }
    if strict == Strict::Yes {
        fields.refuse_unknown()?;
    }
    bounded(&record, path)?;
    Ok((ids.into_iter().find(|id| !id.is_empty()), record))
}

fn how(fields: &mut Fields<'_>) -> Result<CheckDefinition, FieldError> {
    let count = |number: Option<u64>| number.map_or(0, |number| u32::try_from(number).unwrap_or(u32::MAX));
    let mut args = fields.texts("args")?;
    if args.is_empty() {
        args = fields.texts("scriptargs")?;
    }
    let script = fields.text("script")?;
    if !script.is_empty() {
        return Err(FieldError::new(
            fields.path("script"),
            "write `args` instead: a list of the program and its arguments",
        ));
    }
    let h2ping = fields.text("h2ping")?;
    // Consul's default, unlike that of the other kinds.
    let h2ping_use_tls = fields.flag_or("h2pingusetls", true)? && !h2ping.is_empty();
    let definition = CheckDefinition {
        http: fields.text("http")?,
        method: fields.text("method")?,
        header: fields.lists("header")?,
        body: fields.text("body")?,
        tls_server_name: fields.text("tlsservername")?,
        tls_skip_verify: fields.flag("tlsskipverify")?,
        disable_redirects: fields.flag("disableredirects")?,
        tcp: fields.text("tcp")?,
        tcp_use_tls: fields.flag("tcpusetls")?,
        udp: fields.text("udp")?,
        grpc: fields.text("grpc")?,
        grpc_use_tls: fields.flag("grpcusetls")?,
        h2ping,
        h2ping_use_tls,
        args,
        alias_node: fields.text("aliasnode")?,
        alias_service: fields.text("aliasservice")?,
        ttl_ms: fields.millis("ttl")?,
        interval_ms: fields.millis("interval")?,
        timeout_ms: fields.millis("timeout")?,
        success_before_passing: count(fields.number("successbeforepassing", 1000)?),
        failures_before_warning: count(fields.number("failuresbeforewarning", 1000)?),
        failures_before_critical: count(fields.number("failuresbeforecritical", 1000)?),
        deregister_after_ms: fields.millis("deregistercriticalserviceafter")?,
        output_max_size: count(fields.number("outputmaxsize", MAX_OUTPUT as u64)?),
    };
    if !definition.http.is_empty()
        && !definition.http.starts_with("http://")
        && !definition.http.starts_with("https://")
    {
        return Err(FieldError::new(fields.path("http"), "a URL is expected, with http:// or https:// in front"));
    }
    let ways = [
        !definition.http.is_empty(),
        !definition.tcp.is_empty(),
        !definition.udp.is_empty(),
        !definition.grpc.is_empty(),
        !definition.h2ping.is_empty(),
        !definition.args.is_empty(),
        definition.ttl_ms > 0,
        !definition.alias_node.is_empty() || !definition.alias_service.is_empty(),
    ];
    if ways.iter().filter(|way| **way).count() > 1 {
        return Err(FieldError::new(fields.path("http"), "one check is made in one way: write several checks"));
    }
    Ok(definition)
}

/// Consul's word for the way a check is made.
pub fn kind_of(definition: &CheckDefinition) -> &'static str {
    match definition {
        one if !one.http.is_empty() => "http",
        one if !one.tcp.is_empty() => "tcp",
        one if !one.udp.is_empty() => "udp",
        one if !one.grpc.is_empty() => "grpc",
        one if !one.h2ping.is_empty() => "h2ping",
        one if !one.args.is_empty() => "script",
        one if one.ttl_ms > 0 => "ttl",
        one if !one.alias_node.is_empty() || !one.alias_service.is_empty() => "alias",
        _ => "",
    }
}

/// A port; 0 when absent.
///
/// # Errors
/// It is none.
pub fn port(fields: &mut Fields<'_>) -> Result<u16, FieldError> {
    Ok(fields.number("port", 65_535)?.and_then(|port| u16::try_from(port).ok()).unwrap_or_default())
}

/// Weights, 1 and 1 when absent.
///
/// # Errors
/// They are none.
pub fn weights(fields: &mut Fields<'_>) -> Result<Weights, FieldError> {
    let Some(value) = fields.get("weights") else { return Ok(Weights::default()) };
    let mut weights = Fields::of(value, &fields.path("weights"))?;
    let mut one = |key| Ok(weights.number(key, 65_535)?.and_then(|weight| u16::try_from(weight).ok()).unwrap_or(1));
    Ok(Weights { passing: one("passing")?, warning: one("warning")? })
}

/// Addresses with their ports, by purpose.
///
/// # Errors
/// They are none.
pub fn tagged_addresses(fields: &mut Fields<'_>) -> Result<BTreeMap<String, ServiceAddress>, FieldError> {
    let Some(value) = fields.get("taggedaddresses") else { return Ok(BTreeMap::new()) };
    let path = fields.path("taggedaddresses");
    let Some(object) = value.as_object() else { return Err(FieldError::new(path, "an object is expected here")) };
    let one = |(tag, value): (&String, &Value)| {
        let mut address = Fields::of(value, &format!("{path}.{tag}"))?;
        Ok((tag.clone(), ServiceAddress { address: address.text("address")?, port: port(&mut address)? }))
    };
    object.iter().map(one).collect()
}

/// Refuses a record that is too large.
///
/// # Errors
/// Its size.
pub fn bounded(record: &impl serde::Serialize, path: &str) -> Result<(), FieldError> {
    let bytes = serde_json::to_vec(record).map_or(usize::MAX, |bytes| bytes.len());
    if bytes <= MAX_RECORD_BYTES {
        return Ok(());
    }
    Err(FieldError::new(path, format!("{bytes} bytes with all tags, meta and texts; the limit is {MAX_RECORD_BYTES}")))
}

/// The beginning of a text, at most so many bytes.
pub fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{CheckStatus, Strict, check, service};

    #[test]
    fn a_service_is_read_in_both_spellings() {
        let snake = json!({ "name": "web", "tags": ["v1"], "port": 80, "weights": { "passing": 5 },
            "check": { "http": "http://127.0.0.1/health", "interval": "10s", "deregister_critical_service_after": "1s" } });
        let camel = json!({ "Name": "web", "Tags": ["v1"], "Port": 80, "Weights": { "Passing": 5 },
            "Check": { "HTTP": "http://127.0.0.1/health", "Interval": "10s", "DeregisterCriticalServiceAfter": "1s" } });
        let read = service(&snake, "", Strict::Yes).unwrap();
        assert_eq!(service(&camel, "", Strict::Yes).unwrap(), read);
        assert_eq!((read.id.as_str(), read.record.port, read.record.weights.passing), ("web", 80, 5));
        let check = &read.checks["service:web"];
        let definition = check.definition.as_ref().unwrap();
        assert_eq!((definition.interval_ms, definition.timeout_ms), (10_000, 10_000));
        assert_eq!(definition.deregister_after_ms, 60_000, "a minute at least");
        assert_eq!((check.kind.as_str(), check.status), ("http", CheckStatus::Critical));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        for (value, says) in [
            (json!({}), "`name`: a service needs a name"),
            (json!({ "name": "a", "port": 70_000 }), "`port`: a whole number"),
            (json!({ "name": "a", "check": { "http": "x", "interval": "1s" } }), "`check.http`: a URL"),
            (json!({ "name": "a", "check": { "tcp": "a:1" } }), "`check`: a check of type tcp needs an `interval`"),
            (json!({ "name": "a", "checks": [{ "ttl": "x" }] }), "`checks[0].ttl`: a duration"),
            (json!({ "name": "a", "check": { "ttl": "1s", "status": "fine" } }), "not `fine`"),
            (json!({ "name": "a", "check": { "ttl": "1s", "tcp": "a:1", "interval": "1s" } }), "one way"),
            (json!({ "name": "a", "meta": { "x": "y".repeat(70_000) } }), "the limit is 65536"),
            (json!({ "name": "a", "tags": vec!["x"; 300] }), "256 tags"),
            (json!({ "name": "a", "prot": 1 }), "did you mean `port`"),
        ] {
            let error = service(&value, "", Strict::Yes).unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
        assert!(service(&json!({ "name": "a", "prot": 1 }), "", Strict::No).is_ok());
        assert!(check(&json!({ "ttl": "10s" }), "", Strict::Yes).is_ok());
    }
}
