//! Faults and bad input: what programs and strangers send, and what is not there any more.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{done, ids, put};
use crate::support::processes::resident;
use crate::support::{Seawall, http, wait};

#[test]
fn registrations_that_cannot_be_are_refused_with_the_place_and_change_nothing() {
    let seawall = Seawall::up("");
    let register = "/v1/agent/service/register";
    let check = "/v1/agent/check/register";
    let tags = json!({ "Name": "a", "Tags": (0..1 << 14).map(|n| format!("{n:064}")).collect::<Vec<_>>() }).to_string();
    assert!(tags.len() > 1 << 20);
    let with = |check: Value| json!({ "Name": "a", "Check": check }).to_string();
    for (path, body, status, says) in [
        (register, "{ \"Name\": \"a\", ".to_owned(), 400, "line 1 column"),
        (register, "[]".to_owned(), 400, "object"),
        (register, "\u{0}\u{1}".to_owned(), 400, "decode"),
        (register, "[".repeat(100_000), 400, "recursion"),
        (register, tags, 400, "256 tags"),
        (register, json!({ "Name": "a", "Tags": ["x".repeat(1 << 20)] }).to_string(), 400, "the limit is 65536"),
        (register, json!({ "Name": "a", "Meta": { "k": "x".repeat(1 << 20) } }).to_string(), 400, "the limit is 65536"),
        (register, json!({ "Name": "a".repeat(300) }).to_string(), 400, "255 bytes"),
        (register, json!({ "Name": "a\u{0}b" }).to_string(), 400, "`Name`: a name has no control characters"),
        (register, json!({ "Name": "a", "ID": "a\u{1b}[2J" }).to_string(), 400, "control characters"),
        (register, with(json!({ "HTTP": "http://a/", "Interval": "-5s" })), 400, "Check.Interval"),
        (register, with(json!({ "HTTP": "http://a/", "Interval": "99999999999999999999h" })), 400, "Check.Interval"),
        (register, with(json!({ "HTTP": "http://a/", "Interval": "10 fortnights" })), 400, "Check.Interval"),
        (register, with(json!({ "HTTP": "http://a/", "Interval": [] })), 400, "Check.Interval"),
        (register, with(json!({ "HTTP": "http://a/" })), 400, "interval"),
        (register, with(json!({ "HTTP": "gopher://a/", "Interval": "1s" })), 400, "http://"),
        (register, with(json!({ "TTL": "-1s" })), 400, "Check.TTL"),
        (check, json!({ "Name": "c", "Args": ["/bin/sh", "-c", "id"], "Interval": "1s" }).to_string(), 400, "disabled"),
        (check, json!({ "Name": "c", "ScriptArgs": ["/bin/sh"], "Interval": "1s" }).to_string(), 400, "disabled"),
        (check, json!({ "Name": "c", "Script": "id", "Interval": "1s" }).to_string(), 400, "args"),
        (
            check,
            json!({ "Name": "c", "DockerContainerID": "x", "Shell": "sh", "Args": ["id"], "Interval": "1s" })
                .to_string(),
            400,
            "container",
        ),
    ] {
        let answer = seawall.api("PUT", path, body.as_bytes());
        let shown = &body[..body.len().min(120)];
        assert_eq!(answer.status, status, "{path} {shown}: {}", answer.text());
        assert!(answer.text().to_lowercase().contains(&says.to_lowercase()), "{shown}: {}", answer.text());
        assert!(answer.text().len() < 2000, "{shown}: told at length");
    }
    // Larger than any request may be.
    let answer = seawall.api("PUT", register, &vec![b' '; 5 << 20]);
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert_eq!(seawall.api("GET", "/v1/agent/services", b"").json(), json!({}));
    assert_eq!(seawall.api("GET", "/v1/agent/checks", b"").json(), json!({}));
    // An interval that is too short is Consul's shortest.
    done(&put(&seawall, register, &json!({ "Name": "a", "Check": { "TCP": "127.0.0.1:1", "Interval": "1ns" } })));
    assert_eq!(seawall.api("GET", "/v1/agent/checks", b"").json()["service:a"]["Interval"], "1s");
}

#[test]
fn a_check_that_answers_ten_megabytes_costs_ten_kilobytes() {
    let seawall = Seawall::up("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                // One that says how much it is, and one that goes on for ever.
                let endless = head[..read].starts_with(b"GET /endless");
                let length = if endless { String::new() } else { format!("content-length: {}\r\n", 10 << 20) };
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n{length}connection: close\r\n\r\n").as_bytes());
                let mut left = if endless { usize::MAX } else { 10 << 20 };
                // Ignored: the check has seen enough, and has gone.
                while left > 0 && stream.write_all(&[b'x'; 4096]).is_ok() {
                    left = left.saturating_sub(4096);
                }
            });
        }
    });
    for n in 0..20 {
        let path = if n % 2 == 0 { "large" } else { "endless" };
        let body = json!({ "Name": format!("c{n}"), "HTTP": format!("http://{address}/{path}"), "Interval": "1s", "Timeout": "5s" });
        done(&put(&seawall, "/v1/agent/check/register", &body));
    }
    let passing = || {
        let checks = seawall.api("GET", "/v1/agent/checks", b"");
        assert!(checks.body.len() < 20 * 8192, "{} bytes of checks", checks.body.len());
        let checks = checks.json();
        checks.as_object().unwrap().values().filter(|check| check["Status"] == "passing").count()
    };
    wait("all of them pass by their status", || (passing() == 20).then_some(()));
    let before = resident(seawall.node());
    // So many more rounds as would be 600 megabytes.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let grown = resident(seawall.node()).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
    assert_eq!(passing(), 20);
}

/// How many clients wait at this node.
pub fn waiting(seawall: &Seawall) -> f64 {
    let metrics = seawall.api("GET", "/metrics", b"").text();
    let line = metrics.lines().find(|line| line.starts_with("seawall_discovery_blocking_queries "));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the gauge is there")
}

/// Begins a blocking query and goes away.
fn vanish(api: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).unwrap();
    stream
}

#[test]
fn thousands_of_blocking_queries_whose_clients_vanish_end_and_cost_nothing() {
    let seawall = Seawall::up("");
    done(&put(&seawall, "/v1/agent/service/register", &json!({ "Name": "web" })));
    let index = super::index(&seawall.api("GET", "/v1/health/service/web", b""));
    let path = |name: &str| format!("/v1/health/service/{name}?index={index}&wait=10m");
    let mut before = 0;
    // More than ten times as many as the API has places for connections: each has to be given back.
    for round in 0..14 {
        let some: Vec<TcpStream> = (0..400).map(|n| vanish(seawall.api, &path(&format!("s{}", n % 40)))).collect();
        wait("they wait", || (waiting(&seawall) >= 400.0).then_some(()));
        drop(some);
        wait("they have ended", || (waiting(&seawall) == 0.0).then_some(()));
        if round == 3 {
            before = resident(seawall.node());
        }
    }
    let grown = resident(seawall.node()).saturating_sub(before);
    println!("5,600 blocking queries came and went: {grown} bytes more at the end than after 1,600");
    assert!(grown < 16 << 20, "{grown} bytes more");
    // Clients that are there are served as before.
    let api = seawall.api;
    let own = path("web");
    let stays = std::thread::spawn(move || http::request(api, "GET", &own, &[], b"").unwrap());
    wait("it waits", || (waiting(&seawall) == 1.0).then_some(()));
    done(&put(&seawall, "/v1/agent/service/register", &json!({ "Name": "web", "ID": "web-2" })));
    assert_eq!(ids(&stays.join().unwrap()), ["web", "web-2"]);
}

#[test]
fn strangers_in_a_browser_are_refused_whatever_they_ask() {
    let seawall = Seawall::up("");
    done(&put(&seawall, "/v1/agent/service/register", &json!({ "Name": "web" })));
    let rebound = [("host", "consul.evil.example:8500")];
    let crossed = [("origin", "https://evil.example")];
    let sandboxed = [("origin", "null")];
    for (method, path) in [
        ("GET", "/v1/catalog/services"),
        ("GET", "/v1/kv/?recurse"),
        ("GET", "/v1/agent/self"),
        ("PUT", "/v1/kv/a"),
        ("PUT", "/v1/agent/service/deregister/web"),
        ("PUT", "/v1/catalog/deregister"),
        ("DELETE", "/v1/kv/?recurse"),
        ("PUT", "/v1/txn"),
        ("POST", "/v1/query"),
        ("OPTIONS", "/v1/agent/service/register"),
    ] {
        for headers in [&rebound, &crossed, &sandboxed] {
            let answer = http::request(seawall.api, method, path, headers, b"").unwrap();
            assert_eq!(answer.status, 403, "{method} {path} {headers:?}: {}", answer.text());
            assert!(answer.header("access-control-allow-origin").is_none());
        }
    }
    assert_eq!(ids(&seawall.api("GET", "/v1/health/service/web", b"")), ["web"]);
}
