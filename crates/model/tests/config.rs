//! What an operator sees of a configuration's mistakes, as text; and that a configuration survives being written and read.
//! Each case of `mistakes.txt` is a file between `# name` lines, then `>>>` and the report it must get, whole.
//! `UPDATE_FIXTURES=1 cargo test -p model --test config` writes the reports anew; read the difference before committing it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use model::config::{Decode as _, Foreign, decode_effective, load, load_over};

const MISTAKES: &str = include_str!("mistakes.txt");
const FULL: &str = include_str!("full.yaml");

/// The report of a file that includes nothing.
fn report(yaml: &str) -> String {
    let loaded = load(Path::new("shop.yaml"), &mut |_| Ok(yaml.to_owned()));
    assert!(loaded.config.is_none(), "this was meant to be refused:\n{yaml}");
    loaded.diagnostics.render(&loaded.sources)
}

/// Name, file and expected report of each case.
fn cases() -> Vec<(&'static str, &'static str, &'static str)> {
    let case = |text: &'static str| {
        let (name, rest) = text.split_once('\n').unwrap();
        let (yaml, expected) = rest.split_once(">>>\n").unwrap_or((rest, ""));
        (name, yaml, expected)
    };
    MISTAKES.split("\n# ").map(|text| text.trim_start_matches("# ")).map(case).collect()
}

#[test]
fn every_kind_of_mistake_is_told_with_place_and_cure() {
    let mut fresh = String::new();
    let mut wrong = Vec::new();
    for (name, yaml, expected) in cases() {
        let got = report(yaml);
        if got.trim_end() != expected.trim_end() {
            wrong.push(format!("# {name}\nexpected:\n{expected}\ngot:\n{got}"));
        }
        // Writing into a String cannot fail.
        let _ = write!(fresh, "# {name}\n{yaml}>>>\n{}\n\n", got.trim_end());
    }
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mistakes.txt"), fresh.trim_end().to_owned() + "\n")
            .unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn the_table_is_wide_and_every_report_has_a_place() {
    let kinds: BTreeSet<&str> = cases().iter().map(|(name, _, _)| *name).collect();
    assert!(kinds.len() >= 20, "only {} kinds", kinds.len());
    for (name, _, expected) in cases() {
        assert!(expected.contains("shop.yaml:"), "{name}: no file, line and column");
    }
}

#[test]
fn all_mistakes_of_all_files_are_told_at_once() {
    let all: Vec<&str> =
        cases().iter().filter(|(name, ..)| name.starts_with("many at once")).map(|(_, yaml, _)| *yaml).collect();
    let report = report(all[0]);
    assert!(report.matches("shop.yaml:").count() >= 5, "{report}");
    let files = |path: &Path| {
        Ok(if path.ends_with("more.yaml") {
            "services:\n  b: { comand: [x] }\n"
        } else {
            "include: [more.yaml]\nservices:\n  a: { replcas: 2 }\n"
        }
        .to_owned())
    };
    let loaded = load(Path::new("shop.yaml"), &mut { files });
    let report = loaded.diagnostics.render(&loaded.sources);
    assert!(report.contains("shop.yaml:3:8") && report.contains("more.yaml:2:8"), "{report}");
}

#[test]
fn a_configuration_survives_being_written_and_read() {
    let files = |path: &Path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        Ok(match extension {
            Some("json") => "[]",
            Some("conf") => "",
            _ if path.ends_with("istio.yaml") => "# nothing yet",
            Some("properties") => "hystrix.command.default.circuitBreaker.enabled=false",
            _ => FULL,
        }
        .to_owned())
    };
    let loaded = load(Path::new("/etc/seawall/shop.yaml"), &mut { files });
    let config = loaded.config.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render(&loaded.sources)));
    let written = config.encode();
    for text in [written.to_string(), serde_json::to_string_pretty(&written).unwrap()] {
        assert_eq!(decode_effective(&text).unwrap_or_else(|error| panic!("{error}")), config);
    }
    assert_eq!(decode_effective(&written.to_string()).unwrap().encode(), written);
}

/// The configuration in force has every default written in it and no places: the rules hold for it all the same, whatever it
/// was made of, and a file that says nothing new changes nothing.
#[test]
fn what_is_in_force_passes_the_rules_again() {
    let whole: String = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/full.yaml")).unwrap();
    // Only what is written there: the files of other tools have tests of their own.
    let whole = whole.split("\ninclude:").next().unwrap().to_owned();
    let config = load(Path::new("/etc/seawall/shop.yaml"), &mut |_| Ok(whole.clone())).config.unwrap();
    let in_force = decode_effective(&config.encode().to_string()).unwrap();
    let rule = "kind: DestinationRule\napiVersion: networking.istio.io/v1\nspec: { host: orders }\n";
    let loaded = load_over(&in_force, Foreign::Istio, Path::new("rule.yaml"), rule.to_owned());
    let said = loaded.diagnostics.render(&loaded.sources);
    assert!(said.is_empty(), "{said}");
    assert!(loaded.config == Some(config), "it changes something");
}

/// Every key that the schema knows is in `full.yaml`, so that none escapes the test above.
#[test]
fn the_full_example_has_every_key() {
    let schema = model::config::schema::schema();
    let mut missing = Vec::new();
    for (record, definition) in schema["$defs"].as_object().unwrap() {
        for key in definition["properties"].as_object().into_iter().flatten().map(|(key, _)| key) {
            let written =
                FULL.lines().any(|line| line.split(['{', ',', ' ', '-']).any(|word| word.trim() == format!("{key}:")));
            if !written {
                missing.push(format!("{record}.{key}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
