//! Who is told everything that can be seen from outside, and keeps what all invariants need: the one history of the
//! store, revision by revision. The first violation ends the world.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use data::{LeaseId, RaftRole};
use tokio::time::Instant;

use crate::invariants;
use crate::trace::Trace;

/// One change of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Which key.
    pub key: String,
    /// Its value; `None`: it is gone.
    pub value: Option<Bytes>,
    /// The lease it hangs on.
    pub lease: Option<LeaseId>,
}

/// What became of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Written {
    /// Acknowledged at this revision.
    At(u64),
    /// A compare did not hold, at this revision.
    Rejected(u64),
    /// Nobody knows.
    Unknown,
    /// It was refused: nothing was done.
    Refused,
}

/// What was known when something was asked.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// The newest revision told before.
    pub floor: u64,
}

/// What can be seen from outside.
#[derive(Clone, Debug)]
pub enum Observation {
    /// A write has its answer. Each value is written once.
    Wrote {
        /// When it was asked.
        span: Span,
        /// Which key.
        key: String,
        /// What is unique about it.
        value: Bytes,
        /// What became of it.
        outcome: Written,
    },
    /// A linearizable read has its answer.
    Read {
        /// When it was asked.
        span: Span,
        /// Which key.
        key: String,
        /// The store's revision.
        revision: u64,
        /// Its value and when it was written.
        found: Option<(Bytes, u64)>,
    },
    /// A node's watch brought the changes of a revision.
    Watched {
        /// Which node.
        place: usize,
        /// The revision.
        revision: u64,
        /// What changed.
        changes: Vec<Change>,
    },
    /// A node's watch began anew at this revision, which it had not been told of by changes.
    WatchBegan {
        /// Which node.
        place: usize,
        /// The last revision it is not told of.
        revision: u64,
    },
    /// A node's store was opened, or not.
    Opened {
        /// Which node.
        place: usize,
        /// Why not.
        error: Option<String>,
        /// Its disk had been damaged on purpose.
        damaged: bool,
    },
    /// What a node says of itself.
    Looked {
        /// Which node.
        place: usize,
        /// Its start.
        start: u64,
        /// What it is.
        role: RaftRole,
        /// Its term.
        term: u64,
        /// Its revision.
        revision: u64,
        /// Its last applied entry.
        applied: u64,
    },
    /// A node begins anew with an empty disk.
    Wiped {
        /// Which node.
        place: usize,
    },
    /// A lease was granted, or kept alive: it lives at least so long from when it was asked.
    Leased {
        /// Which lease.
        lease: LeaseId,
        /// When it was asked.
        asked: Instant,
        /// Time to live.
        ttl: Duration,
    },
    /// Whoever kept a lease alive does not any more.
    LetGo {
        /// Which lease.
        lease: LeaseId,
        /// It was given back: it may end at once.
        revoked: bool,
    },
    /// A node answers again after that, or not within the time it is given.
    Recovered {
        /// Which node.
        place: usize,
        /// What it lacks.
        problem: Option<String>,
    },
    /// What a node holds in the end.
    Held {
        /// Which node.
        place: usize,
        /// Its revision.
        revision: u64,
        /// Every key, its value and when it was written.
        pairs: BTreeMap<String, (Bytes, u64)>,
    },
    /// A process of a service became primary.
    PrimaryBegan {
        /// Which process: node, instance and start.
        process: String,
        /// In which term.
        epoch: u64,
    },
    /// A process is primary no more: it has ended.
    PrimaryEnded {
        /// Which process.
        process: String,
    },
    /// A task of a node panicked.
    Panicked {
        /// What it said.
        message: String,
    },
    /// The world is over.
    Over,
}

/// What was violated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// By which name.
    pub invariant: &'static str,
    /// What was seen.
    pub message: String,
}

/// The one history of the store, as its nodes tell it.
#[derive(Debug, Default)]
pub struct History {
    /// What changed at each revision.
    pub changes: BTreeMap<u64, Vec<Change>>,
    /// When a revision was first seen by anybody.
    pub first_seen: BTreeMap<u64, Instant>,
    /// The newest revision that anybody outside was told of.
    pub told: u64,
}

impl History {
    /// What a key held at a revision, if it is known: its value and when it was written.
    pub fn value_at(&self, key: &str, revision: u64) -> Option<(u64, &Change)> {
        let before = self.changes.range(..=revision).rev();
        let mut of_key =
            before.filter_map(|(at, changes)| Some((*at, changes.iter().rev().find(|change| change.key == key)?)));
        of_key.next()
    }
}

/// Something that must always hold.
pub trait Invariant {
    /// Its name, which is its file's.
    fn name(&self) -> &'static str;

    /// Looks at what has happened.
    ///
    /// # Errors
    /// What is wrong with it.
    fn look(&mut self, seen: &Observation, history: &History) -> Result<(), String>;
}

/// Clones share it.
#[derive(Clone)]
pub struct Judge(Rc<RefCell<Bench>>);

struct Bench {
    trace: Trace,
    history: History,
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
    seen: u64,
}

impl Judge {
    /// With all invariants.
    pub fn new(trace: Trace) -> Self {
        let bench =
            Bench { trace, history: History::default(), invariants: invariants::all(), violation: None, seen: 0 };
        Self(Rc::new(RefCell::new(bench)))
    }

    /// What is known now, for what is asked now.
    pub fn span(&self) -> Span {
        Span { floor: self.0.borrow().history.told }
    }

    /// Something can be seen.
    pub fn see(&self, seen: &Observation) {
        let bench = &mut *self.0.borrow_mut();
        bench.seen += 1;
        for invariant in &mut bench.invariants {
            if let Err(message) = invariant.look(seen, &bench.history)
                && bench.violation.is_none()
            {
                bench.trace.say(format!("VIOLATED {}: {message}", invariant.name()));
                bench.violation = Some(Violation { invariant: invariant.name(), message });
            }
        }
        bench.history.keep(seen);
    }

    /// The first violation.
    pub fn violation(&self) -> Option<Violation> {
        self.0.borrow().violation.clone()
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.0.borrow().seen
    }

    /// Revisions so far.
    pub fn revisions(&self) -> u64 {
        self.0.borrow().history.changes.len() as u64
    }
}

impl History {
    fn keep(&mut self, seen: &Observation) {
        match seen {
            Observation::Wrote { outcome: Written::At(revision) | Written::Rejected(revision), .. }
            | Observation::Read { revision, .. } => self.told = self.told.max(*revision),
            Observation::Watched { revision, changes, .. } => {
                self.changes.entry(*revision).or_insert_with(|| changes.clone());
                self.first_seen.entry(*revision).or_insert_with(Instant::now);
            }
            _ => {}
        }
    }
}
