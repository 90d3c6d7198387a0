//! The gateway's protection of itself at work: the first of a request's guards in its walk, over all requests for
//! services. Deliberately absent: the decision (`traffic::system`), and measuring the machine (the control plane's).

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use traffic::system::{Overload, System, SystemPolicy, SystemView};

/// One gateway's protection, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct Protection {
    system: ArcSwapOption<System>,
    refused: [AtomicU64; Overload::ALL.len()],
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverloadView {
    /// What was measured last.
    pub now: SystemView,
    /// Requests refused since the process began.
    pub refused: u64,
}

/// A request that was let in; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Inside {
    system: Arc<System>,
    begun: Instant,
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.system.leave(since(Instant::now()), self.begun.elapsed());
    }
}

impl Protection {
    /// Puts it in force; the same again changes nothing.
    pub(crate) fn set(&self, policy: Option<SystemPolicy>) {
        if self.system.load().as_ref().map(|system| system.policy()) != policy {
            self.system.store(policy.map(|policy| Arc::new(System::new(policy))));
        }
    }

    /// Lets a request in; `Ok(None)` where nothing is asked.
    ///
    /// # Errors
    /// What is too much.
    pub(crate) fn enter(&self) -> Result<Option<Inside>, Overload> {
        let system = self.system.load();
        let Some(system) = system.as_ref() else { return Ok(None) };
        let begun = Instant::now();
        match system.enter(since(begun)) {
            Ok(()) => Ok(Some(Inside { system: system.clone(), begun })),
            Err(overload) => {
                self.refused[overload as usize].fetch_add(1, Ordering::Relaxed);
                Err(overload)
            }
        }
    }

    /// The machine's load and how busy its processors are, from 0 to 1.
    pub(crate) fn measured(&self, load: f64, cpu: f64) {
        if let Some(system) = self.system.load().as_ref() {
            system.measured((load * 1e3) as u32, (cpu * 1e6) as u32);
        }
    }

    pub(crate) fn view(&self) -> Option<OverloadView> {
        let now = self.system.load().as_ref()?.view(since(Instant::now()));
        Some(OverloadView { now, refused: self.refused.iter().map(|count| count.load(Ordering::Relaxed)).sum() })
    }
}

fn since(now: Instant) -> Duration {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    now.saturating_duration_since(*BEGIN) + Duration::from_secs(1)
}

/// Its part of the metrics page.
#[derive(Debug)]
pub(crate) struct OverloadPage(pub(crate) Arc<Protection>);

impl Collector for OverloadPage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(OverloadView { now, .. }) = self.0.view() else { return Ok(()) };
        let help = "What the gateway judges its load by";
        let mut family = encoder.encode_descriptor("overload_measured", help, None, MetricType::Gauge)?;
        for (what, measured) in [
            ("qps", now.qps as f64),
            ("concurrent", now.concurrent as f64),
            ("average-time", now.average.as_secs_f64()),
            ("load", f64::from(now.load) / 1e3),
            ("cpu", f64::from(now.cpu) / 1e6),
        ] {
            ConstGauge::new(measured).encode(family.encode_family(&[("what", what)])?)?;
        }
        let help = "Requests refused because the gateway had too much to do, by what was too much";
        let mut family = encoder.encode_descriptor("overload_refused", help, None, MetricType::Counter)?;
        for (what, count) in Overload::ALL.iter().zip(&self.0.refused) {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(family.encode_family(&[("reason", what.as_str())])?)?;
        }
        Ok(())
    }
}
