//! Streams beside stores, alone and in a cluster in one process.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use data::{Append, Appended, Consistency, Name, Retention, Store, StreamEntry, StreamError, Streams};
use data_raft::{Options, RaftStore, RaftStreams, StreamOptions};

use super::cluster::{Cluster, PATIENCE};

pub const RETENTION: Retention = Retention { max_bytes: 64 * 1024 * 1024, max_age_ms: None };

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn by(producer: &str, seq: u64, entry: impl Into<Bytes>) -> Append {
    Append { stream: name("s"), producer: Some((name(producer), seq)), epoch: None, entry: entry.into() }
}

pub async fn put(streams: &RaftStreams, append: Append) -> Result<(u64, bool), StreamError> {
    streams.append(append).await.map(|Appended { offset, repeated, .. }| (offset, repeated))
}

/// Everything that a stream holds, read in pieces; while nobody leads it is asked again.
pub async fn all(streams: &RaftStreams, stream: &str, consistency: Consistency) -> Vec<StreamEntry> {
    let mut entries: Vec<StreamEntry> = Vec::new();
    let described = served(async || streams.describe(name(stream), consistency).await).await;
    let mut from = described.first;
    loop {
        let read = served(async || streams.read(name(stream), from, 1000, consistency).await).await;
        if read.entries.is_empty() {
            return entries;
        }
        for entry in read.entries {
            assert_eq!(entry.offset, from, "no gap");
            from += 1;
            entries.push(entry);
        }
    }
}

async fn served<T>(ask: impl AsyncFn() -> Result<T, StreamError>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(StreamError::NotServing(reason)) => assert!(Instant::now() < until, "never served: {reason}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// One store and its streams.
pub struct Alone {
    pub store: Arc<RaftStore>,
    pub streams: Arc<RaftStreams>,
}

impl Alone {
    pub fn open(options: Options, streams: StreamOptions) -> Self {
        let store = RaftStore::open(options).unwrap();
        let streams = store.open_streams(streams).unwrap();
        Self { store, streams }
    }

    pub async fn close(self) {
        self.streams.close().await.unwrap();
        self.store.close().await.unwrap();
        tokio::task::spawn_blocking(move || drop(self)).await.unwrap();
    }
}

/// A cluster whose nodes have streams, too.
pub struct Together {
    pub cluster: Cluster,
    pub streams: Vec<Option<Arc<RaftStreams>>>,
    options: StreamOptions,
}

impl Together {
    pub async fn start(count: usize, options: StreamOptions, adjust: impl Fn(&mut Options) + 'static) -> Self {
        Self::over(Cluster::start(count, adjust), options)
    }

    /// Opens streams on every node of a cluster.
    pub fn over(cluster: Cluster, options: StreamOptions) -> Self {
        let streams =
            (0..cluster.nodes.len()).map(|place| Some(cluster.node(place).open_streams(options.clone()).unwrap()));
        let streams = streams.collect();
        Self { cluster, streams, options }
    }

    pub fn node(&self, place: usize) -> &Arc<RaftStreams> {
        self.streams[place].as_ref().expect("the node runs")
    }

    pub async fn stop(&mut self, place: usize) {
        let streams = self.streams[place].take().expect("the node runs");
        streams.close().await.unwrap();
        tokio::task::spawn_blocking(move || drop(streams)).await.unwrap();
        self.cluster.stop_node(place).await;
    }

    pub fn start_node(&mut self, place: usize) {
        self.cluster.start_node(place);
        if place == self.streams.len() {
            self.streams.push(None);
        }
        self.streams[place] = Some(self.cluster.node(place).open_streams(self.options.clone()).unwrap());
    }

    /// Waits until one of these leads the streams and all of them serve.
    pub async fn leader(&self, among: &[usize]) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            if among.iter().all(|place| self.node(*place).not_serving().is_none())
                && let Some(leader) = among.iter().find(|place| self.node(**place).leads())
            {
                return *leader;
            }
            let why: Vec<_> = among.iter().map(|place| self.node(*place).not_serving()).collect();
            assert!(Instant::now() < until, "nobody leads the streams: {why:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
