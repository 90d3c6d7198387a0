//! The configuration as the node starts with it: read, checked against this machine, or taken over from the process
//! before. Deliberately absent: putting it in force (`applying.rs`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model::config::{Config, Loaded, Route};
use model::{Service, ServiceName};

use crate::CannotStart;
use crate::files;

/// What the node process is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration file given to `up`.
    pub config: PathBuf,
    /// Instead of `node.dataDir`.
    pub data_dir: Option<PathBuf>,
}

/// Reads the configuration file given to `up`.
///
/// # Errors
/// The report of everything wrong with it.
pub fn load(options: &Options) -> Result<Config, String> {
    let loaded = read(&options.config, &mut |path| std::fs::read_to_string(path));
    let report = loaded.diagnostics.render(&loaded.sources);
    let mut config = loaded.config.ok_or(report)?;
    if let Some(data_dir) = &options.data_dir {
        config.node.data_dir = data_dir.to_string_lossy().into_owned();
    }
    Ok(config)
}

/// Reads a configuration through `read`, and looks whether the folders and files that it names on this machine can be
/// used: certificates, keys, authorities and pages.
pub fn read(file: &Path, read: &mut dyn FnMut(&Path) -> std::io::Result<String>) -> Loaded {
    let mut loaded = model::config::load(file, read);
    loaded.check_folders(Path::is_dir);
    loaded.check_with(files::check);
    loaded
}

/// The gateway's worker threads that `config` asks for.
pub fn workers(config: &Config) -> usize {
    match config.gateway.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from).min(64),
        workers => workers as usize,
    }
}

/// The configuration in force when the previous node process died; the file may have been edited since.
pub(crate) fn effective(options: &Options) -> Result<Config, CannotStart> {
    let from_file = || load(options).map_err(CannotStart);
    let data_dir = match &options.data_dir {
        Some(data_dir) => data_dir.clone(),
        None => PathBuf::from(from_file()?.node.data_dir),
    };
    let kept = std::fs::read_to_string(data_dir.join("effective.json")).map_err(|error| error.to_string());
    match kept.and_then(|text| model::config::decode_effective(&text)) {
        Ok(config) => Ok(config),
        Err(error) => {
            tracing::warn!(
                error,
                "the configuration in force cannot be read back; the file given to `up` is read again"
            );
            from_file()
        }
    }
}

/// The services and routes that this node knew last as its cluster's; none on a new node.
pub(crate) fn agreed_on(config: &Config) -> (BTreeMap<ServiceName, Service>, Vec<Route>) {
    let kept = std::fs::read_to_string(crate::applying::effective_path(config));
    // Without it, they come with the store.
    let known = kept.ok().and_then(|text| model::config::decode_effective(&text).ok());
    known.map(|known| (known.services, known.routes)).unwrap_or_default()
}
