//! A process killed in the middle of writing, again and again: every acknowledged write is there, none by half.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use data::{Op, Store, Txn};
use data_raft::{Options, RaftStore};
use support::{content, key};

const DIRECTORY: &str = "SEAWALL_TEST_KILL_DIRECTORY";
const ROUND: &str = "SEAWALL_TEST_KILL_ROUND";
const ROUNDS: usize = 8;
const WRITERS: usize = 8;

fn options(directory: &Path) -> Options {
    // Small segments and frequent snapshots, so that kills fall into rotations and purges too.
    Options { segment_bytes: 16 * 1024, snapshot_entries: 150, reserve_bytes: 4096, ..Options::new(directory) }
}

/// Not a test of its own: the process that the test below starts and kills.
#[test]
fn child_that_writes_until_killed() {
    let (Ok(directory), Ok(round)) = (std::env::var(DIRECTORY), std::env::var(ROUND)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = RaftStore::open(options(Path::new(&directory))).unwrap();
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), format!("{round}-{writer}")))).collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

/// Writes pairs of keys for ever and prints the name of each pair once it is acknowledged.
async fn write(store: Arc<RaftStore>, writer: String) {
    for number in 0_u64.. {
        let name = format!("{writer}-{number}");
        let value = name.repeat(10);
        let both =
            Txn::put(key(&format!("left/{name}")), value.clone()).then(Op::put(key(&format!("right/{name}")), value));
        assert!(store.txn(both).await.unwrap().is_committed());
        // One call, one line, whole or not at all.
        std::io::stdout().lock().write_all(format!("acknowledged {name}\n").as_bytes()).unwrap();
    }
}

fn run_and_kill(directory: &Path, round: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_writes_until_killed", "--nocapture"])
        .env(DIRECTORY, directory)
        .env(ROUND, round.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut acknowledged = Vec::new();
    let name_of = |line: String| line.split("acknowledged ").nth(1).map(ToOwned::to_owned);
    // A different moment each round.
    while acknowledged.len() < 40 + round * 37 {
        let line = lines.next().expect("the child dies only when killed");
        acknowledged.extend(name_of(line));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had printed before it died was acknowledged, too; a last line without an end does not count.
    acknowledged.extend(lines.filter_map(name_of));
    acknowledged
}

#[tokio::test]
async fn every_acknowledged_write_survives_a_kill_and_none_is_there_by_half() {
    let directory = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        acknowledged.extend(run_and_kill(directory.path(), round));
        let store = RaftStore::open(options(directory.path())).unwrap();
        let found: std::collections::BTreeSet<String> = content(&*store).await.into_iter().collect();
        for name in &acknowledged {
            for side in ["left", "right"] {
                let pair = format!("{side}/{name}={}", name.repeat(10));
                assert!(found.contains(&pair), "round {round}: lost {side}/{name}");
            }
        }
        let halves =
            |side: &str| found.iter().filter_map(|pair| pair.strip_prefix(side).map(ToOwned::to_owned)).collect();
        let (left, right): (Vec<String>, Vec<String>) = (halves("left/"), halves("right/"));
        assert_eq!(left, right, "round {round}: a transaction is there by half");
        store.close().await.unwrap();
    }
    assert!(acknowledged.len() > ROUNDS * 40);
}
