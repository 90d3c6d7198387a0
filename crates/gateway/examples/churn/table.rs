//! The table and its swaps: what a control plane would tell the gateway, as fast as asked.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use gateway::{Action, Endpoint, Endpoints, HostMatch, Match, PathMatch, Policy, Readiness, Route, Service, Target};

use crate::{BIG, BIG_SWAPS, CHANGES, INSTANCES, ROUTE_SWAPS, ROUTES_EACH, SERVICES, Stage};

/// All services but the big one, and what they were told last.
pub struct Fleet {
    services: Vec<(String, Arc<Service>, Vec<Endpoint>)>,
    changes: usize,
}

/// The one big service.
pub struct Big {
    service: Arc<Service>,
    endpoints: Vec<Endpoint>,
    next: u64,
}

impl Fleet {
    pub fn new(stage: &Stage) -> Self {
        let of = |number| {
            let name = format!("s-{number}");
            let service = stage.table.service(&name.as_str().into());
            let endpoints: Vec<_> = (0..INSTANCES as u64).map(|slot| endpoint(&name, slot, stage)).collect();
            tell(&service, &endpoints);
            (name, service, endpoints)
        };
        Self { services: (0..SERVICES).map(of).collect(), changes: 0 }
    }

    /// The next service in turn has one instance replaced.
    fn change(&mut self, stage: &Stage) -> Duration {
        let turn = self.changes / SERVICES;
        let (name, service, endpoints) = &mut self.services[self.changes % SERVICES];
        endpoints[turn % INSTANCES] = endpoint(name, (INSTANCES + turn) as u64, stage);
        self.changes += 1;
        tell(service, endpoints)
    }
}

/// Changes of endpoints while asked for; how long each took.
pub fn changes(stage: &Stage, fleet: &mut Fleet) -> Vec<Duration> {
    paced(stage, CHANGES, || fleet.change(stage))
}

/// All routes swapped for as many new ones.
pub fn swap_routes(stage: &Stage) -> Vec<Duration> {
    paced(stage, ROUTE_SWAPS, || {
        let routes = routes();
        let begun = Instant::now();
        stage.table.set_routes(routes).expect("no regular expression");
        begun.elapsed()
    })
}

pub fn big(stage: &Stage) -> Big {
    let service = stage.table.service(&"big".into());
    let endpoints = (0..BIG as u64).map(|slot| endpoint("big", slot, stage)).collect();
    let mut big = Big { service, endpoints, next: BIG as u64 };
    big.endpoints.shrink_to_fit();
    tell(&big.service, &big.endpoints);
    big
}

/// One of its instances replaced in each swap.
pub fn swap_big(stage: &Stage, big: &mut Big) -> Vec<Duration> {
    paced(stage, BIG_SWAPS, || {
        let slot = big.next as usize * 7_919 % BIG;
        big.endpoints[slot] = endpoint("big", big.next, stage);
        big.next += 1;
        tell(&big.service, &big.endpoints)
    })
}

/// All of its instances replaced at once.
pub fn replace_big(stage: &Stage, big: &mut Big) -> Duration {
    let all = (0..BIG as u64).map(|slot| endpoint("big", big.next + slot, stage)).collect();
    big.endpoints = all;
    tell(&big.service, &big.endpoints)
}

/// Every service by its host, with ten prefixes each; the hot, the probed and the big one are no exception.
pub fn routes() -> Vec<Route> {
    let names = (0..SERVICES).map(|number| format!("s-{number}")).chain(["probe".to_owned(), "big".to_owned()]);
    let of = |name: String| {
        (0..ROUTES_EACH).map(move |route| Route {
            name: format!("{name}-{route}"),
            series: None,
            hosts: vec![HostMatch::Exact(format!("{name}.example"))],
            matches: vec![Match { path: Some(PathMatch::Prefix(format!("/r-{route}"))), ..Match::default() }],
            action: Action::Forward(Target { service: name.as_str().into(), version: None }),
            timeout: None,
            retry: None,
            policy: Policy::default(),
        })
    };
    names.flat_map(of).collect()
}

/// An instance at an address of its own, or nearly so.
pub fn endpoint(service: &str, number: u64, stage: &Stage) -> Endpoint {
    let mut state = service.bytes().fold(number, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
    let drawn = random(&mut state);
    let address = Ipv4Addr::new(127, (drawn >> 8) as u8, (drawn >> 16) as u8, (drawn >> 24) as u8 % 250 + 2);
    Endpoint {
        id: format!("{service}-{number}").as_str().into(),
        address: (address, stage.port).into(),
        version: None,
        readiness: Readiness::Ready,
        weight: 1,
        local: true,
    }
}

/// Splitmix64.
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn tell(service: &Service, endpoints: &[Endpoint]) -> Duration {
    let told = Endpoints { endpoints: endpoints.to_vec(), ..Endpoints::default() };
    let begun = Instant::now();
    service.set_endpoints(told).expect("no epoch");
    begun.elapsed()
}

/// Does so many in a second, and catches up if it was late, while swapping is asked for.
fn paced(stage: &Stage, rate: u64, mut swap: impl FnMut() -> Duration) -> Vec<Duration> {
    let mut took = Vec::new();
    let pace = Duration::from_secs(1) / rate as u32;
    let mut due = Instant::now();
    while !stage.over.load(Ordering::Relaxed) {
        if !stage.swapping.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(1));
            due = Instant::now();
            continue;
        }
        let now = Instant::now();
        if now < due {
            std::thread::sleep(due - now);
        }
        due += pace;
        took.push(swap());
    }
    took
}
