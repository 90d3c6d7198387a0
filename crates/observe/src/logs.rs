//! Log lines on standard error: fields rather than prose, one line per fact, by its owner.

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;

/// Libraries whose own reports are of use to nobody but their authors, unless something is wrong.
const CHATTY: [&str; 7] = ["openraft", "h2", "hyper", "hyper_util", "axum", "rustls", "ureq"];

/// The form of log lines.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Pretty,
    /// One flat JSON object a line.
    Json,
}

/// Starts logging for this process; `debug` includes what only a developer wants.
pub fn start(format: Format, debug: bool, colour: bool) {
    let level = if debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let targets = CHATTY
        .into_iter()
        .fold(Targets::new().with_default(level), |targets, library| targets.with_target(library, LevelFilter::ERROR));
    // A terminal that went away must not end the process: lines that cannot be written are dropped in silence.
    let base = fmt::layer().with_target(false).with_writer(std::io::stderr).log_internal_errors(false);
    let registry = tracing_subscriber::registry();
    // A second start in one process (tests) keeps the first.
    let started = match format {
        Format::Pretty => {
            tracing::subscriber::set_global_default(registry.with(base.with_ansi(colour).with_filter(targets)))
        }
        Format::Json => {
            tracing::subscriber::set_global_default(registry.with(base.json().flatten_event(true).with_filter(targets)))
        }
    };
    drop(started);
}
