//! What a route has repeated, as instances and clients see it: Istio's `retries` (`attempts`, `retryOn`, `perTryTimeout`,
//! back-off) and nginx' `proxy_next_upstream` with its words.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Client, Instance, Rig, endpoints_of, ok};
use gateway::{Action, Options, Policy, RetryPolicy, Route, Target};

/// Repeats nothing.
fn nothing(total: u32) -> RetryPolicy {
    RetryPolicy {
        total,
        connect: false,
        reset: false,
        timeout: false,
        garbage: false,
        statuses: Vec::new(),
        server_errors: false,
        non_idempotent: false,
        per_try: None,
        within: None,
        backoff: Duration::ZERO,
    }
}

/// One instance that does badly what its path says so many times, and then well.
struct Moody {
    rig: Rig,
    seen: Arc<AtomicUsize>,
    _instance: Instance,
}

impl Moody {
    fn start(bad: usize, policy: RetryPolicy, timeout: Option<Duration>) -> Self {
        let seen = Arc::new(AtomicUsize::new(0));
        let count = seen.clone();
        let instance = Instance::start(move |mut conn| {
            while let Some(head) = conn.head() {
                let body = conn.body(&head);
                let number = count.fetch_add(1, Ordering::SeqCst);
                let path = head.split(' ').nth(1).unwrap();
                let answered = match path {
                    _ if number >= bad => conn.send(ok(&format!("{}{number}", String::from_utf8_lossy(&body)))),
                    "/reset" => return,
                    "/garbage" => conn.send("no HTTP at all\r\n\r\n"),
                    "/slow" => {
                        std::thread::sleep(Duration::from_millis(400));
                        conn.send(ok("slow"))
                    }
                    status => {
                        let status = &status[1..];
                        conn.send(format!(
                            "HTTP/1.1 {status} Bad\r\nContent-Length: 3\r\nX-Number: {number}\r\n\r\nbad"
                        ))
                    }
                };
                if !answered {
                    return;
                }
            }
        });
        let rig = Rig::with(Options { workers: 1, ..Options::default() }, endpoints_of(&[&instance]), None);
        let route = Route {
            name: "r".into(),
            series: None,
            hosts: Vec::new(),
            matches: Vec::new(),
            action: Action::Forward(Target { service: "s".into(), version: None }),
            timeout,
            retry: Some(policy),
            policy: Policy::default(),
        };
        rig.table.set_routes(vec![route]).unwrap();
        Self { rig, seen, _instance: instance }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::SeqCst)
    }
}

/// Envoy's `5xx` and its like: the client sees the good answer, or the last bad one as it is.
#[test]
fn answers_of_the_statuses_that_are_named_are_repeated_so_often_and_no_more() {
    let errors = RetryPolicy { server_errors: true, ..nothing(3) };
    let moody = Moody::start(2, errors.clone(), None);
    let answer = moody.rig.get("/503");
    assert_eq!((answer.status, answer.text().as_str(), moody.seen()), (200, "2", 3));
    moody.rig.expect_metric("retries_total{service=\"s\",reason=\"status\"} 2");

    let moody = Moody::start(9, errors, None);
    let answer = moody.rig.get("/503");
    assert_eq!((answer.status, answer.header("X-Number"), moody.seen()), (503, Some("2"), 3), "total = 1 + attempts");

    for (path, statuses, asked) in
        [("/429", vec![429], 2), ("/404", vec![403], 1), ("/409", vec![409], 2), ("/500", vec![502, 503, 504], 1)]
    {
        let moody = Moody::start(1, RetryPolicy { statuses, ..nothing(3) }, None);
        moody.rig.get(path);
        assert_eq!(moody.seen(), asked, "{path}");
    }
}

/// nginx: POST is not passed on once sent, unless `non_idempotent`.
#[test]
fn what_may_do_its_work_twice_is_repeated_only_if_that_is_said() {
    for (non_idempotent, status, asked) in [(false, 503, 1), (true, 200, 2)] {
        let moody = Moody::start(1, RetryPolicy { server_errors: true, non_idempotent, ..nothing(3) }, None);
        let mut client = Client::to(moody.rig.address);
        client.send("POST /503 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody");
        let answer = client.response();
        assert_eq!((answer.status, moody.seen()), (status, asked));
        assert!(!non_idempotent || answer.text() == "body1", "the body goes along again: {answer:?}");
    }
}

#[test]
fn connections_that_end_and_what_is_no_http_are_repeated_only_if_they_are_named() {
    for (path, policy, status, asked) in [
        ("/reset", RetryPolicy { reset: true, ..nothing(2) }, 200, 2),
        ("/reset", RetryPolicy { connect: true, ..nothing(2) }, 502, 1),
        ("/garbage", RetryPolicy { garbage: true, ..nothing(2) }, 200, 2),
        ("/garbage", RetryPolicy { reset: true, ..nothing(2) }, 502, 1),
    ] {
        let moody = Moody::start(1, policy.clone(), None);
        assert_eq!((moody.rig.get(path).status, moody.seen()), (status, asked), "{path} {policy:?}");
    }
}

/// Istio's `perTryTimeout`, within the whole request's time.
#[test]
fn an_attempt_has_a_time_of_its_own_within_the_requests() {
    let per_try = Some(Duration::from_millis(80));
    let moody = Moody::start(1, RetryPolicy { timeout: true, per_try, ..nothing(3) }, None);
    let begun = Instant::now();
    assert_eq!((moody.rig.get("/slow").status, moody.seen()), (200, 2));
    assert!(
        (Duration::from_millis(80)..Duration::from_millis(350)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    moody.rig.expect_metric("retries_total{service=\"s\",reason=\"timeout\"} 1");
    let moody = Moody::start(9, RetryPolicy { per_try, ..nothing(3) }, None);
    moody.rig.get("/slow").assert_reason(504, "timeout");
    assert_eq!(moody.seen(), 1, "it is cut off, and not repeated");
    let moody = Moody::start(9, RetryPolicy { timeout: true, per_try, ..nothing(9) }, Some(Duration::from_millis(200)));
    let begun = Instant::now();
    moody.rig.get("/slow").assert_reason(504, "timeout");
    assert!(begun.elapsed() < Duration::from_millis(350) && moody.seen() <= 3, "{:?}", begun.elapsed());
}

/// Envoy: a fully jittered exponential back-off, at most ten times its base.
#[test]
fn repetitions_are_spread_in_time() {
    let policy = RetryPolicy { backoff: Duration::from_millis(20), ..nothing(5) };
    for (number, longest) in [(1, 20), (2, 40), (3, 80), (4, 160), (5, 200), (9, 200), (40, 200)] {
        assert_eq!(policy.pause(number, 0), Duration::ZERO);
        let most = policy.pause(number, u64::MAX);
        assert!(
            most <= Duration::from_millis(longest) && most > Duration::from_millis(longest - 1),
            "{number}: {most:?}"
        );
    }
    let spread = RetryPolicy { server_errors: true, backoff: Duration::from_millis(100), ..nothing(5) };
    let moody = Moody::start(4, spread, None);
    let begun = Instant::now();
    assert_eq!(moody.rig.get("/503").status, 200);
    // Of four pauses of up to 100, 200, 400 and 800 ms not all are next to nothing.
    assert!(begun.elapsed() > Duration::from_millis(5), "{:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}
