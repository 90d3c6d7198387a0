//! An instance's numbers, and the page of all of them.
//! A service may have 100,000 instances, so they are bare atomics in one allocation each and become labelled series only
//! when somebody reads the page, and only if the instance ever had a request. Neither a request nor a swap of endpoints
//! waits for that reader. Deliberately absent: services' numbers (`metrics.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{InstanceId, ServiceName};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::{CLASSES, Histogram, class};
use crate::handshake::{DISTRUSTS, Distrust};

/// One instance's numbers.
#[derive(Debug)]
pub(crate) struct InstanceMetrics {
    service: ServiceName,
    instance: InstanceId,
    /// A request was given to it: from then on it is on the page.
    used: AtomicBool,
    pub(crate) in_flight: Level,
    pub(crate) pool_idle: Level,
    pub(crate) pool_busy: Level,
    requests: [AtomicU64; CLASSES.len()],
    duration: Histogram,
    distrusts: [AtomicU64; DISTRUSTS.len()],
}

impl InstanceMetrics {
    /// A request is given to it.
    pub(crate) fn taken(&self) {
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        self.in_flight.inc();
    }

    pub(crate) fn answered(&self, status: u16, took: Duration) {
        self.requests[class(status)].fetch_add(1, Ordering::Relaxed);
        self.duration.observe(took);
    }

    /// TLS with it failed.
    pub(crate) fn distrusted(&self, distrust: Distrust) {
        self.distrusts[distrust as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn labels(&self) -> [(&str, &str); 2] {
        [("service", self.service.as_str()), ("instance", self.instance.as_str())]
    }

    fn labels_and(&self, label: (&'static str, &'static str)) -> [(&str, &str); 3] {
        let [service, instance] = self.labels();
        [service, instance, label]
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub(crate) struct Level(AtomicI64);

impl Level {
    pub(crate) fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dec(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Every instance there is, by its key, which grows with time.
#[derive(Debug, Default)]
pub(super) struct InstanceSeries(Mutex<BTreeMap<u64, Arc<InstanceMetrics>>>);

impl InstanceSeries {
    pub(super) fn add(&self, key: u64, service: &ServiceName, instance: &InstanceId) -> Arc<InstanceMetrics> {
        let metrics = Arc::new(InstanceMetrics {
            service: service.clone(),
            instance: instance.clone(),
            used: AtomicBool::default(),
            in_flight: Level::default(),
            pool_idle: Level::default(),
            pool_busy: Level::default(),
            requests: Default::default(),
            duration: Histogram::default(),
            distrusts: Default::default(),
        });
        self.lock().insert(key, metrics.clone());
        metrics
    }

    pub(super) fn remove(&self, key: u64) {
        self.lock().remove(&key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<InstanceMetrics>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The page's part about instances.
#[derive(Debug)]
pub(super) struct InstancePage(pub(super) Arc<InstanceSeries>);

impl Collector for InstancePage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        // Written from a copy: text for many instances takes long, and who swaps endpoints must not wait for it.
        let is_used = |metrics: &&Arc<InstanceMetrics>| metrics.used.load(Ordering::Relaxed);
        let used: Vec<Arc<InstanceMetrics>> = self.0.lock().values().filter(is_used).cloned().collect();
        if used.is_empty() {
            return Ok(());
        }
        let (help, kind) = ("Requests an instance answered", MetricType::Counter);
        let mut family = encoder.encode_descriptor("instance_requests", help, None, kind)?;
        for metrics in &used {
            for (code, count) in CLASSES.into_iter().zip(&metrics.requests) {
                let count = ConstCounter::new(count.load(Ordering::Relaxed));
                write(&mut family, &metrics.labels_and(("code", code)), &count)?;
            }
        }
        let (help, kind) = ("Last attempt's begin to last byte written", MetricType::Histogram);
        let mut family = encoder.encode_descriptor("instance_request_duration_seconds", help, None, kind)?;
        for metrics in &used {
            write(&mut family, &metrics.labels(), &metrics.duration)?;
        }
        let help = "Requests at an instance now";
        let mut family = encoder.encode_descriptor("in_flight_requests", help, None, MetricType::Gauge)?;
        for metrics in &used {
            write(&mut family, &metrics.labels(), &ConstGauge::new(metrics.in_flight.get()))?;
        }
        let help = "Connections to an instance, by state";
        let mut family = encoder.encode_descriptor("pool_connections", help, None, MetricType::Gauge)?;
        for metrics in &used {
            for (state, level) in [("idle", &metrics.pool_idle), ("busy", &metrics.pool_busy)] {
                write(&mut family, &metrics.labels_and(("state", state)), &ConstGauge::new(level.get()))?;
            }
        }
        let (help, kind) = ("TLS handshakes with an instance that failed, by reason", MetricType::Counter);
        let mut family = encoder.encode_descriptor("instance_tls_failed", help, None, kind)?;
        for metrics in &used {
            let counts = metrics.distrusts.iter().map(|count| count.load(Ordering::Relaxed));
            for (reason, count) in DISTRUSTS.into_iter().zip(counts).filter(|(_, count)| *count > 0) {
                write(&mut family, &metrics.labels_and(("reason", reason)), &ConstCounter::new(count))?;
            }
        }
        Ok(())
    }
}

pub(super) fn write(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    metric.encode(family.encode_family(labels)?)
}
