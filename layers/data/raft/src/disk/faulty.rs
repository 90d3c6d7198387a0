//! A disk that fails at a chosen call: the n-th write, flush or reservation returns the chosen error.
//! A failing write may be torn: part of it reaches the file.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Disk, DiskFile, FileLock};

/// Which kind of call is counted and failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Writes.
    Write,
    /// Flushes of files.
    Sync,
    /// Reservations of space.
    Preallocate,
}

/// Wraps a disk and fails it on a schedule. Clones share the schedule.
#[derive(Debug, Clone)]
pub struct FaultyDisk {
    inner: Arc<dyn Disk>,
    schedule: Arc<Mutex<Schedule>>,
}

#[derive(Debug, Default)]
struct Schedule {
    writes: u64,
    syncs: u64,
    preallocations: u64,
    fault: Option<Fault>,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    operation: Operation,
    /// Calls still to let through.
    after: u64,
    kind: io::ErrorKind,
    /// Fail every call from there on, not just one.
    sticky: bool,
}

impl FaultyDisk {
    /// A disk that works until told otherwise.
    pub fn new(inner: Arc<dyn Disk>) -> Self {
        Self { inner, schedule: Arc::default() }
    }

    /// Lets `after` calls of `operation` through, then fails the next one (`sticky`: and all later ones) with `kind`.
    pub fn fail(&self, operation: Operation, after: u64, kind: io::ErrorKind, sticky: bool) {
        self.schedule().fault = Some(Fault { operation, after, kind, sticky });
    }

    /// Works again.
    pub fn heal(&self) {
        self.schedule().fault = None;
    }

    /// How many calls of `operation` were made so far.
    pub fn calls(&self, operation: Operation) -> u64 {
        let schedule = self.schedule();
        match operation {
            Operation::Write => schedule.writes,
            Operation::Sync => schedule.syncs,
            Operation::Preallocate => schedule.preallocations,
        }
    }

    fn schedule(&self) -> std::sync::MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(schedule: &Mutex<Schedule>, operation: Operation) -> io::Result<()> {
        let mut schedule = schedule.lock().unwrap_or_else(PoisonError::into_inner);
        match operation {
            Operation::Write => schedule.writes += 1,
            Operation::Sync => schedule.syncs += 1,
            Operation::Preallocate => schedule.preallocations += 1,
        }
        let Some(fault) = &mut schedule.fault else { return Ok(()) };
        if fault.operation != operation {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        let (kind, sticky) = (fault.kind, fault.sticky);
        if !sticky {
            schedule.fault = None;
        }
        Err(kind.into())
    }
}

impl Disk for FaultyDisk {
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.create_directory(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.inner.list(directory)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let inner = self.inner.open(path, create)?;
        Ok(Box::new(FaultyFile { inner, schedule: self.schedule.clone() }))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.inner.replace(path, content)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        self.inner.lock(path)
    }
}

#[derive(Debug)]
struct FaultyFile {
    inner: Box<dyn DiskFile>,
    schedule: Arc<Mutex<Schedule>>,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buffer, offset)
    }

    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = FaultyDisk::check(&self.schedule, Operation::Write) {
            // Torn: the first half arrives.
            self.inner.write_all_at(&buffer[..buffer.len() / 2], offset)?;
            return Err(error);
        }
        self.inner.write_all_at(buffer, offset)
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        FaultyDisk::check(&self.schedule, Operation::Preallocate)?;
        self.inner.preallocate(length)
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.inner.truncate(length)
    }

    fn begin_write_back(&self, offset: u64, length: u64) {
        self.inner.begin_write_back(offset, length);
    }

    fn sync(&self) -> io::Result<()> {
        FaultyDisk::check(&self.schedule, Operation::Sync)?;
        self.inner.sync()
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }
}
