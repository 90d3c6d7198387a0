//! The end of a promotion: the committed primary is told by `onPromote`, then traffic goes to it.
//! Last part of the failure walk. Deliberately absent: choosing and committing, which is the parent's.

use std::time::Instant;

use health::decide::Holder;
use health::hook;
use model::{Epoch, EventKind};
use observe::metrics::ServiceLabels;

use super::{AVOID, HOOK_PAUSE, HOOK_TRIES, HookState};
use crate::Input;
use crate::instance::{After, Stage};
use crate::service::Service;
use crate::shell::{Shell, Subject};

impl Service {
    /// The committed primary lives: calls its hook if that is still to be done, then routes to it.
    pub(super) fn serve_term(&mut self, shell: &Shell, now: Instant) {
        let (definition, name) = (&self.definition, self.name.clone());
        let Some(promotion) = &mut self.promotion else { return };
        let (Some(epoch), Some(holder)) = (promotion.epoch(), promotion.holder().cloned()) else { return };
        if promotion.routed == Some(epoch) {
            return;
        }
        if self.spread.is_some() && holder.node != shell.own {
            return self.route_elsewhere(&holder, epoch);
        }
        if self.spread.is_some() && !self.is_holder(&holder.instance) {
            // It has ended; the leader will read it here.
            return;
        }
        // A node that was away reads of its term after its time: the keeper ends the process, and another may be primary. One
        // whose time is not known, because a node process before this one answered for it, has a deadline at the keeper if it
        // was told that it is primary; else it must not be told before its record is there under a lease of this one.
        let is_over = match shell.lives_until(&holder) {
            Some(until) => until <= platform::clock::since_boot(),
            None => !self.is_promoted(&holder, epoch),
        };
        if self.spread.is_some() && is_over {
            return;
        }
        let Some(promotion) = &mut self.promotion else { return };
        match promotion.hook {
            HookState::Running => return,
            HookState::Again(at) if at > now => return,
            _ => {}
        }
        let Some(instance) = self.instances.get(&holder.instance) else { return };
        if self.spread.is_some() && instance.stage != Stage::Running {
            // It is being stopped: nobody is asked to be primary now.
            return;
        }
        let answered = instance.process.as_ref().is_some_and(|process| process.promoted == Some(epoch));
        if self.spread.is_some() && !answered {
            // A node process before this one may not have known that it is to be primary.
            self.give_deadline(shell, &holder);
        }
        let Some(promotion) = &mut self.promotion else { return };
        let (Some(hook), Some(target), false) = (&definition.on_promote, instance.target(&shell.api), answered) else {
            return self.route(shell, &holder, epoch, now);
        };
        promotion.hook = HookState::Running;
        let subject = hook::Subject { service: name.clone(), instance: holder.instance.clone(), target };
        let (hook, sealed) = (hook.clone(), promotion.sealed().cloned());
        shell.spawn(async move {
            let result = hook::call(&hook, &subject, epoch, sealed.as_ref()).await;
            Input::Promoted { service: name, holder, epoch, result }
        });
    }

    /// It was told that it is primary, in this term.
    fn is_promoted(&self, holder: &Holder, epoch: Epoch) -> bool {
        let process = self.instances.get(&holder.instance).and_then(|instance| instance.process.as_ref());
        process.is_some_and(|process| process.promoted == Some(epoch))
    }

    /// `onPromote` came back.
    pub fn promoted(&mut self, shell: &Shell, holder: &Holder, epoch: Epoch, result: Result<(), String>, now: Instant) {
        let name = self.name.clone();
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.epoch() != Some(epoch) || promotion.holder() != Some(holder) {
            return;
        }
        if self.spread.is_some() && !self.is_holder(&holder.instance) {
            return;
        }
        let Some(promotion) = &mut self.promotion else { return };
        let Err(error) = result else { return self.route(shell, holder, epoch, now) };
        promotion.hook_tries += 1;
        let subject = Subject::instance(&name, &holder.instance).epoch(epoch);
        let cause = promotion.cause.clone();
        if promotion.hook_tries < HOOK_TRIES {
            promotion.hook = HookState::Again(now + HOOK_PAUSE);
            tracing::warn!(service = %name, instance = %holder.instance, epoch = epoch.0, error, "onPromote failed; trying again");
            return;
        }
        promotion.hook = HookState::Idle;
        promotion.avoided.push((holder.instance.clone(), now + AVOID));
        shell.emit(
            EventKind::PromoteHookFailed,
            subject,
            &cause,
            format!("{} cannot be primary of {name}: onPromote: {error}", holder.instance),
        );
        self.kill(shell, &holder.instance, After::Failed);
    }

    /// The primary is on another node: traffic goes to it once it has answered its `onPromote`.
    fn route_elsewhere(&mut self, holder: &Holder, epoch: Epoch) {
        let process = self.spread.as_ref().and_then(|spread| spread.process(holder));
        if process.is_some_and(|process| process.promoted == Some(epoch))
            && let Some(promotion) = &mut self.promotion
        {
            (promotion.routed, promotion.lost_at, promotion.switching) = (Some(epoch), None, None);
        }
    }

    fn route(&mut self, shell: &Shell, holder: &Holder, epoch: Epoch, now: Instant) {
        let name = self.name.clone();
        if let Some(process) = self.instances.get_mut(&holder.instance).and_then(|instance| instance.process.as_mut()) {
            process.promoted = Some(epoch);
        }
        self.remember(shell, &holder.instance);
        let Some(promotion) = &mut self.promotion else { return };
        promotion.hook = HookState::Idle;
        let again = promotion.routed.is_none() && promotion.lost_at.is_none() && promotion.terms.is_empty();
        promotion.routed = Some(epoch);
        let took = promotion.lost_at.take().map(|lost| now.saturating_duration_since(lost));
        let cause = promotion.cause.clone();
        // One that has only begun, and is to end this very term, goes on.
        let finished = promotion.switching.take_if(|switching| switching.epoch() != epoch);
        self.tell_gateway(shell);
        let labels = ServiceLabels { service: name.to_string() };
        shell.metrics.promotions.get_or_create(&labels).inc();
        if let Some(took) = took {
            shell.metrics.switch_seconds.get_or_create(&labels).set(took.as_secs_f64());
        }
        if !again {
            let after = took.map_or_else(String::new, |took| format!(", {} ms after the loss", took.as_millis()));
            let subject = Subject::instance(&name, &holder.instance).epoch(epoch);
            shell.emit(
                EventKind::Routed,
                subject,
                &cause,
                format!("traffic of {name} goes to {} (epoch {epoch}){after}", holder.instance),
            );
        }
        if let Some(switching) = finished {
            switching.finish(shell, &name, &holder.instance, epoch);
        }
    }
}
