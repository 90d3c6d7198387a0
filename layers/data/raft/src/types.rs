//! The engine's types, chosen once. Nothing outside this crate sees them and none of them is on disk.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use data::{Command, Response, StreamAnswer, StreamCommand, StreamRequest};
use openraft::type_config::alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::vote::RaftLeaderId;
use openraft::{BasicNode, Membership};

use crate::streams::wire::StreamCommandV1;
use crate::wire::{self, CommandV1, DecodeError, LogIdV1, MembershipV1, VoteV1};

openraft::declare_raft_types!(
    /// The engine's configuration.
    pub(crate) Types:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::engine::Engine,
);

pub(crate) type Raft = openraft::Raft<Types, crate::machine::Machine>;
pub(crate) type Entry = EntryOf<Types>;
pub(crate) type LogId = LogIdOf<Types>;
pub(crate) type Vote = VoteOf<Types>;
pub(crate) type StoredMembership = StoredMembershipOf<Types>;
type CommittedLeader = <openraft::impls::leader_id_std::LeaderId<u64, u64> as RaftLeaderId>::Committed;

/// What a group's log is about: its number says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// Of the store: commands of several callers, in this order. Each has a revision of its own.
    Store(Arc<[Command]>),
    /// Of the streams.
    Streams(Arc<StreamCommand>),
}

/// A command on its way through the log; shared, never copied, and encoded once for disk and peers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Proposal {
    pub content: Content,
    /// As a record's payload.
    pub encoded: Bytes,
}

/// What became of an entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    /// An answer for each command of the store.
    Store(Vec<Response>),
    /// A command of the streams.
    Streams(StreamAnswer),
    /// An entry of the engine itself.
    Nothing,
}

impl Proposal {
    pub(crate) fn new(command: Command) -> Self {
        Self::of(vec![command])
    }

    pub(crate) fn of(commands: Vec<Command>) -> Self {
        let encoded: Vec<CommandV1> = commands.iter().map(CommandV1::from).collect();
        Self { content: Content::Store(commands.into()), encoded: wire::encode(&encoded).into() }
    }

    pub(crate) fn of_streams(command: StreamCommand) -> Self {
        let encoded = wire::encode(&StreamCommandV1::from(&command)).into();
        Self { content: Content::Streams(Arc::new(command)), encoded }
    }

    pub(crate) fn decode(encoded: Bytes) -> Result<Self, DecodeError> {
        let commands: Vec<CommandV1> = wire::decode(&encoded)?;
        let commands: Result<_, _> = commands.into_iter().map(Command::try_from).collect();
        Ok(Self { content: Content::Store(commands?), encoded })
    }

    /// Of a record with one command, as they were before there were several to a record.
    pub(crate) fn decode_one(encoded: &[u8]) -> Result<Self, DecodeError> {
        let command: CommandV1 = wire::decode(encoded)?;
        Ok(Self::new(command.try_into()?))
    }

    pub(crate) fn decode_of_streams(encoded: Bytes) -> Result<Self, DecodeError> {
        let command: StreamCommandV1 = wire::decode(&encoded)?;
        Ok(Self { content: Content::Streams(Arc::new(command.try_into()?)), encoded })
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secret and large: logs name the kind only.
        f.write_str(match &self.content {
            Content::Store(commands) => match &**commands {
                [Command::Txn { .. }] => "txn",
                [Command::LeaseGrant { .. }] => "lease grant",
                [Command::LeaseRevoke { .. }] => "lease revoke",
                [Command::LeaseExpire { .. }] => "lease expire",
                [Command::LeaseRenewAll] => "lease renew all",
                _ => "commands of several callers",
            },
            Content::Streams(command) => match &command.request {
                StreamRequest::Append(_) => "append",
                StreamRequest::Commit { .. } => "cursor",
                StreamRequest::Seal { .. } => "seal",
                StreamRequest::Delete { .. } => "delete",
                StreamRequest::Trim => "trim",
            },
        })
    }
}

pub(crate) fn log_id(id: LogIdV1) -> LogId {
    LogId { leader_id: CommittedLeader::new(id.term), index: id.index }
}

pub(crate) fn log_id_dto(id: &LogId) -> LogIdV1 {
    LogIdV1 { term: id.leader_id.term, index: id.index }
}

pub(crate) fn vote(vote: VoteV1) -> Vote {
    if vote.committed { Vote::new_committed(vote.term, vote.node) } else { Vote::new(vote.term, vote.node) }
}

pub(crate) fn vote_dto(vote: &Vote) -> VoteV1 {
    VoteV1 { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
}

pub(crate) fn membership(dto: MembershipV1) -> Membership<u64, BasicNode> {
    let configs = dto.configs.into_iter().map(|voters| voters.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> =
        dto.nodes.into_iter().map(|(node, addr)| (node, BasicNode { addr })).collect();
    Membership::new(configs, nodes).unwrap_or_default()
}

pub(crate) fn membership_dto(membership: &Membership<u64, BasicNode>) -> MembershipV1 {
    MembershipV1 {
        configs: membership.get_joint_config().iter().map(|voters| voters.iter().copied().collect()).collect(),
        nodes: membership.nodes().map(|(node, basic)| (*node, basic.addr.clone())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use data::{Command, Key, LeaseId, Txn};

    use super::Proposal;
    use crate::wire::{self, CommandV1};

    #[test]
    fn commands_of_several_callers_come_back_in_their_order_and_a_single_old_one_too() {
        let put = |name: &str| Command::Txn {
            txn: Txn::put(Key::new(name.as_bytes().to_vec()).unwrap(), b"v".to_vec()),
            quota_bytes: 9,
        };
        let proposal = Proposal::of(vec![put("a"), Command::LeaseRevoke { lease: LeaseId(3) }, put("b")]);
        assert_eq!(Proposal::decode(proposal.encoded.clone()).unwrap(), proposal);
        let old = wire::encode(&CommandV1::from(&put("a")));
        assert_eq!(Proposal::decode_one(&old).unwrap(), Proposal::new(put("a")));
    }
}
