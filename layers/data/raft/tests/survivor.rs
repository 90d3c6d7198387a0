//! The way back when most voters are lost for good: one goes on with everything it has, and the others stay out.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::time::Duration;

use cluster::eventually;
use data::{Consistency, Key, Store as _, StoreError, Streams as _, Txn};
use data_raft::{OpenError, Options, RaftStore, RecoverError, StreamOptions, recover};
use support::{RETENTION, Together, all, by, put};

fn impatient(options: &mut Options) {
    options.patience = Duration::from_secs(1);
}

/// Three nodes with something in both groups, all stopped; `survivor` has been recovered.
async fn recovered(survivor: usize) -> Together {
    let mut together = Together::start(3, StreamOptions::new(RETENTION), impatient).await;
    together.cluster.leader(&[0, 1, 2]).await;
    together.leader(&[0, 1, 2]).await;
    for number in 0..20 {
        together.cluster.put(number % 3, &format!("key-{number}"), "kept").await;
        put(together.node(survivor), by("p", number as u64 + 1, "entry")).await.unwrap();
    }
    let directory = together.cluster.path(survivor);
    assert!(matches!(recover(&directory, true), Err(RecoverError::Other(OpenError::Locked { .. }))));
    for place in 0..3 {
        together.stop(place).await;
    }
    let looked = recover(&directory, false).unwrap();
    assert_eq!(looked.name, cluster::name(survivor));
    assert_eq!(looked.lost.len(), 2, "{looked:?}");
    assert_eq!(looked.kept.iter().map(|kept| kept.group).collect::<Vec<_>>(), ["store", "streams"]);
    assert_eq!(recover(&directory, false).unwrap(), looked, "looking changes nothing");
    assert_eq!(recover(&directory, true).unwrap(), looked);
    together
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_left_goes_on_with_everything_and_others_join_again() {
    let mut together = recovered(2).await;
    together.start_node(2);
    assert_eq!(together.cluster.leader(&[2]).await, 2);
    assert_eq!(together.leader(&[2]).await, 2);
    let kept = together.cluster.get(2, "key-19", Consistency::Linearizable).await;
    assert_eq!(kept, Ok(Some("kept".into())));
    assert_eq!(all(together.node(2), "s", Consistency::Linearizable).await.len(), 20);
    assert_eq!(put(together.node(2), by("p", 21, "after")).await, Ok((20, false)));
    together.cluster.put(2, "after", "1").await;

    // One comes back with its old disk: it is a member of nothing any more, and stands in nobody's way.
    together.start_node(0);
    std::fs::remove_dir_all(together.cluster.path(1)).unwrap();
    together.start_node(1);
    eventually("the one that was wiped is a voter", async || {
        let members = together.cluster.node(2).members().await.members;
        members.len() == 2 && members.iter().all(|member| member.voter)
    })
    .await;
    eventually("of the streams, too", async || together.node(1).not_serving().is_none()).await;
    assert_eq!(all(together.node(1), "s", Consistency::Linearizable).await.len(), 21);
    let refused = together.cluster.node(0).txn(Txn::put(Key::try_from("old").unwrap(), "1")).await;
    assert!(matches!(refused, Err(StoreError::NotServing(_))), "{refused:?}");
    eventually("it says why", async || {
        let reason = together.cluster.node(0).status().not_serving.map(|reason| reason.to_string());
        reason.is_some_and(|reason| reason.contains("was removed from the cluster: wipe its data directory"))
    })
    .await;
    let names: Vec<_> = together.cluster.node(2).members().await.members.iter().map(|m| m.name.to_string()).collect();
    assert_eq!(names, ["n2", "n3"]);
    // It survives restarts.
    together.stop(2).await;
    together.start_node(2);
    together.cluster.leader(&[1, 2]).await;
    together.cluster.put(1, "later", "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_majority_that_comes_back_changes_nothing_at_the_survivor() {
    let mut together = recovered(0).await;
    // They are first, and elect one of them.
    together.start_node(1);
    together.start_node(2);
    together.cluster.leader(&[1, 2]).await;
    together.cluster.put(1, "theirs", "1").await;
    together.start_node(0);
    together.cluster.leader(&[0]).await;
    together.cluster.put(0, "own", "1").await;
    for number in 0..50 {
        together.cluster.put(1, &format!("theirs-{number}"), "1").await;
        together.cluster.put(0, &format!("own-{number}"), "1").await;
    }
    let members = together.cluster.node(0).members().await;
    assert_eq!((members.members.len(), members.leader.as_deref()), (1, Some("n1")));
    assert_eq!(together.cluster.get(0, "theirs", Consistency::Linearizable).await, Ok(None));
    assert_eq!(together.cluster.get(1, "own", Consistency::Linearizable).await, Ok(None));
    assert_eq!(put(together.node(0), by("p", 21, "after")).await, Ok((20, false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_needs_no_recovery_is_left_alone() {
    let together = recovered(0).await;
    let only = recover(&together.cluster.path(0), true);
    assert!(matches!(only, Err(RecoverError::NoMember { .. })), "{only:?}");
    let alone = tempfile::tempdir().unwrap();
    let store = RaftStore::open(Options::new(alone.path())).unwrap();
    store.close().await.unwrap();
    tokio::task::spawn_blocking(move || drop(store)).await.unwrap();
    let single = recover(alone.path(), true);
    assert!(matches!(single, Err(RecoverError::NoMember { .. })), "{single:?}");
    drop(RaftStore::open(Options::new(alone.path())).unwrap());
    let nothing = tempfile::tempdir().unwrap();
    let empty = recover(nothing.path(), true);
    assert!(matches!(empty, Err(RecoverError::NoMember { .. })), "{empty:?}");
    assert!(std::fs::read_dir(nothing.path()).unwrap().next().is_none(), "nothing was made");
}
