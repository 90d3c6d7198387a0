//! Which requests of a service a rule is about: those that look so, those of one route (Sentinel's rules by entrance), and
//! whether it is not the service itself that is looked at but another one (its rules by relation).
//! Deliberately absent: the rule (`limit.rs`, `at_once.rs`).

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use traffic::Passes;

use crate::connection::Client;
use crate::routes::{CompiledMatch, CompiledRoute, Match, compile_match};

/// Which requests a rule is about. The default is about all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scope {
    /// Of these conditions one must hold; without any, all requests are meant.
    pub matches: Vec<Match>,
    /// Only those that came by the route that is counted under this name.
    pub route: Option<String>,
    /// What passes this service is judged instead, and nothing is counted.
    pub of: Option<Meter>,
}

/// What passes a service, for rules of others. Counted only while there are some.
#[derive(Clone, Debug, Default)]
pub struct Meter(Arc<Metered>);

#[derive(Debug, Default)]
struct Metered {
    passes: Passes,
    /// Rules that look at it.
    users: AtomicUsize,
}

impl PartialEq for Meter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Meter {
    /// Whether some rule looks at it.
    pub(super) fn is_used(&self) -> bool {
        self.0.users.load(Ordering::Relaxed) > 0
    }

    /// One has passed.
    pub(super) fn enter(&self, now: Instant) -> Passing {
        self.0.passes.enter(since(now));
        Passing(self.clone())
    }

    pub(super) fn passed(&self, now: Instant) -> u64 {
        self.0.passes.passed(since(now))
    }

    pub(super) fn active(&self) -> u64 {
        self.0.passes.active()
    }
}

/// One that is under way; dropping it ends that.
#[derive(Debug)]
pub(super) struct Passing(Meter);

impl Drop for Passing {
    fn drop(&mut self) {
        self.0.0.passes.leave();
    }
}

/// Time since some moment of this process's life, a second at the least: what was never used is at rest.
pub(super) fn since(now: Instant) -> Duration {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    now.saturating_duration_since(*BEGIN) + Duration::from_secs(1)
}

/// A scope ready for use.
#[derive(Debug)]
pub(super) struct CompiledScope {
    matches: Vec<CompiledMatch>,
    route: Option<String>,
    of: Option<Meter>,
}

impl CompiledScope {
    /// `None` where an expression is none, which its author was not allowed to write.
    pub(super) fn of(scope: &Scope) -> Option<Self> {
        let matches = scope.matches.iter().map(|wanted| compile_match("a rule", wanted.clone()));
        let matches = match matches.collect() {
            Ok(matches) => matches,
            Err(error) => {
                tracing::error!(%error, "a rule is not in force");
                return None;
            }
        };
        if let Some(meter) = &scope.of {
            meter.0.users.fetch_add(1, Ordering::Relaxed);
        }
        Some(Self { matches, route: scope.route.clone(), of: scope.of.clone() })
    }

    /// Whether a request is meant.
    pub(super) fn has<S>(&self, client: &Client<S>, route: &CompiledRoute) -> bool {
        let by = || route.series.as_ref().map(|series| series.name.as_str());
        (self.route.is_none() || self.route.as_deref() == by())
            && (self.matches.is_empty()
                || self.matches.iter().any(|wanted| wanted.accepts(&client.head, client.scheme())))
    }

    /// Whom to look at instead.
    pub(super) fn meter(&self) -> Option<&Meter> {
        self.of.as_ref()
    }
}

impl Drop for CompiledScope {
    fn drop(&mut self) {
        if let Some(meter) = &self.of {
            meter.0.users.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
