//! Who is known, and where each was last heard of. What a node says of itself counts more than what a membership says
//! of it, so that a node may move.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: Arc<str>,
    pub address: String,
    /// It said so itself, since this process began.
    pub heard: Option<Instant>,
    /// It belongs to a cluster already.
    pub member: bool,
}

/// Nodes by their number.
#[derive(Debug, Default)]
pub(crate) struct Book(BTreeMap<u64, Entry>);

impl Book {
    /// A node said who and where it is.
    pub(crate) fn heard(&mut self, id: u64, name: &str, address: &str, member: bool) {
        // Of two with one name, a store that was lost and its successor, the one that spoke last is there.
        self.0.retain(|known, entry| *known == id || *entry.name != *name || entry.member);
        let entry = Entry { name: name.into(), address: address.to_owned(), heard: Some(Instant::now()), member };
        self.0.insert(id, entry);
    }

    /// A membership says that this node is there; nothing it said itself is replaced.
    pub(crate) fn told(&mut self, id: u64, name: &str, address: &str) {
        let new = || Entry { name: name.into(), address: address.to_owned(), heard: None, member: true };
        self.0.entry(id).and_modify(|entry| entry.member = true).or_insert_with(new);
    }

    pub(crate) fn address(&self, id: u64) -> Option<String> {
        self.0.get(&id).map(|entry| entry.address.clone())
    }

    /// Everybody that has spoken, in order of their names.
    pub(crate) fn spoken(&self) -> Vec<(u64, Entry)> {
        let mut spoken: Vec<(u64, Entry)> =
            self.0.iter().filter(|(_, entry)| entry.heard.is_some()).map(|(id, entry)| (*id, entry.clone())).collect();
        spoken.sort_by(|left, right| left.1.name.cmp(&right.1.name));
        spoken
    }
}
