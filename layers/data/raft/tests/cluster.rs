//! Several voters: what is acknowledged anywhere is everywhere, and survives what a minority suffers.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod support;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use data::conformance::{self, Setup};
use data::{Consistency, NotServing, Store, StoreError};
use data_raft::Options;
use support::{Cluster, eventually, name};

fn usual(_: &mut Options) {}

/// A small log, so that a node that was away needs a snapshot.
fn forgetful(options: &mut Options) {
    options.snapshot_entries = 50;
    options.patience = Duration::from_secs(2);
}

fn impatient(options: &mut Options) {
    options.patience = Duration::from_secs(1);
}

/// Nobody is taken for lost because the machine is slow: leaders change when they are told to.
fn unhurried(options: &mut Options) {
    options.election = (Duration::from_secs(10), Duration::from_secs(20));
    options.patience = Duration::from_secs(30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followers_store_conforms() {
    let clusters = RefCell::new(Vec::new());
    let make = |setup: Setup| -> std::sync::Arc<dyn Store> {
        let cluster = Cluster::start(3, move |options| {
            (options.quota_bytes, options.history) = (setup.quota_bytes, setup.history);
        });
        let runtime = tokio::runtime::Handle::current();
        let leader = tokio::task::block_in_place(|| runtime.block_on(cluster.leader(&[0, 1, 2])));
        let store = cluster.node((leader + 1) % 3).clone();
        clusters.borrow_mut().push(cluster);
        store
    };
    conformance::all(&make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_anywhere_is_read_everywhere() {
    let cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    for place in 0..3 {
        cluster.put(place, &format!("from-{place}"), "1").await;
        for reader in 0..3 {
            let read = cluster.get(reader, &format!("from-{place}"), Consistency::Linearizable).await;
            assert_eq!(read, Ok(Some("1".into())), "written through {}, read through {}", name(place), name(reader));
        }
        let own = cluster.get(place, &format!("from-{place}"), Consistency::Stale).await;
        assert_eq!(own, Ok(Some("1".into())), "whoever wrote here reads it here");
    }
    let members = cluster.node(1).members().await;
    assert_eq!(members.members.iter().map(|member| &*member.name).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    assert!(members.members.iter().all(|member| member.voter));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_any_one_is_survived_and_it_catches_up() {
    let mut cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    for round in 0..3 {
        let leader = cluster.leader(&[0, 1, 2]).await;
        let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
        cluster.put(others[0], &format!("before-{round}"), "1").await;
        cluster.stop_node(leader).await;
        cluster.put(others[1], &format!("without-{round}"), "1").await;
        cluster.start_node(leader);
        eventually("the node that was away has what was written meanwhile", async || {
            cluster.get(leader, &format!("without-{round}"), Consistency::Stale).await == Ok(Some("1".into()))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::start(3, forgetful);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let away = (leader + 1) % 3;
    cluster.put(leader, "first", "1").await;
    cluster.stop_node(away).await;
    for count in 0..300 {
        cluster.put(leader, &format!("key-{}", count % 40), &"x".repeat(2000)).await;
    }
    cluster.node(leader).snapshot().await.unwrap();
    cluster.put(leader, "last", "1").await;
    cluster.start_node(away);
    eventually("all of it is there", async || {
        cluster.get(away, "last", Consistency::Stale).await == Ok(Some("1".into()))
    })
    .await;
    assert_eq!(cluster.get(away, "first", Consistency::Stale).await, Ok(Some("1".into())));
    // What was taken over survives a restart, and the node goes on from there.
    cluster.stop_node(away).await;
    cluster.start_node(away);
    cluster.put(away, "after", "1").await;
    assert_eq!(cluster.get(away, "key-39", Consistency::Linearizable).await.map(|value| value.is_some()), Ok(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_values_reach_who_was_away() {
    let mut cluster = Cluster::start(3, usual);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let away = (leader + 1) % 3;
    cluster.stop_node(away).await;
    // More than fits into one frame, in fewer entries than a round has.
    let value = "x".repeat(500 * 1024);
    for count in 0..50 {
        cluster.put(leader, &format!("large-{count}"), &value).await;
    }
    cluster.start_node(away);
    eventually("the last one is there", async || {
        matches!(cluster.get(away, "large-49", Consistency::Stale).await, Ok(Some(found)) if found.len() == value.len())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_decides_nothing_and_says_who_is_missing() {
    let cluster = Cluster::start(3, impatient);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    cluster.put(leader, "before", "1").await;
    cluster.network.isolate(&name(leader));
    // The others go on.
    cluster.leader(&others).await;
    cluster.put(others[0], "majority", "1").await;
    // The one that is alone says so, and neither writes nor reads as if it led.
    eventually("it says that it has no quorum", async || {
        matches!(cluster.node(leader).status().not_serving, Some(NotServing::NoQuorum { .. }))
    })
    .await;
    let begun = Instant::now();
    let write = cluster.node(leader).txn(data::Txn::put(data::Key::try_from("minority").unwrap(), "1")).await;
    assert!(
        matches!(&write, Err(StoreError::NotServing(NotServing::NoQuorum { missing })) if missing.contains("has not answered")),
        "{write:?}"
    );
    let read = cluster.get(leader, "before", Consistency::Linearizable).await;
    assert!(matches!(read, Err(StoreError::NotServing(_))), "{read:?}");
    assert!(begun.elapsed() < Duration::from_secs(6), "within the patience of both: {:?}", begun.elapsed());
    assert_eq!(cluster.get(leader, "before", Consistency::Stale).await, Ok(Some("1".into())));
    let status = cluster.node(leader).status();
    assert!(status.not_serving.is_some(), "{status:?}");
    cluster.network.heal();
    eventually("it follows again", async || {
        cluster.get(leader, "majority", Consistency::Linearizable).await == Ok(Some("1".into()))
    })
    .await;
    assert_eq!(cluster.get(leader, "minority", Consistency::Linearizable).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_left_alone_says_so() {
    let mut cluster = Cluster::start(3, impatient);
    let first = cluster.leader(&[0, 1, 2]).await;
    let leader = (first + 1) % 3;
    cluster.node(first).transfer_leader(&name(leader)).await.unwrap();
    let left = first;
    for gone in (0..3).filter(|place| *place != left) {
        cluster.network.isolate(&name(gone));
    }
    eventually("it says that it has no quorum, and whom it misses", async || {
        let problem = cluster.node(left).status().not_serving.map(|problem| problem.to_string());
        problem.is_some_and(|problem| problem.contains(&name(leader)) && problem.contains("no quorum"))
    })
    .await;
    assert_eq!(cluster.node(left).status().leader, None);
    assert_eq!(cluster.node(left).members().await.leader, None);
    let write = cluster.node(left).txn(data::Txn::put(data::Key::try_from("alone").unwrap(), "1")).await;
    assert!(matches!(&write, Err(StoreError::NotServing(NotServing::NoQuorum { .. }))), "{write:?}");
    cluster.stop_node(left).await;
    cluster.start_node(left);
    // Nor does it believe, after a restart, whom it voted for once.
    eventually("it still says so", async || cluster.node(left).status().not_serving.is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_comes_back_does_not_unseat_a_living_leader() {
    let cluster = Cluster::start(3, impatient);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let cut = (leader + 1) % 3;
    cluster.put(leader, "before", "1").await;
    let term = cluster.node(leader).status().term;
    cluster.network.isolate(&name(cut));
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.network.heal();
    cluster.put(leader, "after", "1").await;
    eventually("it has caught up", async || {
        cluster.get(cut, "after", Consistency::Stale).await == Ok(Some("1".into()))
    })
    .await;
    let status = cluster.node(leader).status();
    assert_eq!((status.role, status.term), (data::RaftRole::Leader, term), "votes are asked for before terms grow");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_without_a_failed_write() {
    let cluster = Cluster::start(3, unhurried);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let next = (leader + 1) % 3;
    let store = cluster.node((leader + 2) % 3).clone();
    let writer = tokio::spawn(async move {
        for count in 0..400 {
            let key = data::Key::try_from(format!("k{count}")).unwrap();
            let outcome = store.txn(data::Txn::put(key, "1")).await;
            assert!(matches!(outcome, Ok(data::TxnOutcome::Committed { .. })), "{count}: {outcome:?}");
        }
    });
    let begun = Instant::now();
    let members = cluster.node(leader).transfer_leader(&name(next)).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(members.leader.as_deref(), Some(name(next).as_str()));
    assert!(took < Duration::from_secs(1), "{took:?}");
    writer.await.unwrap();
    let none = cluster.node(leader).transfer_leader("nobody").await;
    assert_eq!(none, Err(StoreError::Invalid { what: "the leader refused the request" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_and_one_leaves() {
    let mut cluster = Cluster::start(3, usual);
    let leader = cluster.leader(&[0, 1, 2]).await;
    cluster.put(leader, "before", "1").await;
    cluster.start_node(3);
    eventually("the fourth votes", async || {
        let members = cluster.node(leader).members().await.members;
        members.iter().any(|member| &*member.name == "n4" && member.voter)
    })
    .await;
    cluster.put(3, "through-the-new-one", "1").await;
    let gone = (0..3).find(|place| *place != leader).unwrap();
    cluster.stop_node(gone).await;
    let members = cluster.node(leader).remove_member(&name(gone)).await.unwrap();
    assert!(members.members.iter().all(|member| *member.name != *name(gone)), "{members:?}");
    cluster.put(3, "after", "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_that_join_at_once_all_keep_their_votes() {
    for _ in 0..3 {
        let mut cluster = Cluster::start(1, usual);
        cluster.leader(&[0]).await;
        (1..5).for_each(|place| cluster.start_node(place));
        eventually("every one knows five voters", async || {
            let mut all = true;
            for place in 0..5 {
                let members = cluster.node(place).members().await.members;
                all &= members.len() == 5 && members.iter().all(|member| member.voter);
            }
            all
        })
        .await;
        for place in 0..5 {
            cluster.put(place, "key", "value").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_disk_comes_back_under_another_number() {
    let mut cluster = Cluster::start(3, usual);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let wiped = (leader + 1) % 3;
    cluster.put(leader, "before", "1").await;
    let number = |members: &data_raft::Members| {
        members.members.iter().find(|member| *member.name == *name(wiped)).map(|member| (member.id, member.voter))
    };
    let before = number(&cluster.node(leader).members().await).unwrap();
    cluster.stop_node(wiped).await;
    std::fs::remove_dir_all(cluster.path(wiped)).unwrap();
    cluster.start_node(wiped);
    eventually("it votes again, as somebody else", async || {
        let members = cluster.node(leader).members().await;
        members.members.len() == 3 && number(&members).is_some_and(|(id, voter)| id != before.0 && voter)
    })
    .await;
    assert_eq!(cluster.get(wiped, "before", Consistency::Linearizable).await, Ok(Some("1".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_few_large_entries_is_bounded_too() {
    const KIB: u64 = 1024;
    // Segments have 256 KiB here.
    let cluster = Cluster::start(3, |options| {
        options.entries_behind_snapshot = 1_000_000;
        (options.snapshot_log_bytes, options.bytes_behind_snapshot) = (256 * KIB, 512 * KIB);
    });
    let leader = cluster.leader(&[0, 1, 2]).await;
    for _ in 0..64 {
        cluster.put(leader, "large", &"x".repeat(64 * 1024)).await;
    }
    for place in 0..3 {
        eventually("the log is as short as it may be", async || {
            cluster.node(place).status().wal_bytes <= (512 + 256 + 256) * KIB
        })
        .await;
    }
    assert_eq!(cluster.get(leader, "large", Consistency::Linearizable).await.unwrap().unwrap().len(), 64 * 1024);
}

/// Its leader may die between the log and the vote: then it is known, and nobody else would think of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_given_the_log_and_no_vote_asks_again() {
    let mut cluster = Cluster::start(3, usual);
    let leader = cluster.leader(&[0, 1, 2]).await;
    cluster.put(leader, "before", "1").await;
    cluster.start_node_as(3, false);
    eventually("it has the log", async || cluster.get(3, "before", Consistency::Stale).await == Ok(Some("1".into())))
        .await;
    cluster.stop_node(3).await;
    cluster.start_node(3);
    eventually("it votes", async || {
        let members = cluster.node(leader).members().await;
        members.members.len() == 4 && members.members.iter().all(|member| member.voter)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_outlive_their_leader_and_end_once() {
    let mut cluster = Cluster::start(3, usual);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let other = (leader + 1) % 3;
    let lease = cluster.node(other).lease_grant(Duration::from_millis(1500)).await.unwrap().lease;
    let put = data::Op::Put { key: data::Key::try_from("held").unwrap(), value: "1".into(), lease: Some(lease) };
    cluster.node(other).txn(data::Txn::default().then(put)).await.unwrap();
    cluster.stop_node(leader).await;
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        cluster.node(other).lease_keep_alive(lease).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(cluster.get(other, "held", Consistency::Linearizable).await, Ok(Some("1".into())));
    let kept = Instant::now();
    eventually("the lease ends", async || cluster.get(other, "held", Consistency::Linearizable).await == Ok(None))
        .await;
    assert!(kept.elapsed() >= Duration::from_millis(1100), "not before its time: {:?}", kept.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_again_does_not_end_leases_by_what_it_knew_before() {
    const TTL: Duration = Duration::from_secs(2);
    let cluster = Cluster::start(3, usual);
    let first = cluster.leader(&[0, 1, 2]).await;
    let second = (first + 1) % 3;
    let lease = cluster.node(first).lease_grant(TTL).await.unwrap().lease;
    cluster.node(first).transfer_leader(&name(second)).await.unwrap();
    // The second leader renews all leases when it begins: from then on the first one's clock runs out.
    let begun = Instant::now();
    while begun.elapsed() < TTL * 3 / 4 {
        cluster.node(second).lease_keep_alive(lease).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let kept = Instant::now();
    cluster.node(second).lease_keep_alive(lease).await.unwrap();
    cluster.node(second).transfer_leader(&name(first)).await.unwrap();
    while kept.elapsed() < TTL * 9 / 10 {
        let info = cluster.node(first).lease_info(lease).await;
        assert!(info.is_ok() || kept.elapsed() >= TTL, "{:?} after it was kept: {info:?}", kept.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("it ends once its time is over", async || {
        cluster.node(first).lease_info(lease).await == Err(StoreError::LeaseNotFound(lease))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_follows_a_leader_that_was_let_in_meanwhile() {
    let mut cluster = Cluster::start(3, usual);
    let leader = cluster.leader(&[0, 1, 2]).await;
    let away = (leader + 1) % 3;
    cluster.stop_node(away).await;
    cluster.start_node(3);
    eventually("the new node has a vote", async || {
        let members = cluster.node(leader).members().await;
        members.members.iter().any(|member| *member.name == *name(3) && member.voter)
    })
    .await;
    cluster.node(leader).transfer_leader(&name(3)).await.unwrap();
    cluster.put(3, "new", "1").await;
    cluster.start_node(away);
    eventually("it has what the new leader wrote", async || {
        cluster.get(away, "new", Consistency::Stale).await == Ok(Some("1".into()))
    })
    .await;
    cluster.put(away, "through it", "1").await;
}
