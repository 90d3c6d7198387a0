//! Status and the control verbs: promote, restart, apply.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Json;
use axum::extract::{ConnectInfo, Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use discovery::record::{CheckStatus, Owner};
use discovery::select;
use model::config::Foreign;
use model::{InstanceId, NodeName, ServiceName, VersionName};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::oneshot;

use crate::authority::Peer;
use crate::control::{BreakerHold, Command, MemberChange, Refusal, RefusalKind, Reply, ShiftAsk};
use crate::problem::Problem;
use crate::query::{Nothing, Parameters};
use crate::{Context, view};

/// Registered services that a status shows at most.
const REGISTERED: usize = 200;

/// The whole status.
pub async fn status(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    _: Parameters<Nothing>,
) -> Json<view::Status> {
    let status = context.status.borrow().clone();
    let sees = crate::authority::sees_registered(&context, &peer, &headers);
    let (registered, registered_more) = if sees { registered(&context.discovery.read()) } else { (Vec::new(), 0) };
    Json(view::Status { registered, registered_more, ..(*status).clone() })
}

/// What others run, and how many services more.
fn registered(catalog: &discovery::Catalog) -> (Vec<view::RegisteredView>, u64) {
    let others = |name: &str| catalog.instances(name).any(|(_, _, service, _)| service.record.owner != Owner::Seawall);
    let (mut shown, mut more) = (Vec::new(), 0);
    for (name, _) in catalog.names().filter(|(name, _)| others(name)) {
        if shown.len() >= REGISTERED {
            more += 1;
            continue;
        }
        let mut view = view::RegisteredView { name: name.to_owned(), ..view::RegisteredView::default() };
        for instance in select::instances(catalog, name, &select::Wanted::default()) {
            match instance.status() {
                _ if instance.service.record.owner == Owner::Seawall => {}
                CheckStatus::Passing => view.passing += 1,
                CheckStatus::Warning => view.warning += 1,
                CheckStatus::Critical => view.critical += 1,
            }
        }
        shown.push(view);
    }
    (shown, more)
}

/// 200 while the node serves, for load balancers and service managers; 503 otherwise.
pub async fn health(State(context): State<Context>, _: Parameters<Nothing>) -> Response {
    let state = context.status.borrow().node.state.clone();
    let code = if state == "serving" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(json!({ "state": state }))).into_response()
}

/// The configuration in force.
pub async fn config(State(context): State<Context>, _: Parameters<Nothing>) -> Result<Response, Problem> {
    Ok(([("content-type", "application/json")], effective(&context).await?).into_response())
}

async fn effective(context: &Context) -> Result<String, Problem> {
    let path = context.logs.parent().unwrap_or(Path::new("")).join("effective.json");
    tokio::fs::read_to_string(&path).await.map_err(|error| Problem::internal(format!("{}: {error}", path.display())))
}

/// The body of a promotion.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromoteRequest {
    /// Which standby; the best one when absent.
    #[serde(default)]
    pub instance: Option<InstanceId>,
    /// Answer when it is done.
    #[serde(default)]
    pub wait: bool,
}

/// Makes a standby the primary, in good order.
pub async fn promote(
    State(context): State<Context>,
    UrlPath(service): UrlPath<String>,
    _: Parameters<Nothing>,
    body: bytes::Bytes,
) -> Response {
    let request: PromoteRequest = match parse(&body) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let service = ServiceName::new(service);
    ask(&context, |reply| Command::Promote { service, instance: request.instance, wait: request.wait, reply }).await
}

/// Restarts a service's instances one at a time; answers when all are ready again.
pub async fn restart(
    State(context): State<Context>,
    UrlPath(service): UrlPath<String>,
    _: Parameters<Nothing>,
) -> Response {
    let service = ServiceName::new(service);
    ask(&context, |reply| Command::Restart { service, reply }).await
}

/// The body that holds a breaker.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerRequest {
    /// What is wanted.
    pub state: BreakerWord,
}

/// What is wanted of a breaker.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BreakerWord {
    /// No request goes through.
    Open,
    /// Every request goes through.
    Closed,
    /// It judges by itself.
    Auto,
}

/// Holds a service's circuit breaker open or closed on all nodes, or lets it judge by itself again.
pub async fn breaker(
    State(context): State<Context>,
    UrlPath(service): UrlPath<String>,
    _: Parameters<Nothing>,
    body: bytes::Bytes,
) -> Response {
    let request: BreakerRequest = match parse(&body) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let hold = match request.state {
        BreakerWord::Open => Some(BreakerHold::Open),
        BreakerWord::Closed => Some(BreakerHold::Closed),
        BreakerWord::Auto => None,
    };
    let service = ServiceName::new(service);
    ask(&context, |reply| Command::Breaker { service, hold, reply }).await
}

/// The body that begins a shift or says how it goes on: either `to`, or `action`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShiftRequest {
    /// The version or service that gets the requests.
    #[serde(default)]
    pub to: Option<String>,
    /// The version that has them.
    #[serde(default)]
    pub from: Option<VersionName>,
    /// Steps and gates, in the words of `traffic.shift`.
    #[serde(default)]
    pub plan: serde_json::Map<String, serde_json::Value>,
    /// Instead of `to`.
    #[serde(default)]
    pub action: Option<ShiftAction>,
}

/// How a shift goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShiftAction {
    /// It stays at its step.
    Pause,
    /// It goes on.
    Resume,
    /// All requests go where they went before.
    Abort,
    /// One that has ended is forgotten.
    Clear,
}

/// Moves a service's requests to another version or service in steps, or says how that goes on.
pub async fn shift(
    State(context): State<Context>,
    UrlPath(service): UrlPath<String>,
    _: Parameters<Nothing>,
    body: bytes::Bytes,
) -> Response {
    let request: ShiftRequest = match parse(&body) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let ask = match (request.to, request.action) {
        (Some(to), None) => ShiftAsk::Begin { to, from: request.from, plan: request.plan.into() },
        (None, Some(ShiftAction::Pause)) => ShiftAsk::Pause,
        (None, Some(ShiftAction::Resume)) => ShiftAsk::Resume,
        (None, Some(ShiftAction::Abort)) => ShiftAsk::Abort,
        (None, Some(ShiftAction::Clear)) => ShiftAsk::Clear,
        _ => {
            let cure = "write { \"to\": \"v2\" } to begin, or { \"action\": \"pause\" }";
            return Problem::bad_request("a shift takes one of `to` and `action`".to_owned(), cure).into_response();
        }
    };
    let service = ServiceName::new(service);
    self::ask(&context, |reply| Command::Shift { service, ask, reply }).await
}

/// Takes a member out of the cluster.
pub async fn remove_member(
    State(context): State<Context>,
    UrlPath(name): UrlPath<String>,
    _: Parameters<Nothing>,
) -> Response {
    let change = MemberChange::Remove(NodeName::from(name.as_str()));
    ask(&context, |reply| Command::Members { change, reply }).await
}

/// Makes a voter the leader.
pub async fn lead(State(context): State<Context>, UrlPath(name): UrlPath<String>, _: Parameters<Nothing>) -> Response {
    let change = MemberChange::Lead(NodeName::from(name.as_str()));
    ask(&context, |reply| Command::Members { change, reply }).await
}

/// The body that asks for a join token.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TokenRequest {
    /// The new node's name.
    pub node: String,
    /// How long the token is good, in seconds.
    #[serde(default = "an_hour")]
    pub valid_seconds: u64,
}

fn an_hour() -> u64 {
    3600
}

/// Makes a token that gets a new node its certificate.
pub async fn token(State(context): State<Context>, _: Parameters<Nothing>, body: bytes::Bytes) -> Response {
    let request: TokenRequest = match parse(&body) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    let valid = Duration::from_secs(request.valid_seconds);
    ask(&context, |reply| Command::Token { node: request.node, valid, reply }).await
}

/// The body of `apply`: a configuration with everything it includes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The path of the main file, absolute.
    pub main: PathBuf,
    /// The texts of all files, by path.
    pub files: BTreeMap<PathBuf, String>,
}

/// Puts a configuration in force, all or nothing.
pub async fn apply(State(context): State<Context>, _: Parameters<Nothing>, body: bytes::Bytes) -> Response {
    let request: ApplyRequest = match parse(&body) {
        Ok(request) => request,
        Err(problem) => return problem.into_response(),
    };
    if let Some(whose) = request.files.get(&request.main).and_then(|text| model::config::foreign(&request.main, text)) {
        return apply_over(&context, whose, &request).await;
    }
    let mut read = |path: &Path| request.files.get(path).cloned().ok_or(io::Error::from(io::ErrorKind::NotFound));
    let mut loaded = model::config::load(&request.main, &mut read);
    loaded.check_folders(Path::is_dir);
    let Some(config) = loaded.config else { return mistakes(&loaded.diagnostics.render(&loaded.sources)) };
    ask(&context, |reply| Command::Apply { config: Box::new(config), over: None, reply }).await
}

/// Another tool's file by itself: it is put over what is in force.
async fn apply_over(context: &Context, whose: Foreign, request: &ApplyRequest) -> Response {
    let in_force = match effective(context).await {
        Ok(text) => model::config::decode_effective(&text).map_err(Problem::internal),
        Err(problem) => Err(problem),
    };
    let in_force = match in_force {
        Ok(in_force) => in_force,
        Err(problem) => return problem.into_response(),
    };
    let text = request.files.get(&request.main).cloned().unwrap_or_default();
    let loaded = model::config::load_over(&in_force, whose, &request.main, text);
    let Some(config) = loaded.config else { return mistakes(&loaded.diagnostics.render(&loaded.sources)) };
    ask(context, |reply| Command::Apply { config: Box::new(config), over: Some(Box::new(in_force)), reply }).await
}

fn mistakes(report: &str) -> Response {
    let body = json!({ "error": "the configuration has mistakes; nothing was changed", "cure": "the report names each with its cure", "report": report });
    (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
}

fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Problem> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        Problem::bad_request(
            format!("the body is not what this verb takes: {error}"),
            "GET /api/v1/openapi.json describes it",
        )
    })
}

async fn ask<T: Serialize>(context: &Context, command: impl FnOnce(Reply<T>) -> Command) -> Response {
    let (reply, answer) = oneshot::channel();
    if context.commands.send(command(reply)).await.is_err() {
        return Problem::stopping().into_response();
    }
    match answer.await {
        Ok(Ok(done)) => Json(done).into_response(),
        Ok(Err(refusal)) => refused(refusal),
        Err(_) => Problem::stopping().into_response(),
    }
}

fn refused(refusal: Refusal) -> Response {
    let status = match refusal.kind {
        RefusalKind::NotFound => StatusCode::NOT_FOUND,
        RefusalKind::Refused => StatusCode::CONFLICT,
        RefusalKind::Bad => StatusCode::UNPROCESSABLE_ENTITY,
        RefusalKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (status, Json(json!({ "error": refusal.message, "cure": "" }))).into_response()
}
