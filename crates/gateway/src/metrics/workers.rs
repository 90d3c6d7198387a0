//! How busy each worker is, read off its runtime when somebody reads the page: a request pays nothing for it.
//! Deliberately absent: what a worker does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::RuntimeMetrics;

use super::instances::write;

/// Every worker of the gateway.
#[derive(Debug, Default)]
pub(super) struct WorkerSeries(Mutex<Vec<Worker>>);

#[derive(Clone, Debug)]
struct Worker {
    index: String,
    runtime: RuntimeMetrics,
    connections: Arc<AtomicUsize>,
}

impl WorkerSeries {
    pub(super) fn add(&self, index: usize, runtime: RuntimeMetrics, connections: Arc<AtomicUsize>) {
        let mut workers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        workers.push(Worker { index: index.to_string(), runtime, connections });
    }
}

/// The page's part about workers.
#[derive(Debug)]
pub(super) struct WorkerPage(pub(super) Arc<WorkerSeries>);

impl Collector for WorkerPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let workers = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if workers.is_empty() {
            return Ok(());
        }
        let (help, kind) = ("Time a worker was at work, of its one core", MetricType::Counter);
        let mut family = encoder.encode_descriptor("worker_busy_seconds", help, None, kind)?;
        for worker in &workers {
            let busy = worker.runtime.worker_total_busy_duration(0).as_secs_f64();
            write(&mut family, &[("worker", worker.index.as_str())], &ConstCounter::new(busy))?;
        }
        let help = "Client connections a worker has now";
        let mut family = encoder.encode_descriptor("worker_connections", help, None, MetricType::Gauge)?;
        for worker in &workers {
            let count = i64::try_from(worker.connections.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
            write(&mut family, &[("worker", worker.index.as_str())], &ConstGauge::new(count))?;
        }
        Ok(())
    }
}
