//! Snapshots in files of their own: what is saved is verified to its last bit, and restored as a new store.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/mod.rs"]
mod support;

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster::{Cluster, eventually};
use data::{Consistency, Key, Op, RangeRequest, Store, Txn};
use data_raft::{Options, RaftStore, SavedError, restore, verify};
use support::{close, content, must_put, small};

async fn save(store: &RaftStore, file: &Path) {
    let mut out = std::fs::File::create(file).unwrap();
    for block in store.save().await.unwrap() {
        out.write_all(&block).unwrap();
    }
}

#[tokio::test]
async fn every_flipped_bit_and_every_cut_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    for number in 0..7 {
        must_put(&*store, &format!("key-{number}"), b"a value").await;
    }
    store.lease_grant(Duration::from_secs(60)).await.unwrap();
    let file = folder.path().join("saved");
    save(&store, &file).await;
    let saved = verify(&file).unwrap();
    assert_eq!((saved.keys, saved.leases, saved.revision), (7, 1, store.status().revision));
    assert_eq!(saved.bytes, std::fs::metadata(&file).unwrap().len());
    assert!(saved.at_ms.unwrap() > 0 && saved.cluster.is_none());
    close(store).await;

    let bytes = std::fs::read(&file).unwrap();
    let damaged = folder.path().join("damaged");
    let check = |changed: &[u8], what: &str| {
        std::fs::write(&damaged, changed).unwrap();
        match verify(&damaged) {
            Err(SavedError::Damaged { offset, .. }) => assert!(offset <= bytes.len() as u64, "{what}: at {offset}"),
            // Nothing but a version that is not known: the header's own check comes first.
            other => panic!("{what}: {other:?}"),
        }
    };
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        check(&changed, &format!("bit {bit}"));
    }
    for length in 0..bytes.len() {
        check(&bytes[..length], &format!("cut to {length}"));
    }
    check(&[&bytes[..], b"x"].concat(), "a byte more");
}

#[tokio::test]
async fn what_is_restored_is_served_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    // Blocks of many pairs, and pairs larger than a block.
    for number in 0..300 {
        must_put(&*store, &format!("small-{number:03}"), &[b'x'; 700]).await;
    }
    for number in 0..5 {
        must_put(&*store, &format!("large-{number}"), &vec![b'y'; 200_000]).await;
    }
    let lease = store.lease_grant(Duration::from_millis(300)).await.unwrap().lease;
    let leased = Op::Put { key: Key::try_from("leased").unwrap(), value: "1".into(), lease: Some(lease) };
    store.txn(Txn::default().then(leased)).await.unwrap();
    let file = folder.path().join("saved");
    save(&store, &file).await;
    let (before, revision) = (content(&*store).await, store.status().revision);
    close(store).await;

    let directory = folder.path().join("new");
    let saved = restore(&file, &directory).unwrap();
    assert_eq!((saved.keys, saved.revision), (306, revision));
    let again = restore(&file, &directory);
    assert!(matches!(again, Err(SavedError::NotEmpty { .. })), "{again:?}");
    for round in 0..2 {
        let store = RaftStore::open(small(&directory)).unwrap();
        if round == 0 {
            assert_eq!(content(&*store).await.len(), before.len());
            // It has its whole time again, then it ends.
            eventually("the lease ends", async || {
                content(&*store).await.iter().all(|pair| !pair.starts_with("leased="))
            })
            .await;
            let left: Vec<_> = before.iter().filter(|pair| !pair.starts_with("leased=")).cloned().collect();
            assert_eq!(content(&*store).await, left);
        }
        assert!(must_put(&*store, "after", b"1").await > revision, "revisions only grow");
        assert!(!directory.join("restored").exists());
        close(store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_saved_while_writers_write_is_one_moment_and_not_older_than_what_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    // Both keys change in one transaction; between them lies a value longer than a block.
    must_put(&*store, "between", &vec![b'x'; 200_000]).await;
    let writer = {
        let (store, stop, acknowledged) = (store.clone(), stop.clone(), acknowledged.clone());
        tokio::spawn(async move {
            for number in 1_u64.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let text = number.to_string();
                let (a, z) = (Key::try_from("a").unwrap(), Key::try_from("z").unwrap());
                store.txn(Txn::put(a, text.clone()).then(Op::put(z, text))).await.unwrap();
                acknowledged.store(number, Ordering::Relaxed);
            }
        })
    };
    for round in 0..10 {
        eventually("something new is written", async || acknowledged.load(Ordering::Relaxed) > round * 20).await;
        let before = acknowledged.load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        for block in store.save().await.unwrap() {
            bytes.extend_from_slice(&block);
            // A slow client: writers go on meanwhile.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let (file, directory) = (folder.path().join("saved"), folder.path().join(format!("restored-{round}")));
        std::fs::write(&file, &bytes).unwrap();
        restore(&file, &directory).unwrap();
        let restored = RaftStore::open(small(&directory)).unwrap();
        let pairs = content(&*restored).await;
        let (a, z) = (pairs[0].strip_prefix("a=").unwrap(), pairs[2].strip_prefix("z=").unwrap());
        assert_eq!(a, z, "half of a transaction");
        assert!(a.parse::<u64>().unwrap() >= before, "{a} is older than {before}, which was acknowledged");
        close(restored).await;
    }
    stop.store(true, Ordering::Relaxed);
    writer.await.unwrap();
    close(store).await;
}

#[tokio::test]
async fn a_first_start_that_was_cut_off_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    must_put(&*store, "key", b"value").await;
    let file = folder.path().join("saved");
    save(&store, &file).await;
    close(store).await;
    let directory = folder.path().join("new");
    restore(&file, &directory).unwrap();
    // Cut off while the first snapshot was written,
    std::fs::write(directory.join("snapshot-a"), b"half").unwrap();
    let store = RaftStore::open(small(&directory)).unwrap();
    must_put(&*store, "key", b"newer").await;
    close(store).await;
    // and before what is not needed any more was removed.
    std::fs::copy(&file, directory.join("restored")).unwrap();
    let store = RaftStore::open(small(&directory)).unwrap();
    assert_eq!(content(&*store).await, ["key=newer"]);
    close(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_saved_from_any_member_and_restored_as_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("saved");
    let old = Cluster::start(3, |_: &mut Options| {});
    let leader = old.leader(&[0, 1, 2]).await;
    old.put(leader, "key", "value").await;
    save(old.node((leader + 1) % 3), &file).await;
    let saved = verify(&file).unwrap();
    let names: Vec<_> = saved.members.iter().map(|member| (&*member.name, member.voter)).collect();
    assert_eq!(names, [("n1", true), ("n2", true), ("n3", true)]);
    assert_eq!(saved.cluster.as_deref(), Some("test"));

    let mut new = Cluster::prepare(3, |_: &mut Options| {});
    // Not the first by name: whoever has the state is the one that the others join.
    restore(&file, &new.path(1)).unwrap();
    new.start_node(0);
    new.start_node(2);
    new.start_node(1);
    eventually("all three are voters", async || {
        let members = new.node(1).members().await.members;
        members.len() == 3 && members.iter().all(|member| member.voter)
    })
    .await;
    for place in 0..3 {
        let key = Key::try_from("key").unwrap();
        let read = new.node(place).range(RangeRequest::key(&key), Consistency::Linearizable).await.unwrap();
        assert_eq!(&*read.kvs[0].value, b"value");
        new.put(place, "after", "1").await;
    }
    let ids = |cluster: &[data_raft::Member]| cluster.iter().map(|member| member.id).collect::<Vec<_>>();
    let (old, new) = (old.node(0).members().await.members, new.node(0).members().await.members);
    assert!(ids(&old).iter().all(|id| !ids(&new).contains(id)), "nobody has an old number");
}
