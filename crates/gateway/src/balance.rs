//! Which instance takes a request: ready ones only, local before remote, trusted before suspected, untried before
//! tried; among equals by weight and load, and by how long their answers take if that is wanted. The balance step of the request walk.
//! Deliberately absent: waiting (`hold.rs`) and any change of readiness (the control plane's).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use model::{Epoch, VersionName};

use crate::ended::Ending;
use crate::options::{Balance, Options};
use crate::service::{Endpoint, Instance, Resolved, Selection, Service, Upstream, millis};
use crate::shares::eligible;

/// An instance that has this request; dropping it ends that.
#[derive(Debug)]
pub(crate) struct Taken {
    resolved: Arc<Resolved>,
    index: usize,
    /// A remote one, because no local one was ready.
    pub(crate) spilled: bool,
}

/// What balance decided.
#[derive(Debug)]
pub(crate) enum Choice {
    /// This instance.
    Take(Taken),
    /// Nobody now: the request waits if the service's policy says so.
    Wait,
    /// All that are there have as many requests as they may.
    Full,
    /// The only ones left have just failed: wait for a change, or until this one may be tried again.
    WaitUntil(Arc<Instance>),
    /// The breaker of each that could take it is open; the first of them lets one through after so long.
    Shut(Duration),
}

impl Choice {
    /// Somebody this request has not failed on.
    pub(crate) fn is_another(&self, tried: &Tried) -> bool {
        matches!(self, Self::Take(taken) if !tried.has(taken.instance()))
    }
}

/// Instances a request has failed on.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    keys: [u64; 4],
    count: usize,
}

impl Tried {
    pub(crate) fn add(&mut self, instance: &Instance) {
        self.keys[self.count % self.keys.len()] = instance.key;
        self.count += 1;
    }

    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }

    fn has(&self, instance: &Instance) -> bool {
        self.keys[..self.count.min(self.keys.len())].contains(&instance.key)
    }
}

impl Taken {
    fn new(resolved: Arc<Resolved>, index: usize, spilled: bool) -> Self {
        resolved.instances[index].metrics.taken();
        Self { resolved, index, spilled }
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.resolved.instances[self.index]
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.resolved.told.endpoints[self.index]
    }

    /// The endpoints are still those it was chosen from.
    pub(crate) fn is_current(&self, service: &Service) -> bool {
        Arc::ptr_eq(&self.resolved, &service.resolved())
    }

    /// It is no longer the primary, though one is what its service needs.
    pub(crate) fn is_deposed(&self, service: &Service) -> bool {
        let resolved = service.resolved();
        match &resolved.told.selection {
            Selection::Any => false,
            Selection::Primary(primary) => {
                resolved.told.holding || primary.as_ref().is_none_or(|(id, _)| *id != self.endpoint().id)
            }
        }
    }

    /// The swap that put the endpoints in force it was chosen from.
    pub(crate) fn swap(&self) -> u64 {
        self.resolved.swap
    }

    /// Tells of the end of its process, should that be lost.
    pub(crate) fn ending(&self) -> Ending {
        Ending::of(self.instance(), self.swap())
    }

    /// How it is spoken to.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.resolved.told.upstream
    }

    /// Whether somebody asks how long the instance takes.
    pub(crate) fn is_timed(&self) -> bool {
        self.resolved.told.balance == Balance::PeakEwma
    }

    pub(crate) fn replay_limit(&self) -> usize {
        self.resolved.told.replay_limit
    }

    /// The epoch in which it is primary.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        match &self.resolved.told.selection {
            Selection::Primary(Some((_, epoch))) => Some(*epoch),
            _ => None,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.instance().metrics.in_flight.dec();
    }
}

/// Better groups first; an instance of a worse group is taken only if the better ones are empty.
const GROUPS: usize = 5;

/// Chooses for one attempt. `random` yields well-mixed bits.
pub(crate) fn choose(
    service: &Service,
    version: Option<&VersionName>,
    tried: &Tried,
    options: &Options,
    now: Instant,
    mut random: impl FnMut() -> u64,
) -> Choice {
    let resolved = service.resolved();
    if resolved.told.holding || resolved.shares.total() == 0 {
        return Choice::Wait;
    }
    let now_ms = millis(now);
    if version.is_none()
        && let Some(index) = draw(service, &resolved, tried, now_ms, &mut random)
    {
        let spilled = resolved.shares.spilled;
        return Choice::Take(Taken::new(resolved, index, spilled));
    }
    walk(service, resolved, Asked { version, tried, now_ms }, options, random)
}

/// How often a draw is repeated that hit an instance to avoid, before everybody is looked at.
const DRAWS: usize = 4;

/// One of those who share the requests, without a look at the others; `None` if each draw hit one to avoid. A draw that
/// is repeated until it hits a good one is a draw among the good ones.
fn draw(
    service: &Service,
    resolved: &Resolved,
    tried: &Tried,
    now_ms: u64,
    random: &mut impl FnMut() -> u64,
) -> Option<usize> {
    let shares = &resolved.shares;
    let total = shares.total();
    let is_good = |place: &usize| {
        let index = shares.index(*place);
        let instance = &resolved.instances[index];
        !resolved.is_full(index)
            && !tried.has(instance)
            && !instance.is_suspect(now_ms)
            && !instance.row.is_ejected(now_ms)
            && !instance.fuse.is_shut(now_ms)
    };
    match resolved.told.balance {
        Balance::RoundRobin => {
            let turn = || service.turn.fetch_add(1, Ordering::Relaxed) as u64;
            let place = (0..DRAWS).map(|_| shares.at(turn() % total)).find(is_good)?;
            Some(shares.index(place))
        }
        Balance::LeastRequests | Balance::PeakEwma => {
            let first = (0..DRAWS).map(|_| shares.at(random() % total)).find(is_good)?;
            let rest = total - shares.weight(first);
            if rest == 0 {
                return Some(shares.index(first));
            }
            let second = (0..DRAWS).map(|_| shares.at_without(first, random() % rest)).find(is_good)?;
            Some(lighter(resolved, shares.index(first), shares.index(second), now_ms))
        }
    }
}

/// What a request asks for, and when.
#[derive(Clone, Copy)]
struct Asked<'a> {
    version: Option<&'a VersionName>,
    tried: &'a Tried,
    now_ms: u64,
}

/// Looks at everybody: when there is something against whom the draw hit, or a version is asked for.
fn walk(
    service: &Service,
    resolved: Arc<Resolved>,
    asked: Asked<'_>,
    options: &Options,
    mut random: impl FnMut() -> u64,
) -> Choice {
    let Asked { version, tried, now_ms } = asked;
    let told = &resolved.told;
    let pairs = || told.endpoints.iter().zip(&resolved.instances).enumerate();
    let heeds = pairs().any(|(_, (_, instance))| instance.row.is_ejected(now_ms)) && !service.panics(&resolved, now_ms);
    let group = |(index, (endpoint, instance)): (usize, (&Endpoint, &Arc<Instance>))| {
        let ejected = heeds && instance.row.is_ejected(now_ms);
        let takes = eligible(told, endpoint, version) && !resolved.is_full(index) && !instance.fuse.is_shut(now_ms);
        takes.then(|| group_of(endpoint, instance, tried, now_ms, ejected))
    };
    let mut weights = [0_u64; GROUPS];
    for pair in pairs() {
        if let Some(group) = group(pair) {
            weights[group] += u64::from(pair.1.0.weight);
        }
    }
    let Some(best) = weights.iter().position(|&weight| weight > 0) else {
        let there = || pairs().filter(|(_, (endpoint, _))| eligible(told, endpoint, version));
        if there().any(|(index, (_, instance))| resolved.is_full(index) && !instance.fuse.is_shut(now_ms)) {
            return Choice::Full;
        }
        let left = there().map(|(_, (_, instance))| instance.fuse.shut_for_ms(now_ms)).min();
        return left.map_or(Choice::Wait, |left| Choice::Shut(Duration::from_millis(left.max(1))));
    };
    let members = || {
        pairs()
            .filter(|pair| group(*pair) == Some(best))
            .map(|(index, (endpoint, _))| (index, u64::from(endpoint.weight)))
    };
    if best >= SUSPECTED && told.hold.is_some() {
        // Whoever may wait does not hammer an instance that has just failed: one request tries it now and then.
        for (index, _) in members() {
            let instance = &resolved.instances[index];
            if !instance.is_suspect(now_ms) || instance.claim_probe(now_ms, options.probe_interval) {
                return Choice::Take(Taken::new(resolved.clone(), index, false));
            }
        }
        let next = members().map(|(index, _)| &resolved.instances[index]).min_by_key(|instance| instance.probe_at_ms());
        return next.map_or(Choice::Wait, |instance| Choice::WaitUntil(instance.clone()));
    }
    let total = weights[best];
    let index = match told.balance {
        Balance::RoundRobin => {
            let turn = service.turn.fetch_add(1, Ordering::Relaxed) as u64;
            at_weight(members(), turn % total)
        }
        Balance::LeastRequests | Balance::PeakEwma => at_weight(members(), random() % total).map(|first| {
            let first_weight = u64::from(told.endpoints[first].weight);
            let others = members().filter(|(index, _)| *index != first);
            let rest = total.saturating_sub(first_weight).max(1);
            let second = at_weight(others, random() % rest);
            second.map_or(first, |second| lighter(&resolved, first, second, now_ms))
        }),
    };
    // Other workers suspect and trust instances at any moment, so a group may have emptied since it was weighed.
    // Whoever is eligible will do then; what comes of it is judged like any other attempt.
    let anybody = || pairs().position(|(_, (endpoint, _))| eligible(told, endpoint, version));
    let Some(index) = index.or_else(anybody) else { return Choice::Wait };
    let spilled = best == 1 && told.endpoints.iter().any(|endpoint| endpoint.local);
    Choice::Take(Taken::new(resolved, index, spilled))
}

/// The first group of those that have just failed.
const SUSPECTED: usize = 3;

/// An eligible instance's group: what has failed on this request, or just now, comes last; before that, what is ejected.
fn group_of(endpoint: &Endpoint, instance: &Instance, tried: &Tried, now_ms: u64, ejected: bool) -> usize {
    match (tried.has(instance), instance.is_suspect(now_ms), ejected, endpoint.local) {
        (false, false, false, true) => 0,
        (false, false, false, false) => 1,
        (false, false, true, _) => 2,
        (false, true, _, _) => SUSPECTED,
        (true, _, _, _) => SUSPECTED + 1,
    }
}

/// The member within whose share of the line `point` falls; `None` when there is no member (any more).
fn at_weight(members: impl Iterator<Item = (usize, u64)>, mut point: u64) -> Option<usize> {
    let mut last = None;
    for (index, weight) in members {
        last = Some(index);
        if point < weight {
            break;
        }
        point -= weight;
    }
    last
}

/// The one whose requests in flight, this one included, weigh less on its share: by their number, or by the time that they
/// will take.
fn lighter(resolved: &Resolved, first: usize, second: usize, now_ms: u64) -> usize {
    let load = |index: usize| {
        let instance = &resolved.instances[index];
        let in_flight = instance.in_flight() as u64;
        if resolved.told.balance == Balance::PeakEwma { instance.latency(in_flight, now_ms) } else { in_flight + 1 }
    };
    let weight = |index: usize| u64::from(resolved.told.endpoints[index].weight);
    if load(first).saturating_mul(weight(second)) <= load(second).saturating_mul(weight(first)) {
        first
    } else {
        second
    }
}

#[cfg(test)]
mod tests;
