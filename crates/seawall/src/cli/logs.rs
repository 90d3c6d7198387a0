//! `seawall logs SERVICE`: what its instances wrote, merged by time.

use std::io::{Read as _, Write as _};

use super::Outcome;
use super::client::Client;

/// What `logs` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service.
    service: String,
    /// Only of this instance
    #[arg(long, value_name = "INSTANCE")]
    instance: Option<String>,
    /// Only lines younger than this: a duration (5m) or an RFC 3339 time
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// At most so many lines, the newest
    #[arg(short = 'n', long, value_name = "COUNT")]
    tail: Option<usize>,
    /// Go on as lines are written
    #[arg(short, long)]
    follow: bool,
}

/// Prints the lines.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let mut path = format!("/api/v1/logs/{}?follow={}", Client::encode(&arguments.service), arguments.follow);
    for (name, value) in [
        ("instance", &arguments.instance),
        ("since", &arguments.since),
        ("tail", &arguments.tail.map(|tail| tail.to_string())),
    ] {
        if let Some(value) = value {
            path += &format!("&{name}={}", Client::encode(value));
        }
    }
    let response = if arguments.follow { client.follow(&path)? } else { client.get(&path)? };
    let mut reader = response.into_body().into_reader();
    let mut out = std::io::stdout().lock();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = reader.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..length])?;
        out.flush()?;
    }
}
