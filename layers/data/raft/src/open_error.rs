//! Why a data directory could not be opened. Each text says what to do.

use std::io;
use std::path::{Path, PathBuf};

/// Nothing was changed in the directory, except that a torn tail may have been cut.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the directory open.
    #[error(
        "{directory} is in use by another Seawall{owner}: stop that one, or give this one a directory of its own",
        directory = directory.display()
    )]
    Locked {
        /// The data directory.
        directory: PathBuf,
        /// ` (process 123)`, or nothing if unknown.
        owner: String,
    },
    /// The directory cannot be written.
    #[error(
        "{directory} cannot be written ({source}): make it writable for this user, or choose another directory",
        directory = directory.display()
    )]
    NotWritable {
        /// The data directory.
        directory: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// No room to start.
    #[error(
        "the disk under {directory} is full: free at least {need_bytes} bytes there, then start again; nothing acknowledged is lost",
        directory = directory.display()
    )]
    DiskFull {
        /// The data directory.
        directory: PathBuf,
        /// What a start needs.
        need_bytes: u64,
    },
    /// Something acknowledged is damaged. Never repaired by guessing.
    #[error(
        "{file} is damaged at offset {offset}: {what}. \
         Data acknowledged before is affected, so this node does not start on it. {cure}",
        file = file.display()
    )]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
        /// What to do.
        cure: &'static str,
    },
    /// A newer Seawall wrote this.
    #[error(
        "{file} holds {what}, which this version does not know: it was written by a newer Seawall. Start that version",
        file = file.display()
    )]
    UnknownFormat {
        /// The file.
        file: PathBuf,
        /// What was found.
        what: String,
    },
    /// `node.role` was changed.
    #[error(
        "{directory} holds the data of a {was}, and this node is to be a {wanted} now: a {wanted} needs a directory of its own. \
         Set node.role back to {was}; or take the node out (`seawall cluster remove`), and start it with an empty data directory",
        directory = directory.display()
    )]
    OtherRole {
        /// The data directory.
        directory: PathBuf,
        /// What it was made for.
        was: &'static str,
        /// What the node is started as.
        wanted: &'static str,
    },
    /// `seawall cluster recover` was cut off.
    #[error(
        "the recovery of {directory} was begun and not finished: run `seawall cluster recover` again, then start",
        directory = directory.display()
    )]
    Unfinished {
        /// The data directory.
        directory: PathBuf,
    },
    /// A file belongs to another data directory.
    #[error(
        "{file} belongs to another data directory (its identity differs): put back the files of this one",
        file = file.display()
    )]
    ForeignFile {
        /// The file.
        file: PathBuf,
    },
    /// The operating system refused.
    #[error("cannot {action} {file} ({source})", file = file.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        file: PathBuf,
        /// Its error.
        source: io::Error,
    },
    /// The consensus engine did not start.
    #[error("the consensus engine did not start: {0}")]
    Engine(String),
}

/// The cure for damage on a machine by itself: there is no peer to fetch from. A node of a cluster may be given an empty
/// directory instead.
pub(crate) const RESTORE: &str = "Check the disk, then put back a backup of the whole directory (or, in a cluster, wipe it and let the node join anew)";

impl OpenError {
    pub(crate) fn io<'a>(action: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io { action, file: file.to_path_buf(), source }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt { file: file.to_path_buf(), offset, what: what.into(), cure: RESTORE }
    }
}
