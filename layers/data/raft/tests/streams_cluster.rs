//! Streams of several voters: what is acknowledged anywhere is everywhere, once and in order, whatever a minority suffers.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cluster::eventually;
use data::{Consistency, Key, NotServing, Reach, Store, StreamEntry, StreamError, Streams, Txn, Waits};
use data_raft::{Options, RaftStreams, StreamOptions};
use support::{RETENTION, Together, all, by, name, put};

fn usual(_: &mut Options) {}

fn impatient(options: &mut Options) {
    options.patience = Duration::from_secs(1);
}

fn ordinary() -> StreamOptions {
    StreamOptions::new(RETENTION)
}

fn words(entries: &[StreamEntry]) -> Vec<String> {
    entries.iter().map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_appended_anywhere_is_read_everywhere_at_the_same_offset() {
    let together = Together::start(3, ordinary(), usual).await;
    together.leader(&[0, 1, 2]).await;
    for place in 0..3 {
        let appended = put(together.node(place), by(&format!("p{place}"), 1, format!("from {place}"))).await;
        assert_eq!(appended, Ok((place as u64, false)));
        let own = together.node(place).read(name("s"), place as u64, 1, Consistency::Stale).await.unwrap();
        assert_eq!(words(&own.entries), [format!("from {place}")], "whoever appended here reads it here");
    }
    let first = all(together.node(0), "s", Consistency::Linearizable).await;
    assert_eq!(words(&first), ["from 0", "from 1", "from 2"]);
    for place in 1..3 {
        assert_eq!(all(together.node(place), "s", Consistency::Linearizable).await, first);
        assert_eq!(put(together.node(place), by("p0", 1, "again")).await, Ok((0, true)));
    }
    together.node(1).commit(name("s"), name("c"), 2).await.unwrap();
    assert_eq!(together.node(2).cursor(name("s"), name("c")).await, Ok(2));
    assert_eq!(together.node(2).seal(name("s"), 7).await, Ok(3));
    assert_eq!(put(together.node(0), by("p0", 2, "late")).await, Err(StreamError::Fenced { epoch: 7 }));
}

/// Appends until told to stop, each entry again until it is known to be there; what it was told of each.
async fn produce(streams: Arc<RaftStreams>, producer: String, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut offsets = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let seq = offsets.len() as u64 + 1;
        match put(&streams, by(&producer, seq, format!("{producer} {seq}"))).await {
            Ok((offset, _)) => offsets.push(offset),
            Err(StreamError::Unknown | StreamError::NotServing(_)) => {}
            Err(other) => panic!("{producer} {seq}: {other}"),
        }
    }
    offsets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_or_doubled_while_leaders_are_cut_off_and_stopped() {
    let mut together = Together::start(3, StreamOptions { snapshot_entries: 200, ..ordinary() }, impatient).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut leader = together.leader(&[0, 1, 2]).await;
    // The node that is stopped must not be one that producers speak to: their handles would keep it open.
    let stays: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    let producers: Vec<_> = (0..6)
        .map(|number| {
            let streams = together.node(stays[number % 2]).clone();
            tokio::spawn(produce(streams, format!("p{number}"), stop.clone()))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for round in 0..4 {
        if round == 1 && !stays.contains(&leader) {
            together.stop(leader).await;
            together.leader(&stays).await;
            together.start_node(leader);
        } else {
            together.cluster.network.isolate(&cluster::name(leader));
            let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
            together.leader(&others).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            together.cluster.network.heal();
        }
        leader = together.leader(&[0, 1, 2]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    for (number, producer) in producers.into_iter().enumerate() {
        let offsets = producer.await.unwrap();
        assert!(!offsets.is_empty() && offsets.is_sorted(), "p{number}");
        for (seq, offset) in (1..).zip(offsets) {
            assert_eq!(acknowledged.insert(offset, format!("p{number} {seq}")), None, "two entries at {offset}");
        }
    }
    leader = together.leader(&[0, 1, 2]).await;
    let found = all(together.node(leader), "s", Consistency::Linearizable).await;
    let text = words(&found);
    for (offset, entry) in &acknowledged {
        assert_eq!(text.get(usize::try_from(*offset).unwrap()), Some(entry), "acknowledged at {offset}");
    }
    let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
    for entry in &text {
        let (producer, seq) = entry.split_once(' ').unwrap();
        let newest = newest.entry(producer).or_default();
        *newest += 1;
        assert_eq!(seq.parse(), Ok(*newest), "{producer}: each once, in its order");
    }
    for place in 0..3 {
        eventually("it has caught up", async || {
            let here = together.node(place).describe(name("s"), Consistency::Stale).await;
            here.is_ok_and(|here| here.next == found.len() as u64)
        })
        .await;
        assert_eq!(all(together.node(place), "s", Consistency::Linearizable).await, found, "{place}");
    }
}

/// Nothing tells that a node is cut off: what was sent to it would be waited for until its connection is given up, for
/// seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_to_a_leader_that_is_cut_off_is_asked_of_the_next_one() {
    let together = Together::start(3, ordinary(), usual).await;
    let leader = together.leader(&[0, 1, 2]).await;
    let others: Vec<usize> = (0..3).filter(|place| *place != leader).collect();
    let asker = together.node(others[0]).clone();
    for number in 1..=3 {
        put(&asker, by("p", number, "entry")).await.unwrap();
    }
    asker.commit(name("s"), name("c"), 1).await.unwrap();
    together.cluster.network.isolate(&cluster::name(leader));
    let begun = Instant::now();
    let (moved, sealed, once) = tokio::join!(
        asker.commit(name("s"), name("c"), 2),
        asker.seal(name("s"), 7),
        put(&asker, data::Append { producer: None, ..by("p", 4, "once") }),
    );
    let took = begun.elapsed();
    assert_eq!((moved, sealed), (Ok(()), Ok(3)));
    assert_eq!(once, Err(StreamError::Unknown), "it may be there, and is not sent a second time");
    assert!(took < Duration::from_millis(2_500), "{took:?}");
    together.cluster.network.heal();
    together.leader(&[0, 1, 2]).await;
    assert_eq!(asker.cursor(name("s"), name("c")).await, Ok(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_far_behind_gets_the_manifest_and_only_the_segments_it_lacks() {
    let options = StreamOptions { snapshot_entries: 50, ..ordinary() };
    let mut together = Together::start(3, options, usual).await;
    let leader = together.leader(&[0, 1, 2]).await;
    let away = (leader + 1) % 3;
    let mut seq = 0;
    let mut more = async |together: &Together, count: u64| {
        for _ in 0..count {
            seq += 1;
            put(together.node(leader), by("p", seq, vec![b'x'; 100_000])).await.unwrap();
        }
    };
    more(&together, 60).await;
    let before = together.node(leader).describe(name("s"), Consistency::Linearizable).await.unwrap();
    eventually("it has the first ones", async || {
        let here = together.node(away).describe(name("s"), Consistency::Stale).await;
        here.is_ok_and(|here| here.next == before.next)
    })
    .await;
    together.stop(away).await;
    more(&together, 200).await;
    together.node(leader).snapshot().await.unwrap();
    more(&together, 1).await;
    together.start_node(away);
    eventually("all of it is there", async || {
        let here = together.node(away).describe(name("s"), Consistency::Stale).await;
        here.is_ok_and(|here| here.next == 261)
    })
    .await;
    let all_of_it = all(together.node(leader), "s", Consistency::Linearizable).await;
    assert!(all(together.node(away), "s", Consistency::Stale).await == all_of_it);
    // What was taken over survives a restart, and the node goes on from there.
    together.stop(away).await;
    together.start_node(away);
    together.leader(&[0, 1, 2]).await;
    assert_eq!(put(together.node(away), by("p", 261, "again")).await, Ok((260, true)));
    assert_eq!(put(together.node(away), by("p", 262, "after")).await, Ok((261, false)));
    assert!(all(together.node(away), "s", Consistency::Stale).await[..261] == all_of_it);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_in_time_and_says_who_is_missing() {
    let mut together = Together::start(3, ordinary(), impatient).await;
    let leader = together.leader(&[0, 1, 2]).await;
    put(together.node(leader), by("p", 1, "before")).await.unwrap();
    for place in (0..3).filter(|place| *place != leader) {
        together.stop(place).await;
    }
    eventually("it notices", async || together.node(leader).not_serving().is_some()).await;
    let begun = Instant::now();
    let refused = put(together.node(leader), by("p", 2, "after")).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let Err(StreamError::NotServing(reason @ NotServing::NoQuorum { .. })) = refused else { panic!("{refused:?}") };
    assert!(reason.to_string().contains("has not answered"), "{reason}");
    let read = together.node(leader).read(name("s"), 0, 10, Consistency::Linearizable).await;
    assert!(matches!(read, Err(StreamError::NotServing(_))), "{read:?}");
    assert_eq!(together.node(leader).read(name("s"), 0, 10, Consistency::Stale).await.unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_of_the_streams_are_those_of_the_store() {
    let mut together = Together::start(3, ordinary(), usual).await;
    let leader = together.leader(&[0, 1, 2]).await;
    put(together.node(leader), by("p", 1, "before")).await.unwrap();
    together.start_node(3);
    eventually("the fourth has what was appended before it came", async || {
        together.node(3).read(name("s"), 0, 1, Consistency::Stale).await.is_ok_and(|read| read.next == 1)
    })
    .await;
    // A disk that is lost comes back under another number, and holds the streams again.
    let wiped = (leader + 1) % 3;
    together.stop(wiped).await;
    std::fs::remove_dir_all(together.cluster.path(wiped)).unwrap();
    together.start_node(wiped);
    eventually("the wiped one has it again", async || {
        together.node(wiped).read(name("s"), 0, 1, Consistency::Stale).await.is_ok_and(|read| read.next == 1)
    })
    .await;
    eventually("it votes again", async || together.node(leader).has_the_stores_members()).await;
    // One that is taken out of the store's members is none of the streams' either: three of four must be enough.
    let gone = (leader + 2) % 3;
    together.stop(gone).await;
    together.cluster.node(leader).remove_member(&cluster::name(gone)).await.unwrap();
    let left: Vec<usize> = (0..4).filter(|place| *place != gone).collect();
    together.leader(&left).await;
    assert_eq!(put(together.node(3), by("p", 2, "after")).await, Ok((1, false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_flooded_hold_up_no_write_of_the_store() {
    let together = Together::start(3, ordinary(), usual).await;
    let leader = together.leader(&[0, 1, 2]).await;
    let stop = Arc::new(AtomicBool::new(false));
    let flood: Vec<_> = (0..8)
        .map(|number| {
            let (streams, stop) = (together.node((leader + 1) % 3).clone(), stop.clone());
            tokio::spawn(async move {
                for seq in 1.. {
                    if stop.load(Ordering::Relaxed) {
                        return seq;
                    }
                    put(&streams, by(&format!("f{number}"), seq, vec![b'x'; 256 * 1024])).await.unwrap();
                }
                0
            })
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for count in 0..50 {
        let begun = Instant::now();
        let key = Key::try_from(format!("k{count}")).unwrap();
        let written = together.cluster.node((leader + 1) % 3).txn(Txn::put(key, "1")).await;
        assert!(written.is_ok_and(|outcome| outcome.is_committed()));
        slowest = slowest.max(begun.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    for flood in flood {
        assert!(flood.await.unwrap() > 1);
    }
    // Not a figure: what is shared is the disk and the processor. Behind each other they would take many times as long.
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_entries_give_way_at_every_member_and_go_on_afterwards() {
    let together = Together::start(3, ordinary(), usual).await;
    together.leader(&[0, 1, 2]).await;
    let asked = |place: usize| together.node(place).metrics().gave_way;
    assert_eq!([0, 1, 2].map(asked), [0, 0, 0]);
    together.node(0).give_way(Reach::Here, Waits::Coming);
    assert_eq!([0, 1, 2].map(asked), [1, 0, 0]);
    eventually("the others hear of it", async || {
        together.node(1).give_way(Reach::Everywhere, Waits::UnderWay);
        asked(0) > 1 && asked(2) > 0
    })
    .await;
    // What is asked for while they give way is there afterwards, and not before.
    for place in 0..3 {
        let begun = Instant::now();
        together.node(place).give_way(Reach::Here, Waits::Coming);
        let large = by(&format!("p{place}"), 1, vec![b'x'; 64 * 1024]);
        assert_eq!(put(together.node(place), large).await, Ok((place as u64, false)));
        assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
    }
}
