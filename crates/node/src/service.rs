//! One service under control: its instances, its primary, its roll. A step looks at everything once and starts what is due.
//! The failure walk runs through here: lifecycle (an exit, a verdict) -> promotion (decide, commit) -> routing (the gateway).

mod elsewhere;
mod ending;
mod guarding;
mod handing;
mod leaving;
mod lifecycle;
mod limits;
mod promotion;
mod rolling;
mod routing;
mod shifting;
mod showing;
mod spread;
mod switching;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::config::Mode;
use model::{EventKind, InstanceId, NodeName, Service as Definition, ServiceName};
use runtime::plan;

use crate::instance::{After, Instance, Stage};
use crate::ports::Ports;
use crate::shell::{Shell, Subject};
pub use guarding::CLOSED;
pub use lifecycle::{Adopted, adopt};
pub use promotion::{Promotion, Seen, events_prefix};
pub use rolling::{Roll, RollKind};
pub use spread::Spread;

/// A service that has no ready instance so long after its start is reported.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// A service and everything the node knows of it.
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its definition in force.
    pub definition: Definition,
    /// A route leads to it.
    pub is_routed: bool,
    /// Its instances, by id.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Its primary, in primary-standby mode.
    pub promotion: Option<Promotion>,
    /// A planned restart or roll under way.
    pub roll: Option<Roll>,
    /// In a cluster, unless it runs elsewhere: what is known of it over all nodes.
    pub spread: Option<Spread>,
    /// In a cluster: this node has not been heard by a quorum for so long that another primary may have been chosen.
    blind: bool,
    /// In a cluster: a switch that a roll here needs is being put to the store.
    handing_over: bool,
    /// It had a ready instance when last looked at.
    had_ready: bool,
    /// That traffic goes elsewhere has been said since a local instance was ready last.
    said_spilled: bool,
    /// When the node began to look after it.
    since: Instant,
    /// That it does not come up has been said.
    said_overdue: bool,
    /// While it has no ready instance: the chain of events of that.
    outage: Option<String>,
    /// It has ever had one.
    ever_ready: bool,
    /// How its instances are spoken to; without it nobody is.
    pub upstream: Result<gateway::Upstream, String>,
    /// What the gateway was told last.
    told: Option<gateway::Endpoints>,
    /// Its guards in the gateway.
    guarding: guarding::Guarding,
    /// Something happened to it since it was stepped last.
    pub touched: bool,
    /// When it is to be stepped again, apart from inputs.
    pub look: Option<Instant>,
}

impl Service {
    /// A service whose instances are all to be started.
    pub fn new(name: ServiceName, definition: Definition, is_routed: bool, own: Option<&NodeName>) -> Self {
        let spread = own.filter(|_| definition.endpoints.is_empty()).cloned().map(Spread::new);
        let instances = if spread.is_none() { new_instances(&name, &definition) } else { BTreeMap::new() };
        let promotion = (definition.mode == Mode::PrimaryStandby).then(Promotion::default);
        let upstream = crate::files::upstream(&definition);
        Self {
            name,
            definition,
            upstream,
            is_routed,
            instances,
            promotion,
            spread,
            roll: None,
            blind: false,
            handing_over: false,
            had_ready: false,
            said_spilled: false,
            since: Instant::now(),
            said_overdue: false,
            ever_ready: false,
            outage: None,
            told: None,
            guarding: guarding::Guarding::default(),
            touched: true,
            look: None,
        }
    }

    /// Looks at everything once: starts, probes, drains, promotes, rolls, and tells the gateway what changed.
    pub fn step(&mut self, shell: &mut Shell, ports: &mut Ports, now: Instant) {
        self.blind = shell.is_blind();
        self.step_guards(shell);
        // First what an input has changed: nobody is stopped before the gateway knows.
        self.tell_gateway(shell);
        self.hush(shell, now);
        self.step_instances(shell, ports, now);
        if !shell.stopping {
            self.step_switch(shell, now);
            self.step_promotion(shell, now);
            self.step_roll(shell, now);
            self.watch_readiness(shell);
            self.answer_switches(shell);
        }
        self.tell_gateway(shell);
        (self.touched, self.look) = (false, self.next_look(now));
    }

    /// Whether there is anything to do for it.
    pub fn is_due(&self, now: Instant) -> bool {
        self.touched || self.look.is_some_and(|look| look <= now)
    }

    fn next_look(&self, now: Instant) -> Option<Instant> {
        let instances = self.instances.values().filter_map(|instance| instance.next_look(now));
        let promotion = self.promotion.as_ref().and_then(|promotion| promotion.next_look(now));
        let roll = self.roll.as_ref().and_then(|roll| roll.deadline);
        let hush = self.spread.as_ref().and_then(|spread| spread.next_hush(now));
        instances.chain(promotion).chain(roll).chain(hush).min()
    }

    /// How many instances are ready.
    pub fn ready(&self) -> usize {
        self.instances.values().filter(|instance| instance.is_ready()).count() + self.ready_elsewhere()
    }

    /// Every instance is ready, and in primary-standby mode traffic goes to the primary.
    pub fn is_settled(&self) -> bool {
        let all_ready = self.instances.values().all(Instance::is_ready);
        let routed = || self.promotion.as_ref().is_none_or(|promotion| promotion.routed_primary().is_some());
        // What others run is theirs to wait for.
        all_ready && (self.spread.is_some() || routed())
    }

    /// A request went to an instance elsewhere, because no local one could take it: said once, until one can.
    pub fn spilled(&mut self, shell: &Shell, instance: &InstanceId) {
        if std::mem::replace(&mut self.said_spilled, true) {
            return;
        }
        let cause = shell.new_cause();
        let message = format!("no local instance of {} is ready; traffic goes to {instance}", self.name);
        shell.emit(EventKind::Spilled, Subject::instance(&self.name, instance), &cause, message);
    }

    /// Says when the last ready instance is lost, and when there is one again.
    fn watch_readiness(&mut self, shell: &Shell) {
        self.said_spilled &=
            !self.instances.values().any(|instance| instance.elsewhere.is_none() && instance.is_ready());
        let ready = self.ready() > 0;
        // One that has not come up in good time is as bad as one that was lost.
        let overdue = !ready && !self.ever_ready && !self.said_overdue && self.since.elapsed() > START_PATIENCE;
        if ready == self.had_ready && !overdue {
            return;
        }
        self.said_overdue |= overdue;
        self.had_ready = ready;
        let instances = || self.instances.values().map(|instance| &instance.cause).max().cloned().unwrap_or_default();
        // The breaker may have noticed first.
        let cause = Some(self.breaker_cause()).filter(|cause| !cause.is_empty()).unwrap_or_else(instances);
        self.outage = (!ready).then(|| cause.clone());
        let subject = Subject::service(&self.name);
        if ready && self.ever_ready {
            shell.emit(EventKind::ServiceReady, subject, &cause, format!("{} has a ready instance again", self.name));
        } else if !ready && !self.definition.endpoints.is_empty() {
            shell.emit(
                EventKind::NoReadyInstance,
                subject,
                &cause,
                format!("no endpoint of {} is ready; requests wait or get 503", self.name),
            );
        } else if !ready && self.instances.values().any(|instance| !instance.is_leaving()) {
            shell.emit(
                EventKind::NoReadyInstance,
                subject,
                &cause,
                format!(
                    "no instance of {} is ready; requests wait or get 503: see `seawall logs {}`",
                    self.name, self.name
                ),
            );
        }
        self.ever_ready |= ready;
    }

    /// Begins to stop every instance; `after` says what becomes of them.
    pub fn stop_all(&mut self, shell: &Shell, after: After, cause: &str, now: Instant) {
        let ids: Vec<InstanceId> = self.instances.keys().cloned().collect();
        for id in ids {
            self.begin_stop(shell, &id, after, cause, now);
        }
    }

    /// No process of it is left, and nothing that could not be ended.
    pub fn is_stopped(&self) -> bool {
        let ended = |instance: &Instance| instance.process.is_none() || instance.elsewhere.is_some();
        // What cannot be ended must not keep everything else from stopping; the keeper reports it.
        self.instances.values().all(|instance| ended(instance) || instance.stage == Stage::Stuck)
    }
}

fn new_instances(name: &ServiceName, definition: &Definition) -> BTreeMap<InstanceId, Instance> {
    let mut endpoints = definition.endpoints.iter();
    let new = |plan: plan::Instance| {
        let mut instance = Instance::new(plan);
        if let Some(endpoint) = endpoints.next() {
            instance.elsewhere = Some(endpoint.clone());
            instance.stage = Stage::Running;
        }
        (instance.id().clone(), instance)
    };
    plan::instances(name, definition).into_iter().map(new).collect()
}
