//! What questions are about, and when the answer to each changed last. A blocking query waits for its own topic, so that
//! nothing else wakes it. What is gone leaves its revision behind; when there are too many, the oldest are forgotten, and the
//! floor under all indices rises instead: an index never goes back.

use std::collections::HashMap;

use crate::record::CheckStatus;

/// What a question is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Topic {
    /// The list of machines.
    Nodes,
    /// The list of services with their tags.
    Services,
    /// Instances of any service.
    Instances,
    /// Instances of a service.
    Service(String),
    /// The same with their checks.
    Health(String),
    /// Instances on a machine.
    NodeServices(String),
    /// Checks on a machine.
    NodeChecks(String),
    /// Checks of a service.
    ServiceChecks(String),
    /// All checks.
    Checks,
    /// Checks that stand so.
    State(CheckStatus),
    /// The list of sessions.
    Sessions,
    /// A session.
    Session(String),
    /// Sessions of a machine.
    NodeSessions(String),
    /// Prepared queries.
    Queries,
    /// Fired events.
    Fired,
    /// Tokens, policies, roles, ways to log in.
    Acls,
}

/// Topics that are remembered at most; some hundred bytes each.
const MOST: usize = 200_000;

/// When each topic changed last.
#[derive(Debug)]
pub struct Indices {
    at: HashMap<Topic, u64>,
    floor: u64,
    most: usize,
}

impl Default for Indices {
    fn default() -> Self {
        Self::bounded(MOST)
    }
}

impl Indices {
    /// Remembers at most so many topics.
    pub fn bounded(most: usize) -> Self {
        Self { at: HashMap::new(), floor: 0, most }
    }

    /// When `topic` changed last, or a later moment up to which it certainly did not change again; 0 before anything was written.
    pub fn of(&self, topic: &Topic) -> u64 {
        self.at.get(topic).copied().unwrap_or(self.floor).max(self.floor)
    }

    /// It changed at `revision`.
    pub fn touch(&mut self, topic: Topic, revision: u64) {
        self.at.insert(topic, revision);
        if self.at.len() > self.most {
            self.forget();
        }
    }

    /// Makes room for some time: an eighth goes.
    fn forget(&mut self) {
        let mut all: Vec<u64> = self.at.values().copied().collect();
        let (_, oldest, _) = all.select_nth_unstable(self.most / 8);
        self.floor = self.floor.max(*oldest);
        self.at.retain(|_, revision| *revision > self.floor);
    }

    /// Everything may have changed up to `revision`: what was between is not known.
    pub fn restart(&mut self, revision: u64) {
        self.at.clear();
        self.floor = self.floor.max(revision);
    }
}

#[cfg(test)]
mod tests {
    use super::{Indices, Topic};

    #[test]
    fn an_index_never_goes_back_whatever_is_forgotten() {
        let mut indices = Indices::bounded(10);
        let topic = |n: u64| Topic::Service(format!("s{n}"));
        let mut seen = vec![0; 50];
        for revision in 1..500 {
            indices.touch(topic(revision * 7 % 50), revision);
            if revision == 300 {
                indices.restart(revision);
            }
            for (n, seen) in seen.iter_mut().enumerate() {
                let now = indices.of(&topic(n as u64));
                assert!(now >= *seen && now <= revision, "{n} at {revision}: {now} after {seen}");
                *seen = now;
            }
        }
        assert!(indices.at.len() <= 10);
    }
}
