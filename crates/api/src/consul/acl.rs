//! `/v1/acl`: tokens, policies, roles, ways to log in and binding rules, as Consul has them, kept in the store. With ACLs off all
//! of it is 401. The token of the node's `api-token` file is the management token, so nothing has to be bootstrapped.
//! Deliberately absent: what Consul's own servers tell each other, OIDC and Kubernetes.

mod grants;
mod jwt;
mod login;
mod methods;
mod policies;
mod roles;
mod templates;
mod tokens;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post, put};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use discovery::acl::{Access, AgentToken, Kind, Scalar};
use discovery::fields::Fields;
use serde::Serialize;
use serde_json::json;

use super::ask::Ask;
use super::reply::{Answer, Trouble, done, json as reply_json};
use super::{body_of, require};
use crate::Context;

/// The bytes of a token that is handed to the node, at most.
const MAX_SECRET_BYTES: usize = 4096;
/// And of one for recovery at least.
const MIN_RECOVERY_BYTES: usize = 16;

/// What is there while ACLs are on.
pub fn router(context: &Context) -> Router<Context> {
    Router::new()
        .route("/v1/acl/bootstrap", put(bootstrap))
        .route("/v1/acl/replication", get(replication))
        .route("/v1/acl/logout", post(login::logout))
        .route("/v1/acl/tokens", get(tokens::list))
        .route("/v1/acl/token", put(tokens::create))
        .route("/v1/acl/token/self", get(tokens::own))
        .route("/v1/acl/token/{id}", get(tokens::read).put(tokens::update).delete(tokens::remove))
        .route("/v1/acl/token/{id}/clone", put(tokens::copy))
        .route("/v1/acl/policies", get(policies::list))
        .route("/v1/acl/policy", put(policies::create))
        .route("/v1/acl/policy/{id}", get(policies::read).put(policies::update).delete(policies::remove))
        .route("/v1/acl/policy/name/{name}", get(policies::by_name))
        .route("/v1/acl/roles", get(roles::list))
        .route("/v1/acl/role", put(roles::create))
        .route("/v1/acl/role/{id}", get(roles::read).put(roles::update).delete(roles::remove))
        .route("/v1/acl/role/name/{name}", get(roles::by_name))
        .route("/v1/acl/templated-policies", get(templates::list))
        .route("/v1/acl/templated-policy/name/{*name}", get(templates::read))
        .route("/v1/acl/templated-policy/preview/{*name}", post(templates::preview))
        .route("/v1/acl/auth-methods", get(methods::list))
        .route("/v1/acl/auth-method", put(methods::create))
        .route("/v1/acl/auth-method/{name}", get(methods::read).put(methods::update).delete(methods::remove))
        .route("/v1/acl/binding-rules", get(methods::rules))
        .route("/v1/acl/binding-rule", put(methods::create_rule))
        .route(
            "/v1/acl/binding-rule/{id}",
            get(methods::read_rule).put(methods::update_rule).delete(methods::remove_rule),
        )
        .route_layer(from_fn_with_state(context.clone(), require))
        // Who logs in shows who it is otherwise.
        .route("/v1/acl/login", post(login::login))
        .route("/v1/acl/{*rest}", any(unknown))
        .layer(from_fn_with_state(context.clone(), while_on))
}

/// Consul's own answer where ACLs are off.
fn off() -> Trouble {
    Trouble::new(StatusCode::UNAUTHORIZED, "ACL support disabled")
}

async fn while_on(State(context): State<Context>, request: Request, next: Next) -> Response {
    if context.discovery.guard().is_none() {
        return off().into_response();
    }
    next.run(request).await
}

async fn unknown() -> Trouble {
    Trouble::missing("no such path under /v1/acl: docs/reference/consul-compatibility.md has those that there are")
}

/// The management token is there from the first start on.
async fn bootstrap(State(context): State<Context>, ask: Ask) -> Trouble {
    let _ = ask;
    let index = context.discovery.read().acls().sequence().max(1);
    let text = format!("Permission denied: ACL bootstrap no longer allowed (reset index: {index})");
    Trouble::new(StatusCode::FORBIDDEN, text)
}

/// There is one site: nothing comes from another one.
async fn replication(State(context): State<Context>, ask: Ask) -> Response {
    let value = json!({
        "Enabled": false, "Running": false, "SourceDatacenter": context.discovery.datacenter(), "ReplicationType": "",
        "ReplicatedIndex": 0, "ReplicatedRoleIndex": 0, "ReplicatedTokenIndex": 0,
        "LastSuccess": "0001-01-01T00:00:00Z", "LastError": "0001-01-01T00:00:00Z", "LastErrorMessage": "",
    });
    reply_json(&ask, &value)
}

/// Gives this node a token, until it ends: for requests and questions by DNS that have none, and for recovery. Others are taken,
/// since Consul's users set them, and mean nothing: a node of Seawall writes what is its own with its own authority.
pub async fn agent_token(State(context): State<Context>, Path(kind): Path<String>, ask: Ask, body: Bytes) -> Answer {
    let Some(guard) = context.discovery.guard() else { return Err(off()) };
    ask.require(Kind::Agent, context.discovery.node(), Access::Write)?;
    let value = body_of(&body)?;
    let secret = Fields::of(&value, "")?.text("token")?;
    if secret.len() > MAX_SECRET_BYTES {
        return Err(Trouble::bad(format!("a token has {MAX_SECRET_BYTES} bytes at most")));
    }
    if matches!(kind.as_str(), "agent_recovery" | "agent_master" | "acl_agent_master_token") && !secret.is_empty() {
        refuse_known(&context, &secret)?;
    }
    match kind.as_str() {
        "default" | "acl_token" => guard.give(AgentToken::Default, secret),
        "dns" => guard.give(AgentToken::Dns, secret),
        "agent_recovery" | "agent_master" | "acl_agent_master_token" => guard.give(AgentToken::Recovery, secret),
        "agent" | "acl_agent_token" | "replication" | "acl_replication_token" | "config_file_service_registration" => {}
        _ => return Err(Trouble::missing(format!("Token {kind:?} is unknown"))),
    }
    Ok(done())
}

/// The secret for recovery is one that nobody guesses, and of no other token: whoever has that one would be somebody else.
fn refuse_known(context: &Context, secret: &str) -> Result<(), Trouble> {
    let known =
        context.discovery.guard().is_some_and(|guard| guard.identity(&context.discovery, Some(secret)).is_some());
    match (secret.len() < MIN_RECOVERY_BYTES, known) {
        (true, _) => Err(Trouble::bad(format!("a token for recovery has {MIN_RECOVERY_BYTES} bytes at least"))),
        (false, true) => Err(Trouble::bad("a token for recovery is none that there is already")),
        (false, false) => Ok(()),
    }
}

fn require_read(ask: &Ask) -> Result<(), Trouble> {
    ask.require_in(Scalar::Acl, Access::Read)
}

fn require_write(ask: &Ask) -> Result<(), Trouble> {
    ask.require_in(Scalar::Acl, Access::Write)
}

/// By which clients see that something has changed. Consul's is of another function.
fn hash_of(what: &impl Serialize) -> String {
    let text = serde_json::to_vec(what).unwrap_or_default();
    STANDARD.encode(ring::digest::digest(&ring::digest::SHA256, &text))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && uuid::Uuid::try_parse(text).is_ok()
}

/// Names of policies, roles and ways to log in.
fn is_name(name: &str, longest: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    !name.is_empty() && name.len() <= longest && name.bytes().all(plain)
}
