//! The controller: one task that owns everything the node knows, takes one input at a time and steps what it concerns.
//! It never waits: what takes time is started in the shell and comes back as an input. So decisions are made in one
//! place, one after the other, and a reader can follow any failure from its input to its event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::Command;
use api::view::{CertificateView, Status};
use data::RaftRole;
use model::config::NodeRole;
use model::{Config, EventKind, InstanceId, NodeName, ServiceName};
use observe::metrics::CertificateLabels;
use runtime::protocol::{Order, Report};
use tokio::sync::{mpsc, watch};

use crate::applying::Applying;
use crate::cluster::renewal::Told;
use crate::cluster::seat::Seat;
use crate::cluster::world::World;
use crate::entrances::Notice;
use crate::input::Input;
use crate::instance::After;
use crate::pacing::{self, IDLE_LOOK, Pace};
use crate::ports::Ports;
use crate::service::Service;
use crate::shell::{Shell, Subject};
use crate::shifts::Shifts;
use crate::showing::Facts;

/// Instances that are not ready when the node has served for so long do not keep it from saying that it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(15);
/// Inputs handled in a row before services are stepped.
const BATCH: usize = 64;
/// Memory is read this often.
const RESIDENT_GRAIN: Duration = Duration::from_secs(5);

/// The controller's state.
pub struct Controller {
    /// Handles on the world.
    pub shell: Shell,
    /// The configuration in force.
    pub config: Config,
    /// The services by name.
    pub services: BTreeMap<ServiceName, Service>,
    /// Ports of instances.
    pub ports: Ports,
    /// A configuration being put in force.
    pub applying: Option<Applying>,
    /// Requests that are being moved elsewhere.
    pub shifts: Shifts,
    /// What does not change about this node.
    pub facts: Facts,
    /// The newest status.
    pub status: watch::Sender<Arc<Status>>,
    /// Notices, replaced when the configuration changes.
    pub notifier: observe::notify::Notifier,
    /// The running gateway; taken when it drains.
    pub gateway: Option<gateway::Gateway>,
    /// The gateway has drained.
    pub drained: bool,
    /// Asked to read the configuration file again.
    pub reload: Option<mpsc::Sender<()>>,
    /// When it began to serve.
    pub began: Instant,
    /// What is looked at, and when.
    pub pace: Pace,
    /// Resident memory of both processes, and when it was read.
    pub resident: (u64, Instant),
    /// When the keeper was told last that this node is at work.
    pub said_alive: Option<Instant>,
    /// The ready line has been printed.
    pub said_ready: bool,
    /// What this node is to the store, and the members as they were last.
    pub seat: Seat,
    /// See `seat`; absent for a machine by itself.
    pub members: Option<data_raft::Members>,
    /// In a cluster: what is known of it.
    pub world: Option<World>,
    /// The store's last problem that was told.
    pub store_problem: Option<String>,
    /// Certificates clients are shown.
    pub certificates: Vec<CertificateView>,
    /// This node's own among members.
    pub own_certificate: Option<CertificateView>,
    /// The last trouble with the lease.
    pub lease_error: Option<String>,
    /// Primaries go on without a quorum, by the word of every other voter.
    pub failsafe: bool,
}

impl Controller {
    /// Runs until everything is stopped.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        loop {
            let now = Instant::now();
            self.step(now);
            let gather = self.pace.stepped(now.elapsed());
            if self.shell.stopping && self.drained && self.services.values().all(Service::is_stopped) {
                self.shell.journal.publish();
                self.leave().await;
                return;
            }
            let look = self.pace.next_look().into_iter();
            let look = look.chain(self.world.as_ref().and_then(|world| world.publisher.next_look()));
            let look = look.chain(self.next_shift_look(now)).min();
            let longest = self.pace.longest(now);
            let pause = look.map_or(longest, |at| at.saturating_duration_since(now).min(longest)).max(gather);
            let Ok(received) = tokio::time::timeout(pause, inputs.recv()).await else { continue };
            let Some(first) = received else { return };
            let until = tokio::time::Instant::now() + gather;
            self.take(first, Instant::now());
            for _ in 1..BATCH {
                let Some(next) = pacing::next(&mut inputs, gather, until).await else { break };
                self.take(next, Instant::now());
            }
        }
    }

    /// Takes one input, and sees to it that what it concerns is stepped.
    fn take(&mut self, input: Input, now: Instant) {
        self.pace.arrived(&input);
        self.handle(input, now);
    }

    /// Tells the keeper that this node is at work, at most once in [`IDLE_LOOK`].
    fn say_alive(&mut self, now: Instant) {
        if self.said_alive.is_none_or(|said| now.saturating_duration_since(said) >= IDLE_LOOK) {
            self.said_alive = Some(now);
            self.shell.keeper.order(&Order::Alive);
        }
    }

    fn step(&mut self, now: Instant) {
        self.say_alive(now);
        self.shell.leads = self.world.is_some() && self.shell.store.status().role == RaftRole::Leader;
        let stepped = self.step_services(now);
        self.step_shifts(now);
        self.step_world(now);
        if stepped {
            self.finish_applying();
        }
        self.watch_store();
        let ready = self.becomes_ready(now);
        let answers = std::mem::take(&mut *self.shell.answers.borrow_mut());
        self.show(now, ready || !answers.is_empty());
        if ready {
            self.say_ready();
        }
        for answer in answers {
            answer();
        }
    }

    /// Whether any was.
    fn step_services(&mut self, now: Instant) -> bool {
        let everything = self.pace.takes_everything(self.shell.is_blind(), self.shell.leads, now);
        if !everything && self.pace.takes_standing(now) {
            for name in &self.pace.standing {
                self.services.get_mut(name).into_iter().for_each(|service| service.touched = true);
            }
        }
        if !everything && !self.pace.takes_something(now) {
            return false;
        }
        for service in self.services.values_mut().filter(|service| everything || service.is_due(now)) {
            if let Some(world) = &self.world {
                world.tell_of_others(service, &self.config);
            }
            service.step(&mut self.shell, &mut self.ports, now);
        }
        if everything {
            let those = |which: fn(&&Service) -> bool| {
                self.services.values().filter(which).map(|service| service.name.clone()).collect()
            };
            self.pace.standing = those(|service| service.promotion.is_some());
            self.pace.backed = those(|service| service.has_backups());
            self.pace.looked_at_all(now.elapsed());
        }
        self.pace.stepped_some(self.services.values().filter_map(|service| service.look).min());
        true
    }

    /// Publishes the status, and then the events that it knows of.
    fn show(&mut self, now: Instant, answered: bool) {
        if !self.pace.may_show(answered, self.shell.changed.get(), now) {
            return;
        }
        self.shell.changed.set(false);
        if self.resident.0 == 0 || now.saturating_duration_since(self.resident.1) > RESIDENT_GRAIN {
            let both = [std::process::id(), self.facts.keeper_pid];
            self.resident = (both.into_iter().filter_map(platform::process::resident_bytes).sum(), now);
        }
        let began = Instant::now();
        let status = Arc::new(self.view());
        self.pace.showed(now, began.elapsed());
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            if changed {
                *known = status;
            }
            changed
        });
        self.shell.journal.publish();
    }

    fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Keeper(report) => self.keeper(report, now),
            Input::Probed { service, instance, incarnation, kind, result } => {
                self.with(&service, |service, shell, _| {
                    service.probed(shell, &instance, incarnation, kind, result, now)
                });
            }
            Input::Noticed(signal) => self.noticed(signal, now),
            Input::Proposed { service, over, outcome } => {
                self.with(&service, |service, shell, _| service.proposed(shell, over, &outcome, now))
            }
            Input::RecordRead { service, result } => {
                self.with(&service, |service, shell, _| service.record_read(shell, result, now))
            }
            Input::StreamSeen { service, epoch, stream, result } => {
                self.with(&service, |service, shell, _| service.stream_seen(shell, (epoch, &stream), result, now))
            }
            Input::Watched(item) if self.world.is_some() => self.followed(&item, now),
            Input::Watched(item) => self.watched(item, now),
            Input::Listed(found) => self.listed(found, now),
            Input::Said { saying, outcome } => self.answered(saying, &outcome, now),
            Input::SwitchAgreed { service, target, reply, outcome } => {
                self.with(&service, |service, _, _| service.switch_agreed(target, reply, &outcome))
            }
            Input::ConfigCommitted { outcome, applied, reply } => self.config_committed(outcome, applied, reply),
            Input::Await(awaited) => self.awaits(awaited),
            Input::Placed { service, outcome } => self.placed(&service, &outcome, now),
            Input::WatchEnded => {
                for service in self.services.values().filter(|service| service.promotion.is_some()) {
                    service.read_record(&self.shell);
                }
            }
            Input::Promoted { service, holder, epoch, result } => {
                self.with(&service, |service, shell, _| service.promoted(shell, &holder, epoch, result, now));
            }
            Input::Demoted { service, holder, result } => {
                self.with(&service, |service, shell, _| service.demoted(shell, &holder, result, now))
            }
            Input::PreStopped { service, instance, incarnation, result } => {
                self.with(&service, |service, shell, _| {
                    service.pre_stopped(shell, &instance, incarnation, result, now)
                });
            }
            Input::Resolved { service, instance, endpoint, result } => {
                self.with(&service, |service, shell, _| service.resolved(shell, &instance, &endpoint, result));
            }
            Input::LeaseGood { lease, until } => self.lease_renewed(lease, until),
            Input::LeaseKept { lease, until, error } => self.lease_kept(lease, until, &error),
            Input::ReloadRefused(first) => {
                let cause = self.shell.new_cause();
                let message = format!("the file has mistakes, nothing was changed: {first}; `seawall check` shows all");
                self.shell.emit(EventKind::ConfigRejected, Subject::default(), &cause, message);
            }
            Input::BreakerHeld { service, hold, reply, outcome } => self.breaker_held(&service, hold, reply, &outcome),
            Input::ShiftSaid { service, record, reply, outcome } => {
                self.shift_said(&service, *record, reply, &outcome, now)
            }
            Input::ShiftRead { service, stretch, readings } => self.shift_measured(&service, &stretch, readings),
            Input::Members(members) => self.members = Some(members),
            Input::Certificates { shown, notices } => self.certificates(shown, notices),
            Input::Feed(kind, message) => {
                self.shell.emit(kind, Subject::default(), &self.shell.new_cause(), message);
            }
            Input::OwnCertificate(told) => self.own_certificate(told),
            Input::LeaseFailed(error) => self.lease_failed(error),
            Input::Command(command) => self.command(command, now),
            Input::GatewayDrained { left } => {
                if left > 0 {
                    tracing::warn!(left, "requests were cut off: they did not finish within gateway.drainTimeout");
                }
                self.drained = true;
                let cause = self.shell.new_cause();
                for service in self.services.values_mut() {
                    service.stop_all(&self.shell, After::Stay, &cause, now);
                }
            }
        }
    }

    /// Does something with a service, if it is there.
    pub(crate) fn with(&mut self, name: &ServiceName, act: impl FnOnce(&mut Service, &mut Shell, &mut Ports)) {
        if let Some(service) = self.services.get_mut(name) {
            service.touched = true;
            act(service, &mut self.shell, &mut self.ports);
        }
    }

    /// The service that has an instance of this id.
    fn owner(&self, id: &InstanceId) -> Option<ServiceName> {
        self.services.iter().find(|(_, service)| service.instances.contains_key(id)).map(|(name, _)| name.clone())
    }

    fn keeper(&mut self, report: Report, now: Instant) {
        match report {
            Report::Hello { .. } => {}
            Report::Started { id, incarnation, pid } => {
                if let Some(name) = self.owner(&id) {
                    self.with(&name, |service, shell, _| service.started(shell, &id, incarnation, pid));
                }
            }
            Report::Exited { id, incarnation, exit } => match self.owner(&id) {
                Some(name) => {
                    self.with(&name, |service, shell, ports| service.exited(shell, ports, &id, incarnation, &exit, now))
                }
                None => self.shell.keeper.order(&Order::Forget { id, incarnation }),
            },
            Report::Unkillable { id, incarnation, message } => {
                if let Some(name) = self.owner(&id) {
                    self.with(&name, |service, shell, _| service.unkillable(shell, &id, incarnation, &message));
                }
            }
            Report::StopRequested => self.begin_stop(),
            Report::ReloadRequested => {
                if let Some(reload) = &self.reload {
                    // Ignored: a reload that is asked for twice is done once.
                    let _ = reload.try_send(());
                }
            }
        }
    }

    fn noticed(&mut self, signal: gateway::Signal, now: Instant) {
        use gateway::Signal as S;
        match signal {
            S::ConnectFailed { service, instance } => {
                self.with(&service, |service, shell, _| service.refused(shell, &instance, now))
            }
            S::Guarded { service } => self.with(&service, |service, shell, _| service.tell_notes(shell)),
            S::Spilled { service, instance } => {
                self.with(&service, |service, shell, _| service.spilled(shell, &instance));
            }
            // Counted by the gateway's metrics; judged by probes.
            S::Reset { .. } | S::BadResponse { .. } | S::ServerError { .. } | S::TimedOut { .. } => {}
        }
    }

    fn own_certificate(&mut self, told: Told) {
        if let Some(shown) = &told.shown {
            let labels = CertificateLabels { listener: shown.listener.clone(), file: shown.file.clone() };
            self.shell.metrics.certificate_expiry.get_or_create(&labels).set(shown.expires_unix);
        }
        self.own_certificate = told.shown;
        if let Some((kind, message)) = told.event {
            let cause = self.shell.new_cause();
            self.shell.emit(kind, Subject::default(), &cause, message);
        }
    }

    fn certificates(&mut self, shown: Vec<CertificateView>, notices: Vec<Notice>) {
        for certificate in &shown {
            let labels = CertificateLabels { listener: certificate.listener.clone(), file: certificate.file.clone() };
            self.shell.metrics.certificate_expiry.get_or_create(&labels).set(certificate.expires_unix);
        }
        self.certificates = shown;
        for notice in notices {
            let (kind, message) = match notice {
                Notice::Reloaded(message) => (EventKind::CertificateReloaded, message),
                Notice::Issued(message) => (EventKind::CertificateIssued, message),
                Notice::NotIssued(message) => (EventKind::CertificateNotIssued, message),
                Notice::Refused(message) => (EventKind::CertificateRefused, message),
                Notice::Expiring(message) => (EventKind::CertificateExpiring, message),
            };
            let cause = self.shell.new_cause();
            self.shell.emit(kind, Subject::default(), &cause, message);
        }
    }

    fn command(&mut self, command: Command, now: Instant) {
        let refusal = crate::cluster::witness_refuses(&self.config, self.members.as_ref());
        let no_service = |name: &ServiceName, services: &BTreeMap<ServiceName, Service>| {
            if let Some(message) = refusal {
                return api::Refusal { kind: api::RefusalKind::Refused, message };
            }
            let names: Vec<&str> = services.keys().map(ServiceName::as_str).collect();
            let cure = model::diagnostic::nearest(name.as_str(), names.iter().copied())
                .map_or_else(|| format!("there are: {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
            api::Refusal { kind: api::RefusalKind::NotFound, message: format!("no service `{name}`; {cure}") }
        };
        // Answers that nobody waits for any more are dropped.
        match command {
            Command::Promote { service: name, instance, wait, reply } => match self.services.get_mut(&name) {
                Some(service) => service.begin_switch(&self.shell, instance.as_ref(), wait, reply, now),
                None => drop(reply.send(Err(no_service(&name, &self.services)))),
            },
            Command::Restart { service: name, reply } => match self.services.get_mut(&name) {
                Some(service) => service.begin_restart(&self.shell, reply),
                None => drop(reply.send(Err(no_service(&name, &self.services)))),
            },
            Command::Breaker { service, hold, reply } => match self.services.contains_key(&service) {
                true => self.ask_breaker(service, hold, reply),
                false => drop(reply.send(Err(no_service(&service, &self.services)))),
            },
            Command::Shift { service, ask, reply } => match self.services.contains_key(&service) {
                true => self.ask_shift(service, ask, reply),
                false => drop(reply.send(Err(no_service(&service, &self.services)))),
            },
            Command::Members { change, reply } => self.change_members(change, reply),
            Command::Token { node, valid, reply } => self.make_token(node, valid, reply),
            Command::Apply { config, over, reply } => self.apply(*config, over.as_deref(), reply, now),
        }
    }

    /// Stops in order: the gateway drains, then instances stop, then the rest.
    fn begin_stop(&mut self) {
        if std::mem::replace(&mut self.shell.stopping, true) {
            return;
        }
        let cause = self.shell.new_cause();
        self.shell.emit(
            EventKind::NodeStopping,
            Subject::default(),
            &cause,
            "asked to stop: the gateway finishes its requests, then instances stop",
        );
        self.hand_over_lead();
        let Some(gateway) = self.gateway.take() else {
            self.drained = true;
            return;
        };
        let patience = self.config.gateway.drain_timeout;
        let inputs = self.shell.inputs.clone();
        tokio::spawn(async move {
            let left = gateway.drain(patience).await;
            drop(gateway);
            // Ignored: the controller has given up waiting.
            let _ = inputs.send(Input::GatewayDrained { left }).await;
        });
    }

    fn watch_store(&mut self) {
        let problem = self.shell.store.status().not_serving.map(|problem| problem.to_string());
        // How long somebody has been missing is no news.
        let news = |text: &String| text.split(' ').filter(|word| word.parse::<u64>().is_err()).collect::<String>();
        if problem.as_ref().map(news) == self.store_problem.as_ref().map(news) {
            return;
        }
        let cause = self.shell.new_cause();
        let message = match &problem {
            Some(problem) if self.config.node.role == NodeRole::Agent => format!(
                "{problem}; traffic goes on by the last known routes, writes wait, primaries here end when their lease does"
            ),
            Some(problem) => format!("{problem}; traffic goes on, promotions and writes wait"),
            None => "the store serves again".to_owned(),
        };
        self.shell.emit(EventKind::StoreState, Subject::default(), &cause, message);
        self.store_problem = problem;
    }

    /// Whether it is time to say that this node is ready. Whoever reads that finds a status that knows of it.
    fn becomes_ready(&mut self, now: Instant) -> bool {
        if self.said_ready || self.shell.stopping {
            return false;
        }
        let patient = now.saturating_duration_since(self.began) < READY_PATIENCE;
        self.said_ready = !patient || self.services.values().all(Service::is_settled);
        self.said_ready
    }

    fn say_ready(&mut self) {
        let settling = self.services.values().filter(|service| !service.is_settled());
        let waiting: Vec<&str> = settling.map(|service| service.name.as_str()).collect();
        let mut line = serde_json::json!({ "api": self.facts.api, "gateway": self.facts.gateway });
        if let Some(peers) = &self.facts.peers {
            line["peers"] = peers.as_str().into();
        }
        if let Some(dns) = &self.facts.dns {
            line["dns"] = dns.as_str().into();
        }
        if !waiting.is_empty() {
            line["notReady"] = waiting.into();
        }
        self.shell.keeper.order(&Order::Ready { line: format!("ready {line}"), hints: self.hints() });
    }

    /// The node's name.
    pub fn node(&self) -> &NodeName {
        &self.config.node.name
    }
}
