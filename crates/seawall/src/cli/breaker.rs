//! `seawall breaker SERVICE open|closed|auto`: a circuit breaker by hand, in every gateway of the cluster.

use std::io::Write as _;
use std::time::Duration;

use api::view::BreakerView;
use clap::ValueEnum;
use serde_json::json;

use super::client::Client;
use super::{Format, Outcome};

/// What `breaker` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The service.
    service: String,
    /// What its breaker does from now on
    #[arg(value_enum)]
    state: Wanted,
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// What is wanted of a breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Wanted {
    /// No request goes through, until `auto`
    Open,
    /// Every request goes through, until `auto`
    Closed,
    /// It judges by itself
    Auto,
}

/// Asks for it and says how the breaker stands.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let path = format!("/api/v1/services/{}/breaker", Client::encode(&arguments.service));
    let word = match arguments.state {
        Wanted::Open => "open",
        Wanted::Closed => "closed",
        Wanted::Auto => "auto",
    };
    let answer = client.post(&path, &json!({ "state": word }), Duration::from_secs(30))?;
    let mut out = std::io::stdout();
    if arguments.output == Format::Json {
        writeln!(out, "{answer}")?;
        return Ok(());
    }
    let view: BreakerView = serde_json::from_value(answer)?;
    let held =
        if view.forced.is_some() { " by hand; `auto` lets it judge by itself again" } else { ", by its own judgement" };
    writeln!(out, "the breaker of {} is {}{held}", arguments.service, view.state)?;
    Ok(())
}
