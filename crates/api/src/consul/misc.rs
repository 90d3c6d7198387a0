//! What Consul's clients ask of the cluster as a whole. Truthful: there are no round-trip times, and what members
//! there are is what `seawall cluster members` shows.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use discovery::acl::{Access, Scalar};
use serde_json::{Value, json};

use super::ask::Ask;
use super::reply::{Answer, Trouble, fresh, json, with_headers};
use crate::Context;

/// Where the leader is reached; empty while there is none.
pub async fn leader(State(context): State<Context>, ask: Ask) -> Response {
    json(&ask, &leader_address(&context).into())
}

/// The same as text.
pub fn leader_address(context: &Context) -> String {
    let status = context.status.borrow().clone();
    let leader = match &status.cluster {
        None => status.store.serving.then(|| status.node.api.clone()),
        Some(cluster) => {
            let leader = cluster.leader.as_ref();
            cluster.members.iter().find(|member| Some(&member.name) == leader).map(|member| member.address.clone())
        }
    };
    leader.unwrap_or_default()
}

/// Where those that vote are reached.
pub async fn peers(State(context): State<Context>, ask: Ask) -> Response {
    let status = context.status.borrow().clone();
    let peers: Value = match &status.cluster {
        None => json!([status.node.api]),
        Some(cluster) => {
            let voters = cluster.members.iter().filter(|member| matches!(member.role.as_str(), "server" | "witness"));
            voters.map(|member| member.address.clone()).collect()
        }
    };
    json(&ask, &peers)
}

/// The members of the consensus.
pub async fn raft(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require_in(Scalar::Operator, Access::Read)?;
    let members: Vec<Value> = members(&context).iter().map(|member| json!({ "ID": member.name, "Node": member.name, "Address": member.address, "Leader": member.leader, "ProtocolVersion": "3", "LastIndex": 0, "Voter": member.voter })).collect();
    Ok(json(&ask, &json!({ "Servers": members, "Index": 0 })))
}

/// One who takes part in the consensus.
pub struct Member {
    pub name: String,
    pub address: String,
    pub leader: bool,
    pub voter: bool,
}

/// Everybody who takes part in the consensus.
pub fn members(context: &Context) -> Vec<Member> {
    let status = context.status.borrow().clone();
    let Some(cluster) = &status.cluster else {
        let (name, address) = (status.node.name.to_string(), status.node.api.clone());
        return vec![Member { name, address, leader: true, voter: true }];
    };
    let members = cluster.members.iter().filter(|member| member.role != "agent");
    members
        .map(|member| Member {
            name: member.name.to_string(),
            address: member.address.clone(),
            leader: cluster.leader.as_ref() == Some(&member.name),
            voter: member.role != "learner",
        })
        .collect()
}

/// Whether the loss of one more is survived.
pub async fn autopilot(State(context): State<Context>, ask: Ask) -> Answer {
    ask.require_in(Scalar::Operator, Access::Read)?;
    let status = context.status.borrow().clone();
    let healthy = status.store.serving;
    let (voters, there) = status.cluster.as_ref().map_or((1, 1), |cluster| {
        let voters = || cluster.members.iter().filter(|member| matches!(member.role.as_str(), "server" | "witness"));
        (voters().count(), voters().filter(|member| matches!(member.state.as_str(), "leader" | "follower")).count())
    });
    let tolerance = there.saturating_sub(voters / 2 + 1);
    let one = |name: &str, address: &str, leader: bool, there: bool| {
        json!({
            "ID": name, "Name": name, "Address": address, "SerfStatus": if there { "alive" } else { "failed" },
            "Version": status.node.version, "Leader": leader, "Healthy": there, "Voter": true,
        })
    };
    let servers: Value = match &status.cluster {
        None => json!([one(status.node.name.as_str(), &status.node.api, healthy, healthy)]),
        Some(cluster) => {
            let voters = cluster.members.iter().filter(|member| matches!(member.role.as_str(), "server" | "witness"));
            voters
                .map(|member| {
                    let there = matches!(member.state.as_str(), "leader" | "follower");
                    one(member.name.as_str(), &member.address, member.state == "leader", there)
                })
                .collect()
        }
    };
    let value = json!({ "Healthy": healthy, "FailureTolerance": tolerance, "Servers": servers });
    let code = if healthy { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
    let mut response = json(&ask, &value);
    *response.status_mut() = code;
    Ok(response)
}

/// No coordinates are measured: no site has any.
pub async fn coordinate_datacenters(State(context): State<Context>, ask: Ask) -> Response {
    let none = json!([{ "Datacenter": context.discovery.datacenter(), "AreaID": "wan", "Coordinates": [] }]);
    json(&ask, &none)
}

/// No coordinates are measured: no machine has one.
pub async fn coordinate_nodes(State(context): State<Context>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    Ok(with_headers(&context, &ask, 1, json(&ask, &json!([]))))
}

/// No coordinates are measured.
pub async fn coordinate_node(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    fresh(&context, &ask).await?;
    Err(Trouble::missing(format!("no coordinate of {name:?}: round-trip times are not measured here")))
}
