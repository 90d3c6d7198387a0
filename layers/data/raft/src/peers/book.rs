//! Who is known, and where each was last heard of. What a node says of itself counts most, then what others have heard
//! of it since, then what a membership says: a node may move. Kept in a file, so that a node that was away while others
//! moved has the newest addresses anybody told it; the file is a help, nothing rests on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::disk::{Disk, read_all};
use crate::wire;

/// Most nodes of a book: a cluster has a handful.
const MOST: usize = 256;
/// Its file, in the store's directory.
const FILE: &str = "peers";

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub name: Arc<str>,
    pub address: String,
    /// When its process of this address began, by its own clock.
    pub began_ms: u64,
    /// It said so itself, since this process began.
    pub heard: Option<Instant>,
    /// It belongs to a cluster already.
    pub member: bool,
    /// It said that it has no data.
    pub witness: bool,
}

/// An entry as it is told to others and kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct NoteV1 {
    pub id: u64,
    pub name: String,
    pub address: String,
    pub began_ms: u64,
}

/// Nodes by their number.
#[derive(Debug, Default)]
pub(crate) struct Book {
    entries: BTreeMap<u64, Entry>,
    file: Option<(Arc<dyn Disk>, PathBuf)>,
}

impl Book {
    /// Reads what was kept in a store's directory, and keeps it there from now on.
    pub(crate) fn keep_in(&mut self, disk: Arc<dyn Disk>, directory: &Path) {
        let path = directory.join(FILE);
        let read = disk.open(&path, false).and_then(|file| read_all(&*file));
        let kept = read.ok().and_then(|bytes| wire::decode::<Vec<NoteV1>>(&bytes).ok());
        self.file = Some((disk, path));
        kept.unwrap_or_default().iter().for_each(|note| self.told(note));
    }

    /// A node said who and where it is.
    pub(crate) fn heard(&mut self, note: &NoteV1, member: bool) {
        // Of two with one name, a store that was lost and its successor, the one that spoke last is there.
        self.entries.retain(|known, entry| *known == note.id || *entry.name != *note.name || entry.member);
        let moved = self.entries.get(&note.id).is_none_or(|entry| entry.address != note.address);
        let entry = Entry { heard: Some(Instant::now()), member, ..entry(note) };
        self.entries.insert(note.id, entry);
        if moved {
            self.save();
        }
    }

    /// What a node that was heard says that it is.
    pub(crate) fn is_a_witness(&mut self, id: u64, witness: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.witness = witness;
        }
    }

    /// Whether a node that was heard is a witness.
    pub(crate) fn is_witness(&self, id: u64) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.witness)
    }

    /// Somebody else has heard of a node.
    pub(crate) fn told(&mut self, note: &NoteV1) {
        let newer = self.entries.get(&note.id).is_none_or(|known| known.began_ms < note.began_ms);
        if newer && self.entries.len() < MOST {
            let known = self.entries.get(&note.id);
            let (heard, member, witness) =
                known.map_or((None, true, false), |known| (known.heard, known.member, known.witness));
            self.entries.insert(note.id, Entry { heard, member, witness, ..entry(note) });
            self.save();
        }
    }

    /// A membership says that this node is there; nothing that was heard of it is replaced.
    pub(crate) fn listed(&mut self, id: u64, name: &str, address: &str) {
        let note = NoteV1 { id, name: name.to_owned(), address: address.to_owned(), began_ms: 0 };
        self.entries.entry(id).and_modify(|entry| entry.member = true).or_insert_with(|| entry(&note));
    }

    /// What others may be told.
    pub(crate) fn notes(&self) -> Vec<NoteV1> {
        let note = |(id, entry): (&u64, &Entry)| NoteV1 {
            id: *id,
            name: entry.name.to_string(),
            address: entry.address.clone(),
            began_ms: entry.began_ms,
        };
        self.entries.iter().filter(|(_, entry)| entry.began_ms > 0).map(note).collect()
    }

    pub(crate) fn address(&self, id: u64) -> Option<String> {
        self.entries.get(&id).map(|entry| entry.address.clone())
    }

    /// Everybody that has spoken, in order of their names.
    pub(crate) fn spoken(&self) -> Vec<(u64, Entry)> {
        let spoken = self.entries.iter().filter(|(_, entry)| entry.heard.is_some());
        let mut spoken: Vec<(u64, Entry)> = spoken.map(|(id, entry)| (*id, entry.clone())).collect();
        spoken.sort_by(|left, right| left.1.name.cmp(&right.1.name));
        spoken
    }

    fn save(&self) {
        let Some((disk, path)) = &self.file else { return };
        if let Err(error) = disk.replace(path, &wire::encode(&self.notes())) {
            tracing::warn!(file = %path.display(), %error, "addresses of other nodes could not be kept");
        }
    }
}

fn entry(note: &NoteV1) -> Entry {
    Entry {
        name: note.name.as_str().into(),
        address: note.address.clone(),
        began_ms: note.began_ms,
        heard: None,
        member: true,
        witness: false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Book, NoteV1};
    use crate::disk::RealDisk;

    fn note(address: &str, began_ms: u64) -> NoteV1 {
        NoteV1 { id: 7, name: "n7".into(), address: address.into(), began_ms }
    }

    #[test]
    fn the_newest_address_counts_whoever_tells_it_and_survives() {
        let directory = tempfile::tempdir().unwrap();
        let mut book = Book::default();
        book.keep_in(Arc::new(RealDisk), directory.path());
        book.listed(7, "n7", "a:1");
        assert_eq!(book.address(7).as_deref(), Some("a:1"));
        book.heard(&note("b:1", 10), true);
        book.told(&note("old:1", 9));
        book.listed(7, "n7", "a:1");
        assert_eq!(book.address(7).as_deref(), Some("b:1"));
        book.told(&note("c:1", 11));
        assert_eq!(book.address(7).as_deref(), Some("c:1"), "it has moved since it spoke here");
        let mut later = Book::default();
        later.keep_in(Arc::new(RealDisk), directory.path());
        assert_eq!(later.address(7).as_deref(), Some("c:1"));
        std::fs::write(directory.path().join("peers"), b"garbage").unwrap();
        let mut damaged = Book::default();
        damaged.keep_in(Arc::new(RealDisk), directory.path());
        assert_eq!(damaged.address(7), None, "a help, not more");
    }
}
