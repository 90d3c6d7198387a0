//! Snapshots in files of their own: saved from a store that runs, verified anywhere, restored into a new directory.
//! What is restored is the state alone. Who its members were is forgotten: the first start on the new directory draws a
//! number and a store id as for any new one, and makes that node the only voter of whatever it is started as.
//! Streams come along with all their entries: of a moment a little before the store's, so that no stream is sealed for a
//! term that the restored store has not heard of.
//! Deliberately absent: how the bytes get from a node to a file (`api`, the command line).

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use data::{Key, KeyValue, Revision, StateMachine, StreamsState};

use crate::disk::{Disk as _, RealDisk};
use crate::machine::Shared;
use crate::members;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::snapshot::{self, Encoder, Image, MadeV1, SegmentPieceV1};
use crate::streams::following::FOUNDERS;
use crate::streams::pieces::Pieces;
use crate::streams::segments::Segments;
use crate::streams::{self, STREAMS_GROUP};
use crate::superblock::{Superblock, SuperblockV1};
use crate::surroundings;
use crate::wire::{self, MembershipV1, VoteV1};

/// What the first start on a restored directory takes over.
pub(crate) const RESTORED: &str = "restored";

/// A store's content on its way to a file, block by block. It shares its memory with the store, and keeps what is
/// overwritten meanwhile until it is dropped.
pub struct Saving(Encoder);

impl Saving {
    pub(crate) fn new(shared: &Shared, image: Image, pieces: Option<Pieces>) -> Self {
        let superblock = shared.wal.superblock();
        let names = shared.options.peers.as_ref().map(|peers| &peers.inner().options);
        let name = |name: fn(&crate::PeerOptions) -> &String| names.map(name).cloned().unwrap_or_default();
        let made = MadeV1 {
            at_ms: SystemTime::UNIX_EPOCH
                .elapsed()
                .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)),
            cluster: name(|names| &names.cluster),
            node: name(|names| &names.name),
        };
        let identity = (superblock.store_id, superblock.group);
        Self(Encoder::new(image, identity, 1, Some(made)).with_pieces(pieces))
    }
}

impl Iterator for Saving {
    type Item = io::Result<Vec<u8>>;

    /// Reads entries of streams from the disk.
    fn next(&mut self) -> Option<io::Result<Vec<u8>>> {
        self.0.next()
    }
}

/// What a saved snapshot holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Saved {
    /// The number of the store it was saved from, in hexadecimal.
    pub store_id: String,
    /// The newest change in it.
    pub revision: Revision,
    /// How many keys, control keys included.
    pub keys: u64,
    /// How many leases.
    pub leases: u64,
    /// How many streams; none where it was saved by a version that left them out.
    pub streams: Option<u64>,
    /// How many entries all of them have.
    pub entries: u64,
    /// The size of the file.
    pub bytes: u64,
    /// The last entry of the log in it: index and term.
    pub last: (u64, u64),
    /// Who the members were.
    pub members: Vec<SavedMember>,
    /// When it was saved, in milliseconds since the Unix epoch, by the clock of the node that did.
    pub at_ms: Option<u64>,
    /// The cluster's name; none of a machine by itself.
    pub cluster: Option<String>,
    /// The node that it was saved from.
    pub node: Option<String>,
}

/// A member of the store that was saved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SavedMember {
    /// Its name; empty on a machine by itself.
    pub name: String,
    /// Where others reached it.
    pub address: String,
    /// It had a vote.
    pub voter: bool,
}

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// It is not what was written.
    #[error(
        "{file} is damaged at offset {offset}: {what}; nothing of it can be trusted: take another copy",
        file = file.display()
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The directory holds something.
    #[error(
        "{directory} is not empty: a snapshot is restored into a new data directory; nothing was changed",
        directory = directory.display()
    )]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// Anything else: what, and what to do.
    #[error(transparent)]
    Other(#[from] OpenError),
}

fn unusable(error: OpenError) -> SavedError {
    match error {
        OpenError::Corrupt { file, offset, what, .. } => SavedError::Damaged { file, offset, what },
        other => SavedError::Other(other),
    }
}

/// Checks a saved snapshot to its last bit. Blocks on the disk, and holds the content in memory meanwhile.
///
/// # Errors
/// It is damaged, of a newer version, or cannot be read.
pub fn verify(file: &Path) -> Result<Saved, SavedError> {
    let saved = snapshot::read_saved(file, &mut |_| Ok(())).map_err(unusable)?;
    let membership = &saved.image.membership;
    let member = |(id, node): &(u64, String)| {
        let node = openraft::BasicNode { addr: node.clone() };
        let (name, address) = members::name_and_address(&node);
        let voter = membership.configs.iter().any(|voters| voters.contains(id));
        SavedMember { name: name.to_owned(), address: address.to_owned(), voter }
    };
    let mut members: Vec<SavedMember> = membership.nodes.iter().map(member).collect();
    members.sort_by(|left, right| left.name.cmp(&right.name));
    let named = |name: fn(&MadeV1) -> &String| saved.made.as_ref().map(name).filter(|name| !name.is_empty()).cloned();
    Ok(Saved {
        store_id: saved.store_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        revision: saved.image.state.revision(),
        keys: saved.image.state.len() as u64,
        leases: saved.image.state.leases().count() as u64,
        streams: saved.image.streams.as_ref().map(|streams| streams.streams().count() as u64),
        entries: saved.image.streams.iter().flat_map(entries).sum(),
        bytes: saved.bytes,
        last: (saved.image.last.index, saved.image.last.term),
        members,
        at_ms: saved.made.as_ref().map(|made| made.at_ms),
        cluster: named(|made| &made.cluster),
        node: named(|made| &made.node),
    })
}

/// Puts a saved snapshot into a store's new directory, durably: whatever is started on it begins with this state.
///
/// # Errors
/// As for [`verify`]; the directory is not empty, or cannot be written.
pub fn restore(file: &Path, directory: &Path) -> Result<Saved, SavedError> {
    verify(file)?;
    let occupied = match RealDisk.list(directory) {
        Ok(names) => !names.is_empty(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(OpenError::io("list", directory)(error).into()),
    };
    if occupied {
        return Err(SavedError::NotEmpty { directory: directory.to_path_buf() });
    }
    platform::file::create_private_directory(directory).map_err(OpenError::io("make", directory))?;
    let fresh = directory.join(RESTORED).with_extension("new");
    copy(file, &fresh).map_err(OpenError::io("write", &fresh))?;
    // The copy is what counts from here on.
    let saved = verify(&fresh)?;
    let kept = directory.join(RESTORED);
    std::fs::rename(&fresh, &kept).map_err(OpenError::io("write", &kept))?;
    RealDisk.sync_directory(directory).map_err(OpenError::io("flush", directory))?;
    Ok(saved)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut fresh = platform::identity::create_private(to)?;
    io::copy(&mut std::fs::File::open(from)?, &mut fresh)?;
    fresh.flush()?;
    fresh.sync_all()
}

/// How many entries each stream has.
fn entries(streams: &StreamsState) -> impl Iterator<Item = u64> + '_ {
    streams.streams().map(|(_, record)| record.segments.iter().map(|segment| segment.entries).sum())
}

/// Writes what was restored as the first snapshot of the new store that `content` describes, and beside it the streams.
pub(crate) fn take_over(options: &Options, content: &mut SuperblockV1) -> Result<(), OpenError> {
    let file = options.directory.join(RESTORED);
    let folder = options.directory.join(streams::FOLDER);
    clear(options, &folder)?;
    let segments = Segments::new(&Options { directory: folder.clone(), ..options.clone() });
    let write = |error| OpenError::io("write the restored streams in", &folder)(error);
    let mut put =
        |piece: SegmentPieceV1| segments.write_bytes(piece.name, piece.position, &piece.bytes.0).map_err(write);
    let Image { last, state, streams, .. } = snapshot::read_saved(&file, &mut put)?.image;
    let node = options.peers.as_ref().map_or_else(String::new, |peers| {
        let names = &peers.inner().options;
        members::node(&names.name, &names.advertise, false).addr
    });
    let membership = MembershipV1 { configs: vec![vec![content.node_id]], nodes: vec![(content.node_id, node)] };
    let founders = streams.is_some().then(|| membership.clone());
    if let Some(streams) = streams {
        segments.flush().map_err(write)?;
        let (state, streams) = (StateMachine::default(), Some(streams));
        let image = Image { last, membership_log: Some(last), membership: membership.clone(), state, streams };
        found_streams(options, &folder, content.node_id, &image)?;
    }
    let state = with_founders(&state, founders.as_ref());
    let image = Image { last, membership_log: Some(last), membership, state, streams: None };
    let identity = (content.store_id, content.group);
    let pointer = snapshot::write(&*options.disk, &options.directory, identity, (0, 1), &image)
        .map_err(OpenError::io("write the restored state in", &options.directory))?;
    (content.snapshot, content.purged) = (Some(pointer), Some(last));
    // No vote of an older term can be given or taken: the log begins in this one.
    content.vote = Some(VoteV1 { term: last.term, node: content.node_id, committed: false });
    let (revision, keys) = (image.state.revision(), image.state.len());
    tracing::info!(%revision, keys, "the state of a saved snapshot is taken over");
    Ok(())
}

/// Makes the folder of the streams, without what a start that was cut off has left in it.
fn clear(options: &Options, folder: &Path) -> Result<(), OpenError> {
    options.disk.create_directory(folder).map_err(OpenError::io("make", folder))?;
    for name in options.disk.list(folder).map_err(OpenError::io("list", folder))? {
        let file = folder.join(name);
        options.disk.remove(&file).map_err(OpenError::io("remove", &file))?;
    }
    Ok(())
}

/// Makes the group of streams with this node as its only member, as the store is.
fn found_streams(options: &Options, folder: &Path, node_id: u64, image: &Image) -> Result<(), OpenError> {
    let (store_id, group, last) = (*surroundings::drawn_id().as_bytes(), STREAMS_GROUP, image.last);
    let pointer = snapshot::write(&*options.disk, folder, (store_id, group), (0, 1), image)
        .map_err(OpenError::io("write the restored streams in", folder))?;
    let content = SuperblockV1 {
        store_id,
        node_id,
        group,
        vote: Some(VoteV1 { term: last.term, node: node_id, committed: false }),
        purged: Some(last),
        snapshot: Some(pointer),
        newest_segment: 0,
        clean_end: None,
    };
    Superblock::create(&*options.disk, folder, false, content)
        .map_err(OpenError::io("make the superblock in", folder))?;
    options.disk.sync_directory(&options.directory).map_err(OpenError::io("flush", &options.directory))
}

/// The state with these as the founders of the group of streams; without any it is new here, too.
fn with_founders(state: &StateMachine, founders: Option<&MembershipV1>) -> StateMachine {
    let mut kept = StateMachine::restore(state.revision(), state.last_lease());
    state.leases().for_each(|lease| kept.restore_lease(&lease));
    state.pairs().filter(|kv| kv.key.as_bytes() != FOUNDERS.as_bytes()).for_each(|kv| kept.restore_pair(kv));
    if let Some((founders, key)) = founders.zip(Key::try_from(FOUNDERS).ok()) {
        let (at, value) = (state.revision(), wire::encode(founders).into());
        kept.restore_pair(KeyValue { key, value, create_revision: at, mod_revision: at, version: 1, lease: None });
    }
    kept
}

/// What was restored is in the store now.
pub(crate) fn forget_restored(options: &Options) -> Result<(), OpenError> {
    let file = options.directory.join(RESTORED);
    match options.disk.remove(&file) {
        Ok(()) => options.disk.sync_directory(&options.directory).map_err(OpenError::io("flush", &options.directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(OpenError::io("remove", &file)(error)),
    }
}
