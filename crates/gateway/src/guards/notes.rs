//! What guards did, for whoever writes events: kept until it is taken, the newest so many. A signal only says that there
//! is something. Deliberately absent: words for operators; the control plane finds them.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use guard::breaker::{Forced, Turn};
use model::InstanceId;

use super::EjectedView;

/// One thing a guard did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The breaker changed by its own judgement.
    Breaker(Turn),
    /// So did the breaker of one instance.
    InstanceBreaker(InstanceId, Turn),
    /// An operator's word, or that it was taken back.
    Forced(Option<Forced>),
    /// An instance gets no requests for a while.
    Ejected(EjectedView),
    /// It gets some again.
    Returned(InstanceId),
}

/// The most notes kept; a breaker that turns more often than it is looked at loses the oldest.
const MOST: usize = 64;

/// One service's notes.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<VecDeque<Note>>);

impl Notes {
    pub(crate) fn add(&self, note: Note) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() == MOST {
            notes.pop_front();
        }
        notes.push_back(note);
    }

    pub(crate) fn take(&self) -> Vec<Note> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}
