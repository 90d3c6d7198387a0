//! An instance's end, as the keeper reports it: wanted or not, what is said of it, and whether it starts again.
//! Continues `lifecycle` in the failure walk; the loss of a primary goes on in `promotion`.

use std::time::{Duration, Instant};

use model::config::RestartPolicy;
use model::{EventKind, Incarnation, InstanceId};
use observe::metrics::InstanceLabels;
use runtime::protocol::{Exit, ExitBy, Order};

use super::Service;
use crate::instance::{After, Stage};
use crate::ports::Ports;
use crate::shell::{Shell, Subject};

impl Service {
    /// The keeper reports an end.
    pub fn exited(
        &mut self,
        shell: &Shell,
        ports: &mut Ports,
        id: &InstanceId,
        incarnation: Incarnation,
        exit: &Exit,
        now: Instant,
    ) {
        let name = self.name.clone();
        let was_holder = self.is_holder(id);
        let Some(instance) = self.of(id, incarnation) else { return };
        shell.keeper.order(&Order::Forget { id: id.clone(), incarnation });
        let stage = instance.stage.clone();
        let ran =
            instance.process.take().map_or(Duration::ZERO, |process| now.saturating_duration_since(process.started));
        let subject = Subject::instance(&name, id);
        if exit.orphans > 0 {
            shell.emit(
                EventKind::OrphansKilled,
                subject,
                &instance.cause,
                format!("{id} left {} processes behind; they were ended", exit.orphans),
            );
        }
        let after = match stage {
            Stage::Draining(_, after) | Stage::PreStop(_, after) | Stage::Stopping(after) | Stage::Killing(after) => {
                Some(after)
            }
            _ => None,
        };
        match after {
            Some(After::Failed) => {
                self.say_stopped(shell, id, exit);
                self.start_again(shell, id, exit, ran, now);
            }
            Some(after) => self.stopped_on_purpose(shell, ports, id, exit, after),
            None => {
                self.died(shell, id, exit);
                self.start_again(shell, id, exit, ran, now);
                let cause = self.instances.get(id).map(|instance| instance.cause.clone()).unwrap_or_default();
                if was_holder {
                    self.primary_lost(shell, id, &cause, "it died", now);
                } else if let Some(promotion) = &mut self.promotion {
                    promotion.note_early_end(shell.holder(id.clone(), incarnation), cause);
                }
            }
        }
    }

    fn say_stopped(&mut self, shell: &Shell, id: &InstanceId, exit: &Exit) {
        let Some(instance) = self.instances.get_mut(id) else { return };
        let (kind, how) = match exit.by {
            ExitBy::Grace => {
                (EventKind::InstanceKilled, "did not stop within its grace period and was killed".to_owned())
            }
            ExitBy::Kill => (EventKind::InstanceKilled, "was killed".to_owned()),
            _ => (EventKind::InstanceStopped, format!("stopped ({})", exit.status)),
        };
        instance.note = Some(exit.status.clone());
        shell.emit(kind, Subject::instance(&self.name, id), &instance.cause, format!("{id} {how}"));
    }

    fn stopped_on_purpose(&mut self, shell: &Shell, ports: &mut Ports, id: &InstanceId, exit: &Exit, after: After) {
        self.say_stopped(shell, id, exit);
        let Some(instance) = self.instances.get_mut(id) else { return };
        match after {
            After::Start | After::Failed => {
                instance.streak.clear();
                instance.enter(Stage::Waiting);
            }
            After::Stay => instance.enter(Stage::Stopped),
            After::Remove => self.forget(shell, ports, id),
        }
    }

    fn died(&mut self, shell: &Shell, id: &InstanceId, exit: &Exit) {
        let name = self.name.clone();
        let Some(instance) = self.instances.get_mut(id) else { return };
        let subject = Subject::instance(&name, id);
        let cause = shell.new_cause();
        instance.cause.clone_from(&cause);
        let (kind, message) = match exit.by {
            ExitBy::NotStarted => (EventKind::InstanceStartFailed, format!("{id}: {}", exit.status)),
            ExitBy::Deadline => (
                EventKind::InstanceDied,
                format!("{id} was primary and its lease ran out while the node could not renew it; it was ended"),
            ),
            _ => (EventKind::InstanceDied, format!("{id} died: {}", exit.status)),
        };
        shell.emit(kind, subject, &cause, message);
        instance.note = Some(exit.status.clone());
    }

    /// It ended and was not meant to: what its restart policy says. One that its probes gave up has failed, whatever
    /// its exit code.
    fn start_again(&mut self, shell: &Shell, id: &InstanceId, exit: &Exit, ran: Duration, now: Instant) {
        let name = self.name.clone();
        let Some(instance) = self.instances.get_mut(id) else { return };
        let subject = Subject::instance(&name, id);
        let cause = instance.cause.clone();
        let again = match self.definition.restart_policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.code != Some(0) || exit.by != ExitBy::Itself,
            RestartPolicy::Never => false,
        };
        if again {
            let pause = instance.streak.exited(ran, &self.definition.restart_backoff);
            instance.restarts += 1;
            let labels = InstanceLabels { service: name.to_string(), instance: id.to_string() };
            shell.metrics.restarts.get_or_create(&labels).inc();
            instance.note = Some(format!("{}; starts again in {} ms", exit.status, pause.as_millis()));
            if instance.streak.just_became_loop() {
                let message = format!(
                    "{id} has ended {} times in a row ({}); next start in {} ms: see `seawall logs {name} --instance {id}`",
                    instance.streak.exits(),
                    exit.status,
                    pause.as_millis()
                );
                shell.emit(EventKind::CrashLoop, subject, &cause, message);
            }
            instance.enter(Stage::BackOff(now + pause));
        } else {
            instance.enter(Stage::Stopped);
        }
    }

    /// A tree is still there long after it was killed.
    pub fn unkillable(&mut self, shell: &Shell, id: &InstanceId, incarnation: Incarnation, message: &str) {
        let name = self.name.clone();
        let Some(instance) = self.of(id, incarnation) else { return };
        instance.note = Some(format!("{message}; nothing may take its place"));
        if instance.stage == Stage::Stuck {
            return;
        }
        instance.enter(Stage::Stuck);
        let text = format!(
            "{id}: {message}; nobody takes its place on this node until it is gone: look for a process in uninterruptible sleep (`ps -o pid,stat,wchan`)"
        );
        shell.emit(EventKind::InstanceUnkillable, Subject::instance(&name, id), &instance.cause, text);
    }
}
