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

    use openraft::ChangeMembers;

    use crate::members;
    use crate::replica::{Leader, Replica};
    use crate::streams::following::tests::{eventually, is_joint, open};
    use crate::transport::MemoryNetwork;

    /// Whoever wanted it was lost before the second entry of the change, and did not ask again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_change_of_the_stores_voters_that_was_left_half_done_is_finished() {
        let (network, directory) = (MemoryNetwork::default(), tempfile::tempdir().unwrap());
        let nodes = ["n1", "n2"].map(|name| open(&network, directory.path(), name));
        let replicas = || nodes.iter().map(|(store, _)| store.replica());
        let voters = |replica: &Replica| members::list(replica).members.iter().filter(|member| member.voter).count();
        eventually("both vote", || replicas().all(|replica| voters(replica) == 2)).await;
        let leader = || replicas().find(|replica| replica.leader() == Leader::Here);
        eventually("one of them leads", || leader().is_some()).await;
        let leader = leader().unwrap().clone();
        let upto = leader.read_index().await.unwrap();
        leader.applied(upto.index).await.unwrap();
        let members = members::list(&leader).members;
        let other = members.iter().find(|member| member.id != leader.shared.options.node_id).unwrap().id;
        network.isolate("n2");
        let raft = leader.raft.clone();
        let change = tokio::spawn(async move {
            raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([other])), true).await
        });
        eventually("the first entry is written", || is_joint(&leader)).await;
        change.abort();
        network.heal();
        eventually("the change is finished", || replicas().all(|replica| !is_joint(replica))).await;
    }
}
