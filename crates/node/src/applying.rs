//! Putting another configuration in force: all or nothing, and only what changed is touched.
//! What can be refused is refused before anything is changed; a definition whose instances do not come up is taken back.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

use api::{Applied, Refusal, RefusalKind};
use model::config::{Decode as _, GatewayConfig};
use model::{Config, EventKind, InstanceId, Service as Definition, ServiceName};
use runtime::plan;
use tokio::sync::oneshot;

use crate::controller::Controller;
use crate::discovering::Asked;
use crate::instance::{After, Instance, Stage};
use crate::routes::{is_routed, routes};
use crate::service::{RollKind, Service};
use crate::shell::Subject;

/// A configuration being put in force: rolls that still run, and who waits.
#[derive(Debug)]
pub struct Applying {
    waiting: BTreeSet<ServiceName>,
    applied: Applied,
    failures: Vec<String>,
    cause: String,
    /// What was in force before, to go back to; gone once that has begun.
    previous: Option<Box<Config>>,
    reply: oneshot::Sender<Result<Applied, Refusal>>,
}

/// Where the configuration in force is kept for the next node process.
pub fn effective_path(config: &Config) -> PathBuf {
    PathBuf::from(&config.node.data_dir).join("effective.json")
}

/// Keeps the configuration in force for the next node process.
pub fn save_effective(config: &Config) {
    let path = effective_path(config);
    let text = serde_json::to_string_pretty(&config.encode()).expect("a configuration always becomes JSON");
    // A new name first: a crash while writing must not cost the configuration. The rename replaces, also on Windows.
    let fresh = path.with_extension("json.new");
    let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
    if let Err(error) = written {
        tracing::error!(path = %path.display(), %error, "the configuration in force cannot be kept; a crash of the node process would read the file given to `up` again");
    }
}

impl Controller {
    /// Puts `new` in force, which was made from what is `over`, if that is said; or refuses it and changes nothing.
    pub fn apply(
        &mut self,
        mut new: Config,
        over: Option<&Config>,
        reply: oneshot::Sender<Result<Applied, Refusal>>,
        now: Instant,
    ) {
        // The data directory was chosen at the start, perhaps on the command line; it cannot move.
        new.node.data_dir.clone_from(&self.config.node.data_dir);
        let is_in_force = over.is_none_or(|over| *over == self.config);
        let moved = "another configuration was put in force meanwhile: apply again";
        let current = if is_in_force { Ok(()) } else { Err(moved.to_owned()) };
        let applicable = current.and_then(|()| self.check_applicable(&new));
        if let Err(message) = applicable.and_then(|()| match &self.world {
            None => self.shell.table.set_routes(routes(&new, &self.shifts)).map_err(|error| error.to_string()),
            Some(_) => Ok(()),
        }) {
            let cause = self.shell.new_cause();
            self.shell.emit(
                EventKind::ConfigRejected,
                Subject::default(),
                &cause,
                format!("{message}; nothing was changed"),
            );
            // Ignored: who asked has gone.
            let _ = reply
                .send(Err(Refusal { kind: RefusalKind::Refused, message: format!("{message}; nothing was changed") }));
            return;
        }
        if self.world.is_some() {
            return self.commit_config(&new, reply);
        }
        let cause = self.shell.new_cause();
        let previous = Some(Box::new(self.config.clone()));
        let (applied, waiting) = self.put_in_force(new, &cause, now);
        self.applying = Some(Applying { waiting, applied, failures: Vec::new(), cause, previous, reply });
    }

    /// Changes what is different. Returns what that was, and the services that have begun to roll.
    pub(crate) fn put_in_force(&mut self, new: Config, cause: &str, now: Instant) -> (Applied, BTreeSet<ServiceName>) {
        self.pace.concerns_any();
        self.ports.keep_fixed(&new);
        self.shell.asked.send_replace(Asked::by(&new));
        let mut applied = Applied { routes: new.routes != self.config.routes, ..Applied::default() };
        let gone: Vec<ServiceName> =
            self.services.keys().filter(|name| !new.services.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(service) = self.services.get_mut(&name) {
                service.stop_all(&self.shell, After::Remove, cause, now);
            }
            applied.removed.push(name);
        }
        let mut waiting = BTreeSet::new();
        for (name, definition) in &new.services {
            let routed = is_routed(&new, name);
            match self.services.get_mut(name) {
                None => {
                    let service = Service::new(name.clone(), definition.clone(), routed, self.shell.own.as_ref());
                    service.begin(&self.shell);
                    self.services.insert(name.clone(), service);
                    self.tell_kept(name, now);
                    applied.added.push(name.clone());
                }
                // One that is being removed is taken back.
                Some(service)
                    if service.definition != *definition
                        || service.is_routed != routed
                        || !self.config.services.contains_key(name) =>
                {
                    service.is_routed = routed;
                    if service.redefine(&self.shell, definition.clone(), cause, now) {
                        waiting.insert(name.clone());
                        applied.rolled.push(name.clone());
                    } else {
                        applied.changed.push(name.clone());
                    }
                }
                Some(_) => {}
            }
        }
        if new.notify != self.config.notify {
            self.notifier =
                observe::notify::Notifier::start(&new.notify, &self.shell.journal, &PathBuf::from(&new.node.data_dir));
        }
        // A cluster agrees on services and routes; what a machine bears is its own.
        if self.config.cluster.is_none() {
            self.shell.table.set_overload(crate::overload::policy(&new));
        }
        self.config = new;
        self.seat.hold_to_quotas(&self.config);
        save_effective(&self.config);
        let message = format!(
            "configuration applied: {} added, {} removed, {} rolling, {} changed in place",
            applied.added.len(),
            applied.removed.len(),
            applied.rolled.len(),
            applied.changed.len()
        );
        self.shell.emit(EventKind::ConfigApplied, Subject::default(), cause, message);
        (applied, waiting)
    }

    fn check_applicable(&self, new: &Config) -> Result<(), String> {
        if self.shell.stopping {
            return Err("the node is stopping".into());
        }
        if let Some(refusal) = crate::cluster::witness_refuses(&self.config, self.members.as_ref()) {
            return Err(refusal);
        }
        if self.applying.is_some() || self.services.values().any(|service| service.roll.is_some()) {
            return Err("another change is being carried out; wait for it (`seawall events --follow`)".into());
        }
        let fixed = |config: &Config| {
            let gateway = GatewayConfig { overload: None, ..config.gateway.clone() };
            (config.node.clone(), config.api.clone(), gateway)
        };
        // A cluster takes services and routes; what is about one machine stays in that machine's file.
        if self.config.cluster.is_none() && fixed(new) != fixed(&self.config) {
            return Err("`node`, `api` and `gateway` cannot be changed while running: stop seawall and start it with the new file".into());
        }
        if self.config.cluster.is_none() && new.discovery.acl != self.config.discovery.acl {
            return Err(
                "`discovery.acl` cannot be changed while running: stop seawall and start it with the new file".into()
            );
        }
        if new.streams != self.config.streams {
            return Err("`streams` cannot be changed while running: stop seawall and start it with the new file".into());
        }
        for (name, definition) in &new.services {
            crate::files::upstream(definition).map_err(|error| format!("service `{name}`: {error}"))?;
            if self.config.services.get(name).is_some_and(|old| would_roll(name, old, definition))
                && definition.min_available() >= definition.total_replicas()
            {
                return Err(format!(
                    "`{name}` would have to be rolled one at a time, which its minAvailable {} of {} replicas forbids: lower it or add a replica",
                    definition.min_available(),
                    definition.total_replicas()
                ));
            }
            let changed_mode = self.services.get(name).is_some_and(|service| {
                service.definition.mode != definition.mode
                    || service.definition.endpoints.is_empty() != definition.endpoints.is_empty()
            });
            if changed_mode {
                return Err(format!(
                    "`{name}` would change its mode or between `command` and `endpoints`: give it a new name, or remove it first"
                ));
            }
        }
        Ok(())
    }

    fn go_back(&mut self, previous: Config, mut applying: Applying) {
        if let Err(error) = self.shell.table.set_routes(routes(&previous, &self.shifts)) {
            tracing::error!(%error, "routes that were in force cannot be put back");
        }
        let (_, waiting) = self.put_in_force(previous, &applying.cause, Instant::now());
        applying.waiting = waiting;
        self.applying = Some(applying);
    }

    /// Rolls ended: answers when none is left, and takes services back whose roll failed.
    pub fn finish_applying(&mut self) {
        for (name, result) in std::mem::take(&mut self.shell.ended_rolls) {
            if let Some(service) = self.services.get(&name) {
                self.config.services.insert(name.clone(), service.definition.clone());
            }
            if let Err(why) = &result {
                self.take_back(&name, why);
            }
            let Some(applying) = &mut self.applying else { continue };
            applying.waiting.remove(&name);
            if let Err(failure) = result {
                applying.failures.push(failure);
            }
        }
        // Removed services are forgotten once they have stopped.
        let wanted = &self.config.services;
        let forgotten =
            |name: &ServiceName, service: &Service| service.instances.is_empty() && !wanted.contains_key(name);
        let before = self.services.len();
        self.services.retain(|name, service| !forgotten(name, service));
        if self.services.len() != before {
            let asked = self.shell.asked.borrow();
            self.shell.table.retain(|name| self.services.contains_key(name) || asked.routed.contains(name));
        }
        let Some(mut applying) = self.applying.take_if(|applying| applying.waiting.is_empty()) else { return };
        let answer = if applying.failures.is_empty() {
            Ok(applying.applied)
        } else if let Some(previous) = applying.previous.take() {
            // All or nothing: what did come up goes back as well.
            self.go_back(*previous, applying);
            return;
        } else {
            let message = format!("{}; what was in force before is in force again", applying.failures.join("; "));
            self.shell.emit(EventKind::ConfigRejected, Subject::default(), &applying.cause, message.clone());
            Err(Refusal { kind: RefusalKind::Failed, message })
        };
        self.shell.answer(applying.reply, answer);
    }
}

/// Whether `new` needs other processes than `old`.
pub fn would_roll(name: &ServiceName, old: &Definition, new: &Definition) -> bool {
    let before = plan::instances(name, old);
    plan::instances(name, new)
        .iter()
        .any(|plan| before.iter().any(|known| known.id == plan.id && known.fingerprint() != plan.fingerprint()))
}

impl Service {
    /// Takes another definition. True when instances have to be replaced, which has then begun.
    fn redefine(&mut self, shell: &crate::shell::Shell, definition: Definition, cause: &str, now: Instant) -> bool {
        let old = std::mem::replace(&mut self.definition, definition);
        self.upstream = crate::files::upstream(&self.definition);
        if !self.definition.endpoints.is_empty() {
            self.redirect(shell);
            return false;
        }
        let known: BTreeSet<InstanceId> = self.instances.keys().cloned().collect();
        let pending = self.fit_to_plan(shell, cause, now);
        self.refresh_probes();
        if pending.is_empty() {
            return false;
        }
        let added = self.instances.keys().filter(|id| !known.contains(*id)).cloned().collect();
        self.begin_roll(shell, RollKind::Apply(Box::new(old)), pending, added, now);
        true
    }

    /// Adds and removes instances as the definition says; returns those that run something else and must be replaced.
    pub(crate) fn fit_to_plan(
        &mut self,
        shell: &crate::shell::Shell,
        cause: &str,
        now: Instant,
    ) -> BTreeSet<InstanceId> {
        let planned = self.planned_here();
        let gone: Vec<_> =
            self.instances.keys().filter(|id| !planned.iter().any(|plan| plan.id == **id)).cloned().collect();
        for id in gone {
            self.begin_stop(shell, &id, After::Remove, cause, now);
        }
        let (mut pending, mut returning) = (BTreeSet::new(), Vec::new());
        for plan in planned {
            match self.instances.get_mut(&plan.id) {
                None => {
                    self.instances.insert(plan.id.clone(), Instance::new(plan));
                }
                Some(instance) if instance.plan.fingerprint() != plan.fingerprint() => {
                    pending.insert(plan.id.clone());
                }
                Some(instance) => {
                    instance.plan = plan;
                    if matches!(instance.stage, Stage::Stopped | Stage::Gone) {
                        instance.enter(Stage::Waiting);
                    } else if instance.is_leaving() {
                        returning.push(instance.id().clone());
                    }
                }
            }
        }
        for id in returning {
            self.begin_stop(shell, &id, After::Start, cause, now);
        }
        pending
    }
}
