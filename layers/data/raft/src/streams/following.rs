//! The members of the group of streams: those of the store's group, whose leader names the first of them by a key that
//! is written once. Afterwards the leader of the streams keeps its members in step with the store's, one change at a time.
//! Deliberately absent: a way for operators to change these members by themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use data::{Command, Compare, Key, RangeRequest, Txn};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, ChangeMembers};

use crate::joint;
use crate::members;
use crate::replica::{Leader, Replica};
use crate::types::{self, Proposal};
use crate::wal::lock;
use crate::wire::{self, MembershipV1};

/// The key in the store's group under which the first members stand.
pub(crate) const FOUNDERS: &str = "sys/streams/founders";
/// Between two looks while the group is not formed,
const EAGER: Duration = Duration::from_millis(100);
/// and afterwards.
const CALM: Duration = Duration::from_millis(200);
/// Longest time for one change.
const CHANGE: Duration = Duration::from_secs(10);
/// Longest wait, before the store's members change again, for the streams to have followed the change before.
const STEP: Duration = Duration::from_secs(5);
/// So few entries are made up for within the change itself.
const NEARLY: u64 = 1000;

/// Who is in a group, while no change of that is under way.
struct Group {
    voters: BTreeSet<u64>,
    nodes: BTreeMap<u64, BasicNode>,
    dto: MembershipV1,
}

/// Until the node stops.
pub(super) async fn follow(streams: Replica, base: Replica) {
    let (mut member, mut before) = (false, u64::MAX);
    loop {
        member = member || streams.raft.is_initialized().await.unwrap_or(false);
        if member {
            let last = streams.raft.metrics().borrow_watched().last_log_index.unwrap_or_default();
            keep_in_step(&streams, &base, before).await;
            before = last;
        } else {
            found(&streams, &base).await;
        }
        tokio::time::sleep(if member { CALM } else { EAGER }).await;
    }
}

/// Forms the group with the members that the store names; all of them do so alike. Who is not among them is let in.
async fn found(streams: &Replica, base: &Replica) {
    if base.shared.options.is_witness() {
        // It cannot read who founds the group. Those that can give it the log.
        return;
    }
    let Ok(key) = Key::try_from(FOUNDERS) else { return };
    let named = lock(&base.shared.view).state.range(&RangeRequest::key(&key)).kvs.into_iter().next();
    if let Some(named) = named {
        let founders = match wire::decode::<MembershipV1>(&named.value) {
            Ok(founders) => types::membership(founders),
            Err(error) => return tracing::error!(%error, "the founders of the streams are not understood"),
        };
        if founders.voter_ids().any(|id| id == streams.shared.options.node_id) {
            let nodes: BTreeMap<u64, BasicNode> = founders.nodes().map(|(id, node)| (*id, node.clone())).collect();
            if let Err(error) = streams.raft.initialize(nodes).await {
                // The log of another founder may have come first.
                tracing::debug!(%error, "the group of streams was not formed here");
            }
        }
        return;
    }
    let Some(members) = group(base).filter(|_| base.leader() == Leader::Here) else { return };
    let nodes = members.nodes.into_iter().filter(|(id, _)| members.voters.contains(id));
    let founders =
        MembershipV1 { configs: members.dto.configs, nodes: nodes.map(|(id, node)| (id, node.addr)).collect() };
    let txn = Txn::put(key.clone(), wire::encode(&founders)).when(Compare::absent(key));
    let command = Command::Txn { txn, quota_bytes: base.shared.options.quota_bytes };
    if let Ok(Err(error)) = tokio::time::timeout(CHANGE, base.propose(Proposal::new(command))).await {
        tracing::debug!(%error, "the founders of the streams could not be named");
    }
}

/// Waits until the streams have the members of the store's group, so that one change after the other never leaves them
/// without a majority. If they cannot follow, the operator's wish is carried out all the same.
pub(crate) async fn in_step(base: &Replica) {
    let Some(peers) = &base.shared.options.peers else { return };
    let until = tokio::time::Instant::now() + STEP;
    while let Some(streams) = peers.inner().group(super::STREAMS_GROUP) {
        if same(base, &streams.replica) {
            return;
        }
        if tokio::time::Instant::now() >= until {
            tracing::warn!("the members change before the streams have followed the change before");
            return;
        }
        tokio::time::sleep(EAGER).await;
    }
}

/// Whether both have the same members and voters, as far as this node knows.
pub(super) fn same(base: &Replica, streams: &Replica) -> bool {
    let (base, streams) = (group(base), group(streams));
    base.zip(streams)
        .is_some_and(|(base, streams)| base.voters == streams.voters && base.nodes.keys().eq(streams.nodes.keys()))
}

/// `before` is where the log ended at the last look.
async fn keep_in_step(streams: &Replica, base: &Replica, before: u64) {
    // Who does not hear of the store's members cannot follow them.
    if streams.leader() != Leader::Here || base.leader() == Leader::Nobody || base.shared.options.is_witness() {
        return;
    }
    let Some(have) = group(streams) else { return joint::finish(streams).await };
    let Some(wanted) = group(base) else { return };
    let change = async {
        for (id, node) in wanted.nodes.iter().filter(|(id, _)| !have.nodes.contains_key(id)) {
            tracing::info!(node = node.addr, "the streams are replicated to a new member");
            streams.raft.add_learner(*id, node.clone(), false).await.map(drop)?;
        }
        let ready: BTreeSet<u64> =
            wanted.voters.iter().filter(|id| has_caught_up(streams, &have, **id, before)).copied().collect();
        if !ready.is_empty() && ready != have.voters {
            return streams.raft.change_membership(ChangeMembers::ReplaceAllVoters(ready), false).await.map(drop);
        }
        let gone: BTreeSet<u64> = have
            .nodes
            .keys()
            .filter(|id| !wanted.nodes.contains_key(id) && !have.voters.contains(id))
            .copied()
            .collect();
        if !gone.is_empty() {
            return streams.raft.change_membership(ChangeMembers::RemoveNodes(gone), false).await.map(drop);
        }
        Ok(())
    };
    if let Ok(Err(error)) = tokio::time::timeout(CHANGE, change).await {
        tracing::debug!(%error, "the members of the streams could not be changed yet");
    }
}

/// Whether a member may vote: it does already, or holds nearly all of the log; beside a witness, all that the log had at
/// the last look: what it lacks may be gone there.
fn has_caught_up(streams: &Replica, have: &Group, id: u64, before: u64) -> bool {
    if have.voters.contains(&id) {
        return true;
    }
    let metrics = streams.raft.metrics();
    let metrics = metrics.borrow_watched();
    let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)?.as_ref()).map(|log| log.index);
    let beside_a_witness = have.nodes.values().any(members::is_witness);
    let wanted = metrics.last_log_index.unwrap_or_default();
    matched.is_some_and(|matched| matched + NEARLY >= wanted && (!beside_a_witness || matched >= before))
}

fn group(replica: &Replica) -> Option<Group> {
    let metrics = replica.raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    if membership.get_joint_config().len() != 1 {
        return None;
    }
    Some(Group {
        voters: membership.voter_ids().collect(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        dto: types::membership_dto(membership),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use data::{DEFAULT_MAX_BYTES, Retention};
    use openraft::ChangeMembers;
    use openraft::async_runtime::watch::WatchReceiver;

    use super::group;
    use crate::options::Options;
    use crate::peers::{PeerOptions, Peers};
    use crate::replica::{Leader, Replica};
    use crate::store::RaftStore;
    use crate::streams::{RaftStreams, StreamOptions};
    use crate::transport::MemoryNetwork;

    pub(crate) fn open(network: &MemoryNetwork, directory: &Path, name: &str) -> (Arc<RaftStore>, Arc<RaftStreams>) {
        let names = vec!["n1".to_owned(), "n2".to_owned()];
        let options = PeerOptions {
            cluster: "test".into(),
            name: name.into(),
            advertise: name.into(),
            join: names.clone(),
            founders: names,
            voter: true,
            witness: false,
            agent: false,
        };
        let transport = network.attach(name);
        let peers = Peers::start(options, move || Ok(Arc::new(transport))).unwrap();
        let directory = directory.join(name);
        let options = Options { segment_bytes: 8192, reserve_bytes: 0, peers: Some(peers), ..Options::new(directory) };
        let store = RaftStore::open(options).unwrap();
        let streams = StreamOptions::new(Retention { max_bytes: DEFAULT_MAX_BYTES, max_age_ms: None });
        let streams = store.open_streams(streams).unwrap();
        (store, streams)
    }

    pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < until, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn is_joint(replica: &Replica) -> bool {
        replica.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1
    }

    /// Whoever wanted it was lost before the second entry of the change.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_of_the_streams_voters_that_was_left_half_done_is_finished() {
        let (network, directory) = (MemoryNetwork::default(), tempfile::tempdir().unwrap());
        let nodes = [open(&network, directory.path(), "n1"), open(&network, directory.path(), "n2")];
        let whole = || nodes.iter().all(|(_, streams)| group(streams.replica()).is_some_and(|it| it.voters.len() == 2));
        eventually("both vote", whole).await;
        let leads = |streams: &Replica| streams.leader() == Leader::Here;
        eventually("one of them leads", || nodes.iter().any(|(_, streams)| leads(streams.replica()))).await;
        let leader = nodes.iter().find(|(_, streams)| leads(streams.replica())).unwrap().1.replica().clone();
        let other = *group(&leader).unwrap().voters.iter().find(|id| **id != leader.shared.options.node_id).unwrap();
        let upto = leader.read_index().await.unwrap();
        leader.applied(upto.index).await.unwrap();
        network.isolate("n2");
        let raft = leader.raft.clone();
        let change = tokio::spawn(async move {
            raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([other])), true).await
        });
        eventually("the first entry is written", || is_joint(&leader)).await;
        change.abort();
        network.heal();
        eventually("the change is finished, and both vote again", whole).await;
    }
}
