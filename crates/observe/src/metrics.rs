//! The control plane's metrics, in the OpenMetrics text format. Labels are bounded: services, instances and kinds only.
//! The gateway registers its own in the same registry.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// A service and one of its instances.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct InstanceLabels {
    /// The service.
    pub service: String,
    /// The instance.
    pub instance: String,
}

/// A probe of an instance with its result.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ProbeLabels {
    /// The service.
    pub service: String,
    /// The instance.
    pub instance: String,
    /// `livenessProbe`, `readinessProbe` or `startupProbe`.
    pub probe: &'static str,
    /// `success` or `failure`.
    pub result: &'static str,
}

/// A service.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct ServiceLabels {
    /// The service.
    pub service: String,
}

/// An event's kind.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct EventLabels {
    /// Its kebab-case name.
    pub kind: String,
}

/// A certificate shown to clients.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct CertificateLabels {
    /// The listener's address, as configured.
    pub listener: String,
    /// The file it was read from.
    pub file: String,
}

/// Handles on every metric of the control plane.
#[derive(Clone, Debug, Default)]
pub struct ControlMetrics {
    /// Starts of an instance after its first.
    pub restarts: Family<InstanceLabels, Counter>,
    /// 1 while an instance is ready.
    pub ready: Family<InstanceLabels, Gauge>,
    /// 1 for the primary.
    pub primary: Family<InstanceLabels, Gauge>,
    /// Probe results.
    pub probes: Family<ProbeLabels, Counter>,
    /// Promotions completed.
    pub promotions: Family<ServiceLabels, Counter>,
    /// The current epoch.
    pub epoch: Family<ServiceLabels, Gauge>,
    /// How long the last switch of primary took, from the loss to the route.
    pub switch_seconds: Family<ServiceLabels, Gauge<f64, AtomicU64>>,
    /// Events by kind.
    pub events: Family<EventLabels, Counter>,
    /// When a certificate ends, in seconds since the Unix epoch.
    pub certificate_expiry: Family<CertificateLabels, Gauge>,
    /// Node processes started by this keeper.
    pub node_starts: Gauge,
    /// The store's figures.
    pub store: StoreGauges,
    /// Figures of streams.
    pub streams: StreamGauges,
    /// Figures of the registry.
    pub discovery: DiscoveryGauges,
}

/// Figures of the registry, copied when metrics are asked for.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryGauges {
    /// Services by name.
    pub services: Gauge,
    /// Their instances.
    pub instances: Gauge,
    /// Clients that wait for a change.
    pub blocking: Gauge,
}

/// A stream.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub struct StreamLabels {
    /// Its name; there are at most 256.
    pub stream: String,
}

/// Figures of streams, copied when metrics are asked for.
#[derive(Clone, Debug, Default)]
pub struct StreamGauges {
    /// 1 while they are served.
    pub serving: Gauge,
    /// Entries appended, as this node applied them.
    pub appended: Gauge,
    /// Their bytes.
    pub appended_bytes: Gauge,
    /// How often large entries were made to wait.
    pub gave_way: Gauge,
    /// Bytes of large entries that are worked on at once, as the leader.
    pub limit_bytes: Gauge,
    /// Bytes of each stream.
    pub kept_bytes: Family<StreamLabels, Gauge>,
    /// Bytes of their write-ahead log on disk.
    pub wal_bytes: Gauge,
}

/// The store's figures, copied when metrics are asked for.
#[derive(Clone, Debug, Default)]
pub struct StoreGauges {
    /// Its revision.
    pub revision: Gauge,
    /// 1 while it serves.
    pub serving: Gauge,
    /// Bytes of the write-ahead log on disk.
    pub wal_bytes: Gauge,
    /// Flushes so far.
    pub fsyncs: Gauge,
    /// The last flush.
    pub last_fsync_seconds: Gauge<f64, AtomicU64>,
    /// Bytes of keys and values.
    pub used_bytes: Gauge,
    /// Those of each service's keys.
    pub service_bytes: Family<ServiceLabels, Gauge>,
    /// What they are held to.
    pub service_quota_bytes: Family<ServiceLabels, Gauge>,
}

impl ControlMetrics {
    /// Registers everything under `seawall_`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = &metrics;
        registry.register("seawall_instance_restarts", "Starts of an instance after its first", m.restarts.clone());
        registry.register("seawall_instance_ready", "1 while the instance is ready for traffic", m.ready.clone());
        registry.register("seawall_instance_primary", "1 for the primary of its service", m.primary.clone());
        registry.register("seawall_probe_results", "Probe results", m.probes.clone());
        registry.register("seawall_promotions", "Promotions completed", m.promotions.clone());
        registry.register("seawall_service_epoch", "The epoch of the service's primary", m.epoch.clone());
        registry.register_with_unit(
            "seawall_switch",
            "The last switch of primary, from the loss to the route",
            Unit::Seconds,
            m.switch_seconds.clone(),
        );
        registry.register("seawall_events", "Events by kind", m.events.clone());
        registry.register_with_unit(
            "seawall_tls_certificate_expiry_timestamp",
            "When the certificate ends, since the Unix epoch",
            Unit::Seconds,
            m.certificate_expiry.clone(),
        );
        registry.register("seawall_node_starts", "Node processes started by this keeper", m.node_starts.clone());
        let s = &m.store;
        registry.register("seawall_store_revision", "The store's revision", s.revision.clone());
        registry.register("seawall_store_serving", "1 while the store serves", s.serving.clone());
        registry.register_with_unit(
            "seawall_wal_size",
            "Size of the write-ahead log on disk",
            Unit::Bytes,
            s.wal_bytes.clone(),
        );
        registry.register(
            "seawall_wal_fsyncs",
            "Flushes of the write-ahead log since the start of the node process",
            s.fsyncs.clone(),
        );
        registry.register_with_unit(
            "seawall_wal_last_fsync",
            "The last flush of the write-ahead log",
            Unit::Seconds,
            s.last_fsync_seconds.clone(),
        );
        registry.register_with_unit(
            "seawall_store_used",
            "Keys and values in the store",
            Unit::Bytes,
            s.used_bytes.clone(),
        );
        let used = "Keys and values of a service, 128 bytes for each pair included";
        registry.register_with_unit("seawall_store_service_used", used, Unit::Bytes, s.service_bytes.clone());
        let quota = "What the keys and values of a service may take";
        registry.register_with_unit("seawall_store_service_quota", quota, Unit::Bytes, s.service_quota_bytes.clone());
        let s = &m.streams;
        registry.register("seawall_stream_serving", "1 while streams are served", s.serving.clone());
        let appended = "Entries of streams applied by this node since the start of the node process";
        registry.register("seawall_stream_appended_entries", appended, s.appended.clone());
        let bytes = "Bytes of those entries";
        registry.register_with_unit("seawall_stream_appended", bytes, Unit::Bytes, s.appended_bytes.clone());
        let kept = "What a stream keeps, 32 bytes for each entry included";
        registry.register_with_unit("seawall_stream_kept", kept, Unit::Bytes, s.kept_bytes.clone());
        let log = "Size of the write-ahead log of streams on disk";
        registry.register_with_unit("seawall_stream_wal_size", log, Unit::Bytes, s.wal_bytes.clone());
        let way = "How often large entries of streams were made to wait, for a promotion";
        registry.register("seawall_stream_gave_way", way, s.gave_way.clone());
        let limit = "Bytes of large entries of streams that this node would work on at once as their leader";
        registry.register_with_unit("seawall_stream_limit", limit, Unit::Bytes, s.limit_bytes.clone());
        let s = &m.discovery;
        registry.register("seawall_discovery_services", "Services in the registry", s.services.clone());
        registry.register("seawall_discovery_instances", "Instances in the registry", s.instances.clone());
        let waiting = "Blocking queries that wait at this node";
        registry.register("seawall_discovery_blocking_queries", waiting, s.blocking.clone());
        metrics
    }
}
