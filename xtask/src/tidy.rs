//! The house style as a test: what a reviewer should not have to look for. Reports everything at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A file longer than this must be split by idea.
const MAX_LINES: usize = 500;

/// What each crate may depend on among our own; the directions of ARCHITECTURE.md.
const DIRECTIONS: [(&str, &[&str]); 19] = [
    ("model", &[]),
    ("platform", &[]),
    ("observe", &["model"]),
    ("runtime", &["model"]),
    ("guard", &["model"]),
    ("traffic", &["model"]),
    ("health", &["model", "platform"]),
    ("data", &["model"]),
    ("base2histogram", &[]),
    ("discovery", &["data", "model"]),
    ("data-raft", &["data", "model", "platform"]),
    ("gateway", &["guard", "model", "platform", "traffic"]),
    ("api", &["data", "discovery", "health", "model", "observe", "platform"]),
    ("dns", &["discovery"]),
    ("keeper", &["model", "platform", "runtime"]),
    (
        "node",
        &[
            "api",
            "data",
            "data-raft",
            "discovery",
            "dns",
            "gateway",
            "health",
            "model",
            "observe",
            "platform",
            "runtime",
            "traffic",
        ],
    ),
    ("seawall", &["api", "keeper", "model", "node", "observe", "platform"]),
    ("xtask", &[]),
    ("sim", &["data", "data-raft", "health", "model"]),
];

/// Licenses that may be linked into the binary.
const LICENSES: [&str; 14] = [
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "0BSD",
    "CC0-1.0",
    "BSL-1.0",
    "MIT-0",
    "CDLA-Permissive-2.0",
    "Apache-2.0 WITH LLVM-exception",
];

/// Checks the tree at `root`.
pub fn run(root: &Path) -> Result<()> {
    let mut findings = Vec::new();
    for path in tracked(root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else { continue };
        no_machine_paths(&path, &text, &mut findings);
        if path.extension().is_some_and(|extension| extension == "rs") {
            source(&path, &text, &mut findings);
        }
    }
    reasons(root, &mut findings)?;
    let metadata = metadata(root)?;
    directions(&metadata, &mut findings);
    licenses(&metadata, &mut findings);
    reference(root, &mut findings)?;
    promises(root, &mut findings)?;
    if findings.is_empty() {
        println!("tidy: ok");
        return Ok(());
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    bail!("tidy: {} findings", findings.len())
}

fn tracked(root: &Path) -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()?;
    Ok(String::from_utf8(listed.stdout)?.lines().map(PathBuf::from).collect())
}

fn source(path: &Path, text: &str, findings: &mut Vec<String>) {
    let shown = path.display();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        findings.push(format!("{shown}: {lines} lines, over {MAX_LINES}: split by idea"));
    }
    if !text.lines().take(3).any(|line| line.starts_with("//!")) && !text.starts_with("#![") {
        findings.push(format!("{shown}:1: no `//!` that says what the file is"));
    }
    let is_platform = path.starts_with("crates/platform");
    let is_test = path
        .components()
        .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "examples" | "benches" | "xtask")))
        || shown.to_string().contains("tests.rs");
    let mut in_tests = is_test;
    for (number, line) in text.lines().enumerate() {
        in_tests |= line.trim() == "#[cfg(test)]";
        let code = line.split("//").next().unwrap_or_default();
        let mut find = |what: &str| findings.push(format!("{shown}:{}: {what}", number + 1));
        if path.starts_with("xtask") {
            continue;
        }
        let has = |parts: &[&str]| code.contains(&parts.concat());
        if has(&["#[", "ignore"])
            || has(&["todo", "!("])
            || has(&["unimpl", "emented!("])
            || line.contains(&["FIX", "ME"].concat())
        {
            find("unfinished or silenced");
        }
        if !is_platform
            && !is_test
            && (has(&["cfg(", "unix"])
                || has(&["cfg(", "windows"])
                || has(&["cfg(", "target_os"])
                || has(&["unsafe", " {"]))
        {
            find("platform differences and unsafe code live in crates/platform");
        }
        if !in_tests && has(&[".unw", "rap()"]) {
            find("unwrap outside tests: return an error, or `expect` with the invariant");
        }
    }
}

/// The tree speaks of the product alone.
fn no_machine_paths(path: &Path, text: &str, findings: &mut Vec<String>) {
    let homes = [["/ho", "me/"].concat(), ["/ro", "ot/"].concat(), ["/wo", "rk/"].concat()];
    for (number, line) in text.lines().enumerate() {
        if homes.iter().any(|home| line.contains(home.as_str())) {
            findings.push(format!("{}:{}: a path of somebody's machine", path.display(), number + 1));
        }
    }
}

/// Every dependency has its reason in a comment above it.
fn reasons(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let text = fs::read_to_string(root.join("Cargo.toml"))?;
    let mut in_dependencies = false;
    let mut explained = false;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            in_dependencies = line == "[workspace.dependencies]";
        }
        if !in_dependencies || line.contains("path = ") {
            continue;
        }
        if line.starts_with('#') {
            explained = true;
        } else if line.is_empty() {
            explained = false;
        } else if line.contains(" = ") && !explained {
            findings.push(format!("Cargo.toml:{}: a dependency without its reason", number + 1));
        }
    }
    Ok(())
}

fn metadata(root: &Path) -> Result<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn own(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten().filter(|package| package["source"].is_null())
}

fn directions(metadata: &Value, findings: &mut Vec<String>) {
    let allowed: BTreeMap<&str, &[&str]> = DIRECTIONS.into_iter().collect();
    let names: Vec<&str> = own(metadata).filter_map(|package| package["name"].as_str()).collect();
    for package in own(metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            findings.push(format!("crate `{name}` is not in the map of directions (xtask/src/tidy.rs)"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let is_test = dependency["kind"] == "dev";
            if names.contains(&on) && on != name && !is_test && !allowed.contains(&on) {
                findings.push(format!("crate `{name}` must not depend on `{on}`: see ARCHITECTURE.md"));
            }
        }
    }
}

fn licenses(metadata: &Value, findings: &mut Vec<String>) {
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let license = package["license"].as_str().unwrap_or_default();
        // `A OR B` needs one that is allowed, `A AND B` all.
        let all_allowed =
            |terms: &str| terms.split(" AND ").all(|term| LICENSES.contains(&term.trim_matches(['(', ')', ' '])));
        let fine = license.replace('/', " OR ").split(" OR ").any(all_allowed);
        if !fine {
            findings.push(format!(
                "dependency `{}` has the license `{license}`",
                package["name"].as_str().unwrap_or_default()
            ));
        }
    }
}

/// The configuration reference is what the binary prints.
fn reference(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--locked", "--package", "seawall", "--", "schema", "--markdown"])
        .current_dir(root)
        .output()?;
    if !output.status.success() {
        bail!("seawall schema: {}", String::from_utf8_lossy(&output.stderr));
    }
    let page = root.join("docs/reference/config.md");
    if fs::read(&page).unwrap_or_default() != output.stdout {
        findings.push("docs/reference/config.md is not what `seawall schema --markdown` prints: write it again".into());
    }
    Ok(())
}

/// Every test that README.md or ARCHITECTURE.md names exists.
fn promises(root: &Path, findings: &mut Vec<String>) -> Result<()> {
    let mut sources = String::new();
    for path in tracked(root)? {
        if path.extension().is_some_and(|extension| extension == "rs") {
            sources += &fs::read_to_string(root.join(&path)).unwrap_or_default();
        }
    }
    for page in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root.join(page)).with_context(|| page.to_owned())?;
        for name in text.split('`').filter(|word| is_test_name(word)) {
            if !sources.contains(&format!("fn {name}(")) {
                findings.push(format!("{page}: there is no test `{name}`"));
            }
        }
    }
    Ok(())
}

/// A snake_case word of four parts or more: tests are sentences, nothing else is.
fn is_test_name(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && word.matches('_').count() >= 3
}
