//! Another revision of the product, built beside this tree, for rounds that begin with it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::{root, run};

/// The binary of a revision that git knows; built once for each.
///
/// # Errors
/// There is no such revision, or it does not build.
pub fn built(revision: &str, release: bool) -> Result<PathBuf> {
    let mut parse = Command::new("git");
    parse.args(["rev-parse", "--verify", "--short=12"]).arg(format!("{revision}^{{commit}}")).current_dir(root());
    let parsed = parse.output().context("cannot run git")?;
    ensure!(parsed.status.success(), "git knows no revision `{revision}`");
    let name = String::from_utf8(parsed.stdout)?.trim().to_owned();
    let profile = if release { "release" } else { "debug" };
    let place = root().join("target/older");
    let program = place.join(format!("{name}-{profile}")).join("seawall");
    if program.exists() {
        return Ok(program);
    }
    println!("rounds: building {name}");
    let (source, archive) = (place.join("source"), place.join("source.tar"));
    // What an earlier revision left, if anything.
    let _ = fs::remove_dir_all(&source);
    fs::create_dir_all(&source).with_context(|| source.display().to_string())?;
    run(Command::new("git")
        .args(["archive", "--format=tar", "--output"])
        .arg(&archive)
        .arg(&name)
        .current_dir(root()))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--locked", "--package", "seawall"]).args(release.then_some("--release"));
    run(build.env("CARGO_TARGET_DIR", place.join("target")).current_dir(&source))?;
    let folder = program.parent().context("it has a folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::copy(place.join("target").join(profile).join("seawall"), &program).context("the older binary")?;
    Ok(program)
}
