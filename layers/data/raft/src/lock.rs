//! One process per data directory, and the reserve file for a full disk.

use std::path::Path;

use crate::disk::{Disk, FileLock, read_all};
use crate::open_error::OpenError;
use crate::options::Options;
use crate::surroundings;
use crate::wal::need_bytes;

const LOCK: &str = "lock";
/// Who holds the lock: a file of its own, because Windows lets nobody read a locked one.
const OWNER: &str = "owner";
/// Space given up when the disk is full.
pub(crate) const RESERVE: &str = "reserve";

/// Makes the directory and takes it until what is returned is dropped.
pub(crate) fn lock_directory(directory: &Path, disk: &dyn Disk) -> Result<Box<dyn FileLock>, OpenError> {
    let not_writable = |source: std::io::Error| {
        if source.kind() == std::io::ErrorKind::StorageFull {
            return OpenError::DiskFull { directory: directory.to_path_buf(), need_bytes: 0 };
        }
        OpenError::NotWritable { directory: directory.to_path_buf(), source }
    };
    disk.create_directory(directory).map_err(not_writable)?;
    let owner_file = directory.join(OWNER);
    let lock = match disk.lock(&directory.join(LOCK)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            let owner = disk.open(&owner_file, false).and_then(|file| read_all(&*file)).unwrap_or_default();
            let owner = String::from_utf8_lossy(&owner);
            let owner = owner.trim();
            let owner = if owner.is_empty() { String::new() } else { format!(" (process {owner})") };
            return Err(OpenError::Locked { directory: directory.to_path_buf(), owner });
        }
        Err(error) => return Err(not_writable(error)),
    };
    // Only a courtesy to whoever is refused: a full disk must not stop the start here.
    if let Err(error) = disk.replace(&owner_file, surroundings::process().to_string().as_bytes()) {
        tracing::warn!(%error, "cannot note this process as the owner of the data directory");
    }
    Ok(lock)
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
