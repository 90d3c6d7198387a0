//! The log on its own: what a power cut may leave of a batch, truncation, group commit, reading back.

use std::path::Path;
use std::sync::mpsc;

use data::Waits;
use tokio::time::Instant;

use super::{Order, Wal};
use crate::open_error::OpenError;
use crate::options::Options;
use crate::record::{Kind, Place, Record, SEGMENT_HEADER, SegmentHeader, encode};
use crate::superblock::{Superblock, SuperblockV1};
use crate::way::LARGE;
use crate::wire::{LogIdV1, VoteV1};

const STORE_ID: [u8; 16] = [7; 16];

fn options(directory: &Path) -> Options {
    Options { segment_bytes: 8192, ..Options::new(directory) }
}

fn superblock(options: &Options, newest_segment: u64) -> Superblock {
    let content = SuperblockV1 {
        store_id: STORE_ID,
        node_id: 1,
        group: 0,
        vote: None,
        purged: None,
        snapshot: None,
        newest_segment,
        clean_end: None,
    };
    Superblock::create(&*options.disk, &options.directory, false, content).unwrap()
}

fn open(options: &Options) -> Result<Wal, OpenError> {
    let superblock = Superblock::read(&*options.disk, &options.directory)?.unwrap();
    Wal::open(options, superblock)
}

fn record(index: u64) -> Record {
    Record { kind: Kind::Command, term: 1, index, payload: format!("payload {index}").into_bytes().into() }
}

fn append(wal: &Wal, records: Vec<Record>) -> std::io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    wal.order(Order::Append { records, done: Box::new(move |result| sender.send(result).unwrap()) });
    receiver.recv().unwrap()
}

fn close(wal: &Wal) {
    let (sender, receiver) = mpsc::channel();
    wal.order(Order::Close { done: Box::new(move |result| sender.send(result).unwrap()) });
    receiver.recv().unwrap().unwrap();
    wal.join();
}

/// A segment with records 0..4: 0 and 1 flushed one by one, 2 to 4 written as one batch. Returns where each begins.
fn write_segment(options: &Options) -> (Vec<u8>, Vec<usize>) {
    let (header, seed) = SegmentHeader { group: 0, sequence: 1, previous: 0, store_id: STORE_ID }.encode();
    let mut bytes = header.to_vec();
    let mut begins = Vec::new();
    let mut previous = 0;
    let mut synced = SEGMENT_HEADER;
    for index in 0..5 {
        begins.push(bytes.len());
        if index <= 2 {
            synced = bytes.len();
        }
        let place = Place { seed, group: 0, previous, synced: u32::try_from(synced).unwrap() };
        previous = encode(&record(index), place, &mut bytes);
    }
    begins.push(bytes.len());
    bytes.resize(8192, 0);
    std::fs::write(options.directory.join("wal-0000000000000001"), &bytes).unwrap();
    (bytes, begins)
}

/// Opens after `damage` and returns how many records are left.
fn left_after(damage: impl FnOnce(&mut [u8], &[usize])) -> Result<u64, OpenError> {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    superblock(&options, 1);
    let (mut bytes, begins) = write_segment(&options);
    damage(&mut bytes, &begins);
    std::fs::write(directory.path().join("wal-0000000000000001"), &bytes).unwrap();
    let wal = open(&options)?;
    let left = wal.written_next();
    assert_eq!(wal.read(0, 99).unwrap(), (0..left).map(record).collect::<Vec<_>>());
    // The log goes on where it was cut, and what was cut never comes back.
    append(&wal, vec![Record { term: 2, ..record(left) }]).unwrap();
    close(&wal);
    let wal = open(&options)?;
    assert_eq!(wal.last(), Some(LogIdV1 { term: 2, index: left }));
    close(&wal);
    Ok(left)
}

#[test]
fn an_unflushed_batch_may_lose_any_part_of_itself() {
    assert_eq!(left_after(|_, _| {}).unwrap(), 5);
    // A power cut wrote the later pages of the batch and not the first: nothing of it was acknowledged.
    assert_eq!(left_after(|bytes, begins| bytes[begins[2]..begins[3]].fill(0)).unwrap(), 2);
    assert_eq!(left_after(|bytes, begins| bytes[begins[3]..begins[4]].fill(0)).unwrap(), 3);
    assert_eq!(left_after(|bytes, begins| bytes[begins[4] + 5] ^= 1).unwrap(), 4);
}

#[test]
fn damage_to_what_was_flushed_is_refused_with_its_place() {
    for (damaged, offset) in [(0, SEGMENT_HEADER as u64), (1, 0)] {
        let mut place = offset;
        let refused = left_after(|bytes, begins| {
            place = begins[damaged] as u64;
            bytes[begins[damaged] + 20] ^= 1;
        });
        let Err(OpenError::Corrupt { offset, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(offset, place);
    }
    // Even when its length is what is damaged, so that what follows must be searched for.
    let refused = left_after(|bytes, begins| bytes[begins[1] + 8] = 0xff);
    assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");
    // And when everything up to the very last record is gone.
    let refused = left_after(|bytes, begins| bytes[begins[1]..begins[4]].fill(0xee));
    assert!(matches!(refused, Err(OpenError::Corrupt { .. })), "{refused:?}");
}

#[test]
fn a_whole_record_that_does_not_continue_the_chain_is_not_taken() {
    let left = left_after(|bytes, begins| {
        // As a piece of an older tail would look: valid in this segment, but not after this record.
        let seed = u32::from_le_bytes(bytes[60..64].try_into().unwrap());
        let synced = u32::try_from(begins[2]).unwrap();
        let mut stray = Vec::new();
        encode(&record(5), Place { seed, group: 0, previous: 12345, synced }, &mut stray);
        bytes[begins[5]..begins[5] + stray.len()].copy_from_slice(&stray);
    });
    assert_eq!(left.unwrap(), 5);
}

#[test]
fn either_copy_of_the_superblock_alone_holds_the_newest_vote() {
    for damaged in [100, 4096 + 100] {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let mut superblock = superblock(&options, 0);
        for term in 1..4 {
            superblock.update(|content| content.vote = Some(VoteV1 { term, node: 1, committed: true })).unwrap();
        }
        let path = directory.path().join("superblock");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[damaged] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let read = Superblock::read(&*options.disk, directory.path()).unwrap().unwrap();
        assert_eq!(read.content().vote, Some(VoteV1 { term: 3, node: 1, committed: true }), "damage at {damaged}");
    }
}

#[test]
fn a_record_of_an_unknown_kind_or_version_halts() {
    for (kind, version) in [(99, 1), (1, 99)] {
        let refused = left_after(|bytes, begins| {
            let (begin, end) = (begins[4], begins[5]);
            bytes[begin + 16] = kind;
            bytes[begin + 17] = version;
            let seed = u32::from_le_bytes(bytes[60..64].try_into().unwrap());
            let mut hasher = crc32fast::Hasher::new_with_initial(seed);
            hasher.update(&bytes[begin + 4..end]);
            bytes[begin..begin + 4].copy_from_slice(&hasher.finalize().to_le_bytes());
        });
        let Err(error @ OpenError::UnknownFormat { .. }) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains(&format!("kind {kind} version {version}")), "{error}");
    }
}

#[test]
fn truncation_and_purge_hold_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let wal = Wal::open(&options, superblock(&options, 0)).unwrap();
    append(&wal, (0..50).map(record).collect()).unwrap();
    let (sender, receiver) = mpsc::channel();
    let done = || {
        let sender = sender.clone();
        Box::new(move |result: std::io::Result<()>| sender.send(result).unwrap())
    };
    wal.order(Order::TruncateAfter { last: Some(LogIdV1 { term: 1, index: 29 }), done: done() });
    wal.order(Order::SaveVote { vote: VoteV1 { term: 2, node: 3, committed: false }, done: done() });
    wal.order(Order::Purge { upto: LogIdV1 { term: 1, index: 9 }, done: done() });
    for _ in 0..3 {
        receiver.recv().unwrap().unwrap();
    }
    append(&wal, vec![Record { term: 2, ..record(30) }]).unwrap();
    for reopened in [false, true] {
        let wal = if reopened { &open(&options).unwrap() } else { &wal };
        let read: Vec<_> = wal.read(0, 99).unwrap().iter().map(|record| (record.term, record.index)).collect();
        let want: Vec<_> = (10..30).map(|index| (1, index)).chain([(2, 30)]).collect();
        assert_eq!(read, want, "reopened: {reopened}");
        assert_eq!(wal.superblock().vote, Some(VoteV1 { term: 2, node: 3, committed: false }));
        close(wal);
    }
}

#[test]
fn appends_that_wait_together_share_a_flush() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path());
    let wal = Wal::open(&options, superblock(&options, 0)).unwrap();
    let (sender, receiver) = mpsc::channel();
    for index in 0..100 {
        let sender = sender.clone();
        let done = Box::new(move |result: std::io::Result<()>| sender.send((index, result)).unwrap());
        wal.order(Order::Append { records: vec![record(index)], done });
    }
    for want in 0..100 {
        let (index, result) = receiver.recv().unwrap();
        result.unwrap();
        assert_eq!(index, want, "answers come in order");
    }
    let metrics = wal.metrics();
    assert_eq!(metrics.appended_records, 100);
    assert!(metrics.fsync_micros.count() < 100, "{} flushes", metrics.fsync_micros.count());
    close(&wal);
}

#[test]
fn files_of_purged_segments_go_one_by_one_though_nothing_else_is_ordered() {
    let folder = tempfile::tempdir().unwrap();
    let options = options(folder.path());
    superblock(&options, 0);
    let wal = open(&options).unwrap();
    let files = || {
        let names = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("wal-")).count()
    };
    for index in 0..2_000 {
        append(&wal, vec![record(index)]).unwrap();
    }
    let before = files();
    assert!(before > 5, "{before}");
    let (sender, receiver) = mpsc::channel();
    let upto = LogIdV1 { term: 1, index: 1_999 };
    wal.order(Order::Purge { upto, done: Box::new(move |result| sender.send(result).unwrap()) });
    receiver.recv().unwrap().unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while files() > 1 {
        assert!(std::time::Instant::now() < until, "{} files are left", files());
        std::thread::yield_now();
    }
    close(&wal);
    drop(wal);
    assert_eq!(open(&options).unwrap().last(), Some(upto));
}

#[test]
fn large_entries_under_way_wait_for_others_and_for_no_small_one() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 1 << 20, ..options(directory.path()) };
    superblock(&options, 0);
    let wal = open(&options).unwrap();
    let (large, small) = (vec![b'x'; LARGE], vec![b'x'; LARGE - 1]);
    let mut indexes = 0..;
    let mut sized = |payload: &[u8]| {
        let index = indexes.next().unwrap();
        Record { kind: Kind::Command, term: 1, index, payload: payload.to_vec().into() }
    };
    wal.way().give(Waits::UnderWay);
    let until = wal.way().held_until();
    append(&wal, vec![sized(&large), sized(&large)]).unwrap();
    assert!(until.is_none_or(|until| until <= Instant::now()), "they waited");
    // Small ones, and with them what is before them, go while others have the way; a slow machine may be too late to see it.
    let seen = (0..100).any(|_| {
        wal.way().give(Waits::UnderWay);
        let (sender, answered) = mpsc::channel();
        wal.order(Order::Append {
            records: vec![sized(&large)],
            done: Box::new(move |result| sender.send(result).unwrap()),
        });
        append(&wal, vec![sized(&small)]).unwrap();
        answered.recv().unwrap().unwrap();
        wal.way().held_until().is_some()
    });
    assert!(seen, "a small entry waited as long as a large one");
    // Where something is about to be done with a stream, they go on.
    let seen = (0..100).any(|_| {
        wal.way().give(Waits::Coming);
        append(&wal, vec![sized(&large)]).unwrap();
        wal.way().given_until().is_some()
    });
    assert!(seen, "what was under way waited");
    close(&wal);
}
