//! The node process. Started by the keeper only: its standard input and output are the keeper's pipe.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::LogFormat;

/// What the keeper passes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[arg(long)]
    config: PathBuf,
    #[arg(long)]
    data_dir: Option<PathBuf>,
    #[arg(long, value_enum, default_value = "pretty")]
    log_format: LogFormat,
    #[arg(long)]
    debug: bool,
}

/// Runs the node process.
pub fn run(arguments: &Arguments) -> ExitCode {
    let format = match arguments.log_format {
        LogFormat::Pretty => observe::logs::Format::Pretty,
        LogFormat::Json => observe::logs::Format::Json,
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    observe::logs::start(format, arguments.debug, colour);
    let options = node::Options { config: arguments.config.clone(), data_dir: arguments.data_dir.clone() };
    match node::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seawall: {error}");
            ExitCode::from(node::CANNOT_START)
        }
    }
}
