//! The HTTP API on one page: what is served where. Status and metrics are open to this machine; everything that changes
//! or reveals something needs authority, see [`authority`]. Handlers translate; decisions are made by the node.
//! Deliberately absent: traffic of services (that is the gateway) and anything that waits for a store on the request path
//! of a service.

mod authority;
mod bulk;
mod consul;
mod control;
mod events;
mod feeds;
mod fence;
mod hot;
mod kv;
mod logs;
mod plain;
mod preface;
mod problem;
mod query;
mod role;
mod server;
mod snapshot;
mod streams;
mod verbs;
pub mod view;

use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, RwLock};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use data::{Store, Streams};
use observe::journal::Journal;
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

pub use authority::Authority;
pub use control::{Applied, BreakerHold, Command, JoinToken, MemberChange, Refusal, RefusalKind, ShiftAsk, Switched};
pub use feeds::targets as prometheus_targets;
pub use hot::Answers;
use query::{Nothing, Parameters};
pub use server::{Server, serve};
pub use snapshot::{Blocks, Save};
pub use verbs::{ApplyRequest, PromoteRequest, TokenRequest};

/// The largest body of a request that is no key-value write: a configuration with its includes.
const MAX_BODY: usize = 16 << 20;
/// Blocking queries of Consul's clients at a time.
const MAX_WAITING: usize = 20_000;

/// What the handlers work with. Clones share it: every layer of every request takes one.
#[derive(Clone)]
pub struct Context(Arc<Parts>);

impl From<Parts> for Context {
    fn from(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for Context {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What the node fills in.
pub struct Parts {
    /// The newest status, replaced by the node.
    pub status: watch::Receiver<Arc<view::Status>>,
    /// Verbs, for the node to carry out.
    pub commands: mpsc::Sender<Command>,
    /// The store behind the key-value API.
    pub store: Arc<dyn Store>,
    /// How the store is saved as a whole.
    pub save: Save,
    /// The op-logs of services.
    pub streams: Arc<dyn Streams>,
    /// The event journal.
    pub journal: Journal,
    /// Every metric.
    pub registry: Arc<RwLock<Registry>>,
    /// Called before metrics are written, to bring copied ones up to date.
    pub refresh_metrics: Arc<dyn Fn() + Send + Sync>,
    /// The folder of instance logs.
    pub logs: PathBuf,
    /// Who may do what.
    pub authority: Arc<Authority>,
    /// What is registered.
    pub discovery: Arc<discovery::Registry>,
    /// What Consul's clients are told of this node.
    pub consul: ConsulFacts,
}

/// What does not change about this node, for Consul's clients.
#[derive(Clone, Debug, Default)]
pub struct ConsulFacts {
    /// The node's id, a UUID.
    pub node_id: String,
    /// The version that is told: Seawall's own.
    pub version: String,
    /// Checks that run programs may be registered over HTTP.
    pub script_checks: bool,
    /// Files of service definitions are to be read again.
    pub reload: Arc<tokio::sync::Notify>,
    /// Blocking queries that wait.
    pub blocking: Arc<AtomicUsize>,
}

/// Everything that the API answers.
pub fn answers(context: Context) -> Answers {
    Answers::new(router(context.clone()), Some(context))
}

/// Every route of the API; `docs` of each are in the OpenAPI document, and a test compares the two.
fn router(context: Context) -> Router {
    let open = Router::new()
        .route("/", get(root))
        .route("/metrics", get(metrics))
        .route("/api/v1/openapi.json", get(openapi))
        .route("/api/v1/status", get(verbs::status))
        .route("/api/v1/health", get(verbs::health))
        .route("/api/v1/events", get(events::list))
        .route("/api/v1/sd/prometheus", get(feeds::prometheus));
    let guarded = Router::new()
        .route("/api/v1/kv", get(kv::read_all))
        .route("/api/v1/kv/{*key}", get(kv::read).put(kv::write).delete(kv::remove))
        .route("/api/v1/role", get(role::read))
        .route("/api/v1/streams", get(streams::list))
        .route("/api/v1/streams/{stream}", get(streams::read).post(streams::append).delete(streams::remove))
        .route("/api/v1/streams/{stream}/describe", get(streams::describe))
        .route("/api/v1/streams/{stream}/seal", post(streams::seal))
        .route("/api/v1/streams/{stream}/cursors/{cursor}", get(streams::cursor).put(streams::commit))
        .route("/api/v1/logs/{service}", get(logs::read))
        .route("/api/v1/cluster/tokens", post(verbs::token))
        .route("/api/v1/cluster/members/{name}", delete(verbs::remove_member))
        .route("/api/v1/cluster/members/{name}/lead", post(verbs::lead))
        .route("/api/v1/snapshot", get(snapshot::save))
        .route("/api/v1/config", get(verbs::config))
        .route("/api/v1/apply", post(verbs::apply))
        .route("/api/v1/services/{service}/promote", post(verbs::promote))
        .route("/api/v1/services/{service}/restart", post(verbs::restart))
        .route("/api/v1/services/{service}/breaker", post(verbs::breaker))
        .route("/api/v1/services/{service}/shift", post(verbs::shift))
        .route_layer(from_fn_with_state(context.clone(), authority::require));
    open.merge(guarded)
        .fallback(problem::no_such_path)
        .method_not_allowed_fallback(problem::wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(map_response(problem::in_one_form))
        .merge(consul::router(&context))
        .with_state(context)
}

async fn root() -> &'static str {
    "Seawall control API\n/api/v1/status  /api/v1/events  /api/v1/kv/KEY  /api/v1/streams  /metrics  /api/v1/openapi.json\n"
}

async fn openapi(_: Parameters<Nothing>) -> Response {
    ([("content-type", "application/json")], OPENAPI).into_response()
}

/// The OpenAPI 3.1 document that is served.
pub const OPENAPI: &str = include_str!("openapi.json");

async fn metrics(State(context): State<Context>) -> Response {
    match metrics_text(&context) {
        Ok(text) => {
            ([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response()
        }
        Err(error) => problem::Problem::internal(error).into_response(),
    }
}

fn metrics_text(context: &Context) -> Result<String, String> {
    (context.refresh_metrics)();
    let mut text = String::new();
    let registry = context.registry.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|error| error.to_string())?;
    Ok(text)
}
