//! Fallbacks that are more than a fixed answer, as clients see them: another service, and what the service answered
//! before. The fixed one: `guards.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Instance, Response, Rig, answer_all, endpoints_of, ok};
use gateway::{Concurrency, Endpoints, Fallback, KeepPolicy, Places, Traffic};

fn fixed(body: &str) -> Option<Arc<Fallback>> {
    Some(Arc::new(Fallback { status: 200, headers: Vec::new(), body: body.as_bytes().to_vec() }))
}

fn to(service: &str) -> Traffic {
    Traffic { fallback_service: Some(service.into()), ..Traffic::default() }
}

fn reason(answer: &Response) -> Option<&str> {
    answer.header("Seawall-Reason")
}

fn nobody() -> Rig {
    Rig::new(Endpoints::default())
}

#[test]
fn another_service_answers_and_says_why() {
    let other = Instance::answering("other");
    let rig = nobody();
    rig.service.set_traffic(Some(to("t")));
    rig.table.service(&"t".into()).set_endpoints(endpoints_of(&[&other])).unwrap();
    let answer = rig.get("/");
    assert_eq!((answer.status, answer.text().as_str(), reason(&answer)), (200, "other", Some("no-ready-instance")));
    rig.expect_metric("fallbacks_total{service=\"s\",reason=\"no-ready-instance\"} 1");
    rig.expect_metric("fallback_answers_total{service=\"s\",kind=\"service\"} 1");
    rig.expect_metric("requests_total{service=\"s\",code=\"2xx\"} 1");
}

#[test]
fn its_guards_hold_and_its_own_fallback_too() {
    let rig = nobody();
    let (t, u) = (rig.table.service(&"t".into()), rig.table.service(&"u".into()));
    rig.service.set_traffic(Some(Traffic { fallback: fixed("of s"), ..to("t") }));
    rig.get("/").assert_reason(200, "no-ready-instance");
    assert_eq!(rig.get("/").text(), "of s", "nobody is there either: what the first one has");
    t.set_traffic(Some(Traffic { fallback: fixed("of t"), ..to("u") }));
    assert_eq!(rig.get("/").text(), "of t");
    let last = Instance::answering("u");
    u.set_endpoints(endpoints_of(&[&last])).unwrap();
    assert_eq!(rig.get("/").text(), "u");
    let held = Instance::start(|mut conn| while !conn.some().is_empty() {});
    t.set_endpoints(endpoints_of(&[&held])).unwrap();
    let places = Places { max: 1, pending: 0 };
    let concurrency = Some(Concurrency { places, max_wait: Duration::from_secs(1) });
    t.set_traffic(Some(Traffic { concurrency, fallback: fixed("full"), ..Traffic::default() }));
    let mut first = rig.client();
    first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    common::eventually("it has the only place", || !held.seen().is_empty());
    let answer = rig.get("/");
    assert_eq!((answer.text().as_str(), reason(&answer)), ("full", Some("too-many-requests-pending")));
}

#[test]
fn a_circle_ends() {
    let rig = nobody();
    rig.service.set_traffic(Some(to("t")));
    rig.table.service(&"t".into()).set_traffic(Some(to("s")));
    rig.get("/").assert_reason(503, "no-ready-instance");
}

#[test]
fn a_body_goes_along_whole_whatever_became_of_it_before() {
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let echo = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let body = conn.body(&head);
            conn.send(ok(&String::from_utf8(body).unwrap()));
        }
    });
    let endpoints = Endpoints { endpoints: vec![common::endpoint("s-0", refusing)], ..Endpoints::default() };
    let rig = Rig::new(endpoints);
    rig.service.set_traffic(Some(to("t")));
    rig.table.service(&"t".into()).set_endpoints(endpoints_of(&[&echo])).unwrap();
    for body in ["", "a", &"b".repeat(20_000)] {
        let mut client = rig.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        let answer = client.response();
        assert_eq!((answer.text().as_str(), reason(&answer)), (body, Some("connect-failed")));
        client.send("GET /again HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.response().status, 200, "the connection is none the worse");
    }
}

/// An instance that answers with these fields and a number that grows.
fn counting(fields: &'static str) -> Instance {
    let count = Arc::new(AtomicUsize::new(0));
    Instance::start(move |mut conn| {
        while conn.head().is_some() {
            let body = count.fetch_add(1, Ordering::SeqCst).to_string();
            let head = format!("HTTP/1.1 200 OK\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len());
            conn.send(head);
        }
    })
}

fn keeping(max_age: Duration) -> Traffic {
    let keep = KeepPolicy { max_age, max_bytes: 1 << 20, max_entries: 100 };
    Traffic { keep: Some(keep), ..Traffic::default() }
}

const LONG: Duration = Duration::from_secs(300);

fn ask(rig: &Rig, method: &str, target: &str, fields: &str) -> Response {
    let mut client = rig.client();
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{fields}Connection: close\r\n\r\n"));
    client.response()
}

/// Nobody is there any more.
fn leave(rig: &Rig) {
    rig.service.set_endpoints(Endpoints::default()).unwrap();
}

#[test]
fn the_last_good_answer_is_given_again_and_says_how_old_it_is() {
    let date = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let instance = counting("X-Own: 1\r\nAge: 7\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nVary: Accept-Encoding\r\n");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(keeping(LONG)));
    assert_eq!(ask(&rig, "GET", "/a?q=1", "").text(), "0");
    assert_eq!(ask(&rig, "GET", "/a?q=1", "").text(), "1", "it is no cache: whoever answers is asked");
    rig.expect_metric("kept_answers{service=\"s\"} 1");
    leave(&rig);
    let answer = ask(&rig, "GET", "/a?q=1", "");
    answer.assert_reason(200, "no-ready-instance");
    assert_eq!(answer.text(), "0", "kept anew once a second at the most");
    assert_eq!(answer.header("X-Own"), Some("1"));
    assert_eq!(answer.header("Warning"), Some("110 - \"Response is Stale\""));
    assert!((7..70).contains(&answer.header("Age").unwrap().parse::<u64>().unwrap()), "{answer:?}");
    assert_eq!(answer.head.matches(date).count(), 1, "{answer:?}");
    assert_eq!(answer.head.matches("Date: ").count(), 1, "{answer:?}");
    let mut to_head = rig.client();
    to_head.send("HEAD /a?q=1 HTTP/1.1\r\nHost: H\r\nConnection: close\r\n\r\n");
    let (status, head) = to_head.head().unwrap();
    assert!(status == 200 && head.contains("Content-Length: 1\r\n"), "{head}");
    to_head.assert_closed();
    for (method, target) in [("GET", "/a?q=2"), ("GET", "/a"), ("DELETE", "/a?q=1")] {
        ask(&rig, method, target, "").assert_reason(503, "no-ready-instance");
    }
    let mut other_host = rig.client();
    other_host.send("GET /a?q=1 HTTP/1.1\r\nHost: other\r\n\r\n");
    other_host.response().assert_reason(503, "no-ready-instance");
    rig.expect_metric("fallback_answers_total{service=\"s\",kind=\"cached\"} 2");
}

#[test]
fn what_is_one_clients_own_is_not_given_to_others() {
    for (answered, asked) in [
        ("Set-Cookie: a=b\r\n", ""),
        ("Cache-Control: private\r\n", ""),
        ("Cache-Control: no-store\r\n", ""),
        ("Vary: Origin\r\n", ""),
        ("", "Authorization: Basic x\r\n"),
        ("Cache-Control: public\r\n", "Authorization: Basic x\r\n"),
        ("", "Cookie: a=b\r\n"),
        ("", "Cache-Control: no-store\r\n"),
    ] {
        let instance = counting(answered);
        let rig = Rig::of(&[&instance]);
        rig.service.set_traffic(Some(Traffic { fallback: fixed("none kept"), ..keeping(LONG) }));
        assert_eq!(ask(&rig, "GET", "/", asked).text(), "0");
        leave(&rig);
        for fields in ["", asked] {
            assert_eq!(ask(&rig, "GET", "/", fields).text(), "none kept", "{answered}{asked}");
        }
        rig.expect_metric("kept_answers{service=\"s\"} 0");
    }
    let instance = counting("Cache-Control: public\r\n");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(keeping(LONG)));
    assert_eq!(ask(&rig, "GET", "/", "Cookie: a=b\r\n").text(), "0");
    leave(&rig);
    assert_eq!(ask(&rig, "GET", "/", "Cookie: c=d\r\n").text(), "0", "it says that it is for everybody");
    ask(&rig, "GET", "/", "Authorization: Basic x\r\n").assert_reason(503, "no-ready-instance");
}

#[test]
fn what_is_too_old_too_long_or_bad_is_not_kept() {
    let rig = Rig::of(&[&Instance::answering("x")]);
    rig.service.set_traffic(Some(keeping(Duration::ZERO)));
    let instance = Instance::answering("x");
    rig.service.set_endpoints(endpoints_of(&[&instance])).unwrap();
    assert_eq!(rig.get("/").status, 200);
    rig.expect_metric("kept_answers{service=\"s\"} 1");
    leave(&rig);
    std::thread::sleep(Duration::from_millis(2)); // Past an age of nothing.
    rig.get("/").assert_reason(503, "no-ready-instance");
    let body = "l".repeat((1 << 20) + 1);
    let long = Instance::start(move |conn| answer_all(conn, &body));
    rig.service.set_endpoints(endpoints_of(&[&long])).unwrap();
    rig.service.set_traffic(Some(keeping(LONG)));
    assert_eq!(rig.get("/long").body.len(), (1 << 20) + 1);
    let bad = Instance::start(|mut conn| {
        while conn.head().is_some() {
            conn.send("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        }
    });
    rig.service.set_endpoints(endpoints_of(&[&bad])).unwrap();
    assert_eq!(rig.get("/bad").status, 404);
    let chunked = Instance::start(|mut conn| {
        while conn.head().is_some() {
            conn.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n");
        }
    });
    rig.service.set_endpoints(endpoints_of(&[&chunked])).unwrap();
    assert_eq!(rig.get("/chunked").text(), "abc");
    rig.expect_metric("kept_answers{service=\"s\"} 1");
    leave(&rig);
    let answer = rig.get("/chunked");
    assert_eq!((answer.text().as_str(), answer.header("Content-Length")), ("abc", Some("3")));
}
