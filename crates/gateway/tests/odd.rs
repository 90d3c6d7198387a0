//! Requests that look odd and are valid: each reaches the instance exactly as it should, byte for byte.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, Mutex};

use common::{Client, Instance, Rig};

/// Fields every forwarded request ends with; tests of their own look at them.
const OWN: [&str; 5] =
    ["X-Forwarded-For: ", "X-Forwarded-Proto: ", "X-Forwarded-Host: ", "X-Request-Id: ", "traceparent: "];

/// What a client sends, the head an instance sees (without `OWN`), and the body on the wire.
const CASES: &[(&str, &str, &str)] = &[
    ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    ("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET / HTTP/1.1\r\nhOsT:h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET / HTTP/1.1\r\nHost:\t h \t\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "GET / HTTP/1.1\r\nHost: [::1]:8080\r\n", ""),
    ("GET / HTTP/1.1\r\nHost: a_b.c:\r\n\r\n", "GET / HTTP/1.1\r\nHost: a_b.c:\r\n", ""),
    ("GET /a//b/../c/./?q=/..&x HTTP/1.1\r\nHost: h\r\n\r\n", "GET /a//b/../c/./?q=/..&x HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET //host/path HTTP/1.1\r\nHost: h\r\n\r\n", "GET //host/path HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET /%2e%2E/%00%zz HTTP/1.1\r\nHost: h\r\n\r\n", "GET /%2e%2E/%00%zz HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET /a;b=c,d:e@f!$&'()*+~ HTTP/1.1\r\nHost: h\r\n\r\n", "GET /a;b=c,d:e@f!$&'()*+~ HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET /{a}|\"^` HTTP/1.1\r\nHost: h\r\n\r\n", "GET /{a}|\"^` HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET /? HTTP/1.1\r\nHost: h\r\n\r\n", "GET /? HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET /?? HTTP/1.1\r\nHost: h\r\n\r\n", "GET /?? HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET http://other/x?y HTTP/1.1\r\nHost: h\r\n\r\n", "GET /x?y HTTP/1.1\r\nHost: other\r\n", ""),
    ("GET http://other:81 HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: other:81\r\n", ""),
    ("GET HTTP://other?y HTTP/1.1\r\nHost: h\r\n\r\n", "GET /?y HTTP/1.1\r\nHost: other\r\n", ""),
    ("GET https://other/ HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: other\r\n", ""),
    ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: h\r\n", ""),
    ("PURGE /x HTTP/1.1\r\nHost: h\r\n\r\n", "PURGE /x HTTP/1.1\r\nHost: h\r\n", ""),
    ("M-SEARCH /x HTTP/1.1\r\nHost: h\r\n\r\n", "M-SEARCH /x HTTP/1.1\r\nHost: h\r\n", ""),
    ("get /x HTTP/1.1\r\nHost: h\r\n\r\n", "get /x HTTP/1.1\r\nHost: h\r\n", ""),
    ("!#$%&'*+-.^_`|~ /x HTTP/1.1\r\nHost: h\r\n\r\n", "!#$%&'*+-.^_`|~ /x HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET / HTTP/1.1\r\nHost: h\r\nX:\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nX: \r\n", ""),
    ("GET / HTTP/1.1\r\nHost: h\r\nX:  a  b \t\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nX: a  b\r\n", ""),
    ("GET / HTTP/1.1\r\nHost: h\r\nX: a\tb\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nX: a\tb\r\n", ""),
    ("GET / HTTP/1.1\r\nHost: h\r\nX: a:b::c\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nX: a:b::c\r\n", ""),
    (
        "GET / HTTP/1.1\r\nHost: h\r\nX: 1\r\nx: 2\r\nX: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: 1\r\nx: 2\r\nX: 1\r\n",
        "",
    ),
    ("GET / HTTP/1.1\r\nA: 1\r\nHost: h\r\nB: 2\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\nA: 1\r\nB: 2\r\n", ""),
    (
        "GET / HTTP/1.1\r\nHost: h\r\n!#$%&'*+-.^_`|~1a: v\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n!#$%&'*+-.^_`|~1a: v\r\n",
        "",
    ),
    (
        "GET / HTTP/1.1\r\nHost: h\r\nCookie: a=\"b\"; c=d\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nCookie: a=\"b\"; c=d\r\n",
        "",
    ),
    // Of one connection only.
    (
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: , x-a ,,X-B\r\nX-A: 1\r\nx-b: 2\r\nX-C: 3\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX-C: 3\r\n",
        "",
    ),
    ("GET / HTTP/1.1\r\nHost: h\r\nConnection: host, content-length\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    (
        "GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nProxy-Connection: x\r\nTrailer: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\n",
        "",
    ),
    (
        "GET / HTTP/1.1\r\nHost: h\r\nSeawall-Epoch: 9\r\nseawall_epoch: 9\r\nContent_Length: 5\r\nForwarded: for=x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n",
        "",
    ),
    // Bodies.
    (
        "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc",
        "GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n",
        "abc",
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n",
        "",
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0003\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n",
        "abc",
    ),
    ("POST / HTTP/1.1\r\nHost: h\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\n", ""),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n",
        "3\r\nabc\r\n0\r\n\r\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n",
        "0\r\n\r\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n00A;x=\"y\"\r\n0123456789\r\n000;z\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n",
        "a\r\n0123456789\r\n0\r\n\r\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\nX-T: 1\r\nHost: evil\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n",
        "1\r\na\r\n2\r\nbc\r\n0\r\nX-T: 1\r\n\r\n",
    ),
    (
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n",
        "\r\n\r\n",
    ),
    // HTTP/1.0.
    ("GET / HTTP/1.0\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    ("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n", ""),
    (
        "POST / HTTP/1.0\r\nHost: h\r\nContent-Length: 2\r\nExpect: tea\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n",
        "ab",
    ),
];

type Seen = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

fn recorder() -> (Instance, Seen) {
    let seen = Seen::default();
    let sink = seen.clone();
    let instance = Instance::start(move |mut conn| {
        while let Some(head) = conn.head() {
            let body = conn.body(&head);
            sink.lock().unwrap().push((head, body));
            conn.send(common::ok("seen"));
        }
    });
    (instance, seen)
}

fn essence(head: &str) -> String {
    let lines = head.split_inclusive("\r\n").filter(|line| !OWN.iter().any(|own| line.starts_with(own)));
    lines.collect::<String>().trim_end_matches("\r\n").to_owned() + "\r\n"
}

fn exchange(client: &mut Client, seen: &Seen, request: &str) -> (String, Vec<u8>) {
    client.send(request);
    let response = client.response();
    assert_eq!((response.status, response.text()), (200, "seen".to_owned()), "{request:?}: {response:?}");
    seen.lock().unwrap().pop().unwrap()
}

#[test]
fn each_is_forwarded_exactly() {
    assert!(CASES.len() >= 40, "{}", CASES.len());
    let (instance, seen) = recorder();
    let rig = Rig::of(&[&instance]);
    for (request, head, body) in CASES {
        let (got_head, got_body) = exchange(&mut rig.client(), &seen, request);
        assert_eq!(essence(&got_head), *head, "{request:?}");
        assert_eq!(String::from_utf8_lossy(&got_body), *body, "{request:?}");
    }
}

#[test]
fn each_is_forwarded_exactly_when_it_comes_byte_by_byte() {
    let (instance, seen) = recorder();
    let rig = Rig::of(&[&instance]);
    for (request, head, _) in CASES {
        let mut client = rig.client();
        let (start, end) = request.as_bytes().split_at(request.len() - 1);
        for byte in start {
            client.send([*byte]);
        }
        let (got_head, _) = exchange(&mut client, &seen, std::str::from_utf8(end).unwrap());
        assert_eq!(essence(&got_head), *head, "{request:?}");
    }
}

#[test]
fn pipelined_requests_are_answered_in_order_and_alone() {
    let (instance, seen) = recorder();
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    let together: Vec<_> =
        CASES.iter().filter(|(request, ..)| !request.contains("HTTP/1.0") && !request.starts_with('\r')).collect();
    client.send(together.iter().map(|(request, ..)| *request).collect::<String>());
    for (request, ..) in &together {
        assert_eq!(client.response().status, 200, "{request:?}");
    }
    let seen = seen.lock().unwrap();
    let heads: Vec<_> = seen.iter().map(|(head, _)| essence(head)).collect();
    let wanted: Vec<_> = together.iter().map(|(_, head, _)| (*head).to_owned()).collect();
    assert_eq!(heads, wanted);
}

#[test]
fn the_gateways_own_fields() {
    let (instance, seen) = recorder();
    let rig = Rig::of(&[&instance]);
    let sent = "GET / HTTP/1.1\r\nHost: a.b:80\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n\
                X-Forwarded-Host: evil\r\nX-Request-Id: mine\r\n\r\n";
    let (head, _) = exchange(&mut rig.client(), &seen, sent);
    for line in
        ["X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a.b:80", "X-Request-Id: mine"]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} not in {head}");
    }
    assert_eq!(head.matches("X-Forwarded-").count(), 3, "{head}");
    let (first, _) = exchange(&mut rig.client(), &seen, CASES[0].0);
    let (second, _) = exchange(&mut rig.client(), &seen, CASES[0].0);
    let id = |head: &str| head.split("X-Request-Id: ").nth(1).unwrap()[..32].to_owned();
    assert_ne!(id(&first), id(&second));
}

#[test]
fn http_1_0_without_host_gets_the_instances_address() {
    let (instance, seen) = recorder();
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    let (head, _) = exchange(&mut client, &seen, "GET / HTTP/1.0\r\n\r\n");
    assert_eq!(essence(&head), format!("GET / HTTP/1.1\r\nHost: {}\r\n", instance.address));
    client.assert_closed();
}
