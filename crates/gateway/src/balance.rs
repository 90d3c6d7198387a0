//! Which instance takes a request: ready ones only, local before remote, trusted before suspected, untried before
//! tried; among equals by weight and load. The balance step of the request walk.
//! Deliberately absent: waiting (`hold.rs`) and any change of readiness (the control plane's).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use model::{Epoch, VersionName};

use crate::options::{Balance, Options};
use crate::service::{Endpoint, Endpoints, Instance, Readiness, Resolved, Selection, Service, Upstream, millis};

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
    /// The only ones left have just failed: wait for a change, or until this one may be tried again.
    WaitUntil(Arc<Instance>),
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
        resolved.instances[index].metrics.in_flight.inc();
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

    /// How it is spoken to.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.resolved.told.upstream
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
const GROUPS: usize = 4;

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
    let told = &resolved.told;
    if told.holding {
        return Choice::Wait;
    }
    let now_ms = millis(now);
    let group = |endpoint: &Endpoint, instance: &Instance| {
        eligible(told, endpoint, version).then(|| group_of(endpoint, instance, tried, now_ms))
    };
    let mut weights = [0_u64; GROUPS];
    let pairs = || told.endpoints.iter().zip(&resolved.instances).enumerate();
    for (_, (endpoint, instance)) in pairs() {
        if let Some(group) = group(endpoint, instance) {
            weights[group] += u64::from(endpoint.weight);
        }
    }
    let Some(best) = weights.iter().position(|&weight| weight > 0) else { return Choice::Wait };
    let members = || {
        pairs()
            .filter(|(_, (endpoint, instance))| group(endpoint, instance) == Some(best))
            .map(|(index, (endpoint, _))| (index, u64::from(endpoint.weight)))
    };
    if best >= 2 && told.hold.is_some() {
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
        Balance::LeastRequests => at_weight(members(), random() % total).map(|first| {
            let first_weight = u64::from(told.endpoints[first].weight);
            let others = members().filter(|(index, _)| *index != first);
            let rest = total.saturating_sub(first_weight).max(1);
            let second = at_weight(others, random() % rest);
            second.map_or(first, |second| lighter(&resolved, first, second))
        }),
    };
    // Other workers suspect and trust instances at any moment, so a group may have emptied since it was weighed.
    // Whoever is eligible will do then; what comes of it is judged like any other attempt.
    let anybody = || pairs().position(|(_, (endpoint, _))| eligible(told, endpoint, version));
    let Some(index) = index.or_else(anybody) else { return Choice::Wait };
    let spilled = best == 1 && told.endpoints.iter().any(|endpoint| endpoint.local);
    Choice::Take(Taken::new(resolved, index, spilled))
}

/// Whether an endpoint may take the request at all.
fn eligible(told: &Endpoints, endpoint: &Endpoint, version: Option<&VersionName>) -> bool {
    endpoint.readiness == Readiness::Ready
        && endpoint.weight > 0
        && (version.is_none() || version == endpoint.version.as_ref())
        && match &told.selection {
            Selection::Any => true,
            Selection::Primary(primary) => primary.as_ref().is_some_and(|(id, _)| *id == endpoint.id),
        }
}

/// An eligible instance's group: what has failed on this request, or just now, comes last.
fn group_of(endpoint: &Endpoint, instance: &Instance, tried: &Tried, now_ms: u64) -> usize {
    match (tried.has(instance), instance.is_suspect(now_ms), endpoint.local) {
        (false, false, true) => 0,
        (false, false, false) => 1,
        (false, true, _) => 2,
        (true, _, _) => 3,
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

/// The one whose requests in flight, this one included, weigh less on its share.
fn lighter(resolved: &Resolved, first: usize, second: usize) -> usize {
    let load = |index: usize| resolved.instances[index].in_flight() as u64 + 1;
    let weight = |index: usize| u64::from(resolved.told.endpoints[index].weight);
    if load(first) * weight(second) <= load(second) * weight(first) { first } else { second }
}

#[cfg(test)]
mod tests {
    use super::{Choice, Taken, Tried, choose};
    use crate::metrics::Metrics;
    use crate::options::{Balance, Options};
    use crate::service::{Endpoint, Endpoints, Readiness, Selection, Service};
    use guard::HoldPolicy;
    use model::Epoch;
    use std::time::{Duration, Instant};

    fn endpoint(id: &str) -> Endpoint {
        Endpoint {
            id: id.into(),
            address: ([127, 0, 0, 1], 1).into(),
            version: None,
            readiness: Readiness::Ready,
            weight: 1,
            local: true,
        }
    }

    fn service(endpoints: Endpoints) -> Service {
        let service = Service::new("s".into(), Metrics::default());
        service.set_endpoints(endpoints).unwrap();
        service
    }

    fn pick(service: &Service, tried: &Tried, seed: &mut u64) -> Choice {
        choose(service, None, tried, &Options::default(), Instant::now(), || {
            *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *seed >> 33
        })
    }

    fn take(service: &Service, tried: &Tried) -> Taken {
        match pick(service, tried, &mut 1) {
            Choice::Take(taken) => taken,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_ready_ones_with_weight_in_this_order() {
        let list = vec![
            Endpoint { readiness: Readiness::NotReady, ..endpoint("not-ready") },
            Endpoint { readiness: Readiness::Draining, ..endpoint("draining") },
            Endpoint { weight: 0, ..endpoint("no-weight") },
            Endpoint { local: false, ..endpoint("remote") },
            endpoint("local"),
        ];
        let service = service(Endpoints { endpoints: list, ..Endpoints::default() });
        let mut tried = Tried::default();
        for want in ["local", "remote"] {
            let taken = take(&service, &tried);
            assert_eq!(taken.endpoint().id.as_str(), want);
            assert_eq!(taken.spilled, want == "remote");
            tried.add(taken.instance());
        }
        let local = take(&service, &Tried::default());
        local.instance().suspect(Instant::now(), Duration::from_secs(9), Duration::from_secs(9));
        assert_eq!(take(&service, &Tried::default()).endpoint().id.as_str(), "remote", "the suspected is avoided");
    }

    #[test]
    fn shares_follow_weights() {
        for balance in [Balance::RoundRobin, Balance::LeastRequests] {
            let list = vec![Endpoint { weight: 3, ..endpoint("a") }, endpoint("b")];
            let service = service(Endpoints { endpoints: list, balance, ..Endpoints::default() });
            let mut seed = 7;
            let mut held = Vec::new();
            for _ in 0..400 {
                let Choice::Take(taken) = pick(&service, &Tried::default(), &mut seed) else { panic!() };
                held.push(taken);
            }
            let at_a = service.in_flight(&"a".into());
            assert!((295..=305).contains(&at_a), "{balance:?}: {at_a} of 400");
            drop(held);
            assert_eq!(service.in_flight(&"a".into()), 0);
        }
    }

    #[test]
    fn a_primary_alone_and_nobody_while_there_is_none() {
        let list = vec![endpoint("a"), endpoint("b")];
        let told =
            |selection, holding| Endpoints { endpoints: list.clone(), selection, holding, ..Endpoints::default() };
        let primary = Selection::Primary(Some(("b".into(), Epoch(4))));
        let service = service(told(primary.clone(), false));
        let taken = take(&service, &Tried::default());
        assert_eq!((taken.endpoint().id.as_str(), taken.epoch()), ("b", Some(Epoch(4))));
        for endpoints in [told(Selection::Primary(None), false), told(primary, true)] {
            service.set_endpoints(endpoints).unwrap();
            assert!(matches!(pick(&service, &Tried::default(), &mut 1), Choice::Wait));
        }
    }

    #[test]
    fn a_primary_suspected_in_the_middle_of_the_choice_is_not_mistaken_for_a_standby() {
        for balance in [Balance::RoundRobin, Balance::LeastRequests] {
            let selection = Selection::Primary(Some(("b".into(), Epoch(4))));
            let endpoints = vec![endpoint("a"), endpoint("b")];
            let service = service(Endpoints { endpoints, selection, balance, ..Endpoints::default() });
            let primary = take(&service, &Tried::default());
            // What another worker does between two looks at the same instance.
            let meanwhile = || {
                primary.instance().suspect(Instant::now(), Duration::from_secs(9), Duration::ZERO);
                0
            };
            let chosen = choose(&service, None, &Tried::default(), &Options::default(), Instant::now(), meanwhile);
            let Choice::Take(taken) = chosen else { panic!("{chosen:?}") };
            assert_eq!(taken.endpoint().id.as_str(), "b", "{balance:?}");
        }
    }

    #[test]
    fn a_lone_suspect_is_tried_by_one_held_request_at_a_time() {
        let hold = Some(HoldPolicy { max_wait: Duration::from_secs(1), max_requests: 9 });
        let service = service(Endpoints { endpoints: vec![endpoint("a")], hold, ..Endpoints::default() });
        let taken = take(&service, &Tried::default());
        let instance = taken.instance();
        instance.suspect(Instant::now(), Duration::from_secs(9), Duration::ZERO);
        assert!(matches!(pick(&service, &Tried::default(), &mut 1), Choice::Take(_)), "the probe is due");
        assert!(matches!(pick(&service, &Tried::default(), &mut 1), Choice::WaitUntil(_)), "and taken");
        assert!(instance.trust());
        assert!(matches!(pick(&service, &Tried::default(), &mut 1), Choice::Take(_)));
    }
}
