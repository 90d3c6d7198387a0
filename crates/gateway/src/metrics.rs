//! The gateway's numbers: requests, errors and durations per service and instance, holds, pools, refusals.
//! Last step of the request walk (record). Handles are resolved once into services and instances; a request only
//! adds to atomics. Deliberately absent: the registry's endpoint and any log line.

mod instances;
#[cfg(test)]
mod tests;
mod workers;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::guards::{GuardPage, GuardSeries, Guards};
use crate::overload::{OverloadPage, Protection};
use crate::tunnel::Moved;
use instances::{InstancePage, InstanceSeries};
use model::{InstanceId, ServiceName};
use workers::{WorkerPage, WorkerSeries};

pub(crate) use instances::InstanceMetrics;

/// Every metric family of the gateway. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Families>);

#[derive(Debug, Default)]
struct Families {
    requests: Family<ServiceCode, Counter>,
    durations: Family<ServiceLabel, DurationHistogram>,
    instances: Arc<InstanceSeries>,
    workers: Arc<WorkerSeries>,
    guards: Arc<GuardSeries>,
    protection: Arc<Protection>,
    route_requests: Family<RouteCode, Counter>,
    route_durations: Family<RouteLabel, DurationHistogram>,
    cut: Family<ReasonLabel, Counter>,
    retries: Family<ServiceReason, Counter>,
    over_budget: Family<ServiceReason, Counter>,
    held: Family<ServiceLabel, Gauge>,
    holds: Family<ServiceReason, Counter>,
    hold_durations: Family<ServiceLabel, DurationHistogram>,
    bad_requests: Family<ReasonLabel, Counter>,
    received: Family<ServiceLabel, Counter>,
    sent: Family<ServiceLabel, Counter>,
    connections: Gauge,
    tunnels: Family<ServiceReason, Counter>,
    tls_handshakes: Family<TlsLabel, Counter>,
    tls_failures: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    records_dropped: Counter,
    signals_dropped: Counter,
    mirrored: Family<ServiceReason, Counter>,
    unrouted: OnceLock<ServiceMetrics>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceLabel {
    service: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceCode {
    service: String,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteCode {
    route: String,
    code: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ServiceReason {
    service: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TlsLabel {
    version: &'static str,
    resumed: &'static str,
}

/// What becomes of a copy of a request.
const MIRRORED: [&str; 5] = ["answered", "failed", "too-many", "body-too-large", "body-cut"];

impl Metrics {
    /// Registers every family, named `seawall_gateway_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let all = &*metrics.0;
        let registry = registry.sub_registry_with_prefix("seawall_gateway");
        registry.register("requests", "Requests answered, by class of status", all.requests.clone());
        registry.register("request_duration_seconds", "Head read to last byte written", all.durations.clone());
        let (name, help) = ("route_requests", "Requests of a named route answered, by class of status");
        registry.register(name, help, all.route_requests.clone());
        let (name, help) = ("route_request_duration_seconds", "Head read to last byte written, of a named route");
        registry.register(name, help, all.route_durations.clone());
        registry.register("clients_cut", "Clients cut off in the middle of an answer, by reason", all.cut.clone());
        registry.register("retries", "Attempts made again, by reason", all.retries.clone());
        let (name, help) =
            ("retries_over_budget", "Attempts not made again at once, to spare the service, by what was done");
        registry.register(name, help, all.over_budget.clone());
        registry.register("held_requests", "Requests waiting for a switch now", all.held.clone());
        registry.register("holds", "Requests that waited, by how it ended", all.holds.clone());
        registry.register("hold_duration_seconds", "Time spent waiting for a switch", all.hold_durations.clone());
        registry.register("bad_requests", "Requests refused as malformed, by reason", all.bad_requests.clone());
        registry.register("received_bytes", "Body bytes taken from clients", all.received.clone());
        registry.register("sent_bytes", "Body bytes given to clients", all.sent.clone());
        registry.register("connections", "Client connections open now", all.connections.clone());
        registry.register("connections_refused", "Client connections turned away, by reason", all.refused.clone());
        registry.register("tunnels", "TCP connections, by how they began", all.tunnels.clone());
        registry.register("mirrored", "Copies of requests, by what became of them", all.mirrored.clone());
        registry.register("tls_handshakes", "TLS handshakes completed with clients", all.tls_handshakes.clone());
        registry.register("tls_handshakes_failed", "TLS handshakes that failed, by reason", all.tls_failures.clone());
        registry.register("access_records_dropped", "Access records nobody took in time", all.records_dropped.clone());
        registry.register("signals_dropped", "Passive health signals nobody took in time", all.signals_dropped.clone());
        registry.register_collector(Box::new(InstancePage(all.instances.clone())));
        registry.register_collector(Box::new(WorkerPage(all.workers.clone())));
        registry.register_collector(Box::new(GuardPage(all.guards.clone())));
        registry.register_collector(Box::new(OverloadPage(all.protection.clone())));
        metrics
    }

    pub(crate) fn service(&self, service: &str) -> ServiceMetrics {
        let all = &*self.0;
        let label = ServiceLabel { service: service.to_owned() };
        let reason = |reason| ServiceReason { service: service.to_owned(), reason };
        ServiceMetrics {
            requests: CLASSES
                .map(|code| all.requests.get_or_create_owned(&ServiceCode { service: service.to_owned(), code })),
            duration: all.durations.get_or_create_owned(&label),
            retries: RETRY_REASONS.map(|name| all.retries.get_or_create_owned(&reason(name))),
            over_budget: OVER_BUDGET.map(|name| all.over_budget.get_or_create_owned(&reason(name))),
            held: all.held.get_or_create_owned(&label),
            holds: HOLD_ENDS.map(|name| all.holds.get_or_create_owned(&reason(name))),
            hold_duration: all.hold_durations.get_or_create_owned(&label),
            tunnels: ["reached", "unreachable"].map(|name| all.tunnels.get_or_create_owned(&reason(name))),
            received: all.received.get_or_create_owned(&label),
            sent: all.sent.get_or_create_owned(&label),
        }
    }

    /// A named route's handles; the same series as a route of this name had before.
    pub(crate) fn route(&self, route: &str) -> RouteMetrics {
        let all = &*self.0;
        RouteMetrics {
            requests: CLASSES
                .map(|code| all.route_requests.get_or_create_owned(&RouteCode { route: route.to_owned(), code })),
            duration: all.route_durations.get_or_create_owned(&RouteLabel { route: route.to_owned() }),
        }
    }

    /// Forgets a named route that is gone, so that labels stay bounded.
    pub(crate) fn remove_route(&self, route: &str) {
        self.0.route_durations.remove(&RouteLabel { route: route.to_owned() });
        for code in CLASSES {
            self.0.route_requests.remove(&RouteCode { route: route.to_owned(), code });
        }
    }

    /// A worker has begun.
    pub(crate) fn worker(&self, index: usize, runtime: tokio::runtime::RuntimeMetrics, connections: Arc<AtomicUsize>) {
        self.0.workers.add(index, runtime, connections);
    }

    /// A client was cut off in the middle of its answer.
    pub(crate) fn client_cut(&self, reason: &'static str) {
        self.0.cut.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An instance that came; `key` is its own for ever.
    pub(crate) fn instance(&self, key: u64, service: &ServiceName, instance: &InstanceId) -> Arc<InstanceMetrics> {
        self.0.instances.add(key, service, instance)
    }

    /// The gateway's protection of itself.
    pub(crate) fn protection(&self) -> Arc<Protection> {
        self.0.protection.clone()
    }

    /// The guards a service has now.
    pub(crate) fn guards(&self, service: &ServiceName, guards: Option<Arc<Guards>>) {
        self.0.guards.set(service, guards);
    }

    /// Forgets a service that is gone, so that labels stay bounded.
    pub(crate) fn remove_service(&self, service: &str) {
        let all = &*self.0;
        all.guards.set(&service.into(), None);
        let label = ServiceLabel { service: service.to_owned() };
        all.durations.remove(&label);
        all.held.remove(&label);
        all.hold_durations.remove(&label);
        all.received.remove(&label);
        all.sent.remove(&label);
        for code in CLASSES {
            all.requests.remove(&ServiceCode { service: service.to_owned(), code });
        }
        for reason in RETRY_REASONS {
            all.retries.remove(&ServiceReason { service: service.to_owned(), reason });
        }
        for reason in OVER_BUDGET {
            all.over_budget.remove(&ServiceReason { service: service.to_owned(), reason });
        }
        for reason in ["reached", "unreachable"] {
            all.tunnels.remove(&ServiceReason { service: service.to_owned(), reason });
        }
        for reason in MIRRORED {
            all.mirrored.remove(&ServiceReason { service: service.to_owned(), reason });
        }
        for reason in HOLD_ENDS {
            all.holds.remove(&ServiceReason { service: service.to_owned(), reason });
        }
    }

    /// Forgets an instance that is gone, so that labels stay bounded.
    pub(crate) fn remove_instance(&self, key: u64) {
        self.0.instances.remove(key);
    }

    /// What became of a copy of a request: one of [`MIRRORED`].
    pub(crate) fn mirrored(&self, service: &ServiceName, reason: &'static str) {
        self.0.mirrored.get_or_create(&ServiceReason { service: service.to_string(), reason }).inc();
    }

    pub(crate) fn bad_request(&self, reason: &'static str) {
        self.0.bad_requests.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.0.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn tls_handshake(&self, version: Option<rustls::ProtocolVersion>, resumed: bool) {
        let version = if version == Some(rustls::ProtocolVersion::TLSv1_3) { "1.3" } else { "1.2" };
        let resumed = if resumed { "yes" } else { "no" };
        self.0.tls_handshakes.get_or_create(&TlsLabel { version, resumed }).inc();
    }

    pub(crate) fn tls_failed(&self, reason: &'static str) {
        self.0.tls_failures.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A request no route was for.
    pub(crate) fn unrouted(&self, status: u16, took: Duration) {
        self.0.unrouted.get_or_init(|| self.service("")).answered(status, took);
    }

    pub(crate) fn connections(&self) -> &Gauge {
        &self.0.connections
    }

    pub(crate) fn record_dropped(&self) {
        self.0.records_dropped.inc();
    }

    pub(crate) fn signal_dropped(&self) {
        self.0.signals_dropped.inc();
    }
}

const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "aborted"];
const RETRY_REASONS: [&str; 6] = ["connect", "reset", "stale", "tls", "status", "timeout"];
const HOLD_ENDS: [&str; 5] = ["released", "full", "timeout", "deadline", "gone"];

const OVER_BUDGET: [&str; 2] = ["waited", "given-up"];

/// What became of an attempt that the retry budget had no place for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum OverBudget {
    Waited,
    GivenUp,
}

/// Why an attempt was made again.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Retried {
    Connect,
    Reset,
    Stale,
    Tls,
    Status,
    Timeout,
}

/// How a hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HoldEnd {
    Released,
    Full,
    Timeout,
    Deadline,
    Gone,
}

/// One named route's handles.
#[derive(Debug)]
pub(crate) struct RouteMetrics {
    requests: [Counter; 6],
    duration: DurationHistogram,
}

impl RouteMetrics {
    /// As [`ServiceMetrics::answered`].
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.requests[class(status)].inc();
        self.duration.observe(took);
    }
}

/// One service's handles.
#[derive(Debug)]
pub(crate) struct ServiceMetrics {
    requests: [Counter; 6],
    duration: DurationHistogram,
    retries: [Counter; RETRY_REASONS.len()],
    over_budget: [Counter; OVER_BUDGET.len()],
    pub(crate) held: Gauge,
    holds: [Counter; 5],
    hold_duration: DurationHistogram,
    tunnels: [Counter; 2],
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
}

impl ServiceMetrics {
    /// `status` zero: the client left before an answer was complete.
    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.requests[class(status)].inc();
        self.duration.observe(took);
    }

    /// A TCP connection is over.
    pub(crate) fn tunnelled(&self, reached: bool, moved: Moved) {
        self.tunnels[usize::from(!reached)].inc();
        self.received.inc_by(moved.from_client);
        self.sent.inc_by(moved.to_client);
    }

    pub(crate) fn over_budget(&self, what: OverBudget) {
        self.over_budget[what as usize].inc();
    }

    pub(crate) fn retried(&self, reason: Retried) {
        self.retries[reason as usize].inc();
    }

    pub(crate) fn hold_ended(&self, end: HoldEnd, took: Duration) {
        self.holds[end as usize].inc();
        if end != HoldEnd::Full {
            self.hold_duration.observe(took);
        }
    }
}

fn class(status: u16) -> usize {
    match status / 100 {
        0 => 5,
        hundred @ 1..=5 => usize::from(hundred) - 1,
        _ => 4,
    }
}

/// Upper edges in nanoseconds; 0.5 s is one of them because the alert table asks for it.
const EDGES_NS: [u64; 13] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// A histogram of atomics: the registry crate's own takes a lock for each observation.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurationHistogram(Arc<Histogram>);

#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; EDGES_NS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = EDGES_NS.iter().position(|&edge| ns <= edge).unwrap_or(EDGES_NS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }
}

impl std::ops::Deref for DurationHistogram {
    type Target = Histogram;
    fn deref(&self) -> &Histogram {
        &self.0
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let edges = EDGES_NS.iter().map(|&edge| edge as f64 / 1e9).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            edges.zip(&self.buckets).map(|(edge, bucket)| (edge, bucket.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}
