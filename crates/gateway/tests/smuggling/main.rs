//! Request smuggling: what one server takes for the end of a request and another does not. Each case of `http1.txt` and
//! `http2.txt` is refused, or every instance, however it reads, sees exactly the requests the gateway saw.
//! Sources: RFC 9110, 9112 and 9113, and the published classes of attacks (CL.TE, TE.CL, TE.TE, CL.0, 0.CL, TE.0,
//! TERM.EXT, EXT.TERM, H2.CL, H2.TE). Real sockets, a real gateway, a recorder behind it.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod frames;
mod readers;

use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Instance, Rig, endpoints_of, eventually};
use fixture::{Case, Expected};
use frames::{Outcome, exchange};
use gateway::Options;
use readers::{LENIENT, Seen, strict};

/// An instance that reads strictly and answers each request; afterwards the lenient ones read the same bytes.
#[derive(Clone, Default)]
struct Recorder {
    /// Requests in the order they were answered.
    answered: Arc<Mutex<Vec<Seen>>>,
    /// Every connection's bytes.
    connections: Arc<Mutex<Vec<Vec<u8>>>>,
    ended: Arc<AtomicUsize>,
}

impl Recorder {
    fn start(&self) -> Instance {
        let recorder = self.clone();
        Instance::start(move |mut conn| {
            let (mut bytes, mut answered) = (Vec::new(), 0);
            loop {
                let more = conn.some();
                if more.is_empty() {
                    recorder.ended.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                bytes.extend_from_slice(&more);
                {
                    let mut connections = recorder.connections.lock().unwrap();
                    let wanted = connections.len().max(conn.index + 1);
                    connections.resize(wanted, Vec::new());
                    connections[conn.index].clone_from(&bytes);
                }
                let (seen, _) = strict(&bytes);
                for request in &seen[answered..] {
                    recorder.answered.lock().unwrap().push(request.clone());
                    conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                }
                answered = seen.len();
            }
        })
    }

    /// All readers saw these requests; `whole`: and nothing else.
    fn check(&self, name: &str, wanted: &[Seen], whole: bool) {
        assert_eq!(*self.answered.lock().unwrap(), wanted, "{name}");
        for bytes in self.connections.lock().unwrap().iter() {
            let (seen, rest) = strict(bytes);
            assert!(!whole || rest == 0, "{name}: {rest} bytes more in {}", bytes.escape_ascii());
            for (reader, read) in LENIENT {
                assert_eq!(read(bytes).0, seen, "{name}: read differently by {reader}: {}", bytes.escape_ascii());
            }
        }
    }
}

fn rig(instance: &Instance) -> Rig {
    let options = Options { workers: 1, stall_timeout: Duration::from_millis(150), ..Options::default() };
    Rig::with(options, endpoints_of(&[instance]), None)
}

/// Runs all, so that a failure tells of every case it hits.
fn each(cases: &[Case], run: impl Fn(&Case)) {
    let fails = |case: &&Case| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(case))).is_err();
    let failed: Vec<&str> = cases.iter().filter(fails).map(|case| case.name.as_str()).collect();
    assert!(failed.is_empty(), "{} of {} cases: {failed:#?}", failed.len(), cases.len());
}

fn run_http1(case: &Case) {
    let recorder = Recorder::default();
    let instance = recorder.start();
    let rig = rig(&instance);
    let mut client = rig.client();
    client.send(&case.bytes);
    let (mut wanted, mut whole, mut closed) = (Vec::new(), true, false);
    for expected in &case.expected {
        match expected {
            Expected::Seen(seen) => {
                let response = client.response();
                assert_eq!(response.status, 200, "{}: {response:?}", case.name);
                wanted.push(seen.clone());
            }
            Expected::Refused { status, word, begun } => {
                let response = client.response();
                let reason = format!("bad-request:{word}");
                let got = (response.status, response.header("Seawall-Reason").unwrap_or_default());
                assert_eq!(got, (*status, reason.as_str()), "{}", case.name);
                assert_eq!(response.header("Connection"), Some("close"), "{}", case.name);
                (whole, closed) = (!begun, true);
            }
            Expected::Closed => closed = true,
            Expected::Reset | Expected::Status(_) => panic!("{}: of HTTP/2", case.name),
        }
    }
    if !closed {
        client.stream.shutdown(Shutdown::Write).unwrap();
    }
    let rest = client.until_end();
    assert!(rest.is_empty(), "{}: {}", case.name, rest.escape_ascii());
    eventually("no request is under way", || rig.service.in_flight(&"s-0".into()) == 0);
    if !whole {
        eventually("the broken connection has ended", || recorder.ended.load(Ordering::SeqCst) == instance.accepted());
    }
    recorder.check(&case.name, &wanted, whole);
}

#[test]
fn no_instance_sees_a_request_the_gateway_did_not_see() {
    let cases = fixture::read(include_str!("http1.txt"), fixture::http1);
    assert!(cases.len() >= 150, "{}", cases.len());
    each(&cases, run_http1);
}

/// However its bytes are cut on their way.
#[test]
fn nor_when_it_comes_byte_by_byte() {
    for mut case in fixture::read(include_str!("http1.txt"), fixture::http1) {
        // Refused at a byte, the rest may meet a closed connection: cut there is no different from whole.
        if case.expected.iter().all(|expected| matches!(expected, Expected::Seen(_))) {
            let last = case.bytes.split_off(case.bytes.len() - 1);
            let recorder = Recorder::default();
            let instance = recorder.start();
            let rig = rig(&instance);
            let mut client = rig.client();
            for byte in case.bytes.into_iter().chain(last) {
                client.send([byte]);
            }
            let mut wanted = Vec::new();
            for expected in case.expected {
                assert_eq!(client.response().status, 200, "{}", case.name);
                if let Expected::Seen(seen) = expected {
                    wanted.push(seen);
                }
            }
            recorder.check(&case.name, &wanted, true);
        }
    }
}

#[test]
fn no_request_of_http2_becomes_two_of_http1() {
    let cases = fixture::read(include_str!("http2.txt"), fixture::http2);
    assert!(cases.len() >= 55, "{}", cases.len());
    each(&cases, run_http2);
}

fn run_http2(case: &Case) {
    let recorder = Recorder::default();
    let instance = recorder.start();
    let rig = rig(&instance);
    let got = exchange(rig.address, &case.bytes);
    eventually("no request is under way", || rig.service.in_flight(&"s-0".into()) == 0);
    let [expected] = &case.expected[..] else { panic!("{}: one outcome", case.name) };
    let (wanted, whole) = match expected {
        Expected::Seen(seen) => {
            assert_eq!(got, Outcome::Answered(200), "{}", case.name);
            (vec![seen.clone()], true)
        }
        Expected::Status(status) => {
            assert_eq!(got, Outcome::Answered(*status), "{}", case.name);
            (Vec::new(), true)
        }
        Expected::Reset => {
            assert_eq!(got, Outcome::Reset, "{}", case.name);
            (Vec::new(), false)
        }
        Expected::Refused { .. } | Expected::Closed => panic!("{}: of HTTP/1.1", case.name),
    };
    if !whole {
        let ended = || recorder.ended.load(Ordering::SeqCst) == instance.accepted();
        eventually("the broken connection has ended", ended);
    }
    recorder.check(&case.name, &wanted, whole);
}
