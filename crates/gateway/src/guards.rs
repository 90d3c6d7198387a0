//! What guards a service's traffic: its rate limit, its breaker, its places, ejected instances, what is answered instead.
//! Between route and balance in the request walk: [`admit`] lets a request in, [`Held::ended`] tells the guards what
//! became of it. The policies are `guard`'s; here are their locks, wakers and counters. They belong to the service's
//! handle and survive every change of the policy. Deliberately absent: services without guards, which pay one look.

mod admitted;
mod again;
mod at_once;
mod ejections;
mod fuse;
mod gate;
mod kept;
mod key;
mod limit;
mod line;
mod notes;
mod page;
mod refusals;
mod scope;
mod tuner;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use guard::breaker::{BreakerPolicy, Forced, State, Why};
use guard::{AdaptivePolicy, OutlierPolicy, Places, RetryBudget};
use model::ServiceName;

use crate::service::{Resolved, Service};
pub(crate) use admitted::{Admitted, Held, Refusal, Spared, admit, pause};
pub(crate) use again::Again;
use at_once::Bound;
pub use at_once::{AtOnce, AtOnceView};
pub use ejections::EjectedView;
pub(crate) use ejections::{Ejections, Row, judge};
pub(crate) use fuse::Fuse;
use fuse::Fuses;
pub use fuse::InstanceBreakerView;
pub(crate) use fuse::ask as ask_instance;
use gate::Gate;
pub use kept::KeepPolicy;
use kept::Kept;
pub(crate) use kept::{Keeping, KeptAnswer};
pub use key::{Allowance, Keyed, LimitKey};
pub(crate) use limit::Left;
use limit::Limit;
pub use limit::{LimitView, RateLimit};
pub(crate) use line::{Line, PendingEnd};
pub use notes::Note;
pub(crate) use notes::Notes;
pub(crate) use page::{GuardPage, GuardSeries};
pub use scope::{Meter, Scope};
pub use tuner::AdaptiveView;
use tuner::Tuner;

/// How a service's traffic is guarded. The default guards nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// How many requests a second are let through; each of them must let a request pass.
    pub rate_limits: Vec<RateLimit>,
    /// How many requests of some kind, or of a key, there are at once.
    pub at_once: Vec<AtOnce>,
    /// When it gets no requests for a while.
    pub breaker: Option<BreakerPolicy>,
    /// Whether it or each of its instances has a breaker.
    pub breaker_scope: BreakerScope,
    /// How many requests it has at once, over all workers.
    pub concurrency: Option<Concurrency>,
    /// That number finds itself, within these bounds; `concurrency` says who waits.
    pub adaptive: Option<AdaptivePolicy>,
    /// When one of its instances gets none for a while.
    pub outlier: Option<OutlierPolicy>,
    /// How many failed requests are sent again at a time.
    pub retry_budget: RetryBudget,
    /// What is answered when it cannot, and nothing below can either.
    pub fallback: Option<Arc<Fallback>>,
    /// Who answers when it cannot.
    pub fallback_service: Option<ServiceName>,
    /// Answers of it that are kept for when it cannot.
    pub keep: Option<KeepPolicy>,
}

/// Who has a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerScope {
    /// The service.
    #[default]
    Service,
    /// Each of its instances. The service's own then does only what an operator says.
    Instance,
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
    limits: Box<[Arc<Limit>]>,
    bounds: Box<[Arc<Bound>]>,
    gate: Option<Arc<Gate>>,
    line: Option<Arc<Line>>,
    fuses: Option<Arc<Fuses>>,
    pub(crate) kept: Option<Arc<Kept>>,
    tuner: Option<Arc<Tuner>>,
    pub(crate) ejections: Option<Arc<Ejections>>,
    pub(crate) numbers: Arc<Numbers>,
}

/// What the guards of a service have done.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    /// Admitted, made to wait, refused.
    pub(crate) limited: [AtomicU64; 3],
    pub(crate) at_once_refused: AtomicU64,
    pub(crate) breaker_refused: AtomicU64,
    pub(crate) breaker_turns: [AtomicU64; 3],
    pub(crate) pending: [AtomicU64; line::PENDING_ENDS.len()],
    /// By priority.
    pub(crate) shed: [AtomicU64; PRIORITIES.len()],
    pub(crate) fallbacks: [AtomicU64; FALLBACK_REASONS.len()],
    pub(crate) fallback_kinds: [AtomicU64; FALLBACK_KINDS.len()],
}

/// Priorities, as the metrics name them.
pub(crate) const PRIORITIES: [&str; 3] = ["critical", "normal", "sheddable"];

/// What a client gets instead, as the metrics name it.
pub(crate) const FALLBACK_KINDS: [&str; 3] = ["fixed", "service", "cached"];

/// What a client gets instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FallbackKind {
    Fixed,
    Service,
    Cached,
}

/// Reasons for which a fallback is answered: nobody was there, or nobody in time, and the client has seen nothing.
pub(crate) const FALLBACK_REASONS: [&str; 9] = [
    "breaker-open",
    "no-ready-instance",
    "held-too-long",
    "hold-full",
    "too-many-requests-pending",
    "pending-too-long",
    "shed",
    "connect-failed",
    "timeout",
];

/// One of [`FALLBACK_REASONS`], small: every connection has room for some.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FallbackReason(u8);

impl FallbackReason {
    pub(crate) fn of(word: &str) -> Option<Self> {
        let place = FALLBACK_REASONS.iter().position(|known| *known == word)?;
        u8::try_from(place).ok().map(Self)
    }

    pub(crate) fn word(self) -> &'static str {
        FALLBACK_REASONS[usize::from(self.0)]
    }
}

/// A service has no breaker that could be forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no `traffic.circuitBreaker`")]
pub struct NoBreaker;

/// The guards of a service at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardsView {
    /// Its breaker.
    pub breaker: Option<BreakerView>,
    /// Its instances' breakers, of those that have had a request.
    pub instance_breakers: Vec<InstanceBreakerView>,
    /// Its places.
    pub concurrency: Option<ConcurrencyView>,
    /// Its rate limits.
    pub rate_limits: Vec<LimitView>,
    /// Its bounds of what is under way at once.
    pub at_once: Vec<AtOnceView>,
    /// Instances that get no requests for a while.
    pub ejected: Vec<EjectedView>,
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
    /// Since when there is no place for all, while that is so.
    pub refusing_since: Option<SystemTime>,
    /// The bounds of one that finds itself.
    pub adaptive: Option<AdaptiveView>,
}

impl Guards {
    /// Guards as told, with the state of those before, where they guard the same.
    fn new(told: Traffic, before: Option<&Self>) -> Self {
        let gate = told.breaker.as_ref().map(|policy| match before.and_then(|before| before.gate.clone()) {
            Some(gate) => gate.adopt(policy),
            None => Arc::new(Gate::new(policy)),
        });
        let tuner = told.adaptive.filter(|_| told.concurrency.is_some()).map(|policy| {
            let known = before.and_then(|before| before.tuner.clone()).filter(|known| known.is(policy));
            known.unwrap_or_else(|| Arc::new(Tuner::new(policy)))
        });
        let line = told.concurrency.map(|Concurrency { places, .. }| {
            let places = Places { max: tuner.as_ref().map_or(places.max, |tuner| tuner.limit()), ..places };
            match before.and_then(|before| before.line.clone()) {
                Some(line) => line.adopt(places),
                None => Arc::new(Line::new(places)),
            }
        });
        let limits = told.rate_limits.iter().filter_map(|rule| {
            let known = before.and_then(|before| before.limits.iter().find(|known| known.is(rule)).cloned());
            known.or_else(|| Limit::new(rule.clone()).map(Arc::new))
        });
        let bounds = told.at_once.iter().filter_map(|rule| {
            let known = before.and_then(|before| before.bounds.iter().find(|known| known.is(rule)).cloned());
            known.or_else(|| Bound::new(rule.clone()).map(Arc::new))
        });
        let (limits, bounds) = (limits.collect(), bounds.collect());
        let per_instance = told.breaker.is_some() && told.breaker_scope == BreakerScope::Instance;
        let fuses = per_instance.then(|| before.and_then(|before| before.fuses.clone()).unwrap_or_default());
        let known = || before.and_then(|before| before.ejections.clone());
        let ejections = told.outlier.as_ref().map(|_| known().unwrap_or_default());
        let kept = told.keep.map(|policy| {
            let known = before.and_then(|before| before.kept.clone()).filter(|known| known.is(policy));
            known.unwrap_or_else(|| Arc::new(Kept::new(policy)))
        });
        let numbers = before.map_or_else(Arc::default, |before| before.numbers.clone());
        Self { told, limits, bounds, gate, line, fuses, kept, tuner, ejections, numbers }
    }

    /// Those of a service that has none, but whose requests are counted for rules of others.
    fn none() -> Arc<Self> {
        static NONE: std::sync::LazyLock<Arc<Guards>> =
            std::sync::LazyLock::new(|| Arc::new(Guards::new(Traffic::default(), None)));
        NONE.clone()
    }

    /// Endpoints were swapped: who was away and is ready is another process, or a better one.
    pub(crate) fn swapped(&self, before: &Resolved, after: &Resolved, notes: &Notes) {
        if let Some(ejections) = &self.ejections {
            ejections.swapped(before, after, notes);
        }
        if let (Some(fuses), Some(policy)) = (&self.fuses, &self.told.breaker) {
            fuses.swapped(policy, before, after, notes);
        }
    }

    /// Counts a fallback for `reason`.
    pub(crate) fn fell_back(&self, reason: &str, kind: FallbackKind) {
        self.numbers.fallback_kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(reason) = FallbackReason::of(reason) {
            self.numbers.fallbacks[usize::from(reason.0)].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn view(&self) -> GuardsView {
        GuardsView {
            breaker: self.gate.as_ref().map(|gate| gate.view()),
            instance_breakers: Vec::new(),
            concurrency: self.line.as_ref().map(|line| {
                let adaptive = self.tuner.as_ref().map(|tuner| tuner.view());
                ConcurrencyView { adaptive, ..line.view() }
            }),
            rate_limits: self.limits.iter().map(|limit| limit.view()).collect(),
            at_once: self.bounds.iter().map(|bound| bound.view()).collect(),
            ejected: self.ejections.as_ref().map_or_else(Vec::new, |ejections| ejections.view()),
        }
    }
}

impl Service {
    /// Puts guards in force for requests that come from now on. What guards have counted stays as far as they guard
    /// the same as before.
    pub fn set_traffic(&self, told: Option<Traffic>) {
        let before = self.guards.load_full();
        let guards = told.map(|told| Arc::new(Guards::new(told, before.as_deref())));
        if let Some(ejections) = before.as_ref().and_then(|before| before.ejections.as_ref())
            && guards.as_ref().is_none_or(|guards| guards.ejections.is_none())
        {
            ejections.end_all();
        }
        self.set_fuses(before.as_deref(), guards.as_deref());
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
            if let Some(fuses) = &guards.fuses {
                fuses.force(policy, forced);
            }
            self.notes.add(Note::Forced(forced));
        }
        Ok(gate.view())
    }

    /// What passes it, for rules of others.
    pub fn meter(&self) -> Meter {
        self.meter.clone()
    }

    /// The guards as they are now; `None` without any.
    pub fn guards(&self) -> Option<GuardsView> {
        self.guards.load_full().map(|guards| {
            let instance_breakers = if guards.fuses.is_some() { self.fuse_views() } else { Vec::new() };
            GuardsView { instance_breakers, ..guards.view() }
        })
    }

    /// Whether so few are left that ejections are not heeded.
    pub(crate) fn panics(&self, resolved: &Resolved, now_ms: u64) -> bool {
        let guards = self.guards.load_full();
        let policy = guards.as_ref().and_then(|guards| guards.told.outlier.as_ref());
        policy.is_none_or(|policy| policy.panics(ejections::census(resolved, now_ms)))
    }

    /// What guards did since this was asked last, oldest first.
    pub fn take_notes(&self) -> Vec<Note> {
        if let Some(guards) = self.guards.load_full() {
            if let Some(ejections) = &guards.ejections {
                ejections.sweep(&self.notes, Instant::now());
            }
            if let Some(fuses) = &guards.fuses {
                fuses.forget_left();
            }
        }
        self.notes.take()
    }
}
