//! Every state of a request and everything that can happen in it: what the client sees, what the instance sees, what is
//! recorded, and that nothing is left of it: no request under way, none held, no connection counted, none in the pool
//! that is not good, and the next request is answered. The tables are `http1.txt` and `http2.txt`; `CELL=held` runs only the
//! cells whose name has that in it.
#![allow(clippy::unwrap_used)]

mod callers;
mod cell;
#[path = "../common/mod.rs"]
mod common;
mod rest;
mod table;

use std::sync::Mutex;

use table::{EVENTS, Event, Line, Protocol, STATES, State};

/// Cells at a time: most of their time they wait.
const AT_A_TIME: usize = 8;

/// Brings every cell about; tells of all that do not hold.
fn hold(text: &str, protocol: Protocol) {
    let cells = table::read(text, protocol);
    for (state, at) in STATES {
        for (event, then) in EVENTS {
            let found = cells.iter().filter(|(state, event, _)| (*state, *event) == (at, then)).count();
            let of_http2 = then == Event::ClientReset;
            let absent = protocol == Protocol::Http1 && of_http2
                || protocol == Protocol::Http2 && matches!(at, State::HalfHead | State::Tunnel);
            assert_eq!(found, usize::from(!absent), "{state} | {event}");
        }
    }
    let filter = std::env::var("CELL").unwrap_or_default();
    let name = |line: &Line| {
        let state = STATES.iter().find(|(_, state)| *state == line.state).unwrap().0;
        let event = EVENTS.iter().find(|(_, event)| *event == line.event).unwrap().0;
        format!("{state} | {event}")
    };
    let lines: Vec<Line> =
        cells.into_iter().filter_map(|(_, _, line)| line).filter(|line| name(line).contains(&filter)).collect();
    let (next, failed) = (Mutex::new(lines.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let Some(line) = next.lock().unwrap().next() else { return };
                    let run = std::panic::AssertUnwindSafe(|| cell::run(line));
                    if let Err(panic) = std::panic::catch_unwind(run) {
                        let what = panic.downcast_ref::<String>().cloned();
                        let what = what.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
                        failed.lock().unwrap().push(format!("{}: {}", name(line), what.unwrap_or_default()));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} cells: {failed:#?}", failed.len(), lines.len());
}

#[test]
fn every_event_in_every_state_of_http1() {
    hold(include_str!("http1.txt"), Protocol::Http1);
}

#[test]
fn every_event_in_every_state_of_http2() {
    hold(include_str!("http2.txt"), Protocol::Http2);
}
