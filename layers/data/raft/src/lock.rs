//! One process per data directory, and the reserve file for a full disk.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::disk::Disk;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::wal::need_bytes;

const LOCK: &str = "lock";
/// Who holds the lock: a file of its own, because Windows lets nobody read a locked one.
const OWNER: &str = "owner";
/// Space given up when the disk is full.
pub(crate) const RESERVE: &str = "reserve";

/// Holds the directory until dropped; the operating system lets go of it when the process dies.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

/// Makes the directory and takes it.
pub(crate) fn lock_directory(directory: &Path, disk: &dyn Disk) -> Result<DirectoryLock, OpenError> {
    let not_writable = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::StorageFull {
            return OpenError::DiskFull { directory: directory.to_path_buf(), need_bytes: 0 };
        }
        OpenError::NotWritable { directory: directory.to_path_buf(), source }
    };
    disk.create_directory(directory).map_err(not_writable)?;
    let path = directory.join(LOCK);
    let file = File::options().create(true).write(true).truncate(false).open(&path).map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let owner = std::fs::read_to_string(directory.join(OWNER)).unwrap_or_default();
            let owner = owner.trim();
            let owner = if owner.is_empty() { String::new() } else { format!(" (process {owner})") };
            return Err(OpenError::Locked { directory: directory.to_path_buf(), owner });
        }
        Err(TryLockError::Error(error)) => return Err(OpenError::io("lock", &path)(error)),
    }
    // Only a courtesy to whoever is refused: a full disk must not stop the start here.
    if let Err(error) = std::fs::write(directory.join(OWNER), std::process::id().to_string()) {
        tracing::warn!(%error, "cannot note this process as the owner of the data directory");
    }
    Ok(DirectoryLock { _file: file })
}

/// Holds back space, so that a full disk still leaves room to stop in good order.
pub(crate) fn reserve(options: &Options) -> Result<(), OpenError> {
    if options.reserve_bytes == 0 {
        return Ok(());
    }
    let path = options.directory.join(RESERVE);
    let file = options.disk.open(&path, true).map_err(OpenError::io("make", &path))?;
    if file.length().map_err(OpenError::io("measure", &path))? == options.reserve_bytes {
        return Ok(());
    }
    match file.preallocate(options.reserve_bytes) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            drop(file);
            // Best effort: half a reserve helps nobody.
            let _ = options.disk.remove(&path);
            Err(OpenError::DiskFull { directory: options.directory.clone(), need_bytes: need_bytes(options) })
        }
        Err(error) => Err(OpenError::io("reserve space in", &path)(error)),
    }
}
