//! What others run: a line for each service, and for one that is asked for each of its instances with what its checks say.

use std::fmt::Write as _;

use api::view::{RegisteredView, Status};
use comfy_table::Cell;
use serde_json::Value;

use super::super::client::{Client, json};
use super::super::output::{lines, state, table};
use super::Failure;

/// Instances of one service that are shown.
const MOST: usize = 100;
/// Characters of what a check has found.
const MOST_TEXT: usize = 120;

/// The services, where there are some.
pub fn services(status: &Status) -> String {
    if status.registered.is_empty() {
        return String::new();
    }
    let mut rows = table(&["REGISTERED", "STATE", "PASSING", "WARNING", "CRITICAL"]);
    for service in &status.registered {
        let word = match (service.passing + service.warning, service.critical) {
            (0, _) => "down",
            (_, 0) => "ready",
            _ => "degraded",
        };
        rows.add_row([
            Cell::new(&service.name),
            state(word),
            Cell::new(service.passing),
            Cell::new(service.warning),
            Cell::new(service.critical),
        ]);
    }
    let mut page = format!("\n{}", lines(&rows));
    if status.registered_more > 0 {
        // Writing into a String cannot fail.
        let _ = writeln!(page, "and {} more: /v1/catalog/services", status.registered_more);
    }
    page
}

/// One service's instances, as the API has them; none when nothing has registered by that name.
///
/// # Errors
/// The node cannot be asked.
pub fn instances(client: &Client, service: &str) -> Result<Vec<Value>, Failure> {
    // A name with a slash is one segment all the same.
    let segment = Client::encode(service).replace('/', "%2F");
    match json(client.get(&format!("/v1/health/service/{segment}"))?)? {
        Value::Array(instances) => Ok(instances),
        _ => Ok(Vec::new()),
    }
}

/// How they stand as a whole.
pub fn summary(service: &str, instances: &[Value]) -> RegisteredView {
    let count = |word: &str| {
        let count = instances.iter().filter(|instance| worst(instance) == word).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    };
    RegisteredView {
        name: service.to_owned(),
        passing: count("passing"),
        warning: count("warning"),
        critical: count("critical"),
    }
}

/// Those that are not well come first.
pub fn page(mut instances: Vec<Value>) -> String {
    instances.sort_by_key(|instance| match worst(instance) {
        "critical" => 0,
        "warning" => 1,
        _ => 2,
    });
    let mut rows = table(&["INSTANCE", "NODE", "ADDRESS", "STATE", "NOTE"]);
    for instance in instances.iter().take(MOST) {
        let (service, node) = (&instance["Service"], &instance["Node"]);
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let own = word(&service["Address"]);
        let address = if own.is_empty() { word(&node["Address"]) } else { own };
        rows.add_row([
            Cell::new(word(&service["ID"])),
            Cell::new(word(&node["Node"])),
            Cell::new(format!("{address}:{}", service["Port"])),
            match worst(instance) {
                "passing" => state("ready"),
                "warning" => state("degraded"),
                _ => state("down"),
            },
            Cell::new(note(instance)),
        ]);
    }
    let mut page = format!("\n{}", lines(&rows));
    if instances.len() > MOST {
        let _ = writeln!(page, "and {} more: /v1/health/service", instances.len() - MOST);
    }
    page
}

fn checks(instance: &Value) -> impl Iterator<Item = (&str, &str, &str)> {
    instance["Checks"].as_array().into_iter().flatten().map(|check| {
        let word = |key: &str| check[key].as_str().unwrap_or_default();
        (word("Name"), word("Status"), word("Output"))
    })
}

fn worst(instance: &Value) -> &'static str {
    let of = |wanted: &str| checks(instance).any(|(_, status, _)| status == wanted);
    match (of("critical"), of("warning")) {
        (true, _) => "critical",
        (_, true) => "warning",
        _ => "passing",
    }
}

/// What the checks that do not pass have found, in one line.
fn note(instance: &Value) -> String {
    let bad = checks(instance).filter(|(_, status, _)| *status != "passing");
    let said = bad.map(|(name, status, output)| {
        let output: Vec<&str> = output.split_whitespace().collect();
        let output: String = output.join(" ").chars().filter(|letter| !letter.is_control()).take(MOST_TEXT).collect();
        if output.is_empty() { format!("{name} is {status}") } else { format!("{name}: {output}") }
    });
    said.collect::<Vec<_>>().join("; ")
}
