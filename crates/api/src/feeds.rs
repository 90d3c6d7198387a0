//! Feeds for programs that keep lists of targets: Prometheus' HTTP service discovery. Always the whole list, always 200, as
//! its documentation wants. Deliberately absent: files, which the node writes from this.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::HeaderMap;
use discovery::Registry;
use discovery::catalog::SERVERS;
use discovery::select::{self, Wanted};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Context;
use crate::authority::{self, Peer};
use crate::problem::Problem;
use crate::query::{Known, Parameters};

/// Query parameters.
#[derive(Debug, Default, Deserialize)]
pub struct Targets {
    /// This service alone.
    service: Option<String>,
}

impl Known for Targets {
    const NAMES: &'static [&'static str] = &["service"];
}

/// Every instance that is registered, whether it works or not: Prometheus itself finds out, and its labels say.
pub async fn prometheus(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    headers: HeaderMap,
    Parameters(wanted): Parameters<Targets>,
) -> Result<Json<Value>, Problem> {
    if !authority::sees_registered(&context, &peer, &headers) {
        return Err(authority::not_allowed());
    }
    Ok(Json(targets(&context.discovery, wanted.service.as_deref())))
}

/// All of them, or those of one service, as `http_sd_configs` and `file_sd_configs` want them.
pub fn targets(registry: &Registry, service: Option<&str>) -> Value {
    let catalog = registry.read();
    let mut groups = Vec::new();
    // Seawalls themselves show their metrics elsewhere, and are named by whoever wants them.
    let is_wanted = |name: &str| service.map_or(name != SERVERS, |only| only == name);
    for (name, _) in catalog.names().filter(|(name, _)| is_wanted(name)) {
        for instance in select::instances(&catalog, name, &Wanted::default()) {
            let service = &instance.service.record;
            let host = instance.address();
            let target = if host.contains(':') {
                format!("[{host}]:{}", service.port)
            } else {
                format!("{host}:{}", service.port)
            };
            let mut labels: BTreeMap<String, String> = [
                ("service", name),
                ("instance_id", instance.id),
                ("node", instance.node_name),
                ("region", registry.datacenter()),
                ("status", instance.status().as_str()),
            ]
            .map(|(key, value)| (format!("__meta_seawall_{key}"), value.to_owned()))
            .into();
            // With separators around each, as for Consul: a tag is matched whole by `.*,TAG,.*`.
            labels.insert("__meta_seawall_tags".into(), format!(",{},", service.tags.join(",")));
            for (key, value) in &service.meta {
                let key: String = key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
                labels.insert(format!("__meta_seawall_service_metadata_{key}"), value.clone());
            }
            groups.push(json!({ "targets": [target], "labels": labels }));
        }
    }
    groups.into()
}
