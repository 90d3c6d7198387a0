//! Files whose names have gone, and whose space is given back a piece at a time. A file system may hand freed space on to the
//! disk at once (ext4's `discard`), and a disk that is told of much at once keeps every flush waiting meanwhile.
//! Deliberately absent: names. Only who has a file open, and nobody else, can do this to it; after a crash the file system
//! gives back the rest at once.

use std::time::Duration;

use super::DiskFile;

/// A piece.
const PIECE: u64 = 1024 * 1024;
/// From one piece to the next: 200 MiB/s, which is more than comes.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);

/// Such a file. Dropping it gives back the rest.
#[derive(Debug)]
pub(crate) struct Going {
    file: Box<dyn DiskFile>,
    left: u64,
}

impl Going {
    /// A file without a name, and its length in bytes.
    pub(crate) fn new(file: Box<dyn DiskFile>, length: u64) -> Self {
        Self { file, left: length }
    }

    /// Gives back a piece; whether something is left.
    pub(crate) fn step(&mut self) -> bool {
        self.left = self.left.saturating_sub(PIECE);
        // A system that does not do this to a file without a name gives back everything when it is dropped.
        self.left > 0 && self.file.truncate(self.left).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::{Going, PIECE};
    use crate::disk::{Disk as _, RealDisk};

    #[test]
    fn a_file_goes_in_pieces_and_at_once_where_that_cannot_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for (length, steps) in [(1, 0), (PIECE, 0), (PIECE + 1, 1), (4 * PIECE, 3)] {
            let file = RealDisk.open(&path, true).unwrap();
            file.preallocate(length).unwrap();
            let watching = std::fs::File::open(&path).unwrap();
            let mut going = Going::new(file, length);
            let mut seen = Vec::new();
            while going.step() {
                seen.push(watching.metadata().unwrap().len());
            }
            let wanted: Vec<u64> = (1..=steps).map(|step| length - step * PIECE).collect();
            assert_eq!(seen, wanted, "{length}");
            RealDisk.remove(&path).unwrap();
        }
        let file = RealDisk.open(&path, true).unwrap();
        file.preallocate(PIECE).unwrap();
        RealDisk.remove(&path).unwrap();
        assert!(!Going::new(file, PIECE).step());
    }
}
