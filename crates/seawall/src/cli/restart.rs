//! `seawall restart SERVICE`: its instances one at a time, each ready before the next.

use std::io::Write as _;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::client::Client;

/// What `restart` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service.
    service: String,
    /// Seconds to wait until all instances are ready again
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
}

/// Asks for the restart and waits for its end.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let path = format!("/api/v1/services/{}/restart", Client::encode(&arguments.service));
    let done = client.post(&path, &json!({}), Duration::from_secs(arguments.timeout))?;
    writeln!(std::io::stdout(), "{}", done.as_str().unwrap_or_default())?;
    Ok(())
}
