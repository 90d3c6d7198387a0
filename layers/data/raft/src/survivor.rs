//! A cluster's way back when most of its voters are lost for good: one node that is left is made the only voter, with
//! everything it has, in the store's group and in that of the streams. Offline: the directory must not be in use.
//!
//! Entries that were not known to be committed are kept and count from now on; entries that only the lost ones had are
//! lost. What keeps the old members out, should one come back with its old disk:
//! - the survivor takes a new number, so that whoever calls the old one is refused in the greeting, whatever it knows;
//! - the old numbers are not in the new membership, so that their nodes are told that they were removed;
//! - the new membership stands in the log under a term above any this node has seen, so that a log that ends before it
//!   wins no vote.
//!
//! Deliberately absent: a defence against a majority of the old members that comes back among itself. It is the old
//! cluster, and nobody can tell it; that is why an operator must say that it is gone.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use data::{Command, DEFAULT_QUOTA_BYTES, Key, Txn};
use openraft::BasicNode;
use serde::{Deserialize, Serialize};

use crate::disk::{Disk as _, RealDisk};
use crate::lock;
use crate::log_store;
use crate::members;
use crate::node;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::record::{Kind, Record};
use crate::snapshot;
use crate::streams::following::FOUNDERS;
use crate::streams::{FOLDER, STREAMS_GROUP};
use crate::superblock::{self, Superblock};
use crate::types::Proposal;
use crate::wal::{Done, Order, Wal};
use crate::wire::{self, LogIdV1, MembershipV1, VoteV1};

/// Says what a recovery is about, from before its first change until after its last.
const RECOVERING: &str = "recovering";
/// The file of addresses (`peers/book.rs`).
const BOOK: &str = "peers";
/// Records looked through at once.
const PIECE: u64 = 256;

/// The node that goes on alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Survivor {
    /// Its name.
    pub name: String,
    /// Voters that are left behind, by name.
    pub lost: Vec<String>,
    /// What it holds, the store first.
    pub kept: Vec<Kept>,
}

/// What a group's log ends with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// `store` or `streams`.
    pub group: &'static str,
    /// Of the last entry.
    pub index: u64,
    /// Of the last entry.
    pub term: u64,
}

/// Why nothing was recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is no store, or it is not a cluster's.
    #[error("{directory} holds no member of a cluster: {why}", directory = directory.display())]
    NoMember {
        /// The store's directory.
        directory: PathBuf,
        /// What was found instead.
        why: &'static str,
    },
    /// Anything else: what, and what to do.
    #[error(transparent)]
    Other(#[from] OpenError),
}

/// The intent, so that a recovery that is cut off can be repeated.
#[derive(Clone, Serialize, Deserialize)]
struct RecoveringV1 {
    number: u64,
    /// Name and address, as memberships have them.
    node: String,
    lost: Vec<String>,
}

/// A group's log, open to nobody else.
struct Group {
    directory: PathBuf,
    wal: Wal,
    number: u64,
    membership: MembershipV1,
    last: Option<LogIdV1>,
}

/// Makes the node of a store's directory the only voter; with `carry_out` false, says what that would mean and changes
/// nothing. Can be repeated after it was cut off.
///
/// # Errors
/// The directory is in use, damaged, or no member's.
pub fn recover(directory: &Path, carry_out: bool) -> Result<Survivor, RecoverError> {
    let no_member = |why| RecoverError::NoMember { directory: directory.to_path_buf(), why };
    match Superblock::read(&RealDisk, directory)? {
        None => return Err(no_member("there is no store in it")),
        Some(superblock) if superblock.is_witness() => {
            return Err(no_member("it is a witness's, which has no data to go on with; use another node's"));
        }
        Some(_) => {}
    }
    let _lock = lock::lock_directory(directory, &RealDisk)?;
    let base = Group::open(directory.to_path_buf(), 0)?;
    let folder = directory.join(FOLDER);
    let streams =
        folder.join(superblock::FILE_NAME).exists().then(|| Group::open(folder, STREAMS_GROUP)).transpose()?;
    let intent = match read_intent(directory)? {
        Some(intent) => intent,
        None => intend(&base).map_err(no_member)?,
    };
    let kept = |group, log: &Group| log.last.map(|last| Kept { group, index: last.index, term: last.term });
    let survivor = Survivor {
        name: members::name_and_address(&BasicNode { addr: intent.node.clone() }).0.to_owned(),
        lost: intent.lost.clone(),
        kept: kept("store", &base).into_iter().chain(streams.as_ref().and_then(|log| kept("streams", log))).collect(),
    };
    if !carry_out {
        base.close()?;
        streams.map_or(Ok(()), Group::close)?;
        return Ok(survivor);
    }
    write_intent(directory, &intent)?;
    if let Some(streams) = streams {
        streams.alone(&intent, Vec::new())?;
    }
    base.alone(&intent, vec![founders(&intent)])?;
    // Where the others were: none of them is asked again.
    remove(&directory.join(BOOK))?;
    remove(&directory.join(RECOVERING))?;
    RealDisk.sync_directory(directory).map_err(OpenError::io("flush", directory))?;
    Ok(survivor)
}

/// Refuses a directory whose recovery was cut off.
pub(crate) fn check_finished(directory: &Path) -> Result<(), OpenError> {
    if directory.join(RECOVERING).exists() {
        return Err(OpenError::Unfinished { directory: directory.to_path_buf() });
    }
    Ok(())
}

fn intend(base: &Group) -> Result<RecoveringV1, &'static str> {
    let voters: BTreeSet<u64> = base.membership.configs.iter().flatten().copied().collect();
    let own = base.membership.nodes.iter().find(|(id, _)| *id == base.number);
    let Some((_, node)) = own else {
        return Err("it was never let in, or was removed; use another node's");
    };
    if node.is_empty() {
        return Err("it is of a machine by itself, which nothing keeps from starting");
    }
    if voters == BTreeSet::from([base.number]) {
        return Err("it is the only voter already: start it");
    }
    let name = |node: &str| members::name_and_address(&BasicNode { addr: node.to_owned() }).0.to_owned();
    let others = base.membership.nodes.iter().filter(|(id, _)| voters.contains(id) && *id != base.number);
    Ok(RecoveringV1 {
        number: node::draw_number(),
        node: node.clone(),
        lost: others.map(|(_, node)| name(node)).collect(),
    })
}

/// Names this node as the one that the streams begin with, should they not have begun yet.
fn founders(intent: &RecoveringV1) -> Record {
    let key = Key::try_from(FOUNDERS).expect("the key is short");
    let txn = Txn::put(key, wire::encode(&intent.membership()));
    let payload = Proposal::new(Command::Txn { txn, quota_bytes: DEFAULT_QUOTA_BYTES }).encoded;
    Record { kind: Kind::Commands, term: 0, index: 0, payload }
}

impl RecoveringV1 {
    fn membership(&self) -> MembershipV1 {
        MembershipV1 { configs: vec![vec![self.number]], nodes: vec![(self.number, self.node.clone())] }
    }
}

impl Group {
    fn open(directory: PathBuf, group: u16) -> Result<Self, OpenError> {
        let options = Options { group, ..Options::new(&directory) };
        let superblock = Superblock::read(&RealDisk, &directory)?.ok_or_else(|| {
            OpenError::corrupt(&directory.join(superblock::FILE_NAME), 0, "both copies of the superblock are invalid")
        })?;
        let content = superblock.content().clone();
        let snapshot = content.snapshot.map(|pointer| snapshot::read(&RealDisk, &directory, pointer)).transpose()?;
        let mut membership = snapshot.map(|image| image.membership).unwrap_or_default();
        let wal = Wal::open(&options, superblock)?;
        let mut next = content.purged.map_or(0, |purged| purged.index + 1);
        let end = wal.written_next();
        while next < end {
            let upto = end.min(next + PIECE);
            let records = wal.read(next, upto).map_err(OpenError::io("read the log in", &directory))?;
            for record in records.iter().filter(|record| record.kind == Kind::Membership) {
                // The engine's rule: the newest in the log counts, known to be committed or not.
                membership = wire::decode(&record.payload)
                    .map_err(|error| OpenError::corrupt(&directory, record.index, error.to_string()))?;
            }
            next = upto;
        }
        let last = wal.last();
        Ok(Self { directory, wal, number: content.node_id, membership, last })
    }

    /// Makes the node of this number the group's only member, behind everything the log has. `more` is appended then.
    fn alone(self, intent: &RecoveringV1, more: Vec<Record>) -> Result<(), OpenError> {
        let vote = self.wal.superblock().vote;
        let begun = self.last.is_some() || vote.is_some();
        // A group that has not begun has nothing to keep; it begins with its founders.
        if begun {
            let term = 1 + vote.map_or(0, |vote| vote.term).max(self.last.map_or(0, |last| last.term));
            let payload = wire::encode(&intent.membership()).into();
            let membership = Record { kind: Kind::Membership, term: 0, index: 0, payload };
            let first = self.last.map_or(0, |last| last.index + 1);
            let placed = |(place, record): (u64, Record)| Record { term, index: first + place, ..record };
            let records: Vec<Record> = (0..).zip(std::iter::once(membership).chain(more)).map(placed).collect();
            // What the engine reads back must be an entry to it.
            debug_assert!(records.iter().all(|record| log_store::entry(record).is_ok()));
            let vote = VoteV1 { term, node: intent.number, committed: false };
            self.carry_out(|done| Order::SaveVote { vote, done })?;
            self.carry_out(|done| Order::Append { records, done })?;
        }
        let directory = self.directory.clone();
        self.close()?;
        let superblock = Superblock::read(&RealDisk, &directory)?;
        let changed =
            superblock.map_or(Ok(()), |mut superblock| superblock.update(|content| content.node_id = intent.number));
        changed.map_err(OpenError::io("write the superblock in", &directory))
    }

    fn close(self) -> Result<(), OpenError> {
        self.carry_out(|done| Order::Close { done })?;
        self.wal.join();
        Ok(())
    }

    fn carry_out(&self, order: impl FnOnce(Done) -> Order) -> Result<(), OpenError> {
        let (sender, receiver) = mpsc::channel();
        self.wal.order(order(Box::new(move |result| {
            // Received below.
            let _ = sender.send(result);
        })));
        let done = receiver.recv().unwrap_or_else(|_| Err(io::Error::other("the log's thread died")));
        done.map_err(OpenError::io("write the log in", &self.directory))
    }
}

fn read_intent(directory: &Path) -> Result<Option<RecoveringV1>, OpenError> {
    let path = directory.join(RECOVERING);
    match std::fs::read(&path) {
        Ok(bytes) => {
            let intent = wire::decode(&bytes).map_err(|error| OpenError::corrupt(&path, 0, error.to_string()))?;
            Ok(Some(intent))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpenError::io("read", &path)(error)),
    }
}

fn write_intent(directory: &Path, intent: &RecoveringV1) -> Result<(), OpenError> {
    let path = directory.join(RECOVERING);
    platform::identity::replace_private(&path, &wire::encode(intent)).map_err(OpenError::io("write", &path))
}

fn remove(path: &Path) -> Result<(), OpenError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use data::{Consistency, Key, RangeRequest, Retention, Store as _, Txn};

    use super::{Group, RecoveringV1, recover, write_intent};
    use crate::streams::{FOLDER, STREAMS_GROUP, StreamOptions};
    use crate::{MemoryNetwork, OpenError, Options, PeerOptions, Peers, RaftStore, Transport};

    /// The only founder of a cluster.
    fn options(directory: &Path) -> Options {
        let options = PeerOptions {
            cluster: "test".into(),
            name: "n1".into(),
            advertise: "n1".into(),
            join: Vec::new(),
            founders: vec!["n1".into()],
            voter: true,
            witness: false,
            agent: false,
        };
        let transport = MemoryNetwork::default().attach("n1");
        let make = move || -> std::io::Result<Arc<dyn Transport>> { Ok(Arc::new(transport)) };
        let peers = Some(Peers::start(options, make).unwrap());
        Options { peers, segment_bytes: 8192, reserve_bytes: 0, ..Options::new(directory) }
    }

    async fn serving(store: &RaftStore) {
        let until = Instant::now() + Duration::from_secs(20);
        while store.status().not_serving.is_some() {
            assert!(Instant::now() < until, "{:?}", store.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_recovery_that_was_cut_off_is_noticed_and_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let store = RaftStore::open(options(directory.path())).unwrap();
        serving(&store).await;
        let key = Key::try_from("key").unwrap();
        store.txn(Txn::put(key.clone(), "value")).await.unwrap();
        let retention = Retention { max_bytes: 1 << 20, max_age_ms: None };
        drop(store.open_streams(StreamOptions::new(retention)).unwrap());
        drop(store);

        let intent = RecoveringV1 { number: 77, node: "n1@n1".into(), lost: vec!["n2".into()] };
        write_intent(directory.path(), &intent).unwrap();
        // Cut off between the two groups.
        let streams = Group::open(directory.path().join(FOLDER), STREAMS_GROUP).unwrap();
        streams.alone(&intent, Vec::new()).unwrap();
        let refused = RaftStore::open(options(directory.path())).map(drop);
        assert!(matches!(refused, Err(OpenError::Unfinished { .. })), "{refused:?}");

        assert_eq!(recover(directory.path(), true).unwrap().lost, ["n2"]);
        let store = RaftStore::open(options(directory.path())).unwrap();
        serving(&store).await;
        let read = store.range(RangeRequest::key(&key), Consistency::Linearizable).await.unwrap();
        assert_eq!(&*read.kvs[0].value, b"value");
        let members = store.members().await.members;
        assert_eq!((members.len(), members[0].id), (1, 77));
        drop(store.open_streams(StreamOptions::new(retention)).unwrap());
    }
}
