//! The cluster's agents, for screens: they are no members, so all that is known of them is what they say in the store.
//! Deliberately absent: any decision. Where instances are placed, an agent is a node like any other.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use api::view::MemberView;
use model::NodeName;

use super::records::NodeRecord;

/// What an agent calls itself in its record.
pub const AGENT: &str = "agent";
/// One that has been away for so long is not shown any more.
const SHOWN: Duration = Duration::from_secs(3600);

/// Agents that are there or were.
#[derive(Debug, Default)]
pub struct Agents(BTreeMap<NodeName, Agent>);

#[derive(Debug)]
struct Agent {
    address: String,
    stopping: bool,
    lost: Option<Instant>,
}

impl Agents {
    /// A node says what it is.
    pub fn heard(&mut self, node: &NodeName, record: &NodeRecord) {
        if record.role != AGENT {
            self.0.remove(node);
            return;
        }
        let agent = Agent { address: record.address.clone(), stopping: record.stopping, lost: None };
        self.0.insert(node.clone(), agent);
    }

    /// A node is not there any more.
    pub fn lost(&mut self, node: &NodeName, now: Instant) {
        if let Some(agent) = self.0.get_mut(node) {
            agent.lost = Some(now);
        }
        self.0.retain(|_, agent| agent.lost.is_none_or(|lost| now.saturating_duration_since(lost) < SHOWN));
    }

    /// Whether this is one of them that should be there.
    pub fn misses(&self, node: &str) -> bool {
        self.0.get(&NodeName::from(node)).is_some_and(|agent| agent.lost.is_some() && !agent.stopping)
    }

    /// As members are shown.
    pub fn shown(&self) -> impl Iterator<Item = MemberView> {
        self.0.iter().map(|(name, agent)| MemberView {
            name: name.clone(),
            role: AGENT.to_owned(),
            state: match (agent.lost, agent.stopping) {
                (None, false) => "there",
                (None, true) => "stopping",
                (Some(_), false) => "missing",
                (Some(_), true) => "stopped",
            }
            .to_owned(),
            lag: None,
            address: agent.address.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Agents, NodeRecord, SHOWN};

    fn record(role: &str, stopping: bool) -> NodeRecord {
        NodeRecord { role: role.into(), address: "10.0.0.4".into(), stopping, ..NodeRecord::default() }
    }

    fn states(agents: &Agents) -> Vec<(String, String)> {
        agents.shown().map(|shown| (shown.name.to_string(), shown.state)).collect()
    }

    #[test]
    fn agents_are_shown_while_they_are_there_and_for_an_hour_after_that() {
        let (mut agents, now) = (Agents::default(), Instant::now());
        agents.heard(&"n1".into(), &record("server", false));
        agents.heard(&"a1".into(), &record("agent", false));
        agents.heard(&"a2".into(), &record("agent", true));
        let pair = |name: &str, state: &str| (name.to_owned(), state.to_owned());
        assert_eq!(states(&agents), [pair("a1", "there"), pair("a2", "stopping")]);
        for name in ["n1", "a1", "a2"] {
            agents.lost(&name.into(), now);
        }
        assert_eq!(states(&agents), [pair("a1", "missing"), pair("a2", "stopped")]);
        assert!(agents.misses("a1") && !agents.misses("a2") && !agents.misses("n1"));
        agents.heard(&"a1".into(), &record("agent", false));
        agents.lost(&"n1".into(), now + SHOWN + Duration::from_secs(1));
        assert_eq!(states(&agents), [pair("a1", "there")]);
    }
}
