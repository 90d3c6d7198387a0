//! A breaker of its own for each instance of a service: one that fails gets no requests for a while, the others do.
//! Balance heeds it by one atomic; the forward step asks it before an attempt and tells it how that ended. If all of a
//! service's instances are shut out, the service is: the last one is no exception, as with a breaker of the service.
//! Deliberately absent: thresholds and states (`guard::breaker`), and ejection, which spares the last one (`ejections.rs`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use guard::breaker::{BreakerPolicy, Ending, Forced, Pass, State, Turn};
use model::InstanceId;

use super::ejections::has_come_back;
use super::gate::Gate;
use super::{BreakerView, Guards, Note, Notes};
use crate::service::{Instance, Resolved, Service};
use crate::worker::Worker;

/// What an instance carries for this: nothing until it is asked first.
#[derive(Debug, Default)]
pub(crate) struct Fuse(OnceLock<Box<Gate>>);

impl Fuse {
    /// Whether it lets nobody through.
    pub(crate) fn is_shut(&self, now_ms: u64) -> bool {
        self.0.get().is_some_and(|gate| gate.is_shut(now_ms))
    }

    /// For how many milliseconds it lets nobody through.
    pub(crate) fn shut_for_ms(&self, now_ms: u64) -> u64 {
        self.0.get().map_or(0, |gate| gate.shut_until_ms().saturating_sub(now_ms))
    }

    fn reset(&self, policy: &BreakerPolicy) {
        if let Some(gate) = self.0.get() {
            gate.reset(policy);
        }
    }
}

/// The breaker of an instance at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceBreakerView {
    /// Whose.
    pub instance: InstanceId,
    /// How it stands.
    pub breaker: BreakerView,
}

/// The breakers of a service's instances that are not closed, and whether they are heeded.
#[derive(Debug, Default)]
pub(super) struct Fuses {
    tripped: Mutex<BTreeMap<u64, Arc<Instance>>>,
    /// An operator has said that everything passes.
    bridged: AtomicBool,
}

/// An attempt that an instance's breaker has let through. Dropped without a word it tells nothing.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Nobody where there is no breaker, and once it is told how it ended.
    instance: Option<Arc<Instance>>,
    pass: Pass,
}

/// The instance's breaker lets nobody through: another instance is to be chosen.
#[derive(Debug)]
pub(crate) struct Shut;

/// Asks the breaker of `instance`, if it has one; none is heeded where nothing guards the service.
pub(crate) fn ask(
    worker: &Worker,
    (service, guards): (&Service, Option<&Guards>),
    instance: &Arc<Instance>,
    now: Instant,
) -> Result<Passed, Shut> {
    let has_fuses = |guards: &&Guards| guards.fuses.as_ref().is_some_and(|fuses| !fuses.is_bridged());
    let Some(guards) = guards.filter(has_fuses) else { return Ok(Passed::default()) };
    let Some(policy) = &guards.told.breaker else { return Ok(Passed::default()) };
    let gate = instance.fuse.0.get_or_init(|| Box::new(Gate::new(policy)));
    let (asked, turn) = gate.ask(policy, now);
    if let Some(turn) = turn {
        turned(worker, service, guards, instance, turn);
    }
    let pass = asked.map_err(|_| Shut)?;
    Ok(Passed { instance: Some(instance.clone()), pass })
}

impl Passed {
    /// How the attempt ended that began at `begun`; its answer came after `took`, or it has taken until now.
    pub(crate) fn ended(
        mut self,
        worker: &Worker,
        service: &Service,
        failed: bool,
        (begun, took): (Instant, Option<Duration>),
    ) {
        // Services whose instances have no breakers pay no more.
        if self.instance.is_none() {
            return;
        }
        let guards = service.guards.load();
        let policy = guards.as_ref().filter(|guards| guards.fuses.is_some());
        let Some((guards, policy)) = policy.and_then(|guards| Some((guards, guards.told.breaker.as_ref()?))) else {
            return;
        };
        let Some(instance) = self.instance.take() else { return };
        let Some(gate) = instance.fuse.0.get() else { return };
        let now = Instant::now();
        let took = took.unwrap_or_else(|| now.saturating_duration_since(begun));
        if let Some(turn) = gate.ended(policy, self.pass, Ending::Answered { failed, took }, now) {
            turned(worker, service, guards, &instance, turn);
        }
    }
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(gate) = self.instance.as_ref().and_then(|instance| instance.fuse.0.get()) {
            gate.forget(self.pass);
        }
    }
}

fn turned(worker: &Worker, service: &Service, guards: &Guards, instance: &Arc<Instance>, turn: Turn) {
    guards.numbers.breaker_turns[turn.to as usize].fetch_add(1, Ordering::Relaxed);
    if let Some(fuses) = &guards.fuses {
        match turn.to {
            State::Closed => drop(fuses.lock().remove(&instance.key)),
            State::Open | State::HalfOpen => drop(fuses.lock().insert(instance.key, instance.clone())),
        }
    }
    service.notes.add(Note::InstanceBreaker(instance.id.clone(), turn));
    worker.tell_guarded(service);
}

impl Fuses {
    /// An operator's word: whatever it is, what was counted before it says nothing any more.
    pub(super) fn force(&self, policy: &BreakerPolicy, forced: Option<Forced>) {
        self.bridged.store(forced == Some(Forced::Closed), Ordering::Relaxed);
        std::mem::take(&mut *self.lock()).values().for_each(|instance| instance.fuse.reset(policy));
    }

    /// Endpoints were swapped: who was away and is ready is another process, or a better one.
    pub(super) fn swapped(&self, policy: &BreakerPolicy, before: &Resolved, after: &Resolved, notes: &Notes) {
        self.lock().retain(|key, instance| {
            let is_another = has_come_back(*key, before, after);
            if is_another {
                let from = instance.fuse.0.get().map_or(State::Closed, |gate| gate.view().state);
                instance.fuse.reset(policy);
                notes.add(Note::InstanceBreaker(instance.id.clone(), Turn { from, to: State::Closed, why: None }));
            }
            !is_another
        });
    }

    /// Forgets instances that have left.
    pub(super) fn forget_left(&self) {
        self.lock().retain(|_, instance| !instance.removed.load(Ordering::Relaxed));
    }

    /// How many are in this state.
    pub(super) fn count(&self, state: State) -> usize {
        let is_in = |instance: &&Arc<Instance>| instance.fuse.0.get().is_some_and(|gate| gate.view().state == state);
        self.lock().values().filter(is_in).count()
    }

    fn is_bridged(&self) -> bool {
        self.bridged.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Instance>>> {
        self.tripped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Other guards are in force: breakers of instances are counted by them, or gone.
    pub(super) fn set_fuses(&self, before: Option<&Guards>, after: Option<&Guards>) {
        let had = before.and_then(|before| before.fuses.as_ref().and(before.told.breaker.as_ref()));
        let has = after.and_then(|after| after.fuses.as_ref().and(after.told.breaker.as_ref()));
        if had == has {
            return;
        }
        for instance in self.lock().by_id.values() {
            match (has, instance.fuse.0.get(), had) {
                (Some(policy), Some(gate), _) => gate.adopt_in_place(policy),
                (None, Some(gate), Some(policy)) => gate.reset(policy),
                _ => {}
            }
        }
    }

    /// Each instance's breaker as it is now.
    pub(super) fn fuse_views(&self) -> Vec<InstanceBreakerView> {
        let resolved = self.resolved();
        let view = |instance: &Arc<Instance>| {
            let breaker = instance.fuse.0.get()?.view();
            Some(InstanceBreakerView { instance: instance.id.clone(), breaker })
        };
        resolved.instances.iter().filter_map(view).collect()
    }

    /// A request was turned away because all instances are shut out.
    pub(crate) fn count_shut_out(&self) {
        if let Some(guards) = self.guards.load().as_ref() {
            guards.numbers.breaker_refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}
