//! A planned restart or a roll to another definition: one instance at a time, each ready before the next.
//! A roll whose new instance does not come up goes back to what ran before.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use api::{Refusal, RefusalKind};
use model::{EventKind, InstanceId, Service as Definition};
use runtime::plan;
use runtime::roll::{self, View};
use tokio::sync::oneshot;

use super::Service;
use crate::instance::{After, Instance, Stage};
use crate::shell::{Shell, Subject};

/// From the end of the old process to the readiness of the new one, besides the startup probe's own time.
const PROGRESS: Duration = Duration::from_secs(60);
/// A new instance that ends so often before it is ready is not coming up.
const EXITS: u32 = 3;

/// Why instances are replaced.
#[derive(Debug)]
pub enum RollKind {
    /// `seawall restart`.
    Restart(Option<oneshot::Sender<Result<String, Refusal>>>),
    /// A changed definition; the old one, to go back to.
    Apply(Box<Definition>),
    /// Going back, and why.
    Revert(String),
}

/// A roll under way.
#[derive(Debug)]
pub struct Roll {
    kind: RollKind,
    pending: BTreeSet<InstanceId>,
    replaced: BTreeSet<InstanceId>,
    cause: String,
    /// When the one under way must be ready.
    pub deadline: Option<Instant>,
}

impl Service {
    /// Begins `seawall restart`, or says why not.
    pub fn begin_restart(&mut self, shell: &Shell, reply: oneshot::Sender<Result<String, Refusal>>) {
        let refused = |message: String| Err(Refusal { kind: RefusalKind::Refused, message });
        let problem = if !self.definition.endpoints.is_empty() {
            Some(format!("{} runs elsewhere: Seawall routes to it but does not run it", self.name))
        } else if self.roll.is_some() {
            Some(format!("{} is being restarted or rolled already; wait for it (`seawall events --follow`)", self.name))
        } else {
            let (replicas, minimum) = (self.definition.total_replicas(), self.definition.min_available());
            (minimum >= replicas && replicas > 0).then(|| format!("{} has minAvailable {minimum} of {replicas} replicas: a restart one at a time would break that; lower it or add a replica", self.name))
        };
        if let Some(message) = problem {
            // Ignored: who asked has gone.
            let _ = reply.send(refused(message));
            return;
        }
        if self.spread.is_some() {
            return self.agree_on_restart(shell, reply);
        }
        let pending = self.instances.keys().cloned().collect();
        self.begin_roll(shell, RollKind::Restart(Some(reply)), pending, BTreeSet::new(), Instant::now());
    }

    /// Begins to replace `pending`, one at a time; instances that were just `added` must come up first.
    pub fn begin_roll(
        &mut self,
        shell: &Shell,
        kind: RollKind,
        pending: BTreeSet<InstanceId>,
        added: BTreeSet<InstanceId>,
        now: Instant,
    ) {
        let cause = shell.new_cause();
        let what = match &kind {
            RollKind::Restart(_) => "is restarted",
            RollKind::Apply(_) => "rolls to its new definition",
            RollKind::Revert(_) => "goes back to its old definition",
        };
        shell.emit(
            EventKind::RollStarted,
            Subject::service(&self.name),
            &cause,
            format!("{} {what}, {} instances, one at a time", self.name, pending.len()),
        );
        let deadline = (!added.is_empty()).then(|| now + PROGRESS + self.startup_time());
        self.roll = Some(Roll { kind, pending, replaced: added, cause, deadline });
    }

    pub(super) fn step_roll(&mut self, shell: &mut Shell, now: Instant) {
        let Some(roll) = &self.roll else { return };
        if self
            .promotion
            .as_ref()
            .is_some_and(|promotion| promotion.routed_primary().is_none() && promotion.switching.is_some())
        {
            return;
        }
        if let Some(problem) = self.roll_problem(roll, now) {
            return self.abort_roll(shell, &problem, now);
        }
        match roll::next(&self.roll_views(roll), self.definition.min_available()) {
            roll::Step::Wait => {}
            // Every node sees the same order; each replaces its own.
            roll::Step::Replace(id) if !self.instances.contains_key(&id) => {}
            roll::Step::Replace(id) => self.replace(shell, &id, now),
            roll::Step::Promote(id) if self.spread.is_some() => self.hand_over(shell, id),
            roll::Step::Promote(id) => {
                if let Ok((_, from)) = self.check_switch(None) {
                    self.switch_to(shell, id, from, None, now);
                }
            }
            roll::Step::Done if self.is_settled() => self.finish_roll(shell, Ok(())),
            roll::Step::Done => {}
        }
    }

    fn roll_views(&self, roll: &Roll) -> Vec<View> {
        let primary =
            self.promotion.as_ref().and_then(|promotion| promotion.holder()).map(|holder| holder.instance.clone());
        let view = |instance: &Instance| View {
            id: instance.id().clone(),
            pending: roll.pending.contains(instance.id()),
            ready: instance.is_ready(),
            primary: primary.as_ref() == Some(instance.id()),
        };
        let is_removed = |instance: &&Instance| {
            matches!(instance.stage, Stage::Stopping(After::Remove) | Stage::Draining(_, After::Remove))
        };
        let here = self.instances.values().filter(|instance| !is_removed(instance)).map(view);
        let mut views: Vec<View> = here.chain(self.roll_elsewhere(primary.as_ref())).collect();
        // The same order on every node, so that all agree on whose turn it is.
        views.sort_by(|one, other| one.id.cmp(&other.id));
        views
    }

    /// The last of a roll in a cluster is the primary: its node has it hand over first.
    fn hand_over(&mut self, shell: &Shell, target: InstanceId) {
        let under_way = |spread: &super::Spread| spread.agreed.switch.is_some();
        if self.spread.as_ref().is_some_and(under_way) || self.handing_over {
            return;
        }
        let routed = self.promotion.as_ref().and_then(|promotion| promotion.routed_primary());
        let Some(from) = routed.map(|(holder, _)| holder.clone()).filter(|from| self.runs_here(from)) else { return };
        self.handing_over = true;
        self.agree_on_switch(shell, target, from, None);
    }

    /// Why the replaced instance under way is not coming up, if so.
    fn roll_problem(&self, roll: &Roll, now: Instant) -> Option<String> {
        let refused = |id: &&InstanceId| self.promotion.as_ref().is_some_and(|promotion| promotion.has_refused(id));
        if let Some(id) = roll.replaced.iter().find(refused) {
            return Some(format!("{id} refused to be primary (onPromote failed)"));
        }
        let under_way = roll
            .replaced
            .iter()
            .filter_map(|id| self.instances.get(id))
            .find(|instance| !instance.is_ready() && !instance.is_leaving())?;
        let note = under_way.note.clone().unwrap_or_else(|| under_way.state_word().to_owned());
        if under_way.streak.exits() >= EXITS {
            return Some(format!("{} ended {} times: {note}", under_way.id(), under_way.streak.exits()));
        }
        if matches!(under_way.stage, Stage::Stuck | Stage::Stopped) {
            return Some(format!("{} is {}: {note}", under_way.id(), under_way.state_word()));
        }
        roll.deadline
            .filter(|deadline| *deadline <= now)
            .map(|_| format!("{} did not become ready in time: {note}", under_way.id()))
    }

    /// How long its startup probe gives an instance.
    fn startup_time(&self) -> Duration {
        let probe = self.definition.startup_probe.as_ref();
        probe.map_or(Duration::ZERO, |probe| probe.period() * probe.failure_threshold)
    }

    fn replace(&mut self, shell: &Shell, id: &InstanceId, now: Instant) {
        let startup = self.startup_time();
        let stop = self.definition.drain_timeout
            + Duration::from_secs(self.definition.termination_grace_period_seconds.into());
        let planned = plan::instances(&self.name, &self.definition).into_iter().find(|plan| plan.id == *id);
        let Some(roll) = &mut self.roll else { return };
        roll.pending.remove(id);
        roll.replaced.insert(id.clone());
        roll.deadline = Some(now + PROGRESS + startup + stop);
        let cause = roll.cause.clone();
        if let Some(promotion) = &mut self.promotion {
            promotion.forgive(id);
        }
        if let (Some(instance), Some(planned)) = (self.instances.get_mut(id), planned) {
            instance.plan = planned;
            instance.streak.clear();
        }
        self.begin_stop(shell, id, After::Start, &cause, now);
    }

    fn abort_roll(&mut self, shell: &mut Shell, problem: &str, now: Instant) {
        let Some(roll) = self.roll.take() else { return };
        let subject = Subject::service(&self.name);
        match roll.kind {
            RollKind::Restart(_) | RollKind::Revert(_) => {
                let message = format!(
                    "{}: the restart was given up: {problem}; the other instances were left as they are",
                    self.name
                );
                shell.emit(EventKind::RollAborted, subject, &roll.cause, message.clone());
                self.roll = Some(roll);
                self.finish_roll(shell, Err(message));
            }
            RollKind::Apply(old) => {
                let message =
                    format!("{}: the new definition does not come up: {problem}; going back to the old one", self.name);
                shell.emit(EventKind::RollAborted, subject, &roll.cause, message.clone());
                self.definition = *old;
                self.upstream = crate::files::upstream(&self.definition);
                self.refresh_probes();
                for id in &roll.replaced {
                    if let Some(instance) = self.instances.get_mut(id)
                        && matches!(instance.stage, Stage::BackOff(_) | Stage::Stopped)
                    {
                        instance.streak.clear();
                    }
                }
                let pending = self.fit_to_plan(shell, &roll.cause, now);
                self.begin_roll(shell, RollKind::Revert(message), pending, BTreeSet::new(), now);
            }
        }
    }

    fn finish_roll(&mut self, shell: &mut Shell, result: Result<(), String>) {
        let Some(roll) = self.roll.take() else { return };
        let done = format!("{}: {} instances replaced, all ready", self.name, roll.replaced.len());
        if result.is_ok() {
            shell.emit(EventKind::RollFinished, Subject::service(&self.name), &roll.cause, done.clone());
        }
        match roll.kind {
            RollKind::Restart(Some(reply)) => {
                let failed = |message| Refusal { kind: RefusalKind::Failed, message };
                shell.answer(reply, result.map(|()| done).map_err(failed));
            }
            RollKind::Restart(None) => {}
            RollKind::Apply(_) => shell.ended_rolls.push((self.name.clone(), result)),
            RollKind::Revert(why) => shell.ended_rolls.push((self.name.clone(), Err(why))),
        }
    }

    /// The node process died in the middle of a roll: instances of an older definition are replaced.
    pub fn replace_outdated(&mut self, shell: &Shell) {
        let outdated = |instance: &&Instance| {
            instance.elsewhere.is_none()
                && instance.process.as_ref().is_some_and(|process| process.fingerprint != instance.plan.fingerprint())
        };
        let pending: BTreeSet<InstanceId> =
            self.instances.values().filter(outdated).map(|instance| instance.id().clone()).collect();
        if !pending.is_empty() {
            self.begin_roll(shell, RollKind::Restart(None), pending, BTreeSet::new(), Instant::now());
        }
    }

    /// The definition's probes changed: running processes are probed by the new ones from now on.
    pub fn refresh_probes(&mut self) {
        let now = Instant::now();
        for instance in self.instances.values_mut() {
            if let Some(process) = &mut instance.process {
                let ready = process.probes.is_ready();
                process.probes =
                    health::detect::Probes::new(&self.definition, self.is_routed, process.started, now, ready);
            }
        }
    }
}
