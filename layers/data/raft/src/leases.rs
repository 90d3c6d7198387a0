//! Expiry of leases: while this node leads, it proposes the end of each lease whose time is up.

use std::sync::Arc;
use std::time::Duration;

use data::{Command, LeaseId, Response};
use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftServerMetrics;

use crate::engine::Watch;
use crate::machine::Shared;
use crate::surroundings::planted;
use crate::types::{Proposal, Raft, Reply, Types};
use crate::wal::lock;

/// Pause after a proposal that came to nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Runs until the engine stops.
pub(crate) async fn expire(raft: Raft, shared: Arc<Shared>) {
    let mut server = raft.server_metrics();
    loop {
        while !server.borrow_and_update().state.is_leader() {
            if server.changed().await.is_err() {
                return;
            }
        }
        lead(&raft, &shared, &mut server).await;
        // Not leading any more, or nothing is committed now (a leader that is new, or without a quorum).
        if let Ok(Err(_)) = tokio::time::timeout(RETRY_PAUSE, server.changed()).await {
            return;
        }
    }
}

/// A new leader first restarts every lease, by a committed entry that outdates the expiries of the leader before it.
/// So does one that led before and leads again: what its clock says is from before others kept leases alive.
async fn lead(raft: &Raft, shared: &Shared, server: &mut impl WatchReceiver<Watch, RaftServerMetrics<Types>>) {
    let reign = server.borrow_watched().vote;
    let any = lock(&shared.view).state.leases().next().is_some();
    if any && !planted("stale-lease") && propose(raft, Command::LeaseRenewAll).await.is_none() {
        return;
    }
    loop {
        let leases_changed = shared.leases_changed.notified();
        {
            let server = server.borrow_and_update();
            let same = server.state.is_leader() && server.vote == reign;
            if !same && !planted("lead-not-looked-at") {
                return;
            }
        }
        let due = lock(&shared.leases).take_due(tokio::time::Instant::now().into_std());
        for (lease, renewal) in due {
            if !expire_one(raft, shared, lease, renewal).await {
                return;
            }
        }
        let next = lock(&shared.leases).next_deadline();
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            alive = server.changed() => if alive.is_err() { return },
            () = leases_changed => {}
            () = due => {}
        }
    }
}

async fn expire_one(raft: &Raft, shared: &Shared, lease: LeaseId, renewal: u64) -> bool {
    if propose(raft, Command::LeaseExpire { lease, renewal }).await.is_some() {
        return true;
    }
    lock(&shared.leases).retry(lease);
    false
}

async fn propose(raft: &Raft, command: Command) -> Option<Response> {
    match raft.client_write(Proposal::new(command)).await {
        Ok(written) => match written.data {
            Reply::Store(responses) => responses.into_iter().next(),
            Reply::Streams(_) | Reply::Nothing => None,
        },
        Err(error) => {
            tracing::debug!(%error, "a lease change was not committed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::node::Node;
    use crate::options::Options;
    use crate::types::{Proposal, Reply};
    use crate::wal::lock;
    use data::{Command, LeaseId, Response};

    fn renewal(node: &Node) -> u64 {
        lock(&node.replica.shared.view).state.lease(LeaseId(1)).expect("granted below").0.renewal
    }

    #[tokio::test]
    async fn a_new_leader_renews_every_lease_by_a_committed_entry_that_outdates_older_expiries() {
        let directory = tempfile::tempdir().unwrap();
        let options = || Options { segment_bytes: 8192, reserve_bytes: 0, ..Options::new(directory.path()) };
        let node = Node::start(options(), None).unwrap();
        let propose = async |node: &Node, command: Command| {
            node.replica.raft.client_write(Proposal::new(command)).await.unwrap().data
        };
        propose(&node, Command::LeaseGrant { ttl: Duration::from_secs(3600) }).await;
        assert_eq!(renewal(&node), 0);
        drop(node);

        let node = Node::start(options(), None).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while renewal(&node) != 1 {
            assert!(Instant::now() < deadline, "the new leader did not renew");
            tokio::task::yield_now().await;
        }
        let stale = propose(&node, Command::LeaseExpire { lease: LeaseId(1), renewal: 0 }).await;
        assert_eq!(stale, Reply::Store(vec![Response::LeaseKept { lease: LeaseId(1) }]));
    }
}
