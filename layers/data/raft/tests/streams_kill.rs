//! A process killed in the middle of appending, again and again: every acknowledged entry is there, once, in its place.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/streams.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use data::{Consistency, Retention, Streams};
use data_raft::{Options, RaftStreams, StreamOptions};
use support::{Alone, all, by, name, put};

const DIRECTORY: &str = "SEAWALL_TEST_KILL_DIRECTORY";
const ROUNDS: usize = 6;
const PRODUCERS: usize = 6;

fn open(directory: &Path) -> Alone {
    let retention = Retention { max_bytes: 256 * 1024 * 1024, max_age_ms: None };
    // Small segments of the log and frequent snapshots, so that kills fall into rotations and purges too.
    Alone::open(
        Options { segment_bytes: 32 * 1024, reserve_bytes: 4096, ..Options::new(directory) },
        StreamOptions { snapshot_entries: 150, ..StreamOptions::new(retention) },
    )
}

fn entry(producer: usize, seq: u64) -> String {
    format!("{producer} {seq} ").repeat(200)
}

/// Not a test of its own: the process that the test below starts and kills.
#[test]
fn child_that_appends_until_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let alone = open(Path::new(&directory));
        let known = alone.streams.describe(name("s"), Consistency::Linearizable).await;
        let known = known.map(|known| known.producers).unwrap_or_default();
        let producers: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                let newest = known.get(&name(&format!("p{producer}"))).copied().unwrap_or(0);
                tokio::spawn(produce(alone.streams.clone(), producer, newest.max(1)))
            })
            .collect();
        for producer in producers {
            producer.await.unwrap();
        }
    });
}

/// Appends for ever, the newest one once more first, and prints where each entry went once it is acknowledged.
async fn produce(streams: Arc<RaftStreams>, producer: usize, from: u64) {
    for seq in from.. {
        let (offset, _) = put(&streams, by(&format!("p{producer}"), seq, entry(producer, seq))).await.unwrap();
        // One call, one line, whole or not at all.
        std::io::stdout().lock().write_all(format!("acknowledged {offset} {producer} {seq}\n").as_bytes()).unwrap();
    }
}

fn run_and_kill(directory: &Path, round: usize) -> Vec<(u64, usize, u64)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_appends_until_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let read = |line: String| {
        let words =
            line.split("acknowledged ").nth(1)?.split(' ').map(|word| word.parse().ok()).collect::<Option<Vec<_>>>()?;
        let [offset, producer, seq] = words[..] else { return None };
        Some((offset, usize::try_from(producer).ok()?, seq))
    };
    let mut acknowledged = Vec::new();
    // A different moment each round.
    while acknowledged.len() < 40 + round * 53 {
        acknowledged.extend(read(lines.next().expect("the child dies only when killed")));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    acknowledged.extend(lines.filter_map(read));
    acknowledged
}

#[tokio::test]
async fn every_acknowledged_entry_survives_a_kill_and_none_is_there_twice() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for round in 0..ROUNDS {
        for (offset, producer, seq) in run_and_kill(directory.path(), round) {
            let before = acknowledged.insert((producer, seq), offset);
            assert!(before.is_none_or(|before| before == offset), "{producer} {seq} is at two offsets");
        }
        let alone = open(directory.path());
        let found = all(&alone.streams, "s", Consistency::Linearizable).await;
        for ((producer, seq), offset) in &acknowledged {
            let there = found.get(usize::try_from(*offset).unwrap()).map(|entry| &entry.data[..]);
            assert!(there == Some(entry(*producer, *seq).as_bytes()), "round {round}: {producer} {seq} at {offset}");
        }
        let mut newest = BTreeMap::new();
        for entry in &found {
            let text = std::str::from_utf8(&entry.data).unwrap();
            let mut words = text.split(' ');
            let (producer, seq) = (words.next().unwrap(), words.next().unwrap().parse::<u64>().unwrap());
            let newest = newest.entry(producer).or_insert(0);
            assert_eq!(seq, *newest + 1, "round {round}: {producer}: each once, in its order");
            *newest = seq;
        }
        alone.close().await;
    }
    assert!(acknowledged.len() > ROUNDS * 40);
}
