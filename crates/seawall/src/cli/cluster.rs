//! `seawall cluster`: certificates for a cluster's nodes, and its members.

mod certificates;

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use api::view::{ClusterView, Status};
use clap::Subcommand;
use comfy_table::Cell;
use node::joining::{self, JoinError};
use node::offline::{self, RecoverError};
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
    /// Make a token with which a new node gets its certificate: once, on its own machine, without a file being carried there
    Token {
        /// The new node's `node.name`.
        node: String,
        /// How long it is good: `90s`, `30m`, `1h`, at most a day
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = valid)]
        valid: Duration,
    },
    /// On a new machine: make its key, and get its certificate for a token
    Join {
        /// What `seawall cluster token` printed; `-` reads it from standard input
        token: String,
        /// Where the files go; the file's `cluster.tls.dir`
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
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
    /// Make a node that is left its cluster's only voter, when most voters are lost for good; it must not run
    Recover {
        /// The node's data directory
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
        /// The others are gone for good: do it
        #[arg(long)]
        yes: bool,
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
            if nodes.len() == 2 {
                eprintln!(
                    "two nodes cannot fail over: one alone is no majority, so the loss of either stops every decision. \
                     Make the folder with a third, which may be a small machine whose file says node: {{ role: witness }}"
                );
            }
            Ok(())
        }
        Verb::Issue { dir, node } => {
            certificates::issue(dir, node)?;
            writeln!(std::io::stdout().lock(), "made {0}/{node}.pem and {0}/{node}.key", dir.display())?;
            Ok(())
        }
        Verb::Token { node, valid } => {
            let request = api::TokenRequest { node: node.clone(), valid_seconds: valid.as_secs() };
            let answer = client()?.post("/api/v1/cluster/tokens", &serde_json::to_value(request)?, PATIENCE)?;
            let made: api::JoinToken = serde_json::from_value(answer)?;
            writeln!(std::io::stdout().lock(), "{}", made.token)?;
            eprintln!(
                "next, on the new machine: seawall cluster join TOKEN --dir ./pki; the token is good once, for {}s, and whoever has it is let in as {}",
                valid.as_secs(),
                made.node
            );
            Ok(())
        }
        Verb::Join { token, dir } => join(token, dir),
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
        Verb::Recover { data_dir, yes } => recover(data_dir, *yes),
        Verb::Transfer { node } => {
            let path = format!("/api/v1/cluster/members/{}/lead", Client::encode(node));
            let answer = client()?.post(&path, &json!({}), PATIENCE)?;
            show(&serde_json::from_value(answer)?, Format::Table)
        }
    }
}

fn valid(text: &str) -> Result<Duration, String> {
    let wrong = || "a number and `s`, `m` or `h`, as in `30m`".to_owned();
    let (number, unit) = text.split_at(text.find(|character: char| !character.is_ascii_digit()).ok_or_else(wrong)?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number.checked_mul(seconds).ok_or_else(wrong)?))
}

fn join(token: &str, dir: &Path) -> Outcome {
    let mut given = String::new();
    let token = if token == "-" {
        // Arguments are seen by every user of a machine.
        std::io::stdin().lock().take(64 * 1024).read_to_string(&mut given)?;
        given.as_str()
    } else {
        token
    };
    let joined = joining::join(token, dir).map_err(|error| match error {
        JoinError::BadInput(_) => Failure::bad_input(error),
        JoinError::Unreachable(_) => Failure::unreachable(error),
        JoinError::Failed(_) => Failure::failed(error),
    })?;
    let (node, dir) = (&joined.node, dir.display());
    let mut out = std::io::stdout().lock();
    writeln!(out, "made {dir}/ca.pem, {dir}/{node}.pem and {dir}/{node}.key")?;
    let addresses: Vec<String> = joined.addresses.iter().map(|address| format!("{address:?}")).collect();
    writeln!(out, "next: `seawall up` with a file that has")?;
    writeln!(
        out,
        "node: {{ name: {node}, peers: {{ listen: \"ADDRESS:8300\", join: [{}] }} }}\ncluster: {{ name: {}, tls: {{ dir: {dir} }} }}",
        addresses.join(", "),
        joined.cluster
    )?;
    Ok(())
}

fn recover(data_dir: &Path, yes: bool) -> Outcome {
    if !data_dir.join("store").is_dir() {
        return Err(Failure::bad_input(anyhow!("{} is no data directory of a node", data_dir.display())));
    }
    // The keeper's: a node process that is down for a moment must not be taken for one that is stopped.
    let _held = keeper::lock(data_dir).map_err(Failure::failed)?;
    let mut survivor = offline::recover(data_dir, yes).map_err(|error| match error {
        RecoverError::NoMember { .. } => Failure::bad_input(error),
        other => Failure::failed(other),
    })?;
    let mut out = std::io::stdout().lock();
    survivor.lost.sort();
    let lost = survivor.lost.join(", ");
    for kept in &survivor.kept {
        writeln!(out, "{}: kept up to index {}, term {}", kept.group, kept.index, kept.term)?;
    }
    writeln!(out, "lost: whatever {lost} acknowledged beyond that, if it was there first; nobody can tell")?;
    if !yes {
        writeln!(out, "{} would be the only voter, without {lost}", survivor.name)?;
        return Err(Failure::bad_input(anyhow!(
            "nothing was changed; if {lost} cannot be brought back, say so with --yes: two that come back together are a \
             cluster of their own, with the old state. One that can be brought back is better than this"
        )));
    }
    writeln!(out, "{} is the only voter now, under a new number", survivor.name)?;
    writeln!(
        out,
        "next: start it; then start {lost}, each with an empty data directory: they are let in. With their old ones they \
         are refused"
    )?;
    Ok(())
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
    if let Some(words) = &cluster.no_failover {
        page += &format!("{words}\n");
    }
    page
}
