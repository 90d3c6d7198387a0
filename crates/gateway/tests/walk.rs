//! Retry, hold, deadline, drain, back-pressure, disconnect: what a client notices of each, over real sockets.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{Client, Instance, Rig, endpoint, endpoints_of, eventually, find};
use gateway::{Endpoint, Endpoints, Options, Readiness, Selection, Signal};
use model::Epoch;

/// An address nobody listens on.
fn dead_address() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An instance that takes a request and ends the connection without a word.
fn closing() -> Instance {
    Instance::start(|mut conn| {
        let head = conn.head().unwrap_or_default();
        conn.body(&head);
    })
}

#[test]
fn no_route_and_no_instance_are_told_apart() {
    let rig = Rig::new(Endpoints::default());
    let response = rig.get("/");
    response.assert_reason(503, "no-ready-instance");
    assert_eq!(response.header("Retry-After"), Some("1"));
    rig.table.set_routes(Vec::new()).unwrap();
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html, application/json\r\n\r\n");
    let response = client.response();
    response.assert_reason(404, "no-route");
    assert_eq!(response.text(), "{\"status\":404,\"reason\":\"no-route\"}\n");
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 404, "the connection stayed open");
    client.assert_closed();
    rig.table.set_unknown(true);
    let response = rig.get("/");
    response.assert_reason(503, "routes-unknown");
    assert_eq!(response.header("Retry-After"), Some("1"));
}

#[test]
fn a_refused_connection_is_tried_elsewhere_whatever_the_method() {
    let live = Instance::answering("live");
    let mut told = endpoints_of(&[&live]);
    told.endpoints.push(endpoint("dead", dead_address()));
    let mut rig = Rig::new(told);
    for _ in 0..20 {
        let mut client = rig.client();
        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc");
        assert_eq!(client.response().text(), "live");
    }
    let signal = rig.signals.blocking_recv().unwrap();
    assert_eq!(signal, Signal::ConnectFailed { service: "s".into(), instance: "dead".into() });
    let text = rig.metrics();
    let tries: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("seawall_gateway_retries_total{service=\"s\",reason=\"connect\"} "))
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=3).contains(&tries), "{tries} tries: the dead instance is avoided for a second");
}

#[test]
fn a_reset_before_any_byte_is_repaired_for_idempotent_methods_only() {
    let (bad, good) = (closing(), Instance::answering("good"));
    for (request, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        ("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 200),
        ("DELETE / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 502),
        ("PATCH / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 502),
    ] {
        // Only the bad one is local: it is taken first.
        let mut told = endpoints_of(&[&bad, &good]);
        told.endpoints[1].local = false;
        let rig = Rig::new(told);
        let mut client = rig.client();
        client.send(request);
        let response = client.response();
        assert_eq!(response.status, status, "{request:?}: {response:?}");
        if status == 502 {
            response.assert_reason(502, "instance-closed");
        }
    }
    let seen = good.seen();
    assert!(find(&seen, b"abc").is_some() && find(&seen, b"3\r\nabc\r\n0\r\n\r\n").is_some(), "bodies were sent again");
}

#[test]
fn a_body_beyond_the_replay_limit_is_not_sent_again() {
    let (bad, good) = (closing(), Instance::answering("good"));
    let mut told = endpoints_of(&[&bad, &good]);
    told.endpoints[1].local = false;
    told.replay_limit = 10;
    let rig = Rig::new(told);
    let mut client = rig.client();
    client.send("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 11\r\n\r\n12345678901");
    client.response().assert_reason(502, "instance-closed");
    assert_eq!(good.accepted(), 0);
}

#[test]
fn attempts_are_bounded_and_spread() {
    let bad: Vec<_> = (0..5).map(|_| closing()).collect();
    let rig = Rig::of(&bad.iter().collect::<Vec<_>>());
    rig.get("/").assert_reason(502, "instance-closed");
    let accepted: Vec<_> = bad.iter().map(Instance::accepted).collect();
    assert_eq!(accepted.iter().sum::<usize>(), 3, "{accepted:?}");
    assert!(accepted.iter().all(|&count| count <= 1), "the same one twice while others live: {accepted:?}");
}

#[test]
fn a_stale_pooled_connection_costs_nothing() {
    // Closes each connection after one answer without saying so.
    let instance = Instance::start(|mut conn| {
        if conn.head().is_some() {
            conn.send(common::ok("once"));
        }
    });
    let rig =
        Rig::with(Options { workers: 1, max_attempts: 1, ..Options::default() }, endpoints_of(&[&instance]), None);
    let mut client = rig.client();
    for method in ["GET", "POST", "GET", "POST", "GET"] {
        client.send(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.response().text(), "once");
        let left = instance.accepted();
        eventually("the instance has closed", || instance.accepted() == left);
        std::thread::yield_now();
    }
}

#[test]
fn keep_alive_connections_are_shared_by_clients_of_a_worker() {
    let instance = Instance::answering("x");
    let rig = Rig::with(Options { workers: 1, ..Options::default() }, endpoints_of(&[&instance]), None);
    for _ in 0..10 {
        assert_eq!(rig.get("/").text(), "x");
    }
    assert_eq!(instance.accepted(), 1);
    rig.expect_metric("pool_connections{service=\"s\",instance=\"s-0\",state=\"idle\"} 1");
    rig.expect_metric("pool_connections{service=\"s\",instance=\"s-0\",state=\"busy\"} 0");
    rig.expect_metric("connections 0");
}

#[test]
fn local_instances_first_and_spill_is_told() {
    let (local, remote) = (Instance::answering("local"), Instance::answering("remote"));
    let mut told = endpoints_of(&[&local, &remote]);
    told.endpoints[1].local = false;
    let mut rig = Rig::new(told.clone());
    assert!((0..10).all(|_| rig.get("/").text() == "local"));
    told.endpoints[0].readiness = Readiness::NotReady;
    rig.service.set_endpoints(told).unwrap();
    assert_eq!(rig.get("/").text(), "remote");
    let spilled = Signal::Spilled { service: "s".into(), instance: "s-1".into() };
    assert_eq!(rig.signals.blocking_recv(), Some(spilled));
}

#[test]
fn the_primary_alone_gets_requests_and_its_epoch() {
    let (a, b) = (Instance::answering("a"), Instance::answering("b"));
    let mut told = endpoints_of(&[&a, &b]);
    told.selection = Selection::Primary(Some(("s-1".into(), Epoch(17))));
    let rig = Rig::new(told);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nSeawall-Epoch: 99\r\n\r\n");
    assert_eq!(client.response().text(), "b");
    let seen = String::from_utf8(b.seen()).unwrap();
    assert!(seen.contains("\r\nSeawall-Epoch: 17\r\n") && !seen.contains("Epoch: 99"), "{seen}");
    assert_eq!(a.accepted(), 0);
}

#[test]
fn a_deadline_cuts_off_and_cancels() {
    let (ended, ends) = mpsc::channel();
    let ended = std::sync::Mutex::new(ended);
    let instance = Instance::start(move |mut conn| {
        conn.head();
        assert!(conn.head().is_none());
        ended.lock().unwrap().send(()).unwrap();
    });
    let mut rig = Rig::with(Options::default(), endpoints_of(&[&instance]), Some(Duration::from_millis(80)));
    let begun = Instant::now();
    rig.get("/").assert_reason(504, "timeout");
    assert!(begun.elapsed() >= Duration::from_millis(80));
    ends.recv_timeout(common::PATIENCE).expect("the instance's connection was closed");
    assert_eq!(rig.signals.blocking_recv(), Some(Signal::TimedOut { service: "s".into(), instance: "s-0".into() }));
}

#[test]
fn a_client_that_leaves_cancels_its_request() {
    let (ended, ends) = mpsc::channel();
    let ended = std::sync::Mutex::new(ended);
    let instance = Instance::start(move |mut conn| {
        let head = conn.head();
        ended.lock().unwrap().send(head.is_some()).unwrap();
        assert!(conn.head().is_none());
        ended.lock().unwrap().send(false).unwrap();
    });
    let options = Options { half_close_grace: Duration::ZERO, ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(ends.recv_timeout(common::PATIENCE).unwrap(), "it arrived");
    drop(client);
    assert!(!ends.recv_timeout(common::PATIENCE).unwrap(), "and was cancelled");
    rig.expect_metric("in_flight_requests{service=\"s\",instance=\"s-0\"} 0");
}

#[test]
fn a_client_that_only_says_that_was_all_gets_its_answer() {
    let instance = Instance::answering("x");
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    client.send("GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((client.response().text(), client.response().text()), ("x".into(), "x".into()));
    client.assert_closed();
}

#[test]
fn a_body_that_never_comes_is_408_and_a_head_too() {
    let instance = Instance::answering("x");
    let options = Options {
        workers: 1,
        stall_timeout: Duration::from_millis(80),
        header_timeout: Duration::from_millis(80),
        idle_timeout: Duration::from_millis(80),
        ..Options::default()
    };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc");
    client.response().assert_reason(408, "bad-request:body-timeout");
    let mut client = rig.client();
    client.send("POST / HTT");
    client.response().assert_reason(408, "bad-request:head-timeout");
    client.assert_closed();
    // Idle ones are closed without a word.
    rig.client().assert_closed();
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response().status, 200);
    client.assert_closed();
}

/// An instance that takes everything and counts, and one that gives without end, meet a peer that does not move.
#[test]
fn back_pressure_reaches_the_other_side_in_both_directions() {
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let instance = Instance::start(move |mut conn| {
        let head = conn.head().unwrap_or_default();
        if head.starts_with("GET") {
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            conn.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            while let Ok(some) = conn.stream.write(&[b'x'; 16_384]) {
                count.fetch_add(some, Ordering::SeqCst);
            }
        } else {
            // Reads nothing until the client has given up.
            std::thread::sleep(Duration::from_millis(1));
            let mut byte = [0];
            while conn.stream.peek(&mut byte).is_ok_and(|count| count > 0) && Arc::strong_count(&count) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    let mut last = 0;
    eventually("the instance is stopped", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = given.load(Ordering::SeqCst);
        std::mem::replace(&mut last, now) == now
    });
    assert!(last < 64 << 20, "{last} bytes were taken for a client that reads none");

    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n");
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut taken = 0;
    while let Ok(some) = client.stream.write(&[b'x'; 16_384]) {
        taken += some;
    }
    assert!(taken < 64 << 20, "{taken} bytes were taken for an instance that reads none");
}

#[test]
fn large_bodies_pass_unharmed_in_both_directions() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let body = conn.body(&head);
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
            conn.send(body);
        }
    });
    let rig = Rig::of(&[&instance]);
    let body: Vec<u8> = (0..3_000_000_u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut client = rig.client();
    for _ in 0..2 {
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()));
        let mut writer = client.stream.try_clone().unwrap();
        let copy = body.clone();
        let writing = std::thread::spawn(move || writer.write_all(&copy).unwrap());
        assert!(client.response().body == body, "bytes were changed on the way");
        writing.join().unwrap();
    }
    assert_eq!(instance.accepted(), 1);
}

#[test]
fn drain_lets_requests_end_and_says_what_is_left() {
    let (arrived, arrivals) = mpsc::channel();
    let (go, gate) = mpsc::channel::<()>();
    let (arrived, gate) = (std::sync::Mutex::new(arrived), std::sync::Mutex::new(gate));
    let instance = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            arrived.lock().unwrap().send(()).unwrap();
            let _ = gate.lock().unwrap().recv_timeout(common::PATIENCE);
            conn.send(common::ok("late"));
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut idle = rig.client();
    idle.send("GET");
    let mut idle_kept = rig.client();
    let mut busy = rig.client();
    busy.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    arrivals.recv_timeout(common::PATIENCE).unwrap();
    eventually("three are open", || rig.gateway.as_ref().unwrap().connections() == 3);
    drop(idle);
    // Long enough for connections between two requests, which are kept for a moment.
    assert_eq!(rig.drain(Duration::from_secs(1)), 1, "one request is not over");
    idle_kept.assert_closed();
    go.send(()).unwrap();
    let response = busy.response();
    assert_eq!((response.text().as_str(), response.header("Connection")), ("late", Some("close")));
    busy.assert_closed();
    drop(busy);
    assert_eq!(rig.drain(common::PATIENCE), 0);
    assert!(std::net::TcpStream::connect(rig.address).is_err(), "the socket is closed");
}

#[test]
fn one_connection_too_many_is_told_so() {
    let instance = Instance::answering("x");
    let options = Options { workers: 2, max_connections: 2, ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let (one, _two) = (rig.client(), rig.client());
    eventually("two are open", || rig.gateway.as_ref().unwrap().connections() == 2);
    let mut third = rig.client();
    third.response().assert_reason(503, "too-many-connections");
    third.assert_closed();
    drop(one);
    eventually("one has gone", || rig.gateway.as_ref().unwrap().connections() == 1);
    assert_eq!(rig.get("/").text(), "x");
}

#[test]
fn access_records_say_what_happened() {
    let instance = Instance::answering("body");
    let (sender, mut records) = tokio::sync::mpsc::channel(1);
    let options = Options { workers: 1, access_log: Some(sender), ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let mut client = rig.client();
    client.send("GET /p?q HTTP/1.1\r\nHost: h:1\r\nX-Request-Id: r1\r\n\r\n");
    client.response();
    let record = records.blocking_recv().unwrap();
    assert_eq!((record.method.as_str(), record.path.as_str(), record.host.as_str()), ("GET", "/p?q", "h:1"));
    assert_eq!((record.status, record.bytes, record.request_id.as_str()), (200, 4, "r1"));
    assert_eq!(record.instance.unwrap().as_str(), "s-0");
    assert_eq!(record.trace_id.len(), 32);
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        client.response();
    }
    rig.expect_metric("access_records_dropped_total 2");
}

#[test]
fn one_socket_for_all_workers_or_one_for_each() {
    let instance = Instance::answering("x");
    for sockets in [1, 2, 3] {
        let before = instance.accepted();
        let rig = Rig::on(sockets, Options { workers: 2, ..Options::default() }, endpoints_of(&[&instance]), None);
        let mut kept: Vec<Client> = (0..16).map(|_| rig.client()).collect();
        for client in &mut kept {
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(client.response().text(), "x");
        }
        assert!(instance.accepted() - before <= 2, "at most one connection per worker, one request at a time");
    }
}

#[test]
fn a_chunked_body_too_large_is_413_and_its_end_reaches_nobody() {
    let instance = Instance::answering("x");
    let options = Options { max_body_bytes: Some(10), ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let mut client = rig.client();
    let chunks =
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n";
    client.send(chunks);
    client.response().assert_reason(413, "bad-request:body-too-large");
    client.assert_closed();
    assert!(find(&instance.seen(), b"0\r\n\r\n").is_none());
}

#[test]
fn trailers_go_along() {
    let instance = Instance::start(|mut conn| {
        let head = conn.head().unwrap_or_default();
        assert!(head.contains("TE: trailers\r\n"), "{head}");
        // The body's last line looks like a head's.
        conn.head();
        conn.send(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum: 2\r\nSet-Cookie: x\r\n\r\n",
        );
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: close, TE\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\n");
    client.head().unwrap();
    assert_eq!(client.until_end(), b"1\r\na\r\n0\r\nX-Sum: 2\r\n\r\n");
    let seen = String::from_utf8(instance.seen()).unwrap();
    assert!(seen.ends_with("\r\n\r\n0\r\nX-Sum: 1\r\n\r\n"), "{seen}");
}

#[test]
fn versions_of_a_service_are_subsets() {
    let (one, two) = (Instance::answering("one"), Instance::answering("two"));
    let mut told = endpoints_of(&[&one, &two]);
    let version = |endpoint: &mut Endpoint, name: &str| endpoint.version = Some(name.into());
    version(&mut told.endpoints[0], "v1");
    version(&mut told.endpoints[1], "v2");
    let rig = Rig::new(told);
    let route = |path: &str, version: Option<&str>| gateway::Route {
        name: path.into(),
        series: None,
        hosts: Vec::new(),
        matches: vec![gateway::Match { path: Some(gateway::PathMatch::Prefix(path.into())), ..Default::default() }],
        action: gateway::Action::Forward(gateway::Target { service: "s".into(), version: version.map(Into::into) }),
        policy: gateway::Policy::default(),
        timeout: None,
        retry: None,
    };
    rig.table.set_routes(vec![route("/2", Some("v2")), route("/3", Some("v3")), route("/", Some("v1"))]).unwrap();
    assert!((0..5).all(|_| rig.get("/x").text() == "one" && rig.get("/2/x").text() == "two"));
    rig.get("/3").assert_reason(503, "no-ready-instance");
}

#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    let instance = Instance::start(|mut conn| {
        conn.head();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while conn.send([b'x'; 16_384]) {}
    });
    let options = Options { stall_timeout: Duration::from_millis(100), ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    rig.expect_metric("requests_total{service=\"s\",code=\"aborted\"} 1");
    rig.expect_metric("clients_cut_total{reason=\"stalled\"} 1");
    rig.expect_metric("connections 0");
    rig.expect_metric("pool_connections{service=\"s\",instance=\"s-0\",state=\"busy\"} 0");
}

#[test]
fn a_deadline_within_a_body_cuts_the_answer() {
    let instance = Instance::start(|mut conn| {
        conn.head();
        conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n");
        conn.head();
    });
    let rig = Rig::with(Options::default(), endpoints_of(&[&instance]), Some(Duration::from_millis(80)));
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.head().unwrap().0, 200);
    assert_eq!(client.until_end(), b"1\r\na\r\n", "no last chunk: the client can tell");
}
