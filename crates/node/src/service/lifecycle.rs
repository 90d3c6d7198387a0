//! An instance's life: started, probed, drained, stopped, ended, started again. First half of the failure walk.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use health::detect::{ProbeKind, Probes, Verdict};
use health::hook;
use model::{EventKind, Incarnation, InstanceId, ServiceName};
use observe::metrics::{InstanceLabels, ProbeLabels};
use runtime::plan;
use runtime::protocol::{Exit, Held, Order, Tag};

use super::Service;
use crate::Input;
use crate::instance::{After, DRAIN_SETTLE, Instance, Process, Stage};
use crate::ports::Ports;
use crate::shell::{Shell, Subject};

/// What became of an instance that the keeper held when this node process started.
pub enum Adopted {
    /// It goes on.
    Kept,
    /// It ended while no node process was there.
    Ended(Exit),
    /// Nothing wants it any more.
    Unwanted,
}

/// Takes over what the keeper holds.
pub fn adopt(service: &mut Service, held: &Held, shell: &Shell, ports: &mut Ports, now: Instant) -> Adopted {
    let (is_routed, name) = (service.is_routed, service.name.clone());
    if service.spread.is_some() {
        // Where it belongs will be read; what ran goes on.
        let planned = plan::instances(&service.name, &service.definition).into_iter().find(|plan| plan.id == held.id);
        if let Some(plan) = planned {
            service.instances.insert(held.id.clone(), Instance::new(plan));
        }
    }
    let Some(instance) = service.instances.get_mut(&held.id) else { return Adopted::Unwanted };
    let lived = SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .saturating_sub(Duration::from_millis(held.started_unix_ms.unsigned_abs()));
    let started = now.checked_sub(lived).unwrap_or(now);
    ports.take(held.tag.port);
    instance.address = Some(SocketAddr::new(shell.host, held.tag.port));
    instance.restarts = held.tag.restarts;
    instance.process = Some(Process {
        incarnation: held.incarnation,
        pid: Some(held.pid).filter(|pid| *pid != 0),
        started,
        probes: Probes::new(&service.definition, is_routed, started, now, held.tag.ready),
        promoted: held.tag.promoted,
        fingerprint: held.tag.fingerprint,
        generation: held.tag.generation,
        was_ready: held.tag.ready,
    });
    instance.enter(Stage::Running);
    instance.since = observe::at_unix_ms(held.started_unix_ms);
    if let Some(exit) = &held.exit {
        return Adopted::Ended(exit.clone());
    }
    if held.stopping {
        instance.enter(Stage::Stopping(After::Start));
    }
    let message = format!("{} (pid {}) went on while the node process was away", held.id, held.pid);
    instance.cause = shell.new_cause();
    shell.emit(EventKind::InstanceAdopted, Subject::instance(&name, &held.id), &instance.cause, message);
    Adopted::Kept
}

impl Service {
    pub(super) fn step_instances(&mut self, shell: &Shell, ports: &mut Ports, now: Instant) {
        let ids: Vec<InstanceId> = self.instances.keys().cloned().collect();
        for id in ids {
            let Some(instance) = self.instances.get(&id) else { continue };
            match instance.stage {
                Stage::Waiting if !shell.stopping => self.start(shell, ports, &id, now),
                Stage::BackOff(until) if until <= now && !shell.stopping => self.start(shell, ports, &id, now),
                Stage::Running => self.send_probes(shell, &id, now),
                Stage::Gone => self.forget(shell, ports, &id),
                Stage::Draining(until, after) => {
                    let in_flight = shell.table.service(&self.name).in_flight(&id);
                    let told = now + self.definition.drain_timeout >= until + DRAIN_SETTLE;
                    if (in_flight == 0 && told && self.is_left_alone(&id)) || until <= now {
                        self.before_stop(shell, &id, after, now);
                    }
                }
                _ => {}
            }
        }
    }

    fn start(&mut self, shell: &Shell, ports: &mut Ports, id: &InstanceId, now: Instant) {
        let (name, is_routed, generation) = (self.name.clone(), self.is_routed, self.generation());
        let Some(instance) = self.instances.get_mut(id) else { return };
        if instance.elsewhere.is_some() {
            return;
        }
        // Its old port, unless a stranger has taken it meanwhile.
        let kept = instance.address.map(|address| address.port()).filter(|port| ports.is_still_free(*port));
        let port = instance.plan.port.or(kept).or_else(|| ports.allocate(shell.node.instance_ports));
        let Some(port) = port else {
            instance.note = Some("no free port in node.instancePorts".into());
            instance.enter(Stage::BackOff(now + Duration::from_secs(1)));
            return;
        };
        let address = SocketAddr::new(shell.host, port);
        instance.address = Some(address);
        let incarnation = shell.new_incarnation();
        let fingerprint = instance.plan.fingerprint();
        instance.process = Some(Process {
            incarnation,
            pid: None,
            started: now,
            probes: Probes::new(&self.definition, is_routed, now, now, false),
            promoted: None,
            fingerprint,
            generation,
            was_ready: false,
        });
        instance.enter(Stage::Running);
        let spec = instance.plan.process(address, &shell.api, &shell.node);
        let tag = tag_of(&name, instance, port);
        shell.keeper.order(&Order::Start { id: id.clone(), incarnation, spec, tag });
    }

    /// The keeper started it.
    pub fn started(&mut self, shell: &Shell, id: &InstanceId, incarnation: Incarnation, pid: u32) {
        let Some(instance) = self.of(id, incarnation) else { return };
        if let Some(process) = &mut instance.process {
            process.pid = Some(pid);
        }
        instance.note = None;
        if instance.cause.is_empty() {
            instance.cause = shell.new_cause();
        }
        let address = instance.address.map(|address| address.to_string()).unwrap_or_default();
        let (cause, restarts) = (instance.cause.clone(), instance.restarts);
        let message = if restarts == 0 {
            format!("{id} started (pid {pid}) on {address}")
        } else {
            format!("{id} started again (pid {pid}) on {address}, restart {restarts}")
        };
        shell.emit(EventKind::InstanceStarted, Subject::instance(&self.name, id), &cause, message);
    }

    pub(super) fn of(&mut self, id: &InstanceId, incarnation: Incarnation) -> Option<&mut Instance> {
        self.instances
            .get_mut(id)
            .filter(|instance| instance.process.as_ref().is_some_and(|process| process.incarnation == incarnation))
    }

    fn send_probes(&mut self, shell: &Shell, id: &InstanceId, now: Instant) {
        let name = self.name.clone();
        let Some(instance) = self.instances.get_mut(id) else { return };
        let Some(target) = instance.target(&shell.api) else { return };
        let Some(process) = &mut instance.process else { return };
        if process.pid.is_none() && instance.elsewhere.is_none() {
            return;
        }
        for (kind, probe) in process.probes.due(now) {
            shell.probe(name.clone(), id.clone(), process.incarnation, kind, probe, target.clone());
        }
    }

    /// A probe came back.
    pub fn probed(
        &mut self,
        shell: &Shell,
        id: &InstanceId,
        incarnation: Incarnation,
        kind: ProbeKind,
        result: Result<(), String>,
        now: Instant,
    ) {
        let name = self.name.clone();
        let labels = ProbeLabels {
            service: name.to_string(),
            instance: id.to_string(),
            probe: kind.as_str(),
            result: if result.is_ok() { "success" } else { "failure" },
        };
        shell.metrics.probes.get_or_create(&labels).inc();
        let Some(instance) = self.of(id, incarnation) else { return };
        let Some(process) = &mut instance.process else { return };
        let verdict = process.probes.result(kind, result.is_ok(), now);
        if let Err(error) = &result {
            instance.note = Some(format!("{}: {error}", kind.as_str()));
        }
        let why = result.err().unwrap_or_default();
        self.verdict(shell, id, kind.as_str(), verdict, &why, now);
    }

    /// The gateway could not connect to it.
    pub fn refused(&mut self, shell: &Shell, id: &InstanceId, now: Instant) {
        let Some(process) = self.instances.get_mut(id).and_then(|instance| instance.process.as_mut()) else { return };
        let verdict = process.probes.refused(now);
        self.verdict(shell, id, "gateway", verdict, "connections are refused", now);
    }

    fn verdict(&mut self, shell: &Shell, id: &InstanceId, by: &str, verdict: Verdict, why: &str, now: Instant) {
        let name = self.name.clone();
        let Some(instance) = self.instances.get_mut(id) else { return };
        let subject = Subject::instance(&name, id);
        match verdict {
            Verdict::Unchanged | Verdict::Started => {}
            Verdict::Ready => {
                instance.note = None;
                instance.since = observe::now();
                if let Some(process) = &mut instance.process {
                    process.was_ready = true;
                }
                let cause = instance.cause.clone();
                self.remember(shell, id);
                shell.emit(EventKind::InstanceReady, subject, &cause, format!("{id} is ready"));
            }
            Verdict::Unready => {
                instance.since = observe::now();
                instance.cause = shell.new_cause();
                let cause = instance.cause.clone();
                shell.emit(EventKind::InstanceUnready, subject, &cause, format!("{id} gets no traffic: {by}: {why}"));
            }
            Verdict::Unhealthy => {
                instance.cause = shell.new_cause();
                let cause = instance.cause.clone();
                shell.emit(EventKind::InstanceUnhealthy, subject, &cause, format!("{id} is restarted: {by}: {why}"));
                let probe = if by == ProbeKind::Startup.as_str() {
                    &self.definition.startup_probe
                } else {
                    &self.definition.liveness_probe
                };
                let grace = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
                self.replace_unhealthy(shell, id, grace, &cause, now);
            }
        }
    }

    /// A primary is killed at once, so that another can take over; anybody else is stopped with its grace.
    fn replace_unhealthy(&mut self, shell: &Shell, id: &InstanceId, grace: Option<u32>, cause: &str, now: Instant) {
        let is_primary = self.is_holder(id);
        if self.instances.get(id).is_some_and(|instance| instance.elsewhere.is_some()) {
            return self.give_up_elsewhere(id, now);
        }
        if is_primary {
            self.kill(shell, id, After::Failed);
            self.primary_lost(shell, id, cause, "it is hung", now);
            return;
        }
        let grace = grace.unwrap_or(self.definition.termination_grace_period_seconds);
        self.order_stop(shell, id, After::Failed, Duration::from_secs(grace.into()));
    }

    /// Kills an instance's tree without hooks or grace.
    pub fn kill(&mut self, shell: &Shell, id: &InstanceId, after: After) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let Some(process) = &instance.process else { return };
        shell.keeper.order(&Order::Kill { id: id.clone(), incarnation: process.incarnation });
        if !matches!(instance.stage, Stage::Killing(_)) {
            instance.enter(Stage::Killing(after));
        }
    }

    /// Begins to stop an instance in good order: drain, `preStop`, signal, grace, kill.
    pub fn begin_stop(&mut self, shell: &Shell, id: &InstanceId, after: After, cause: &str, now: Instant) {
        let name = self.name.clone();
        let drain = self.definition.drain_timeout;
        let Some(instance) = self.instances.get_mut(id) else { return };
        instance.cause = cause.to_owned();
        match instance.stage {
            Stage::Running if instance.process.is_some() && instance.elsewhere.is_none() => {
                instance.enter(Stage::Draining(now + drain, after));
                shell.emit(
                    EventKind::InstanceStopping,
                    Subject::instance(&name, id),
                    cause,
                    format!("{id} finishes its requests and stops"),
                );
            }
            Stage::Draining(until, _) => instance.stage = Stage::Draining(until, after),
            Stage::PreStop(until, _) => instance.stage = Stage::PreStop(until, after),
            Stage::Stopping(_) => instance.stage = Stage::Stopping(after),
            Stage::Killing(_) => instance.stage = Stage::Killing(after),
            _ if after == After::Remove => instance.enter(Stage::Gone),
            _ => instance.enter(if after == After::Stay { Stage::Stopped } else { Stage::Waiting }),
        }
    }

    fn before_stop(&mut self, shell: &Shell, id: &InstanceId, after: After, now: Instant) {
        let grace = Duration::from_secs(self.definition.termination_grace_period_seconds.into());
        let (Some(pre_stop), Some(instance)) = (self.definition.pre_stop.clone(), self.instances.get_mut(id)) else {
            return self.order_stop(shell, id, after, grace);
        };
        let (Some(target), Some(process)) = (instance.target(&shell.api), &instance.process) else { return };
        let subject = hook::Subject { service: self.name.clone(), instance: id.clone(), target };
        let (service, id, incarnation) = (self.name.clone(), id.clone(), process.incarnation);
        instance.stage = Stage::PreStop(now + grace, after);
        shell.spawn(async move {
            let result = hook::before_stop(&pre_stop, &subject, grace).await;
            Input::PreStopped { service, instance: id, incarnation, result }
        });
    }

    /// `preStop` is done; what is left of the grace period is for the process itself.
    pub fn pre_stopped(
        &mut self,
        shell: &Shell,
        id: &InstanceId,
        incarnation: Incarnation,
        result: Result<(), String>,
        now: Instant,
    ) {
        let Some(instance) = self.of(id, incarnation) else { return };
        let Stage::PreStop(until, after) = instance.stage else { return };
        if let Err(error) = result {
            instance.note = Some(format!("preStop: {error}"));
            tracing::warn!(service = %self.name, instance = %id, error, "preStop failed; the stop goes on");
        }
        self.order_stop(shell, id, after, until.saturating_duration_since(now));
    }

    fn order_stop(&mut self, shell: &Shell, id: &InstanceId, after: After, grace: Duration) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let Some(process) = &instance.process else { return };
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        shell.keeper.order(&Order::Stop { id: id.clone(), incarnation: process.incarnation, grace_ms });
        instance.enter(Stage::Stopping(after));
    }

    /// Forgets an instance that has no process.
    pub(super) fn forget(&mut self, shell: &Shell, ports: &mut Ports, id: &InstanceId) {
        let Some(instance) = self.instances.remove(id) else { return };
        if let Some(address) = instance.address {
            ports.release(address.port());
        }
        let labels = InstanceLabels { service: self.name.to_string(), instance: id.to_string() };
        shell.metrics.ready.remove(&labels);
        shell.metrics.primary.remove(&labels);
        shell.metrics.restarts.remove(&labels);
        for probe in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
            for result in ["success", "failure"] {
                let (service, instance) = (self.name.to_string(), id.to_string());
                shell.metrics.probes.remove(&ProbeLabels { service, instance, probe: probe.as_str(), result });
            }
        }
    }

    /// Gives the keeper what the next node process must know.
    pub(super) fn remember(&self, shell: &Shell, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else { return };
        let (Some(process), Some(address)) = (&instance.process, instance.address) else { return };
        if instance.elsewhere.is_none() {
            let tag = tag_of(&self.name, instance, address.port());
            shell.keeper.order(&Order::Remember { id: id.clone(), incarnation: process.incarnation, tag });
        }
    }
}

fn tag_of(service: &ServiceName, instance: &Instance, port: u16) -> Tag {
    let process = instance.process.as_ref();
    Tag {
        service: service.clone(),
        version: instance.plan.version.clone(),
        index: instance.plan.index,
        port,
        fingerprint: process.map_or_else(|| instance.plan.fingerprint(), |process| process.fingerprint),
        generation: process.map_or(0, |process| process.generation),
        restarts: instance.restarts,
        promoted: process.and_then(|process| process.promoted),
        ready: process.is_some_and(|process| process.was_ready),
    }
}
