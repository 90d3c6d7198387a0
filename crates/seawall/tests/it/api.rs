//! The HTTP API: keys and values, who may do what, metrics, the served description, and notices to webhooks.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;

use serde_json::Value;

use crate::support::http::{Sent, request};
use crate::support::{PATIENCE, Seawall, processes, wait};

const SHOP: &str = r"
services:
  orders: { command: [DEMO], replicas: 2 }
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    restartBackoff: { initial: 50ms, max: 100ms }
routes:
  - { match: { pathPrefix: /ledger }, to: { service: ledger } }
  - { to: { service: orders } }
";

#[test]
fn keys_and_values() {
    let seawall = Seawall::up(SHOP);
    let kv = |method: &str, path: &str, body: &str| seawall.api(method, &format!("/api/v1/kv{path}"), body.as_bytes());
    let written = kv("PUT", "/shop/a", "1");
    assert_eq!((written.status, &written.json()["durability"]), (200, &Value::from("sync")));
    let revision = written.json()["revision"].as_u64().unwrap();
    let read = kv("GET", "/shop/a", "");
    assert_eq!((read.status, read.text().as_str()), (200, "1"));
    assert_eq!(read.header("seawall-revision"), Some(revision.to_string().as_str()));

    let conflict = kv("PUT", &format!("/shop/a?cas={}", revision + 100), "2");
    assert_eq!((conflict.status, conflict.json()["revision"].as_u64()), (409, Some(revision)));
    assert!(conflict.json()["cure"].as_str().unwrap().contains("nothing was written"));
    assert_eq!(kv("PUT", "/shop/a?cas=0", "2").status, 409, "it exists");
    assert_eq!(kv("PUT", &format!("/shop/a?cas={revision}"), "2").status, 200);
    assert_eq!(kv("GET", "/shop/a", "").text(), "2");

    for key in ["b", "c"] {
        assert_eq!(kv("PUT", &format!("/shop/{key}"), key).status, 200);
    }
    assert_eq!(kv("PUT", "/shopping", "no").status, 200);
    let range = kv("GET", "/shop/?prefix=true", "").json();
    let keys: Vec<&str> = range["kvs"].as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["shop/a", "shop/b", "shop/c"]);
    let part = kv("GET", "/shop/?prefix=true&limit=2", "").json();
    assert_eq!((part["kvs"].as_array().unwrap().len(), &part["more"]), (2, &Value::from(true)));

    let mut watch =
        Sent::open(seawall.api, &format!("/api/v1/kv/shop/?watch=true&prefix=true&from={}", revision + 1)).unwrap();
    assert_eq!(kv("DELETE", "/shop/b", "").json()["deleted"], 1);
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let (kind, data) = watch.next().unwrap();
        if kind != "progress" {
            seen.push(format!("{kind} {}", data["key"].as_str().unwrap_or_default()));
        }
    }
    assert_eq!(seen, ["put shop/a", "put shop/b", "put shop/c", "delete shop/b"]);
    assert_eq!(kv("GET", "/shop/b", "").status, 404);
    assert_eq!(kv("PUT", "/big", &"x".repeat(512 * 1024 + 1)).status, 413);
    assert_eq!(kv("GET", "?prefix=true", "").json()["kvs"].as_array().unwrap().len(), 3, "no control key is shown");
}

/// All answers of a connection on which this is said, without their dates.
fn said(seawall: &Seawall, text: &str) -> String {
    let mut stream = TcpStream::connect(seawall.api).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // In pieces, so that requests arrive in parts and together.
    for piece in text.as_bytes().chunks(50) {
        stream.write_all(piece).unwrap();
    }
    let end = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(end.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let dated: Vec<&str> = answers.lines().filter(|line| line.starts_with("date: ")).collect();
    assert!(dated.iter().all(|date| date.len() == 35 && date.ends_with(" GMT")), "{dated:?}");
    let kept: Vec<&str> = answers.lines().filter(|line| !line.starts_with("date: ")).collect();
    kept.join("\n")
}

#[test]
fn keys_are_answered_the_same_whichever_way_the_request_takes() {
    let seawall = Seawall::up(SHOP);
    let all = |more: &str| {
        let head = |method: &str, path: &str, host: &str, rest: &str| {
            format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n{more}{rest}\r\n")
        };
        let large = "x".repeat(300_000);
        [
            head("PUT", "/api/v1/kv/ways/a", "localhost", "content-length: 3\r\n"),
            "one".into(),
            head("GET", "/api/v1/kv/ways/a", "localhost", "accept: */*\r\n"),
            head("GET", "/api/v1/kv/ways/none", "localhost", ""),
            head("PUT", "/api/v1/kv/ways/a", "localhost", "content-length: 300000\r\n"),
            large,
            head("GET", "/api/v1/kv/ways/a", "localhost", ""),
            head("PUT", "/api/v1/kv/ways/a", "localhost", "seawall-epoch: 1\r\ncontent-length: 0\r\n"),
            head("GET", "/api/v1/kv/ways/a", "evil.example", ""),
            head("GET", "/api/v1/kv/ways/a", "localhost", "authorization: Bearer wrong\r\n"),
            head("DELETE", "/api/v1/kv/ways/a", "localhost", ""),
        ]
        .concat()
    };
    // Of two digits from here on: an answer is as long as its revision.
    let revision = || seawall.api("PUT", "/api/v1/kv/ways/before", b"").json()["revision"].as_u64().unwrap();
    while revision() < 10 {}
    let plain = said(&seawall, &all(""));
    // Announced or not, none follow; but a request that announces some is not plain.
    let other = said(&seawall, &all("trailer: none\r\n"));
    for status in ["200 OK", "404 Not Found", "400 Bad Request", "403 Forbidden", "401 Unauthorized"] {
        assert!(plain.contains(&format!("HTTP/1.1 {status}\n")), "{status} in {}", &plain[..2000]);
    }
    let revisions = |text: &str| {
        let number = |line: &str| line.chars().filter(char::is_ascii_digit).count();
        let line = |line: &str| if line.contains("evision") { format!("{}", number(line)) } else { line.to_owned() };
        text.lines().map(line).collect::<Vec<_>>()
    };
    assert!(revisions(&plain) == revisions(&other), "{}\nis not\n{}", &plain[..2000], &other[..2000]);
}

#[test]
fn foreign_sites_and_foreign_users_are_refused() {
    let seawall = Seawall::up(SHOP);
    let with = |headers: &[(&str, &str)], path: &str| request(seawall.api, "GET", path, headers, b"").unwrap();
    for headers in [[("host", "evil.example")], [("origin", "http://evil.example")]] {
        let answer = with(&headers, "/api/v1/status");
        assert_eq!(answer.status, 403, "{headers:?}: {}", answer.text());
        assert!(answer.json()["cure"].as_str().is_some_and(|cure| cure.contains("allowedHosts")));
    }
    let token = std::fs::read_to_string(seawall.data_dir().join("api-token")).unwrap();
    assert_eq!(with(&[("authorization", &format!("Bearer {}", token.trim()))], "/api/v1/kv").status, 200);
    assert_eq!(with(&[("authorization", "Bearer wrong")], "/api/v1/kv").status, 401);
    let mode = Command::new("stat").args(["-c", "%a"]).arg(seawall.data_dir().join("api-token")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&mode.stdout).trim(), "600", "only the owner reads the token");

    if !processes::is_root() {
        println!("skipped: being another user needs root");
        return;
    }
    let as_nobody = |path: &str, more: &[&str]| {
        let url = format!("http://{}{path}", seawall.api);
        let output = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                "curl",
                "-s",
                "-o",
                "/dev/null",
                "-w",
                "%{http_code}",
            ])
            .args(more)
            .arg(url)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(as_nobody("/api/v1/kv", &[]), "401");
    assert_eq!(as_nobody("/api/v1/services/ledger/promote", &["-X", "POST"]), "401");
    assert_eq!(as_nobody("/api/v1/status", &[]), "200", "looking is free on this machine");
    assert_eq!(as_nobody("/api/v1/kv", &["-H", &format!("Authorization: Bearer {}", token.trim())]), "200");
}

#[test]
fn the_served_description_names_every_route() {
    let seawall = Seawall::up(SHOP);
    let document = seawall.api("GET", "/api/v1/openapi.json", b"").json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let paths = document["paths"].as_object().unwrap();
    let expected: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("/metrics", ["get"].as_slice()),
        ("/api/v1/openapi.json", &["get"]),
        ("/api/v1/status", &["get"]),
        ("/api/v1/health", &["get"]),
        ("/api/v1/events", &["get"]),
        ("/api/v1/sd/prometheus", &["get"]),
        ("/api/v1/kv", &["get"]),
        ("/api/v1/kv/{key}", &["get", "put", "delete"]),
        ("/api/v1/streams", &["get"]),
        ("/api/v1/streams/{stream}", &["get", "post", "delete"]),
        ("/api/v1/streams/{stream}/describe", &["get"]),
        ("/api/v1/streams/{stream}/seal", &["post"]),
        ("/api/v1/streams/{stream}/cursors/{cursor}", &["get", "put"]),
        ("/api/v1/logs/{service}", &["get"]),
        ("/api/v1/config", &["get"]),
        ("/api/v1/apply", &["post"]),
        ("/api/v1/services/{service}/promote", &["post"]),
        ("/api/v1/services/{service}/restart", &["post"]),
        ("/api/v1/services/{service}/breaker", &["post"]),
    ]);
    for (path, methods) in expected {
        for method in methods {
            assert!(
                paths.get(path).is_some_and(|known| known.get(*method).is_some()),
                "{method} {path} is not described"
            );
        }
    }
    let unknown = seawall.api("GET", "/api/v1/nothing", b"");
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["cure"].as_str().is_some(), "{}", unknown.text());
    assert_eq!(seawall.api("DELETE", "/api/v1/status", b"").status, 405);
    assert_eq!(seawall.api("GET", "/api/v1/health", b"").status, 200);
}

/// The lines of an OpenMetrics text as `(name, labels, value)`; panics at a line that is none.
fn parse_metrics(text: &str) -> Vec<(String, String, f64)> {
    assert!(text.ends_with("# EOF\n"), "an OpenMetrics text has an end");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(labels.ends_with('}'), "{line}");
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            (name.to_owned(), labels.trim_end_matches('}').to_owned(), value)
        })
        .collect()
}

#[test]
fn metrics_tell_of_restarts_probes_requests_holds_and_the_log() {
    let seawall = Seawall::up(&SHOP.replace(
        "command: [DEMO], replicas: 2 }",
        "command: [DEMO], replicas: 2, restartBackoff: { initial: 200ms, max: 200ms } }",
    ));
    for _ in 0..10 {
        assert_eq!(seawall.get("/").status, 200);
    }
    for pid in seawall.pids("orders") {
        processes::signal(pid, "KILL");
    }
    seawall.event("no-ready-instance", "orders");
    assert_eq!(seawall.get("/").status, 200, "it was held and then answered");
    let answer = seawall.api("GET", "/metrics", b"");
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let metrics = parse_metrics(&answer.text());
    let sum = |name: &str, label: &str| {
        let of = metrics.iter().filter(|(known, labels, _)| known == name && labels.contains(label));
        of.map(|(_, _, value)| *value).reduce(|a, b| a + b)
    };
    let orders = "service=\"orders\"";
    assert_eq!(sum("seawall_instance_restarts_total", orders), Some(2.0));
    assert!(sum("seawall_probe_results_total", orders) > Some(0.0));
    assert_eq!(sum("seawall_instance_primary", "service=\"ledger\""), Some(1.0));
    assert!(sum("seawall_wal_fsyncs", "") > Some(0.0) && sum("seawall_wal_size_bytes", "") > Some(0.0));
    assert_eq!(sum("seawall_store_serving", ""), Some(1.0));
    let gateway: Vec<&str> =
        metrics.iter().map(|(name, _, _)| name.as_str()).filter(|name| name.starts_with("seawall_gateway")).collect();
    let about = |part: &str| {
        metrics.iter().any(|(name, labels, value)| name.contains(part) && labels.contains(orders) && *value > 0.0)
    };
    assert!(about("requests_total"), "requests: {gateway:?}");
    assert!(about("duration_seconds_bucket"), "durations: {gateway:?}");
    assert!(about("gateway_holds_total"), "holds: {gateway:?}");
}

/// A receiver of notices that answers 500 to the first `failures`.
fn receiver(failures: usize) -> (String, mpsc::Receiver<(u16, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/notices", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        for (index, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut length = 0;
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 0) && !line.trim_end().is_empty() {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                line.clear();
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let status = if index < failures { 500 } else { 204 };
            let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            // Ignored: the test has ended.
            let _ = stream.write_all(answer.as_bytes());
            if sender.send((status, serde_json::from_slice(&body).unwrap())).is_err() {
                return;
            }
        }
    });
    (url, received)
}

#[test]
fn a_lost_primary_is_told_until_somebody_listens() {
    let (url, received) = receiver(2);
    let seawall = Seawall::up(&format!("{SHOP}notify:\n  - {{ webhook: \"{url}\", on: [primary-lost] }}\n"));
    let primary = seawall.service("ledger")["primary"].as_str().unwrap().to_owned();
    processes::signal(seawall.instance(&primary)["pid"].as_u64().unwrap(), "KILL");
    let lost = seawall.event("primary-lost", &primary);
    for expected in [500, 500, 204] {
        let (status, notice) = received.recv_timeout(PATIENCE).unwrap();
        assert_eq!(status, expected);
        assert_eq!(notice["notice"], "primary-lost");
        assert_eq!(
            (&notice["cause"], &notice["instance"], &notice["epoch"]),
            (&lost["cause"], &lost["instance"], &lost["epoch"])
        );
    }
    wait("the cursor", || {
        let files = std::fs::read_dir(seawall.data_dir()).unwrap();
        let cursor =
            files.filter_map(Result::ok).find(|file| file.file_name().to_string_lossy().ends_with(".cursor"))?;
        std::fs::read_to_string(cursor.path()).ok().filter(|text| text.trim().parse().ok() == lost["seq"].as_u64())
    });
}

#[test]
fn query_parameters_that_nobody_knows_are_refused_by_name() {
    let seawall = Seawall::up(SHOP);
    let refused = |method: &str, path: &str, name: &str, cure: &str| {
        let answer = seawall.api(method, path, b"");
        assert_eq!(answer.status, 400, "{method} {path}: {}", answer.text());
        let told = answer.json();
        assert_eq!(told["error"], format!("unknown query parameter `{name}`"), "{method} {path}");
        assert!(told["cure"].as_str().unwrap().contains(cure), "{method} {path}: {told}");
    };
    refused(
        "GET",
        "/api/v1/events?limt=3",
        "limt",
        "did you mean `limit`? This request takes: after, limit, service, follow",
    );
    refused("GET", "/api/v1/logs/orders?lines=3", "lines", "this request takes: instance, since, tail, follow");
    refused("GET", "/api/v1/kv?recurse", "recurse", "prefix, limit, stale, consistency, watch, from");
    refused("GET", "/api/v1/kv/a?cas=1", "cas", "this request takes: prefix");
    refused("PUT", "/api/v1/kv/a?prefix=true", "prefix", "this request takes: cas");
    refused("DELETE", "/api/v1/kv/a?prefx=true", "prefx", "did you mean `prefix`?");
    for path in ["status", "health", "config", "openapi.json"] {
        refused("GET", &format!("/api/v1/{path}?pretty=1"), "pretty", "this request takes none");
    }
    for path in ["apply", "services/ledger/promote", "services/orders/restart"] {
        refused("POST", &format!("/api/v1/{path}?wait=true"), "wait", "this request takes none");
    }
    assert_eq!(seawall.api("GET", "/api/v1/kv/a", b"").status, 404, "nothing was written");
    assert_eq!(seawall.events_of("roll-started").len() + seawall.events_of("demoted").len(), 0);
    let unreadable = seawall.api("GET", "/api/v1/events?limit=many", b"");
    assert!(unreadable.status == 400 && unreadable.json()["error"].as_str().is_some(), "{}", unreadable.text());
}

#[test]
fn a_key_may_be_as_long_as_the_documentation_says() {
    let seawall = Seawall::up(SHOP);
    let path = |length: usize| format!("/api/v1/kv/{}", "k".repeat(length));
    assert_eq!(seawall.api("PUT", &path(1021), b"1").status, 200);
    assert_eq!(seawall.api("GET", &path(1021), b"").text(), "1");
    for method in ["PUT", "GET", "DELETE"] {
        let answer = seawall.api(method, &path(1022), b"1");
        assert_eq!(answer.status, 400, "{method}: {}", answer.text());
        assert_eq!(answer.json()["error"], "a key of 1022 bytes; the limit is 1021");
    }
}
