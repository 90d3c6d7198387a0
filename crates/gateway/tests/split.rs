//! Destinations that share a route's requests, as clients see them: shares that hold in every stretch, clients that come
//! back to the same, and what is counted of each destination.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::{Client, Instance, Rig, endpoint, eventually, ok};
use gateway::{Action, Endpoints, HostMatch, Part, Policy, Route, Split, Sticky, Tally, Target};

fn route(name: &str, host: Option<&str>, action: Action) -> Route {
    Route {
        name: name.into(),
        series: None,
        hosts: host.map(HostMatch::parse).into_iter().collect(),
        matches: Vec::new(),
        action,
        timeout: None,
        retry: None,
        policy: Policy::default(),
    }
}

fn part(service: &str, version: Option<&str>, weight: u32) -> Part {
    let target = Target { service: service.into(), version: version.map(Into::into) };
    Part { target, weight, tally: None }
}

/// `s` in two versions, two instances each.
struct Shop {
    _instances: Vec<Instance>,
    rig: Rig,
}

impl Shop {
    fn open(parts: Vec<Part>, sticky: Option<Sticky>) -> Self {
        let instances: Vec<Instance> = ["v1", "v1", "v2", "v2"].map(Instance::answering).into();
        let endpoints = instances
            .iter()
            .zip(["v1", "v1", "v2", "v2"])
            .enumerate()
            .map(|(index, (instance, version))| {
                let mut endpoint = endpoint(&format!("s-{version}-{index}"), instance.address);
                endpoint.version = Some(version.into());
                endpoint
            })
            .collect();
        let rig = Rig::new(Endpoints { endpoints, ..Endpoints::default() });
        rig.table.set_routes(vec![route("split", None, Action::Split(Split { parts, sticky }))]).unwrap();
        Self { _instances: instances, rig }
    }

    fn ask(&self, client: &mut Client, field: &str) -> String {
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{field}\r\n"));
        client.response().text()
    }
}

/// Istio's `weight`, and nginx' smooth order: not only in the mean.
#[test]
fn shares_hold_in_every_stretch_over_all_connections() {
    let shop = Shop::open(vec![part("s", Some("v1"), 80), part("s", Some("v2"), 20)], None);
    // More connections than workers: the turns are shared.
    let mut clients: Vec<Client> = (0..8).map(|_| shop.rig.client()).collect();
    let mut seen = 0;
    for asked in 1..=500 {
        seen += usize::from(shop.ask(&mut clients[asked % 8], "") == "v2");
        assert!((seen as f64 - asked as f64 * 0.2).abs() <= 1.0, "{seen} of {asked} went to v2");
    }
    assert_eq!(seen, 100);
}

#[test]
fn a_weight_of_zero_gets_nothing_and_a_change_holds_from_the_next_request() {
    let tally = Arc::new(Tally::default());
    let shop = Shop::open(vec![part("s", Some("v1"), 1), part("s", Some("v2"), 0)], None);
    let mut client = shop.rig.client();
    assert!((0..20).all(|_| shop.ask(&mut client, "") == "v1"));
    let counted = Part { tally: Some(tally.clone()), ..part("s", Some("v2"), 1) };
    let split = Split { parts: vec![part("s", Some("v1"), 0), counted], sticky: None };
    shop.rig.table.set_routes(vec![route("split", None, Action::Split(split))]).unwrap();
    assert!((0..20).all(|_| shop.ask(&mut client, "") == "v2"), "on the same connection");
    eventually("all are counted", || tally.read().requests == 20);
    assert_eq!(tally.read().failed, 0);
    assert!(tally.read().quantile(0.99).unwrap() < Duration::from_secs(1));
}

#[test]
fn a_client_comes_back_to_the_same_version_and_is_moved_one_way_only() {
    let parts = |percent: u32| vec![part("s", Some("v1"), 100 - percent), part("s", Some("v2"), percent)];
    for (sticky, field) in
        [(Sticky::Header("X-User".into()), "X-User: "), (Sticky::Cookie("user".into()), "Cookie: theme=dark; user=")]
    {
        let shop = Shop::open(parts(10), Some(sticky.clone()));
        let mut client = shop.rig.client();
        let mut at: BTreeMap<u32, String> = BTreeMap::new();
        for percent in [10, 50, 100] {
            let split = Split { parts: parts(percent), sticky: Some(sticky.clone()) };
            shop.rig.table.set_routes(vec![route("split", None, Action::Split(split))]).unwrap();
            for user in 0..300 {
                let version = shop.ask(&mut client, &format!("{field}{user}\r\n"));
                assert_eq!(version, shop.ask(&mut client, &format!("{field}{user}\r\n")), "user {user}");
                let before = at.insert(user, version.clone());
                assert!(before.is_none_or(|before| before <= version), "user {user} was moved back");
            }
            let share = at.values().filter(|version| *version == "v2").count() as f64 / 3.0;
            assert!((share - f64::from(percent)).abs() < 8.0, "{share} % instead of {percent}");
        }
    }
}

#[test]
fn destinations_may_be_of_other_services_and_failures_are_counted_for_each() {
    let bad = Instance::start(|mut conn| {
        while conn.head().is_some() {
            conn.send("HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let shop = Shop::open(vec![part("s", None, 1)], None);
    let endpoints = Endpoints { endpoints: vec![endpoint("t-0", bad.address)], ..Endpoints::default() };
    shop.rig.table.service(&"t".into()).set_endpoints(endpoints).unwrap();
    let tallies: Vec<Arc<Tally>> = vec![Arc::default(), Arc::default()];
    let parts = [("s", 3), ("t", 1)].into_iter().zip(&tallies);
    let parts = parts.map(|((name, weight), tally)| Part { tally: Some(tally.clone()), ..part(name, None, weight) });
    let split = Split { parts: parts.collect(), sticky: None };
    shop.rig.table.set_routes(vec![route("split", None, Action::Split(split))]).unwrap();
    let failed = (0..40).filter(|_| shop.rig.get("/").status == 503).count();
    assert_eq!(failed, 10);
    eventually("all are counted", || tallies[0].read().requests == 30 && tallies[1].read().requests == 10);
    assert_eq!((tallies[0].read().failed, tallies[1].read().failed), (0, 10));
    shop.rig.expect_metric("requests_total{service=\"t\",code=\"5xx\"} 10");
}

/// The source document's last step: success over the whole chain, hops told by `traceparent` (W3C Trace Context).
#[test]
fn a_failure_that_a_hop_hides_from_its_caller_counts_in_the_chain() {
    let tally = Arc::new(Tally::default());
    let broken = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let fine = head.starts_with("GET /fine");
            conn.send(if fine { ok("fine") } else { "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".into() });
        }
    });
    let (asks, told) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    // Asks the hop through the gateway, and says that all is well whatever comes of it.
    let caller = Instance::start(move |mut conn| {
        let address: std::net::SocketAddr = told.lock().unwrap().recv().unwrap();
        while let Some(head) = conn.head() {
            let trace = head.lines().find(|line| line.starts_with("traceparent")).unwrap();
            let path = head.split(' ').nth(1).unwrap();
            let mut client = Client::to(address);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: hop\r\n{trace}\r\nConnection: close\r\n\r\n"));
            client.response();
            conn.send(ok("well"));
        }
    });
    let rig = Rig::of(&[&caller]);
    asks.send(rig.address).unwrap();
    let endpoints = Endpoints { endpoints: vec![endpoint("t-0", broken.address)], ..Endpoints::default() };
    rig.table.service(&"t".into()).set_endpoints(endpoints).unwrap();
    let root = Split { parts: vec![Part { tally: Some(tally.clone()), ..part("s", None, 1) }], sticky: None };
    let hop = Action::Forward(Target { service: "t".into(), version: None });
    rig.table.set_routes(vec![route("hop", Some("hop"), hop), route("root", None, Action::Split(root))]).unwrap();
    let mut client = rig.client();
    for path in ["/fine", "/broken", "/fine"] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.response().status, 200);
    }
    eventually("all are counted", || tally.read().requests == 3);
    assert_eq!((tally.read().failed, tally.read().chains_failed), (0, 1));
}
