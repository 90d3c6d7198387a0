//! What guards a service's traffic: its breaker, its places, what is answered instead.
//! Between route and balance in the request walk: [`admit`] lets a request in, [`Admitted::ended`] tells the guards what
//! became of it. The policies are `guard`'s; here are their locks, wakers and counters. They belong to the service's
//! handle and survive every change of the policy. Deliberately absent: services without guards, which pay one look.

mod gate;
mod line;
mod notes;
mod page;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use guard::breaker::{BreakerPolicy, Ending, Forced, Pass, State, Why};
use guard::bulkhead::Entry;
use guard::{Deadline, Places};

use crate::answer::Answer;
use crate::connection::Client;
use crate::front::Front;
use crate::service::Service;
use crate::worker::Worker;
use gate::Gate;
use line::{Line, PendingEnd, Place};
pub use notes::Note;
pub(crate) use notes::Notes;
pub(crate) use page::{GuardPage, GuardSeries};

/// How a service's traffic is guarded. The default guards nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// When it gets no requests for a while.
    pub breaker: Option<BreakerPolicy>,
    /// How many requests it has at once, over all workers.
    pub concurrency: Option<Concurrency>,
    /// What is answered when it cannot.
    pub fallback: Option<Arc<Fallback>>,
}

/// A bulkhead and its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// How many at once, and how many wait.
    pub places: Places,
    /// How long one waits at most, within its deadline.
    pub max_wait: Duration,
}

/// A fixed answer instead of the gateway's own 503 or 504.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// Its status.
    pub status: u16,
    /// Its fields, none of them the gateway's own.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

/// One service's guards: what was told, and what they have seen.
#[derive(Debug)]
pub(crate) struct Guards {
    pub(crate) told: Traffic,
    gate: Option<Arc<Gate>>,
    line: Option<Arc<Line>>,
    pub(crate) numbers: Arc<Numbers>,
}

/// What the guards of a service have done.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    pub(crate) breaker_refused: AtomicU64,
    pub(crate) breaker_turns: [AtomicU64; 3],
    pub(crate) pending: [AtomicU64; line::PENDING_ENDS.len()],
    pub(crate) fallbacks: [AtomicU64; FALLBACK_REASONS.len()],
}

/// Reasons for which a fallback is answered: nobody was there, or nobody in time, and the client has seen nothing.
pub(crate) const FALLBACK_REASONS: [&str; 8] = [
    "breaker-open",
    "no-ready-instance",
    "held-too-long",
    "hold-full",
    "too-many-requests-pending",
    "pending-too-long",
    "connect-failed",
    "timeout",
];

/// A service has no breaker that could be forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no `traffic.circuitBreaker`")]
pub struct NoBreaker;

/// The guards of a service at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardsView {
    /// Its breaker.
    pub breaker: Option<BreakerView>,
    /// Its places.
    pub concurrency: Option<ConcurrencyView>,
}

/// A breaker at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerView {
    /// What it lets through.
    pub state: State,
    /// An operator's word.
    pub forced: Option<Forced>,
    /// Since when.
    pub since: SystemTime,
    /// Why it opened, unless it is closed.
    pub why: Option<Why>,
}

/// A bulkhead at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcurrencyView {
    /// Its bounds.
    pub places: Places,
    /// Requests that have a place.
    pub active: usize,
    /// Requests that wait for one.
    pub pending: usize,
}

impl Guards {
    /// Guards as told, with the state of those before, where they guard the same.
    fn new(told: Traffic, before: Option<&Self>) -> Self {
        let gate = told.breaker.as_ref().map(|policy| match before.and_then(|before| before.gate.clone()) {
            Some(gate) => gate.adopt(policy),
            None => Arc::new(Gate::new(policy)),
        });
        let line = told.concurrency.map(|concurrency| match before.and_then(|before| before.line.clone()) {
            Some(line) => line.adopt(concurrency.places),
            None => Arc::new(Line::new(concurrency.places)),
        });
        let numbers = before.map_or_else(Arc::default, |before| before.numbers.clone());
        Self { told, gate, line, numbers }
    }

    /// Counts a fallback for `reason`.
    pub(crate) fn fell_back(&self, reason: &str) {
        if let Some(index) = FALLBACK_REASONS.iter().position(|known| *known == reason) {
            self.numbers.fallbacks[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn view(&self) -> GuardsView {
        GuardsView {
            breaker: self.gate.as_ref().map(|gate| gate.view()),
            concurrency: self.line.as_ref().map(|line| line.view()),
        }
    }
}

impl Service {
    /// Puts guards in force for requests that come from now on. What guards have counted stays as far as they guard
    /// the same as before.
    pub fn set_traffic(&self, told: Option<Traffic>) {
        let before = self.guards.load_full();
        let guards = told.map(|told| Arc::new(Guards::new(told, before.as_deref())));
        self.all_metrics.guards(self.name(), guards.clone());
        self.guards.store(guards);
    }

    /// An operator's word about the breaker; `None` takes it back.
    ///
    /// # Errors
    /// [`NoBreaker`]; nothing has changed.
    pub fn force_breaker(&self, forced: Option<Forced>) -> Result<BreakerView, NoBreaker> {
        let guards = self.guards.load_full().ok_or(NoBreaker)?;
        let (Some(gate), Some(policy)) = (&guards.gate, &guards.told.breaker) else { return Err(NoBreaker) };
        let known = gate.view().forced;
        if let Some(turn) = gate.force(policy, forced) {
            guards.numbers.breaker_turns[turn.to as usize].fetch_add(1, Ordering::Relaxed);
        }
        if known != forced {
            self.notes.add(Note::Forced(forced));
        }
        Ok(gate.view())
    }

    /// The guards as they are now; `None` without any.
    pub fn guards(&self) -> Option<GuardsView> {
        self.guards.load_full().map(|guards| guards.view())
    }

    /// What guards did since this was asked last, oldest first.
    pub fn take_notes(&self) -> Vec<Note> {
        self.notes.take()
    }
}

/// A request's way past the guards. Dropped without a word it counts as one that told nothing.
pub(crate) struct Admitted {
    guards: Arc<Guards>,
    service: Arc<Service>,
    pass: Option<Pass>,
    /// Given back when it is dropped.
    place: Option<Place>,
    begun: Instant,
}

/// Why a request does not get past the guards.
#[derive(Debug)]
pub(crate) enum Refusal {
    Answer(Answer),
    /// Its client left.
    Gone,
}

/// Lets a request in, or says why not. `None`: nothing guards its service.
pub(crate) async fn admit<S: Front>(
    worker: &Worker,
    client: &mut Client<S>,
    service: &Arc<Service>,
    deadline: Deadline,
) -> Result<Option<Box<Admitted>>, Refusal> {
    let Some(guards) = service.guards.load_full() else { return Ok(None) };
    let mut admitted =
        Box::new(Admitted { guards, service: service.clone(), pass: None, place: None, begun: Instant::now() });
    admitted.pass_gate(worker)?;
    match admitted.enter_line() {
        Entry::In => Ok(Some(admitted)),
        Entry::Full => Err(Refusal::Answer(Answer::PENDING_FULL)),
        // Boxed, because it is rare: every connection would have room for it.
        Entry::Waits(waiter) => match Box::pin(admitted.wait(worker, client, waiter, deadline)).await {
            Ok(()) => Ok(Some(admitted)),
            Err(PendingEnd::Gone) => Err(Refusal::Gone),
            Err(PendingEnd::Deadline) => Err(Refusal::Answer(Answer::TIMEOUT)),
            Err(_) => Err(Refusal::Answer(Answer::PENDING_TOO_LONG)),
        },
    }
}

impl Admitted {
    fn pass_gate(&mut self, worker: &Worker) -> Result<(), Refusal> {
        let (Some(gate), Some(policy)) = (&self.guards.gate, &self.guards.told.breaker) else { return Ok(()) };
        let (asked, turn) = gate.ask(policy, self.begun);
        if let Some(turn) = turn {
            self.turned(worker, turn);
        }
        match asked {
            Ok(pass) => {
                self.pass = Some(pass);
                Ok(())
            }
            Err(refused) => {
                self.guards.numbers.breaker_refused.fetch_add(1, Ordering::Relaxed);
                Err(Refusal::Answer(Answer::breaker_open(refused.0)))
            }
        }
    }

    fn enter_line(&mut self) -> Entry {
        let Some(line) = &self.guards.line else { return Entry::In };
        let entry = line.enter();
        match entry {
            Entry::In => self.place = Some(Place::new(line.clone())),
            Entry::Full => self.count(PendingEnd::Full),
            Entry::Waits(_) => {}
        }
        entry
    }

    async fn wait<S: Front>(
        &mut self,
        worker: &Worker,
        client: &mut Client<S>,
        waiter: guard::bulkhead::Waiter,
        deadline: Deadline,
    ) -> Result<(), PendingEnd> {
        let (Some(line), Some(concurrency)) = (self.guards.line.clone(), self.guards.told.concurrency) else {
            return Ok(());
        };
        let until = self.begun.checked_add(concurrency.max_wait);
        let waited = line::wait(worker, client, line, waiter, until, deadline).await;
        self.count(waited.as_ref().err().copied().unwrap_or(PendingEnd::Placed));
        self.place = Some(waited?);
        Ok(())
    }

    fn count(&self, end: PendingEnd) {
        self.guards.numbers.pending[end as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn turned(&self, worker: &Worker, turn: guard::breaker::Turn) {
        self.guards.numbers.breaker_turns[turn.to as usize].fetch_add(1, Ordering::Relaxed);
        self.service.notes.add(Note::Breaker(turn));
        worker.tell_guarded(&self.service);
    }

    /// How the request ended: its answer came after `took`, or it has taken its whole time until now.
    pub(crate) fn ended(&mut self, worker: &Worker, failed: Option<bool>, took: Option<Duration>) {
        let Some(pass) = self.pass.take() else { return };
        let (Some(gate), Some(policy)) = (&self.guards.gate, &self.guards.told.breaker) else { return };
        let now = Instant::now();
        let took = took.unwrap_or_else(|| now.saturating_duration_since(self.begun));
        let ending = failed.map_or(Ending::Unknown, |failed| Ending::Answered { failed, took });
        if let Some(turn) = gate.ended(policy, pass, ending, now) {
            self.turned(worker, turn);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        if let (Some(gate), Some(policy)) = (&self.guards.gate, &self.guards.told.breaker) {
            gate.ended(policy, pass, Ending::Unknown, Instant::now());
        }
    }
}
