//! Holds `docs/reference/borrowed-settings.md` to the code: every key that is read has its row, every row its key; every
//! test that is named is there, in a file that writes the key; and what is said to be refused is refused, by its name and
//! where it stands. Deliberately absent: what the keys do, which is what the named tests see.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::super::decode::Decode;
use super::super::load;
use super::{hystrix, istio, sentinel};
use crate::config::CircuitBreaker;

/// A row: its keys, what is said of them, and the tests that are named.
struct Row {
    keys: Vec<String>,
    here: String,
    tests: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What stands between backquotes.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn tables() -> BTreeMap<String, Vec<Row>> {
    let text = std::fs::read_to_string(root().join("docs/reference/borrowed-settings.md")).unwrap();
    let mut tables: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let mut table = String::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            title.clone_into(&mut table);
        }
        let Some(inside) = line.strip_prefix("| `") else { continue };
        // A choice in a cell is written with `\|`.
        let inside = inside.replace("\\|", "/");
        let cells: Vec<&str> = inside.split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 5, "four columns: {line}");
        let row = Row { keys: quoted(&format!("`{}", cells[0])), here: cells[1].to_owned(), tests: quoted(cells[3]) };
        assert!(!cells[2].is_empty(), "where is its meaning from? {line}");
        tables.entry(table.clone()).or_default().push(row);
    }
    tables
}

/// The keys of records and of the records in them, with dots between; of Istio's objects those below `spec`.
fn known() -> BTreeMap<&'static str, BTreeSet<String>> {
    let mut definitions = BTreeMap::new();
    let mut schemas = sentinel::schemas(&mut definitions).to_vec();
    schemas.extend(istio::schemas(&mut definitions));
    schemas.push(("resilience4j: CircuitBreaker", CircuitBreaker::schema(&mut definitions)));
    let keys = |(table, schema): &(&'static str, Value)| {
        let mut found = BTreeSet::new();
        collect(schema, &definitions, "", &mut found);
        if table.starts_with("Istio") {
            found = found.iter().filter_map(|key| key.strip_prefix("spec.")).map(str::to_owned).collect();
        }
        (*table, found)
    };
    let mut known: BTreeMap<&str, BTreeSet<String>> = schemas.iter().map(keys).collect();
    known.insert("Hystrix: commands", hystrix::KNOWN.iter().map(|key| (*key).to_owned()).collect());
    known.insert("nginx", words_of_nginx());
    known
}

fn collect(schema: &Value, definitions: &BTreeMap<String, Value>, before: &str, found: &mut BTreeSet<String>) {
    let schema = if schema["type"] == "array" { &schema["items"] } else { schema };
    let record = schema["$ref"].as_str().and_then(|name| definitions.get(name.trim_start_matches("#/$defs/")));
    match record.and_then(|record| record["properties"].as_object()) {
        Some(properties) => {
            for (key, inside) in properties {
                let dot = if before.is_empty() { "" } else { "." };
                collect(inside, definitions, &format!("{before}{dot}{key}"), found);
            }
        }
        None => drop(found.insert(before.to_owned())),
    }
}

/// The words that the readers of nginx' blocks compare with: those of their choices, and those in front of `=`.
fn words_of_nginx() -> BTreeSet<String> {
    let sources = [include_str!("nginx.rs"), include_str!("nginx/location.rs"), include_str!("nginx/limits.rs")];
    let mut found = BTreeSet::new();
    for source in sources {
        let mut rest = source;
        while let Some((before, after)) = rest.split_once('"') {
            let Some((word, behind)) = after.split_once('"') else { break };
            let is_choice = ["=>", "| \"", "if "].iter().any(|next| behind.trim_start().starts_with(next));
            let is_option = before.ends_with("value(word, ");
            let plain = !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte));
            let is_status = word.parse::<u16>().is_ok();
            if plain && !is_status && (is_choice || is_option || before.trim_end().ends_with("name.as_str(),")) {
                found.insert(word.to_owned());
            }
            rest = behind;
        }
    }
    found
}

/// The word that a row of nginx' is about.
fn last_word(key: &str) -> String {
    key.split(' ').next_back().unwrap_or_default().trim_end_matches('=').to_owned()
}

#[test]
fn every_key_that_is_read_has_its_row_and_every_row_its_key() {
    let (tables, mut known) = (tables(), known());
    let own = known.remove("resilience4j: CircuitBreaker").unwrap();
    for (table, known) in known {
        let of = |row: &Row| -> Vec<String> {
            row.keys.iter().map(|key| if table == "nginx" { last_word(key) } else { key.clone() }).collect()
        };
        let rows = &tables[table];
        let listed: BTreeSet<String> = rows.iter().flat_map(of).collect();
        let missing: Vec<&String> = known.difference(&listed).collect();
        assert!(missing.is_empty() && known.len() > 8, "{table}: no row has {missing:?}");
        for row in rows.iter().filter(|row| !row.here.starts_with("refused")) {
            let unknown: Vec<String> = of(row).into_iter().filter(|key| !known.contains(key)).collect();
            assert!(unknown.is_empty(), "{table}: nobody reads {unknown:?}");
        }
        let count = rows.iter().map(|row| row.keys.len()).sum::<usize>();
        let once: BTreeSet<&String> = rows.iter().flat_map(|row| &row.keys).collect();
        assert_eq!(count, once.len(), "{table}: a key stands twice");
    }
    // resilience4j's settings have keys of Seawall's own: all of them, and no others.
    let told: BTreeSet<String> =
        tables["resilience4j: CircuitBreaker"].iter().flat_map(|row| quoted(&row.here)).collect();
    for key in
        own.iter().filter(|key| !matches!(key.as_str(), "preset" | "per" | "errorCount") && !key.starts_with("from."))
    {
        assert!(
            told.iter().any(|told| told.split(':').next() == Some(key)),
            "resilience4j: nothing says what `{key}` is"
        );
    }
}

#[test]
fn every_test_that_is_named_is_there_and_writes_the_key() {
    let mut tests = BTreeSet::new();
    for (table, rows) in tables() {
        for row in rows {
            let refused = row.here.starts_with("refused");
            assert_eq!(
                row.tests.is_empty(),
                refused,
                "{table}: {:?}: either it is refused, or a test sees it",
                row.keys
            );
            let mut texts = String::new();
            for test in &row.tests {
                let (file, name) = test.split_once("::").unwrap();
                let text = std::fs::read_to_string(root().join("crates").join(file)).unwrap();
                assert!(text.contains(&format!("#[test]\nfn {name}()")), "{file} has no test `{name}`");
                texts += &text;
                tests.insert(test.clone());
            }
            // resilience4j's own words stand in no configuration.
            for key in row.keys.iter().filter(|_| !refused && !table.starts_with("resilience4j")) {
                let word =
                    if table == "nginx" { last_word(key) } else { key.split('.').next_back().unwrap().to_owned() };
                let part = word.trim_start_matches("http_").trim_start_matches("proxy_");
                assert!(texts.contains(part), "{table}: {:?} does not write `{key}`", row.tests);
            }
        }
    }
    assert!(tests.len() > 25, "{} tests", tests.len());
}

const SHOP: &str = "services:\n  shop: { command: [shop] }\n  other: { command: [other] }\n";

/// A file with one thing that is refused in a line of its own, by the table and the key of its row.
fn refusals() -> Vec<(&'static str, String, String)> {
    let mut all = Vec::new();
    let rule = |table: &'static str, base: &str, fields: &[(&str, &str)]| {
        let one =
            |(key, value): &(&str, &str)| (table, (*key).to_owned(), format!("[{{{base},\n\"{key}\": {value}}}]"));
        fields.iter().map(one).collect::<Vec<_>>()
    };
    all.extend(rule("Sentinel: FlowRule", r#""resource": "shop", "count": 1"#, &[("clusterMode", "true")]));
    let degrade = r#""resource": "shop", "count": 1, "timeWindow": 1"#;
    all.extend(rule("Sentinel: DegradeRule", degrade, &[("limitApp", "\"a\"")]));
    let fields = [("limitApp", "\"a\""), ("regex", "true"), ("clusterMode", "true")];
    all.extend(rule("Sentinel: ParamFlowRule", r#""resource": "shop", "paramIdx": 0, "count": 1"#, &fields));
    for (key, value) in [
        ("circuitBreaker.forceOpen", "true"),
        ("circuitBreaker.forceClosed", "true"),
        ("metrics.rollingStats.numBuckets", "20"),
        ("execution.isolation.thread.interruptOnTimeout", "true"),
        ("fallback.enabled", "true"),
        ("fallback.isolation.semaphore.maxConcurrentRequests", "9"),
        ("metrics.rollingPercentile.enabled", "true"),
        ("metrics.healthSnapshot.intervalInMilliseconds", "500"),
        ("requestCache.enabled", "true"),
    ] {
        all.push(("Hystrix: commands", key.to_owned(), format!("\nhystrix.command.shop.{key}={value}\n")));
    }
    for key in [
        "maxWaitDurationInHalfOpenState",
        "automaticTransitionFromOpenToHalfOpenEnabled",
        "waitIntervalFunctionInOpenState",
        "recordExceptions",
        "ignoreExceptions",
        "initialState",
    ] {
        let text =
            format!("services:\n  own:\n    command: [a]\n    traffic:\n      circuitBreaker:\n        {key}: 1\n");
        all.push(("resilience4j: CircuitBreaker", key.to_owned(), text));
    }
    let server = "upstream u {\nserver h:1 %; server i:1; }\n";
    let upstream = "upstream u { server h:1;\n%; }\n";
    let location = "upstream u { server h:1; }\nlocation / { proxy_pass http://u;\n%; }\n";
    let zoned = "limit_req_zone $server_name zone=z:1m rate=1r/s;\nupstream u { server h:1; }\nlocation / { proxy_pass http://u;\n%; }\n";
    for (key, base, text) in [
        ("ip_hash", upstream, "ip_hash"),
        ("hash", upstream, "hash $request_uri"),
        ("server slow_start=", server, "slow_start=30s"),
        ("server resolve", server, "resolve"),
        ("limit_req delay=", zoned, "limit_req zone=z burst=9 delay=2"),
        ("limit_req_dry_run", location, "limit_req_dry_run on"),
        ("proxy_redirect", location, "proxy_redirect off"),
        ("rewrite", location, "rewrite ^/a /b"),
        ("root", location, "root /srv"),
        ("server", "upstream u { server h:1; }\n%\n", "server { listen 80; }"),
    ] {
        all.push(("nginx", key.to_owned(), base.replace('%', text)));
    }
    let tables = tables();
    for (table, kind, host) in [
        ("Istio: VirtualService", "VirtualService", "hosts: [a.test]"),
        ("Istio: DestinationRule", "DestinationRule", "host: shop"),
    ] {
        for key in tables[table].iter().filter(|row| row.here.starts_with("refused")).flat_map(|row| &row.keys) {
            let head = format!("apiVersion: networking.istio.io/v1\nkind: {kind}\nspec:\n  {host}\n");
            all.push((table, key.clone(), head + &nested(key)));
        }
    }
    all
}

/// A field of an object, with what must stand around it.
fn nested(key: &str) -> String {
    let (mut text, mut indent) = (String::new(), "  ".to_owned());
    let parts: Vec<&str> = key.split('.').collect();
    for (depth, part) in parts.iter().enumerate() {
        let first = match *part {
            "http" if depth == 0 => "route: [{ destination: { host: shop } }]",
            "match" | "subsets" => "name: x",
            _ => "",
        };
        let beside = match *part {
            "directResponse" => "status: 200",
            "delay" => "fixedDelay: 1s",
            _ => "",
        };
        if depth + 1 == parts.len() {
            text += &format!("{indent}{part}: {{}}\n");
        } else if first.is_empty() {
            text += &format!("{indent}{part}:\n{indent}  {beside}\n");
        } else {
            text += &format!("{indent}{part}:\n{indent}- {first}\n");
        }
        indent += "  ";
    }
    text
}

#[test]
fn what_is_said_to_be_refused_is_refused_by_its_name_where_it_stands() {
    let mut shown: BTreeSet<(String, String)> = BTreeSet::new();
    for (table, key, text) in refusals() {
        let (include, file) = match table {
            "Sentinel: FlowRule" => ("include: { sentinel: { flow: f } }\n", "f"),
            "Sentinel: DegradeRule" => ("include: { sentinel: { degrade: f } }\n", "f"),
            "Sentinel: ParamFlowRule" => {
                ("include: { sentinel: { paramFlow: f, parameters: { shop: [{ query: a }] } } }\n", "f")
            }
            "Hystrix: commands" => ("include: { hystrix: { properties: f } }\n", "f"),
            "nginx" => ("include: { nginx: [f] }\n", "f"),
            "resilience4j: CircuitBreaker" => ("include: [f]\n", "f"),
            _ => ("include: { istio: [f] }\n", "f"),
        };
        let main = format!("{include}{SHOP}");
        let read = load(Path::new("main"), &mut |path| Ok(if path.ends_with("main") { &main } else { &text }.clone()));
        let report = read.diagnostics.render(&read.sources);
        let word = match table {
            "nginx" => last_word(&key),
            "Hystrix: commands" => key.clone(),
            _ => key.split('.').next_back().unwrap().to_owned(),
        };
        let begins = |line: &&str| line.contains(&word);
        let line = text.lines().count() - text.lines().rev().take_while(|line| !begins(line)).count();
        assert!(read.config.is_none(), "{table}: `{key}` is taken\n{text}");
        let told = report
            .lines()
            .any(|told| told.starts_with(&format!("{file}:{line}:")) && told.contains(&format!("`{word}")));
        assert!(told, "{table}: `{key}` is not refused by its name on line {line}:\n{report}\n{text}");
        shown.insert((table.to_owned(), key));
    }
    for (table, rows) in tables() {
        for key in rows.iter().filter(|row| row.here.starts_with("refused")).flat_map(|row| &row.keys) {
            assert!(shown.contains(&(table.clone(), key.clone())), "{table}: nothing shows that `{key}` is refused");
        }
    }
}
