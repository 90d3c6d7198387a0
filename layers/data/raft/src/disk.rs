//! The seam between the log and the disk, so that tests inject faults and a simulator supplies its own.
//! Two implementations: the operating system's files, and a wrapper that fails at chosen calls.

use std::fmt::Debug;
use std::io;
use std::path::Path;

mod faulty;
pub(crate) mod going;
mod real;

pub use faulty::{FaultyDisk, Operation};
pub use real::RealDisk;

/// What the log needs of a file system.
pub trait Disk: Debug + Send + Sync + 'static {
    /// Makes a directory and its parents; fine if it exists.
    ///
    /// # Errors
    /// The operating system's, as for all below.
    fn create_directory(&self, directory: &Path) -> io::Result<()>;

    /// Names of the files in a directory, in order.
    fn list(&self, directory: &Path) -> io::Result<Vec<String>>;

    /// Opens a file for reading and writing; makes it if `create`.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes created and removed names durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;

    /// Gives a file this content, all of it or, after a crash, what it held before. Not durable by itself.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Takes a file, made if absent, for this process until what is returned is dropped or the process ends.
    ///
    /// # Errors
    /// `ErrorKind::WouldBlock` if another process has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>>;
}

/// A file that is taken; dropping it lets go of it.
pub trait FileLock: Debug + Send {}

/// An open file, read and written at offsets.
pub trait DiskFile: Debug + Send + Sync {
    /// Reads at `offset`; may read less than asked, 0 at the end.
    ///
    /// # Errors
    /// The operating system's, as for all below.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buffer` at `offset`; on an error part of it may be written.
    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()>;

    /// Reserves `length` bytes and makes that the size.
    fn preallocate(&self, length: u64) -> io::Result<()>;

    /// These bytes were written and are flushed some time: the system may begin with them, so that the flush, and those of
    /// other files, take less long. A hint; nothing is known of them before the flush.
    fn begin_write_back(&self, _offset: u64, _length: u64) {}

    /// Cuts the file to `length` bytes.
    fn truncate(&self, length: u64) -> io::Result<()>;

    /// Makes what was written durable (fdatasync). After an error nothing is known of what was written since the last success.
    fn sync(&self) -> io::Result<()>;

    /// The file's size.
    fn length(&self) -> io::Result<u64>;
}

/// Reads exactly `buffer.len()` bytes at `offset`.
pub(crate) fn read_exact_at(file: &dyn DiskFile, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads a whole file.
pub(crate) fn read_all(file: &dyn DiskFile) -> io::Result<Vec<u8>> {
    let length = file.length()?;
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    read_exact_at(file, &mut buffer, 0)?;
    Ok(buffer)
}
