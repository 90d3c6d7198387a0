//! The command line: one file per verb. Data goes to standard output, everything else to standard error.
//! Exit codes: 0 ok, 1 failure, 2 usage or bad input, 4 not reachable, 124 timeout.

mod apply;
mod breaker;
mod check;
mod client;
mod cluster;
mod demo;
mod events;
mod kv;
mod logs;
mod node;
mod output;
mod over;
mod promote;
mod restart;
mod schema;
mod services;
mod shift;
mod snapshot;
mod status;
mod stream;
mod tls;
mod up;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};

use client::Client;

/// Something went wrong; which exit code says so.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// A failure of the thing that was asked for.
    pub fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 1, error: error.into() }
    }

    /// What was given is wrong; nothing was changed.
    pub fn bad_input(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 2, error: error.into() }
    }

    /// Nobody answers.
    pub fn unreachable(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 4, error: error.into() }
    }

    /// It took too long.
    pub fn timeout(error: impl Into<anyhow::Error>) -> Self {
        Self { code: 124, error: error.into() }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::failed(error)
    }
}

/// A verb's result.
pub type Outcome = Result<(), Failure>;

/// Keeps services up: runs them as replicas, restarts what dies, routes traffic to what lives, promotes a standby.
#[derive(Debug, Parser)]
#[command(
    name = "seawall",
    version,
    max_term_width = 120,
    after_help = "Start here:  seawall up examples/shop/seawall.yaml\nExit codes:  0 ok, 1 failure, 2 usage or bad input, 4 not reachable, 124 timeout"
)]
struct Arguments {
    /// The node's API.
    #[arg(long, global = true, env = "SEAWALL_API", default_value = "http://127.0.0.1:8500", value_name = "URL")]
    api: String,
    #[command(subcommand)]
    verb: Verb,
}

/// How data is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Pretty,
    /// One flat JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run everything in FILE until stopped (Ctrl+C or SIGTERM)
    Up(up::Arguments),
    /// Report every mistake in FILE, change nothing
    Check {
        /// The configuration file, or a file of Sentinel's, Hystrix', Istio's or nginx'
        file: PathBuf,
        /// The configuration that another tool's file is put over; the one in force at the node when absent
        #[arg(long, value_name = "FILE")]
        over: Option<PathBuf>,
    },
    /// Put FILE in force on the running node: all or nothing, only what changed
    Apply(apply::Arguments),
    /// Show layers, services and instances
    Status(status::Arguments),
    /// Show the certificates clients get, and when they expire
    Tls(tls::Arguments),
    /// Show what happened, and why
    Events(events::Arguments),
    /// Show what a service's instances write
    Logs(logs::Arguments),
    /// Make a standby the primary, in good order
    Promote(promote::Arguments),
    /// Restart a service's instances one at a time
    Restart(restart::Arguments),
    /// Hold a service's circuit breaker open or closed, or let it judge by itself again
    Breaker(breaker::Arguments),
    /// Move a service's requests to another version or service in steps
    Shift(Box<shift::Arguments>),
    /// Make a cluster's certificates, show and change its members
    Cluster(cluster::Arguments),
    /// Read and write the replicated key-value store
    Kv(kv::Arguments),
    /// Register services with the node, from definition files as Consul has them
    Services(services::Arguments),
    /// Save the key-value store to a file, check such a file, start anew from it
    Snapshot(snapshot::Arguments),
    /// Append to and read replicated op-logs
    Stream(stream::Arguments),
    /// Print the JSON Schema of the configuration file
    Schema(schema::Arguments),
    /// Serve a demo service, with switches to hang, crash or turn slow
    DemoService(demo::Arguments),
    /// Print shell completions
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// The node process; started by `up`
    #[command(hide = true)]
    Node(node::Arguments),
}

/// Parses the command line and runs the verb.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let client = || Client::new(&arguments.api);
    let outcome = match arguments.verb {
        Verb::Up(up) => up::run(&up),
        Verb::Check { file, over } => check::run(&file, over.as_deref(), client),
        Verb::Apply(apply) => client().and_then(|client| apply::run(&client, &apply)),
        Verb::Status(status) => client().and_then(|client| status::run(&client, &status)),
        Verb::Tls(tls) => client().and_then(|client| tls::run(&client, &tls)),
        Verb::Events(events) => client().and_then(|client| events::run(&client, &events)),
        Verb::Logs(logs) => client().and_then(|client| logs::run(&client, &logs)),
        Verb::Promote(promote) => client().and_then(|client| promote::run(&client, &promote)),
        Verb::Restart(restart) => client().and_then(|client| restart::run(&client, &restart)),
        Verb::Breaker(breaker) => client().and_then(|client| breaker::run(&client, &breaker)),
        Verb::Shift(shift) => client().and_then(|client| shift::run(&client, &shift)),
        Verb::Cluster(cluster) => cluster::run(client, &cluster),
        Verb::Kv(kv) => client().and_then(|client| kv::run(&client, &kv)),
        Verb::Services(services) => client().and_then(|client| services::run(&client, &services)),
        Verb::Snapshot(snapshot) => snapshot::run(client, &snapshot),
        Verb::Stream(stream) => client().and_then(|client| stream::run(&client, &stream)),
        Verb::Schema(schema) => schema::run(&schema),
        Verb::DemoService(demo) => demo::run(&demo),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "seawall", &mut script);
            std::io::stdout().write_all(&script).map_err(Failure::from)
        }
        Verb::Node(node) => return node::run(&node),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A reader that has seen enough (`seawall events | head`) is no failure.
            if failure.error.chain().any(|cause| {
                cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
            }) {
                return ExitCode::SUCCESS;
            }
            eprintln!("seawall: {:#}", failure.error);
            ExitCode::from(failure.code)
        }
    }
}
