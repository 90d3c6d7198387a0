//! `seawall up FILE`: becomes the keeper.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;

use super::{Failure, LogFormat, Outcome};

/// What `up` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration file.
    file: PathBuf,
    /// Keep state and logs here, instead of `node.dataDir`
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// How log lines are written.
    #[arg(long, value_enum, default_value = "pretty", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Log what only a developer wants
    #[arg(long)]
    debug: bool,
}

/// Checks everything, then runs until stopped.
pub fn run(arguments: &Arguments) -> Outcome {
    // Absolute from here on: the node process and later reloads must not depend on anybody's current folder.
    let file = std::path::absolute(&arguments.file)?;
    let data_dir = arguments.data_dir.as_deref().map(std::path::absolute).transpose()?;
    let options = node::Options { config: file.clone(), data_dir: data_dir.clone() };
    let config = node::load(&options).map_err(|report| {
        Failure::bad_input(anyhow!("the configuration has mistakes; nothing was started\n\n{}", report.trim_end()))
    })?;
    let address =
        |text: &str| text.parse::<SocketAddr>().map_err(|_| Failure::bad_input(anyhow!("`{text}` is not an address")));
    let keeper = keeper::Options {
        data_dir: PathBuf::from(&config.node.data_dir),
        api: address(&config.api.listen)?,
        gateway: config.gateway.listen.iter().map(|listen| address(&listen.0.address)).collect::<Result<_, _>>()?,
        peers: peers(&config).map(address).transpose()?,
        workers: node::workers(&config),
        stop_patience: stop_patience(&config),
        node_arguments: node_arguments(arguments, &file, Path::new(&config.node.data_dir)),
    };
    keeper::run(keeper).map_err(Failure::failed)
}

/// Where other nodes connect to this one; nobody does to an agent.
fn peers(config: &model::Config) -> Option<&str> {
    let written = config.node.peers.as_ref()?;
    (config.node.role != model::config::NodeRole::Agent).then_some(written.listen.as_str())
}

/// The gateway's drain, then the longest drain and grace period of all services, and a margin for the rest.
fn stop_patience(config: &model::Config) -> Duration {
    let grace = |service: &model::Service| {
        service.drain_timeout + Duration::from_secs(service.termination_grace_period_seconds.into())
    };
    let longest = config.services.values().map(grace).max().unwrap_or_default();
    config.gateway.drain_timeout + longest + Duration::from_secs(15)
}

fn node_arguments(arguments: &Arguments, file: &Path, data_dir: &Path) -> Vec<String> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut list = vec!["node".to_owned(), "--config".to_owned(), text(file)];
    // Always: a node process that is started again must find its state even when the file cannot be read any more.
    list.extend(["--data-dir".to_owned(), text(data_dir)]);
    if arguments.log_format == LogFormat::Json {
        list.extend(["--log-format".to_owned(), "json".to_owned()]);
    }
    if arguments.debug {
        list.push("--debug".to_owned());
    }
    list
}
