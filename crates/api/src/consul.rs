//! Consul's HTTP API under `/v1`, for clients that people have: the same paths, parameters, headers and words. One page
//! says which requests there are. What shows instances is open as `/api/v1/status` is; what changes something, or shows what
//! users keep, needs authority. Everything is answered from the registry, which is what the store has acknowledged.
//! What ACLs allow each handler asks itself, of what it shows or changes.
//! Deliberately absent: the service mesh, other sites (`docs/reference/consul-compatibility.md` has them all).

mod acl;
mod agent;
mod agent_checks;
mod agent_verbs;
mod ask;
mod caller;
mod catalog;
mod event;
mod health;
mod kv;
mod kv_write;
mod maintenance;
mod misc;
mod operator;
mod query;
mod render;
mod reply;
mod session;
mod snapshot;
mod txn;
mod txn_catalog;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{delete, get, post, put};
use discovery::Catalog;
use discovery::fields::Fields;
use discovery::record::Owner;
use serde_json::Value;

use crate::Context;
use crate::authority::{self, Peer};
use ask::Ask;
use reply::Trouble;

/// The largest body of a request: a transaction of 64 operations has far less.
const MAX_BODY: usize = 4 << 20;
/// In front of ids of instances in Consul's own words for their checks.
const SERVICE_CHECK: &str = "service:";

/// What is Consul's.
pub fn router(context: &Context) -> Router<Context> {
    let open = Router::new()
        .route("/v1/agent/self", get(agent::about))
        .route("/v1/agent/members", get(agent::members))
        .route("/v1/agent/metrics", get(agent_verbs::metrics))
        .route("/v1/agent/services", get(agent::services))
        .route("/v1/agent/service/{id}", get(agent::service))
        .route("/v1/agent/checks", get(agent_checks::list))
        .route("/v1/agent/health/service/id/{id}", get(agent::health_by_id))
        .route("/v1/agent/health/service/name/{name}", get(agent::health_by_name))
        .route("/v1/catalog/datacenters", get(catalog::datacenters))
        .route("/v1/catalog/nodes", get(catalog::nodes))
        .route("/v1/catalog/services", get(catalog::services))
        .route("/v1/catalog/service/{name}", get(catalog::service))
        .route("/v1/catalog/connect/{name}", get(catalog::no_mesh))
        .route("/v1/catalog/gateway-services/{name}", get(catalog::no_mesh))
        .route("/v1/catalog/node/{name}", get(catalog::node))
        .route("/v1/catalog/node-services/{name}", get(catalog::node_services))
        .route("/v1/health/service/{name}", get(health::service))
        .route("/v1/health/connect/{name}", get(catalog::no_mesh))
        .route("/v1/health/ingress/{name}", get(catalog::no_mesh))
        .route("/v1/health/node/{name}", get(health::node))
        .route("/v1/health/checks/{name}", get(health::checks))
        .route("/v1/health/state/{state}", get(health::state))
        .route("/v1/status/leader", get(misc::leader))
        .route("/v1/status/peers", get(misc::peers))
        .route("/v1/coordinate/datacenters", get(misc::coordinate_datacenters))
        .route("/v1/coordinate/nodes", get(misc::coordinate_nodes))
        .route("/v1/coordinate/node/{name}", get(misc::coordinate_node))
        .route("/v1/operator/raft/configuration", get(misc::raft))
        .route("/v1/operator/autopilot/health", get(misc::autopilot))
        .route("/v1/operator/usage", get(operator::usage));
    let guarded = Router::new()
        .route("/v1/agent/service/register", put(agent::register))
        .route("/v1/agent/service/deregister/{id}", put(agent::deregister))
        .route("/v1/agent/service/maintenance/{id}", put(maintenance::service))
        .route("/v1/agent/maintenance", put(maintenance::node))
        .route("/v1/agent/reload", put(agent_verbs::reload))
        .route("/v1/agent/force-leave/{node}", put(agent_verbs::force_leave))
        .route("/v1/agent/token/{kind}", put(acl::agent_token))
        .route("/v1/agent/check/register", put(agent_checks::register))
        .route("/v1/agent/check/deregister/{id}", put(agent_checks::deregister))
        .route("/v1/agent/check/pass/{id}", put(agent_checks::pass))
        .route("/v1/agent/check/warn/{id}", put(agent_checks::warn))
        .route("/v1/agent/check/fail/{id}", put(agent_checks::fail))
        .route("/v1/agent/check/update/{id}", put(agent_checks::update))
        .route("/v1/catalog/register", put(catalog::register))
        .route("/v1/catalog/deregister", put(catalog::deregister))
        .route("/v1/kv", get(kv::read_all).delete(kv_write::remove_all))
        .route("/v1/kv/", get(kv::read_all).delete(kv_write::remove_all))
        .route("/v1/kv/{*key}", get(kv::read).put(kv_write::write).delete(kv_write::remove))
        .route("/v1/session/create", put(session::create))
        .route("/v1/session/destroy/{id}", put(session::destroy))
        .route("/v1/session/renew/{id}", put(session::renew))
        .route("/v1/session/info/{id}", get(session::info))
        .route("/v1/session/node/{node}", get(session::of_node))
        .route("/v1/session/list", get(session::list))
        .route("/v1/txn", put(txn::run))
        .route("/v1/snapshot", get(snapshot::save).put(snapshot::restore))
        .route("/v1/operator/raft/peer", delete(operator::remove_peer))
        .route("/v1/operator/raft/transfer-leader", post(operator::transfer))
        .route("/v1/operator/keyring", keyring())
        .route("/v1/event/fire/{name}", put(event::fire))
        .route("/v1/event/list", get(event::list))
        .route("/v1/query", get(query::list).merge(post(query::create)))
        .route("/v1/query/{id}", get(query::read).put(query::update).delete(query::remove))
        .route("/v1/query/{id}/execute", get(query::execute))
        .route("/v1/query/{id}/explain", get(query::explain))
        .route_layer(from_fn_with_state(context.clone(), require));
    open.merge(guarded).merge(acl::router(context)).layer(DefaultBodyLimit::max(MAX_BODY))
}

fn keyring() -> axum::routing::MethodRouter<Context> {
    get(operator::keyring).put(operator::keyring).post(operator::keyring).delete(operator::keyring)
}

/// Lets a request through only with authority, which a Consul client shows in its own header or parameter.
async fn require(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    ask: Ask,
    mut request: Request,
    next: Next,
) -> Response {
    if let (Some(caller), Some(guard)) = (ask.caller(), context.discovery.guard()) {
        // Each handler asks for what it does. What is open by default is still no business of other users without a token, and
        // the name of the anonymous one is no secret.
        let is_known = caller.shows_a_token() || !guard.allows_by_default();
        if is_known || authority::has_authority(&context, &peer, request.headers()) {
            request.extensions_mut().insert(caller.clone());
            return next.run(request).await;
        }
        return not_allowed();
    }
    let headers = request.headers();
    let of_consul = headers.get("x-consul-token").and_then(|token| token.to_str().ok()).or_else(|| ask.get("token"));
    let allowed = match of_consul.filter(|token| !token.is_empty()) {
        Some(token) => authority::is_token(&context, token),
        None => authority::has_authority(&context, &peer, headers),
    };
    if allowed {
        return next.run(request).await;
    }
    not_allowed()
}

fn not_allowed() -> Response {
    let text = "Permission denied: call as the user that runs seawall, or send X-Consul-Token with the token from DATA_DIR/api-token";
    Trouble::new(StatusCode::FORBIDDEN, text).into_response()
}

/// The body as JSON.
fn body_of(body: &[u8]) -> Result<Value, Trouble> {
    serde_json::from_slice(body).map_err(|error| Trouble::bad(format!("Request decode failed: {error}")))
}

/// Refuses what a body wants of another site.
fn check_datacenter(context: &Context, fields: &mut Fields<'_>) -> Result<(), Trouble> {
    let datacenter = fields.text("datacenter")?;
    if datacenter.is_empty() || datacenter.eq_ignore_ascii_case(context.discovery.datacenter()) {
        return Ok(());
    }
    Err(Trouble::failed(format!("No path to datacenter: {datacenter:?} is not known here")))
}

/// The node that `near` names; `_agent` is this one.
fn near(context: &Context, ask: &Ask) -> Option<String> {
    let near = ask.get("near")?;
    Some(if near == "_agent" { context.discovery.node().to_owned() } else { near.to_owned() })
}

/// Refuses to touch an instance that Seawall runs.
fn refuse_own(catalog: &Catalog, node: &str, id: &str) -> Result<(), Trouble> {
    let known = catalog.node(node).and_then(|(_, entry)| entry.services.get(id));
    match known {
        Some(known) if known.record.owner == Owner::Seawall => Err(Trouble::new(
            StatusCode::FORBIDDEN,
            format!("{id:?} is an instance that Seawall runs: change `services` of its configuration instead"),
        )),
        _ => Ok(()),
    }
}

/// Refuses to touch a check of an instance that Seawall runs.
fn refuse_own_check(catalog: &Catalog, node: &str, id: &str) -> Result<(), Trouble> {
    let known = catalog.node(node).and_then(|(_, entry)| entry.checks.get(id));
    match known {
        Some(known) if known.record.owner == Owner::Seawall => Err(Trouble::new(
            StatusCode::FORBIDDEN,
            format!("{id:?} is the readiness of an instance that Seawall runs: it says so itself"),
        )),
        _ => Ok(()),
    }
}

/// Refuses to take out a machine whose Seawall is alive: it would come back at once.
fn own_if_agent(catalog: &Catalog, node: &str) -> Result<(), Trouble> {
    match catalog.node(node) {
        Some((known, entry)) if known.record.agent && entry.alive => {
            Err(Trouble::new(StatusCode::FORBIDDEN, format!("{node:?} is alive: stop Seawall there first")))
        }
        _ => Ok(()),
    }
}
