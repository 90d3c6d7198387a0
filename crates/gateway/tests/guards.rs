//! Breakers, places and fallbacks as clients see them: a service that fails gets no requests for a while, one that is
//! busy a bounded line, and its clients an answer all the same. Rates and ejections: `storms.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::{Instance, Rig, endpoints_of, eventually, ok};
use gateway::breaker::{BreakerPolicy, Comparator, Forced, State, Turn, WHOLE, Window};
use gateway::{Concurrency, Endpoints, Fallback, Note, Options, Places, Signal, Traffic};

/// An instance that answers 500 while it is told to, and counts requests.
struct Moody {
    instance: Instance,
    bad: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
}

impl Moody {
    fn start() -> Self {
        let (bad, seen) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
        let (is_bad, count) = (bad.clone(), seen.clone());
        let instance = Instance::start(move |mut conn| {
            while conn.head().is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                let answer = if is_bad.load(Ordering::SeqCst) {
                    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_owned()
                } else {
                    ok("fine")
                };
                if !conn.send(answer) {
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

/// Hystrix' rule with a small window: at least half of 4 requests.
fn breaker(open_for: Duration) -> BreakerPolicy {
    BreakerPolicy {
        error_ratio: Some(WHOLE / 2),
        slow: None,
        error_count: None,
        comparator: Comparator::AtLeast,
        window: Window::Time(Duration::from_secs(60)),
        min_requests: 4,
        open_for,
        probes: 1,
    }
}

fn degraded() -> Arc<Fallback> {
    let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
    Arc::new(Fallback { status: 200, headers, body: b"{\"degraded\":true}".to_vec() })
}

fn with_breaker(policy: BreakerPolicy) -> Traffic {
    Traffic { breaker: Some(policy), ..Traffic::default() }
}

/// What the breaker did by itself.
fn turns(rig: &Rig) -> Vec<Turn> {
    let notes = rig.service.take_notes().into_iter();
    notes.filter_map(|note| if let Note::Breaker(turn) = note { Some(turn) } else { None }).collect()
}

/// A client has its answer a moment before the guards know of it.
fn opens(rig: &Rig) {
    eventually("it is open", || state(rig) == State::Open);
}

fn state(rig: &Rig) -> State {
    rig.service.guards().unwrap().breaker.unwrap().state
}

/// Hystrix: `circuitBreaker.requestVolumeThreshold`, `errorThresholdPercentage`, `sleepWindowInMilliseconds`.
#[test]
fn a_service_that_fails_gets_no_requests_until_a_probe_has_passed() {
    let moody = Moody::start();
    let mut rig = Rig::of(&[&moody.instance]);
    let open_for = Duration::from_millis(300);
    rig.service.set_traffic(Some(with_breaker(breaker(open_for))));
    let begun = Instant::now();
    for _ in 0..4 {
        assert_eq!(rig.get("/").status, 500);
    }
    opens(&rig);
    let refused = rig.get("/");
    refused.assert_reason(503, "breaker-open");
    assert_eq!(refused.header("Retry-After"), Some("1"), "a part of a second is a second");
    assert_eq!(moody.seen(), 4, "nothing reaches it");
    let why = rig.service.guards().unwrap().breaker.unwrap().why.unwrap();
    assert_eq!((why.errors, why.requests), (4, 4));

    eventually("a probe is let through", || rig.get("/").status == 500);
    assert!(begun.elapsed() >= open_for);
    opens(&rig);
    rig.get("/").assert_reason(503, "breaker-open");
    assert_eq!(moody.seen(), 5, "one probe, and it failed");

    moody.bad.store(false, Ordering::SeqCst);
    eventually("the next probe closes it", || rig.get("/").status == 200);
    eventually("it is closed", || state(&rig) == State::Closed);
    let turns: Vec<State> = turns(&rig).iter().map(|turn| turn.to).collect();
    use State::{Closed, HalfOpen, Open};
    assert_eq!(turns, [Open, HalfOpen, Open, HalfOpen, Closed]);
    assert!(matches!(rig.signals.try_recv(), Ok(Signal::ServerError { .. })));
    let told = std::iter::from_fn(|| rig.signals.try_recv().ok());
    assert!(told.filter(|signal| matches!(signal, Signal::Guarded { .. })).count() >= 5);
    rig.expect_metric("breaker_state{service=\"s\",state=\"closed\"} 1");
    rig.expect_metric("breaker_turns_total{service=\"s\",state=\"open\"} 2");
}

/// Sentinel: `DegradeRule` of grade 0, `count` in milliseconds and `slowRatioThreshold`.
#[test]
fn slow_answers_open_it_and_a_slow_client_does_not() {
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = slow.clone();
    let instance = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            let pause = Duration::from_millis(120);
            if is_slow.load(Ordering::SeqCst) {
                std::thread::sleep(pause);
                conn.send(ok("late"));
            } else {
                // The head at once, the body late: the instance was quick to answer.
                conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
                std::thread::sleep(pause);
                conn.send("ok");
            }
        }
    });
    let rig = Rig::of(&[&instance]);
    let policy = BreakerPolicy {
        error_ratio: None,
        slow: Some((WHOLE / 2, Duration::from_millis(100))),
        comparator: Comparator::Above,
        ..breaker(Duration::from_secs(60))
    };
    rig.service.set_traffic(Some(with_breaker(policy)));
    for _ in 0..4 {
        assert_eq!(rig.get("/").status, 200);
    }
    assert_eq!(state(&rig), State::Closed);
    slow.store(true, Ordering::SeqCst);
    for _ in 0..4 {
        assert_eq!(rig.get("/").status, 200);
    }
    assert_eq!(state(&rig), State::Closed, "4 of 8 are not more than half");
    rig.get("/");
    opens(&rig);
    rig.get("/").assert_reason(503, "breaker-open");
}

#[test]
fn a_request_that_runs_out_of_time_counts_as_failed() {
    let deaf = Instance::start(|mut conn| while !conn.some().is_empty() {});
    let options = Options { workers: 2, ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&deaf]), Some(Duration::from_millis(50)));
    rig.service.set_traffic(Some(with_breaker(breaker(Duration::from_secs(60)))));
    for _ in 0..4 {
        rig.get("/").assert_reason(504, "timeout");
    }
    opens(&rig);
    rig.get("/").assert_reason(503, "breaker-open");
}

#[test]
fn an_operators_word_stands_whatever_happens() {
    let moody = Moody::start();
    let rig = Rig::of(&[&moody.instance]);
    assert!(rig.service.force_breaker(Some(Forced::Open)).is_err(), "it has none");
    rig.service.set_traffic(Some(with_breaker(breaker(Duration::from_millis(1)))));
    rig.service.force_breaker(Some(Forced::Open)).unwrap();
    rig.get("/").assert_reason(503, "breaker-open");
    std::thread::sleep(Duration::from_millis(5));
    rig.get("/").assert_reason(503, "breaker-open");
    assert_eq!(moody.seen(), 0);
    rig.service.force_breaker(Some(Forced::Closed)).unwrap();
    for _ in 0..10 {
        assert_eq!(rig.get("/").status, 500);
    }
    rig.service.force_breaker(None).unwrap();
    (0..4).for_each(|_| drop(rig.get("/")));
    assert_eq!(rig.service.guards().unwrap().breaker.unwrap().forced, None);
    opens(&rig);
    let notes = rig.service.take_notes();
    assert_eq!(notes[..3], [Some(Forced::Open), Some(Forced::Closed), None].map(Note::Forced));
    assert!(matches!(&notes[3..], [Note::Breaker(turn)] if turn.why.is_some()), "{notes:?}");
}

#[test]
fn the_state_outlives_a_swap_of_the_policy_and_of_endpoints() {
    let moody = Moody::start();
    let rig = Rig::of(&[&moody.instance]);
    rig.service.set_traffic(Some(with_breaker(breaker(Duration::from_secs(60)))));
    (0..4).for_each(|_| drop(rig.get("/")));
    opens(&rig);
    let traffic = Traffic { fallback: Some(degraded()), ..with_breaker(breaker(Duration::from_secs(60))) };
    rig.service.set_traffic(Some(traffic));
    rig.service.set_endpoints(endpoints_of(&[&moody.instance])).unwrap();
    assert_eq!(rig.get("/").text(), "{\"degraded\":true}", "still open");
    rig.service.set_traffic(None);
    assert_eq!(rig.get("/").status, 500, "no guards");
    assert!(!rig.metrics().contains("breaker_state{"), "and no series of them");
}

#[test]
fn a_fallback_is_answered_where_nobody_can_answer() {
    let deaf = Instance::start(|mut conn| while !conn.some().is_empty() {});
    let options = || Options { workers: 2, ..Options::default() };
    let traffic = Traffic { fallback: Some(degraded()), ..Traffic::default() };
    let nobody = Rig::with(options(), Endpoints::default(), None);
    let late = Rig::with(options(), endpoints_of(&[&deaf]), Some(Duration::from_millis(50)));
    let refusing = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoints = Endpoints { endpoints: vec![common::endpoint("s-0", refusing)], ..Endpoints::default() };
    let gone = Rig::with(options(), endpoints, None);
    for (rig, reason) in [(&nobody, "no-ready-instance"), (&late, "timeout"), (&gone, "connect-failed")] {
        rig.service.set_traffic(Some(traffic.clone()));
        let answer = rig.get("/");
        answer.assert_reason(200, reason);
        assert_eq!(answer.text(), "{\"degraded\":true}");
        assert_eq!(answer.header("Content-Type"), Some("application/json"));
        rig.expect_metric(&format!("fallbacks_total{{service=\"s\",reason=\"{reason}\"}} 1"));
    }
    // A connection stays open, and the next request on it is answered, too.
    let mut client = nobody.client();
    for _ in 0..2 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    let empty = Fallback { status: 204, headers: Vec::new(), body: Vec::new() };
    nobody.service.set_traffic(Some(Traffic { fallback: Some(Arc::new(empty)), ..Traffic::default() }));
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let (status, head) = client.head().unwrap();
    assert!(status == 204 && !head.to_lowercase().contains("content-length"), "{head}");
}

/// An instance that answers when it is told to; how many requests it has.
fn gated() -> (Instance, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let (go, has) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (may_go, count) = (go.clone(), has.clone());
    let instance = Instance::start(move |mut conn| {
        while conn.head().is_some() {
            count.fetch_add(1, Ordering::SeqCst);
            eventually("told to answer", || may_go.load(Ordering::SeqCst));
            count.fetch_sub(1, Ordering::SeqCst);
            if !conn.send(ok("done")) {
                return;
            }
        }
    });
    (instance, go, has)
}

fn with_places(max: usize, pending: usize, max_wait: Duration) -> Traffic {
    let concurrency = Some(Concurrency { places: Places { max, pending }, max_wait });
    Traffic { concurrency, ..Traffic::default() }
}

fn places(rig: &Rig) -> (usize, usize) {
    let view = rig.service.guards().unwrap().concurrency.unwrap();
    (view.active, view.pending)
}

/// Hystrix' semaphore (`execution.isolation.semaphore.maxConcurrentRequests`), Envoy's `max_pending_requests`.
#[test]
fn so_many_at_once_so_many_in_line_and_the_rest_is_turned_away() {
    let (instance, go, has) = gated();
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(with_places(2, 1, Duration::from_secs(10))));
    let mut clients: Vec<_> = (0..3).map(|_| rig.client()).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        eventually("it came", || places(&rig).0 + places(&rig).1 == index + 1);
    }
    eventually("two are at the instance", || has.load(Ordering::SeqCst) == 2);
    assert_eq!(rig.service.guards().unwrap().concurrency.unwrap().refusing_since, None, "nobody was turned away yet");
    assert_eq!(places(&rig), (2, 1));
    let turned_away = rig.get("/");
    turned_away.assert_reason(503, "too-many-requests-pending");
    let refusing = |rig: &Rig| rig.service.guards().unwrap().concurrency.unwrap().refusing_since;
    assert!(refusing(&rig).is_some(), "the line says since when");
    assert_eq!(turned_away.header("Retry-After"), Some("1"));
    rig.expect_metric("concurrency_requests{service=\"s\",state=\"pending\"} 1");
    rig.expect_metric("concurrency_waits_total{service=\"s\",reason=\"full\"} 1");
    go.store(true, Ordering::SeqCst);
    for client in &mut clients {
        assert_eq!(client.response().text(), "done");
    }
    eventually("all places are free", || places(&rig) == (0, 0));
    rig.expect_metric("concurrency_waits_total{service=\"s\",reason=\"placed\"} 1");
}

#[test]
fn a_wait_for_a_place_ends_with_its_bound_its_deadline_or_its_client() {
    let (instance, go, has) = gated();
    let options = Options { workers: 2, ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), Some(Duration::from_millis(1_500)));
    rig.service.set_traffic(Some(with_places(1, 2, Duration::from_millis(100))));
    let mut first = rig.client();
    first.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually("it has the place", || has.load(Ordering::SeqCst) == 1);
    let begun = Instant::now();
    rig.get("/").assert_reason(503, "pending-too-long");
    assert!(begun.elapsed() >= Duration::from_millis(100));

    rig.service.set_traffic(Some(with_places(1, 2, Duration::from_secs(60))));
    let mut leaver = rig.client();
    leaver.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    eventually("it waits", || places(&rig) == (1, 1));
    std::thread::sleep(Duration::from_millis(60)); // Past the time in which an end means "that was all".
    drop(leaver);
    eventually("a client that left waits no more", || places(&rig) == (1, 0));
    let begun = Instant::now();
    rig.get("/").assert_reason(504, "timeout");
    assert!(begun.elapsed() >= Duration::from_millis(1_500));
    go.store(true, Ordering::SeqCst);
    eventually("all places are free", || places(&rig) == (0, 0));
    rig.expect_metric("concurrency_waits_total{service=\"s\",reason=\"gone\"} 1");
    assert_eq!(rig.get("/").status, 200);
}

#[test]
fn more_places_let_those_in_who_wait() {
    let (instance, go, has) = gated();
    let rig = Rig::of(&[&instance]);
    rig.service.set_traffic(Some(with_places(1, 5, Duration::from_secs(10))));
    let mut clients: Vec<_> = (0..3).map(|_| rig.client()).collect();
    clients.iter_mut().for_each(|client| client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n"));
    eventually("one place, two wait", || places(&rig) == (1, 2));
    rig.service.set_traffic(Some(with_places(3, 5, Duration::from_secs(10))));
    eventually("all are at the instance", || has.load(Ordering::SeqCst) == 3);
    go.store(true, Ordering::SeqCst);
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status, 200));
}
