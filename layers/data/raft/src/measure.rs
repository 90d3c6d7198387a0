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
        let superblock = Superblock::create(&*options.disk, directory, content)
            .map_err(OpenError::io("write the superblock of", directory))?;
        Ok(Self { wal: Wal::open(&options, superblock)?, next: 1 })
    }

    /// Appends one record and waits until it is flushed.
    ///
    /// # Errors
    /// It could not be written or flushed; then the log takes nothing any more.
    pub fn append(&mut self, payload: Bytes) -> io::Result<()> {
        let records = vec![Record { kind: Kind::Commands, term: 1, index: self.next, payload }];
        self.next += 1;
        self.wait(|done| Order::Append { records, done })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What is on disk may not be all.
    pub fn close(self) -> io::Result<()> {
        self.wait(|done| Order::Close { done })?;
        self.wal.join();
        Ok(())
    }

    fn wait(&self, order: impl FnOnce(Done) -> Order) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel();
        // Whoever waits is here until it is called.
        self.wal.order(order(Box::new(move |result| drop(sender.send(result)))));
        receiver.recv().map_err(io::Error::other)?
    }
}

impl fmt::Debug for BareLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BareLog").field("next", &self.next).finish_non_exhaustive()
    }
}
