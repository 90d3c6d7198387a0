//! A circuit breaker: a service that fails too often gets no requests for a while, then a few to see whether it is
//! better. Asked before balance in the request walk, told how each request ended.
//! The window's kinds and the comparator are those of Hystrix (time, at least), Sentinel (time, more than) and
//! resilience4j (the last so many calls, at least). Deliberately absent: a clock, locks, and what a failure is.

use std::time::{Duration, Instant};

mod window;

use window::Counts;
pub use window::Window;

/// Whether a measure that equals its threshold has reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparator {
    /// `>`: Sentinel's.
    Above,
    /// `>=`: Hystrix' and resilience4j's.
    AtLeast,
}

/// A part of a whole in millionths, so that comparisons are exact.
pub type Millionths = u32;

/// All of it.
pub const WHOLE: Millionths = 1_000_000;

/// When a breaker opens, and what closes it. At least one threshold is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Failed requests of all.
    pub error_ratio: Option<Millionths>,
    /// Requests slower than this, of all.
    pub slow: Option<(Millionths, Duration)>,
    /// Failed requests.
    pub error_count: Option<u32>,
    /// How all of them are compared. A ratio of [`WHOLE`] counts as reached by all requests, as Sentinel has it.
    pub comparator: Comparator,
    /// Which requests are looked at.
    pub window: Window,
    /// With fewer requests than this in the window nothing is judged.
    pub min_requests: u32,
    /// How long nothing passes before the first probe.
    pub open_for: Duration,
    /// Requests let through as probes, judged by the same thresholds; zero counts as one.
    pub probes: u32,
}

impl BreakerPolicy {
    fn exceeds(&self, ratio: Millionths, part: u32, all: u32) -> bool {
        let (part, limit) = (u64::from(part) * u64::from(WHOLE), u64::from(ratio) * u64::from(all));
        match self.comparator {
            Comparator::Above if ratio < WHOLE => part > limit,
            _ => part >= limit,
        }
    }

    /// The threshold that `counts` of `all` requests have reached.
    fn reached(&self, counts: Counts, all: u32) -> Option<Why> {
        let why = |what| Some(Why { what, errors: counts.errors, slow: counts.slow, requests: counts.all });
        if self.error_ratio.is_some_and(|ratio| counts.errors > 0 && self.exceeds(ratio, counts.errors, all)) {
            return why(Reached::ErrorRatio);
        }
        if self.slow.is_some_and(|(ratio, _)| counts.slow > 0 && self.exceeds(ratio, counts.slow, all)) {
            return why(Reached::SlowRatio);
        }
        let count_reached = |most: u32| match self.comparator {
            Comparator::Above => counts.errors > most,
            Comparator::AtLeast => counts.errors >= most.max(1),
        };
        if self.error_count.is_some_and(count_reached) {
            return why(Reached::ErrorCount);
        }
        None
    }

    /// The same for probes: few requests cannot reach a count, so that any failure does.
    fn reached_by_probes(&self, counts: Counts) -> Option<Why> {
        let why = Why { what: Reached::ErrorCount, errors: counts.errors, slow: counts.slow, requests: counts.all };
        let by_count = self.error_count.is_some() && counts.errors > 0;
        by_count.then_some(why).or_else(|| self.reached(counts, self.probes.max(1)))
    }
}

/// A threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Of failed requests.
    ErrorRatio,
    /// Of slow requests.
    SlowRatio,
    /// Of failed requests, by number.
    ErrorCount,
}

/// Why a breaker opened: the threshold, and what was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Why {
    /// Which threshold.
    pub what: Reached,
    /// Failed requests in the window.
    pub errors: u32,
    /// Slow ones.
    pub slow: u32,
    /// All.
    pub requests: u32,
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Everything.
    Closed,
    /// Nothing.
    Open,
    /// Probes.
    HalfOpen,
}

/// An operator's word instead of the breaker's own judgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forced {
    /// Nothing passes.
    Open,
    /// Everything passes.
    Closed,
}

/// A change of state, for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
    /// Why it opened; `None` for any other change.
    pub why: Option<Why>,
}

/// A request that was let through; told to [`Breaker::ended`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Grows with each change of state: what began under another state says nothing about this one.
    generation: u64,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With an answer after this long, a failed one or not.
    Answered {
        /// The service failed.
        failed: bool,
        /// How long its caller waited for it.
        took: Duration,
    },
    /// Without telling anything about the service: the client left, or another guard turned it away.
    Unknown,
}

/// Nothing passes for so long yet; zero where nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused(pub Duration);

/// One service's breaker.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    forced: Option<Forced>,
    generation: u64,
    window: window::Recent,
    opened: Instant,
    why: Option<Why>,
    probing: Probing,
}

/// Probes of a half-open breaker.
#[derive(Clone, Copy, Debug, Default)]
struct Probing {
    under_way: u32,
    ended: Counts,
    newest: Option<Instant>,
}

impl Breaker {
    /// A closed one.
    pub fn new(policy: &BreakerPolicy, now: Instant) -> Self {
        Self {
            state: State::Closed,
            forced: None,
            generation: 0,
            window: window::Recent::new(policy.window, now),
            opened: now,
            why: None,
            probing: Probing::default(),
        }
    }

    /// Another policy: the state stays, what was counted begins anew if it is counted otherwise.
    pub fn adopt(&mut self, policy: &BreakerPolicy, now: Instant) {
        if self.window.kind() != policy.window {
            self.window = window::Recent::new(policy.window, now);
        }
    }

    /// What it lets through, an operator's word included.
    pub fn state(&self) -> State {
        match self.forced {
            Some(Forced::Open) => State::Open,
            Some(Forced::Closed) => State::Closed,
            None => self.state,
        }
    }

    /// An operator's word, if there is one.
    pub fn forced(&self) -> Option<Forced> {
        self.forced
    }

    /// Why it opened last, unless it has closed since.
    pub fn why(&self) -> Option<Why> {
        self.why.filter(|_| self.state != State::Closed)
    }

    /// An operator's word; `None` takes it back, and the breaker is closed and counts anew. The change, if it is one.
    pub fn force(&mut self, policy: &BreakerPolicy, forced: Option<Forced>, now: Instant) -> Option<Turn> {
        let from = self.state();
        if self.forced == forced {
            return None;
        }
        self.forced = forced;
        self.enter(State::Closed, policy, now);
        let to = self.state();
        (from != to).then_some(Turn { from, to, why: None })
    }

    /// Whether a request may pass. The change of state that this brought, if any, comes with it.
    ///
    /// # Errors
    /// [`Refused`] while it is open, or half-open with all probes under way; a retry is safe, nothing was sent.
    pub fn ask(&mut self, policy: &BreakerPolicy, now: Instant) -> (Result<Pass, Refused>, Option<Turn>) {
        let pass = Pass { generation: self.generation };
        match (self.forced, self.state) {
            (Some(Forced::Open), _) => (Err(Refused(Duration::ZERO)), None),
            (Some(Forced::Closed), _) | (None, State::Closed) => (Ok(pass), None),
            (None, State::Open) => {
                let left = policy.open_for.saturating_sub(now.saturating_duration_since(self.opened));
                if !left.is_zero() {
                    return (Err(Refused(left)), None);
                }
                self.enter(State::HalfOpen, policy, now);
                self.take_probe(now);
                let turn = Turn { from: State::Open, to: State::HalfOpen, why: None };
                (Ok(Pass { generation: self.generation }), Some(turn))
            }
            (None, State::HalfOpen) => {
                let taken = self.probing.under_way + self.probing.ended.all;
                // Probes that do not end must not keep it half-open for ever.
                let age = self.probing.newest.map_or(Duration::ZERO, |newest| now.saturating_duration_since(newest));
                if taken >= policy.probes.max(1) && age >= policy.open_for {
                    self.enter(State::HalfOpen, policy, now);
                } else if taken >= policy.probes.max(1) {
                    return (Err(Refused(policy.open_for.saturating_sub(age))), None);
                }
                self.take_probe(now);
                (Ok(Pass { generation: self.generation }), None)
            }
        }
    }

    /// A request that had passed has ended. The change of state that this brought, if any.
    pub fn ended(&mut self, policy: &BreakerPolicy, pass: Pass, ending: Ending, now: Instant) -> Option<Turn> {
        if pass.generation != self.generation || self.forced.is_some() {
            return None;
        }
        let Ending::Answered { failed, took } = ending else {
            self.forget(pass);
            return None;
        };
        let slow = policy.slow.is_some_and(|(_, threshold)| took > threshold);
        match self.state {
            State::Closed => {
                let counts = self.window.add(failed, slow, now);
                if counts.all < policy.min_requests.max(1) || !(failed || slow) {
                    return None;
                }
                let why = policy.reached(counts, counts.all)?;
                self.enter(State::Open, policy, now);
                self.why = Some(why);
                Some(Turn { from: State::Closed, to: State::Open, why: Some(why) })
            }
            State::HalfOpen => {
                let probing = &mut self.probing;
                probing.under_way = probing.under_way.saturating_sub(1);
                probing.ended.add(failed, slow);
                if let Some(why) = policy.reached_by_probes(probing.ended) {
                    self.enter(State::Open, policy, now);
                    self.why = Some(why);
                    return Some(Turn { from: State::HalfOpen, to: State::Open, why: Some(why) });
                }
                if self.probing.ended.all < policy.probes.max(1) {
                    return None;
                }
                self.enter(State::Closed, policy, now);
                Some(Turn { from: State::HalfOpen, to: State::Closed, why: None })
            }
            State::Open => None,
        }
    }

    /// A request that had passed told nothing: [`Ending::Unknown`], where no policy is at hand.
    pub fn forget(&mut self, pass: Pass) {
        if pass.generation == self.generation && self.forced.is_none() {
            self.probing.under_way = self.probing.under_way.saturating_sub(1);
        }
    }

    fn enter(&mut self, state: State, policy: &BreakerPolicy, now: Instant) {
        self.state = state;
        self.generation += 1;
        self.probing = Probing::default();
        match state {
            State::Open => self.opened = now,
            State::Closed => {
                self.window = window::Recent::new(policy.window, now);
                self.why = None;
            }
            State::HalfOpen => {}
        }
    }

    fn take_probe(&mut self, now: Instant) {
        self.probing.under_way += 1;
        self.probing.newest = Some(now);
    }
}

#[cfg(test)]
mod tests;
