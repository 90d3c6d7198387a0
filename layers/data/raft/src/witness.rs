//! What a witness does besides voting: it stands for election when nobody else can win, hands over as soon as a node with
//! data holds its log, and drops of its log only what every one of those that vote holds.
//! Around the write walk, on a node that never applies a command. Deliberately absent: a state, and snapshots for others.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use data::{NotServing, StoreError};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::members::{self, SILENT};
use crate::peers::Lane;
use crate::peers::frame::Kind;
use crate::peers::message::{ChangeV1, MemberV1, MembersV1, payload};
use crate::replica::{Leader, Replica};
use crate::snapshots;
use crate::surroundings::planted;
use crate::wal::lock;
use crate::wire;

/// Without a leader for so many election times it stands, whoever asked for its vote.
const SLOW: u32 = 4;
/// Between two looks for a node that can lead instead.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for a node that was asked to lead.
const HANDED: Duration = Duration::from_millis(500);
/// Between two looks at what may be dropped of the log.
const PURGE: Duration = Duration::from_secs(1);
/// Longest wait for the leader's word.
const ASK: Duration = Duration::from_secs(2);
/// A node that has not answered the leader for so long is away.
pub(crate) const AWAY: Duration = Duration::from_secs(3);

/// The witness's part of what a group shares.
#[derive(Default)]
pub(crate) struct Witness {
    /// Somebody who lacks entries asked for a vote.
    stand: Notify,
    /// Nodes that can be helped by a snapshot alone, while this one leads.
    wanting: std::sync::Mutex<BTreeSet<u64>>,
}

impl Witness {
    /// A node that lacks entries asked for a vote.
    pub(crate) fn stand(&self) {
        self.stand.notify_one();
    }

    /// A node needs a snapshot, which there is none of here, until the guard goes.
    pub(crate) fn wants_a_snapshot(&self, node: u64) -> Wanting<'_> {
        lock(&self.wanting).insert(node);
        Wanting { witness: self, node }
    }
}

/// See [`Witness::wants_a_snapshot`].
pub(crate) struct Wanting<'a> {
    witness: &'a Witness,
    node: u64,
}

impl Drop for Wanting<'_> {
    fn drop(&mut self) {
        lock(&self.witness.wanting).remove(&self.node);
    }
}

/// Until the node stops. `base` is the store's group, when this is another.
pub(crate) async fn keep(replica: Replica, base: Option<Replica>) {
    tokio::join!(stand(&replica), lead(&replica), purge(&replica, base.as_ref()));
}

async fn stand(replica: &Replica) {
    let options = &replica.shared.options;
    let slow = options.election.1 * SLOW;
    loop {
        // Late is as good as asked.
        let asked = tokio::time::timeout(slow, replica.shared.witness.stand.notified()).await.is_ok();
        let patience = if asked { options.election.1 } else { slow };
        let silence = || lock(&replica.shared.heard).map(|heard| heard.elapsed());
        if asked && let Some(left) = silence().and_then(|silent| patience.checked_sub(silent)) {
            // Who asked waits longer before it asks again: it lacks entries.
            tokio::time::sleep(left).await;
        }
        let silent = silence();
        if replica.leader() == Leader::Here || silent.is_none_or(|silent| silent < patience) {
            continue;
        }
        if replica.raft.trigger().elect(options.pre_vote).await.is_err() {
            return;
        }
    }
}

/// Leads no longer than it must.
async fn lead(replica: &Replica) {
    let mut server = replica.raft.server_metrics();
    loop {
        while !server.borrow_and_update().state.is_leader() {
            if server.changed().await.is_err() {
                return;
            }
        }
        tracing::info!("a witness leads, until a node with data holds what it holds");
        while server.borrow_and_update().state.is_leader() {
            let Some(next) = successor(&members::list(replica)) else {
                tokio::time::sleep(LOOK).await;
                continue;
            };
            if replica.raft.trigger().transfer_leader(next).await.is_err() {
                return;
            }
            let until = Instant::now() + HANDED;
            while server.borrow_and_update().state.is_leader() && Instant::now() < until {
                if let Ok(Err(_)) = tokio::time::timeout_at(until, server.changed()).await {
                    return;
                }
            }
        }
    }
}

/// Who can lead instead: a voter with data that answers, and holds everything.
fn successor(list: &MembersV1) -> Option<u64> {
    let fit = |member: &&MemberV1| {
        member.has_data()
            && member.voter
            && member.matched == Some(list.last_index)
            && member.silent_ms.is_some_and(|silent| u128::from(silent) < SILENT.as_millis())
    };
    list.members.iter().find(fit).map(|member| member.id)
}

/// Why a witness that leads does not serve.
pub(crate) fn leads(replica: &Replica, leader: u64) -> NotServing {
    let list = members::list(replica);
    let name = |id: u64| {
        list.members.iter().find(|member| member.id == id).map_or("unknown", |member| member.name.as_str()).to_owned()
    };
    let wanting: Vec<String> = lock(&replica.shared.witness.wanting).iter().map(|id| name(*id)).collect();
    let others: Vec<&str> = list
        .members
        .iter()
        .filter(|member| member.has_data() && !wanting.contains(&member.name))
        .map(|member| member.name.as_str())
        .collect();
    let mut reason =
        "it is a witness, and hands over as soon as a node with data holds everything that it holds".to_owned();
    if !wanting.is_empty() {
        reason = format!(
            "{reason}; {} can catch up by a snapshot alone, which a witness does not have: start {}",
            wanting.join(", "),
            others.join(", ")
        );
    }
    NotServing::Elsewhere { node: name(leader).into(), reason: reason.into() }
}

/// Drops what is not needed any more, and says when that is too little.
async fn purge(replica: &Replica, base: Option<&Replica>) {
    loop {
        if planted("witness-snapshot") {
            tokio::time::sleep(LOOK * 5).await;
            // It drops whatever it has applied.
            drop(snapshots::take(&replica.raft, &replica.shared).await);
            continue;
        }
        tokio::time::sleep(PURGE).await;
        let shared = &replica.shared;
        let superblock = shared.wal.superblock();
        let covered = superblock.snapshot.map_or(0, |snapshot| snapshot.last.index);
        let purged = superblock.purged.map_or(0, |purged| purged.index);
        let is_too_long = shared.wal.size_and_last_fsync().0 > shared.options.witness_log_bytes;
        if covered <= purged && !is_too_long {
            continue;
        }
        let Some(list) = told_by_the_leader(replica).await else { continue };
        let upto = held_by_all(&list, !is_too_long).unwrap_or(0).min(covered);
        if upto > purged && replica.raft.trigger().purge_log(upto).await.is_err() {
            return;
        }
        if is_too_long && upto <= purged {
            for member in list.members.iter().filter(|member| is_away(member)) {
                demote(base.unwrap_or(replica), member).await;
            }
        }
    }
}

/// Up to where every voter with data is known to have the log on its disk; and, for the `learners` that are there, every
/// one that is about to vote.
fn held_by_all(list: &MembersV1, learners: bool) -> Option<u64> {
    let counts = |member: &&MemberV1| member.has_data() && (member.voter || (learners && !is_silent(member)));
    list.members.iter().filter(counts).map(|member| member.matched.unwrap_or(0)).min()
}

/// A voter with data that does not answer the leader.
pub(crate) fn is_away(member: &MemberV1) -> bool {
    member.voter && member.has_data() && is_silent(member)
}

fn is_silent(member: &MemberV1) -> bool {
    member.silent_ms.is_none_or(|silent| u128::from(silent) >= AWAY.as_millis())
}

async fn told_by_the_leader(replica: &Replica) -> Option<MembersV1> {
    let options = &replica.shared.options;
    let Leader::There(leader) = replica.leader() else { return None };
    let peers = options.peers.as_ref()?;
    let told = peers.call(leader, Lane::Control, Kind::Members, options.group, Bytes::new(), ASK).await;
    // Not known is not dropped.
    wire::decode::<MembersV1>(&told.ok()?).ok().filter(|list| list.leader == leader)
}

/// Asks the leader of the store's group to go on without a node's vote.
async fn demote(base: &Replica, member: &MemberV1) {
    let options = &base.shared.options;
    let (Leader::There(leader), Some(peers)) = (base.leader(), options.peers.as_ref()) else { return };
    let change = payload(&ChangeV1::Demote { id: member.id });
    let done = peers.call(leader, Lane::Control, Kind::Change, options.group, change, ASK).await;
    match done {
        Ok(_) => tracing::warn!(
            node = member.name,
            limit = options.witness_log_bytes,
            "it is away, and what this witness must keep for it exceeds node.witnessLogLimit: it votes no more until it is back"
        ),
        Err(error) => tracing::debug!(node = member.name, %error, "its vote could not be taken yet"),
    }
}

/// Why the loss of one more node stops everything, though none needs to be missing that votes.
pub(crate) fn no_failover(list: &MembersV1) -> Option<String> {
    if list.leader == 0 {
        // Nobody knows who is where; that there is no leader is said elsewhere.
        return None;
    }
    let with_data = |votes: bool| list.members.iter().filter(move |member| member.has_data() && member.voter == votes);
    let witness = list.members.iter().find(|member| member.voter && !member.has_data())?;
    let (mut voters, learner) = (with_data(true), with_data(false).next()?);
    let (Some(last), None) = (voters.next(), voters.next()) else { return None };
    let (away, last, witness) = (&learner.name, &last.name, &witness.name);
    Some(match learner.silent_ms {
        Some(silent) if u128::from(silent) < SILENT.as_millis() => {
            format!("no failover yet: {away} is taking over from {last} what it lacks, and votes once it has that")
        }
        silent => {
            let since = silent.map_or_else(String::new, |silent| format!(" (not heard of for {} s)", silent / 1000));
            format!(
                "no failover: {away}{since} is too far behind for the log of the witness {witness}, so it votes no more, and \
                 {last} must not be lost; start {away}: it takes over a snapshot of {last} and votes again"
            )
        }
    })
}

/// What a witness says to those who ask it for what takes a state.
pub(crate) fn refuse(replica: &Replica) -> Result<(), StoreError> {
    let shared = &replica.shared;
    if !shared.options.is_witness() {
        return Ok(());
    }
    Err(StoreError::NotServing(leads(replica, shared.options.node_id)))
}

#[cfg(test)]
mod tests {
    use super::{is_away, no_failover, successor};
    use crate::peers::message::{MemberV1, MembersV1};

    fn member(id: u64, matched: Option<u64>, silent_ms: Option<u64>) -> MemberV1 {
        MemberV1 { name: format!("n{id}"), id, address: format!("n{id}:1"), voter: true, matched, silent_ms }
    }

    fn list(members: Vec<MemberV1>) -> MembersV1 {
        MembersV1 { leader: 1, term: 1, last_index: 90, members }
    }

    fn witness(member: MemberV1) -> MemberV1 {
        MemberV1 { address: format!("{} witness", member.address), ..member }
    }

    #[test]
    fn only_what_every_voter_with_data_holds_may_go() {
        let behind =
            || vec![member(1, Some(90), Some(0)), member(2, Some(40), None), witness(member(3, Some(10), None))];
        let held_by_all = |list: MembersV1| super::held_by_all(&list, true);
        assert_eq!(held_by_all(list(behind())), Some(40), "a witness itself does not count");
        let mut unknown = behind();
        unknown[1].matched = None;
        assert_eq!(held_by_all(list(unknown)), Some(0), "not known is not held");
        let mut learner = behind();
        learner[1].voter = false;
        assert_eq!(held_by_all(list(learner.clone())), Some(90), "it is away");
        learner[1].silent_ms = Some(5);
        assert_eq!(held_by_all(list(learner.clone())), Some(40), "it is about to vote");
        assert_eq!(super::held_by_all(&list(learner), false), Some(90), "the log is too long already");
    }

    #[test]
    fn it_hands_over_to_a_living_voter_that_holds_everything() {
        let of = |members| successor(&list(members));
        let own = || witness(member(3, Some(90), Some(0)));
        assert_eq!(of(vec![member(2, Some(89), Some(0)), own()]), None);
        assert_eq!(of(vec![member(2, Some(90), Some(5000)), own()]), None);
        assert_eq!(of(vec![member(2, Some(90), None), own()]), None);
        assert_eq!(of(vec![MemberV1 { voter: false, ..member(2, Some(90), Some(0)) }, own()]), None);
        assert_eq!(of(vec![own(), member(2, Some(90), Some(10))]), Some(2));
    }

    #[test]
    fn a_node_that_lost_its_vote_is_named_until_it_has_it_again() {
        let learner = |silent| MemberV1 { voter: false, ..member(2, Some(4), silent) };
        let of =
            |second| no_failover(&list(vec![member(1, Some(90), Some(0)), second, witness(member(3, None, None))]));
        assert_eq!(of(member(2, Some(4), None)), None);
        let away = of(learner(Some(65_000))).unwrap();
        assert!(away.starts_with("no failover: n2 (not heard of for 65 s) is too far behind"), "{away}");
        assert!(away.contains("n1 must not be lost; start n2"), "{away}");
        assert!(of(learner(None)).unwrap().starts_with("no failover: n2 is too far behind"));
        assert!(of(learner(Some(1))).unwrap().starts_with("no failover yet: n2"));
    }

    #[test]
    fn who_answers_is_not_away() {
        assert!(is_away(&member(2, Some(1), None)) && is_away(&member(2, Some(1), Some(3000))));
        assert!(!is_away(&member(2, Some(1), Some(2999))) && !is_away(&witness(member(3, Some(1), None))));
    }
}
