//! The members of a group: who they are as the leader sees them, letting a node in, taking one out, handing over.
//! A member's number is its data directory's, for ever: a node that lost its disk comes back under another number, and
//! is let in like a new one in place of the old.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use data::{NotServing, StoreError};
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use tokio::time::Instant;

use crate::peers::Peers;
use crate::peers::message::{AdmitV1, ChangeV1, MemberV1, MembersV1};
use crate::replica::{Leader, Replica};
use crate::streams::following;
use crate::types::Types;
use crate::wal::lock;
use crate::witness;

/// Longest wait for a newcomer to hold the log, before it gets a vote.
const CATCH_UP: Duration = Duration::from_secs(600);
/// Longest wait for another change of the members to end,
const CHANGE: Duration = Duration::from_secs(10);
/// between two looks.
const AGAIN: Duration = Duration::from_millis(20);
/// Longest wait for another leader, when this node is stopping.
const STEP_ASIDE: Duration = Duration::from_secs(1);
/// Longest wait for a voter that is to lead.
const HAND_OVER: Duration = Duration::from_secs(5);
/// A member that has not answered the leader for so long is missing.
pub(crate) const SILENT: Duration = Duration::from_millis(1000);

/// Behind the address of a witness. No address has a space.
const WITNESS: &str = " witness";

/// A member of the store's group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub name: Arc<str>,
    /// Its number: its data directory's.
    pub id: u64,
    /// Where this node reaches it: where it was last heard of, else where it was let in.
    pub address: Arc<str>,
    /// It votes; else it only follows.
    pub voter: bool,
    /// It keeps the log, and has no data.
    pub witness: bool,
    /// Entries it does not hold yet, as far as the leader knows.
    pub lag: Option<u64>,
    /// Since it last answered the leader; absent if it has not.
    pub silent: Option<Duration>,
}

/// The members as the leader sees them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// The leader's name.
    pub leader: Option<Arc<str>>,
    /// Its term.
    pub term: u64,
    /// Everybody, by name.
    pub members: Vec<Member>,
    /// Why the loss of one more node stops everything, where that is not plain: who does not vote, since when, what to do.
    pub no_failover: Option<String>,
}

/// A member's name and address as a membership holds them: `name@host:port`, and behind it what it is, unless it has data.
pub(crate) fn node(name: &str, address: &str, is_witness: bool) -> BasicNode {
    BasicNode { addr: format!("{name}@{address}{}", if is_witness { WITNESS } else { "" }) }
}

/// The reverse of [`node`]; a group of one has neither.
pub(crate) fn name_and_address(node: &BasicNode) -> (&str, &str) {
    let (name, address) = node.addr.split_once('@').unwrap_or(("", &node.addr));
    (name, address.strip_suffix(WITNESS).unwrap_or(address))
}

/// Whether a member only votes and keeps the log.
pub(crate) fn is_witness(node: &BasicNode) -> bool {
    node.addr.ends_with(WITNESS)
}

impl MemberV1 {
    /// It applies what is committed; else it is a witness.
    pub(crate) fn has_data(&self) -> bool {
        !self.address.ends_with(WITNESS)
    }

    /// Where others reach it.
    pub(crate) fn reached_at(&self) -> &str {
        self.address.strip_suffix(WITNESS).unwrap_or(&self.address)
    }
}

/// All members; what a follower does not know is absent.
pub(crate) fn list(replica: &Replica) -> MembersV1 {
    let metrics = replica.raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let matched = |id: u64| {
        // Of a leader's own log, too, what is on its disk.
        let Some(replication) = metrics.replication.as_ref() else {
            return metrics.last_log_index.filter(|_| id == metrics.id);
        };
        let log = replication.get(&id)?.as_ref()?;
        Some(log.index)
    };
    let silent_ms = |id: u64| {
        if id == metrics.id {
            return Some(0);
        }
        let acked = metrics.heartbeat.as_ref()?.get(&id)?.as_ref()?;
        Some(u64::try_from(acked.elapsed().as_millis()).unwrap_or(u64::MAX))
    };
    let member = |(id, node): (&u64, &BasicNode)| {
        let (name, address) = node.addr.split_once('@').unwrap_or(("", &node.addr));
        MemberV1 {
            name: name.to_owned(),
            id: *id,
            // With what it is behind it, as in the membership.
            address: address.to_owned(),
            voter: voters.contains(id),
            matched: matched(*id),
            silent_ms: silent_ms(*id),
        }
    };
    let silent = metrics.state != openraft::ServerState::Leader && replica.silent_leader().is_some();
    MembersV1 {
        leader: metrics.current_leader.filter(|_| !silent).unwrap_or_default(),
        term: metrics.current_term,
        last_index: metrics.last_log_index.unwrap_or_default(),
        members: membership.nodes().map(member).collect(),
    }
}

/// A list for whoever operates the cluster.
pub(crate) fn described(replica: &Replica, list: &MembersV1) -> Members {
    let name = |id| list.members.iter().find(|member| member.id == id).map(|member| Arc::from(member.name.as_str()));
    let options = &replica.shared.options;
    let peers = options.peers.as_ref().map(Peers::inner);
    let address = |member: &MemberV1| -> Arc<str> {
        let heard = peers.and_then(|peers| match member.id == options.node_id {
            true => Some(peers.options.advertise.clone()),
            false => lock(&peers.book).address(member.id),
        });
        heard.map_or_else(|| member.reached_at().into(), Arc::from)
    };
    let member = |member: &MemberV1| Member {
        name: member.name.as_str().into(),
        id: member.id,
        address: address(member),
        voter: member.voter,
        witness: !member.has_data(),
        lag: member.matched.map(|matched| list.last_index.saturating_sub(matched)),
        silent: member.silent_ms.map(Duration::from_millis),
    };
    let mut members: Vec<Member> = list.members.iter().map(member).collect();
    members.sort_by(|left, right| left.name.cmp(&right.name));
    Members { leader: name(list.leader), term: list.term, members, no_failover: witness::no_failover(list) }
}

/// Who does not answer, in words.
pub(crate) fn missing(replica: &Replica) -> Arc<str> {
    let list = list(replica);
    let own = replica.shared.options.node_id;
    let silent = |member: &&MemberV1| {
        member.voter
            && member.id != own
            && member.silent_ms.is_none_or(|silent| u128::from(silent) >= SILENT.as_millis())
    };
    let words = |member: &MemberV1| match member.silent_ms {
        Some(silent) => format!("{} has not answered for {} s", member.name, silent / 1000),
        None => format!("{} has not answered", member.name),
    };
    let words: Vec<String> = list.members.iter().filter(silent).map(words).collect();
    if words.is_empty() { "too few voters answer".into() } else { words.join(", ").into() }
}

/// Lets a node in, as the leader: first it is given the log, then, if it wants one, a vote.
pub(crate) async fn admit(replica: &Replica, newcomer: AdmitV1) -> Result<MembersV1, StoreError> {
    leading(replica)?;
    let members = list(replica);
    let invalid = |what| Err(StoreError::Invalid { what });
    if newcomer.name.is_empty() || newcomer.name.contains('@') {
        return invalid("a node's name is not empty and has no `@`");
    }
    // Nodes of one name are one node: the same directory, or one that takes the place of a lost one.
    let old: Vec<&MemberV1> =
        members.members.iter().filter(|member| member.name == newcomer.name && member.id != newcomer.id).collect();
    if old.iter().any(|member| member.silent_ms.is_some_and(|silent| u128::from(silent) < SILENT.as_millis())) {
        return invalid("a living member has this name already");
    }
    let known = members.members.iter().find(|member| member.id == newcomer.id);
    if known.is_some_and(|member| member.voter || !newcomer.voter) && old.is_empty() {
        return Ok(members);
    }
    if known.is_none() {
        let peers = replica.shared.options.peers.as_ref();
        let is_witness = peers.is_some_and(|peers| lock(&peers.inner().book).is_witness(newcomer.id));
        let node = node(&newcomer.name, &newcomer.address(), is_witness);
        let (raft, id) = (replica.raft.clone(), newcomer.id);
        let add = move || {
            let (raft, node) = (raft.clone(), node.clone());
            async move { raft.add_learner(id, node, false).await }
        };
        written(replica, add).await?;
    }
    let was_voter = old.iter().any(|member| member.voter);
    let gone: BTreeSet<u64> = old.iter().filter(|member| member.voter).map(|member| member.id).collect();
    let learners: BTreeSet<u64> = old.iter().filter(|member| !member.voter).map(|member| member.id).collect();
    if newcomer.voter || was_voter {
        caught_up(replica, newcomer.id).await?;
        // Said as what changes, not as all voters: another may be let in meanwhile, and would lose its vote again.
        let added = ChangeMembers::AddVoterIds(BTreeSet::from([newcomer.id]));
        changed(replica, ChangeMembers::Batch(vec![added, ChangeMembers::RemoveVoters(gone)])).await?;
    }
    if !learners.is_empty() {
        changed(replica, ChangeMembers::RemoveNodes(learners)).await?;
    }
    tracing::info!(node = newcomer.name, voter = newcomer.voter, "a node has been let in");
    Ok(list(replica))
}

impl AdmitV1 {
    fn address(&self) -> String {
        self.advertise.clone()
    }
}

/// Carries out what an operator wants, as the leader.
pub(crate) async fn change(replica: &Replica, change: ChangeV1) -> Result<MembersV1, StoreError> {
    leading(replica)?;
    following::in_step(replica).await;
    let members = list(replica);
    let by_name = |name: &str| members.members.iter().find(|member| member.name == name);
    match change {
        ChangeV1::Remove { name } => {
            let Some(member) = by_name(&name) else {
                return Err(StoreError::Invalid { what: "no member has this name" });
            };
            let id = BTreeSet::from([member.id]);
            let change = if member.voter { ChangeMembers::RemoveVoters(id) } else { ChangeMembers::RemoveNodes(id) };
            let with_data = |member: &&MemberV1| member.voter && member.has_data();
            if with_data(&member) && members.members.iter().filter(with_data).count() == 1 {
                return Err(StoreError::Invalid { what: "the last voter with data cannot be removed" });
            }
            changed(replica, change).await?;
        }
        ChangeV1::Transfer { name } => {
            let Some(member) = by_name(&name).filter(|member| member.voter) else {
                return Err(StoreError::Invalid { what: "no voter has this name" });
            };
            if !member.has_data() {
                return Err(StoreError::Invalid { what: "a witness leads only while nobody else can" });
            }
            if member.id != replica.shared.options.node_id {
                hand_over(replica, member.id).await?;
            }
        }
        ChangeV1::Demote { id } => {
            let Some(member) = members.members.iter().find(|member| member.id == id && member.voter) else {
                return Ok(members);
            };
            let others = members.members.iter().filter(|other| other.voter && other.has_data() && other.id != id);
            if !witness::is_away(member) || others.count() == 0 {
                return Err(StoreError::Invalid { what: "only a voter with data that is away loses its vote" });
            }
            let raft = replica.raft.clone();
            let change = move || {
                let raft = raft.clone();
                async move { raft.change_membership(ChangeMembers::RemoveVoters(BTreeSet::from([id])), true).await }
            };
            written(replica, change).await?;
            tracing::warn!(
                node = member.name,
                "it is away, and votes no more until it is back: its log is too long for a witness"
            );
        }
    }
    Ok(list(replica))
}

/// A leader that stops lets the voter that is furthest lead first, so that nobody has to notice its absence.
pub(crate) async fn step_aside(replica: &Replica) {
    if leading(replica).is_err() {
        return;
    }
    let own = replica.shared.options.node_id;
    let answers = |member: &&MemberV1| {
        member.voter
            && member.has_data()
            && member.id != own
            && member.silent_ms.is_some_and(|silent| u128::from(silent) < SILENT.as_millis())
    };
    let list = list(replica);
    let Some(next) = list.members.iter().filter(answers).max_by_key(|member| member.matched) else { return };
    match tokio::time::timeout(STEP_ASIDE, hand_over(replica, next.id)).await {
        Ok(Ok(())) => tracing::info!(leader = next.name, "another voter leads before this one stops"),
        _ => tracing::warn!("this leader stops before another voter leads; the others elect one"),
    }
}

/// Makes another voter the leader and waits until it is.
pub(crate) async fn hand_over(replica: &Replica, to: u64) -> Result<(), StoreError> {
    replica.raft.trigger().transfer_leader(to).await.map_err(|error| replica.fatal(&error))?;
    let wait = replica.raft.wait(Some(HAND_OVER));
    let moved = wait.metrics(|metrics| metrics.current_leader == Some(to), "another voter leads").await;
    moved.map_err(|_| StoreError::Unknown)?;
    // It has not been heard here yet, since this node led until now.
    *lock(&replica.shared.heard) = Some(Instant::now());
    Ok(())
}

fn leading(replica: &Replica) -> Result<(), StoreError> {
    replica.serving()?;
    if replica.leader() == Leader::Here {
        // Members change when it has handed over.
        witness::refuse(replica)?;
    }
    match replica.leader() {
        Leader::Here => Ok(()),
        Leader::There(leader) => Err(StoreError::NotServing(NotServing::NotLeader { leader })),
        Leader::Nobody => Err(StoreError::NotServing(NotServing::NoLeader)),
    }
}

/// Until a newcomer holds nearly all of the log. Beside a witness, nearly is not enough: what it lacks then may be gone
/// there, as it was no voter's that was kept for. A witness keeps what a learner lacks that has answered within
/// [`witness::AWAY`]; so it holds all, if it answered a second ago and has within another what the log had then.
async fn caught_up(replica: &Replica, id: u64) -> Result<(), StoreError> {
    nearly_caught_up(replica, id).await?;
    let until = Instant::now() + CATCH_UP;
    loop {
        let list = list(replica);
        if list.members.iter().all(MemberV1::has_data) {
            return Ok(());
        }
        let answers = |member: &MemberV1| {
            member.id == id && member.silent_ms.is_some_and(|silent| u128::from(silent) < SILENT.as_millis())
        };
        if list.members.iter().any(answers) {
            let upto = list.last_index;
            let holds = |metrics: &openraft::RaftMetrics<Types>| {
                let log = metrics.replication.as_ref().and_then(|all| all.get(&id)?.as_ref());
                log.is_some_and(|log| log.index >= upto)
            };
            let waited = replica.raft.wait(Some(SILENT)).metrics(holds, "the newcomer holds all that there was").await;
            if waited.is_ok() {
                return leading(replica);
            }
        }
        leading(replica)?;
        if Instant::now() >= until {
            return Err(StoreError::Unknown);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn nearly_caught_up(replica: &Replica, id: u64) -> Result<(), StoreError> {
    /// So few entries are made up for within the change of the membership itself.
    const NEARLY: u64 = 1000;
    let close = |metrics: &openraft::RaftMetrics<Types>| {
        let last = metrics.last_log_index.unwrap_or_default();
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&id)?.as_ref()).map(|log| log.index);
        metrics.state != openraft::ServerState::Leader || matched.is_some_and(|matched| matched + NEARLY >= last)
    };
    let waited = replica.raft.wait(Some(CATCH_UP)).metrics(close, "the newcomer has caught up").await;
    waited.map_err(|_| StoreError::Unknown)?;
    leading(replica)
}

async fn changed(replica: &Replica, change: ChangeMembers<u64, BasicNode>) -> Result<(), StoreError> {
    let raft = replica.raft.clone();
    let change = move || {
        let (raft, change) = (raft.clone(), change.clone());
        async move { raft.change_membership(change, false).await }
    };
    written(replica, change).await
}

/// Has a change of the members written; one that is under way is waited for.
async fn written<T, F>(replica: &Replica, change: impl Fn() -> F) -> Result<(), StoreError>
where
    F: Future<Output = Changed<T>>,
{
    let until = Instant::now() + CHANGE;
    loop {
        match change().await {
            Ok(_) => return Ok(()),
            Err(RaftError::Fatal(error)) => return Err(replica.fatal(&error)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                leading(replica)?;
                if Instant::now() >= until {
                    return Err(StoreError::NotServing(NotServing::NoQuorum { missing: missing(replica) }));
                }
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))))
                if Instant::now() < until => {}
            Err(error) => {
                tracing::warn!(%error, "the members could not be changed");
                return Err(StoreError::Unknown);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

type Changed<T> = Result<T, RaftError<Types, ClientWriteError<Types>>>;
