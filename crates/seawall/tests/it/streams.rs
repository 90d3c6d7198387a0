//! Op-logs of services on one machine: over HTTP and by the command line, through kills of the node process.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{Answer, Sent, request};
use crate::support::{Seawall, processes, wait};

const NOTHING: &str = "services: {}\n";

fn entries(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn entries_are_appended_once_read_and_followed() {
    let seawall = Seawall::up(NOTHING);
    let api = |method: &str, path: &str, body: &[u8]| seawall.api(method, &format!("/api/v1/streams{path}"), body);
    assert_eq!(api("GET", "", b"").json(), json!({ "streams": [] }));
    let first = api("POST", "/orders?producer=p&seq=1", b"one");
    assert_eq!(first.json(), json!({ "offset": 0, "durability": "sync", "repeated": false }), "{}", first.text());
    let again = api("POST", "/orders?producer=p&seq=1", b"one").json();
    assert_eq!(again, json!({ "offset": 0, "durability": "sync", "repeated": true }));
    assert_eq!(api("POST", "/orders", b"\xff\xfe").json()["offset"], 1);

    let read = api("GET", "/orders", b"");
    assert_eq!((read.header("seawall-next"), read.header("seawall-end")), (Some("2"), Some("2")));
    assert_eq!(read.header("content-type"), Some("application/x-ndjson"));
    let found = entries(&read);
    assert_eq!((&found[0]["data"], &found[1]["data_base64"]), (&json!("one"), &json!("//4=")));
    assert!(found[1].get("data").is_none() && found[0]["at"].as_str().unwrap().ends_with('Z'), "{found:?}");
    assert_eq!(entries(&api("GET", "/orders?from=1&limit=1", b""))[0]["offset"], 1);

    let begun = Instant::now();
    assert_eq!(entries(&api("GET", "/orders?from=2&wait=300ms", b"")).len(), 0);
    assert!(begun.elapsed() >= Duration::from_millis(300), "{:?}", begun.elapsed());
    let mut followed = Sent::open(seawall.api, "/api/v1/streams/orders?from=1").unwrap();
    assert_eq!(followed.next().unwrap().1["offset"], 1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| entries(&api("GET", "/orders?from=2&wait=30s", b"")));
        assert_eq!(api("POST", "/orders?producer=p&seq=2", b"two").json()["offset"], 2);
        assert_eq!(waiting.join().unwrap()[0]["data"], "two");
    });
    let (kind, sent) = followed.next().unwrap();
    assert_eq!((kind.as_str(), &sent["data"]), ("entry", &json!("two")));

    assert_eq!(api("PUT", "/orders/cursors/billing?offset=2", b"").json(), json!({ "cursor": "billing", "offset": 2 }));
    assert_eq!(api("GET", "/orders/cursors/billing", b"").json()["offset"], 2);
    let described = api("GET", "/orders/describe", b"").json();
    assert_eq!((&described["producers"], &described["cursors"]), (&json!({ "p": 2 }), &json!({ "billing": 2 })));
    assert_eq!((&described["first"], &described["next"]), (&json!(0), &json!(3)));
    let metrics = seawall.api("GET", "/metrics", b"").text();
    assert!(metrics.contains("seawall_stream_kept_bytes{stream=\"orders\"} 104"), "{metrics}");

    assert_eq!(api("DELETE", "/orders", b"").status, 200);
    let (kind, _) = followed.next().unwrap();
    assert_eq!(kind, "deleted");
    assert_eq!(api("GET", "/orders", b"").status, 404);
}

#[test]
fn refusals_say_what_would_be_right() {
    let seawall = Seawall::up(NOTHING);
    let api = |method: &str, path: &str, body: &[u8]| seawall.api(method, &format!("/api/v1/streams{path}"), body);
    assert_eq!(api("POST", "/s?producer=p&seq=1", b"1").status, 200);
    let gap = api("POST", "/s?producer=p&seq=3", b"3");
    assert_eq!((gap.status, &gap.json()["expected"]), (409, &json!(2)), "{}", gap.text());
    let large = api("POST", "/s", &vec![b'x'; 512 * 1024 + 1]);
    assert_eq!((large.status, &large.json()["limit"]), (413, &json!(524_288)), "{}", large.text());
    assert_eq!(api("POST", "/s", &vec![b'x'; 512 * 1024]).status, 200);
    assert_eq!(api("POST", "/s/seal?epoch=7", b"").json(), json!({ "name": "s", "epoch": 7, "end": 2 }));
    let with = |epoch: &str| {
        request(seawall.api, "POST", "/api/v1/streams/s?producer=p&seq=2", &[("seawall-epoch", epoch)], b"2").unwrap()
    };
    for refused in [with("6"), api("POST", "/s?producer=p&seq=2", b"2")] {
        assert_eq!((refused.status, &refused.json()["epoch"]), (409, &json!(7)), "{}", refused.text());
        assert_eq!(refused.header("seawall-epoch"), Some("7"));
    }
    assert_eq!(with("7").json()["offset"], 2);
    assert_eq!(with("seven").status, 400);
    for (status, method, path) in [
        (400, "POST", "/s?producer=p"),
        (400, "POST", "/s?seq=1"),
        (400, "POST", "/-s"),
        (400, "POST", "/s?durability=async"),
        (400, "GET", "/s?wait=2h"),
        (400, "GET", "/s?from=4"),
        (400, "PUT", "/s/cursors/c?offset=4"),
        (400, "PUT", "/s/cursors/c"),
        (404, "GET", "/s/cursors/c"),
        (404, "GET", "/none"),
        (404, "PUT", "/none/cursors/c?offset=0"),
        (404, "DELETE", "/none"),
        (405, "PUT", "/s"),
    ] {
        let refused = api(method, path, b"");
        assert_eq!(refused.status, status, "{method} {path}: {}", refused.text());
        assert!(refused.json()["error"].as_str().is_some(), "{method} {path}: {}", refused.text());
    }
}

/// Appends until told to stop, each entry again until it is acknowledged; offsets in order of sequence numbers.
fn produce(api: std::net::SocketAddr, producer: &str, stop: &AtomicBool) -> Vec<u64> {
    let mut offsets = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let seq = offsets.len() + 1;
        let path = format!("/api/v1/streams/s?producer={producer}&seq={seq}");
        let answer = request(api, "POST", &path, &[], format!("{producer} {seq}").as_bytes());
        if let Ok(answer) = answer.as_ref().map(Answer::json)
            && let Some(offset) = answer["offset"].as_u64()
        {
            offsets.push(offset);
        }
    }
    offsets
}

#[test]
fn kills_of_the_node_process_lose_and_double_no_entry() {
    let seawall = Seawall::up(NOTHING);
    let stop = Arc::new(AtomicBool::new(false));
    let producers: Vec<_> = (0..4)
        .map(|number| {
            let (api, stop) = (seawall.api, stop.clone());
            std::thread::spawn(move || produce(api, &format!("p{number}"), &stop))
        })
        .collect();
    let next = || {
        let described = request(seawall.api, "GET", "/api/v1/streams/s/describe", &[], b"").ok()?;
        described.json()["next"].as_u64()
    };
    for round in 0..8 {
        let before = wait("an answer", next);
        wait("more entries", || next().filter(|next| *next > before + 20 + round * 7));
        let node = seawall.node();
        processes::signal(node, "KILL");
        wait("another node process", || (seawall.node() != node && next().is_some()).then_some(()));
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged: Vec<Vec<u64>> = producers.into_iter().map(|producer| producer.join().unwrap()).collect();
    let mut found = Vec::new();
    loop {
        let more = entries(&seawall.api("GET", &format!("/api/v1/streams/s?from={}&limit=1000", found.len()), b""));
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    let mut seen = vec![0; acknowledged.len()];
    for (offset, entry) in found.iter().enumerate() {
        assert_eq!(entry["offset"], offset);
        let (producer, seq) = entry["data"].as_str().unwrap()[1..].split_once(' ').unwrap();
        let producer: usize = producer.parse().unwrap();
        seen[producer] += 1;
        assert_eq!(seq, seen[producer].to_string(), "p{producer}: each once, in its order");
        let told = acknowledged[producer].get(seen[producer] - 1);
        assert!(told.is_none_or(|told| *told == offset as u64), "p{producer} {seq}: told {told:?}, found at {offset}");
    }
    for (producer, offsets) in acknowledged.iter().enumerate() {
        assert!(
            seen[producer] >= offsets.len() && !offsets.is_empty(),
            "p{producer}: {} of {}",
            seen[producer],
            offsets.len()
        );
    }
}

#[test]
fn the_command_line_appends_reads_and_keeps_a_cursor() {
    let seawall = Seawall::up(NOTHING);
    let (out, _) = seawall.cli_exits(0, &["stream", "append", "s", "one", "--producer", "p", "--seq", "1"]);
    assert_eq!(out, "offset 0 (sync)\n");
    let (out, _) = seawall.cli_exits(0, &["stream", "append", "s", "one", "--producer", "p", "--seq", "1"]);
    assert_eq!(out, "offset 0 (sync, there already)\n");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_seawall"))
        .args(["--api", &format!("http://{}", seawall.api), "stream", "append", "s", "--lines"])
        .args(["--producer", "p", "--seq", "2"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"two\nthree\n").unwrap();
    let appended = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&appended.stdout), "offset 1 (sync)\noffset 2 (sync)\n");
    let (out, _) = seawall.cli_exits(0, &["stream", "read", "s", "--raw", "--from", "1"]);
    assert_eq!(out, "two\nthree\n");
    let (out, _) = seawall.cli_exits(0, &["stream", "read", "s", "--raw", "--cursor", "c", "--limit", "2"]);
    assert_eq!(out, "one\ntwo\n");
    let (out, _) = seawall.cli_exits(0, &["stream", "read", "s", "--cursor", "c"]);
    let entry: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&entry["offset"], &entry["data"]), (&json!(2), &json!("three")));
    assert_eq!(seawall.cli_exits(0, &["stream", "cursor", "s"]).0, "c 3\n");
    assert_eq!(seawall.cli_exits(0, &["stream", "cursor", "s", "c", "0"]).0, "c 0\n");
    assert_eq!(seawall.cli_exits(0, &["stream", "cursor", "s", "c"]).0, "0\n");
    let (out, _) = seawall.cli_exits(0, &["stream", "seal", "s", "4"]);
    assert!(out.contains("end at offset 3"), "{out}");
    let (_, err) = seawall.cli_exits(1, &["stream", "append", "s", "late", "--epoch", "3"]);
    assert!(err.contains("sealed with epoch 4"), "{err}");
    let (out, _) = seawall.cli_exits(0, &["stream", "list"]);
    let row: Vec<&str> = out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row, ["s", "0", "3", "107", "4"]);
    seawall.cli_exits(0, &["stream", "delete", "s"]);
    seawall.cli_exits(2, &["stream", "read", "s"]);
}
