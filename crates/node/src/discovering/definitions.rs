//! Files of service definitions as Consul has them: read, with every mistake's file, line and key; and what they define kept
//! registered with this node. What a file no longer defines goes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data::Op;
use discovery::definition::{self, ServiceDefinition, Strict};
use discovery::fields::FieldError;
use discovery::key::About;
use discovery::record::Owner;
use discovery::{Registry, RegistryError, writing};
use model::config::yaml::{self, Kind, Node};
use model::diagnostic::Diagnostics;
use serde_json::Value;

/// The largest file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// Reads a file: each service as it is written, and as it is meant.
///
/// # Errors
/// File, line, key, and what is wrong.
pub fn read(path: &Path) -> Result<Vec<(Value, ServiceDefinition)>, String> {
    let name = path.display();
    let size = std::fs::metadata(path).map_err(|error| format!("{name}: {error}"))?.len();
    if size > MAX_BYTES {
        return Err(format!("{name}: {size} bytes; the limit is {MAX_BYTES}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
    let whole: Value = serde_json::from_str(&text)
        .map_err(|error| format!("{name}, line {}: this is no JSON: {error}", error.line()))?;
    parse(&whole).map_err(|error| match line_of(&text, &error.path) {
        Some(line) => format!("{name}, line {line}: {error}"),
        None => format!("{name}: {error}"),
    })
}

/// `service` has one or a list, `services` a list.
fn parse(whole: &Value) -> Result<Vec<(Value, ServiceDefinition)>, FieldError> {
    let Value::Object(object) = whole else {
        return Err(FieldError::new("", "an object with `service` or `services` is expected"));
    };
    let mut found = Vec::new();
    let mut ids = BTreeSet::new();
    for (key, value) in object {
        let many = match (key.to_ascii_lowercase().as_str(), value) {
            ("service" | "services", Value::Array(list)) => {
                list.iter().enumerate().map(|(at, one)| (format!("{key}[{at}]"), one)).collect()
            }
            ("service", one) => vec![(key.clone(), one)],
            ("services", _) => return Err(FieldError::new(key, "a list is expected here")),
            _ => {
                let message = "only `service` and `services` are read; write checks into their service";
                return Err(FieldError::new(key, message));
            }
        };
        for (path, one) in many {
            let read = definition::service(one, &path, Strict::Yes)?;
            if !ids.insert(read.id.clone()) {
                return Err(FieldError::new(path, format!("another service has the id `{}`", read.id)));
            }
            found.push((one.clone(), read));
        }
    }
    if found.is_empty() {
        return Err(FieldError::new("", "there is no service in it"));
    }
    Ok(found)
}

/// The line of what a path leads to, or of the nearest thing around it. JSON is read as what it is a part of, which knows lines.
fn line_of(text: &str, path: &str) -> Option<u32> {
    let mut now: &Node = &yaml::parse(text, 0, &mut Diagnostics::default())?;
    let mut line = now.place.line;
    for part in path.split(['.', '[']).map(|part| part.trim_end_matches(']')).filter(|part| !part.is_empty()) {
        let next = match &now.kind {
            Kind::List(list) => list.get(part.parse::<usize>().ok()?),
            Kind::Map(pairs) => pairs.iter().find(|(key, _)| key.name == part).map(|(key, value)| {
                line = key.place.line;
                value
            }),
            Kind::Null | Kind::Scalar { .. } => None,
        };
        let Some(next) = next else { break };
        if matches!(now.kind, Kind::List(_)) {
            line = next.place.line;
        }
        now = next;
    }
    Some(line)
}

/// Registers what `files` define, and takes out what they defined before.
///
/// # Errors
/// The store's; a file that cannot be read leaves what it defined before.
pub async fn register(registry: &Arc<Registry>, files: Vec<PathBuf>) -> Result<(), RegistryError> {
    let read = tokio::task::spawn_blocking(move || files.iter().map(|file| read(file)).collect::<Result<Vec<_>, _>>());
    let wanted: Vec<ServiceDefinition> = match read.await {
        Ok(Ok(files)) => files.into_iter().flatten().map(|(_, definition)| of_file(definition)).collect(),
        Ok(Err(problem)) => {
            tracing::error!(problem, "service definitions are left as they were: mend the file and apply again");
            return Ok(());
        }
        Err(error) => {
            tracing::error!(%error, "reading service definitions failed");
            return Ok(());
        }
    };
    registry.catch_up().await?;
    let ops = ops(registry, &wanted)?;
    registry.change(ops).await
}

fn of_file(mut definition: ServiceDefinition) -> ServiceDefinition {
    definition.record.owner = Owner::File;
    definition.checks.values_mut().for_each(|check| check.owner = Owner::File);
    definition
}

fn ops(registry: &Registry, wanted: &[ServiceDefinition]) -> Result<Vec<Op>, data::StoreError> {
    let catalog = registry.read();
    let node = registry.node();
    let mut ops = Vec::new();
    for definition in wanted {
        let known = catalog.node(node).and_then(|(_, entry)| entry.services.get(&definition.id));
        if known.is_some_and(|known| known.record.owner == Owner::Seawall) {
            tracing::error!(
                id = definition.id,
                "a definition file names an instance that Seawall runs: it is left out"
            );
            continue;
        }
        ops.extend(writing::register(&catalog, node, definition, true)?);
    }
    let Some((_, entry)) = catalog.node(node) else { return Ok(ops) };
    let kept = |id: &String| wanted.iter().any(|definition| definition.id == *id);
    for (id, _) in entry.services.iter().filter(|(id, one)| one.record.owner == Owner::File && !kept(id)) {
        ops.extend(writing::deregister(&catalog, node, id)?);
        ops.push(writing::delete(&About::Check(node.into(), format!("_service_maintenance:{id}")))?);
    }
    Ok(ops)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_mistake_is_told_with_file_line_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("order.json");
        let check = |text: &str, says: &str| {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.starts_with(&path.display().to_string()), "{error}");
            assert!(error.contains(says), "{error} should say {says}");
        };
        check(
            "{\n \"service\": {\n  \"name\": \"a\",\n  \"prot\": 1\n }\n}",
            "line 4: `service.prot`: this key is not known",
        );
        check(
            "{\n \"services\": [\n  { \"name\": \"a\" },\n  { \"name\": \"b\",\n    \"check\": { \"http\": \"http://b/\",\n \"interval\": \"x\" } } ]\n}",
            "line 6: `services[1].check.interval`",
        );
        check("{\n \"service\": { ", "line 2");
        check("{ \"checks\": [] }", "`checks`: only `service`");
        check("{}", "no service");
        check("{ \"services\": [{ \"name\": \"a\" }, { \"name\": \"a\" }] }", "another service has the id `a`");
        std::fs::write(&path, "{ \"services\": [{ \"name\": \"a\" }, { \"name\": \"a\", \"id\": \"b\" }] }").unwrap();
        assert_eq!(read(&path).unwrap().len(), 2);
    }
}
