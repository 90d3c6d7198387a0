//! What instances answer, good and bad: a client gets a clean response, a clean 502, or a cut it can recognise.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Instance, Rig, eventually};

/// An instance that answers each first request of a connection with these bytes and then closes.
fn raw(answer: &str) -> Instance {
    let answer = answer.to_owned();
    Instance::start(move |mut conn| {
        if conn.head().is_some() {
            conn.send(&answer);
        }
    })
}

#[test]
fn garbage_is_answered_502_and_told_to_health() {
    for (name, answer) in [
        ("no HTTP", "hello\r\n\r\n"),
        ("bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n"),
        ("an empty line first", "\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        ("HTTP/2", "HTTP/2.0 200 OK\r\n\r\n"),
        ("two digits", "HTTP/1.1 20 OK\r\n\r\n"),
        ("two spaces", "HTTP/1.1  200 OK\r\n\r\n"),
        ("folded", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n"),
        ("NUL", "HTTP/1.1 200 OK\r\nX: a\0\r\n\r\n"),
        ("space before colon", "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
        ("length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
        ("a list of lengths", "HTTP/1.1 200 OK\r\nContent-Length: 3, 3\r\n\r\nabc"),
        ("another coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
        ("chunks in HTTP/1.0", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ("an upgrade nobody asked for", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
        ("a head without end", "HTTP/1.1 200 OK\r\nX: y\r\n"),
        ("a head too large", &format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(20_000))),
        ("too many interim", &"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(20)),
    ] {
        let instance = raw(answer);
        let mut rig = Rig::of(&[&instance]);
        let mut client = rig.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let response = loop {
            let response = client.response();
            if response.status >= 200 {
                break response;
            }
        };
        assert_eq!(response.status, 502, "{name}: {response:?}");
        eventually(name, || rig.signals.try_recv().is_ok());
        assert_eq!(instance.accepted(), 1, "{name}: what an instance has seen is not sent again");
    }
}

#[test]
fn framings_reach_clients_of_both_versions() {
    let close = "Connection: close";
    for (answer, body, head_11, head_10) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", "abc", "Content-Length: 3", "Content-Length: 3"),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x\r\nbc\r\n0\r\nT: 1\r\n\r\n",
            "abc",
            "Transfer-Encoding: chunked",
            close,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nabc", "abc", "Transfer-Encoding: chunked", close),
        ("HTTP/1.0 200 OK\r\n\r\nabc", "abc", "Transfer-Encoding: chunked", close),
        ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "", "Content-Length: 0", "Content-Length: 0"),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: y\r\n\r\n", "", "X: y", "X: y"),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nX: y\r\n\r\n", "", "X: y", "X: y"),
    ] {
        let instance = raw(answer);
        let rig = Rig::of(&[&instance]);
        for (version, wanted) in [("1.1", head_11), ("1.0", head_10)] {
            let mut client = rig.client();
            client.send(format!("GET / HTTP/{version}\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"));
            let (status, head) = client.head().unwrap();
            assert!(head.contains(wanted), "{answer:?} to {version}: {head}");
            assert!(status != 204 || !head.contains("Content-Length"), "{head}");
            if body.is_empty() {
                // The connection still works: nothing was left behind the head.
                client.send(format!("GET / HTTP/{version}\r\nHost: h\r\nConnection: close\r\n\r\n"));
                assert_eq!(client.head().unwrap().0, status, "{answer:?} to {version}");
                assert_eq!(client.until_end(), b"");
            } else if wanted == close {
                assert_eq!(client.until_end(), body.as_bytes(), "{answer:?} to {version}");
            } else {
                client.stream.shutdown(std::net::Shutdown::Write).unwrap();
                let rest = String::from_utf8(client.until_end()).unwrap();
                let chunks = ["1\r\na\r\n2\r\nbc\r\n0\r\nT: 1\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n", "abc"];
                assert!(chunks.contains(&rest.as_str()), "{answer:?} to {version}: {rest:?}");
            }
        }
    }
}

#[test]
fn head_has_the_length_and_no_body() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            conn.send(if head.starts_with("HEAD") {
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".into()
            } else {
                common::ok("body")
            });
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    client.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n");
    let (status, head) = client.head().unwrap();
    assert!(status == 200 && head.contains("Content-Length: 5\r\n"), "{head}");
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.response().text(), "body");
    assert_eq!(instance.accepted(), 1, "the connection to the instance was kept");
}

#[test]
fn a_body_cut_by_the_instance_is_cut_for_the_client() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
    ] {
        let instance = raw(answer);
        let rig = Rig::of(&[&instance]);
        let mut client = rig.client();
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        let (status, head) = client.head().unwrap();
        if status == 502 {
            // What broke came together with the head: nothing had been passed on yet.
            assert!(head.contains("Seawall-Reason: "), "{head}");
            continue;
        }
        let rest = client.until_end();
        assert_eq!(status, 200);
        assert!(
            head.contains("Content-Length: 10") || !rest.ends_with(b"0\r\n\r\n"),
            "{answer:?} looks whole: {rest:?}"
        );
        rig.expect_metric("requests_total{service=\"s\",code=\"5xx\"} 1");
    }
}

#[test]
fn bytes_behind_a_response_never_answer_another_request() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            let answer = common::ok(if head.contains("/one") { "one" } else { "two" });
            let extra = if head.contains("/one") { "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil" } else { "" };
            conn.send(answer + extra);
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    for (path, want) in [("/one", "one"), ("/two", "two")] {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n"));
        assert_eq!(client.response().text(), want);
    }
    assert_eq!(instance.accepted(), 2, "a connection with something left over is not used again");
}

#[test]
fn hop_by_hop_fields_stay_behind() {
    let instance = raw(
        "HTTP/1.1 200 Fine\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Authenticate: x\r\n\
         Upgrade: h2c\r\nX-End: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    );
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(
        client.head().unwrap().1,
        "HTTP/1.1 200 Fine\r\nX-End: 2\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n"
    );
}

#[test]
fn expect_continue_is_the_instances_to_answer() {
    let instance = Instance::start(|mut conn| {
        while let Some(head) = conn.head() {
            if head.contains("/no") {
                conn.send("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n");
                continue;
            }
            assert!(head.contains("Expect: 100-continue"), "{head}");
            conn.send("HTTP/1.1 100 Continue\r\n\r\n");
            let body = String::from_utf8(conn.body(&head)).unwrap();
            conn.send(common::ok(&body));
        }
    });
    let rig = Rig::of(&[&instance]);
    let ask =
        |path: &str| format!("PUT {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    let mut client = rig.client();
    for _ in 0..2 {
        client.send(ask("/yes"));
        assert_eq!(client.head().unwrap().1, "HTTP/1.1 100 Continue\r\n\r\n");
        client.send("body");
        assert_eq!(client.response().text(), "body");
    }
    client.send(ask("/no"));
    let response = client.response();
    assert_eq!((response.status, response.header("Connection")), (413, Some("close")), "its body may still come");
    client.assert_closed();
}

#[test]
fn an_early_answer_arrives_although_the_body_does_not() {
    let instance = Instance::start(|mut conn| {
        if conn.head().is_some() {
            conn.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\nbegin");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    assert_eq!(response.header("Connection"), Some("close"));
    client.assert_closed();
}

#[test]
fn a_response_that_comes_byte_by_byte_is_the_same() {
    let answer = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  3;x\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n";
    let instance = Instance::start(move |mut conn| {
        conn.stream.set_nodelay(true).unwrap();
        while conn.head().is_some() {
            assert!(answer.bytes().all(|byte| conn.send([byte])));
        }
    });
    let rig = Rig::of(&[&instance]);
    let mut client = rig.client();
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(client.head().unwrap().1, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n");
        assert_eq!(client.response().text(), "abcde");
    }
    assert_eq!(instance.accepted(), 1);
}
