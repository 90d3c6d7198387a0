//! `seawall kv`: the replicated key-value store.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};

use clap::Subcommand;
use serde_json::Value;

use super::client::{Client, json};
use super::{Failure, Outcome};

/// What `kv` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print a key's value
    Get {
        /// The key.
        key: String,
        /// Answer from what this node has applied, even when the store does not serve
        #[arg(long)]
        stale: bool,
    },
    /// Write a key; the value is read from standard input when absent
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Option<String>,
        /// Only if the key was last modified at this revision; 0: only if it does not exist
        #[arg(long, value_name = "REVISION")]
        cas: Option<u64>,
    },
    /// Remove a key
    Delete {
        /// The key.
        key: String,
        /// Only if the key was last modified at this revision
        #[arg(long, value_name = "REVISION")]
        cas: Option<u64>,
        /// Remove every key that begins with it
        #[arg(long)]
        prefix: bool,
    },
    /// List keys
    List {
        /// Only keys that begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Follow changes, one JSON object a line
    Watch {
        /// Keys that begin with this.
        #[arg(default_value = "")]
        prefix: String,
        /// From this revision on
        #[arg(long, value_name = "REVISION")]
        from: Option<u64>,
    },
}

/// Runs the verb.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let path = |key: &str| {
        if key.is_empty() { "/api/v1/kv".to_owned() } else { format!("/api/v1/kv/{}", Client::encode(key)) }
    };
    match &arguments.verb {
        Verb::Get { key, stale } => {
            let mut value = Vec::new();
            client.get(&format!("{}?stale={stale}", path(key)))?.into_body().into_reader().read_to_end(&mut value)?;
            std::io::stdout().lock().write_all(&value)?;
        }
        Verb::Put { key, value, cas } => {
            let mut bytes = Vec::new();
            match value {
                Some(value) => bytes.extend_from_slice(value.as_bytes()),
                None => drop(std::io::stdin().lock().read_to_end(&mut bytes)?),
            }
            let written = json(client.put(&(path(key) + &query(*cas)), &bytes)?)?;
            writeln!(
                std::io::stdout(),
                "revision {} ({})",
                written["revision"],
                written["durability"].as_str().unwrap_or_default()
            )?;
        }
        Verb::Delete { key, cas, prefix } => {
            let separator = if cas.is_some() { "&" } else { "?" };
            let deleted = json(client.delete(&format!("{}{}{separator}prefix={prefix}", path(key), query(*cas)))?)?;
            writeln!(std::io::stdout(), "{} deleted, revision {}", deleted["deleted"], deleted["revision"])?;
        }
        Verb::List { prefix } => {
            for kv in json(client.get(&format!("{}?prefix=true&limit=10000", path(prefix)))?)?["kvs"]
                .as_array()
                .into_iter()
                .flatten()
            {
                writeln!(std::io::stdout(), "{}", kv["key"].as_str().unwrap_or_default())?;
            }
        }
        Verb::Watch { prefix, from } => return watch(client, &path(prefix), *from),
    }
    Ok(())
}

fn query(cas: Option<u64>) -> String {
    cas.map_or_else(String::new, |revision| format!("?cas={revision}"))
}

fn watch(client: &Client, path: &str, from: Option<u64>) -> Outcome {
    let from = from.map_or_else(String::new, |revision| format!("&from={revision}"));
    let path = format!("{}?watch=true&prefix=true{from}", path);
    let mut kind = String::new();
    for line in BufReader::new(client.follow(&path)?.into_body().into_reader()).lines() {
        let line = line?;
        if let Some(name) = line.strip_prefix("event:") {
            name.trim().clone_into(&mut kind);
        } else if let Some(data) = line.strip_prefix("data:") {
            let mut change: Value = serde_json::from_str(data.trim_start())?;
            change["event"] = kind.clone().into();
            writeln!(std::io::stdout().lock(), "{change}")?;
        }
    }
    Err(Failure::unreachable(anyhow::anyhow!("the node has stopped")))
}
