//! The operating system's files.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use super::{Disk, DiskFile, FileLock};

/// The disk of this machine.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealDisk;

impl RealDisk {
    /// Opens a file that must not be changed, and may be on a disk that cannot be.
    pub(crate) fn open_to_read(self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(RealFile(File::open(path)?)))
    }
}

impl Disk for RealDisk {
    fn create_directory(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(directory)? {
            // A name that is not UTF-8 is not one of ours.
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let file = File::options().read(true).write(true).create(create).truncate(false).open(path)?;
        Ok(Box::new(RealFile(file)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        platform::file::sync_directory(directory)
    }

    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        fs::write(&fresh, content)?;
        fs::rename(&fresh, path)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn FileLock>> {
        let file = File::options().create(true).write(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(RealLock { _file: file })),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// The operating system lets go of it when the process dies.
#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl FileLock for RealLock {}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        platform::file::read_at(&self.0, buffer, offset)
    }

    fn write_all_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        platform::file::write_all_at(&self.0, buffer, offset)
    }

    fn preallocate(&self, length: u64) -> io::Result<()> {
        platform::file::preallocate(&self.0, length)
    }

    fn begin_write_back(&self, offset: u64, length: u64) {
        platform::file::begin_write_back(&self.0, offset, length);
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
