//! `seawall events`: what happened, newest last; `-o json` is one object a line.

use std::io::{BufRead as _, BufReader, Write as _};

use serde_json::Value;

use super::client::{Client, json};
use super::{Failure, Format, Outcome};

/// What `events` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only of this service.
    service: Option<String>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Go on as events happen
    #[arg(short, long, visible_alias = "watch")]
    follow: bool,
    /// At most so many, the newest
    #[arg(short = 'n', long, default_value_t = 200, value_name = "COUNT")]
    limit: usize,
}

/// Prints events.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let service =
        arguments.service.as_ref().map_or_else(String::new, |service| format!("&service={}", Client::encode(service)));
    let path = format!("/api/v1/events?limit={}{service}", arguments.limit);
    if !arguments.follow {
        for event in json(client.get(&path)?)?.as_array().into_iter().flatten() {
            print(event, arguments.output)?;
        }
        return Ok(());
    }
    let stream = BufReader::new(client.follow(&format!("{path}&follow=true"))?.into_body().into_reader());
    for line in stream.lines() {
        if let Some(data) = line?.strip_prefix("data:") {
            print(&serde_json::from_str(data.trim_start())?, arguments.output)?;
        }
    }
    Err(Failure::unreachable(anyhow::anyhow!("the node has stopped")))
}

fn print(event: &Value, output: Format) -> Outcome {
    let mut out = std::io::stdout().lock();
    if output == Format::Json {
        writeln!(out, "{event}")?;
        return Ok(());
    }
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    let at = text("at");
    let time = at.get(11..23).unwrap_or(&at);
    writeln!(
        out,
        "{} {time}  {:<20} {}  [{}]",
        at.get(..10).unwrap_or_default(),
        text("kind"),
        text("message"),
        text("cause")
    )?;
    out.flush()?;
    Ok(())
}
