//! `seawall services`: what is registered with a node, from files of service definitions as Consul has them.

use std::path::PathBuf;

use clap::Subcommand;

use super::client::Client;
use super::{Failure, Outcome};

/// What `services` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Register what FILE defines (`service` or `services`, JSON) with the node, which runs its checks
    Register {
        /// The file.
        file: PathBuf,
    },
    /// Take an instance out that was registered with the node
    Deregister {
        /// Its id.
        id: String,
    },
}

/// Runs the verb.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    match &arguments.verb {
        Verb::Register { file } => {
            let read = node::definitions::read(file).map_err(|problem| Failure::bad_input(anyhow::anyhow!(problem)))?;
            for (written, definition) in read {
                client.put("/v1/agent/service/register", written.to_string().as_bytes())?;
                println!("{}: registered as {}", definition.record.service, definition.id);
            }
        }
        Verb::Deregister { id } => {
            client.put(&format!("/v1/agent/service/deregister/{}", Client::encode(id)), b"")?;
            println!("{id}: taken out");
        }
    }
    Ok(())
}
