//! The way to a backup and back: the breaker of a service opens, its fallback answers meanwhile, its requests go to a backup
//! by the steps of a shift, and come back the same way once it has been healthy for long enough. One chain of events.
//! On whoever moves shifts. Deliberately absent: the breaker (each gateway's own), the judgement (`traffic::shift`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gateway::breaker::{Forced, State};
use model::config::{Decode as _, Failover, PlannedStep};
use model::{EventKind, ServiceName};
use traffic::shift::{Judge, Verdict};

use super::moving::{changed, limits, terms};
use super::record::{Auto, Goal, Phase, ShiftRecord};
use super::void;
use crate::controller::Controller;

/// After a backup that failed, and after a way back that failed, the next attempt waits for so long at least.
const PAUSE: Duration = Duration::from_secs(30);

impl Controller {
    /// Moves what goes to a backup or comes back, and begins it. False: this service's shift is an operator's.
    pub(super) fn back_up(&mut self, name: &ServiceName, now: Instant) -> bool {
        let known = self.shifts.0.get(name).map(|shifting| &shifting.record);
        let automatic = known.filter(|record| record.phase != Phase::Cleared && record.auto.is_some()).cloned();
        let Some(record) = automatic else {
            let may = known.is_none_or(|record| !record.phase.is_open());
            if may && let Some(cause) = self.breaker_open(name) {
                self.engage(name, cause, now);
            }
            return false;
        };
        if self.is_busy(name, now) {
            return true;
        }
        if let Some(why) = void(&self.config, name, &record) {
            let message = format!("requests for {name} go where routes say: {why}");
            let next = ended(&record, why);
            let next = changed(&self.shell, name, next, EventKind::BackupFailed, message);
            self.commit_shift(name.clone(), next, None);
            return true;
        }
        match record.phase {
            Phase::Running => self.move_backup(name, &record, now),
            Phase::Done => self.watch_primary(name, &record, now),
            Phase::RolledBack => self.try_again(name, &record, now),
            // An operator's word.
            Phase::Paused | Phase::Aborted | Phase::Cleared => {}
        }
        true
    }

    /// The breaker of a service is open in a gateway of the cluster: the chain of events that it is in.
    fn breaker_open(&self, name: &ServiceName) -> Option<String> {
        let service = self.services.get(name)?;
        if service.definition.traffic.as_ref().is_none_or(|traffic| traffic.backup.is_empty()) {
            return None;
        }
        let own = || service.open_breaker(&self.shell);
        let others = || self.world.iter().flat_map(|world| world.nodes.values());
        own().or_else(|| others().find_map(|node| node.open.get(name).cloned()))
    }

    /// Services with a backup whose breaker is open at this node's gateway.
    pub fn open_breakers(&self) -> BTreeMap<ServiceName, String> {
        let backed = self
            .services
            .values()
            .filter(|service| service.definition.traffic.as_ref().is_some_and(|traffic| !traffic.backup.is_empty()));
        backed.filter_map(|service| Some((service.name.clone(), service.open_breaker(&self.shell)?))).collect()
    }

    /// The first step to the first backup that has a ready instance.
    fn engage(&mut self, name: &ServiceName, cause: String, now: Instant) {
        let tried = self.shifts.0.get(name).and_then(|shifting| match (&shifting.record.to, shifting.record.phase) {
            (Goal::Service(backup), Phase::RolledBack) => Some(backup.clone()),
            _ => None,
        });
        if self.is_busy(name, now) {
            return;
        }
        let Some(traffic) = self.config.services.get(name).and_then(|service| service.traffic.as_ref()) else { return };
        let ready = |backup: &&ServiceName| self.services.get(*backup).is_some_and(|service| service.ready() > 0);
        let fit: Vec<&ServiceName> = traffic.backup.iter().filter(ready).collect();
        let Some(backup) = fit.iter().find(|backup| tried.as_ref() != Some(**backup)).or(fit.first()) else { return };
        let shift = traffic.failover.shift();
        let Some(first) = shift.plan().steps.first().cloned() else { return };
        // What an operator's shift has left is in force again when requests are back.
        let under = self.shifts.0.get(name).map(|shifting| &shifting.record).and_then(|record| match &record.auto {
            Some(auto) => auto.under.clone(),
            None => Some(record.clone()).filter(|record| record.phase != Phase::Cleared).map(Box::new),
        });
        let instead = if traffic.fallback.is_some() { "the fallback" } else { "503 breaker-open" };
        let message = format!(
            "the breaker of {name} is open: {} % of its requests go to {backup}, the others get {instead}",
            first.percent
        );
        let record = ShiftRecord {
            event: self.shell.event(EventKind::BackupEngaged, crate::shell::Subject::service(name), &cause, ""),
            cause,
            from: None,
            to: Goal::Service((*backup).clone()),
            captured: Vec::new(),
            only_from: false,
            plan: shift.encode(),
            step: 0,
            percent: first.percent,
            phase: Phase::Running,
            run: 0,
            since: String::new(),
            why: "the breaker is open".into(),
            auto: Some(Auto { back: false, under }),
        };
        let record = changed(&self.shell, name, record, EventKind::BackupEngaged, message);
        self.commit_shift(name.clone(), record, None);
    }

    /// An operator lets no requests through to it.
    fn is_closed_off(&self, name: &ServiceName) -> bool {
        self.shell.held_breakers.get(name) == Some(&Forced::Open)
    }

    /// One step, in either direction.
    fn move_backup(&mut self, name: &ServiceName, record: &ShiftRecord, now: Instant) {
        let Some(auto) = &record.auto else { return };
        let (Ok(plan), Goal::Service(backup)) = (record.plan(), &record.to) else { return };
        let Some(step) = plan.steps.get(record.step) else { return };
        let goal = if auto.back { name } else { backup };
        let has_ready = self.services.get(goal).is_some_and(|service| service.ready() > 0);
        let closed_off = auto.back && self.is_closed_off(name);
        let Some(shifting) = self.shifts.0.get_mut(name) else { return };
        let seen = shifting.seen(0);
        let judge = shifting.judge.get_or_insert_with(|| Judge::begin(now));
        let held = judge.held(step.hold, now);
        let verdict = match judge.judge(&terms(&plan), &limits(step), &seen, now) {
            _ if closed_off => Err("its breaker is held open by hand".to_owned()),
            // Nobody asks, so nothing is wrong.
            Verdict::Pause(why) if has_ready && held => Ok(why),
            Verdict::Pause(_) | Verdict::Wait => return,
            Verdict::Advance if !has_ready => return,
            Verdict::Advance => Ok(judge.word.clone()),
            Verdict::RollBack(why) => Err(why),
        };
        let next = match verdict {
            Ok(word) => self.further(name, record, plan.steps.get(record.step + 1), auto, &word),
            Err(why) if auto.back => {
                let message = format!("{name} has failed again: all of its requests stay with {backup}: {why}");
                let auto = Some(Auto { back: false, ..auto.clone() });
                let next = ShiftRecord { phase: Phase::Done, percent: 100, why, auto, ..record.clone() };
                changed(&self.shell, name, next, EventKind::FailBackFailed, message)
            }
            Err(why) => {
                let message = format!("{backup} fails as well, requests for {name} go where they went before: {why}");
                let next = ShiftRecord { phase: Phase::RolledBack, percent: 0, why, ..record.clone() };
                changed(&self.shell, name, next, EventKind::BackupFailed, message)
            }
        };
        self.commit_shift(name.clone(), next, None);
    }

    /// The next step, or the end of the way.
    fn further(
        &self,
        name: &ServiceName,
        record: &ShiftRecord,
        next: Option<&PlannedStep>,
        auto: &Auto,
        word: &str,
    ) -> ShiftRecord {
        let goal = if auto.back { name.to_string() } else { record.to.to_string() };
        let (step, full) = if auto.back {
            (EventKind::FailBackStepped, EventKind::FailBackFinished)
        } else {
            (EventKind::BackupStepped, EventKind::BackupFull)
        };
        match next {
            Some(next) => {
                let message = format!(
                    "{} % of the requests for {name} go to {goal}; at {} %: {word}",
                    next.percent, record.percent
                );
                let why = format!("at {} %: {word}", record.percent);
                let next = ShiftRecord { step: record.step + 1, percent: next.percent, run: 0, why, ..record.clone() };
                changed(&self.shell, name, next, step, message)
            }
            None if auto.back => {
                let message = format!("all requests for {name} are back from {}: {word}", record.to);
                changed(&self.shell, name, ended(record, word.to_owned()), full, message)
            }
            None => {
                let message = format!("all requests for {name} go to {goal}, which is healthy: {word}");
                let next = ShiftRecord { phase: Phase::Done, why: word.to_owned(), ..record.clone() };
                changed(&self.shell, name, next, full, message)
            }
        }
    }

    /// Whether the service has been healthy for long enough to have its requests back.
    fn watch_primary(&mut self, name: &ServiceName, record: &ShiftRecord, now: Instant) {
        let Some(service) = self.services.get(name) else { return };
        let least = usize::try_from(service.definition.min_available()).unwrap_or(usize::MAX).max(1);
        let healthy = service.ready() >= least && !self.is_closed_off(name);
        let traffic = service.definition.traffic.as_ref();
        let failover = traffic.map(|traffic| traffic.failover.clone()).unwrap_or_default();
        // Before that the breaker would let nobody through to see.
        let open_for =
            traffic.and_then(|traffic| traffic.circuit_breaker.as_ref()).map(|breaker| breaker.rule().open_for);
        let again = if record.event.kind == EventKind::FailBackFailed { PAUSE } else { Duration::ZERO };
        let Failover { fail_back_after, .. } = failover;
        let after = fail_back_after.max(open_for.unwrap_or_default()).max(again);
        let Some(shifting) = self.shifts.0.get_mut(name) else { return };
        let Some(since) = healthy.then_some(now) else {
            shifting.healthy = None;
            return;
        };
        let since = *shifting.healthy.get_or_insert(since);
        if now.saturating_duration_since(since) < after {
            return;
        }
        let (Some(auto), Ok(plan)) = (&record.auto, record.plan()) else { return };
        let Some(first) = plan.steps.first() else { return };
        let message = format!(
            "{name} has been healthy for {after:?}: {} % of its requests come back from {}",
            first.percent, record.to
        );
        let next = ShiftRecord {
            step: 0,
            percent: first.percent,
            phase: Phase::Running,
            why: format!("healthy for {after:?}"),
            auto: Some(Auto { back: true, ..auto.clone() }),
            run: record.run + 1,
            ..record.clone()
        };
        let next = changed(&self.shell, name, next, EventKind::FailBackStarted, message);
        self.commit_shift(name.clone(), next, None);
    }

    /// A backup failed: another one, or the same, after a while; nothing any more once the breaker has closed.
    fn try_again(&mut self, name: &ServiceName, record: &ShiftRecord, now: Instant) {
        let open = self.breaker_open(name);
        let Some(shifting) = self.shifts.0.get_mut(name) else { return };
        let since = *shifting.healthy.get_or_insert(now);
        match open {
            Some(_) if now.saturating_duration_since(since) < PAUSE => {}
            Some(_) => self.engage(name, record.cause.clone(), now),
            None if self.services.get(name).is_some_and(|service| service.ready() > 0) => {
                let message = format!("{name} answers again by itself");
                let next = ended(record, "its breaker has closed".into());
                let next = changed(&self.shell, name, next, EventKind::FailBackFinished, message);
                self.commit_shift(name.clone(), next, None);
            }
            None => {}
        }
    }
}

/// All requests are where they were before the breaker opened; what an operator had moved stays moved.
pub(super) fn ended(record: &ShiftRecord, why: String) -> ShiftRecord {
    match record.auto.as_ref().and_then(|auto| auto.under.clone()) {
        Some(under) => ShiftRecord { cause: record.cause.clone(), ..*under },
        None => ShiftRecord { phase: Phase::Cleared, percent: 0, why, ..record.clone() },
    }
}

impl crate::service::Service {
    /// The chain of events of this service's breaker, while it is open in this node's gateway.
    pub fn open_breaker(&self, shell: &crate::shell::Shell) -> Option<String> {
        let breaker = shell.table.service(&self.name).guards()?.breaker?;
        // Its event comes first: the chain is named there.
        (breaker.state == State::Open).then(|| self.breaker_cause()).filter(|cause| !cause.is_empty())
    }
}
