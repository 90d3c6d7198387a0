//! What a route changes on the way, seen from both sides; and the pages a user puts in place of the gateway's words.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Read;
use std::time::Duration;

use common::{Instance, Rig, endpoints_of, ok};
use gateway::{
    Action, Coding, Endpoints, ErrorPage, HeaderEdits, Match, Options, PathMatch, PathRewrite, Policy, Redirect, Route,
    Scheme, Target,
};

fn under(prefix: &str, action: Action, policy: Policy) -> Route {
    let path = Some(PathMatch::Prefix(prefix.into()));
    Route {
        name: prefix.into(),
        series: None,
        hosts: Vec::new(),
        matches: vec![Match { path, ..Match::default() }],
        action,
        timeout: None,
        retry: None,
        policy,
    }
}

fn to_s() -> Action {
    Action::Forward(Target { service: "s".into(), version: None })
}

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn fields_and_targets_are_changed_in_both_directions() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let body = format!("{head}|");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nServer: secret\r\nX-Keep: 1\r\nX-Set: old\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            conn.send(answer);
        }
    });
    let rig = Rig::of(&[&instance]);
    let policy = Policy {
        request: HeaderEdits {
            remove: vec!["cookie".into()],
            set: pairs(&[("X-From", "gateway")]),
            add: pairs(&[("X-Tag", "b")]),
        },
        response: HeaderEdits {
            remove: vec!["server".into()],
            set: pairs(&[("X-Set", "new")]),
            add: pairs(&[("X-More", "2")]),
        },
        path: Some(PathRewrite::Prefix("/v2".into())),
        host: Some("inner.local".into()),
        ..Policy::default()
    };
    rig.table.set_routes(vec![under("/api", to_s(), policy)]).unwrap();
    let mut client = rig.client();
    client.send("GET /api/orders?id=7 HTTP/1.1\r\nHost: shop.local\r\nCookie: a\r\nX-From: client\r\nX-Tag: a\r\n\r\n");
    let answer = client.response();
    let seen = answer.text();
    assert!(seen.starts_with("GET /v2/orders?id=7 HTTP/1.1\r\nHost: inner.local\r\n"), "{seen}");
    for line in ["X-From: gateway\r\n", "X-Tag: a\r\n", "X-Tag: b\r\n", "X-Forwarded-Host: shop.local\r\n"] {
        assert!(seen.contains(line), "{line} not in {seen}");
    }
    assert!(!seen.contains("Cookie") && !seen.contains("client"), "{seen}");
    let names = ["Server", "X-Keep", "X-Set", "X-More"].map(|name| answer.header(name));
    assert_eq!(names, [None, Some("1"), Some("new"), Some("2")], "{}", answer.head);
}

#[test]
fn a_redirect_asks_no_instance() {
    let instance = Instance::answering("a");
    let rig = Rig::of(&[&instance]);
    let redirect = Redirect {
        status: 308,
        scheme: Some("https".into()),
        host: None,
        port: None,
        path: Some(PathRewrite::Prefix("/new".into())),
    };
    let old = under("/old", Action::Redirect(redirect), Policy::default());
    rig.table.set_routes(vec![old, under("/", to_s(), Policy::default())]).unwrap();
    let mut client = rig.client();
    client.send("GET /old/x?y HTTP/1.1\r\nHost: shop.local:8080\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.header("Location")), (308, Some("https://shop.local/new/x?y")));
    assert_eq!(instance.accepted(), 0);
    client.send("GET /other HTTP/1.1\r\nHost: shop.local\r\n\r\n");
    assert_eq!(client.response().text(), "a");
}

#[test]
fn a_redirect_goes_to_where_the_client_is() {
    let trusted = |networks: &[&str]| {
        let trusted_proxies = networks.iter().map(|network| model::Network::parse(network).unwrap()).collect();
        let rig = Rig::with(Options { trusted_proxies, ..Options::default() }, Endpoints::default(), None);
        let path = Some(PathRewrite::Full("/new".into()));
        let redirect = Redirect { status: 302, scheme: None, host: None, port: None, path };
        rig.table.set_routes(vec![under("/", Action::Redirect(redirect), Policy::default())]).unwrap();
        rig
    };
    let said =
        "GET /old HTTP/1.1\r\nHost: in.local\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.local\r\n\r\n";
    for (networks, wanted) in [(&[][..], "http://in.local/new"), (&["127.0.0.0/8"], "https://shop.local/new")] {
        let rig = trusted(networks);
        let mut client = rig.client();
        client.send(said);
        assert_eq!(client.response().header("Location"), Some(wanted), "{networks:?}");
        let mut old = rig.client();
        old.send("GET /old HTTP/1.0\r\n\r\n");
        assert_eq!(old.response().header("Location"), Some("/new"), "a client that names no host");
    }
}

#[test]
fn a_route_may_be_for_one_scheme_alone() {
    let instance = Instance::answering("a");
    let trusted_proxies = vec![model::Network::parse("127.0.0.0/8").unwrap()];
    let rig = Rig::with(Options { trusted_proxies, ..Options::default() }, endpoints_of(&[&instance]), None);
    let https = Redirect { status: 301, scheme: Some("https".into()), host: None, port: None, path: None };
    let mut in_the_clear = under("/", Action::Redirect(https), Policy::default());
    in_the_clear.matches[0].scheme = Some(Scheme::Http);
    rig.table.set_routes(vec![in_the_clear, under("/", to_s(), Policy::default())]).unwrap();
    let mut client = rig.client();
    client.send("GET /x HTTP/1.1\r\nHost: shop.local\r\n\r\n");
    let answer = client.response();
    assert_eq!((answer.status, answer.header("Location")), (301, Some("https://shop.local/x")));
    client.send("GET /x HTTP/1.1\r\nHost: shop.local\r\nX-Forwarded-Proto: https\r\n\r\n");
    assert_eq!(client.response().text(), "a", "who followed the redirect is served");
}

#[test]
fn a_named_route_is_counted_by_itself_until_it_is_gone() {
    let instance = Instance::answering("a");
    let rig = Rig::of(&[&instance]);
    let named = Route { series: Some("checkout".into()), ..under("/checkout", to_s(), Policy::default()) };
    rig.table.set_routes(vec![named.clone(), under("/", to_s(), Policy::default())]).unwrap();
    assert_eq!(rig.get("/checkout").status, 200);
    assert_eq!(rig.get("/else").status, 200);
    rig.expect_metric("route_requests_total{route=\"checkout\",code=\"2xx\"} 1");
    rig.expect_metric("route_request_duration_seconds_count{route=\"checkout\"} 1");
    rig.expect_metric("requests_total{service=\"s\",code=\"2xx\"} 2");
    rig.table.set_routes(vec![named, under("/", to_s(), Policy::default())]).unwrap();
    assert_eq!(rig.get("/checkout").status, 200);
    rig.expect_metric("route_requests_total{route=\"checkout\",code=\"2xx\"} 2");
    rig.table.set_routes(vec![under("/", to_s(), Policy::default())]).unwrap();
    assert!(!rig.metrics().contains("checkout"), "labels are bounded");
    assert!(rig.metrics().contains("worker_busy_seconds_total{worker=\"0\"}"), "{}", rig.metrics());
}

#[test]
fn answers_tell_where_their_time_went_if_they_should() {
    const TAKES: Duration = Duration::from_millis(30);
    let instance = Instance::start(|mut conn| {
        while conn.head().is_some() {
            std::thread::sleep(TAKES);
            conn.send(ok("a"));
        }
    });
    for server_timing in [false, true] {
        let options = Options { server_timing, ..Options::default() };
        let rig = Rig::with(options, endpoints_of(&[&instance]), None);
        let mut client = rig.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let answer = client.response();
        let timing = answer.header("Server-Timing");
        assert_eq!(timing.is_some(), server_timing, "{}", answer.head);
        let Some(timing) = timing else { continue };
        let parts: Vec<f64> =
            timing.split(", ").map(|part| part.split_once(";dur=").unwrap().1.parse().unwrap()).collect();
        assert!(timing.starts_with("gateway;dur=") && timing.contains(", instance;dur="), "{timing}");
        assert!(parts[1] >= TAKES.as_secs_f64() * 1000.0 && parts[0] < parts[1], "{timing}");
    }
}

#[test]
fn a_route_has_a_bound_of_its_own() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            conn.body(&head);
            conn.send(ok("a"));
        }
    });
    let options = Options { max_body_bytes: Some(10), ..Options::default() };
    let rig = Rig::with(options, endpoints_of(&[&instance]), None);
    let bound = |bytes| Policy { max_body_bytes: Some(bytes), ..Policy::default() };
    rig.table
        .set_routes(vec![
            under("/large", to_s(), bound(20)),
            under("/small", to_s(), bound(5)),
            under("/", to_s(), Policy::default()),
        ])
        .unwrap();
    for (path, bytes, status) in [
        ("/large", 20, 200),
        ("/large", 21, 413),
        ("/small", 5, 200),
        ("/small", 6, 413),
        ("/", 10, 200),
        ("/", 11, 413),
    ] {
        let body = "x".repeat(bytes);
        let framings = [
            format!("Content-Length: {bytes}\r\n\r\n{body}"),
            format!("Transfer-Encoding: chunked\r\n\r\n{bytes:x}\r\n{body}\r\n0\r\n\r\n"),
        ];
        for framing in framings {
            let mut client = rig.client();
            client.send(format!("POST {path} HTTP/1.1\r\nHost: h\r\n{framing}"));
            assert_eq!(client.response().status, status, "{path} {bytes} {framing}");
        }
    }
}

#[test]
fn error_pages_are_for_people() {
    let page = |statuses, text: &str| ErrorPage {
        statuses,
        content_type: "text/html; charset=utf-8".into(),
        body: text.as_bytes().into(),
    };
    let error_pages = vec![page(503..=503, "<p>busy</p>"), page(500..=599, "<p>broken</p>")];
    let rig = Rig::with(Options { error_pages, ..Options::default() }, Endpoints::default(), None);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\nAccept: text/html\r\n\r\n");
    let answer = client.response();
    assert_eq!(
        (answer.text().as_str(), answer.header("Content-Type")),
        ("<p>busy</p>", Some("text/html; charset=utf-8"))
    );
    answer.assert_reason(503, "no-ready-instance");
    client.send("GET / HTTP/1.1\r\nHost: h\r\nAccept: application/json\r\n\r\n");
    assert!(client.response().text().starts_with('{'));
}

/// A text worth compressing.
fn text() -> String {
    (0..500).map(|line| format!("line {line}: the same words again and again\n")).collect()
}

fn decoded(coding: &str, bytes: &[u8]) -> String {
    let mut text = String::new();
    match coding {
        "gzip" => flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).unwrap(),
        "br" => brotli::Decompressor::new(bytes, 4_096).read_to_string(&mut text).unwrap(),
        _ => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_string(&mut text).unwrap(),
    };
    text
}

fn compressing(rig: &Rig) {
    let compress = vec![Coding::Zstd, Coding::Brotli, Coding::Gzip];
    rig.table.set_routes(vec![under("/", to_s(), Policy { compress, ..Policy::default() })]).unwrap();
}

#[test]
fn answers_are_compressed_for_clients_that_can_read_it() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let text = text();
            let framing = if head.contains("/chunks") {
                format!("Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{text}\r\n0\r\nX-Sum: 1\r\n\r\n", text.len())
            } else {
                format!("Content-Length: {}\r\n\r\n{text}", text.len())
            };
            conn.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\n{framing}"
            ));
        }
    });
    let rig = Rig::of(&[&instance]);
    compressing(&rig);
    let mut client = rig.client();
    for (accepted, coding) in [("gzip", "gzip"), ("gzip, br", "br"), ("gzip, deflate, br, zstd", "zstd"), ("*", "zstd")]
    {
        for path in ["/", "/chunks"] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\nAccept-Encoding: {accepted}\r\n\r\n"));
            let answer = client.response();
            assert_eq!(answer.header("Content-Encoding"), Some(coding), "{accepted}: {}", answer.head);
            assert_eq!(answer.header("Vary"), Some("Accept-Encoding"));
            assert_eq!(answer.header("ETag"), Some("W/\"a\""));
            assert_eq!(answer.header("Content-Length"), None);
            assert_eq!(answer.header("Accept-Ranges"), None, "a part of it cannot be asked for");
            assert!(answer.body.len() * 5 < text().len(), "{coding}: {} bytes", answer.body.len());
            assert_eq!(decoded(coding, &answer.body), text(), "{coding} {path}");
        }
    }
    assert_eq!(instance.accepted(), 1, "the connection to the instance is kept");
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    let plain = client.response();
    assert_eq!((plain.header("Content-Encoding"), plain.header("ETag")), (None, Some("\"a\"")));
    assert_eq!(plain.header("Vary"), Some("Accept-Encoding"), "a cache must not show this to others");
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    let head = client.head().unwrap().1;
    assert!(head.contains("Vary: Accept-Encoding") && !head.contains("Content-Encoding"), "{head}");
    let mut old = rig.client();
    old.send("GET / HTTP/1.0\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
    assert_eq!(old.response().header("Vary"), Some("Accept-Encoding"));
    assert_eq!(plain.text(), text());
}

#[test]
fn what_must_not_be_compressed_is_not() {
    let body = text();
    for (status, fields) in [
        ("200 OK", "Content-Type: image/png\r\n"),
        ("200 OK", "Content-Type: text/plain\r\nContent-Encoding: gzip\r\n"),
        ("200 OK", "Content-Type: text/plain\r\nCache-Control: public, no-transform\r\n"),
        ("206 Partial Content", "Content-Type: text/plain\r\nContent-Range: bytes 0-9/100\r\n"),
        ("200 OK", "Content-Type: text/event-stream\r\n"),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len());
        let instance = Instance::start(move |mut conn| {
            while conn.head().is_some() {
                conn.send(&answer);
            }
        });
        let rig = Rig::of(&[&instance]);
        compressing(&rig);
        let mut client = rig.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
        assert_eq!(client.response().text(), body, "{status} {fields}");
        // Whoever knows no chunks gets what the instance sent.
        let mut old = rig.client();
        old.send("GET / HTTP/1.0\r\nHost: h\r\nAccept-Encoding: gzip\r\n\r\n");
        assert_eq!(old.response().text(), body);
    }
}

#[test]
fn a_body_that_trickles_is_not_held_back() {
    let instance = Instance::start(|mut conn| {
        if conn.head().is_some() {
            conn.send(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            );
            // The rest comes only after the client has read the first part.
            let _ = conn.some();
        }
    });
    let rig = Rig::of(&[&instance]);
    compressing(&rig);
    for coding in ["gzip", "br", "zstd"] {
        let mut client = rig.client();
        client.send(format!("GET / HTTP/1.1\r\nHost: h\r\nAccept-Encoding: {coding}\r\n\r\n"));
        client.head().unwrap();
        let mut seen = Vec::new();
        let mut shown = String::new();
        while shown != "hello" {
            let line = client.bytes(1);
            seen.extend_from_slice(&line);
            shown = partly(coding, &chunks(&seen));
        }
    }
}

/// The data of the chunks that are whole.
fn chunks(mut bytes: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let Ok(size) = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16) else { break };
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else { break };
        data.extend_from_slice(chunk);
        bytes = bytes.get(end + 4 + size..).unwrap_or_default();
    }
    data
}

/// As much as can be decoded already.
fn partly(coding: &str, bytes: &[u8]) -> String {
    let mut out = [0; 100];
    let mut count = 0;
    let mut reader: Box<dyn Read + '_> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(bytes)),
        "br" => Box::new(brotli::Decompressor::new(bytes, 4_096)),
        _ => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
    };
    while let Ok(more @ 1..) = reader.read(&mut out[count..]) {
        count += more;
    }
    String::from_utf8_lossy(&out[..count]).into_owned()
}
