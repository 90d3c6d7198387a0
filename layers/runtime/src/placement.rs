//! Which node runs which instance: from what should run, where it runs now and who is there; nothing else.
//! Instances stay where they are while their node is there or has been away for less than `rescheduleAfter`; the rest is
//! spread, first over nodes that run the fewest of the same service, then over those that run the fewest in all.
//! Deliberately absent: clocks, and committing what comes out, which the leader's controller does.

use std::collections::BTreeMap;
use std::time::Duration;

use model::{InstanceId, NodeName};

/// What is known of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Its lease is good.
    There,
    /// Its lease has been gone for so long.
    Away(Duration),
}

/// Where the instances of one service are.
pub type Placed = BTreeMap<InstanceId, NodeName>;

/// Decides where each of `wanted` runs. `load` says how many instances of all services each node has. What cannot be
/// placed, because no node is there, is left out.
pub fn decide<'w>(
    wanted: impl Iterator<Item = &'w InstanceId>,
    placed: &Placed,
    nodes: &BTreeMap<NodeName, Presence>,
    load: &BTreeMap<NodeName, usize>,
    reschedule_after: Duration,
) -> Placed {
    let stays = |node: &NodeName| match nodes.get(node) {
        Some(Presence::There) => true,
        Some(Presence::Away(since)) => *since < reschedule_after,
        // Whoever has just become leader has not looked yet.
        None => false,
    };
    let (mut next, mut homeless) = (Placed::new(), Vec::new());
    for id in wanted {
        match placed.get(id).filter(|node| stays(node)) {
            Some(node) => drop(next.insert(id.clone(), node.clone())),
            None => homeless.push(id),
        }
    }
    for id in homeless {
        let there = nodes.iter().filter(|(_, presence)| **presence == Presence::There).map(|(node, _)| node);
        let same = |node: &NodeName| next.values().filter(|known| *known == node).count();
        let all = |node: &NodeName| load.get(node).copied().unwrap_or_default() + same(node);
        let Some(chosen) = there.min_by_key(|node| (same(node), all(node), *node)) else {
            // Better where it was than nowhere: its node may come back.
            if let Some(node) = placed.get(id) {
                next.insert(id.clone(), node.clone());
            }
            continue;
        };
        next.insert(id.clone(), chosen.clone());
    }
    next
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{Placed, Presence, decide};

    const AFTER: Duration = Duration::from_secs(30);

    /// `n1 n2:5` is n1 there and n2 away for 5 s.
    fn nodes(text: &str) -> BTreeMap<model::NodeName, Presence> {
        let node = |word: &str| match word.split_once(':') {
            None => (word.into(), Presence::There),
            Some((name, away)) => (name.into(), Presence::Away(Duration::from_secs(away.parse().unwrap()))),
        };
        text.split_whitespace().map(node).collect()
    }

    /// `a=n1 b=n2`.
    fn placed(text: &str) -> Placed {
        text.split_whitespace()
            .map(|word| word.split_once('=').unwrap())
            .map(|(id, at)| (id.into(), at.into()))
            .collect()
    }

    fn check(wanted: &str, before: &str, who: &str, load: &[(&str, usize)], expected: &str) {
        let wanted: Vec<model::InstanceId> = wanted.split_whitespace().map(Into::into).collect();
        let load = load.iter().map(|(node, count)| ((*node).into(), *count)).collect();
        let next = decide(wanted.iter(), &placed(before), &nodes(who), &load, AFTER);
        assert_eq!(next, placed(expected), "{wanted:?} {before:?} {who:?}");
    }

    #[test]
    fn replicas_are_spread_over_nodes_and_then_over_the_idle_ones() {
        check("a b c", "", "n1 n2 n3", &[], "a=n1 b=n2 c=n3");
        check("a b", "", "n1 n2 n3", &[("n1", 4), ("n2", 1)], "a=n3 b=n2");
        check("a b c d", "", "n1 n2", &[], "a=n1 b=n2 c=n1 d=n2");
        check("a b", "", "n1", &[], "a=n1 b=n1");
    }

    #[test]
    fn what_runs_stays_and_what_is_not_wanted_goes() {
        check("a b c", "a=n1 b=n1 z=n2", "n1 n2 n3", &[], "a=n1 b=n1 c=n2");
    }

    #[test]
    fn a_lost_node_keeps_its_instances_for_a_while_and_then_loses_them() {
        check("a b", "a=n1 b=n2", "n1 n2:29 n3", &[], "a=n1 b=n2");
        check("a b", "a=n1 b=n2", "n1 n2:30 n3", &[], "a=n1 b=n3");
        check("a b", "a=n1 b=n2", "n1 n3", &[], "a=n1 b=n3");
    }

    #[test]
    fn without_a_node_nothing_moves() {
        check("a b", "a=n1", "n1:99", &[], "a=n1");
    }
}
