//! What is done with a data directory while no node runs on it, and with snapshots in files: for the command line.
//! Deliberately absent: how it is done (`data/raft`).

use std::path::Path;
use std::sync::Arc;

use data::{NotServing, StoreError};
pub use data_raft::{Kept, OpenError, RecoverError, Saved, SavedError, SavedMember, Survivor, verify};

use crate::cluster::seat::{self, Seat};

/// The store's folder within a data directory.
pub(crate) const STORE: &str = "store";

/// Puts a saved snapshot into a new data directory, for the first start there.
///
/// # Errors
/// The snapshot is damaged, or the directory is not empty.
pub fn restore(file: &Path, data_dir: &Path) -> Result<Saved, SavedError> {
    let io = |action, source| OpenError::Io { action, file: data_dir.to_path_buf(), source };
    let is_occupied = match std::fs::read_dir(data_dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(io("list", error).into()),
    };
    if is_occupied {
        return Err(SavedError::NotEmpty { directory: data_dir.to_path_buf() });
    }
    // Nothing is made for a file that is no good.
    verify(file)?;
    platform::file::create_private_directory(data_dir).map_err(|error| io("make", error))?;
    data_raft::restore(file, &data_dir.join(STORE))
}

/// Makes the node of a data directory its cluster's only voter; with `carry_out` false, says what that would mean.
///
/// # Errors
/// The directory is in use and stays so, is damaged, or no member's.
pub fn recover(data_dir: &Path, carry_out: bool) -> Result<Survivor, RecoverError> {
    // Whoever asks holds the directory as its keeper.
    let is_held = |error: &RecoverError| matches!(error, RecoverError::Other(OpenError::Locked { .. }));
    seat::when_free(|| data_raft::recover(&data_dir.join(STORE), carry_out), is_held)
}

/// How the API saves the store; an agent has none.
pub(crate) fn saving(seat: Seat) -> api::Save {
    Arc::new(move || {
        let seat = seat.clone();
        Box::pin(async move {
            match seat {
                Seat::Member(store) => Ok(Box::new(store.save().await?) as api::Blocks),
                Seat::Agent(_) => Err(StoreError::NotServing(NotServing::Agent)),
            }
        })
    })
}
