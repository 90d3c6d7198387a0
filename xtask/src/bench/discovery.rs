//! `cargo xtask bench discovery`: the registry under many registrations, many blocking queries, and many questions by DNS.
//! The walk: options -> three members (or one, held to a core, for DNS) -> the parts -> `bench/RESULTS.md`.
//! Load, members and kernel share all cores. Deliberately absent: correctness under faults, which tests show.

mod client;
mod dns;
mod queries;
mod registrations;

use anyhow::{Result, bail, ensure};

use super::store::members::Cluster;
use super::{section, shipped};
use crate::root;

/// The section of `bench/RESULTS.md`.
const TITLE: &str = "Discovery under load";

/// What is measured, and how much of it.
pub struct Options {
    /// Blocking queries that wait.
    pub queries: usize,
    /// Changes a second that concern none of them.
    pub changes: usize,
    /// How long there are changes.
    pub seconds: u64,
    /// Instances that are registered.
    pub instances: usize,
    /// Clients that register them.
    pub clients: usize,
    only: Option<String>,
}

/// Measures, prints, records.
pub fn discovery(arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    ensure!(cfg!(target_os = "linux"), "this bench reads /proc: it runs on Linux only");
    let (program, place) = shipped()?;
    let folder = tempfile::Builder::new().prefix("discovery-").tempdir_in(&place)?;
    let wanted = |part: &str| options.only.as_deref().is_none_or(|only| only == part);
    let mut text = format!("### {TITLE}\n\n");
    if wanted("queries") {
        let cluster = Cluster::of_seawall(&program, &folder.path().join("queries"))?;
        text += &queries::run(&cluster, &options)?;
    }
    if wanted("registrations") {
        let cluster = Cluster::of_seawall(&program, &folder.path().join("registrations"))?;
        text += &registrations::run(&cluster, &options)?;
    }
    if wanted("dns") {
        text += &dns::run(&program, &folder.path().join("dns"), options.seconds)?;
    }
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    text += &format!("\nLinux {}, {cores} cores for members, load and peers.\n", kernel.trim());
    println!("\n{text}");
    if options.only.is_some() {
        println!("a part is not recorded: everything is");
        return Ok(());
    }
    section::record(&root().join("bench/RESULTS.md"), "discovery", TITLE, &text)
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options =
            Self { queries: 10_000, changes: 1000, seconds: 20, instances: 100_000, clients: 256, only: None };
        for pair in arguments.chunks(2) {
            let [name, value] = pair else { bail!("{USAGE}") };
            match name.as_str() {
                "--queries" => options.queries = value.parse()?,
                "--changes" => options.changes = value.parse()?,
                "--seconds" => options.seconds = value.parse()?,
                "--instances" => options.instances = value.parse()?,
                "--clients" => options.clients = value.parse()?,
                "--only" if matches!(value.as_str(), "queries" | "registrations" | "dns") => {
                    options.only = Some(value.clone());
                }
                _ => bail!("{USAGE}"),
            }
        }
        ensure!(options.queries > 0 && options.changes > 0 && options.seconds > 0, "{USAGE}");
        ensure!(options.instances > 0 && options.clients > 0, "{USAGE}");
        Ok(options)
    }
}

const USAGE: &str = "usage: cargo xtask bench discovery [--queries N] [--changes N] [--seconds N] [--instances N] \
                     [--clients N] [--only queries|registrations|dns]";
