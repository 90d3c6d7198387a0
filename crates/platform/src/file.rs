//! Durable files: preallocation and directory sync, for the write-ahead log and the superblock.
//! Stands at the bottom of the write walk. Plain `fsync`/`fdatasync` and file locks come from std.

use std::fs::File;
use std::io;
use std::path::Path;

/// Reserves `length` bytes for `file` and sets its size, so that later appends change no metadata.
///
/// # Errors
/// The operating system's, `ENOSPC` above all: no space means nothing was promised.
pub fn preallocate(file: &File, length: u64) -> io::Result<()> {
    imp::preallocate(file, length)
}

/// Has the system begin to write these bytes of `file` to the disk, so that a later flush finds less to do. Nothing is known
/// of them before that flush; it also tells what went wrong. A system that cannot does so when it likes.
pub fn begin_write_back(file: &File, offset: u64, length: u64) {
    imp::begin_write_back(file, offset, length);
}

/// Makes `directory`, with its parents, and closes it to every other user: state and logs hold secrets.
/// On Windows the access list it inherits stays.
///
/// # Errors
/// The operating system's.
pub fn create_private_directory(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    imp::close_to_others(directory)
}

/// Whoever reads `path` finds what was there before or all of `contents`, also after the process or the machine has died.
/// What is written meanwhile stands beside it, under its whole name with `.new` behind.
///
/// # Errors
/// The operating system's; then what was there before still is.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file = File::create(&fresh)?;
    io::Write::write_all(&mut file, contents)?;
    file.sync_all()?;
    drop(file);
    std::fs::rename(&fresh, path)?;
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).map_or(Ok(()), sync_directory)
}

/// Makes a created, renamed or removed name in `directory` durable.
/// Windows has no such call (a directory cannot be opened for it): there NTFS journals the name itself.
///
/// # Errors
/// The operating system's.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    imp::sync_directory(directory)
}

/// Reads at `offset` without moving anything a concurrent reader depends on; may read less than asked, 0 at the end.
///
/// # Errors
/// The operating system's.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    imp::read_at(file, buffer, offset)
}

/// Writes all of `buffer` at `offset`.
///
/// # Errors
/// The operating system's; part of the buffer may have been written.
pub fn write_all_at(file: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
    imp::write_all_at(file, buffer, offset)
}

#[cfg(unix)]
mod imp {
    use std::os::unix::fs::FileExt;

    use super::{File, Path, io};

    pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buffer, offset)
    }

    pub fn write_all_at(file: &File, buffer: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(buffer, offset)
    }

    pub fn close_to_others(directory: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o700))
    }

    pub fn preallocate(file: &File, length: u64) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, length) {
            Ok(()) => return Ok(()),
            // A file system without fallocate gets a sparse file instead: slower, equally correct.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        file.set_len(length)
    }

    #[cfg(target_os = "linux")]
    pub fn begin_write_back(file: &File, offset: u64, length: u64) {
        use std::os::fd::AsRawFd as _;
        let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
        // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is passed.
        let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    }

    #[cfg(not(target_os = "linux"))]
    pub fn begin_write_back(_file: &File, _offset: u64, _length: u64) {}

    pub fn sync_directory(directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

#[cfg(windows)]
mod imp {
    use std::os::windows::fs::FileExt;

    use super::{File, Path, io};

    pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        file.seek_read(buffer, offset)
    }

    pub fn write_all_at(file: &File, mut buffer: &[u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match file.seek_write(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    buffer = &buffer[written..];
                    offset += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub fn close_to_others(_directory: &Path) -> io::Result<()> {
        Ok(())
    }

    pub fn preallocate(file: &File, length: u64) -> io::Result<()> {
        file.set_len(length)
    }

    pub fn begin_write_back(_file: &File, _offset: u64, _length: u64) {}

    pub fn sync_directory(_directory: &Path) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{preallocate, read_at, sync_directory, write_all_at};

    #[test]
    fn positioned_writes_are_read_back_where_they_were_put() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let file = std::fs::File::options().create_new(true).read(true).write(true).open(path).unwrap();
        write_all_at(&file, b"later", 5).unwrap();
        write_all_at(&file, b"first", 0).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(read_at(&file, &mut buffer, 0).unwrap(), 10);
        assert_eq!(&buffer[..10], b"firstlater");
        assert_eq!(read_at(&file, &mut buffer, 10).unwrap(), 0);
    }

    #[test]
    fn preallocated_file_has_its_length_and_its_directory_syncs() {
        let directory = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(directory.path().join("segment")).unwrap();
        preallocate(&file, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        sync_directory(directory.path()).unwrap();
    }
}
