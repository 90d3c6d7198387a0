//! Instances that run elsewhere (`endpoints`): looked up, probed and routed to, never started or stopped.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use health::detect::Probes;
use model::{Incarnation, InstanceId, ServiceName};

use super::{Service, new_instances};
use crate::Input;
use crate::instance::Process;
use crate::shell::Shell;

/// A name is looked up again this often.
const LOOK_UP_EVERY: Duration = Duration::from_secs(30);

impl Service {
    /// First things: reads the committed record, looks up what runs elsewhere.
    pub fn begin(&self, shell: &Shell) {
        if self.promotion.is_some() {
            self.read_record(shell);
        }
        for instance in self.instances.values() {
            if let Some(endpoint) = &instance.elsewhere {
                look_up(shell, self.name.clone(), instance.id().clone(), endpoint.clone(), Duration::ZERO);
            }
        }
    }

    /// Other endpoints than before.
    pub fn redirect(&mut self, shell: &Shell) {
        let fresh = new_instances(&self.name, &self.definition);
        self.instances.retain(|id, known| fresh.get(id).is_some_and(|new| new.elsewhere == known.elsewhere));
        for (id, new) in fresh {
            self.instances.entry(id).or_insert(new);
        }
        self.refresh_probes();
        self.begin(shell);
    }

    /// A name was looked up.
    pub fn resolved(&mut self, shell: &Shell, id: &InstanceId, endpoint: &str, result: Result<SocketAddr, String>) {
        let now = Instant::now();
        let Some(instance) =
            self.instances.get_mut(id).filter(|instance| instance.elsewhere.as_deref() == Some(endpoint))
        else {
            return;
        };
        match result {
            Ok(address) => {
                if instance.address != Some(address) {
                    instance.address = Some(address);
                    let probes = Probes::new(&self.definition, self.is_routed, now, now, false);
                    instance.process = Some(Process {
                        incarnation: Incarnation(0),
                        pid: None,
                        started: now,
                        probes,
                        promoted: None,
                        fingerprint: 0,
                        generation: 0,
                        was_ready: false,
                    });
                }
            }
            Err(error) => instance.note = Some(error),
        }
        let is_name =
            endpoint.rsplit_once(':').is_some_and(|(host, _)| host.trim_matches(['[', ']']).parse::<IpAddr>().is_err());
        if is_name || instance.address.is_none() {
            look_up(shell, self.name.clone(), id.clone(), endpoint.to_owned(), LOOK_UP_EVERY);
        }
    }

    /// Its liveness probe failed: nobody here can restart it, so it is only probed from the beginning again.
    pub(super) fn give_up_elsewhere(&mut self, id: &InstanceId, now: Instant) {
        let probes = Probes::new(&self.definition, self.is_routed, now, now, false);
        if let Some(process) = self.instances.get_mut(id).and_then(|instance| instance.process.as_mut()) {
            process.probes = probes;
        }
    }
}

fn look_up(shell: &Shell, service: ServiceName, instance: InstanceId, endpoint: String, after: Duration) {
    shell.spawn(async move {
        tokio::time::sleep(after).await;
        let result = match tokio::net::lookup_host(&endpoint).await {
            Ok(mut found) => found.next().ok_or_else(|| format!("{endpoint} has no address")),
            Err(error) => Err(format!("cannot look up {endpoint}: {error}")),
        };
        Input::Resolved { service, instance, endpoint, result }
    });
}
