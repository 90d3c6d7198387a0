//! Rates, ejections and the retry budget as clients see them: what comes too often is refused or waits, an instance that
//! fails is left alone, and failed requests are sent again a few at a time.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Instance, Response, Rig, endpoint, endpoints_of, eventually, ok};
use gateway::breaker::WHOLE;
use gateway::{
    Behaviour, Endpoints, HoldPolicy, LimitKey, LimitPolicy, Note, Options, OutlierPolicy, RateLimit, Readiness,
    RetryBudget, Traffic,
};

fn limited(qps: u32, burst: u32, behaviour: Behaviour, key: Option<LimitKey>) -> Traffic {
    let keys = key.as_ref().map(|_| 64);
    let policy = LimitPolicy { qps, per: Duration::from_secs(1), burst, behaviour, keys };
    Traffic { rate_limits: vec![RateLimit::new(policy, key)], ..Traffic::default() }
}

fn ask(rig: &Rig, path: &str, fields: &str) -> Response {
    let mut client = rig.client();
    client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n"));
    client.response()
}

#[test]
fn what_comes_too_often_is_refused_and_told_when_to_come() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(limited(1, 2, Behaviour::Reject, None)));
    assert_eq!([rig.get("/").status, rig.get("/").status], [200, 200], "a burst of two");
    let refused = rig.get("/");
    refused.assert_reason(429, "rate-limited");
    assert!(refused.head.starts_with("HTTP/1.1 429 Too Many Requests\r\n"), "{}", refused.head);
    let fields = ["Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"];
    assert_eq!(fields.map(|name| refused.header(name)), ["1", "1", "0", "1"].map(Some));
    eventually("a second later one is let through", || rig.get("/").status == 200);
    let view = rig.service.guards().unwrap().rate_limits.remove(0);
    assert!(view.qps == 1 && view.refused >= 1 && view.refusing_since.is_some(), "{view:?}");
    assert!(rig.metrics().contains("rate_limited_total{service=\"s\",outcome=\"admitted\"} 3"), "{}", rig.metrics());
    // The same policy again: what was counted stays.
    rig.service.set_traffic(Some(limited(1, 2, Behaviour::Reject, None)));
    rig.get("/").assert_reason(429, "rate-limited");
}

/// Sentinel's hot parameters: each value has the rate for itself.
#[test]
fn each_key_has_the_rate_for_itself() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    let header = LimitKey::Header("X-Client".into());
    for (key, one, other) in [
        (header, ("/", "X-Client: a\r\n"), ("/", "x-client: b\r\n")),
        (LimitKey::Query("user".into()), ("/?q=1&user=a", ""), ("/?user=b&user=a", "")),
        (LimitKey::PathSegment(2), ("/shops/a/x", ""), ("/shops/b", "")),
    ] {
        rig.service.set_traffic(Some(limited(1, 1, Behaviour::Reject, Some(key.clone()))));
        for (path, fields) in [one, other] {
            assert_eq!(ask(&rig, path, fields).status, 200, "{key:?} {path} {fields}");
            ask(&rig, path, fields).assert_reason(429, "rate-limited");
        }
        assert_eq!(ask(&rig, "/", "").status, 200, "without the key: those share one");
        ask(&rig, "/", "").assert_reason(429, "rate-limited");
        assert_eq!(rig.service.guards().unwrap().rate_limits.remove(0).keys, Some((3, 64)));
    }
    rig.service.set_traffic(Some(limited(1, 1, Behaviour::Reject, Some(LimitKey::Address))));
    assert_eq!(rig.get("/").status, 200);
    rig.get("/").assert_reason(429, "rate-limited");
    rig.expect_metric("rate_limit_keys{service=\"s\",state=\"room\"} 64");
}

#[test]
fn an_explosion_of_keys_stays_within_twice_its_room() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(limited(1, 1, Behaviour::Reject, Some(LimitKey::Header("X-Client".into())))));
    let mut client = rig.client();
    for key in 0..500 {
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nX-Client: {key}\r\n\r\n"));
        assert_eq!(client.response().status, 200, "a new key is never refused for want of room");
    }
    let view = rig.service.guards().unwrap().rate_limits.remove(0);
    let (at_work, room) = view.keys.unwrap();
    assert!(room == 64 && at_work <= 128 && view.displaced > 100, "{view:?}");
}

/// Sentinel's control behaviour 2 (`RateLimiterController`), `maxQueueingTimeMs`.
#[test]
fn requests_in_a_queue_pass_one_after_the_other() {
    let instance = Instance::answering("here");
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(limited(10, 1, Behaviour::Queue(Duration::from_millis(350)), None)));
    let begun = Instant::now();
    let mut clients: Vec<_> = (0..6).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    }
    // Whoever was late to ask finds that the line has moved on.
    let turns_meanwhile = usize::try_from(begun.elapsed().as_millis() / 100).unwrap();
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status).collect();
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert!((4..=5 + turns_meanwhile).contains(&passed), "those within 350 ms: {statuses:?}");
    assert!(begun.elapsed() >= Duration::from_millis(300), "the last of them waited for three turns");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    let (mut first, mut leaver) = (rig.client(), rig.client());
    first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    leaver.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    drop(leaver);
    assert_eq!(first.response().status, 200, "a client that leaves keeps nobody from theirs");
}

/// What a bucket of so many tokens a second and so many at most gives to requests at these times.
fn bucket(mut times: Vec<Duration>, qps: u32, burst: u32) -> usize {
    times.sort_unstable();
    let (mut tokens, mut last, mut given) = (f64::from(burst), Duration::ZERO, 0);
    for at in times {
        tokens = f64::from(burst).min(tokens + (at - last).as_secs_f64() * f64::from(qps));
        last = at;
        if tokens >= 1.0 {
            (tokens, given) = (tokens - 1.0, given + 1);
        }
    }
    given
}

/// The figure of a limit under four times its load, through the gateway: of what came, which is less where the machine
/// stood still, it lets pass what the rate allows.
#[test]
fn the_rate_is_kept_within_one_percent_over_ten_seconds() {
    const SECONDS: u64 = 10;
    let instance = Instance::answering("here");
    for qps in [50_u32, 1_000] {
        let rig = Rig::of(&[&instance]);
        rig.service.set_traffic(Some(limited(qps, (qps / 20).max(1), Behaviour::Reject, None)));
        let (burst, admitted) = ((qps / 20).max(1), AtomicUsize::new(0));
        let begun = Instant::now();
        let came: Vec<Duration> = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|thread| {
                    let mut client = rig.client();
                    let admitted = &admitted;
                    scope.spawn(move || {
                        let pause = Duration::from_secs_f64(8.0 / (f64::from(qps) * 4.0));
                        // Evenly: eight at the same moment would be more than the burst that makes up for late ones.
                        let mut next = begun + pause * thread / 8;
                        let mut came = Vec::new();
                        std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        while begun.elapsed() < Duration::from_secs(SECONDS) {
                            came.push(begun.elapsed());
                            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
                            if client.response().status == 200 {
                                admitted.fetch_add(1, Ordering::Relaxed);
                            }
                            next += pause;
                            std::thread::sleep(next.saturating_duration_since(Instant::now()));
                        }
                        came
                    })
                })
                .collect();
            clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
        });
        let most = f64::from(qps) * begun.elapsed().as_secs_f64() + f64::from(burst);
        let (got, want) = (admitted.into_inner() as f64, bucket(came, qps, burst) as f64);
        println!("{qps} QPS: {got} admitted, of {want} that the rate allows");
        assert!((got - want).abs() <= want * 0.01 + 2.0, "{qps} QPS: {got} admitted, not {want}");
        assert!(got <= most * 1.01, "{qps} QPS: {got} admitted, more than {most}");
    }
}

fn ejecting(eject_for: Duration) -> Traffic {
    let outlier = OutlierPolicy {
        consecutive_errors: 3,
        eject_for,
        max_ejected: WHOLE / 2,
        panic_threshold: WHOLE / 2,
        within: None,
        server_errors: true,
        growing: true,
    };
    Traffic { outlier: Some(outlier), ..Traffic::default() }
}

/// An instance that fails while it is told to, and how many requests it had.
fn moody(answer: &'static str) -> (Instance, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (bad, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (is_bad, count) = (bad.clone(), seen.clone());
    let instance = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = if is_bad.load(Ordering::SeqCst) { answer.to_owned() } else { ok("fine") };
            if answer.is_empty() || !conn.send(answer) {
                return;
            }
        }
    });
    (instance, bad, seen)
}

const FAILED: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";

fn ejected(rig: &Rig) -> usize {
    rig.service.guards().unwrap().ejected.len()
}

/// Envoy's `consecutive_5xx`, `base_ejection_time`.
#[test]
fn an_instance_that_fails_in_a_row_is_left_alone_for_a_while_and_longer_the_next_time() {
    let (bad, is_bad, seen) = moody(FAILED);
    let (good, another) = (Instance::answering("good"), Instance::answering("good"));
    let rig = Rig::of(&[&bad, &good, &another]);
    // Long enough for the requests that nobody may pass on, on a machine that has much to do.
    let base = Duration::from_secs(2);
    rig.service.set_traffic(Some(ejecting(base)));
    eventually("it is ejected", || {
        rig.get("/");
        ejected(&rig) == 1
    });
    let begun = Instant::now();
    let view = rig.service.guards().unwrap().ejected[0].clone();
    assert_eq!((view.instance.as_str(), view.errors, view.why, view.times), ("s-0", 3, "5xx", 1));
    let before = seen.load(Ordering::SeqCst);
    assert_eq!(before, 3);
    (0..30).for_each(|_| assert_eq!(rig.get("/").status, 200, "nobody gets to it"));
    assert_eq!(seen.load(Ordering::SeqCst), before);
    rig.expect_metric("ejected_instances{service=\"s\"} 1");
    eventually("it gets requests again, and fails them", || {
        rig.get("/");
        seen.load(Ordering::SeqCst) >= 6 && ejected(&rig) == 1
    });
    assert!(begun.elapsed() + Duration::from_millis(20) >= base);
    let view = rig.service.guards().unwrap().ejected[0].clone();
    assert_eq!((view.times, view.length), (2, base * 2));
    is_bad.store(false, Ordering::SeqCst);
    eventually("its time is over", || ejected(&rig) == 0);
    let notes = rig.service.take_notes();
    let kinds: Vec<_> = notes.iter().map(|note| matches!(note, Note::Ejected(_))).collect();
    assert_eq!(kinds, [true, false, true, false], "{notes:?}");
    rig.expect_metric("ejections_total{service=\"s\"} 2");
}

#[test]
fn resets_and_refused_connections_count_and_a_success_between_begins_anew() {
    let (reset, is_bad, _) = moody("");
    let good = Instance::answering("good");
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut endpoints = endpoints_of(&[&reset, &good]);
    endpoints.endpoints.push(endpoint("s-2", refusing));
    endpoints.endpoints.push(endpoint("s-3", good.address));
    let options = Options { workers: 1, avoid: Duration::ZERO, ..Options::default() };
    let rig = Rig::with(options, endpoints, None);
    rig.service.set_traffic(Some(ejecting(Duration::from_secs(60))));
    eventually("both are ejected", || {
        assert_eq!(rig.get("/").status, 200, "others answer");
        ejected(&rig) == 2
    });
    let why: Vec<_> = rig.service.guards().unwrap().ejected.iter().map(|view| view.why).collect();
    assert!(why.contains(&"reset") && why.contains(&"connect-failed"), "{why:?}");

    // Not ready and ready again: another process, or a better one.
    is_bad.store(false, Ordering::SeqCst);
    let mut away = endpoints_of(&[&reset, &good]);
    away.endpoints[0].readiness = Readiness::NotReady;
    rig.service.set_endpoints(away).unwrap();
    rig.service.set_endpoints(endpoints_of(&[&reset, &good])).unwrap();
    eventually("it answers", || rig.get("/").text() == "fine");
}

#[test]
fn the_last_one_is_never_ejected_and_a_few_are_not_overrun() {
    let bad: Vec<_> = (0..4).map(|_| moody(FAILED)).collect();
    let instances: Vec<&Instance> = bad.iter().map(|(instance, ..)| instance).collect();
    let rig = Rig::of(&instances);
    rig.service.set_traffic(Some(ejecting(Duration::from_secs(60))));
    for _ in 0..60 {
        assert_eq!(rig.get("/").status, 500);
    }
    assert_eq!(ejected(&rig), 2, "half of them");

    // One of the two others is not ready: less than half serve, so the ejected ones do, too.
    let mut endpoints = endpoints_of(&instances);
    let is_ejected = |id: &str| rig.service.guards().unwrap().ejected.iter().any(|view| view.instance.as_str() == id);
    let free = endpoints.endpoints.iter().position(|endpoint| !is_ejected(endpoint.id.as_str())).unwrap();
    endpoints.endpoints[free].readiness = Readiness::NotReady;
    rig.service.set_endpoints(endpoints).unwrap();
    let before: Vec<usize> = bad.iter().map(|(_, _, seen)| seen.load(Ordering::SeqCst)).collect();
    (0..40).for_each(|_| drop(rig.get("/")));
    let grew = bad.iter().zip(before).filter(|((_, _, seen), before)| seen.load(Ordering::SeqCst) > *before).count();
    assert_eq!(grew, 3, "all that are ready");

    let alone = Rig::of(&instances[..1]);
    alone.service.set_traffic(Some(ejecting(Duration::from_secs(60))));
    for _ in 0..10 {
        assert_eq!(alone.get("/").status, 500);
    }
    assert_eq!(ejected(&alone), 0);
}

/// Envoy's `retry_budget`: `budget_percent` and `min_retry_concurrency`.
#[test]
fn failed_requests_are_sent_again_a_few_at_a_time() {
    // One instance takes twelve requests and dies with all of them; the other shows how many come to it at once.
    let taken = Arc::new(AtomicUsize::new(0));
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let count = taken.clone();
    let mut dying = Instance::start(move |mut conn| {
        if conn.head().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            conn.some();
        }
    });
    let (current, peak) = (now.clone(), most.clone());
    let patient = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            peak.fetch_max(current.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(30));
            current.fetch_sub(1, Ordering::SeqCst);
            if !conn.send(ok("again")) {
                return;
            }
        }
    });
    for hold in [None, Some(HoldPolicy { max_wait: Duration::from_secs(10), max_requests: 100 })] {
        if hold.is_some() {
            dying = Instance::start({
                let count = taken.clone();
                move |mut conn| {
                    if conn.head().is_some() {
                        count.fetch_add(1, Ordering::SeqCst);
                        conn.some();
                    }
                }
            });
        }
        taken.store(0, Ordering::SeqCst);
        most.store(0, Ordering::SeqCst);
        let endpoints = Endpoints { hold, ..endpoints_of(&[&dying]) };
        let rig = Rig::with(Options { workers: 2, ..Options::default() }, endpoints, None);
        let retry_budget = RetryBudget { part: 0, min: 3 };
        rig.service.set_traffic(Some(Traffic { retry_budget, ..Traffic::default() }));
        let mut clients: Vec<_> = (0..12).map(|_| rig.client()).collect();
        clients.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        eventually("all are at the one", || taken.load(Ordering::SeqCst) == 12);
        let both = Endpoints { hold, ..endpoints_of(&[&dying, &patient]) };
        rig.service.set_endpoints(both).unwrap();
        dying.kill();
        let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status).collect();
        let answered = statuses.iter().filter(|status| **status == 200).count();
        assert!(most.load(Ordering::SeqCst) <= 3, "{} at once", most.load(Ordering::SeqCst));
        if hold.is_some() {
            assert_eq!(answered, 12, "the others wait for their turn: {statuses:?}");
            assert!(rig.metrics().contains("retries_over_budget_total{service=\"s\",reason=\"waited\"}"));
        } else {
            assert!((3..12).contains(&answered), "nothing to wait for: {statuses:?}");
        }
    }
}
