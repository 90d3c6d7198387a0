//! Several limits together, what answers tell of them, and the gateway's protection of itself, as clients see them.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Instance, PATIENCE, Response, Rig, eventually};
use gateway::{
    Behaviour, Endpoints, LimitKey, LimitPolicy, Match, RateLimit, Scope, SystemPolicy, Traffic, ValueMatch,
};

/// So many in ten minutes, all at once: no machine is too slow for it.
fn limit(qps: u32, key: Option<&str>) -> RateLimit {
    let key = key.map(|name| LimitKey::Header(name.into()));
    let keys = key.as_ref().map(|_| 64);
    RateLimit::new(
        LimitPolicy { qps, per: Duration::from_secs(600), burst: 0, behaviour: Behaviour::Bucket, keys },
        key,
    )
}

fn limited(rate_limits: Vec<RateLimit>) -> Option<Traffic> {
    Some(Traffic { rate_limits, ..Traffic::default() })
}

fn ask(rig: &Rig, fields: &str) -> Response {
    let mut client = rig.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n"));
    client.response()
}

fn left(answer: &Response) -> [Option<&str>; 2] {
    ["RateLimit-Limit", "RateLimit-Remaining"].map(|name| answer.header(name))
}

#[test]
fn each_of_several_limits_must_let_a_request_pass_and_the_least_that_is_left_is_told() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(limited(vec![limit(10, None), limit(2, Some("X-Client"))]));
    let answer = ask(&rig, "X-Client: a\r\n");
    assert_eq!(left(&answer), [Some("2"), Some("1")]);
    assert!(
        answer.header("RateLimit-Reset").is_some_and(|reset| reset.parse::<u32>().unwrap() > 500),
        "{}",
        answer.head
    );
    assert_eq!(left(&ask(&rig, "X-Client: a\r\n")), [Some("2"), Some("0")]);
    let refused = ask(&rig, "X-Client: a\r\n");
    refused.assert_reason(429, "rate-limited");
    assert_eq!(left(&refused), [Some("2"), Some("0")]);
    // Other clients have their own, until everybody together has had enough.
    let passed = (0..20).filter(|client| ask(&rig, &format!("X-Client: c{client}\r\n")).status == 200).count();
    assert_eq!(passed, 7, "of ten, of which three were asked for");
    let quiet = RateLimit { tells: false, ..limit(100, None) };
    rig.service.set_traffic(limited(vec![quiet]));
    assert_eq!(left(&ask(&rig, "")), [None, None]);
}

#[test]
fn what_one_limit_counts_by_the_second_and_another_refuses_was_not_there() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    let policy =
        LimitPolicy { qps: 5, per: Duration::from_secs(1), burst: 0, behaviour: Behaviour::Window, keys: None };
    rig.service.set_traffic(limited(vec![RateLimit::new(policy, None), limit(1, Some("X-Client"))]));
    assert_eq!(ask(&rig, "X-Client: a\r\n").status, 200);
    for _ in 0..40 {
        ask(&rig, "X-Client: a\r\n").assert_reason(429, "rate-limited");
    }
    let passed = (0..4).filter(|client| ask(&rig, &format!("X-Client: b{client}\r\n")).status == 200).count();
    assert_eq!(passed, 4, "four of five a second are left");
}

#[test]
fn a_limit_is_for_the_requests_it_names() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    let batch = Match { headers: vec![("X-Kind".into(), ValueMatch::Exact("batch".into()))], ..Match::default() };
    let scope = Scope { matches: vec![batch], ..Scope::default() };
    rig.service.set_traffic(limited(vec![RateLimit { scope, ..limit(1, None) }]));
    assert_eq!(ask(&rig, "X-Kind: batch\r\n").status, 200);
    ask(&rig, "X-Kind: batch\r\n").assert_reason(429, "rate-limited");
    assert!((0..5).all(|_| ask(&rig, "").status == 200));
}

#[test]
fn what_an_instance_tells_of_a_limit_of_its_own_stands() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nRatelimit-Remaining: 77\r\n\r\n";
    let instance = Instance::start(move |mut conn| while conn.head().is_some() && conn.send(answer) {});
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(limited(vec![limit(10, None)]));
    assert_eq!(left(&ask(&rig, "")), [None, Some("77")]);
}

#[test]
fn answers_in_frames_tell_it_as_well() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(limited(vec![limit(1, None)]));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = runtime.block_on(async {
        let asking = async {
            let stream = tokio::net::TcpStream::connect(rig.address).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            let mut answers = Vec::new();
            for _ in 0..2 {
                let request = http::Request::get("http://shop.local/").body(()).unwrap();
                let (answer, _) = sender.clone().ready().await.unwrap().send_request(request, true).unwrap();
                let head = answer.await.unwrap();
                answers
                    .push((head.status().as_u16(), head.headers()["ratelimit-remaining"].to_str().unwrap().to_owned()));
            }
            answers
        };
        tokio::time::timeout(PATIENCE, asking).await
    });
    assert_eq!(asked.unwrap(), [(200, "0".to_owned()), (429, "0".to_owned())]);
}

/// Sentinel's `highestSystemLoad`: beyond it no more are at once than the machine works off.
#[test]
fn under_load_the_gateway_takes_no_more_at_once_than_it_works_off() {
    let let_go = Arc::new(AtomicBool::new(false));
    let released = let_go.clone();
    let instance = Instance::start(move |mut conn| {
        while let Some(head) = conn.head() {
            if head.starts_with("GET /kept") {
                eventually("it is let go", || released.load(Ordering::SeqCst));
            }
            if !conn.send(common::ok("here")) {
                return;
            }
        }
    });
    let rig = Rig::new(Endpoints { hold: None, ..common::endpoints_of(&[&instance]) });
    rig.table.set_overload(Some(SystemPolicy { load: Some(2_000), ..SystemPolicy::default() }));
    let mut waiting: Vec<_> = (0..12).map(|_| rig.client()).collect();
    for client in &mut waiting {
        client.send("GET /kept HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    eventually("they are under way", || rig.table.overload().unwrap().now.concurrent == 12);
    rig.table.measured(2.0, 0.1);
    assert_eq!(rig.get("/").status, 200, "the load itself is borne");
    // Nothing has ended for a second: two halves of at least one, of at most five seconds, are ten.
    eventually("what has ended is forgotten", || {
        rig.table.measured(0.0, 0.1);
        let over = rig.table.overload().unwrap().now;
        over.average.is_zero()
    });
    rig.table.measured(2.1, 0.1);
    rig.get("/").assert_reason(503, "overloaded:load");
    let_go.store(true, Ordering::SeqCst);
    assert!(waiting.iter_mut().all(|client| client.response().status == 200));
    eventually("they have ended", || rig.table.overload().unwrap().now.concurrent == 0);
    assert_eq!(rig.get("/").status, 200, "alone it always passes");
    rig.table.measured(9.0, 1.0);
    rig.table.set_overload(None);
    assert_eq!(rig.get("/").status, 200, "nobody asks any more");
}
