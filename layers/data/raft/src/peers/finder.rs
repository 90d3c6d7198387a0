//! How a node finds the others and becomes a member: it greets every address it was given, and members it knows. If all founders have new
//! directories, the first of them by name forms the cluster; if somebody is a member already, this node asks to be let in.
//! A founder never begins before it has heard every other one say that its directory is new: one that cannot be heard
//! may belong to a cluster that exists.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::BasicNode;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::Instant;

use super::book::Entry;
use super::frame::Kind as Asked;
use super::message::{AdmitV1, MembersV1, payload};
use super::{CallError, Inner, Lane, Peers};
use crate::members;
use crate::record::{Kind, Record};
use crate::replica::Replica;
use crate::wal::lock;
use crate::wire::{self, MembershipV1};

/// Between two looks while this node is nobody's member.
const EAGER: Duration = Duration::from_millis(200);
/// Between two looks afterwards: nodes that have moved tell it themselves.
const CALM: Duration = Duration::from_secs(30);
/// The same for one that may have to ask for its vote again.
const SOON: Duration = Duration::from_secs(1);
/// Longest wait to be let in; the log has to be taken over meanwhile.
const ADMISSION: Duration = Duration::from_secs(600);
/// Entries of the log that are looked at at once.
const PIECE: u64 = 64;

/// Until the node stops.
pub(crate) async fn find(inner: Weak<Inner>) {
    let mut greeted: Option<Instant> = None;
    loop {
        let Some(inner) = inner.upgrade() else { return };
        let Some(group) = inner.group(0) else { return };
        if !inner.member.load(Ordering::Acquire) && is_member(&group.replica).await {
            inner.member.store(true, Ordering::Release);
        }
        if greeted.is_none_or(|at| at.elapsed() >= CALM) {
            greet_all(&inner, &group.replica).await;
            greeted = None;
        }
        let member = inner.member.load(Ordering::Acquire);
        let unlisted = member && is_unlisted(&group.replica, inner.identity().id);
        inner.unlisted.store(unlisted, Ordering::Release);
        let pause = match member {
            true if unlisted => {
                ask_again(&inner).await;
                SOON
            }
            true if is_half_admitted(&inner, &group.replica) => {
                ask_again(&inner).await;
                EAGER
            }
            // Beside a witness a node may lose its vote: it asks for it again as soon as it knows.
            true if members::list(&group.replica).members.iter().any(|member| !member.has_data()) => {
                greeted = greeted.or_else(|| Some(Instant::now()));
                SOON
            }
            true => CALM,
            false => {
                become_member(&inner, &group.replica).await;
                EAGER
            }
        };
        drop((inner, group));
        tokio::time::sleep(pause).await;
    }
}

/// It has a vote or a log: it was in a cluster, whether it still is or not.
async fn is_member(replica: &Replica) -> bool {
    replica.raft.is_initialized().await.unwrap_or(false)
}

/// It was given a vote to remember, or the beginning of the log, and the leader went before it came to the entry that lets
/// this node in: the others may never have heard of it. Whoever was listed once and is not any more was removed, and does not ask.
fn is_unlisted(replica: &Replica, own: u64) -> bool {
    let (purged, last) = {
        let metrics = replica.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.membership_config.membership().get_node(&own).is_some() {
            return false;
        }
        (metrics.purged.map_or(0, |purged| purged.index + 1), metrics.last_log_index.map_or(0, |last| last + 1))
    };
    let lists_it = |record: &Record| {
        let members = (record.kind == Kind::Membership).then(|| wire::decode::<MembershipV1>(&record.payload).ok());
        members.flatten().is_some_and(|members| members.nodes.iter().any(|(id, _)| *id == own))
    };
    let mut from = purged;
    while from < last {
        let to = last.min(from + PIECE);
        // What cannot be read may say that it was.
        if replica.shared.wal.read(from, to).map_or(true, |records| records.iter().any(lists_it)) {
            return false;
        }
        from = to;
    }
    true
}

/// It was given the log, and the leader went before it had its vote, or before the store it replaces was taken out:
/// nobody else would think of it.
fn is_half_admitted(inner: &Inner, replica: &Replica) -> bool {
    let members = members::list(replica).members;
    let own = inner.identity().id;
    let Some(here) = members.iter().find(|member| member.id == own) else { return false };
    let has_predecessor = members.iter().any(|member| member.id != own && member.name == here.name);
    (inner.options.voter && !here.voter) || has_predecessor
}

async fn ask_again(inner: &Arc<Inner>) {
    let spoken = lock(&inner.book).spoken();
    let is_other = |(id, entry): &&(u64, Entry)| entry.member && *id != inner.identity().id;
    for member in spoken.iter().filter(is_other) {
        if ask(inner, member).await {
            return;
        }
    }
}

/// Those it was given, and every member where it was last heard of: a node that has moved is so known to all at once, and
/// not only to the leader.
async fn greet_all(inner: &Arc<Inner>, replica: &Replica) {
    let members = members::list(replica).members;
    let others = members.iter().filter(|member| member.id != inner.identity().id);
    let known: Vec<String> = others.filter_map(|member| lock(&inner.book).address(member.id)).collect();
    let addresses: BTreeSet<&String> = inner.options.join.iter().chain(&known).collect();
    let others = addresses.into_iter().filter(|address| **address != inner.options.advertise);
    let greetings = others.map(|address| async {
        match inner.dial_address(address, None).await {
            // The greeting itself was all: who it is stands in the book.
            // What went wrong has been noted where it did.
            Ok(_) | Err(_) => {}
        }
    });
    join_all(greetings).await;
}

async fn become_member(inner: &Arc<Inner>, replica: &Replica) {
    let options = &inner.options;
    let spoken = lock(&inner.book).spoken();
    // All of them: one may have been left behind by a recovery, and leads nobody.
    let mut is_alone = true;
    for member in spoken.iter().filter(|(_, entry)| entry.member) {
        is_alone = false;
        if ask(inner, member).await {
            return;
        }
    }
    if !is_alone {
        return;
    }
    let first = options.founders.iter().min();
    if first != Some(&options.name) {
        return;
    }
    let founder = |name: &String| {
        if *name == options.name {
            return Some((inner.identity().id, members::node(name, &options.advertise, options.witness)));
        }
        let (id, entry) = spoken.iter().find(|(_, entry)| *entry.name == **name)?;
        Some((*id, members::node(name, &entry.address, entry.witness)))
    };
    let Some(founders) = options.founders.iter().map(founder).collect::<Option<BTreeMap<u64, BasicNode>>>() else {
        return;
    };
    tracing::info!(founders = options.founders.join(", "), "all founders are here and new: the cluster is formed");
    if let Err(error) = replica.raft.initialize(founders).await {
        tracing::error!(%error, "the cluster could not be formed");
    }
}

/// Asks a member, then the leader it names, to be let in; whether that was done.
async fn ask(inner: &Arc<Inner>, (id, member): &(u64, Entry)) -> bool {
    let options = &inner.options;
    let request = AdmitV1 {
        name: options.name.clone(),
        id: inner.identity().id,
        advertise: options.advertise.clone(),
        voter: options.voter,
    };
    let peers = Peers(Arc::clone(inner));
    let request = payload(&request);
    let mut asked = *id;
    for _ in 0..2 {
        let answer = peers.call(asked, Lane::Control, Asked::Admit, 0, request.clone(), ADMISSION).await;
        match answer {
            Ok(bytes) => {
                if let Ok(members) = wire::decode::<MembersV1>(&bytes) {
                    tracing::info!(members = members.members.len(), "let into the cluster");
                }
                return true;
            }
            Err(CallError::Failed(data::StoreError::NotServing(data::NotServing::NotLeader { leader })))
                if leader != asked && lock(&inner.book).address(leader).is_some() =>
            {
                asked = leader;
            }
            Err(error) => {
                tracing::debug!(node = %member.name, %error, "not let in yet");
                return false;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use data::Store as _;

    use crate::disk::RealDisk;
    use crate::options::Options;
    use crate::peers::{PeerOptions, Peers};
    use crate::store::RaftStore;
    use crate::superblock::{Superblock, SuperblockV1};
    use crate::transport::MemoryNetwork;
    use crate::wire::VoteV1;

    fn open(network: &MemoryNetwork, directory: &Path, name: &str) -> Arc<RaftStore> {
        let options = PeerOptions {
            cluster: "test".into(),
            name: name.into(),
            advertise: name.into(),
            join: vec!["n1".into(), "n2".into()],
            founders: vec!["n1".into()],
            voter: true,
            witness: false,
            agent: false,
        };
        let transport = network.attach(name);
        let peers = Peers::start(options, move || Ok(Arc::new(transport))).unwrap();
        let options = Options { segment_bytes: 8192, reserve_bytes: 0, peers: Some(peers), ..Options::new(directory) };
        RaftStore::open(options).unwrap()
    }

    async fn voter(store: &RaftStore, name: &str) -> Option<u64> {
        let members = store.members().await.members;
        members.iter().find(|member| &*member.name == name && member.voter).map(|member| member.id)
    }

    /// Its leader was lost at that moment, and those that are left have never heard of it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_was_given_nothing_but_a_vote_to_remember_is_let_in() {
        let (network, directory) = (MemoryNetwork::default(), tempfile::tempdir().unwrap());
        let first = open(&network, &directory.path().join("n1"), "n1");
        let until = Instant::now() + Duration::from_secs(30);
        let leader = loop {
            if let Some(leader) = voter(&first, "n1").await {
                break leader;
            }
            assert!(Instant::now() < until, "a cluster of one was not formed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let second = directory.path().join("n2");
        std::fs::create_dir_all(&second).unwrap();
        let content = SuperblockV1 {
            store_id: [7; 16],
            node_id: 4711,
            group: 0,
            vote: Some(VoteV1 { term: first.status().term, node: leader, committed: true }),
            purged: None,
            snapshot: None,
            newest_segment: 0,
            clean_end: None,
        };
        drop(Superblock::create(&RealDisk, &second, false, content).unwrap());
        let second = open(&network, &second, "n2");
        while voter(&first, "n2").await.is_none() {
            assert!(Instant::now() < until, "it was not let in: {:?}", second.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
