//! Who is taken, by what is known of everybody; and that a draw does what a walk over all would do.

use super::{Asked, Choice, Taken, Tried, choose, draw, walk};
use crate::metrics::Metrics;
use crate::options::{Balance, Options};
use crate::service::{Endpoint, Endpoints, Readiness, Selection, Service, millis};
use guard::HoldPolicy;
use model::Epoch;
use proptest::collection::vec;
use proptest::prelude::{any, proptest};
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
    let told = |selection, holding| Endpoints { endpoints: list.clone(), selection, holding, ..Endpoints::default() };
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

fn some_endpoint(number: usize, weight: u32, local: bool, ready: bool) -> Endpoint {
    let readiness = if ready { Readiness::Ready } else { Readiness::NotReady };
    Endpoint { weight, local, readiness, ..endpoint(&format!("e{number}")) }
}

fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

proptest! {
    #[test]
    fn a_draw_takes_whom_a_walk_takes(
        list in vec((0_u32..4, any::<bool>(), proptest::bool::weighted(0.8), 0_usize..3), 1..12),
        primary in proptest::option::of(0_usize..12),
        round_robin in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let endpoints = list.iter().enumerate();
        let endpoints = endpoints.map(|(at, &(weight, local, ready, _))| some_endpoint(at, weight, local, ready));
        let selection = primary.map_or(Selection::Any, |at| {
            Selection::Primary(Some((format!("e{at}").as_str().into(), Epoch(1))))
        });
        let balance = if round_robin { Balance::RoundRobin } else { Balance::LeastRequests };
        let told = Endpoints { endpoints: endpoints.collect(), selection, balance, ..Endpoints::default() };
        let (drawn, walked) = (service(told.clone()), service(told));
        for service in [&drawn, &walked] {
            for (instance, &(.., in_flight)) in service.resolved().instances.iter().zip(&list) {
                (0..in_flight).for_each(|_| instance.metrics.taken());
            }
        }
        let (options, tried, now) = (Options::default(), Tried::default(), Instant::now());
        let (mut one, mut other) = (seed, seed);
        for _ in 0..20 {
            let by_draw = choose(&drawn, None, &tried, &options, now, || next(&mut one));
            let asked = Asked { version: None, tried: &tried, now_ms: millis(now) };
            let by_walk = walk(&walked, walked.resolved(), asked, &options, || next(&mut other));
            match (by_draw, by_walk) {
                (Choice::Take(drawn), Choice::Take(walked)) => {
                    proptest::prop_assert_eq!((drawn.index, drawn.spilled), (walked.index, walked.spilled));
                }
                (Choice::Wait, Choice::Wait) => {}
                other => panic!("{other:?}"),
            }
            // A walk asks for a second one even where there is none.
            other = one;
        }
    }
}

#[test]
fn draws_that_avoid_somebody_share_like_walks_that_do() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests] {
        let weights = [3, 1, 2, 2, 4];
        let list: Vec<_> =
            weights.iter().enumerate().map(|(at, &weight)| some_endpoint(at, weight, true, true)).collect();
        let service = service(Endpoints { endpoints: list, balance, ..Endpoints::default() });
        let resolved = service.resolved();
        let now = Instant::now();
        resolved.instances[2].suspect(now, Duration::from_secs(9), Duration::ZERO);
        let mut tried = Tried::default();
        tried.add(&resolved.instances[4]);
        let (options, mut seed) = (Options::default(), 3);
        let rounds = 40_000;
        let (mut drawn, mut by_draw, mut by_walk) = (0_u32, [0_u32; 5], [0_u32; 5]);
        let mut random = || next(&mut seed);
        for _ in 0..rounds {
            if let Some(index) = draw(&service, &resolved, &tried, millis(now), &mut random) {
                drawn += 1;
                by_draw[index] += 1;
            }
        }
        for _ in 0..rounds {
            let asked = Asked { version: None, tried: &tried, now_ms: millis(now) };
            let Choice::Take(taken) = walk(&service, resolved.clone(), asked, &options, &mut random) else { panic!() };
            by_walk[taken.index] += 1;
        }
        assert!(drawn > rounds / 2, "{drawn} of {rounds} needed no walk");
        for index in 0..weights.len() {
            let share = |count: u32, all: u32| f64::from(count) / f64::from(all);
            let (draws, walks) = (share(by_draw[index], drawn), share(by_walk[index], rounds));
            assert!((draws - walks).abs() < 0.05, "{balance:?} {index}: {draws:.3} by draw, {walks:.3} by walk");
        }
        assert_eq!((by_draw[2], by_draw[4]), (0, 0));
    }
}
