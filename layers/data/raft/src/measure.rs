//! The log with nothing above it, for whoever measures it beside the disk. Deliberately absent: everything a store is for.

use std::path::Path;
use std::sync::mpsc;
use std::{fmt, io};

use bytes::Bytes;

use crate::open_error::OpenError;
use crate::options::Options;
use crate::record::{Kind, Record};
use crate::superblock::{Superblock, SuperblockV1};
use crate::wal::{Done, Order, Wal};

/// A log of its own, in its own directory.
pub struct BareLog {
    wal: Wal,
    next: u64,
    flushed: mpsc::Receiver<io::Result<()>>,
    flushes: mpsc::Sender<io::Result<()>>,
}

impl BareLog {
    /// A fresh log in an existing, empty directory.
    ///
    /// # Errors
    /// The directory cannot be written to.
    pub fn create(directory: &Path) -> Result<Self, OpenError> {
        let options = Options::new(directory);
        let content = SuperblockV1 {
            store_id: [1; 16],
            node_id: 1,
            group: 0,
            vote: None,
            purged: None,
            snapshot: None,
            newest_segment: 0,
            clean_end: None,
        };
        let superblock = Superblock::create(&*options.disk, directory, false, content)
            .map_err(OpenError::io("write the superblock of", directory))?;
        let (flushes, flushed) = mpsc::channel();
        Ok(Self { wal: Wal::open(&options, superblock)?, next: 0, flushed, flushes })
    }

    /// Appends one record, for which [`flushed`](Self::flushed) is to wait.
    pub fn append(&mut self, payload: Bytes) {
        let records = vec![Record { kind: Kind::Commands, term: 1, index: self.next, payload }];
        self.next += 1;
        let done = self.done();
        self.wal.order(Order::Append { records, done });
    }

    /// Waits until the oldest record that was not waited for is flushed.
    ///
    /// # Errors
    /// It could not be written or flushed; then the log takes nothing any more.
    pub fn flushed(&self) -> io::Result<()> {
        self.flushed.recv().map_err(io::Error::other)?
    }

    /// How often the disk was flushed.
    pub fn flushes(&self) -> u64 {
        self.wal.metrics().fsync_micros.count()
    }

    /// Ends it.
    ///
    /// # Errors
    /// What is on disk may not be all.
    pub fn close(self) -> io::Result<()> {
        let done = self.done();
        self.wal.order(Order::Close { done });
        self.flushed()?;
        self.wal.join();
        Ok(())
    }

    fn done(&self) -> Done {
        let sender = self.flushes.clone();
        // Whoever waits may have gone.
        Box::new(move |result| drop(sender.send(result)))
    }
}

impl fmt::Debug for BareLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BareLog").field("next", &self.next).finish_non_exhaustive()
    }
}
