//! A service's rate limits at work. Deliberately absent: the decision (`traffic::limit`), and which requests a limit is
//! about (`scope.rs`, `key.rs`).

use std::time::{Duration, Instant, SystemTime};

use traffic::{Asked, Decision, LimitPolicy, Limiter, Rate};

use super::key::{Compiled, Judged, Keyed};
use super::refusals::Refusals;
use super::scope::{CompiledScope, Scope, since};
use crate::connection::Client;
use crate::routes::CompiledRoute;

/// A rate, and for whom it is.
#[derive(Clone, Debug, PartialEq)]
pub struct RateLimit {
    /// The rate. Has `keys` if and only if there is a key.
    pub policy: LimitPolicy,
    /// What has the rate for itself. An exception is so many requests in each `per`, and so many more at once.
    pub keyed: Keyed<(u32, u32)>,
    /// Which requests are meant.
    pub scope: Scope,
    /// Whether answers that pass tell what is left.
    pub tells: bool,
}

impl RateLimit {
    /// For all requests of a service, told by each answer.
    pub fn new(policy: LimitPolicy, key: Option<super::LimitKey>) -> Self {
        let keyed = Keyed { key, exceptions: Default::default(), only_exceptions: false, without_passes: false };
        Self { policy, keyed, scope: Scope::default(), tells: true }
    }
}

/// A rate limit at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitView {
    /// Requests in each `per`.
    pub qps: u32,
    /// A second, as a rule.
    pub per: Duration,
    /// Keys at work, and how many may be before any of them is forgotten. Never more than twice that many are at work.
    pub keys: Option<(usize, usize)>,
    /// Keys that lost what was known of them to others.
    pub displaced: u64,
    /// Requests refused since the limit began.
    pub refused: u64,
    /// Since when it refuses some, while it does.
    pub refusing_since: Option<SystemTime>,
}

/// What a limit has left, for answers to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Requests in a while.
    pub(crate) limit: u32,
    /// So many more may come now.
    pub(crate) remaining: u32,
    /// After so many seconds there are more.
    pub(crate) reset: u32,
}

impl Left {
    /// As fields of an answer.
    pub(crate) fn fields(self) -> [(&'static str, u64); 3] {
        [
            ("RateLimit-Limit", self.limit.into()),
            ("RateLimit-Remaining", self.remaining.into()),
            ("RateLimit-Reset", self.reset.into()),
        ]
    }
}

/// One limit of a service, shared by all workers.
#[derive(Debug)]
pub(super) struct Limit {
    told: RateLimit,
    limiter: Limiter,
    keys: Compiled<Rate>,
    scope: CompiledScope,
    refusals: Refusals,
}

/// What a limit has admitted.
pub(super) struct Counted {
    pub(super) asked: Asked,
    pub(super) left: Left,
}

/// What a limit says.
pub(super) enum Said {
    /// It is not about this request.
    Nothing,
    Admitted(Counted),
    /// Of so many in a while; one would be let in after so long.
    Refused(u32, Duration),
}

impl Limit {
    /// `None` where an expression is none.
    pub(super) fn new(told: RateLimit) -> Option<Self> {
        let per = told.policy.per;
        let keys = Compiled::of(&told.keyed, |(count, burst)| Rate::new(count, per, burst));
        let (limiter, scope) = (Limiter::new(&told.policy), CompiledScope::of(&told.scope)?);
        Some(Self { limiter, keys, scope, told, refusals: Refusals::default() })
    }

    pub(super) fn is(&self, told: &RateLimit) -> bool {
        self.told == *told
    }

    pub(super) fn tells(&self) -> bool {
        self.told.tells
    }

    pub(super) fn ask<S>(&self, client: &Client<S>, route: &CompiledRoute, now: Instant) -> Said {
        if !self.scope.has(client, route) {
            return Said::Nothing;
        }
        if let Some(meter) = self.scope.meter() {
            let most = self.limiter.rate().count();
            let is_over = meter.passed(now) >= most;
            return if is_over { self.refuse(most, Duration::from_secs(1)) } else { Said::Nothing };
        }
        let (hash, rate) = match self.keys.judge(client) {
            Judged::Free => return Said::Nothing,
            Judged::By(hash, rate) => (hash, rate.copied().unwrap_or_else(|| self.limiter.rate())),
        };
        let asked = self.limiter.ask_at(&rate, hash, since(now));
        match asked.decision {
            Decision::Refused(after) => self.refuse(rate.count(), after),
            _ => {
                let left =
                    Left { limit: small(rate.count()), remaining: small(asked.left), reset: small(whole(asked.reset)) };
                Said::Admitted(Counted { asked, left })
            }
        }
    }

    fn refuse(&self, limit: u64, after: Duration) -> Said {
        self.refusals.add();
        Said::Refused(small(limit), after)
    }

    /// Something else refused what this one had admitted.
    pub(super) fn take_back<S>(&self, client: &Client<S>, route: &CompiledRoute, now: Instant) {
        if self.scope.meter().is_none()
            && self.scope.has(client, route)
            && let Judged::By(hash, _) = self.keys.judge(client)
        {
            self.limiter.take_back(hash, since(now));
        }
    }

    pub(super) fn view(&self) -> LimitView {
        let keys = self.limiter.keys();
        let at_work = self.limiter.at_work(since(Instant::now()));
        LimitView {
            qps: self.told.policy.qps,
            per: self.told.policy.per,
            keys: keys.zip(at_work).map(|(keys, at_work)| (at_work, keys.room())),
            displaced: keys.map_or(0, traffic::Keys::displaced),
            refused: self.refusals.count(),
            refusing_since: self.refusals.since(),
        }
    }
}

/// As every request has room for it.
fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Seconds, whole ones, at least one.
fn whole(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}
