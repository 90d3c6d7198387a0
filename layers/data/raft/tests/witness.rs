//! Two nodes with data and a witness: the loss of any one is survived, and nothing acknowledged goes with it, as long as
//! the witness keeps what the other lacks. Past its limit it says so.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::time::Duration;

use cluster::{Cluster, eventually, name};
use data::{
    Consistency, Key, NotServing, RaftRole, Store as _, StoreError, StreamError, Streams as _, Txn, TxnOutcome,
};
use data_raft::{OpenError, Options, StreamOptions, recover};
use support::{RETENTION, Together, all, by, put};

const WITNESS: usize = 2;

fn usual(options: &mut Options) {
    options.patience = Duration::from_secs(20);
}

/// Logs end after a few entries.
fn short(options: &mut Options) {
    usual(options);
    (options.segment_bytes, options.snapshot_entries) = (8192, 25);
}

/// A leader with data; the places of it and of the other.
async fn leader_and_other(cluster: &Cluster) -> (usize, usize) {
    let leader = cluster.leader(&[0, 1, WITNESS]).await;
    assert_ne!(leader, WITNESS, "it serves nothing, so it has handed over");
    (leader, 1 - leader)
}

async fn fill(cluster: &Cluster, through: usize, keys: std::ops::Range<usize>) {
    for number in keys {
        cluster.put(through, &format!("k{number}"), &format!("{number} {}", "x".repeat(400))).await;
    }
}

/// Puts a key until it is known to be there: what is sent to a leader that is cut off at this moment is unknown.
async fn put_in_the_end(cluster: &Cluster, through: usize, key: &str) {
    eventually(key, async || {
        let outcome = cluster.node(through).txn(Txn::put(Key::try_from(key).unwrap(), "1")).await;
        match outcome {
            Ok(TxnOutcome::Committed { .. }) => true,
            Ok(TxnOutcome::Unknown) => false,
            other => panic!("{key} through {}: {other:?}", name(through)),
        }
    })
    .await;
}

/// Cuts a leader off for good once the others can do without. A change of the members has two steps, and the second may
/// not have come to them yet.
async fn goes_on_without(cluster: &Cluster, leader: usize, other: usize) {
    let serves = async || cluster.get(other, "k0", Consistency::Linearizable).await.is_ok();
    eventually("it can go on without the other", async || {
        cluster.network.isolate(&name(leader));
        if serves().await {
            return true;
        }
        cluster.network.heal();
        eventually("there is a leader again", serves).await;
        false
    })
    .await;
}

async fn has_all(cluster: &Cluster, place: usize, count: usize) {
    for number in 0..count {
        let found = cluster.get(place, &format!("k{number}"), Consistency::Linearizable).await.unwrap();
        assert_eq!(found, Some(format!("{number} {}", "x".repeat(400))), "k{number} at {}", name(place));
    }
}

fn wal_bytes(cluster: &Cluster, place: usize) -> u64 {
    cluster.node(place).status().wal_bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_any_one_is_survived() {
    let cluster = Cluster::with_a_witness(usual);
    leader_and_other(&cluster).await;
    for place in 0..3 {
        cluster.put(place, &format!("from-{place}"), "1").await;
    }
    for lost in 0..3 {
        let left: Vec<usize> = (0..3).filter(|place| *place != lost).collect();
        cluster.network.isolate(&name(lost));
        for through in &left {
            put_in_the_end(&cluster, *through, &format!("without-{lost}-{through}")).await;
            let seen = cluster.get(*through, &format!("from-{lost}"), Consistency::Linearizable).await;
            assert_eq!(seen, Ok(Some("1".to_owned())), "asked of {}", name(*through));
        }
        cluster.network.heal();
        for reader in 0..3 {
            let key = format!("without-{lost}-{}", left[0]);
            let seen = cluster.get(reader, &key, Consistency::Linearizable).await;
            assert_eq!(seen, Ok(Some("1".to_owned())), "{key} asked of {}", name(reader));
        }
        leader_and_other(&cluster).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_lost_leader_shared_with_the_witness_alone_is_at_the_other_afterwards() {
    let cluster = Cluster::with_a_witness(short);
    let (leader, other) = leader_and_other(&cluster).await;
    fill(&cluster, leader, 0..10).await;
    cluster.network.isolate(&name(other));
    // So many that nodes with data have dropped them of their logs.
    fill(&cluster, leader, 10..200).await;
    cluster.network.heal();
    cluster.network.isolate(&name(leader));
    has_all(&cluster, other, 200).await;
    assert_eq!(cluster.leader(&[other, WITNESS]).await, other, "the witness has handed over");
    cluster.put(WITNESS, "later", "1").await;
    cluster.network.heal();
    has_all(&cluster, leader, 200).await;
    // All have everything: it goes.
    eventually("the witness's log is short again", async || {
        cluster.node(WITNESS).snapshot().await.unwrap();
        wal_bytes(&cluster, WITNESS) <= 3 * 8192
    })
    .await;
    assert_eq!(cluster.node(leader).members().await.no_failover, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_its_limit_the_node_that_is_away_votes_no_more_until_it_is_back() {
    let cluster = Cluster::with_a_witness(|options| {
        short(options);
        options.witness_log_bytes = 64 * 1024;
        options.patience = Duration::from_secs(3);
    });
    let (leader, other) = leader_and_other(&cluster).await;
    fill(&cluster, leader, 0..10).await;
    cluster.network.isolate(&name(other));
    fill(&cluster, leader, 10..250).await;
    let votes = async |place: usize| {
        let members = cluster.node(leader).members().await;
        members.members.iter().find(|member| *member.name == *name(place)).unwrap().voter
    };
    eventually("it has lost its vote", async || !votes(other).await).await;
    assert!(votes(leader).await && votes(WITNESS).await);
    let words = cluster.node(leader).members().await.no_failover.unwrap();
    assert!(words.starts_with(&format!("no failover: {}", name(other))), "{words}");
    assert!(words.contains(&format!("{} must not be lost", name(leader))), "{words}");
    eventually("the witness's log is short again", async || wal_bytes(&cluster, WITNESS) <= 64 * 1024).await;
    cluster.network.heal();
    eventually("it votes again", async || votes(other).await).await;
    assert_eq!(cluster.node(leader).members().await.no_failover, None);
    goes_on_without(&cluster, leader, other).await;
    has_all(&cluster, other, 250).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_that_lost_its_disk_is_given_no_state_and_votes_again() {
    let mut cluster = Cluster::with_a_witness(|options| {
        short(options);
        options.patience = Duration::from_secs(3);
    });
    let (leader, other) = leader_and_other(&cluster).await;
    fill(&cluster, leader, 0..100).await;
    cluster.stop_node(WITNESS).await;
    std::fs::remove_dir_all(cluster.path(WITNESS)).unwrap();
    fill(&cluster, leader, 100..150).await;
    cluster.start_node(WITNESS);
    eventually("it has its vote, and the one that was lost is gone", async || {
        let members = cluster.node(leader).members().await.members;
        members.len() == 3 && members.iter().all(|member| member.voter && member.lag.is_some_and(|lag| lag < 5))
    })
    .await;
    let members = cluster.node(leader).members().await.members;
    let witnesses: Vec<&str> = members.iter().filter(|member| member.witness).map(|member| &*member.name).collect();
    assert_eq!(witnesses, [name(WITNESS)]);
    for slot in ["snapshot-a", "snapshot-b"] {
        let length = std::fs::metadata(cluster.path(WITNESS).join(slot)).map_or(0, |file| file.len());
        assert!(length < 2000, "{slot} holds keys: {length} bytes");
    }
    goes_on_without(&cluster, leader, other).await;
    has_all(&cluster, other, 150).await;
    cluster.put(other, "later", "1").await;
    // What it was given outlives a restart.
    cluster.network.heal();
    cluster.stop_node(WITNESS).await;
    cluster.start_node(WITNESS);
    cluster.network.isolate(&name(other));
    let cut = std::time::Instant::now();
    eventually("it leads", async || cluster.get(leader, "later", Consistency::Linearizable).await.is_ok()).await;
    println!("cut off to served again: {:?}", cut.elapsed());
    has_all(&cluster, leader, 150).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_asks_the_leader_for_keys_and_has_none_of_its_own() {
    let cluster = Cluster::with_a_witness(usual);
    leader_and_other(&cluster).await;
    cluster.put(WITNESS, "key", "value").await;
    for how in [Consistency::Linearizable, Consistency::Stale] {
        assert_eq!(cluster.get(WITNESS, "key", how).await, Ok(Some("value".to_owned())));
    }
    let status = cluster.node(WITNESS).status();
    assert_eq!((status.revision.0, status.used_bytes, status.role), (0, 0, RaftRole::Follower));
    assert_eq!(status.not_serving, None);
    let saved = cluster.node(WITNESS).save().await.map(drop);
    assert!(matches!(saved, Err(StoreError::NotServing(NotServing::Witness))), "{saved:?}");
    let asked = cluster.node(0).transfer_leader(&name(WITNESS)).await;
    assert!(matches!(asked, Err(StoreError::Invalid { .. })), "{asked:?}");
    let removed = cluster.node(0).remove_member(&name(0)).await.unwrap();
    assert_eq!(removed.members.len(), 2);
    let last = cluster.node(1).remove_member(&name(1)).await;
    assert!(matches!(last, Err(StoreError::Invalid { .. })), "nobody with data would be left: {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_keeps_its_role() {
    let mut cluster = Cluster::with_a_witness(usual);
    leader_and_other(&cluster).await;
    for place in [WITNESS, 0] {
        cluster.stop_node(place).await;
    }
    let refused = recover(&cluster.path(WITNESS), false).map(drop).unwrap_err().to_string();
    assert!(refused.contains("it is a witness's"), "{refused}");
    cluster.witness = None;
    let as_server = cluster.open_node(WITNESS).map(drop);
    assert!(matches!(&as_server, Err(OpenError::OtherRole { was: "witness", wanted: "server", .. })), "{as_server:?}");
    cluster.witness = Some(0);
    let as_witness = cluster.open_node(0).map(drop);
    assert!(
        matches!(&as_witness, Err(OpenError::OtherRole { was: "server", wanted: "witness", .. })),
        "{as_witness:?}"
    );
    let words = as_witness.unwrap_err().to_string();
    assert!(words.contains("start it with an empty data directory"), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_survive_the_loss_of_the_one_that_shared_entries_with_the_witness_alone() {
    let options = StreamOptions { snapshot_entries: 20, ..StreamOptions::new(RETENTION) };
    let together = Together::over(Cluster::with_a_witness(usual), options);
    let leader = together.leader(&[0, 1]).await;
    let other = 1 - leader;
    assert_eq!(put(together.node(WITNESS), by("p", 1, "entry 1")).await, Ok((0, false)));
    let read = together.node(WITNESS).read(support::name("s"), 0, 1, Consistency::Stale).await;
    assert_eq!(read, Err(StreamError::NotServing(NotServing::Witness)));
    together.cluster.network.isolate(&name(other));
    for seq in 2..=60 {
        assert_eq!(put(together.node(leader), by("p", seq, format!("entry {seq}"))).await, Ok((seq - 1, false)));
    }
    together.cluster.network.heal();
    together.cluster.network.isolate(&name(leader));
    let entries = all(together.node(other), "s", Consistency::Linearizable).await;
    let found: Vec<_> = entries.iter().map(|entry| String::from_utf8_lossy(&entry.data).into_owned()).collect();
    assert_eq!(found, (1..=60).map(|seq| format!("entry {seq}")).collect::<Vec<_>>());
    assert_eq!(put(together.node(WITNESS), by("p", 60, "again")).await, Ok((59, true)));
    assert!(together.node(other).leads());
}
