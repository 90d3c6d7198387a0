//! Requests that no careful server guesses about: each gets its refusal and a closed connection, and not one byte of
//! any reaches an instance. Real sockets, a real gateway, a recorder behind it.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Instance, Rig};
use gateway::{Limits, Options};

/// `{}` stands for the head's usual rest.
const CASES: &[(&str, &str, u16)] = &[
    // Lines.
    ("bare LF everywhere", "GET / HTTP/1.1\nHost: h\n\n", 400),
    ("bare LF after the request line", "GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
    ("bare LF after a field", "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400),
    ("bare LF as the empty line", "GET / HTTP/1.1\r\nHost: h\r\n\n", 400),
    ("bare CR in the request line", "GET /\r HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("bare CR in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n", 400),
    ("CR CR LF", "GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400),
    ("bare CR hiding a field", "GET / HTTP/1.1\r\nHost: h\r\nX: a\rTransfer-Encoding: chunked\r\n\r\n", 400),
    ("NUL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n", 400),
    ("NUL in a name", "GET / HTTP/1.1\r\nHost: h\r\nX\0: a\r\n\r\n", 400),
    ("control in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\x0bb\r\n\r\n", 400),
    ("DEL in a value", "GET / HTTP/1.1\r\nHost: h\r\nX: a\x7fb\r\n\r\n", 400),
    ("two empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("folded line", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", 400),
    ("folded with a tab", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n\tb\r\n\r\n", 400),
    ("space before the first field", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400),
    ("space before the colon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
    ("tab before the colon", "GET / HTTP/1.1\r\nHost: h\r\nContent-Length\t: 3\r\n\r\nabc", 400),
    ("no colon", "GET / HTTP/1.1\r\nHost: h\r\nnonsense\r\n\r\n", 400),
    ("empty name", "GET / HTTP/1.1\r\nHost: h\r\n: v\r\n\r\n", 400),
    ("name with a bracket", "GET / HTTP/1.1\r\nHost: h\r\nX(y): v\r\n\r\n", 400),
    ("name beyond ASCII", "GET / HTTP/1.1\r\nHost: h\r\nÄ: v\r\n\r\n", 400),
    // The request line.
    ("no version", "GET /\r\nHost: h\r\n\r\n", 400),
    ("two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("two spaces before the version", "GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("tab for a space", "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("space at the end", "GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
    ("space in front", " GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("method is no token", "GE(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("no method", " / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("HTTP/0.9", "GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505),
    ("HTTP/1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
    ("HTTP/2.0", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    ("nearly the preface of HTTP/2", "PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", 505),
    ("lower-case version", "GET / http/1.1\r\nHost: h\r\n\r\n", 400),
    ("long version", "GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400),
    ("TLS in the clear", "\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n", 400),
    // Targets.
    ("no slash", "GET index HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("star for GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("fragment", "GET /a#b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("backslash", "GET /a\\b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("target beyond ASCII", "GET /ä HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("other scheme", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("absolute without host", "GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("absolute with a user", "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    ("CONNECT", "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", 501),
    // Host.
    ("no Host", "GET / HTTP/1.1\r\nX: y\r\n\r\n", 400),
    ("two Hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
    ("a list of hosts", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    ("a path in Host", "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400),
    ("a user in Host", "GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400),
    ("a port that is none", "GET / HTTP/1.1\r\nHost: h:80x\r\n\r\n", 400),
    ("a port too high", "GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n", 400),
    ("half a bracket", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400),
    // Framing.
    (
        "length and chunks",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "chunks and length",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("two lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    ("the same length twice", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    ("a list of lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3, 3\r\n\r\nabc", 400),
    ("length with a sign", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +3\r\n\r\nabc", 400),
    ("negative length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -3\r\n\r\nabc", 400),
    ("length in hex", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x3\r\n\r\nabc", 400),
    ("empty length", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nabc", 400),
    ("length too great", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
    ("length with a space within", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3 3\r\n\r\nabc", 400),
    ("chunks in HTTP/1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ("a coding not spoken", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    ("chunked not last", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    ("chunked twice", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    (
        "two codings",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("identity", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: identity\r\n\r\n", 400),
    ("almost chunked", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    (
        "chunked after a vertical tab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("an expectation not known", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: tea\r\n\r\nabc", 417),
];

#[test]
fn none_reaches_an_instance() {
    let recorder = Instance::answering("recorder");
    let rig = Rig::of(&[&recorder]);
    assert!(CASES.len() >= 60, "{}", CASES.len());
    for (name, request, status) in CASES {
        let mut client = rig.client();
        client.send(request);
        let response = client.response();
        assert_eq!(response.status, *status, "{name}: {response:?}");
        assert!(response.header("Seawall-Reason").unwrap().starts_with("bad-request:"), "{name}: {response:?}");
        assert_eq!(response.header("Connection"), Some("close"), "{name}");
        client.assert_closed();
    }
    assert_eq!(recorder.seen().escape_ascii().to_string(), "", "something reached the instance");
    assert_eq!(recorder.accepted(), 0, "a connection was made for a malformed request");
}

#[test]
fn bounds_have_their_own_status() {
    let recorder = Instance::answering("recorder");
    let limits = Limits { head_bytes: 2_000, headers: 10, target_bytes: 500, ..Limits::default() };
    let options = Options { workers: 1, limits, max_body_bytes: Some(1_000), ..Options::default() };
    let rig = Rig::with(options, common::endpoints_of(&[&recorder]), None);
    let long = |count: usize| "x".repeat(count);
    for (request, status) in [
        (format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", long(500)), 414),
        (format!("GET /{}", long(3_000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", long(2_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "X: y\r\n".repeat(10)), 431),
        (format!("{} / HTTP/1.1\r\nHost: h\r\n\r\n", "M".repeat(65)), 400),
        ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1001\r\n\r\n".to_owned(), 413),
    ] {
        let mut client = rig.client();
        client.send(&request);
        assert_eq!(client.response().status, status, "{request:.60}");
        client.assert_closed();
    }
    assert_eq!(recorder.seen(), b"");
}

/// The head was good, so an instance has begun to see the request: it must never see its end.
#[test]
fn a_body_that_breaks_its_framing_is_cut_and_refused() {
    for (name, body, status) in [
        ("size that is no hex", "g\r\nabc\r\n0\r\n\r\n", 400),
        ("size with a sign", "+3\r\nabc\r\n0\r\n\r\n", 400),
        ("size with 0x", "0x3\r\nabc\r\n0\r\n\r\n", 400),
        ("size after a space", " 3\r\nabc\r\n0\r\n\r\n", 400),
        ("size before a space", "3 \r\nabc\r\n0\r\n\r\n", 400),
        ("size too great", "fffffffffffffffff\r\nabc", 400),
        ("no size", "\r\nabc\r\n0\r\n\r\n", 400),
        ("LF after the size", "3\nabc\r\n0\r\n\r\n", 400),
        ("more data than the size", "3\r\nabcd\r\n0\r\n\r\n", 400),
        ("LF after the data", "3\r\nabc\n0\r\n\r\n", 400),
        ("NUL in an extension", "3;\0\r\nabc\r\n0\r\n\r\n", 400),
        ("LF in an extension", "3;a\nb\r\nabc\r\n0\r\n\r\n", 400),
        ("folded trailer", "0\r\n X: y\r\n\r\n", 400),
        ("trailer without colon", "0\r\nX\r\n\r\n", 400),
        ("LF in the trailers", "0\r\nX: y\n\r\n", 400),
    ] {
        let recorder = Instance::answering("recorder");
        let rig = Rig::of(&[&recorder]);
        let mut client = rig.client();
        client.send(format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
        let response = client.response();
        assert_eq!(response.status, status, "{name}: {response:?}");
        client.assert_closed();
        let seen = recorder.seen();
        assert!(common::find(&seen, b"0\r\n\r\n").is_none(), "{name}: {}", seen.escape_ascii());
    }
}

#[test]
fn a_request_behind_a_malformed_one_is_not_read() {
    let recorder = Instance::answering("recorder");
    let rig = Rig::of(&[&recorder]);
    let mut client = rig.client();
    client.send("GET /a HTTP/1.1\r\nHost: h\r\nX : y\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n");
    client.response().assert_reason(400, "bad-request:space-before-colon");
    client.assert_closed();
    assert_eq!(recorder.seen(), b"");
    rig.expect_metric("bad_requests_total{reason=\"space-before-colon\"} 1");
}
