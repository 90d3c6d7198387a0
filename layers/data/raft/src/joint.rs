//! A change of the voters is two entries, and whoever asked for it writes the second one. If that was lost between them, or gave
//! up, a majority of the old voters and one of the new ones would be needed for ever: losing a single node could stop everything.
//! So whoever leads finishes such a change. Who votes no more stays as a learner, which is removed as any other.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::watch::WatchReceiver;

use crate::replica::{Leader, Replica};

/// A change that has stood for so long between its two entries is nobody's any more: who makes one writes the second entry as
/// soon as the first is committed.
const STANDS: Duration = Duration::from_secs(1);
/// Longest time for the second entry.
const FINISH: Duration = Duration::from_secs(10);

/// Looks after a group, until the node stops, in which several may change the voters at once.
pub(crate) async fn look_after(replica: Replica) {
    let mut before = None;
    loop {
        tokio::time::sleep(STANDS).await;
        let now = between(&replica).filter(|_| replica.leader() == Leader::Here);
        if now.is_some() && now == before {
            tracing::warn!("a change of the voters was left half done: it is finished");
            finish(&replica).await;
        }
        before = now;
    }
}

/// Writes the second entry of the change that is under way.
pub(crate) async fn finish(replica: &Replica) {
    let nobody_more = ChangeMembers::AddVoterIds(BTreeSet::new());
    if let Ok(Err(error)) = tokio::time::timeout(FINISH, replica.raft.change_membership(nobody_more, true)).await {
        tracing::debug!(%error, "a change of the voters could not be finished yet");
    }
}

/// The first entry of a change, once it is in force, that waits for its second one: where in the log it stands. Before, whoever
/// makes the change waits, too.
fn between(replica: &Replica) -> Option<u64> {
    let metrics = replica.raft.metrics();
    let metrics = metrics.borrow_watched();
    let change = &metrics.membership_config;
    let at = change.log_id().as_ref().map(|at| at.index)?;
    let in_force = metrics.last_applied.as_ref().is_some_and(|applied| applied.index >= at);
    (in_force && change.membership().get_joint_config().len() > 1).then_some(at)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use openraft::ChangeMembers;
    use openraft::async_runtime::watch::WatchReceiver;

    use crate::members;
    use crate::options::Options;
    use crate::peers::{PeerOptions, Peers};
    use crate::replica::{Leader, Replica};
    use crate::store::RaftStore;
    use crate::transport::MemoryNetwork;

    fn open(network: &MemoryNetwork, directory: &Path, name: &str) -> Arc<RaftStore> {
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
        RaftStore::open(options).unwrap()
    }

    async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let until = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < until, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn voters(replica: &Replica) -> usize {
        replica.raft.metrics().borrow_watched().membership_config.membership().voter_ids().count()
    }

    /// Whoever wanted it was lost before the second entry of the change, and did not ask again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_of_the_voters_that_was_left_half_done_is_finished() {
        let (network, directory) = (MemoryNetwork::default(), tempfile::tempdir().unwrap());
        let nodes = ["n1", "n2"].map(|name| open(&network, directory.path(), name));
        let both_vote = || nodes.iter().all(|node| voters(node.replica()) == 2);
        eventually("both vote", both_vote).await;
        let leads = |node: &&Arc<RaftStore>| node.replica().leader() == Leader::Here;
        eventually("one of them leads", || nodes.iter().any(|node| leads(&node))).await;
        let leader = nodes.iter().find(leads).unwrap().replica().clone();
        let upto = leader.read_index().await.unwrap();
        leader.applied(upto.index).await.unwrap();
        let members = members::list(&leader).members;
        let other = members.iter().find(|member| member.id != leader.shared.options.node_id).unwrap().id;
        network.isolate("n2");
        let raft = leader.raft.clone();
        let change = tokio::spawn(async move {
            raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([other])), true).await
        });
        let is_joint = |node: &Replica| {
            node.raft.metrics().borrow_watched().membership_config.membership().get_joint_config().len() > 1
        };
        eventually("the first entry is written", || is_joint(&leader)).await;
        change.abort();
        network.heal();
        let is_finished = || nodes.iter().all(|node| !is_joint(node.replica()));
        eventually("the change is finished", is_finished).await;
    }
}
