//! A planned switch of primary: drain, demote, then the three commits with nobody killed.

use std::time::Instant;

use api::{Refusal, RefusalKind, Switched};
use health::decide::{Holder, Switch};
use health::hook;
use model::config::Mode;
use model::{Epoch, EventKind, InstanceId, ServiceName};
use tokio::sync::oneshot;

use super::{Promotion, Service};
use crate::Input;
use crate::instance::{After, DRAIN_SETTLE, Stage};
use crate::shell::{Shell, Subject};

/// Who is told how it went.
type Reply = oneshot::Sender<Result<Switched, Refusal>>;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Part {
    /// The primary finishes its requests; new ones wait at the gateway.
    Draining(Instant),
    /// `onDemote` runs.
    Demoting,
    /// It is not primary any more.
    Demoted,
    /// Its fence is committed: whoever is promoted now, the switch has nothing more to decide.
    Fenced,
    /// It could not be told, so it is stopped.
    Stopping,
}

/// A planned switch under way.
#[derive(Debug)]
pub struct Switching {
    /// To whom.
    pub target: InstanceId,
    from: Holder,
    part: Part,
    /// The term that it ends.
    epoch: Epoch,
    reply: Option<Reply>,
}

impl Switching {
    /// The primary that hands over.
    pub fn from(&self) -> &Holder {
        &self.from
    }

    /// The term that it ends.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The old primary is not primary any more, and lives on.
    pub fn is_demoted(&self) -> bool {
        matches!(self.part, Part::Demoted | Part::Fenced)
    }

    /// The fence that it led to is committed.
    pub fn fenced(&mut self) {
        if self.part == Part::Demoted {
            self.part = Part::Fenced;
        }
    }

    /// As the decision sees it.
    pub fn as_switch(&self) -> Switch {
        Switch { target: self.target.clone(), demoted: self.part == Part::Demoted }
    }

    /// Traffic goes to a new primary.
    pub fn finish(mut self, shell: &Shell, service: &ServiceName, primary: &InstanceId, epoch: Epoch) {
        let Some(reply) = self.reply.take() else { return };
        let done = Switched { service: service.clone(), primary: primary.clone(), epoch: Some(epoch), done: true };
        let answer = if *primary == self.target {
            Ok(done)
        } else {
            let message =
                format!("{} could not take over; {primary} is primary of {service} in epoch {epoch}", self.target);
            Err(Refusal { kind: RefusalKind::Failed, message })
        };
        shell.answer(reply, answer);
    }
}

impl Service {
    /// Begins a planned switch, or says why not.
    pub fn begin_switch(&mut self, shell: &Shell, wanted: Option<&InstanceId>, wait: bool, reply: Reply, now: Instant) {
        let begun = self.check_switch(wanted);
        let (target, from) = match begun {
            Ok(checked) => checked,
            Err(refusal) => {
                let _ = reply.send(Err(refusal));
                return;
            }
        };
        if self.spread.is_some() {
            return self.agree_on_switch(shell, target, from, Some((reply, wait)));
        }
        let mut reply = Some(reply);
        if !wait && let Some(reply) = reply.take() {
            let _ = reply.send(Ok(Switched {
                service: self.name.clone(),
                primary: target.clone(),
                epoch: None,
                done: false,
            }));
        }
        self.switch_to(shell, target, from, reply, now);
    }

    /// Begins a planned switch that has been checked, or that a roll needs.
    pub(super) fn switch_to(
        &mut self,
        shell: &Shell,
        target: InstanceId,
        from: Holder,
        reply: Option<Reply>,
        now: Instant,
    ) {
        let cause = shell.new_cause();
        let Some(promotion) = &mut self.promotion else { return };
        promotion.forgive(&target);
        let epoch = promotion.epoch().unwrap_or_default();
        let subject = Subject::instance(&self.name, &from.instance).epoch(epoch);
        shell.emit(
            EventKind::Demoted,
            subject,
            &cause,
            format!("{} hands over to {target}: it finishes its requests, new ones wait", from.instance),
        );
        promotion.begin(
            Switching { target, from, part: Part::Draining(now + self.definition.drain_timeout), epoch, reply },
            cause,
            now,
        );
        self.tell_gateway(shell);
    }

    pub(super) fn check_switch(&self, wanted: Option<&InstanceId>) -> Result<(InstanceId, Holder), Refusal> {
        let refused = |message: String| Refusal { kind: RefusalKind::Refused, message };
        let name = &self.name;
        if self.definition.mode != Mode::PrimaryStandby {
            return Err(refused(format!(
                "{name} is active-active: every ready instance serves, there is nothing to promote"
            )));
        }
        let Some(promotion) = &self.promotion else { return Err(refused(format!("{name} has no primary"))) };
        if promotion.switching.is_some() || self.roll.is_some() && wanted.is_some() {
            return Err(refused(format!(
                "{name} is being switched or restarted already; wait for it (`seawall events --follow`)"
            )));
        }
        let Some((holder, _)) = promotion.routed_primary() else {
            return Err(refused(format!(
                "{name} has no primary at this moment; one is being promoted, or no standby is ready (`seawall status`)"
            )));
        };
        if wanted == Some(&holder.instance) {
            return Err(refused(format!("{} is the primary already", holder.instance)));
        }
        if self.spread.is_some() {
            return self.check_switch_in_cluster(wanted, holder);
        }
        if let Some(wanted) = wanted
            && !self.instances.contains_key(wanted)
        {
            return Err(Refusal {
                kind: RefusalKind::NotFound,
                message: format!("{name} has no instance `{wanted}`; it has: {}", self.ids()),
            });
        }
        let fit = |instance: &&crate::instance::Instance| {
            instance.is_ready()
                && *instance.id() != holder.instance
                && wanted.map_or_else(|| !promotion.has_refused(instance.id()), |wanted| wanted == instance.id())
        };
        let refused_just_now = || self.instances.keys().find(|id| promotion.has_refused(id));
        match self.instances.values().find(fit) {
            Some(target) => Ok((target.id().clone(), holder.clone())),
            None => Err(refused(match wanted {
                Some(wanted) => format!(
                    "{wanted} is not ready ({}); promoting it would leave {name} without anybody to answer",
                    self.instances[wanted].state_word()
                ),
                None => match refused_just_now() {
                    Some(id) => {
                        format!("{id} refused to be primary of {name} just now; name it to ask it all the same")
                    }
                    None => format!("{name} has no ready standby; a switch would leave it without anybody to answer"),
                },
            })),
        }
    }

    /// The same over all nodes.
    fn check_switch_in_cluster(
        &self,
        wanted: Option<&InstanceId>,
        holder: &Holder,
    ) -> Result<(InstanceId, Holder), Refusal> {
        let name = &self.name;
        let planned = runtime::plan::instances(name, &self.definition);
        let mut ids = planned.iter().map(|plan| &plan.id).filter(|id| **id != holder.instance);
        let target = match wanted {
            Some(wanted) if !ids.clone().any(|id| id == wanted) => {
                let names: Vec<&str> = ids.map(InstanceId::as_str).collect();
                let message = format!("{name} has no standby `{wanted}`; it has: {}", names.join(", "));
                return Err(Refusal { kind: RefusalKind::NotFound, message });
            }
            Some(wanted) => Some(wanted).filter(|wanted| self.is_ready_anywhere(wanted)),
            None => ids.find(|id| self.is_ready_anywhere(id)),
        };
        target.map(|target| (target.clone(), holder.clone())).ok_or_else(|| Refusal {
            kind: RefusalKind::Refused,
            message: format!(
                "{name} has no ready standby to hand over to; a switch would leave it without anybody to answer"
            ),
        })
    }

    fn ids(&self) -> String {
        self.instances.keys().map(InstanceId::as_str).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn step_switch(&mut self, shell: &Shell, now: Instant) {
        self.take_up_switch(shell, now);
        let Some(switching) = self.promotion.as_ref().and_then(|promotion| promotion.switching.as_ref()) else {
            return;
        };
        let (part, target) = (switching.part, switching.target.clone());
        let target_ready = self.is_ready_anywhere(&target);
        let elsewhere = self.spread.as_ref().is_none_or(|spread| spread.agreed.drained_elsewhere);
        let Some(switching) = self.promotion.as_ref().and_then(|promotion| promotion.switching.as_ref()) else {
            return;
        };
        match part {
            Part::Draining(_) if !target_ready => {
                let reason = format!(
                    "{} stopped being ready before the switch; {} stays primary",
                    switching.target, switching.from.instance
                );
                self.cancel_switch(shell, &reason);
            }
            Part::Draining(until) => {
                let in_flight = shell.table.service(&self.name).in_flight(&switching.from.instance);
                let told = now + self.definition.drain_timeout >= until + DRAIN_SETTLE;
                if (in_flight == 0 && told && elsewhere) || until <= now {
                    self.demote(shell, now);
                }
            }
            _ => {}
        }
    }

    fn demote(&mut self, shell: &Shell, now: Instant) {
        let name = self.name.clone();
        let Some(promotion) = &mut self.promotion else { return };
        let epoch = promotion.epoch().unwrap_or_default();
        let Some(switching) = &mut promotion.switching else { return };
        let holder = switching.from.clone();
        let target = self.instances.get(&holder.instance).and_then(|instance| instance.target(&shell.api));
        if let (Some(hook), Some(target)) = (self.definition.on_demote.clone(), target) {
            switching.part = Part::Demoting;
            let subject = hook::Subject { service: name.clone(), instance: holder.instance.clone(), target };
            shell.spawn(async move {
                let result = hook::call(&hook, &subject, epoch, None).await;
                Input::Demoted { service: name, holder, result }
            });
        } else {
            // A program that cannot be told must be stopped: nobody else may believe it is primary.
            switching.part = Part::Stopping;
            let cause = promotion.cause().to_owned();
            self.begin_stop(shell, &holder.instance, After::Start, &cause, now);
        }
    }

    /// `onDemote` came back.
    pub fn demoted(&mut self, shell: &Shell, holder: &Holder, result: Result<(), String>, now: Instant) {
        let name = self.name.clone();
        let Some(promotion) = &mut self.promotion else { return };
        let cause = promotion.cause().to_owned();
        let epoch = promotion.epoch().unwrap_or_default();
        let Some(switching) = promotion.switching.as_mut().filter(|switching| switching.from == *holder) else {
            return;
        };
        match result {
            Ok(()) => {
                switching.part = Part::Demoted;
                self.step_promotion(shell, now);
            }
            Err(error) => {
                switching.part = Part::Stopping;
                let subject = Subject::instance(&name, &holder.instance).epoch(epoch);
                shell.emit(
                    EventKind::DemoteHookFailed,
                    subject,
                    &cause,
                    format!(
                        "{} did not confirm that it stepped down ({error}); it is stopped instead",
                        holder.instance
                    ),
                );
                if self.instances.get(&holder.instance).is_some_and(|instance| instance.stage == Stage::Running) {
                    self.begin_stop(shell, &holder.instance, After::Start, &cause, now);
                }
            }
        }
    }

    fn cancel_switch(&mut self, shell: &Shell, reason: &str) {
        let Some(promotion) = &mut self.promotion else { return };
        let Some(mut switching) = promotion.switching.take() else { return };
        promotion.not_lost();
        shell.emit(EventKind::SwitchCancelled, Subject::service(&self.name), promotion.cause(), reason);
        if let Some(reply) = switching.reply.take() {
            shell.answer(reply, Err(Refusal { kind: RefusalKind::Failed, message: reason.to_owned() }));
        }
        self.disagree(shell, Instant::now());
        self.tell_gateway(shell);
    }
}

impl Promotion {
    fn begin(&mut self, switching: Switching, cause: String, now: Instant) {
        self.switching = Some(switching);
        self.set_cause(cause);
        self.mark_lost(now);
    }
}
