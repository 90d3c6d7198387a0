//! How many requests are under way at once, by key or of some requests only: Sentinel's rules that count threads, nginx'
//! `limit_conn`. One more is turned away; there is no line. Beside the service's bulkhead (`line.rs`), which has one.
//! Deliberately absent: counting (`traffic::Crowd`).

use std::sync::Arc;
use std::time::SystemTime;

use traffic::{Crowd, Joined};

use super::key::{Compiled, Judged, Keyed};
use super::refusals::Refusals;
use super::scope::{CompiledScope, Scope};
use crate::connection::Client;
use crate::routes::CompiledRoute;

/// So many at once, and of whom.
#[derive(Clone, Debug, PartialEq)]
pub struct AtOnce {
    /// Requests at once.
    pub max: u32,
    /// So many keys are remembered.
    pub keys: usize,
    /// What has so many places for itself.
    pub keyed: Keyed<u32>,
    /// Which requests are meant.
    pub scope: Scope,
}

/// Such a bound at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtOnceView {
    /// Requests at once.
    pub max: u32,
    /// Under way now, of all keys.
    pub active: u64,
    /// Keys that have some under way, with a key.
    pub keys: Option<usize>,
    /// Requests turned away since it began.
    pub refused: u64,
    /// Since when it turns some away, while it does.
    pub refusing_since: Option<SystemTime>,
    /// Requests let through uncounted, for want of room for their key.
    pub uncounted: u64,
}

/// One bound, shared by all workers.
#[derive(Debug)]
pub(super) struct Bound {
    told: AtOnce,
    crowd: Crowd,
    keys: Compiled<u32>,
    scope: CompiledScope,
    refusals: Refusals,
}

/// A request that is counted; dropping it ends that.
#[derive(Debug)]
pub(super) struct Presence {
    bound: Arc<Bound>,
    place: usize,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.bound.crowd.leave(self.place);
    }
}

impl Bound {
    /// `None` where an expression is none.
    pub(super) fn new(told: AtOnce) -> Option<Self> {
        let room = if told.keyed.key.is_some() { told.keys } else { 1 };
        let (crowd, keys) = (Crowd::new(room), Compiled::of(&told.keyed, |max| max));
        let scope = CompiledScope::of(&told.scope)?;
        Some(Self { crowd, keys, scope, told, refusals: Refusals::default() })
    }

    pub(super) fn is(&self, told: &AtOnce) -> bool {
        self.told == *told
    }

    /// Counts a request; `Ok(None)` if there is nothing to count.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn enter<S>(
        self: &Arc<Self>,
        client: &Client<S>,
        route: &CompiledRoute,
    ) -> Result<Option<Presence>, ()> {
        if !self.scope.has(client, route) {
            return Ok(None);
        }
        let joined = match self.scope.meter() {
            Some(meter) if meter.active() >= u64::from(self.told.max) => Joined::Full,
            Some(_) => return Ok(None),
            None => match self.keys.judge(client) {
                Judged::Free => return Ok(None),
                Judged::By(hash, most) => self.crowd.join(hash, u64::from(*most.unwrap_or(&self.told.max))),
            },
        };
        match joined {
            Joined::Counted(place) => Ok(Some(Presence { bound: self.clone(), place })),
            Joined::Uncounted => Ok(None),
            Joined::Full => {
                self.refusals.add();
                Err(())
            }
        }
    }

    pub(super) fn view(&self) -> AtOnceView {
        AtOnceView {
            max: self.told.max,
            active: self.crowd.active(),
            keys: self.told.keyed.key.as_ref().map(|_| self.crowd.at_work()),
            refused: self.refusals.count(),
            refusing_since: self.refusals.since(),
            uncounted: self.crowd.uncounted(),
        }
    }
}
