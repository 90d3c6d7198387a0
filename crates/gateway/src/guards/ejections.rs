//! Instances that fail request after request, and get none for a while. Failures in a row are counted in an atomic of the
//! instance; only the one that is too much takes the lock. Told by the forward step, heeded by balance, which reads one
//! more atomic. Deliberately absent: how many and for how long (`guard::outlier`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use guard::outlier::{Census, Outlier};
use model::InstanceId;

use super::Note;
use super::notes::Notes;
use crate::service::{Instance, Readiness, Resolved, Service, millis};
use crate::shares::eligible;
use crate::worker::Worker;

/// What an instance carries for this.
#[derive(Debug, Default)]
pub(crate) struct Row {
    /// Failures since the last success.
    errors: AtomicU32,
    /// Milliseconds at which the first of them was, where they are counted within a time.
    first_ms: AtomicU64,
    /// Milliseconds (of [`millis`]) until which it is ejected; zero: it is not.
    until_ms: AtomicU64,
}

impl Row {
    pub(crate) fn is_ejected(&self, now_ms: u64) -> bool {
        self.until_ms.load(Ordering::Relaxed) > now_ms
    }
}

/// An instance that gets no requests for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EjectedView {
    /// Which.
    pub instance: InstanceId,
    /// Since when.
    pub since: SystemTime,
    /// For how long.
    pub length: Duration,
    /// What the last of its failures was.
    pub why: &'static str,
    /// How many there were in a row.
    pub errors: u32,
    /// How often in a row it was ejected.
    pub times: u32,
}

/// A service's ejected instances, and those that were not long ago.
#[derive(Debug, Default)]
pub(crate) struct Ejections {
    held: Mutex<BTreeMap<u64, Held>>,
    pub(crate) count: AtomicU64,
}

#[derive(Debug)]
struct Held {
    instance: Arc<Instance>,
    outlier: Outlier,
    view: EjectedView,
}

/// A request at `instance` has ended, by the service's fault if `failure` says how.
pub(crate) fn judge(worker: &Worker, service: &Service, instance: &Arc<Instance>, failure: Option<&'static str>) {
    let Some(why) = failure else {
        if instance.row.errors.load(Ordering::Relaxed) != 0 && !counts_within_a_time(service) {
            instance.row.errors.store(0, Ordering::Relaxed);
        }
        return;
    };
    let Some(guards) = service.guards.load_full() else { return };
    let (Some(policy), Some(ejections)) = (&guards.told.outlier, &guards.ejections) else { return };
    if why == SERVER_ERROR && !policy.server_errors {
        return;
    }
    if let Some(within) = policy.within {
        let now_ms = millis(Instant::now());
        let begun = instance.row.first_ms.load(Ordering::Relaxed);
        if instance.row.errors.load(Ordering::Relaxed) == 0
            || u128::from(now_ms - begun.min(now_ms)) > within.as_millis()
        {
            instance.row.errors.store(0, Ordering::Relaxed);
            instance.row.first_ms.store(now_ms, Ordering::Relaxed);
        }
    }
    let errors = instance.row.errors.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    if errors < policy.consecutive_errors.max(1) {
        return;
    }
    let now = Instant::now();
    let mut held = ejections.lock();
    let now_ms = millis(now);
    if instance.row.is_ejected(now_ms) || !policy.may_eject(census(&service.resolved(), now_ms)) {
        return;
    }
    let view = EjectedView {
        instance: instance.id.clone(),
        since: SystemTime::now(),
        length: Duration::ZERO,
        why,
        errors,
        times: 0,
    };
    let known = held.entry(instance.key).or_insert_with(|| Held {
        instance: instance.clone(),
        outlier: Outlier::default(),
        view: view.clone(),
    });
    // Nobody has looked since its time was over.
    if known.outlier.returns(now) {
        service.notes.add(Note::Returned(instance.id.clone()));
    }
    let length = known.outlier.eject(policy, now);
    known.view = EjectedView { length, times: known.outlier.times(), ..view };
    // The millisecond in which it is over counts as a part of it: whoever sees no ejection may say so.
    instance.row.until_ms.store(millis(now + length) + 1, Ordering::Relaxed);
    instance.row.errors.store(0, Ordering::Relaxed);
    ejections.count.fetch_add(1, Ordering::Relaxed);
    service.notes.add(Note::Ejected(known.view.clone()));
    drop(held);
    worker.tell_guarded(service);
}

/// What is said of an answer of 500 or more.
const SERVER_ERROR: &str = "5xx";

/// A success does not make good what came before it.
fn counts_within_a_time(service: &Service) -> bool {
    let guards = service.guards.load();
    guards.as_ref().and_then(|guards| guards.told.outlier.as_ref()).is_some_and(|policy| policy.within.is_some())
}

/// Who is there, by the endpoints in force.
pub(crate) fn census(resolved: &Resolved, now_ms: u64) -> Census {
    let mut census = Census::default();
    for (endpoint, instance) in resolved.told.endpoints.iter().zip(&resolved.instances) {
        let ejected = instance.row.is_ejected(now_ms);
        census.all += usize::from(endpoint.weight > 0);
        census.ejected += usize::from(ejected);
        census.serving += usize::from(!ejected && eligible(&resolved.told, endpoint, None));
    }
    census
}

/// Whether an instance was away before a swap of endpoints, and is ready after it.
pub(super) fn has_come_back(key: u64, before: &Resolved, after: &Resolved) -> bool {
    let is_ready = |resolved: &Resolved| {
        let place = resolved.instances.iter().position(|instance| instance.key == key);
        place.is_some_and(|place| resolved.told.endpoints[place].readiness == Readiness::Ready)
    };
    !is_ready(before) && is_ready(after)
}

impl Ejections {
    /// Notes whose time is over, and forgets those who have left.
    pub(super) fn sweep(&self, notes: &Notes, now: Instant) {
        self.lock().retain(|_, held| {
            if held.outlier.returns(now) {
                notes.add(Note::Returned(held.view.instance.clone()));
            }
            !held.instance.removed.load(Ordering::Relaxed)
        });
    }

    /// Endpoints were swapped: who was away and is ready is another process, or a better one.
    pub(crate) fn swapped(&self, before: &Resolved, after: &Resolved, notes: &Notes) {
        for (key, held) in self.lock().iter_mut() {
            if held.outlier.until().is_some() && has_come_back(*key, before, after) {
                held.end();
                notes.add(Note::Returned(held.view.instance.clone()));
            }
        }
    }

    /// Nobody is ejected any more.
    pub(super) fn end_all(&self) {
        self.lock().values_mut().for_each(Held::end);
    }

    pub(super) fn view(&self) -> Vec<EjectedView> {
        let now_ms = millis(Instant::now());
        let held = self.lock();
        held.values().filter(|held| held.instance.row.is_ejected(now_ms)).map(|held| held.view.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn end(&mut self) {
        self.outlier = Outlier::default();
        self.instance.row.until_ms.store(0, Ordering::Relaxed);
        self.instance.row.errors.store(0, Ordering::Relaxed);
    }
}
