//! `/v1/operator`: what operators do to the cluster through Consul's clients, carried out as `seawall cluster` does it, and
//! what they ask of it. Deliberately absent: settings of an autopilot, which there is not.

use axum::extract::State;
use axum::http::Method;
use axum::response::Response;
use discovery::acl::{Access, Scalar};
use model::NodeName;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::ask::Ask;
use super::reply::{Answer, Trouble, done, fresh, json, with_headers};
use crate::control::{Command, MemberChange};
use crate::view::{ClusterView, MemberView};
use crate::{Context, view};

/// Takes a voter out, by its name or its address.
pub async fn remove_peer(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require_in(Scalar::Operator, Access::Write)?;
    let wanted = ask.get("id").or_else(|| ask.get("address"));
    let Some(wanted) = wanted else {
        return Err(Trouble::bad(
            "Must specify either ?id with the server's ID or ?address with IP:port of peer to remove",
        ));
    };
    let cluster = cluster_of(&context)?;
    let Some(member) = voters(&cluster).find(|member| is(member, wanted)) else {
        return Err(Trouble::failed(format!("address {wanted:?} was not found in the Raft configuration")));
    };
    change(&context, MemberChange::Remove(member.name.clone())).await?;
    Ok(done())
}

/// Has another voter lead: the one that is named, or one that follows.
pub async fn transfer(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require_in(Scalar::Operator, Access::Write)?;
    let cluster = cluster_of(&context)?;
    let next = match ask.get("id") {
        Some(wanted) => voters(&cluster).find(|member| is(member, wanted)),
        None => voters(&cluster).find(|member| member.state == "follower" && member.role == "server"),
    };
    let Some(next) = next else { return Err(Trouble::failed("cannot find peer: there is nobody else who could lead")) };
    change(&context, MemberChange::Lead(next.name.clone())).await?;
    Ok(json(&ask, &json!({ "Success": true })))
}

/// There is no keyring: nodes speak TLS with certificates of their own. In Consul's words for where gossip is not encrypted.
pub async fn keyring(method: Method, ask: Ask) -> Trouble {
    let access = if method == Method::GET { Access::Read } else { Access::Write };
    if let Err(refused) = ask.require_in(Scalar::Keyring, access) {
        return refused;
    }
    Trouble::failed(
        "keyring is empty (encryption not enabled): nodes speak mutual TLS here, see `seawall cluster issue`",
    )
}

/// How much is registered.
pub async fn usage(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require_in(Scalar::Operator, Access::Read)?;
    fresh(&context, &ask).await?;
    let (counts, index) = {
        let reading = context.discovery.read();
        let instances: usize = reading.names().map(|(_, entry)| entry.members.len()).sum();
        let own =
            reading.names().filter(|(name, _)| *name == discovery::catalog::SERVERS).map(|(_, one)| one.members.len());
        let counts = json!({
            "Nodes": reading.nodes().count(), "Services": reading.names().count(), "ServiceInstances": instances,
            // In Consul's meaning: without its servers.
            "BillableServiceInstances": instances - own.sum::<usize>(), "ConnectServiceInstances": {},
        });
        (counts, reading.revision())
    };
    let leaderless = context.discovery.leaderless();
    let last = leaderless.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let usage: Map<String, Value> = [(context.discovery.datacenter().to_owned(), counts)].into_iter().collect();
    let value = json!({
        "Usage": usage, "Index": index.max(1), "LastContact": last, "KnownLeader": leaderless.is_none(),
        "ConsistencyLevel": ask.consistency(), "NotModified": false, "Backend": 0, "ResultsFilteredByACLs": false,
    });
    let response: Response = json(&ask, &value);
    Ok(with_headers(&context, &ask, index, response))
}

fn cluster_of(context: &Context) -> Result<ClusterView, Trouble> {
    let status: std::sync::Arc<view::Status> = context.status.borrow().clone();
    let alone = "address was not found in the Raft configuration: this machine is by itself, and there are no peers";
    status.cluster.clone().ok_or_else(|| Trouble::failed(alone))
}

fn voters(cluster: &ClusterView) -> impl Iterator<Item = &MemberView> {
    cluster.members.iter().filter(|member| matches!(member.role.as_str(), "server" | "witness" | "learner"))
}

fn is(member: &MemberView, wanted: &str) -> bool {
    member.name == NodeName::from(wanted) || member.address == wanted
}

async fn change(context: &Context, change: MemberChange) -> Result<(), Trouble> {
    let (reply, answer) = oneshot::channel();
    let stopping = || Trouble::failed("this node is stopping");
    context.commands.send(Command::Members { change, reply }).await.map_err(|_| stopping())?;
    match answer.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(refusal)) => Err(Trouble::failed(refusal.message)),
        Err(_) => Err(stopping()),
    }
}
