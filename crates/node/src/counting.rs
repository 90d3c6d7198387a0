//! Figures of the store, the streams and the registry, copied into the metrics when somebody asks for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use data::{Store, Streams};
use discovery::Registry;
use observe::metrics::{ControlMetrics, DiscoveryGauges, ServiceLabels, StreamGauges, StreamLabels};

/// Copies the figures of the moment in which it is called.
pub fn refresher(
    store: Arc<dyn Store>,
    streams: Arc<dyn Streams>,
    discovery: (Arc<Registry>, Arc<AtomicUsize>),
    metrics: ControlMetrics,
) -> Arc<dyn Fn() + Send + Sync> {
    Arc::new(move || {
        let (status, counted, gauges) = (store.status(), store.metrics(), &metrics.store);
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        gauges.revision.set(whole(status.revision.0));
        gauges.serving.set(i64::from(status.not_serving.is_none()));
        gauges.wal_bytes.set(whole(status.wal_bytes));
        gauges.used_bytes.set(whole(status.used_bytes));
        gauges.fsyncs.set(whole(counted.fsync_micros.count()));
        gauges.service_bytes.clear();
        gauges.service_quota_bytes.clear();
        for (service, bytes) in counted.owners {
            let labels = ServiceLabels { service };
            gauges.service_bytes.get_or_create(&labels).set(whole(bytes.used));
            gauges.service_quota_bytes.get_or_create(&labels).set(whole(bytes.quota));
        }
        gauges.last_fsync_seconds.set(status.last_fsync.unwrap_or_default().as_secs_f64());
        count_streams(&*streams, &metrics.streams);
        count_registered(&discovery.0, &discovery.1, &metrics.discovery);
    })
}

/// Copies the figures of this moment.
fn count_registered(registry: &Registry, blocking: &AtomicUsize, gauges: &DiscoveryGauges) {
    let whole = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    let catalog = registry.read();
    gauges.services.set(whole(catalog.names().count()));
    gauges.instances.set(whole(catalog.names().map(|(_, entry)| entry.members.len()).sum()));
    gauges.blocking.set(whole(blocking.load(Ordering::Relaxed)));
}

/// Copies the figures of this moment.
fn count_streams(streams: &dyn Streams, gauges: &StreamGauges) {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    gauges.serving.set(i64::from(streams.not_serving().is_none()));
    let counted = streams.metrics();
    gauges.appended.set(whole(counted.appended_entries));
    gauges.appended_bytes.set(whole(counted.appended_bytes));
    gauges.wal_bytes.set(whole(counted.log_bytes));
    gauges.gave_way.set(whole(counted.gave_way));
    gauges.limit_bytes.set(whole(counted.limit_bytes));
    // One that was deleted leaves no figure behind.
    gauges.kept_bytes.clear();
    for (stream, bytes) in counted.kept_bytes {
        gauges.kept_bytes.get_or_create(&StreamLabels { stream: stream.to_string() }).set(whole(bytes));
    }
}
