//! Op-logs of a cluster: any node takes any append, and the loss of any one loses and doubles nothing.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Cluster, name};
use crate::support::{http, wait};

fn append(cluster: &Cluster, place: usize, seq: u64) -> http::Answer {
    let path = format!("/api/v1/streams/s?producer=p&seq={seq}");
    cluster.node(place).api("POST", &path, format!("entry {seq}").as_bytes())
}

/// What a node holds of the stream, by its own word.
fn held(cluster: &Cluster, place: usize) -> Option<Vec<String>> {
    let answer = cluster.node(place).api("GET", "/api/v1/streams/s?limit=1000&stale=true", b"");
    let entry = |line: &str| serde_json::from_str::<Value>(line).ok()?["data"].as_str().map(str::to_owned);
    (answer.status == 200).then(|| answer.text().lines().filter_map(entry).collect())
}

#[test]
fn whoever_is_killed_no_entry_is_lost_or_doubled() {
    let mut cluster = Cluster::up();
    let mut expected = Vec::new();
    wait("the streams are served", || (append(&cluster, 0, 1).status == 200).then_some(()));
    expected.push("entry 1".to_owned());
    for round in 0..3_u64 {
        for place in 0..3 {
            let seq = expected.len() as u64 + 1;
            let appended = append(&cluster, place, seq);
            assert_eq!(appended.json()["offset"], seq - 1, "{}", appended.text());
            expected.push(format!("entry {seq}"));
            assert_eq!(held(&cluster, place).as_ref(), Some(&expected), "whoever appended here reads it here");
        }
        let killed = usize::try_from(round).unwrap();
        cluster.kill(killed);
        let begun = Instant::now();
        let seq = expected.len() as u64 + 1;
        let other = (killed + 1) % 3;
        wait("the next acknowledged append", || (append(&cluster, other, seq).status == 200).then_some(()));
        println!("{} killed to next acknowledged append: {:?}", name(killed), begun.elapsed());
        expected.push(format!("entry {seq}"));
        assert_eq!(
            append(&cluster, (killed + 2) % 3, seq).json()["offset"],
            seq - 1,
            "a repetition is noticed anywhere"
        );
        cluster.start(killed);
        wait("it takes over what it missed", || held(&cluster, killed).filter(|held| *held == expected));
    }
    let left = 0;
    (1..3).for_each(|place| cluster.kill(place));
    wait("it notices", || cluster.node(left).status()["store"]["problem"].as_str().map(drop));
    let begun = Instant::now();
    let refused = append(&cluster, left, expected.len() as u64 + 1);
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.text().contains("no quorum"), "{}", refused.text());
    assert!(begun.elapsed() < Duration::from_secs(8), "within its patience: {:?}", begun.elapsed());
    assert_eq!(cluster.node(left).api("GET", "/api/v1/streams/s", b"").status, 503);
    assert_eq!(held(&cluster, left), Some(expected));
}
