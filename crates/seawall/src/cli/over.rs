//! Another tool's file given to `apply` or `check` by itself: what it is put over. Deliberately absent: what it means
//! (`model::config`).

use std::io;
use std::path::Path;

use anyhow::anyhow;
use model::config::{Config, Foreign, Loaded};

use super::Failure;
use super::client::{self, Client};

/// Whose file it is, if it can be read and is not one of Seawall's own.
pub fn foreign(file: &Path) -> Option<Foreign> {
    std::fs::read_to_string(file).ok().and_then(|text| model::config::foreign(file, &text))
}

/// What is in force at the node.
pub fn in_force(client: &Client) -> Result<Config, Failure> {
    let text = client::text(client.get("/api/v1/config")?)?;
    let damaged = |report: String| Failure::from(anyhow!("the node's configuration cannot be read here: {report}"));
    model::config::decode_effective(&text).map_err(damaged)
}

/// Reads a file over what is in force.
pub fn read(
    whose: Foreign,
    file: &Path,
    in_force: &Config,
    read: &mut dyn FnMut(&Path) -> io::Result<String>,
) -> Result<Loaded, Failure> {
    Ok(model::config::load_over(in_force, whose, file, read(file)?))
}
