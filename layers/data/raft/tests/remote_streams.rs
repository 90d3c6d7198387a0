//! Streams that are asked of servers: each append is there once, whatever server is lost meanwhile.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/agent.rs"]
mod agents;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use agents::agent;
use cluster::{eventually, name as node};
use data::{Append, Consistency, MAX_ENTRY_BYTES, Store as _, StreamError, Streams as _};
use data_raft::{Options, RemoteStore, RemoteStreams, StreamOptions};
use support::{RETENTION, Together, by, name};

async fn start(count: usize) -> (Together, Arc<RemoteStore>, Arc<RemoteStreams>) {
    let servers = Together::start(count, StreamOptions::new(RETENTION), |_: &mut Options| {}).await;
    let all: Vec<usize> = (0..count).collect();
    servers.leader(&all).await;
    let store = agent(&servers.cluster).await;
    let streams = store.open_streams();
    eventually("the streams are served", async || streams.not_serving().is_none()).await;
    (servers, store, streams)
}

async fn words(streams: &RemoteStreams, from: u64) -> Vec<String> {
    let read = streams.read(name("s"), from, 1000, Consistency::Linearizable).await.unwrap();
    read.entries.iter().map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_means_the_same_as_on_a_server() {
    let (servers, store, streams) = start(3).await;
    let missing = streams.describe(name("s"), Consistency::Linearizable).await;
    assert_eq!(missing, Err(StreamError::NotFound(name("s"))));
    let append = async |seq, entry: &str| streams.append(by("p", seq, entry.to_owned())).await;
    let first = append(1, "one").await.unwrap();
    assert_eq!((first.offset, first.repeated), (0, false));
    let again = append(1, "one").await.unwrap();
    assert_eq!((again.offset, again.repeated), (0, true));
    assert_eq!(append(3, "three").await, Err(StreamError::OutOfSequence { expected: 2 }));
    assert_eq!(append(2, "two").await.map(|appended| appended.offset), Ok(1));
    assert_eq!(words(&streams, 0).await, ["one", "two"]);
    assert_eq!(words(&streams, 2).await, Vec::<String>::new());
    let past = streams.read(name("s"), 9, 10, Consistency::Stale).await;
    assert_eq!(past, Err(StreamError::PastEnd { next: 2 }));
    let long = "x".repeat(MAX_ENTRY_BYTES + 1);
    assert!(matches!(append(3, &long).await, Err(StreamError::TooLarge { .. })));

    assert_eq!(streams.cursor(name("s"), name("c")).await, Err(StreamError::NoCursor(name("c"))));
    streams.commit(name("s"), name("c"), 1).await.unwrap();
    assert_eq!(streams.cursor(name("s"), name("c")).await, Ok(1));
    assert_eq!(streams.seal(name("s"), 7).await, Ok(2));
    let fenced = streams.append(Append { epoch: Some(6), ..by("p", 3, "late") }).await;
    assert_eq!(fenced, Err(StreamError::Fenced { epoch: 7 }));
    assert!(streams.append(Append { epoch: Some(7), ..by("p", 3, "three") }).await.is_ok());

    let described = streams.describe(name("s"), Consistency::Linearizable).await.unwrap();
    assert_eq!((described.next, described.sealed, described.cursors.get(&name("c"))), (3, Some(7), Some(&1)));
    assert_eq!(streams.list(Consistency::Linearizable).await.map(|all| all.len()), Ok(1));
    assert_eq!(servers.node(1).describe(name("s"), Consistency::Linearizable).await, Ok(described));

    // Whoever waits is woken by an entry, and else when its time is up.
    let begun = Instant::now();
    assert_eq!(streams.wait(name("s"), 3, Duration::from_millis(300)).await, Ok(false));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let waiting = streams.wait(name("s"), 3, Duration::from_secs(20));
    let appending = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        servers.node(2).append(Append { epoch: Some(7), ..by("p", 4, "four") }).await.unwrap();
    };
    assert_eq!(tokio::join!(waiting, appending).0, Ok(true));
    let found = streams.read(name("s"), 3, 10, Consistency::Stale).await.unwrap();
    assert_eq!((found.entries.len(), found.next), (1, 4));
    streams.delete(name("s"), None).await.unwrap();
    assert_eq!(streams.list(Consistency::Linearizable).await, Ok(Vec::new()));
    streams.close().await.unwrap();
    assert_eq!(streams.list(Consistency::Stale).await, Err(StreamError::Closed));
    assert!(store.status().not_serving.is_none(), "the store goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_is_there_once_whatever_server_is_lost_meanwhile() {
    let (mut servers, _store, streams) = start(3).await;
    let mut expected = Vec::new();
    for round in 0..6 {
        let place = round % 3;
        if round < 3 {
            servers.cluster.network.isolate(&node(place));
        } else {
            servers.stop(place).await;
        }
        for _ in 0..10 {
            let seq = expected.len() as u64 + 1;
            let entry = format!("entry {seq}");
            // Repeated until it is acknowledged, as producers do.
            eventually("it is appended", async || match streams.append(by("p", seq, entry.clone())).await {
                Ok(appended) => {
                    assert_eq!(appended.offset, seq - 1);
                    true
                }
                Err(StreamError::NotServing(_) | StreamError::Unknown) => false,
                Err(error) => panic!("{error}"),
            })
            .await;
            expected.push(entry);
        }
        if round < 3 {
            servers.cluster.network.heal();
        } else {
            servers.start_node(place);
        }
        servers.leader(&[0, 1, 2]).await;
    }
    assert_eq!(words(&streams, 0).await, expected);
}
