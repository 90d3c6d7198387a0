//! `seawall promote SERVICE [INSTANCE]`: a planned switch of primary.

use std::io::Write as _;
use std::time::Duration;

use serde_json::json;

use super::Outcome;
use super::client::Client;

/// What `promote` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service.
    service: String,
    /// The standby that takes over; the best one when absent.
    instance: Option<String>,
    /// Wait until traffic goes to the new primary
    #[arg(long)]
    wait: bool,
    /// Seconds to wait with --wait
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

/// Asks for the switch and says who is primary.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let path = format!("/api/v1/services/{}/promote", Client::encode(&arguments.service));
    let body = json!({ "instance": arguments.instance, "wait": arguments.wait });
    let switched = client.post(&path, &body, Duration::from_secs(arguments.timeout))?;
    let primary = switched["primary"].as_str().unwrap_or_default();
    match switched["epoch"].as_u64() {
        Some(epoch) => writeln!(std::io::stdout(), "{primary} is primary of {}, epoch {epoch}", arguments.service)?,
        None => writeln!(
            std::io::stdout(),
            "{primary} takes over {}; `seawall events` shows how it goes",
            arguments.service
        )?,
    }
    Ok(())
}
