//! The event journal: a bounded node-local file of typed events, newest last, followed by `seawall events` and notices.
//! Decision events arrive here from the store after their commit; everything else is local to begin with.
//! Written at once, shown to readers by [`Journal::publish`]: who has read of an event finds a status that knows of it.
//! Bounded twice: the file by rotation, memory by count. A journal that cannot be written is never a reason to stop.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{Event, Revision};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The file is rotated at this size; one older file is kept.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Events kept in memory, and so answered to `seawall events`.
pub const MAX_IN_MEMORY: usize = 8192;

/// An event with its place in this node's journal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up by one from 1.
    pub seq: u64,
    /// The store revision at which it was committed; absent for local events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// The journal; clones share it.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    published: Condvar,
    newest: watch::Sender<u64>,
}

struct Inner {
    path: PathBuf,
    file: Option<File>,
    size: u64,
    entries: VecDeque<Arc<Entry>>,
    next: u64,
    /// Readers see entries up to this one.
    published: u64,
    complained: bool,
}

impl Journal {
    /// Opens the journal in `directory` and reads what is there. A torn last line is left out.
    ///
    /// # Errors
    /// The operating system's.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("events.jsonl");
        let mut entries = VecDeque::new();
        for file in [rotated(&path), path.clone()] {
            read(&file, &mut entries)?;
        }
        let next = entries.back().map_or(1, |entry: &Arc<Entry>| entry.seq + 1);
        let mut inner = Inner { path, file: None, size: 0, entries, next, published: next - 1, complained: false };
        inner.reopen()?;
        let shared =
            Shared { inner: Mutex::new(inner), published: Condvar::new(), newest: watch::Sender::new(next - 1) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Appends an event, which readers see once it is published; `revision` is where it was committed, if it was.
    pub fn append(&self, event: Event, revision: Option<Revision>) {
        let mut inner = self.lock();
        let entry = Arc::new(Entry { seq: inner.next, revision, event });
        inner.next += 1;
        inner.write(&entry);
        inner.entries.push_back(entry);
        if inner.entries.len() > MAX_IN_MEMORY {
            inner.entries.pop_front();
        }
    }

    /// Shows readers everything that has been appended.
    pub fn publish(&self) {
        let mut inner = self.lock();
        let newest = inner.next - 1;
        if std::mem::replace(&mut inner.published, newest) == newest {
            return;
        }
        drop(inner);
        self.shared.newest.send_replace(newest);
        self.shared.published.notify_all();
    }

    /// Entries after `seq`, oldest first, at most `limit`.
    pub fn after(&self, seq: u64, limit: usize) -> Vec<Arc<Entry>> {
        let inner = self.lock();
        let start = inner.entries.partition_point(|entry| entry.seq <= seq);
        inner.shown().skip(start).take(limit).cloned().collect()
    }

    /// The newest `count` entries, oldest first.
    pub fn newest(&self, count: usize) -> Vec<Arc<Entry>> {
        let inner = self.lock();
        inner.shown().skip(inner.shown().count().saturating_sub(count)).cloned().collect()
    }

    /// The newest revision of a committed event that is in the journal, published or not.
    pub fn newest_revision(&self) -> Revision {
        self.lock().entries.iter().filter_map(|entry| entry.revision).max().unwrap_or_default()
    }

    /// Follows the number of the newest published entry.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.shared.newest.subscribe()
    }

    /// Blocks until an entry after `seq` is published, at most `patience`.
    pub fn wait_after(&self, seq: u64, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut inner = self.lock();
        while inner.published <= seq {
            let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) else {
                return;
            };
            inner = self.shared.published.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// What readers see, oldest first.
    fn shown(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().take(self.entries.partition_point(|entry| entry.seq <= self.published))
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut file = File::options().create(true).append(true).open(&self.path)?;
        self.size = file.metadata()?.len();
        if self.size > 0 {
            // Whatever a crash left unfinished ends here; a blank line is skipped when read.
            file.write_all(b"\n")?;
        }
        self.file = Some(file);
        Ok(())
    }

    fn write(&mut self, entry: &Entry) {
        let mut line = serde_json::to_vec(entry).expect("an event always becomes JSON");
        line.push(b'\n');
        let result = self.append_line(&line);
        match result {
            Ok(()) => self.complained = false,
            Err(error) if !std::mem::replace(&mut self.complained, true) => {
                tracing::error!(path = %self.path.display(), %error, "events are kept in memory only: the journal cannot be written");
            }
            Err(_) => {}
        }
    }

    fn append_line(&mut self, line: &[u8]) -> io::Result<()> {
        let full = self.size + line.len() as u64 > MAX_FILE_BYTES;
        if full {
            self.file = None;
        }
        // Where somebody keeps the file open so that it cannot be renamed (Windows), nothing is lost but the bound: lines
        // still go to the end of it, and the next one tries again.
        let renamed = if full { fs::rename(&self.path, rotated(&self.path)) } else { Ok(()) };
        if self.file.is_none() {
            self.reopen()?;
        }
        if self.size > 4 * MAX_FILE_BYTES {
            return renamed;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        file.write_all(line)?;
        self.size += line.len() as u64;
        Ok(())
    }
}

fn rotated(path: &Path) -> PathBuf {
    path.with_extension("jsonl.1")
}

fn read(path: &Path, entries: &mut VecDeque<Arc<Entry>>) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for line in BufReader::new(file).split(b'\n') {
        if let Ok(entry) = serde_json::from_slice::<Entry>(&line?) {
            entries.push_back(Arc::new(entry));
            if entries.len() > MAX_IN_MEMORY {
                entries.pop_front();
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::{Event, EventKind, Revision};

    use super::{Journal, MAX_FILE_BYTES};

    fn event(message: &str) -> Event {
        Event {
            at: crate::now(),
            kind: EventKind::InstanceDied,
            node: "n".into(),
            service: Some("s".into()),
            instance: None,
            epoch: None,
            cause: "c".into(),
            message: message.into(),
        }
    }

    #[test]
    fn entries_survive_and_a_torn_line_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.append(event("one"), None);
        journal.append(event("two"), Some(Revision(9)));
        drop(journal);
        let path = folder.path().join("events.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"seq\":3,\"at\"");
        std::fs::write(&path, text).unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.append(event("three"), None);
        drop(journal);
        let journal = Journal::open(folder.path()).unwrap();
        let messages: Vec<String> = journal.after(0, 10).iter().map(|entry| entry.event.message.clone()).collect();
        assert_eq!(messages, ["one", "two", "three"]);
        assert_eq!(journal.newest_revision(), Revision(9));
        assert_eq!(journal.after(2, 10).len(), 1);
    }

    #[test]
    fn readers_see_what_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let mut follows = journal.follow();
        let messages = |entries: Vec<std::sync::Arc<super::Entry>>| -> Vec<String> {
            entries.iter().map(|entry| entry.event.message.clone()).collect()
        };
        journal.append(event("one"), None);
        journal.publish();
        assert!(follows.has_changed().unwrap() && *follows.borrow_and_update() == 1);
        journal.append(event("two"), None);
        assert!(!follows.has_changed().unwrap());
        assert_eq!(messages(journal.after(0, 10)), ["one"]);
        assert_eq!(messages(journal.newest(10)), ["one"]);
        journal.publish();
        assert_eq!(messages(journal.newest(1)), ["two"]);
        // Whoever ends without having published has lost nothing.
        journal.append(event("three"), None);
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(messages(journal.after(2, 10)), ["three"]);
    }

    #[test]
    fn the_files_stay_within_their_bound() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let long = "x".repeat(100_000);
        for _ in 0..200 {
            journal.append(event(&long), None);
        }
        let sizes: Vec<u64> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), 2);
        assert!(sizes.iter().all(|size| *size <= MAX_FILE_BYTES), "{sizes:?}");
    }
}
