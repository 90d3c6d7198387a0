//! Whole-request deadlines as callers and instances see them: what is left goes along, whoever asks for less gets less,
//! and a caller that is in a hurry does no harm to the service.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use common::{Instance, Rig, endpoints_of, ok};
use gateway::breaker::{BreakerPolicy, Comparator, State, WHOLE, Window};
use gateway::{Options, Traffic};

/// Says which of the two fields it got; `/hang` is never answered.
fn telling() -> Instance {
    Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            if head.starts_with("GET /hang") {
                conn.some();
                return;
            }
            let fields = head.lines().filter(|line| line.to_ascii_lowercase().contains("timeout"));
            conn.send(ok(&fields.collect::<Vec<_>>().join("|")));
        }
    })
}

fn ask(rig: &Rig, fields: &str) -> common::Response {
    let mut client = rig.client();
    client.send(format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}Connection: close\r\n\r\n"));
    client.response()
}

fn number(text: &str, before: &str, after: &str) -> u64 {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("no {before} in {text:?}"));
    rest.split(after).next().unwrap().trim().parse().unwrap_or_else(|_| panic!("no number in {text:?}"))
}

#[test]
fn what_is_left_goes_along_and_the_smaller_bound_counts() {
    let instance = telling();
    let with = |timeout| Rig::with(Options::default(), endpoints_of(&[&instance]), timeout);
    let rig = with(Some(Duration::from_secs(2)));
    for (fields, most) in [
        ("", 2000),
        ("X-Request-Timeout-Ms: 700\r\n", 700),
        ("X-Request-Timeout-Ms: 90000\r\n", 2000),
        ("x-request-timeout-ms: soon\r\n", 2000),
        ("X-Request-Timeout-Ms: 900\r\nX-Request-Timeout-Ms: 800\r\n", 800),
        ("X_Request_Timeout_Ms: 1\r\n", 2000),
    ] {
        let told = ask(&rig, fields).text();
        let left = number(&told, "X-Request-Timeout-Ms: ", "|");
        assert!(left <= most && left > most - 300, "{fields:?}: {told}");
        assert!(!told.contains('|') && !told.contains("grpc"), "once, and no other: {told}");
    }
    for fields in ["grpc-timeout: 500m\r\n", "Content-Type: application/grpc+proto\r\nGrpc-Timeout: 500000u\r\n"] {
        let told = ask(&rig, fields).text();
        assert!(number(&told, "grpc-timeout: ", "m") <= 500 && number(&told, "Timeout-Ms: ", "|") <= 500, "{told}");
    }
    let told = ask(&rig, "Content-Type: application/grpc\r\n").text();
    assert!(number(&told, "grpc-timeout: ", "m") > 1700, "{told}");
    // Without any bound nothing is made up, and what is no bound goes no further.
    let free = with(None);
    assert_eq!(ask(&free, "X-Request-Timeout-Ms: -1\r\n").text(), "");
    assert!(number(&ask(&free, "X-Request-Timeout-Ms: 400\r\n").text(), "Timeout-Ms: ", "|") <= 400);
    ask(&free, "X-Request-Timeout-Ms: 0\r\n").assert_reason(504, "timeout");
}

#[test]
fn nobody_waits_past_the_deadline() {
    let instance = telling();
    let rig = Rig::with(Options::default(), endpoints_of(&[&instance]), Some(Duration::from_millis(150)));
    let mut late: Vec<Duration> = Vec::new();
    for asked in [Some(60), None, Some(500)].into_iter().cycle().take(60) {
        let mut client = rig.client();
        let field = asked.map_or_else(String::new, |ms: u64| format!("X-Request-Timeout-Ms: {ms}\r\n"));
        let begun = Instant::now();
        client.send(format!("GET /hang HTTP/1.1\r\nHost: h\r\n{field}\r\n"));
        client.response().assert_reason(504, "timeout");
        let wanted = Duration::from_millis(asked.unwrap_or(150).min(150));
        assert!(begun.elapsed() >= wanted, "no earlier");
        late.push(begun.elapsed() - wanted);
    }
    late.sort();
    println!("answered after the deadline: median {:?}, worst {:?}", late[late.len() / 2], late[late.len() - 1]);
    assert!(late[late.len() - 2] < Duration::from_millis(40), "{late:?}");
}

#[test]
fn callers_in_a_hurry_do_not_open_the_breaker_and_callers_who_wait_do() {
    let instance = telling();
    let rig = Rig::with(Options::default(), endpoints_of(&[&instance]), Some(Duration::from_millis(200)));
    let policy = BreakerPolicy {
        error_ratio: Some(WHOLE / 2),
        slow: None,
        error_count: None,
        comparator: Comparator::AtLeast,
        window: Window::Time(Duration::from_secs(60)),
        min_requests: 4,
        open_for: Duration::from_secs(60),
        probes: 1,
    };
    rig.service.set_traffic(Some(Traffic { breaker: Some(policy), ..Traffic::default() }));
    let state = || rig.service.guards().unwrap().breaker.unwrap().state;
    let hang = |field: &str| {
        let mut client = rig.client();
        client.send(format!("GET /hang HTTP/1.1\r\nHost: h\r\n{field}Connection: close\r\n\r\n"));
        client.response()
    };
    for _ in 0..8 {
        hang("X-Request-Timeout-Ms: 5\r\n").assert_reason(504, "timeout");
    }
    assert_eq!((state(), ask(&rig, "").status), (State::Closed, 200));
    // With the one that was answered, three of four.
    for _ in 0..3 {
        hang("").assert_reason(504, "timeout");
    }
    common::eventually("it opens", || state() == State::Open);
}
