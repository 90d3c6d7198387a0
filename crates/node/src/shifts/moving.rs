//! How a shift moves by itself: what all gateways have counted is held against the step's gates, and what follows is
//! committed. On the leader, or on a machine by itself; a new leader goes on with the step as it is.
//! Deliberately absent: the judgement (`traffic::shift`), and changes by hand (`verbs.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use data::{Compare, Revision, Txn, TxnOutcome};
use model::config::{Gates, PlannedStep, ShiftPlan};
use model::{EventKind, ServiceName};
use tokio::sync::oneshot;
use traffic::shift::{Gates as Limits, Judge, Seen, Terms, Verdict};

use super::record::{Phase, ShiftRecord, shift_key};
use super::{Shifting, decides, void};
use crate::controller::Controller;
use crate::input::Input;
use crate::shell::{Outcome, Shell, Subject};

/// A step is looked at this often while it is judged: one that cannot pass any more ends within this and a commit.
const LOOK: Duration = Duration::from_millis(100);

/// After a change that was not committed.
const AGAIN: Duration = Duration::from_millis(200);

/// Who is told what became of a change.
pub type Reply = Option<oneshot::Sender<Result<api::view::ShiftView, api::Refusal>>>;

impl Controller {
    /// Looks at every shift: moves what is due, and measures.
    pub fn step_shifts(&mut self, now: Instant) {
        let names: BTreeSet<ServiceName> =
            self.shifts.0.keys().cloned().chain(self.pace.backed.iter().cloned()).collect();
        for name in names {
            self.measure(&name, now);
            if decides(&self.shell) && !self.shell.stopping {
                if !self.back_up(&name, now) {
                    self.move_shift(&name, now);
                }
            } else if let Some(shifting) = self.shifts.0.get_mut(&name) {
                // Whoever leads next begins anew.
                (shifting.judge, shifting.restarts, shifting.healthy) = (None, None, None);
            }
        }
    }

    /// When to look again, apart from inputs.
    pub fn next_shift_look(&self, now: Instant) -> Option<Instant> {
        let runs = self.shifts.0.values().any(|shifting| {
            shifting.record.phase == Phase::Running
                || (shifting.record.auto.is_some() && shifting.record.phase != Phase::Cleared)
        });
        runs.then(|| now + LOOK)
    }

    fn move_shift(&mut self, name: &ServiceName, now: Instant) {
        if self.is_busy(name, now) {
            return;
        }
        let restarts = self.restarts_of(name);
        let Some(shifting) = self.shifts.0.get_mut(name) else { return };
        if shifting.record.phase != Phase::Cleared
            && let Some(why) = void(&self.config, name, &shifting.record)
        {
            return self.end_void(name, &why);
        }
        if shifting.record.phase != Phase::Running {
            return;
        }
        let Ok(plan) = shifting.record.plan() else { return };
        let Some(step) = plan.steps.get(shifting.record.step) else { return };
        let begun = shifting.restarts.get_or_insert_with(|| restarts.clone());
        let restarted =
            restarts.iter().map(|(id, count)| count.saturating_sub(begun.get(id).copied().unwrap_or(*count))).sum();
        let seen = shifting.seen(restarted);
        let judge = shifting.judge.get_or_insert_with(|| Judge::begin(now));
        let verdict = judge.judge(&terms(&plan), &limits(step), &seen, now);
        let word = judge.word.clone();
        let record = match verdict {
            Verdict::Wait => return,
            Verdict::Advance => advanced(&self.shell, name, &shifting.record, &plan, &word),
            Verdict::RollBack(why) => {
                let message = format!(
                    "all requests for {name} go where they went before the shift to {}, of which {} % had gone there: {why}",
                    shifting.record.to, shifting.record.percent
                );
                let next = ShiftRecord { phase: Phase::RolledBack, percent: 0, why, ..shifting.record.clone() };
                changed(&self.shell, name, next, EventKind::ShiftRolledBack, message)
            }
            Verdict::Pause(why) => {
                let message = format!(
                    "the shift of {name} to {} stays at {} %: {why}; `seawall shift {name} resume` or `abort`",
                    shifting.record.to, shifting.record.percent
                );
                let next = ShiftRecord { phase: Phase::Paused, why, ..shifting.record.clone() };
                changed(&self.shell, name, next, EventKind::ShiftPaused, message)
            }
        };
        self.commit_shift(name.clone(), record, None);
    }

    /// A change of it is on its way, or has just failed.
    pub(super) fn is_busy(&self, name: &ServiceName, now: Instant) -> bool {
        let busy = self.shifts.0.get(name).and_then(|shifting| shifting.busy);
        busy.is_some_and(|until| until.is_none_or(|until| until > now))
    }

    /// The configuration has no room for it any more.
    fn end_void(&mut self, name: &ServiceName, why: &str) {
        let Some(shifting) = self.shifts.0.get(name) else { return };
        let next = ShiftRecord { phase: Phase::Cleared, percent: 0, why: why.to_owned(), ..shifting.record.clone() };
        let message = format!("the shift of {name} to {} is over: {why}", shifting.record.to);
        let record = changed(&self.shell, name, next, EventKind::ShiftAborted, message);
        self.commit_shift(name.clone(), record, None);
    }

    /// Puts a record to the store, if the one before is still what it was.
    pub(super) fn commit_shift(&mut self, service: ServiceName, record: ShiftRecord, reply: Reply) {
        let key = shift_key(&service);
        let known = self.shifts.0.get_mut(&service);
        let compare = match &known {
            Some(known) => Compare::mod_revision(key.clone(), known.at),
            None => Compare::absent(key.clone()),
        };
        if let Some(known) = known {
            known.busy = Some(None);
        }
        let value = serde_json::to_vec(&record).expect("a record always becomes JSON");
        let (store, txn) = (Arc::clone(&self.shell.store), Txn::put(key, value).when(compare));
        self.shell.spawn(async move {
            let outcome = store.txn(txn).await;
            Input::ShiftSaid { service, record: Box::new(record), reply, outcome }
        });
    }

    /// A change was committed, or was not.
    pub fn shift_said(
        &mut self,
        service: &ServiceName,
        record: ShiftRecord,
        reply: Reply,
        outcome: &Outcome,
        now: Instant,
    ) {
        if let Some(shifting) = self.shifts.0.get_mut(service) {
            let committed = matches!(outcome, Ok(TxnOutcome::Committed { .. }));
            shifting.busy = (!committed).then_some(Some(now + AGAIN));
        }
        let problem = match outcome {
            Ok(TxnOutcome::Committed { revision, .. }) => {
                self.shift_is(service, record, Revision(revision.0));
                None
            }
            Ok(TxnOutcome::Rejected { .. }) => Some("it has just been changed by somebody else".to_owned()),
            Ok(TxnOutcome::Unknown) => Some("nobody knows whether it was written".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        let Some(reply) = reply else { return };
        let answer = match (problem, self.shifts.view(service)) {
            (None, view) => Ok(view.unwrap_or_default()),
            (Some(why), _) => Err(api::Refusal {
                kind: api::RefusalKind::Failed,
                message: format!("{why}; see `seawall shift {service} status` and ask again"),
            }),
        };
        self.shell.answer(reply, answer);
    }
}

impl Shifting {
    /// What all gateways and instances show of this stretch.
    pub(super) fn seen(&self, restarts: u32) -> Seen {
        let mut totals = self.tally.read();
        let (mut cpu, mut series) = (self.readings.cpu(), self.readings.series());
        for measure in self.heard.values() {
            totals.add(&measure.totals());
            cpu.join(measure.cpu);
            series.iter_mut().zip(&measure.series).for_each(|(sum, other)| sum.join(*other));
        }
        Seen {
            totals,
            restarts,
            cpu: cpu.average().map(|part| (part * 1e6) as u32),
            series: series.into_iter().map(super::record::Sum::average).collect(),
        }
    }
}

/// The next step, or the end.
fn advanced(shell: &Shell, name: &ServiceName, record: &ShiftRecord, plan: &ShiftPlan, word: &str) -> ShiftRecord {
    let to = &record.to;
    match plan.steps.get(record.step + 1) {
        Some(next) => {
            let message =
                format!("{} % of the requests for {name} go to {to}; at {} %: {word}", next.percent, record.percent);
            let next = ShiftRecord {
                step: record.step + 1,
                percent: next.percent,
                run: 0,
                why: format!("at {} %: {word}", record.percent),
                ..record.clone()
            };
            changed(shell, name, next, EventKind::ShiftStepped, message)
        }
        None => {
            let message = format!("the shift of {name} to {to} is complete: {word}");
            let next = ShiftRecord { phase: Phase::Done, why: word.to_owned(), ..record.clone() };
            changed(shell, name, next, EventKind::ShiftFinished, message)
        }
    }
}

/// The record with its event.
pub(super) fn changed(
    shell: &Shell,
    name: &ServiceName,
    record: ShiftRecord,
    kind: EventKind,
    message: String,
) -> ShiftRecord {
    let event = shell.event(kind, Subject::service(name), &record.cause, message);
    ShiftRecord { since: event.at.clone(), event, ..record }
}

pub(super) fn terms(plan: &ShiftPlan) -> Terms {
    Terms { every: plan.every, min_requests: plan.min_requests.into(), patience: plan.patience }
}

pub(super) fn limits(step: &PlannedStep) -> Limits {
    let Gates { error_rate, success_rate, p50, p99, restarts, cpu, series, .. } = &step.gates;
    let bound = |series: &model::config::SeriesGate| {
        let unit = if series.max_per_second.is_some() { " a second" } else { "" };
        (format!("{}{unit}", series.names.0.join(" or ")), series.max_per_second.or(series.max).unwrap_or(f64::MAX))
    };
    Limits {
        hold: step.hold,
        error_rate: error_rate.map(|ratio| ratio.0),
        success_rate: success_rate.map(|ratio| ratio.0),
        p50: *p50,
        p99: *p99,
        restarts: *restarts,
        cpu: cpu.map(|ratio| ratio.0),
        series: series.iter().map(bound).collect(),
    }
}
