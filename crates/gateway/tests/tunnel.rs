//! What is not request and answer: upgrades (WebSocket), TCP listeners, the PROXY protocol in front of either.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write as _;
use std::net::Shutdown;
use std::time::Duration;

use common::{Client, Instance, Rig, endpoints_of, eventually, ok};
use gateway::{Endpoints, HoldPolicy, Manner, Options, ProxyVersion, Selection, Upstream};
use model::Epoch;

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Sends everything back, byte by byte as it comes; `first` comes before anything.
fn echoing(first: &'static str) -> Instance {
    Instance::start(move |mut conn| {
        conn.send(first);
        echo(conn);
    })
}

fn echo(mut conn: common::Conn) {
    loop {
        let bytes = conn.some();
        if bytes.is_empty() || !conn.send(bytes) {
            return;
        }
    }
}

#[test]
fn an_accepted_upgrade_is_a_tunnel_in_both_directions() {
    let instance = Instance::start(|mut conn| {
        let Some(head) = conn.head() else { return };
        assert!(head.contains("Connection: Upgrade\r\nUpgrade: websocket\r\n"), "{head}");
        assert!(head.contains("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), "{head}");
        // The first frame leaves with the head.
        conn.send(format!("{SWITCHED}hello "));
        echo(conn);
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    // So does the client's: it counts only once the instance has agreed.
    client.send(format!("{UPGRADE}early "));
    let (status, head) = client.head().unwrap();
    assert_eq!(status, 101, "{head}");
    for line in
        ["Connection: Upgrade\r\n", "Upgrade: websocket\r\n", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"]
    {
        assert!(head.contains(line), "{line} not in {head}");
    }
    assert_eq!(client.bytes(12), b"hello early ");
    for _ in 0..100 {
        client.send([7; 1_000]);
        assert_eq!(client.bytes(1_000), [7; 1_000]);
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    client.assert_closed();
    rig.expect_metric("requests_total{service=\"s\",code=\"1xx\"} 1");
    rig.expect_metric("received_bytes_total{service=\"s\"} 100006");
    eventually("the request is over", || rig.service.in_flight(&"s-0".into()) == 0);
}

#[test]
fn a_refused_upgrade_is_an_answer_like_any_other() {
    let instance = Instance::start(|mut conn| {
        while conn.head().is_some() {
            conn.send(ok("no"));
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    for _ in 0..3 {
        client.send(UPGRADE);
        assert_eq!(client.response().text(), "no");
    }
    assert_eq!(instance.accepted(), 1);
}

#[test]
fn an_upgrade_nobody_may_ask_for_is_not_passed_on() {
    let instance = Instance::answering("no");
    let rig = Rig::of(&[&instance]);
    for request in [
        UPGRADE.replace("websocket", "h2c"),
        UPGRADE.replace("HTTP/1.1", "HTTP/1.0"),
        UPGRADE.replace("Connection: keep-alive, Upgrade\r\n", ""),
        UPGRADE.replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 1\r\n\r\nx"),
    ] {
        let mut client = rig.client();
        client.send(&request);
        assert_eq!(client.response().text(), "no", "{request}");
    }
    let seen = String::from_utf8(instance.seen()).unwrap().to_ascii_lowercase();
    assert!(!seen.contains("upgrade:"), "{seen}");
}

#[test]
fn a_quiet_tunnel_is_closed_and_a_busy_one_is_not() {
    let instance = Instance::start(|mut conn| {
        if conn.head().is_some() {
            conn.send(SWITCHED);
            echo(conn);
        }
    });
    let options = Options { workers: 1, tunnel_idle_timeout: Duration::from_secs(1), ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), Some(Duration::from_millis(400)));
    let mut client = rig.client();
    client.send(UPGRADE);
    client.head().unwrap();
    // Longer in all than the idle timeout and than the route's timeout, which ends with the 101.
    for _ in 0..25 {
        std::thread::sleep(Duration::from_millis(50));
        client.send("x");
        assert_eq!(client.bytes(1), b"x");
    }
    client.assert_closed();
}

fn tcp() -> Manner {
    Manner { tcp: Some("s".into()), ..Manner::default() }
}

fn one_worker() -> Options {
    Options { workers: 1, ..Options::default() }
}

#[test]
fn a_tcp_listener_passes_bytes_and_ends_on() {
    let instance = echoing("220 ready\r\n");
    let rig = Rig::mannered(tcp(), one_worker(), endpoints_of(&[&instance]));
    let mut client = rig.client();
    assert_eq!(client.bytes(11), b"220 ready\r\n");
    client.send(vec![b'z'; 200_000]);
    assert!(client.bytes(200_000).iter().all(|&byte| byte == b'z'));
    client.stream.shutdown(Shutdown::Write).unwrap();
    client.assert_closed();
    rig.expect_metric("tunnels_total{service=\"s\",reason=\"reached\"} 1");
}

#[test]
fn a_tcp_client_gets_an_instance_that_lives() {
    let (mut dead, alive) = (echoing("dead"), echoing("alive"));
    dead.kill();
    let rig = Rig::mannered(tcp(), one_worker(), endpoints_of(&[&dead, &alive]));
    for _ in 0..6 {
        assert_eq!(rig.client().bytes(5), b"alive");
    }
    let nobody = Rig::mannered(tcp(), one_worker(), endpoints_of(&[&dead]));
    nobody.client().assert_closed();
    nobody.expect_metric("tunnels_total{service=\"s\",reason=\"unreachable\"} 1");
}

#[test]
fn a_tcp_connection_ends_with_its_primary_and_the_next_waits_for_the_new_one() {
    let (old, new) = (echoing("old"), echoing("new"));
    let primary = |id: &str, epoch, holding| Endpoints {
        selection: Selection::Primary(Some((id.into(), Epoch(epoch)))),
        hold: Some(HoldPolicy { max_wait: common::PATIENCE, max_requests: 10 }),
        holding,
        ..endpoints_of(&[&old, &new])
    };
    let rig = Rig::mannered(tcp(), one_worker(), primary("s-0", 1, false));
    let mut first = rig.client();
    assert_eq!(first.bytes(3), b"old");
    rig.service.set_endpoints(primary("s-0", 1, true)).unwrap();
    first.assert_closed();
    let mut second = rig.client();
    eventually("the second client waits", || rig.service.held() == 1);
    rig.service.set_endpoints(primary("s-1", 2, false)).unwrap();
    assert_eq!(second.bytes(3), b"new");
}

fn behind_a_proxy() -> Manner {
    Manner { proxy_protocol: true, ..Manner::default() }
}

#[test]
fn a_proxy_header_names_the_client() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            conn.send(ok(head.split("X-Forwarded-For: ").nth(1).unwrap().split("\r\n").next().unwrap()));
        }
    });
    let rig = Rig::mannered(behind_a_proxy(), one_worker(), endpoints_of(&[&instance]));
    let request = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let v2 = |command: u8, family: u8, body: &[u8]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        header.extend_from_slice(&[command, family, 0, body.len() as u8]);
        header.extend_from_slice(body);
        header
    };
    for (header, client) in [
        (b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\r\n".to_vec(), "192.0.2.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 5000 80\r\n".to_vec(), "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x21, 0x11, &[192, 0, 2, 8, 192, 0, 2, 1, 0, 80, 0, 80, 3, 0, 1, 9]), "192.0.2.8"),
        (v2(0x20, 0, &[]), "127.0.0.1"),
    ] {
        // At once, and byte by byte.
        let mut at_once = rig.client();
        at_once.send([&header[..], request].concat());
        assert_eq!(at_once.response().text(), client, "{}", header.escape_ascii());
        let mut slowly = rig.client();
        for byte in [&header[..], request].concat() {
            slowly.stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(slowly.response().text(), client, "{}", header.escape_ascii());
    }
}

#[test]
fn a_connection_without_a_proxy_header_is_closed() {
    let instance = Instance::answering("a");
    let rig = Rig::mannered(behind_a_proxy(), one_worker(), endpoints_of(&[&instance]));
    for sent in [
        &b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"[..],
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 80\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"PROXY TCP4 192.0.2.7 192.0.2.1 5000 99999\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c............",
        &[b'P'; 300],
    ] {
        let mut client = rig.client();
        client.send(sent);
        client.assert_closed();
    }
    rig.expect_metric("connections_refused_total{reason=\"no-proxy-header\"} 5");
    assert_eq!(instance.accepted(), 0);
}

#[test]
fn an_instance_is_told_of_the_client_and_the_connection_is_its_alone() {
    for version in [ProxyVersion::V1, ProxyVersion::V2] {
        let instance = Instance::start(move |mut conn| {
            if version == ProxyVersion::V1 {
                let line = conn.until(b"\r\n");
                assert!(line.starts_with(b"PROXY TCP4 127.0.0.1 127.0.0.1 "), "{}", line.escape_ascii());
            } else {
                let header = conn.exactly(28);
                assert!(
                    header.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01"),
                    "{}",
                    header.escape_ascii()
                );
            }
            common::answer_all(conn, "told");
        });
        let upstream = Upstream { proxy_protocol: Some(version), ..Upstream::default() };
        let rig = Rig::new(Endpoints { upstream, ..endpoints_of(&[&instance]) });
        let mut client = rig.client();
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(client.response().text(), "told");
        }
        assert_eq!(instance.accepted(), 3);
    }
}

#[test]
fn one_client_address_has_so_many_connections_and_no_more() {
    let instance = Instance::answering("a");
    let options = Options { max_connections_per_client: 2, ..one_worker() };
    let rig = Rig::mannered(behind_a_proxy(), options, endpoints_of(&[&instance]));
    let open = |address: &str| {
        let mut client = Client::to(rig.address);
        client.send(format!("PROXY TCP4 {address} 192.0.2.1 5000 80\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"));
        client
    };
    let (mut one, mut two) = (open("192.0.2.7"), open("192.0.2.7"));
    assert_eq!((one.response().status, two.response().status), (200, 200));
    open("192.0.2.7").assert_closed();
    assert_eq!(open("192.0.2.8").response().status, 200, "another client's");
    rig.expect_metric("connections_refused_total{reason=\"too-many-connections-of-client\"} 1");
    drop(one);
    eventually("a place is free again", || {
        let mut client = open("192.0.2.7");
        client.head().is_some()
    });
}
