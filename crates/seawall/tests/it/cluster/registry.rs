//! The registry across nodes: what one has acknowledged all of them show; indices go on over changes of leader, and nobody is
//! woken for nothing; without a quorum answers say so, and nothing is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Cluster;
use crate::support::{http, wait};

/// With names in `registered` at one of its nodes.
fn register(cluster: &Cluster, place: usize, name: &str, check: &Value) {
    let body = json!({ "Name": name, "Port": 80, "Check": check }).to_string();
    // A node that has just been elected may not take it yet.
    wait(&format!("{name} registered"), || {
        let answer = cluster.node(place).api("PUT", "/v1/agent/service/register", body.as_bytes());
        (answer.status == 200).then_some(())
    });
}

fn deregister(cluster: &Cluster, place: usize, name: &str) {
    let answer = cluster.node(place).api("PUT", &format!("/v1/agent/service/deregister/{name}"), b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn health(cluster: &Cluster, place: usize, name: &str, more: &str) -> http::Answer {
    cluster.node(place).api("GET", &format!("/v1/health/service/{name}?{more}"), b"")
}

fn index(answer: &http::Answer) -> u64 {
    answer.header("x-consul-index").unwrap().parse().unwrap()
}

fn count(answer: &http::Answer) -> usize {
    answer.json().as_array().map_or(0, Vec::len)
}

fn passing() -> Value {
    json!({ "TTL": "1h", "Status": "passing" })
}

#[test]
fn what_one_node_has_acknowledged_every_node_shows_and_what_was_removed_stays_away() {
    let cluster = Cluster::up();
    let mut highest = 0;
    for round in 0..3 {
        for place in 0..3 {
            let name = format!("web-{round}-{place}");
            register(&cluster, place, &name, &passing());
            for reader in 0..3 {
                let answer = health(&cluster, reader, &name, "passing");
                assert_eq!(count(&answer), 1, "{name}, asked of {reader}: {}", answer.text());
                assert!(index(&answer) >= highest);
                highest = highest.max(index(&answer));
            }
            deregister(&cluster, place, &name);
            for reader in 0..3 {
                let answer = health(&cluster, reader, &name, "");
                assert_eq!(count(&answer), 0, "{name}, asked of {reader}");
                assert!(index(&answer) > highest, "the index grows when the last instance goes");
            }
            highest += 1;
        }
    }
    // All three keep the registry, and say so.
    let consul = health(&cluster, 1, "consul", "passing");
    assert_eq!(count(&consul), 3, "{}", consul.text());
}

#[test]
fn an_index_grows_when_the_last_instance_goes_and_the_leader_changes() {
    let mut cluster = Cluster::up();
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    register(&cluster, others[0], "web", &passing());
    let before = index(&health(&cluster, others[1], "web", ""));
    deregister(&cluster, others[0], "web");
    let removed = index(&health(&cluster, others[1], "web", ""));
    assert!(removed > before);
    cluster.kill(leader);
    let next = cluster.leader();
    for place in cluster.up_places() {
        let answer = health(&cluster, place, "web", "");
        assert_eq!((count(&answer), answer.status), (0, 200), "asked of {place}, led by {next}");
        assert!(index(&answer) >= removed, "{} after {removed}", index(&answer));
    }
    // The one that was away reads everything anew.
    cluster.start(leader);
    wait("it answers", || (health(&cluster, leader, "web", "").status == 200).then_some(()));
    let answer = health(&cluster, leader, "web", "");
    assert!(count(&answer) == 0 && index(&answer) >= removed);
}

#[test]
fn blocking_queries_go_on_over_a_killed_leader_and_wake_for_nothing_else() {
    let mut cluster = Cluster::up();
    let leader = cluster.leader();
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    // Two services: one that changes after the leader's death, one that never does.
    register(&cluster, others[0], "changes", &passing());
    register(&cluster, others[0], "quiet", &passing());
    let waiting: Vec<_> = others
        .iter()
        .flat_map(|place| ["changes", "quiet"].map(|name| (*place, name)))
        .map(|(place, name)| {
            let known = index(&health(&cluster, place, name, ""));
            let api = cluster.node(place).api;
            let thread = std::thread::spawn(move || {
                let path = format!("/v1/health/service/{name}?index={known}&wait=12s");
                let began = Instant::now();
                (http::request(api, "GET", &path, &[], b"").unwrap(), began.elapsed())
            });
            (name, known, thread)
        })
        .collect();
    cluster.kill(leader);
    cluster.leader();
    // Much else changes meanwhile.
    for n in 0..20 {
        register(&cluster, others[1], &format!("other-{n}"), &passing());
    }
    let changed = Instant::now();
    register(&cluster, others[1], "changes", &passing());
    for (name, known, thread) in waiting {
        let (answer, took) = thread.join().unwrap();
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        if name == "changes" {
            println!("changed to told: within {:?}", changed.elapsed());
            assert!(index(&answer) > known && count(&answer) == 2, "{name}: {}", answer.text());
        } else {
            assert_eq!(index(&answer), known, "{name}: woken for nothing");
            assert!(took >= Duration::from_secs(12), "{name}: woken after {took:?}, for nothing");
        }
    }
}

#[test]
fn an_index_is_never_seen_to_go_back_whoever_leads() {
    let mut cluster = Cluster::up();
    register(&cluster, 0, "web", &passing());
    let over = Arc::new(AtomicBool::new(false));
    // Readers keep to a node of their own each, as clients do.
    let readers: Vec<_> = (0..3)
        .map(|place| {
            let (api, over) = (cluster.node(place).api, Arc::clone(&over));
            std::thread::spawn(move || {
                let (mut seen, mut answers) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    for stale in ["", "&stale"] {
                        let path = format!("/v1/health/service/web?index={seen}&wait=20ms{stale}");
                        let Ok(answer) = http::request(api, "GET", &path, &[], b"") else { continue };
                        if answer.status == 200 {
                            assert!(index(&answer) >= seen, "{} after {seen}", index(&answer));
                            (seen, answers) = (index(&answer), answers + 1);
                        }
                    }
                }
                answers
            })
        })
        .collect();
    for round in 0..3 {
        let leader = cluster.leader();
        let other = (leader + 1) % 3;
        let text = format!("web-{round}");
        register(&cluster, other, &text, &passing());
        cluster.node(leader).cli_exits(0, &["cluster", "transfer", &super::name(other)]);
        wait("the next leader", || (cluster.leader() == other).then_some(()));
        register(&cluster, 0, "web", &json!({ "TTL": format!("{}h", round + 2), "Status": "passing" }));
    }
    over.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 10);
    }
    cluster.stop(2);
}

#[test]
fn without_a_quorum_stale_reads_say_so_writes_fail_with_the_cause_and_nobody_is_taken_out() {
    let mut cluster = Cluster::up();
    let left = cluster.leader();
    let ghost = json!({ "TTL": "1h", "Status": "critical", "DeregisterCriticalServiceAfter": "1m" });
    register(&cluster, left, "ghost", &ghost);
    register(&cluster, left, "web", &passing());
    let critical = Instant::now();
    (0..3).filter(|place| *place != left).for_each(|place| cluster.kill(place));
    let refused = wait("a write that is refused", || {
        let body = json!({ "Name": "late" }).to_string();
        let answer = cluster.node(left).api("PUT", "/v1/agent/service/register", body.as_bytes());
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.status, 500);
    assert!(refused.text().contains("No cluster leader"), "{}", refused.text());
    for other in (0..3).filter(|place| *place != left) {
        assert!(refused.text().contains(&super::name(other)), "who is missing: {}", refused.text());
    }
    let fresh = health(&cluster, left, "web", "");
    assert_eq!(fresh.status, 500, "{}", fresh.text());
    let stale = health(&cluster, left, "web", "stale");
    assert_eq!((stale.status, count(&stale)), (200, 1), "{}", stale.text());
    assert_eq!(stale.header("x-consul-knownleader"), Some("false"));
    assert_eq!(stale.header("x-consul-effective-consistency"), Some("stale"));
    let contact = |answer: &http::Answer| answer.header("x-consul-lastcontact").unwrap().parse::<u64>().unwrap();
    // For how long there has been no leader, to a second: it grows, and is no longer than that.
    let first = contact(&stale);
    std::thread::sleep(Duration::from_millis(1500));
    let second = contact(&health(&cluster, left, "web", "stale"));
    assert!(
        second > first && u128::from(second) <= critical.elapsed().as_millis() + 1500,
        "{first} ms, then {second} ms"
    );
    // Longer than its time: it stays, whoever cannot be asked may see it otherwise.
    while critical.elapsed() < Duration::from_secs(70) {
        let answer = health(&cluster, left, "ghost", "stale");
        assert_eq!((answer.status, count(&answer)), (200, 1), "after {:?}", critical.elapsed());
        std::thread::sleep(Duration::from_secs(1));
    }
    cluster.start_somewhere((left + 1) % 3);
    wait("it serves again", || (health(&cluster, left, "web", "").status == 200).then_some(()));
    let answer = health(&cluster, left, "ghost", "");
    assert_eq!(count(&answer), 1, "its time begins anew: {}", answer.text());
    assert_eq!(answer.header("x-consul-knownleader"), Some("true"));
}
