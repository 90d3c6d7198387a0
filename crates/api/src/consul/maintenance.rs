//! Maintenance: an instance, or all of this node, is out of service without being taken out. A check that fails until it
//! ends, under Consul's ids, which its clients look for.

use axum::extract::{Path, State};
use discovery::acl::{Access, Kind};
use discovery::definition::{MAX_OUTPUT, cut};
use discovery::key::About;
use discovery::record::{CheckRecord, CheckStatus, Owner};
use discovery::select::{NODE_MAINTENANCE, SERVICE_MAINTENANCE};
use discovery::writing;

use super::ask::Ask;
use super::reply::{Answer, Trouble, done, fresh};
use crate::Context;

const OF_NODE: &str =
    "Maintenance mode is enabled for this node, but no reason was provided. This is a default message.";
const OF_SERVICE: &str =
    "Maintenance mode is enabled for this service, but no reason was provided. This is a default message.";

/// All of this node.
pub async fn node(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require(Kind::Node, context.discovery.node(), Access::Write)?;
    let record = CheckRecord {
        name: "Node Maintenance Mode".into(),
        status: CheckStatus::Critical,
        notes: reason(&ask, OF_NODE),
        kind: "maintenance".into(),
        owner: Owner::Agent,
        ..CheckRecord::default()
    };
    switch(&context, &ask, NODE_MAINTENANCE.to_owned(), record).await
}

/// An instance of this node.
pub async fn service(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    let known = {
        let catalog = context.discovery.read();
        let known = catalog.node(context.discovery.node()).and_then(|(_, entry)| entry.services.get(&id));
        if let Some(known) = known {
            ask.require(Kind::Service, &known.record.service, Access::Write)?;
        }
        super::refuse_own(&catalog, context.discovery.node(), &id)?;
        known.map(|known| known.record.service.clone())
    };
    let Some(service) = known else {
        return Err(Trouble::missing(format!(
            "Unknown service ID {id:?}. Ensure that the service ID is passed, not the service name."
        )));
    };
    let record = CheckRecord {
        name: "Service Maintenance Mode".into(),
        status: CheckStatus::Critical,
        notes: reason(&ask, OF_SERVICE),
        service_id: id.clone(),
        service,
        kind: "maintenance".into(),
        owner: Owner::Agent,
        ..CheckRecord::default()
    };
    switch(&context, &ask, format!("{SERVICE_MAINTENANCE}{id}"), record).await
}

fn reason(ask: &Ask, otherwise: &str) -> String {
    cut(ask.get("reason").unwrap_or(otherwise).to_owned(), MAX_OUTPUT)
}

async fn switch(context: &Context, ask: &Ask, id: String, record: CheckRecord) -> Answer {
    let enable = match ask.get("enable") {
        None => return Err(Trouble::bad("Missing value for enable")),
        Some("true" | "1" | "t" | "True" | "TRUE") => true,
        Some("false" | "0" | "f" | "False" | "FALSE") => false,
        Some(other) => return Err(Trouble::bad(format!("Invalid value for enable: {other:?}"))),
    };
    fresh(context, ask).await?;
    let about = About::Check(context.discovery.node().to_owned(), id);
    let op = if enable { writing::put(&about, &record)? } else { writing::delete(&about)? };
    context.discovery.change(vec![op]).await?;
    Ok(done())
}
