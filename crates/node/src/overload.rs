//! The gateway's protection of itself: the configuration in its words, and a look at the machine each second while it is in
//! force. Around the request walk. Deliberately absent: the decision (`traffic::system`) and the measuring (`platform`).

use std::sync::Arc;
use std::time::Duration;

use api::view::OverloadView;
use gateway::{SystemPolicy, Table};
use model::Config;

/// How often the machine is looked at, as Sentinel does.
const EVERY: Duration = Duration::from_secs(1);

/// What is borne, in the gateway's words.
pub fn policy(config: &Config) -> Option<SystemPolicy> {
    let written = config.gateway.overload.as_ref()?;
    Some(SystemPolicy {
        qps: written.qps,
        concurrent: written.concurrent,
        average: written.average_time,
        load: written.load.map(|load| (load * 1e3) as u32),
        cpu: written.cpu.map(|cpu| cpu.0),
    })
}

/// Looks at the machine for as long as the process lives.
pub async fn look(table: Arc<Table>) {
    let mut sampler = platform::load::Sampler::default();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        if table.overload().is_some() {
            let measured = sampler.measure();
            table.measured(measured.load, measured.cpu);
        }
    }
}

/// As status shows it.
pub fn view(table: &Table) -> Option<OverloadView> {
    let gateway::OverloadView { now, refused } = table.overload()?;
    Some(OverloadView {
        refused,
        concurrent: now.concurrent,
        load: f64::from(now.load) / 1e3,
        cpu: f64::from(now.cpu) / 1e6,
    })
}
