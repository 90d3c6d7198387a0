//! Who goes first when a service's places run short, and places that find themselves, as clients and operators see them.
//! What that is worth under load: `overload.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Client, Instance, Rig, eventually, ok};
use gateway::{
    Action, AdaptivePolicy, Concurrency, Match, PathMatch, Places, Policy, Priority, Route, Target, Traffic,
};

/// An instance that answers when it is told to.
fn gated() -> (Instance, Arc<AtomicBool>) {
    let go = Arc::new(AtomicBool::new(false));
    let may_go = go.clone();
    let instance = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            eventually("told to answer", || may_go.load(Ordering::SeqCst));
            if !conn.send(ok("done")) {
                return;
            }
        }
    });
    (instance, go)
}

/// `/critical`, `/sheddable`, and the rest.
fn prioritised(rig: &Rig) {
    let route = |path: &str, priority| {
        let wanted = Match {
            scheme: None,
            path: Some(PathMatch::Prefix(path.to_owned())),
            method: None,
            headers: Vec::new(),
            without: Vec::new(),
            query: Vec::new(),
            ignore_path_case: false,
        };
        Route {
            name: path.to_owned(),
            series: None,
            hosts: Vec::new(),
            matches: vec![wanted],
            action: Action::Forward(Target { service: "s".into(), version: None }),
            timeout: None,
            retry: None,
            policy: Policy { priority, ..Policy::default() },
        }
    };
    let routes = vec![
        route("/critical", Priority::Critical),
        route("/sheddable", Priority::Sheddable),
        route("/", Priority::Normal),
    ];
    rig.table.set_routes(routes).unwrap();
}

fn places(rig: &Rig) -> (usize, usize) {
    let view = rig.service.guards().unwrap().concurrency.unwrap();
    (view.active, view.pending)
}

#[test]
fn what_matters_least_is_refused_first_and_what_matters_most_goes_first() {
    let (instance, go) = gated();
    let rig = Rig::of(&[&instance]);
    prioritised(&rig);
    let places_of = Places { max: 5, pending: 2 };
    let concurrency = Some(Concurrency { places: places_of, max_wait: Duration::from_secs(60) });
    rig.service.set_traffic(Some(Traffic { concurrency, ..Traffic::default() }));
    let mut count = 0;
    let mut ask = |path: &str, want: (usize, usize)| -> Client {
        let mut client = rig.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        count += 1;
        eventually(&format!("{count}: {path}"), || places(&rig) == want);
        client
    };
    let mut served: Vec<Client> = (1..=4).map(|active| ask("/sheddable", (active, 0))).collect();
    let shed = rig.get("/sheddable");
    shed.assert_reason(503, "shed");
    assert_eq!(shed.header("Retry-After"), Some("1"));
    served.push(ask("/", (5, 0)));
    served.push(ask("/", (5, 1)));
    let mut last = ask("/", (5, 2));
    rig.get("/").assert_reason(503, "too-many-requests-pending");
    served.push(ask("/critical", (5, 2)));
    last.response().assert_reason(503, "shed");
    rig.expect_metric("shed_total{service=\"s\",priority=\"sheddable\"} 1");
    rig.expect_metric("shed_total{service=\"s\",priority=\"normal\"} 1");
    rig.expect_metric("shed_total{service=\"s\",priority=\"critical\"} 0");
    go.store(true, Ordering::SeqCst);
    served.iter_mut().for_each(|client| assert_eq!(client.response().text(), "done"));
    eventually("all places are free", || places(&rig) == (0, 0));
}

#[test]
fn places_that_find_themselves_are_shown() {
    let instance = Instance::answering("quick");
    let rig = Rig::of(&[&instance]);
    let adaptive = AdaptivePolicy {
        min: 2,
        max: 4,
        interval: Duration::from_millis(10),
        min_rtt_interval: Duration::from_secs(60),
        min_rtt_requests: 5,
        buffer: 250_000,
    };
    let concurrency = Some(Concurrency { places: Places { max: 9, pending: 50 }, max_wait: Duration::from_secs(10) });
    let traffic = Traffic { concurrency, adaptive: Some(adaptive), ..Traffic::default() };
    rig.service.set_traffic(Some(traffic.clone()));
    let view = || rig.service.guards().unwrap().concurrency.unwrap();
    assert_eq!((view().places.max, view().adaptive.unwrap().min_rtt), (2, None));
    rig.expect_metric("concurrency_requests{service=\"s\",state=\"max\"} 2");
    eventually("it is measured", || {
        assert_eq!(rig.get("/").status, 200);
        view().adaptive.unwrap().min_rtt.is_some()
    });
    // One at a time is half of the limit: it is used, and answers take no longer.
    eventually("the limit grows", || {
        rig.get("/");
        view().places.max > 2
    });
    let found = view().places.max;
    rig.service.set_traffic(Some(traffic));
    assert_eq!(view().places.max, found, "what was found stays");
    rig.service.set_traffic(Some(Traffic { concurrency, ..Traffic::default() }));
    assert_eq!((view().places.max, view().adaptive), (9, None));
}
