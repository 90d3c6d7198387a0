//! What clients saw: one operation each with when it was called, when it returned and what came of it.
//! Kept as JSON lines beside the logs of a round that fails.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Not a time: the operation never returned.
pub const NEVER: u64 = u64::MAX;

/// One call of one client on one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who called; clients call one thing after the other.
    pub client: usize,
    /// Through which node.
    pub node: usize,
    /// The key's number.
    pub key: usize,
    /// Microseconds since the round began.
    pub called: u64,
    /// Microseconds since the round began; [`NEVER`] if nothing is known of its end.
    pub returned: u64,
    /// What was asked and what came of it.
    pub did: Did,
}

/// Values are numbers that are written once in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    /// A linearizable read: value and revision of its last change, or nothing there.
    Read(Option<(u64, u64)>),
    /// A write that was acknowledged with its revision; with `cas`, only if the key was at that one (0: not there).
    Wrote { value: u64, cas: Option<u64>, revision: u64 },
    /// A comparison that failed: the key was at `current` (0: not there). Nothing was written.
    Conflicted { cas: u64, current: u64 },
    /// It may take effect at any later time, or never.
    Unknown { value: u64, cas: Option<u64> },
    /// A write that was refused with the promise that nothing was written.
    Refused { value: u64 },
}

impl Operation {
    /// One line of the history.
    pub fn line(&self) -> String {
        let did = match self.did {
            Did::Read(found) => json!({ "read": found.map(|(value, _)| value), "revision": found.map(|(_, at)| at) }),
            Did::Wrote { value, cas, revision } => json!({ "wrote": value, "cas": cas, "revision": revision }),
            Did::Conflicted { cas, current } => json!({ "conflict": current, "cas": cas }),
            Did::Unknown { value, cas } => json!({ "unknown": value, "cas": cas }),
            Did::Refused { value } => json!({ "refused": value }),
        };
        let mut line = json!({ "client": self.client, "node": self.node + 1, "key": self.key, "called": self.called });
        line["returned"] = if self.returned == NEVER { Value::Null } else { self.returned.into() };
        for (name, value) in did.as_object().into_iter().flatten() {
            line[name] = value.clone();
        }
        line.to_string()
    }
}

/// The whole history as JSON lines.
pub fn lines(history: &[Operation]) -> String {
    history.iter().fold(String::new(), |mut text, operation| {
        // Writing to a text cannot fail.
        let _ = writeln!(text, "{}", operation.line());
        text
    })
}
