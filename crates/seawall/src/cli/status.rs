//! `seawall status`: layers, node, services, instances.

mod registered;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use api::view::{ServiceView, Status};
use comfy_table::Cell;

use super::client::{Client, text};
use super::output::{ago, colours, lines, state, table};
use super::{Failure, Format, Outcome};

/// What `status` takes.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only this service.
    service: Option<String>,
    /// How it is printed
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Show it again every second until stopped
    #[arg(short, long)]
    watch: bool,
}

/// Prints the status, once or again and again.
pub fn run(client: &Client, arguments: &Arguments) -> Outcome {
    loop {
        let shown = render(client, arguments)?;
        let mut out = std::io::stdout().lock();
        if arguments.watch && colours() {
            // Home and clear: the screen is redrawn in place.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        out.write_all(shown.as_bytes())?;
        out.flush()?;
        if !arguments.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn render(client: &Client, arguments: &Arguments) -> Result<String, Failure> {
    let body = text(client.get("/api/v1/status")?)?;
    let mut status: Status = serde_json::from_str(&body)?;
    let mut others = Vec::new();
    if let Some(wanted) = &arguments.service {
        let own = status.services.iter().map(|service| service.name.to_string());
        let names: Vec<String> = own.chain(status.registered.iter().map(|one| one.name.clone())).collect();
        status.services.retain(|service| service.name.as_str() == wanted);
        status.registered.clear();
        status.registered_more = 0;
        if status.services.is_empty() {
            others = registered::instances(client, wanted)?;
            if !others.is_empty() {
                status.registered.push(registered::summary(wanted, &others));
            }
        }
        if status.services.is_empty() && status.registered.is_empty() {
            let cure = model::diagnostic::nearest(wanted, names.iter().map(String::as_str))
                .map_or_else(|| format!("there are: {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
            return Err(Failure::bad_input(anyhow::anyhow!("no service `{wanted}`; {cure}")));
        }
    }
    if arguments.output == Format::Json {
        return Ok(serde_json::to_string(&status)? + "\n");
    }
    let mut page = String::new();
    if arguments.service.is_none() {
        page += &head(&status);
    }
    if !status.services.is_empty() || status.registered.is_empty() {
        page += &services(&status.services);
    }
    page += &registered::services(&status);
    if !others.is_empty() {
        page += &registered::page(others);
    }
    Ok(page)
}

fn head(status: &Status) -> String {
    let node = &status.node;
    let mut page = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        page,
        "node {} ({}) {} since {} ago, pid {}, keeper {}, {} MiB, seawall {}",
        node.name,
        node.region,
        node.state,
        ago(&node.since),
        node.pid,
        node.keeper_pid,
        node.resident_bytes >> 20,
        node.version
    );
    let _ = writeln!(page, "gateway {}   api {}", node.gateway.join(", "), node.api);
    if node.node_starts > 1 {
        let _ = writeln!(
            page,
            "the node process has been restarted {} times since the keeper started: see `seawall events`",
            node.node_starts - 1
        );
    }
    page.push('\n');
    let mut layers = table(&["LAYER", "STATE", "DETAIL"]);
    for layer in &status.layers {
        layers.add_row([Cell::new(&layer.name), state(&layer.state), Cell::new(&layer.detail)]);
    }
    page += &lines(&layers);
    page.push('\n');
    if let Some(cluster) = &status.cluster {
        page += &super::cluster::members(cluster);
        page.push('\n');
    }
    page
}

fn services(services: &[ServiceView]) -> String {
    let mut rows = table(&["SERVICE", "MODE", "STATE", "READY", "PRIMARY", "EPOCH", "HELD", "NOTE"]);
    for service in services {
        rows.add_row([
            Cell::new(&service.name),
            Cell::new(&service.mode),
            state(&service.state),
            Cell::new(format!("{}/{}", service.ready, service.desired)),
            Cell::new(service.primary.as_ref().map_or("-", |primary| primary.as_str())),
            Cell::new(service.epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string())),
            Cell::new(service.held),
            Cell::new(service.note.as_deref().unwrap_or_default()),
        ]);
    }
    // Where it runs is worth a column where there is more than one place.
    let nodes: BTreeSet<_> =
        services.iter().flat_map(|service| &service.instances).map(|instance| &instance.node).collect();
    let mut columns = vec!["INSTANCE", "NODE", "ROLE", "STATE", "PID", "ADDRESS", "RESTARTS", "SINCE", "NOTE"];
    columns.retain(|column| *column != "NODE" || nodes.len() > 1);
    let mut instances = table(&columns);
    for instance in services.iter().flat_map(|service| &service.instances) {
        let node = Cell::new(instance.node.as_ref().map_or("-", |node| node.as_str()));
        let cells = [
            Cell::new(instance.role.as_deref().unwrap_or("-")),
            state(&instance.state),
            Cell::new(instance.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string())),
            Cell::new(&instance.address),
            Cell::new(instance.restarts),
            Cell::new(if instance.since.is_empty() { "-".to_owned() } else { ago(&instance.since) }),
            Cell::new(instance.note.as_deref().unwrap_or_default()),
        ];
        let row = std::iter::once(Cell::new(&instance.id)).chain(Some(node).filter(|_| nodes.len() > 1)).chain(cells);
        instances.add_row(row);
    }
    format!("{}\n{}", lines(&rows), lines(&instances))
}
