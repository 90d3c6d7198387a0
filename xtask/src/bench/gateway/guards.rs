//! `--guards`: what each configuration of `config.rs` gets besides, so that a request passes a rate limit by the client's
//! address, a breaker or its like, a limit of what is under way, ejection, a rule of what is sent again and a bound on time,
//! none of which the load ever reaches; and so that `RULES` more routes have guards of their own which no request meets.
//! Deliberately absent: guards that answer (tests of the gateway do that), and nginx, which has no breaker to compare.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

/// Further routes, each to a service of its own.
pub const RULES: usize = 1_000;
/// Far above what one core passes on; Seawall takes no higher rate.
const QPS: usize = 1_000_000;
/// Far above what is under way.
const AT_ONCE: usize = 10_000;
/// Failures in a row that eject.
const FAILURES: usize = 5;

/// Seconds between two checks of a server's health, for Seawall as for HAProxy: what is compared is what a request costs.
const CHECK_PERIOD: u32 = 600;

/// Adds guards, and rules before the route of everything, to the configuration of `seawall up`.
pub fn seawall(config: &mut Value, backend: SocketAddr) {
    let probe = json!({ "tcpSocket": {}, "periodSeconds": CHECK_PERIOD });
    let service = json!({ "endpoints": [backend.to_string()], "readinessProbe": probe, "traffic": {
        "rateLimit": { "qps": QPS, "key": { "address": true } },
        "circuitBreaker": { "preset": "hystrix" },
        "concurrency": { "max": AT_ONCE, "pending": 100 },
        "outlier": { "consecutiveErrors": FAILURES, "ejectFor": "30s" },
        "retryBudget": { "part": "20%" },
    } });
    let route = |prefix: &str, service: &str| {
        json!({
            "match": { "pathPrefix": prefix },
            "to": { "service": service },
            "timeout": "5s",
            "retry": { "attempts": 2, "on": ["connect", "reset", "gateway-error"], "perTryTimeout": "4s", "backoff": "25ms" },
        })
    };
    config["services"] =
        (0..RULES).map(|number| (rule(number), service.clone())).collect::<serde_json::Map<_, _>>().into();
    config["services"]["backend"] = service;
    let mut routes: Vec<Value> = (0..RULES).map(|number| route(&format!("/{}", rule(number)), &rule(number))).collect();
    routes.push(route("/", "backend"));
    config["routes"] = routes.into();
}

/// Takes the bound on time, the one guard of the plain configuration, away.
pub fn bare(config: &mut Value) {
    config["routes"] = json!([{ "match": { "pathPrefix": "/" }, "to": { "service": "backend" } }]);
}

/// The parts of a guarded configuration of HAProxy.
#[derive(Default)]
pub struct Haproxy {
    /// Lines of the frontend: the map that finds a rule.
    pub entrance: String,
    /// Lines of the backend: its limit, and what is sent again.
    pub backend: String,
    /// Words of the server: ejection, and how much at once.
    pub server: String,
    /// The rules' backends.
    pub rules: String,
}

/// Writes the map into `map` and gives the rest. Its servers are watched by what they answer; a server that is watched so
/// must be asked about its health, too.
pub fn haproxy(map: &Path, backend: SocketAddr) -> Result<Haproxy> {
    let lines: String = (0..RULES).map(|number| format!("/{0} {0}\n", rule(number))).collect();
    fs::write(map, lines)?;
    let guards = format!(
        "  stick-table type ip size 10k expire 10s store http_req_rate(1s)
  http-request track-sc0 src
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {QPS} }}
  retries 2
  retry-on conn-failure empty-response response-timeout 502 503 504
"
    );
    let server = format!(
        " check inter {CHECK_PERIOD}s observe layer7 error-limit {FAILURES} on-error mark-down maxconn {AT_ONCE}"
    );
    let mut rules = String::new();
    for number in 0..RULES {
        let name = rule(number);
        write!(rules, "backend {name}\n  http-reuse always\n{guards}  server one {backend}{server}\n")?;
    }
    let entrance = format!("  use_backend %[path,map_beg({},backend)]\n", map.display());
    Ok(Haproxy { entrance, backend: guards, server, rules })
}

/// What stands before Envoy's router: a limit, which each route sets for itself.
pub fn envoy_filter() -> Value {
    json!({ "name": LOCAL_LIMIT, "typed_config": { "@type": LOCAL_LIMIT_TYPE, "stat_prefix": "limit" } })
}

/// Envoy's virtual host: a tree finds the rule, as a list of routes would be gone through one by one.
pub fn envoy_host() -> Value {
    let action = |cluster: &str| {
        json!({ "action": { "name": "route", "typed_config": {
            "@type": "type.googleapis.com/envoy.config.route.v3.Route",
            "match": { "prefix": "/" },
            "route": {
                "cluster": cluster,
                "timeout": "5s",
                "retry_policy": {
                    "retry_on": "connect-failure,refused-stream,reset,gateway-error",
                    "num_retries": 2,
                    "per_try_timeout": "4s",
                },
            },
            "typed_per_filter_config": { LOCAL_LIMIT: envoy_limit() },
        } } })
    };
    let rules: serde_json::Map<_, _> =
        (0..RULES).map(|number| (format!("/{}", rule(number)), action(&rule(number)))).collect();
    json!({ "name": "all", "domains": ["*"], "matcher": {
        "matcher_tree": {
            "input": { "name": "path", "typed_config": {
                "@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput",
                "header_name": ":path",
            } },
            "prefix_match_map": { "map": rules },
        },
        "on_no_match": action("backend"),
    } })
}

/// Envoy's clusters, of which `plain` is one without guards.
pub fn envoy_clusters(plain: &Value) -> Vec<Value> {
    let names = std::iter::once("backend".to_owned()).chain((0..RULES).map(rule));
    names
        .map(|name| {
            let mut cluster = plain.clone();
            cluster["name"] = json!(name);
            cluster["load_assignment"]["cluster_name"] = json!(name);
            cluster["circuit_breakers"] = json!({ "thresholds": [{
                "max_connections": AT_ONCE,
                "max_pending_requests": AT_ONCE,
                "max_requests": AT_ONCE,
                "retry_budget": { "budget_percent": { "value": 20 }, "min_retry_concurrency": 3 },
            }] });
            cluster["outlier_detection"] = json!({ "consecutive_5xx": FAILURES, "base_ejection_time": "30s" });
            cluster
        })
        .collect()
}

const LOCAL_LIMIT: &str = "envoy.filters.http.local_ratelimit";
const LOCAL_LIMIT_TYPE: &str = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";

/// Of all clients together: Envoy's local limit knows single addresses only if they are written down.
fn envoy_limit() -> Value {
    let all = json!({ "default_value": { "numerator": 100, "denominator": "HUNDRED" } });
    json!({
        "@type": LOCAL_LIMIT_TYPE,
        "stat_prefix": "limit",
        "token_bucket": { "max_tokens": QPS, "tokens_per_fill": QPS, "fill_interval": "1s" },
        "filter_enabled": all,
        "filter_enforced": all,
    })
}

fn rule(number: usize) -> String {
    format!("rule-{number:04}")
}
