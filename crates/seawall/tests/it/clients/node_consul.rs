//! npm's `consul`: every call of its README (`calls.mjs`). Its own suite is not in the package.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{fetch, obtained, run};
use crate::support::Seawall;

const PACKAGE: &str = "consul@2.0.1";
const CALLS: &str = include_str!("node_consul/calls.mjs");

fn make(folder: &Path) -> Result<(), String> {
    std::fs::write(folder.join("package.json"), "{ \"private\": true }").map_err(|error| error.to_string())?;
    fetch(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund", PACKAGE]).current_dir(folder))
}

#[test]
fn every_call_of_the_readme_of_npms_consul_works_or_is_known_to_be_absent() {
    let Some(folder) = obtained(&format!("npm-{PACKAGE}"), make) else { return };
    let seawall = Seawall::up("");
    let script = seawall.folder().join("calls.mjs");
    std::fs::write(&script, CALLS).unwrap();
    let mut node = Command::new("node");
    node.arg(&script).arg(&folder).arg(seawall.api.to_string());
    let (passed, said) = run(&mut node, Duration::from_secs(60)).unwrap();
    assert!(passed, "{said}");
    let done: BTreeSet<&str> = said.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
    let readme = std::fs::read_to_string(folder.join("node_modules/consul/README.md")).unwrap();
    let of_readme: BTreeSet<&str> = readme
        .lines()
        .filter_map(|line| line.strip_prefix("### consul.")?.split_once('(').map(|(name, _)| name))
        .collect();
    let left_out: Vec<_> = of_readme.difference(&done).collect();
    assert!(left_out.is_empty() && of_readme.len() > 50, "not called: {left_out:?}");
    let absent = said.lines().filter(|line| line.starts_with("absent ")).count();
    println!("npm {PACKAGE}: {} of {} calls work", of_readme.len() - absent, of_readme.len());
    assert_eq!(absent, 10, "ACLs, joining, and forcing out somebody who is not known");
}
