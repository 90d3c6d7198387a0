//! py-consul's own suite: every test of it, with a Seawall where it starts a container of Consul for each (`conftest.py`).
//! What each comes to is in `outcomes.txt`, with a reason where it fails; the two are compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::{fetch, obtained, run};
use crate::support::BINARY;

const VERSION: &str = "1.8.0";
/// With what its suite is run.
const TOOLS: [&str; 6] = [
    "pytest==9.2.0",
    "pytest-asyncio==1.5.0",
    "pytest-xdist==3.8.0",
    "aiohttp==3.14.5",
    "requests==2.34.2",
    "packaging",
];
const CONFTEST: &str = include_str!("py_consul/conftest.py");
const EXPECTED: &str = include_str!("py_consul/outcomes.txt");
/// The suite takes half a minute on a machine that does nothing else.
const PATIENCE: Duration = Duration::from_secs(400);
/// Of all tests, so many of a hundred pass at least.
const LEAST: usize = 90;

fn make(folder: &Path) -> Result<(), String> {
    let package = format!("py-consul=={VERSION}");
    fetch(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
    let pip = || {
        let mut pip = Command::new(folder.join("venv/bin/python"));
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check"]);
        pip
    };
    fetch(pip().arg("install").args(TOOLS).arg(&package))?;
    // Its tests are in the source package alone.
    fetch(pip().args(["download", "--no-deps", "--no-binary", "py-consul", &package, "-d"]).arg(folder))?;
    let archive = folder.join(format!("py_consul-{VERSION}.tar.gz"));
    fetch(Command::new("python3").args(["-m", "tarfile", "-e"]).arg(archive).arg(folder))
}

/// How the tests end: passed or not, and whether they are for a Consul whose ACLs are on.
fn outcomes(folder: &Path, only: &[&str]) -> BTreeMap<String, (bool, bool)> {
    let suite = tempfile::tempdir().unwrap();
    let tests = suite.path().join("tests");
    let (copied, said) =
        run(Command::new("cp").arg("-r").arg(folder.join(format!("py_consul-{VERSION}/tests"))).arg(&tests), PATIENCE)
            .unwrap();
    assert!(copied, "{said}");
    std::fs::write(suite.path().join("conftest.py"), CONFTEST).unwrap();
    std::fs::write(suite.path().join("pytest.ini"), "[pytest]\nasyncio_mode = auto\n").unwrap();
    let file = suite.path().join("outcomes");
    let mut pytest = Command::new(folder.join("venv/bin/python"));
    pytest.args(["-m", "pytest", "-n", "2", "-q", "--tb=line"]).args(if only.is_empty() { &["tests"] } else { only });
    pytest.current_dir(suite.path()).env("SEAWALL_BINARY", BINARY).env("OUTCOMES", &file);
    let (_, said) = run(&mut pytest, PATIENCE).unwrap();
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {said}"));
    let one = |line: &str| {
        let value: Value = serde_json::from_str(line).unwrap();
        let id = value["id"].as_str().unwrap().to_owned();
        (id, (value["outcome"] == "passed", value["acl"] == true))
    };
    text.lines().map(one).collect()
}

#[test]
fn py_consuls_own_suite_passes_but_for_what_is_listed_with_a_reason() {
    let Some(folder) = obtained(&format!("py-consul-{VERSION}"), make) else { return };
    let mut found = outcomes(&folder, &[]);
    let mut expected: BTreeMap<String, Option<String>> = BTreeMap::new();
    for line in EXPECTED.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (word, rest) = line.split_once(' ').unwrap();
        let (id, reason) = match rest.split_once(" # ") {
            Some((id, reason)) => (id, Some(reason.to_owned())),
            None => (rest, None),
        };
        assert_eq!(word == "fails", reason.is_some(), "{line}: who fails has a reason, and nobody else");
        expected.insert(id.to_owned(), reason);
    }
    // Some of its tests give 40 ms, which a busy machine may not have; its own runner tries three times more.
    let again: Vec<&str> = found
        .iter()
        .filter(|(id, (passed, _))| !passed && expected.get(*id) == Some(&None))
        .map(|(id, _)| id.as_str())
        .collect();
    if !again.is_empty() {
        println!("tried again: {again:?}");
        let second = outcomes(&folder, &again);
        found.extend(second);
    }
    let mut wrong = String::new();
    for (id, (passed, _)) in &found {
        match expected.get(id) {
            None => writeln!(wrong, "{} {id}: not in the list", if *passed { "pass" } else { "fails" }).unwrap(),
            Some(reason) if reason.is_none() != *passed => {
                writeln!(wrong, "{id}: {}", if *passed { "passes; the list says fails" } else { "fails" }).unwrap();
            }
            Some(_) => {}
        }
    }
    expected.keys().filter(|id| !found.contains_key(*id)).for_each(|id| writeln!(wrong, "{id}: was not run").unwrap());
    assert!(wrong.is_empty(), "{wrong}");
    let passed = |acl: bool| found.values().filter(|(passed, of_acl)| *passed && *of_acl == acl).count();
    let all = |acl: bool| found.values().filter(|(_, of_acl)| *of_acl == acl).count();
    println!(
        "py-consul {VERSION}: {} of {} tests pass; of those for a Consul with ACLs, {} of {}",
        passed(false) + passed(true),
        found.len(),
        passed(true),
        all(true)
    );
    assert!((passed(false) + passed(true)) * 100 >= found.len() * LEAST);
}
