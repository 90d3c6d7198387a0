//! DestinationRules: which version each subset is, and what guards a service.

use std::collections::BTreeMap;

use super::super::super::decode::Ratio;
use super::super::super::{Concurrency, Outlier};
use super::super::{Guard, OriginKind, Target};
use super::rules::{ConnectionPool, DestinationRule, OutlierDetection, Subset, TrafficPolicy};
use super::{Names, refuse};
use crate::diagnostic::Place;
use crate::id::{ServiceName, VersionName};

/// More wait nowhere.
const MOST_PENDING: u32 = 100_000;

/// The service that a host means: by its own name, or as Kubernetes' DNS has it.
pub(super) fn service(target: &mut Target<'_>, names: &Names, host: &str, place: Place) -> Option<ServiceName> {
    let name = if names.contains_key(host) { host } else { host.split('.').next().unwrap_or(host) };
    target.service("host", name, names, place)
}

/// What subsets are.
#[derive(Clone, Debug, Default)]
pub(super) struct Subsets(BTreeMap<(ServiceName, String), BTreeMap<String, String>>);

/// Reads DestinationRules and puts their policies in force.
pub(super) fn rules(target: &mut Target<'_>, names: &Names, rules: &[DestinationRule]) -> Subsets {
    let mut subsets = Subsets::default();
    for rule in rules {
        let spec = &rule.spec;
        refuse(&spec.at, &["exportTo", "workloadSelector"], target.diagnostics);
        let Some(service) = service(target, names, &spec.host, spec.at.field("host")) else { continue };
        for Subset { name, labels, at, .. } in &spec.subsets {
            refuse(at, &["trafficPolicy"], target.diagnostics);
            if subsets.0.insert((service.clone(), name.clone()), labels.clone()).is_some() {
                let message = format!("`{service}` has a subset `{name}` already");
                target.diagnostics.error(at.field("name"), message, "remove one of the two");
            }
        }
        target.begin(OriginKind::DestinationRule, &service);
        if let Some(policy) = &spec.traffic_policy {
            put(target, &service, policy);
        }
    }
    subsets
}

impl Subsets {
    /// The version that a subset is; `Some(None)`: all of the service.
    pub(super) fn version(
        &self,
        target: &mut Target<'_>,
        service: &ServiceName,
        subset: &str,
        place: Place,
    ) -> Option<Option<VersionName>> {
        let definition = target.config.services.get(service)?;
        let named = VersionName::from(subset);
        let Some(labels) = self.0.get(&(service.clone(), subset.to_owned())) else {
            if definition.versions.contains_key(&named) {
                return Some(Some(named));
            }
            let message = format!("`{service}` has no version `{subset}`, and no DestinationRule says what it is");
            target.diagnostics.error(place, message, "give the service such a version, or add a DestinationRule");
            return None;
        };
        if labels.is_empty() {
            return Some(None);
        }
        let has = |version: &VersionName, own: &BTreeMap<String, String>| {
            labels.iter().all(|(key, value)| {
                let known = own.get(key).or_else(|| definition.labels.get(key)).map(String::as_str);
                // As deployments are labelled by custom: the version's name is its label `version`.
                known.or((key == "version").then_some(version.as_str())) == Some(value)
            })
        };
        let fit: Vec<&VersionName> =
            definition.versions.iter().filter(|(name, own)| has(name, &own.labels)).map(|(name, _)| name).collect();
        match fit.as_slice() {
            [only] => Some(Some((*only).clone())),
            [] => {
                let message = format!("no version of `{service}` has the labels of its subset `{subset}`");
                target.diagnostics.error(place, message, "give them to one under `versions`");
                None
            }
            several => {
                let names: Vec<&str> = several.iter().map(|name| name.as_str()).collect();
                let message = format!("the subset `{subset}` of `{service}` is several versions: {}", names.join(", "));
                target.diagnostics.error(place, message, "give each its own labels");
                None
            }
        }
    }
}

fn put(target: &mut Target<'_>, service: &ServiceName, policy: &TrafficPolicy) {
    let refused = ["loadBalancer", "tls", "portLevelSettings", "tunnel", "proxyProtocol", "retryBudget"];
    refuse(&policy.at, &refused, target.diagnostics);
    if let Some(pool) = &policy.connection_pool
        && let Some(concurrency) = concurrency(target, pool)
    {
        target.guard(service, Guard::Concurrency(concurrency), OriginKind::DestinationRule, pool.at.whole);
    }
    if let Some(detection) = &policy.outlier_detection
        && let Some(outlier) = outlier(target, detection)
    {
        target.guard(service, Guard::Outlier(outlier), OriginKind::DestinationRule, detection.at.whole);
    }
}

/// Envoy: with HTTP/1 a request has a connection for itself; more than there may be wait, and beyond `maxRequests` none does.
fn concurrency(target: &mut Target<'_>, pool: &ConnectionPool) -> Option<Concurrency> {
    let (mut connections, mut requests, mut pending) = (None, None, None);
    let mut at = pool.at.clone();
    if let Some(tcp) = &pool.tcp {
        let refused = ["connectTimeout", "tcpKeepalive", "maxConnectionDuration", "idleTimeout"];
        refuse(&tcp.at, &refused, target.diagnostics);
        connections = tcp.max_connections;
        at = tcp.at.renamed(&[("maxConnections", "max")]);
    }
    if let Some(http) = &pool.http {
        let refused = [
            "maxRequestsPerConnection",
            "maxRetries",
            "idleTimeout",
            "h2UpgradePolicy",
            "useClientProtocol",
            "maxConcurrentStreams",
        ];
        refuse(&http.at, &refused, target.diagnostics);
        (requests, pending) = (http.http2_max_requests, http.http1_max_pending_requests);
        if connections.is_none() {
            at = http.at.renamed(&[("http2MaxRequests", "max"), ("http1MaxPendingRequests", "pending")]);
        }
    }
    let max = connections.into_iter().chain(requests).min()?;
    let waits = connections.is_some_and(|connections| connections == max);
    let pending = if waits { pending.unwrap_or(MOST_PENDING).min(MOST_PENDING) } else { 0 };
    Some(Concurrency { max, adaptive: None, pending, max_wait: std::time::Duration::from_secs(10), from: None, at })
}

fn outlier(target: &mut Target<'_>, written: &OutlierDetection) -> Option<Outlier> {
    let refused = ["consecutiveGatewayErrors", "consecutiveLocalOriginFailures", "splitExternalLocalOriginErrors"];
    refuse(&written.at, &refused, target.diagnostics);
    if written.interval.is_some_and(|interval| interval.as_secs() != 10) {
        let message = "`interval` is 10 s here: an ejection steps back after that; failures in a row are seen at once";
        target.diagnostics.warning(written.at.field("interval"), message, "leave it out");
    }
    // Istio's default is 5, and 0 is never.
    let consecutive = written.consecutive_5xx_errors.or(written.consecutive_errors).unwrap_or(5);
    (consecutive > 0).then(|| Outlier {
        consecutive_errors: consecutive,
        eject_for: written.base_ejection_time,
        max_ejected: Ratio::percent(written.max_ejection_percent.min(100)),
        panic_threshold: Ratio::percent(written.min_health_percent.min(100)),
        within: None,
        server_errors: true,
        growing: true,
        from: None,
        at: written.at.renamed(&[("consecutive5xxErrors", "consecutiveErrors"), ("baseEjectionTime", "ejectFor")]),
    })
}
