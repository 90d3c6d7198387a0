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
use data::{
    Append, Appended, Consistency, Key, MIN_MAX_BYTES, Name, Op, RangeRequest, Retention, Store, StreamError,
    Streams as _, Txn,
};
use data_raft::{Options, RaftStore, RaftStreams, SavedError, StreamOptions, restore, verify};
use support::{close, content, must_put, small};

async fn save(store: &RaftStore, file: &Path) {
    let mut out = std::fs::File::create(file).unwrap();
    for block in store.save().await.unwrap() {
        out.write_all(&block.unwrap()).unwrap();
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
            bytes.extend_from_slice(&block.unwrap());
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

fn streams(store: &RaftStore, segment_bytes: Option<u64>) -> Arc<RaftStreams> {
    let mut options = StreamOptions::new(Retention { max_bytes: segment_bytes.unwrap_or(1 << 30), max_age_ms: None });
    options.snapshot_entries = 50;
    store.open_streams(options).unwrap()
}

fn named(name: &str) -> Name {
    Name::new(name).unwrap()
}

async fn append(streams: &RaftStreams, stream: &str, seq: u64, entry: Vec<u8>) -> Appended {
    // Sequences begin at 1.
    let producer = Some((named("p"), seq + 1));
    let append = Append { stream: named(stream), entry: entry.into(), producer, epoch: None };
    streams.append(append).await.unwrap()
}

async fn all_entries(streams: &RaftStreams, stream: &str, from: u64) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut next = from;
    loop {
        let read = streams.read(named(stream), next, 1000, Consistency::Linearizable).await.unwrap();
        found.extend(read.entries.iter().map(|entry| entry.data.to_vec()));
        next += read.entries.len() as u64;
        if next == read.next {
            return found;
        }
    }
}

#[tokio::test]
async fn streams_come_along_with_entries_cursors_and_what_producers_have_sent() {
    let folder = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    let before = streams(&store, None);
    for seq in 0..120 {
        append(&before, "ledger", seq, format!("entry {seq}").into_bytes()).await;
    }
    append(&before, "large", 0, vec![7; 500_000]).await;
    before.commit(named("ledger"), named("c"), 80).await.unwrap();
    before.seal(named("ledger"), 9).await.unwrap();
    let file = folder.path().join("saved");
    save(&store, &file).await;
    // What comes later is not in it.
    append(&before, "large", 1, b"later".to_vec()).await;
    before.close().await.unwrap();
    close(store).await;

    let directory = folder.path().join("new");
    let saved = restore(&file, &directory).unwrap();
    assert_eq!((saved.streams, saved.entries), (Some(2), 121));
    for round in 0..2 {
        let store = RaftStore::open(small(&directory)).unwrap();
        let after = streams(&store, None);
        let ledger = all_entries(&after, "ledger", 0).await;
        assert_eq!(ledger[..120], (0..120).map(|seq| format!("entry {seq}").into_bytes()).collect::<Vec<_>>());
        assert_eq!(all_entries(&after, "large", 0).await, [vec![7; 500_000]]);
        assert_eq!(after.cursor(named("ledger"), named("c")).await.unwrap(), 80);
        if round == 0 {
            let again = Append {
                stream: named("large"),
                entry: vec![7; 500_000].into(),
                producer: Some((named("p"), 1)),
                epoch: None,
            };
            assert!(after.append(again).await.unwrap().repeated, "what a producer has sent is known");
            let old = Append { stream: named("ledger"), entry: "x".into(), producer: None, epoch: Some(8) };
            assert!(
                matches!(after.append(old).await, Err(StreamError::Fenced { epoch: 9 })),
                "a sealed term stays sealed"
            );
            let new = Append { stream: named("ledger"), entry: "new".into(), producer: None, epoch: Some(9) };
            assert_eq!(after.append(new).await.unwrap().offset, 120);
        } else {
            assert_eq!(ledger[120], b"new");
        }
        after.close().await.unwrap();
        close(store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_retention_removes_while_it_is_saved_is_in_it_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    let kept = MIN_MAX_BYTES;
    let before = streams(&store, Some(kept));
    let entry = |seq: u64| format!("{seq:08}").repeat(2000).into_bytes();
    let mut seq = 0;
    let mut fill = async |bytes: u64| {
        for _ in 0..bytes / 16_000 + 1 {
            append(&before, "ledger", seq, entry(seq)).await;
            seq += 1;
        }
    };
    fill(kept * 2).await;
    let mut blocks = store.save().await.unwrap();
    let mut bytes = blocks.next().unwrap().unwrap();
    // Nothing of the segments has been read yet, and all that there are go.
    let first = before.describe(named("ledger"), Consistency::Linearizable).await.unwrap().next;
    fill(kept * 2).await;
    before.snapshot().await.unwrap();
    assert!(before.describe(named("ledger"), Consistency::Linearizable).await.unwrap().first >= first);
    for block in blocks {
        bytes.extend_from_slice(&block.unwrap());
    }
    let file = folder.path().join("saved");
    std::fs::write(&file, &bytes).unwrap();
    let directory = folder.path().join("new");
    let saved = restore(&file, &directory).unwrap();
    let restored = RaftStore::open(small(&directory)).unwrap();
    let after = streams(&restored, Some(kept));
    let info = after.describe(named("ledger"), Consistency::Linearizable).await.unwrap();
    assert_eq!((info.next, info.next - info.first), (first, saved.entries));
    let found = all_entries(&after, "ledger", info.first).await;
    assert_eq!(found, (info.first..first).map(entry).collect::<Vec<_>>());
    // The next snapshot takes away what nobody reads any more.
    before.snapshot().await.unwrap();
    after.close().await.unwrap();
    before.close().await.unwrap();
    close(restored).await;
    close(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_clusters_streams_are_everybodys() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("saved");
    let store = RaftStore::open(small(&folder.path().join("store"))).unwrap();
    let before = streams(&store, None);
    append(&before, "ledger", 0, b"first".to_vec()).await;
    save(&store, &file).await;
    before.close().await.unwrap();
    close(store).await;

    let mut new = Cluster::prepare(3, |_: &mut Options| {});
    restore(&file, &new.path(1)).unwrap();
    let mut opened = Vec::new();
    for place in 0..3 {
        new.start_node(place);
        opened.push(streams(new.node(place), None));
    }
    eventually("all three have the streams", async || {
        opened.iter().all(|streams| streams.has_the_stores_members())
            && new.node(1).members().await.members.iter().filter(|member| member.voter).count() == 3
    })
    .await;
    for (seq, streams) in (1..).zip(&opened) {
        assert_eq!(append(streams, "ledger", seq, format!("{seq}").into_bytes()).await.offset, seq);
    }
    for streams in &opened {
        assert_eq!(all_entries(streams, "ledger", 0).await, [&b"first"[..], b"1", b"2", b"3"]);
    }
    for streams in opened {
        streams.close().await.unwrap();
    }
}
