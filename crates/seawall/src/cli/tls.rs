//! `seawall tls`: the certificates clients are shown, whom they are for and how long they last.

use std::io::Write as _;
use std::time::SystemTime;

use api::view::{CertificateView, Status};
use comfy_table::Cell;

use super::client::{Client, text};
use super::output::{lines, table};
use super::{Format, Outcome};

/// What `tls` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// Prints the certificates, the one that ends first on top.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    let status: Status = serde_json::from_str(&text(client.get("/api/v1/status")?)?)?;
    let mut certificates = status.certificates;
    certificates.sort_by_key(|certificate| certificate.expires_unix);
    let mut out = std::io::stdout().lock();
    if arguments.output == Format::Json {
        writeln!(out, "{}", serde_json::to_string(&certificates)?)?;
        return Ok(());
    }
    if certificates.is_empty() {
        writeln!(out, "no listener has `tls`; see gateway.listen in docs/reference/config.md")?;
        return Ok(());
    }
    let mut shown = table(&["LISTENER", "NAMES", "EXPIRES", "LEFT", "RENEWED", "ISSUER", "FILE"]);
    for certificate in &certificates {
        shown.add_row([
            Cell::new(&certificate.listener),
            Cell::new(certificate.names.join(", ")),
            Cell::new(certificate.expires.get(..10).unwrap_or(&certificate.expires)),
            Cell::new(left(certificate)),
            Cell::new(renewed(certificate)),
            Cell::new(&certificate.issuer),
            Cell::new(&certificate.file),
        ]);
    }
    write!(out, "{}", lines(&shown))?;
    for certificate in &certificates {
        match (&certificate.problem, &certificate.next) {
            (Some(problem), Some(next)) => {
                let (listener, name) = (&certificate.listener, &certificate.file);
                writeln!(out, "{listener} {name} not issued: {problem}; tried again at {next}")?;
            }
            (Some(problem), None) => writeln!(out, "{} not taken over: {problem}", certificate.listener)?,
            (None, _) => {}
        }
    }
    Ok(())
}

/// When one that is ordered is renewed.
fn renewed(certificate: &CertificateView) -> &str {
    match (&certificate.next, &certificate.problem) {
        (None, _) => "by you",
        (Some(_), Some(_)) => "FAILING",
        (Some(next), None) => next.get(..10).unwrap_or(next),
    }
}

fn left(certificate: &CertificateView) -> String {
    if certificate.names.is_empty() && certificate.expires.is_empty() {
        return "NOT IN FORCE".to_owned();
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs().cast_signed());
    match (certificate.expires_unix - now).div_euclid(86_400) {
        ..0 => "EXPIRED".to_owned(),
        days @ 0..=30 => format!("{days} days!"),
        days => format!("{days} days"),
    }
}
