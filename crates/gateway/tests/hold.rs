//! Holding: while nobody may take a service's requests they wait, bounded, and go on at once when somebody may.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::{Instance, Rig, answer_all, endpoints_of, eventually};
use gateway::{Endpoints, HoldPolicy, Options, Selection};
use model::Epoch;

fn hold(max_wait_ms: u64, max_requests: usize) -> Option<HoldPolicy> {
    Some(HoldPolicy { max_wait: Duration::from_millis(max_wait_ms), max_requests })
}

#[test]
fn held_requests_go_to_the_new_primary_at_once() {
    let (a, b) = (Instance::answering("a"), Instance::answering("b"));
    let mut told = endpoints_of(&[&a, &b]);
    told.selection = Selection::Primary(None);
    told.hold = hold(10_000, 100);
    let rig = Rig::new(told.clone());
    let mut clients: Vec<_> = (0..50).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    }
    eventually("all are held", || rig.service.held() == 50);
    assert_eq!(a.accepted() + b.accepted(), 0);
    told.selection = Selection::Primary(Some(("s-1".into(), Epoch(2))));
    let begun = Instant::now();
    rig.service.set_endpoints(told).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().text(), "b");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    rig.expect_metric("holds_total{service=\"s\",reason=\"released\"} 50");
    rig.expect_metric("held_requests{service=\"s\"} 0");
    assert_eq!(a.accepted(), 0);
}

#[test]
fn a_hold_is_bounded_in_time_and_number() {
    let told = Endpoints { hold: hold(150, 2), holding: true, ..Endpoints::default() };
    let rig = Rig::new(told);
    let mut waiting = [rig.client(), rig.client()];
    for client in &mut waiting {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    eventually("two are held", || rig.service.held() == 2);
    let full = rig.get("/");
    full.assert_reason(503, "hold-full");
    assert_eq!(full.header("Retry-After"), Some("1"));
    for client in &mut waiting {
        let late = client.response();
        late.assert_reason(503, "held-too-long");
        assert_eq!(late.header("Retry-After"), Some("1"));
    }
    assert_eq!(rig.service.held(), 0);
}

#[test]
fn a_hold_counts_inside_the_deadline() {
    let told = Endpoints { hold: hold(60_000, 9), ..Endpoints::default() };
    let rig = Rig::with(Options::default(), told, Some(Duration::from_millis(100)));
    rig.get("/").assert_reason(504, "timeout");
    rig.expect_metric("holds_total{service=\"s\",reason=\"deadline\"} 1");
}

#[test]
fn a_client_that_leaves_frees_its_place() {
    let told = Endpoints { hold: hold(60_000, 1), ..Endpoints::default() };
    let options = Options { half_close_grace: Duration::ZERO, ..Options::default() };
    let rig = Rig::with(options, told, None);
    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n");
    eventually("it is held", || rig.service.held() == 1);
    drop(client);
    eventually("its place is free", || rig.service.held() == 0);
    rig.expect_metric("holds_total{service=\"s\",reason=\"gone\"} 1");
    rig.expect_metric("requests_total{service=\"s\",code=\"aborted\"} 1");
}

/// Invariant: an idempotent request in flight to a primary that is killed waits for the next one.
#[test]
fn a_killed_primarys_requests_go_back_to_hold() {
    let (arrived, arrivals) = mpsc::channel();
    let arrived = std::sync::Mutex::new(arrived);
    let mut old = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            // Never answers.
            arrived.lock().unwrap().send(()).unwrap();
        }
    });
    let new = Instance::answering("new");
    let mut told = endpoints_of(&[&old, &new]);
    told.selection = Selection::Primary(Some(("s-0".into(), Epoch(1))));
    told.hold = hold(10_000, 100);
    let rig = Rig::new(told.clone());
    let mut clients: Vec<_> = (0..8).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    for _ in 0..8 {
        arrivals.recv_timeout(common::PATIENCE).unwrap();
    }
    assert_eq!(rig.service.in_flight(&"s-0".into()), 8);
    old.kill();
    eventually("all wait", || rig.service.held() == 8);
    told.selection = Selection::Primary(None);
    rig.service.set_endpoints(told.clone()).unwrap();
    told.selection = Selection::Primary(Some(("s-1".into(), Epoch(2))));
    rig.service.set_endpoints(told).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().text(), "new");
    }
    assert_eq!(rig.service.in_flight(&"s-0".into()), 0);
}

#[test]
fn a_lone_instance_that_restarts_is_found_without_the_control_plane() {
    let mut first = Instance::answering("first");
    let address = first.address;
    let told = Endpoints { hold: hold(10_000, 100), ..endpoints_of(&[&first]) };
    let rig = Rig::new(told);
    assert_eq!(rig.get("/").text(), "first");
    first.kill();
    let mut clients: Vec<_> = (0..20).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx");
    }
    eventually("all wait", || rig.service.held() >= 19);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(128).unwrap();
    let _second = Instance::on(socket.into(), |conn| answer_all(conn, "second"));
    for client in &mut clients {
        assert_eq!(client.response().text(), "second");
    }
}

/// Planned switches lose nothing, whatever the method: requests wait while nobody is primary.
#[test]
fn no_request_fails_while_the_primary_moves() {
    let (a, b) = (Instance::answering("a"), Instance::answering("b"));
    let mut told = endpoints_of(&[&a, &b]);
    told.hold = hold(10_000, 100);
    told.selection = Selection::Primary(Some(("s-0".into(), Epoch(1))));
    let rig = Rig::new(told.clone());
    let moving = std::sync::atomic::AtomicBool::new(true);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let mut client = rig.client();
                    let (mut answers, mut changes, mut last) = (0_u32, 0_u32, String::new());
                    while moving.load(std::sync::atomic::Ordering::SeqCst) || changes < 2 {
                        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
                        let response = client.response();
                        assert_eq!(response.status, 200, "{response:?}");
                        answers += 1;
                        changes += u32::from(std::mem::replace(&mut last, response.text()) != response.text());
                    }
                    answers
                })
            })
            .collect();
        for epoch in 2..60 {
            told.selection = Selection::Primary(None);
            rig.service.set_endpoints(told.clone()).unwrap();
            eventually("everybody waits", || rig.service.held() == 4);
            let next = if epoch % 2 == 0 { "s-1" } else { "s-0" };
            told.selection = Selection::Primary(Some((next.into(), Epoch(epoch))));
            rig.service.set_endpoints(told.clone()).unwrap();
            eventually("nobody waits", || rig.service.held() == 0);
        }
        moving.store(false, std::sync::atomic::Ordering::SeqCst);
        assert!(clients.into_iter().all(|client| client.join().unwrap() >= 58));
    });
}
