//! A store that is asked of servers keeps every clause of the contract, lost replies and lost servers included.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/agent.rs"]
mod agents;
#[path = "support/cluster.rs"]
mod cluster;

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agents::{agent, begin};
use cluster::{Cluster, PATIENCE, eventually, name};
use data::conformance::{self, Setup};
use data::{
    Compare, CompareOp, CompareTarget, Consistency, Key, KeyRange, NotServing, Op, RangeRequest, Revision, Store,
    StoreError, Txn, TxnOutcome, WatchItem, WatchStream,
};
use data_raft::{Options, RemoteStore};

fn usual(_: &mut Options) {}

fn key(text: &str) -> Key {
    Key::try_from(text).unwrap()
}

async fn put(store: &RemoteStore, name: &str, value: &str) -> Revision {
    match store.txn(Txn::put(key(name), value.to_owned())).await {
        Ok(TxnOutcome::Committed { revision, .. }) => revision,
        other => panic!("{name}: {other:?}"),
    }
}

async fn get(store: &dyn Store, name: &str, how: Consistency) -> Result<Option<String>, StoreError> {
    let read = store.range(RangeRequest::key(&key(name)), how).await?;
    Ok(read.kvs.into_iter().next().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_store_conforms() {
    let clusters = RefCell::new(Vec::new());
    let make = |setup: Setup| -> Arc<dyn Store> {
        let cluster = Cluster::start(3, move |options| {
            (options.quota_bytes, options.history) = (setup.quota_bytes, setup.history);
        });
        let runtime = tokio::runtime::Handle::current();
        let agent = tokio::task::block_in_place(|| {
            runtime.block_on(async {
                cluster.leader(&[0, 1, 2]).await;
                agent(&cluster).await
            })
        });
        clusters.borrow_mut().push(cluster);
        agent
    };
    conformance::all(&make).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_agent_writes_is_everywhere_and_it_is_counted_nowhere() {
    let cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    let agent = agent(&cluster).await;
    put(&agent, "a", "1").await;
    for place in 0..3 {
        assert_eq!(cluster.get(place, "a", Consistency::Linearizable).await, Ok(Some("1".into())));
        cluster.put(place, "b", &place.to_string()).await;
        assert_eq!(get(&*agent, "b", Consistency::Linearizable).await, Ok(Some(place.to_string())));
    }
    for seen in [agent.members().await, cluster.node(0).members().await] {
        assert_eq!(seen.members.iter().map(|member| &*member.name).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    }
    // Two that could decide nothing if it were counted.
    cluster.network.isolate(&name(2));
    eventually("two of three decide", async || {
        // The one that is lost may have been asked: then nobody knows.
        matches!(agent.txn(Txn::put(key("c"), "1")).await, Ok(TxnOutcome::Committed { .. }))
    })
    .await;
    assert_eq!(agent.status().role, data::RaftRole::Remote);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_name_is_refused_in_words() {
    let cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    // Its own place in the network is not taken: it only calls itself so.
    let options = data_raft::PeerOptions {
        cluster: "test".into(),
        name: name(2),
        advertise: "elsewhere".into(),
        join: vec![name(0)],
        founders: Vec::new(),
        voter: false,
        witness: false,
        agent: true,
    };
    let transport = cluster.network.attach("elsewhere");
    let make = move || -> std::io::Result<Arc<dyn data_raft::Transport>> { Ok(Arc::new(transport)) };
    let peers = data_raft::Peers::start(options, make).unwrap();
    let agent = RemoteStore::open(data_raft::RemoteOptions { peers, directory: None });
    eventually("it is told why", async || {
        let reason = agent.status().not_serving.unwrap().to_string();
        reason.contains("n3 is a member of the cluster") && reason.contains("seawall cluster remove n3")
    })
    .await;
    let refused = agent.txn(Txn::put(key("a"), "1")).await;
    assert!(matches!(refused, Err(StoreError::NotServing(NotServing::Unreachable { .. }))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_is_unknown_and_a_retry_by_compare_happens_once() {
    let cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    let agent = agent(&cluster).await;
    put(&agent, "n", "0").await;
    let mut unknown = 0;
    for number in 0..5 {
        let marker = key(&format!("done/{number}"));
        let mut known = get(&*agent, "n", Consistency::Linearizable).await;
        // Requests arrive, answers do not, until the first is known to be lost.
        (0..3).for_each(|place| cluster.network.cut(&name(place), "a1"));
        loop {
            let Ok(Some(old)) = known else { panic!("round {number}: {known:?}") };
            let next = old.parse::<u64>().unwrap() + 1;
            let unchanged = Compare { key: key("n"), target: CompareTarget::Value(old.into()), op: CompareOp::Equal };
            let txn = Txn::put(key("n"), next.to_string())
                .then(Op::put(marker.clone(), ""))
                .when(Compare::absent(marker.clone()))
                .when(unchanged);
            match agent.txn(txn).await {
                Ok(TxnOutcome::Committed { .. } | TxnOutcome::Rejected { .. }) => break,
                Ok(TxnOutcome::Unknown) => unknown += 1,
                other => panic!("{other:?}"),
            }
            cluster.network.heal();
            eventually("served again", async || agent.status().not_serving.is_none()).await;
            known = get(&*agent, "n", Consistency::Linearizable).await;
        }
    }
    assert_eq!(unknown, 5, "each round lost one answer");
    assert_eq!(get(&*agent, "n", Consistency::Linearizable).await, Ok(Some("5".into())));
}

/// Revisions of a watch, until one is `last`.
async fn revisions(watch: &mut WatchStream, last: Revision) -> Vec<u64> {
    let mut seen = Vec::new();
    loop {
        match tokio::time::timeout(PATIENCE, watch.next()).await.expect("in time") {
            Some(WatchItem::Events { revision, .. }) => {
                seen.push(revision.0);
                if revision == last {
                    return seen;
                }
            }
            Some(WatchItem::Progress(_)) => {}
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_server_without_a_gap_and_without_a_repetition() {
    let mut cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    let agent = agent(&cluster).await;
    let first = put(&agent, "k", "0").await.0 + 1;
    let mut watch = agent.watch(KeyRange::prefix("k"), None).unwrap();
    // Each of the servers is lost in turn, the one that it watches among them: stopped, or cut off without a word.
    for round in 0..6 {
        let place = round % 3;
        if round < 3 {
            cluster.stop_node(place).await;
        } else {
            cluster.network.isolate(&name(place));
        }
        let mut written = 0;
        while written < 20 {
            let outcome = agent.txn(Txn::put(key("k"), format!("{round}-{written}"))).await;
            if matches!(outcome, Ok(TxnOutcome::Committed { .. })) {
                written += 1;
            }
        }
        if round < 3 {
            cluster.start_node(place);
        } else {
            cluster.network.heal();
        }
        let up: Vec<usize> = (0..3).collect();
        cluster.leader(&up).await;
        eventually("served by all again", async || agent.status().not_serving.is_none()).await;
    }
    let last = put(&agent, "k", "last").await;
    let seen = revisions(&mut watch, last).await;
    // Nothing else was written: every revision is one of these.
    assert_eq!(seen, (first..=last.0).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_the_loss_of_the_server_that_is_asked_and_of_the_leader() {
    const TTL: Duration = Duration::from_millis(1800);
    let mut cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    let agent = agent(&cluster).await;
    let lease = agent.lease_grant(TTL).await.unwrap().lease;
    let mut longest = Duration::ZERO;
    for round in 0..4 {
        let leader = cluster.leader(&[0, 1, 2]).await;
        // The leader, then whoever follows it: the one that is asked is among them.
        let lost = (leader + round) % 3;
        cluster.network.isolate(&name(lost));
        let (begun, mut good) = (Instant::now(), Instant::now());
        while begun.elapsed() < TTL {
            let kept = tokio::time::timeout(Duration::from_millis(500), agent.lease_keep_alive(lease)).await;
            match kept {
                Ok(Ok(_)) => {
                    longest = longest.max(good.elapsed());
                    good = Instant::now();
                }
                Ok(Err(StoreError::LeaseNotFound(_))) => panic!("round {round}: it ended, {longest:?}"),
                Ok(Err(_)) | Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster.network.heal();
        cluster.leader(&[0, 1, 2]).await;
        assert_eq!(agent.lease_keep_alive(lease).await.map(|kept| kept.ttl), Ok(TTL), "round {round}");
    }
    println!("longest time without a renewal: {longest:?}");
    cluster.stop_node(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_cut_off_from_the_others_is_left() {
    let cluster = Cluster::start(3, usual);
    cluster.leader(&[0, 1, 2]).await;
    let agent = agent(&cluster).await;
    for lost in 0..3 {
        // The agent still reaches it; the others do not.
        for other in (0..3).filter(|other| *other != lost) {
            cluster.network.cut(&name(lost), &name(other));
            cluster.network.cut(&name(other), &name(lost));
        }
        eventually("it says so", async || cluster.node(lost).status().not_serving.is_some()).await;
        let others: Vec<usize> = (0..3).filter(|other| *other != lost).collect();
        cluster.leader(&others).await;
        // It would wait for a leader for five seconds. A read that has begun there goes elsewhere.
        let begun = Instant::now();
        assert!(get(&*agent, "k", Consistency::Linearizable).await.is_ok());
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        let begun = Instant::now();
        put(&agent, "k", &lost.to_string()).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(get(&*agent, "k", Consistency::Linearizable).await, Ok(Some(lost.to_string())));
        cluster.network.heal();
        cluster.leader(&[0, 1, 2]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_stale_reads_go_on_and_everything_else_is_refused_in_words() {
    let cluster = Cluster::start(3, |options| options.patience = Duration::from_secs(1));
    let leader = cluster.leader(&[0, 1, 2]).await;
    let agent = agent(&cluster).await;
    put(&agent, "k", "1").await;
    let left = (leader + 1) % 3;
    // Two of three have made it a fact; this one need not be among them.
    eventually("the one that will be left has it", async || {
        cluster.get(left, "k", Consistency::Stale).await == Ok(Some("1".into()))
    })
    .await;
    (0..3).filter(|place| *place != left).for_each(|place| cluster.network.isolate(&name(place)));
    eventually("the one that is left says so", async || {
        let status = agent.status();
        status.not_serving.is_some_and(|reason| {
            let words = reason.to_string();
            words.contains(&format!("server {}: no quorum", name(left)))
        })
    })
    .await;
    let refused = agent.txn(Txn::put(key("k"), "2")).await;
    assert!(matches!(refused, Err(StoreError::NotServing(NotServing::Server { .. }))), "{refused:?}");
    assert_eq!(get(&*agent, "k", Consistency::Stale).await, Ok(Some("1".into())));
    let fresh = get(&*agent, "k", Consistency::Linearizable).await;
    assert!(matches!(fresh, Err(StoreError::NotServing(_))), "{fresh:?}");
    cluster.network.isolate(&name(left));
    eventually("nobody is there any more", async || {
        agent
            .status()
            .not_serving
            .is_some_and(|reason| reason.to_string().contains("no server of the cluster has answered"))
    })
    .await;
    cluster.network.heal();
    eventually("all is well", async || get(&*agent, "k", Consistency::Linearizable).await == Ok(Some("1".into())))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_is_not_asked_and_long_answers_come_in_parts() {
    let cluster = Cluster::with_a_witness(usual);
    cluster.leader(&[0, 1]).await;
    let agent = begin(&cluster, "a1");
    eventually("served", async || agent.status().not_serving.is_none()).await;
    let value = "x".repeat(400_000);
    for number in 0..60 {
        put(&agent, &format!("long/{number:02}"), &value).await;
    }
    let all = agent.range(RangeRequest::prefix("long/"), Consistency::Linearizable).await.unwrap();
    assert_eq!((all.kvs.len(), all.more), (60, false));
    assert!(all.kvs.iter().all(|kv| kv.value.len() == value.len()), "24 megabytes, more than a frame");
    let mut watch = agent.watch(KeyRange::prefix("long/"), None).unwrap();
    let Ok(TxnOutcome::Committed { revision, .. }) = agent.txn(Txn::delete(KeyRange::prefix("long/"))).await else {
        panic!("not deleted")
    };
    assert_eq!(revisions(&mut watch, revision).await, [revision.0]);
    for place in 0..2 {
        cluster.network.isolate(&name(1 - place));
        eventually("one server and the witness", async || {
            matches!(agent.txn(Txn::put(key("k"), "1")).await, Ok(TxnOutcome::Committed { .. }))
        })
        .await;
        cluster.network.heal();
        cluster.leader(&[0, 1]).await;
    }
}
