//! A breaker for each instance, as clients see it: who fails gets no requests, the others do, and the last one is no
//! exception. A service's own breaker: `guards.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::{Instance, Rig, endpoints_of, eventually, ok};
use gateway::breaker::{BreakerPolicy, Comparator, Forced, State, WHOLE, Window};
use gateway::{Balance, BreakerScope, Endpoints, Note, Readiness, Traffic};

/// An instance that answers 500 while it is told to, and counts requests.
struct Moody {
    instance: Instance,
    bad: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
}

impl Moody {
    fn start(bad: bool) -> Self {
        let (bad, seen) = (Arc::new(AtomicBool::new(bad)), Arc::new(AtomicUsize::new(0)));
        let (is_bad, count) = (bad.clone(), seen.clone());
        let instance = Instance::start(move |mut conn| {
            while conn.head().is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                let bad = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_owned();
                if !conn.send(if is_bad.load(Ordering::SeqCst) { bad } else { ok("fine") }) {
                    return;
                }
            }
        });
        Self { instance, bad, seen }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

fn per_instance(open_for: Duration) -> Traffic {
    let breaker = BreakerPolicy {
        error_ratio: Some(WHOLE / 2),
        slow: None,
        error_count: None,
        comparator: Comparator::AtLeast,
        window: Window::Time(Duration::from_secs(60)),
        min_requests: 4,
        open_for,
        probes: 1,
    };
    Traffic { breaker: Some(breaker), breaker_scope: BreakerScope::Instance, ..Traffic::default() }
}

const LONG: Duration = Duration::from_secs(60);

fn in_turn(instances: &[&Instance]) -> Endpoints {
    Endpoints { balance: Balance::RoundRobin, ..endpoints_of(instances) }
}

fn states(rig: &Rig) -> Vec<State> {
    rig.service.guards().unwrap().instance_breakers.iter().map(|view| view.breaker.state).collect()
}

#[test]
fn who_fails_gets_no_requests_until_a_probe_has_passed_and_the_others_do() {
    let (good, bad) = (Moody::start(false), Moody::start(true));
    let rig = Rig::new(in_turn(&[&good.instance, &bad.instance]));
    rig.service.set_traffic(Some(per_instance(Duration::from_millis(300))));
    eventually("it is open", || {
        rig.get("/");
        states(&rig) == [State::Closed, State::Open]
    });
    let why = rig.service.guards().unwrap().instance_breakers[1].breaker.why.unwrap();
    assert_eq!((why.errors, why.requests), (4, 4));
    assert_eq!(rig.service.guards().unwrap().breaker.unwrap().state, State::Closed, "the service's own judges nothing");
    bad.bad.store(false, Ordering::SeqCst);
    let failed = |answer: common::Response| assert_eq!(answer.status, 200, "{answer:?}");
    eventually("it is closed again", || {
        failed(rig.get("/"));
        states(&rig) == [State::Closed, State::Closed]
    });
    let turns: Vec<(String, State)> = rig
        .service
        .take_notes()
        .into_iter()
        .map(|note| match note {
            Note::InstanceBreaker(instance, turn) => (instance.to_string(), turn.to),
            other => panic!("{other:?}"),
        })
        .collect();
    use State::{Closed, HalfOpen, Open};
    assert_eq!(turns, [Open, HalfOpen, Closed].map(|state| ("s-1".to_owned(), state)));
    rig.expect_metric("instance_breakers{service=\"s\",state=\"open\"} 0");
    rig.expect_metric("breaker_turns_total{service=\"s\",state=\"open\"} 1");
}

#[test]
fn while_it_is_open_nothing_reaches_it_and_nobody_is_refused() {
    let (good, bad) = (Moody::start(false), Moody::start(true));
    let rig = Rig::new(in_turn(&[&good.instance, &bad.instance]));
    rig.service.set_traffic(Some(per_instance(LONG)));
    eventually("it is open", || {
        rig.get("/");
        states(&rig) == [State::Closed, State::Open]
    });
    rig.expect_metric("instance_breakers{service=\"s\",state=\"open\"} 1");
    let before = (good.seen(), bad.seen());
    for _ in 0..20 {
        assert_eq!(rig.get("/").status, 200);
    }
    assert_eq!((good.seen(), bad.seen()), (before.0 + 20, before.1));
}

#[test]
fn the_only_ones_breaker_is_as_one_of_the_service() {
    let only = Moody::start(true);
    let rig = Rig::of(&[&only.instance]);
    rig.service.set_traffic(Some(per_instance(LONG)));
    for _ in 0..4 {
        assert_eq!(rig.get("/").status, 500);
    }
    eventually("it is open", || states(&rig) == [State::Open]);
    let refused = rig.get("/");
    refused.assert_reason(503, "breaker-open");
    let seconds: u64 = refused.header("Retry-After").unwrap().parse().unwrap();
    assert!((1..=61).contains(&seconds), "{seconds}");
    assert_eq!(only.seen(), 4);
    rig.expect_metric("breaker_refused_total{service=\"s\",reason=\"open\"} 1");
}

#[test]
fn an_operators_word_goes_before_them_and_a_new_process_begins_anew() {
    let only = Moody::start(true);
    let rig = Rig::of(&[&only.instance]);
    rig.service.set_traffic(Some(per_instance(LONG)));
    let open = || {
        (0..4).for_each(|_| assert_eq!(rig.get("/").status, 500));
        eventually("it is open", || states(&rig) == [State::Open]);
    };
    open();
    rig.service.force_breaker(Some(Forced::Closed)).unwrap();
    (0..8).for_each(|_| assert_eq!(rig.get("/").status, 500));
    rig.service.force_breaker(Some(Forced::Open)).unwrap();
    rig.get("/").assert_reason(503, "breaker-open");
    rig.service.force_breaker(None).unwrap();
    open();
    let mut away = endpoints_of(&[&only.instance]);
    away.endpoints[0].readiness = Readiness::NotReady;
    rig.service.set_endpoints(away).unwrap();
    rig.service.set_endpoints(endpoints_of(&[&only.instance])).unwrap();
    assert_eq!(rig.get("/").status, 500, "another process");
    rig.service.set_traffic(Some(Traffic { breaker_scope: BreakerScope::Service, ..per_instance(LONG) }));
    assert!(states(&rig).is_empty());
}
