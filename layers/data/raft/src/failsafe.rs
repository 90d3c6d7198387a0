//! What lets a lease go on while nothing can be decided: every other voter says, while the lease has time left, that it
//! will not end it before its full time from then on. Asked by a node whose renewals fail, answered through
//! `peers/serve.rs`; what it means for primaries is in `crates/node/src/lease.rs`, and why nobody can have ended the lease
//! meanwhile in docs/adr/0027-failsafe.md.
//! Deliberately absent: the log. Nothing here is written, so that it works where nothing can be.

use std::collections::BTreeSet;
use std::time::Duration;

use data::{LeaseId, NotServing, StoreError};
use futures_util::future;
use openraft::async_runtime::watch::WatchReceiver;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::members;
use crate::peers::Lane;
use crate::peers::frame::Kind;
use crate::peers::message::payload;
use crate::replica::Replica;
use crate::surroundings::planted;
use crate::types::{self, StoredMembership, Vote};
use crate::wal::lock;
use crate::wire::{self, LogIdV1};

/// Longest wait for an answer: several fit into what a lease has left.
const PATIENCE: Duration = Duration::from_millis(200);

const STUCK: &str = "its store is stuck";

/// What the other voters are asked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct ConfirmV1 {
    /// Which lease is to go on.
    pub lease: u64,
    /// Where the log says who votes: those are asked, and nobody else may have been elected.
    pub members: Option<LogIdV1>,
}

/// The answer: why not, or nothing against it.
pub(crate) type ConfirmedV1 = Option<String>;

/// What a replica holds for true of the group.
struct Known {
    members: Option<LogIdV1>,
    voters: BTreeSet<u64>,
    /// For whom it voted last, or who leads by its word.
    elected: u64,
}

impl Known {
    fn new(vote: &Vote, membership: &StoredMembership) -> Self {
        Self {
            members: membership.log_id().as_ref().map(types::log_id_dto),
            voters: membership.membership().voter_ids().collect(),
            elected: vote.leader_id.voted_for,
        }
    }

    /// What the engine holds at this moment; of one that has stopped, what it held last. None of one that is stuck: nobody
    /// can say then what it takes part in.
    async fn of(replica: &Replica) -> Option<Self> {
        let last = || {
            let metrics = replica.raft.metrics();
            let metrics = metrics.borrow_watched();
            metrics.running_state.is_err().then(|| Self::new(&metrics.vote, &metrics.membership_config))
        };
        if let Some(last) = last() {
            return Some(last);
        }
        let now = replica.raft.with_raft_state(|state| Self::new(state.vote_ref(), state.membership_state.effective()));
        match tokio::time::timeout(PATIENCE, now).await {
            Ok(Ok(known)) => Some(known),
            Ok(Err(_)) | Err(_) => last(),
        }
    }
}

/// Asks this node and every other voter; see [`Store::lease_confirm`](data::Store::lease_confirm).
pub(crate) async fn ask(replica: &Replica, lease: LeaseId) -> Result<(), StoreError> {
    let options = &replica.shared.options;
    let Some(peers) = &options.peers else {
        return Err(StoreError::Invalid { what: "a node that is alone has nobody to ask" });
    };
    let no = |why: String| StoreError::NotServing(NotServing::Unconfirmed { why: why.into() });
    let known = Known::of(replica).await.ok_or_else(|| no(STUCK.into()))?;
    let question = ConfirmV1 { lease: lease.0, members: known.members };
    // This node may lead, and end its own lease.
    if let Some(why) = confirm(replica, &question).await {
        return Err(no(format!("this node: {why}")));
    }
    let asked = payload(&question);
    let others = known.voters.into_iter().filter(|id| *id != options.node_id);
    let answers = others.map(|id| {
        let asked = asked.clone();
        async move {
            let answer = peers.call(id, Lane::Control, Kind::Confirm, options.group, asked, PATIENCE).await;
            let why = match answer.map(|bytes| wire::decode::<ConfirmedV1>(&bytes)) {
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(why))) => why,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            Err(no(format!("{}: {why}", name_of(replica, id))))
        }
    });
    if planted("confirmed-by-some") {
        let said = future::join_all(answers).await;
        return said.into_iter().find(Result::is_ok).unwrap_or_else(|| Err(no(STUCK.into())));
    }
    future::try_join_all(answers).await.map(drop)
}

/// Answers. Yes if no leader that this node knows of, or may have elected, ends the lease before its full time from now on.
pub(crate) async fn confirm(replica: &Replica, question: &ConfirmV1) -> ConfirmedV1 {
    let Some(known) = Known::of(replica).await else { return Some(STUCK.into()) };
    if known.members != question.members {
        return Some("it knows of other members".into());
    }
    if !known.voters.contains(&known.elected) {
        return Some("it voted for a node that is no member".into());
    }
    let by_some = planted("confirmed-by-some");
    if !by_some && replica.not_serving().is_none() {
        return Some("it reaches a quorum, which is what decides".into());
    }
    // A witness ends no lease.
    let ends_later = || lock(&replica.shared.leases).keep_alive(LeaseId(question.lease), Instant::now().into_std());
    if by_some || replica.shared.options.is_witness() || ends_later() {
        return None;
    }
    Some("it does not hold the lease".into())
}

fn name_of(replica: &Replica, id: u64) -> String {
    let metrics = replica.raft.metrics();
    let metrics = metrics.borrow_watched();
    let node = metrics.membership_config.membership().get_node(&id);
    node.map_or("unknown", |node| members::name_and_address(node).0).to_owned()
}
