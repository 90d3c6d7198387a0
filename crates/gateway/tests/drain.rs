//! Draining: nobody who is being served, or who was told that it is connected, is cut off by it.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::{Instance, PATIENCE, Rig, eventually};

const POST: &str = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";

#[test]
fn a_connection_in_use_gets_one_more_answer_which_says_that_it_closes() {
    let instance = Instance::answering("it");
    let rig = Rig::of(&[&instance]);
    let (mut busy, mut idle) = (rig.client(), rig.client());
    for client in [&mut busy, &mut idle] {
        client.send(POST);
        assert_eq!(client.response().text(), "it");
    }
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let draining = scope.spawn(|| rig.drain(PATIENCE));
        // Long after a connection that is between two requests has seen that draining began.
        std::thread::sleep(Duration::from_millis(100));
        busy.send(POST);
        let last = busy.response();
        assert_eq!((last.text().as_str(), last.header("Connection")), ("it", Some("close")));
        busy.assert_closed();
        // Whoever says nothing is closed soon.
        idle.assert_closed();
        assert_eq!(draining.join().unwrap(), 0);
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[test]
fn who_comes_while_draining_is_refused_and_not_left_in_a_line() {
    // There a listening socket cannot be shut down for all who share it.
    if std::env::consts::OS == "windows" {
        return;
    }
    let instance = Instance::answering("it");
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    let address = client.stream.peer_addr().unwrap();
    client.send(POST);
    assert_eq!(client.response().text(), "it");
    assert_eq!(rig.drain(PATIENCE), 0);
    eventually("nobody is let in", || TcpStream::connect(address).is_err());
}
