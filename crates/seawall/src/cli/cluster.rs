//! `seawall cluster`: certificates for a cluster's nodes, and its members.

mod certificates;

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use api::view::{ClusterView, Status};
use clap::Subcommand;
use comfy_table::Cell;
use serde_json::json;

use super::client::{Client, json as body, text};
use super::output::{lines, state, table};
use super::{Failure, Format, Outcome};

/// Longest wait for a change of the members.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `cluster` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a folder with an authority and a certificate for each node
    Init {
        /// The folder; it must not hold an authority yet
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The nodes that form the cluster together, by their `node.name`
        #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
        nodes: Vec<String>,
    },
    /// Make or renew one node's certificate; a node that runs takes it over by itself
    Issue {
        /// The folder with the authority's key
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The node's `node.name`.
        node: String,
    },
    /// Show the members as the leader sees them
    Members {
        /// How it is printed
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Take a member out, whether it is there or not
    Remove {
        /// Its `node.name`.
        node: String,
    },
    /// Make a voter the leader, without a failed request
    Transfer {
        /// Its `node.name`.
        node: String,
    },
}

/// Runs the verb. `client` is made only for those that ask a node.
pub fn run(client: impl FnOnce() -> Result<Client, Failure>, arguments: &Arguments) -> Outcome {
    match &arguments.verb {
        Verb::Init { dir, nodes } => {
            certificates::init(dir, nodes)?;
            let mut out = std::io::stdout().lock();
            writeln!(
                out,
                "made {}: an authority, and a certificate with its key for each of {}",
                dir.display(),
                nodes.join(", ")
            )?;
            writeln!(
                out,
                "next: copy ca.pem, founders, NAME.pem and NAME.key to each node's cluster.tls.dir; ca.key stays here, it signs new ones"
            )?;
            Ok(())
        }
        Verb::Issue { dir, node } => {
            certificates::issue(dir, node)?;
            writeln!(std::io::stdout().lock(), "made {0}/{node}.pem and {0}/{node}.key", dir.display())?;
            Ok(())
        }
        Verb::Members { output } => {
            let status: Status = serde_json::from_str(&text(client()?.get("/api/v1/status")?)?)?;
            let Some(cluster) = status.cluster else {
                return Err(Failure::failed(anyhow!(
                    "{} is in no cluster: its file has no `cluster`",
                    status.node.name
                )));
            };
            show(&cluster, *output)
        }
        Verb::Remove { node } => {
            let answer = client()?.delete(&format!("/api/v1/cluster/members/{}", Client::encode(node)))?;
            show(&serde_json::from_value(body(answer)?)?, Format::Table)
        }
        Verb::Transfer { node } => {
            let path = format!("/api/v1/cluster/members/{}/lead", Client::encode(node));
            let answer = client()?.post(&path, &json!({}), PATIENCE)?;
            show(&serde_json::from_value(answer)?, Format::Table)
        }
    }
}

fn show(cluster: &ClusterView, output: Format) -> Outcome {
    let mut out = std::io::stdout().lock();
    if output == Format::Json {
        writeln!(out, "{}", serde_json::to_string(cluster)?)?;
        return Ok(());
    }
    write!(out, "{}", members(cluster))?;
    Ok(())
}

/// The members as a table, below a line about the cluster.
pub fn members(cluster: &ClusterView) -> String {
    let leader = cluster.leader.as_ref().map_or("none: nothing can be decided", |leader| leader.as_str());
    let mut page = format!("cluster {}   leader {leader}   term {}\n", cluster.name, cluster.term);
    let mut rows = table(&["MEMBER", "ROLE", "STATE", "LAG", "ADDRESS"]);
    for member in &cluster.members {
        rows.add_row([
            Cell::new(&member.name),
            Cell::new(&member.role),
            state(&member.state),
            Cell::new(member.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string())),
            Cell::new(&member.address),
        ]);
    }
    page += &lines(&rows);
    page
}
