//! The embedded `Store` and, in a group of its own, `Streams`: Raft (one voter is the one-machine default) over our own write-ahead log.
//! Stands in the write walk between `Store::txn` and the watchers: propose, log and flush, replicate, commit, apply, reply.
//! Beside it the same two of a node that has no store, asked of servers (`remote`).
//! Openraft stays hidden: no type of it is public, on disk or on the wire. Deliberately absent: domain rules.
//!
//! On disk, in one directory:
//! - `lock`, `owner`: who has it open;
//! - `superblock`: identity, vote and markers, kept twice;
//! - `wal-NNNNNNNNNNNNNNNN`: log segments, preallocated, records chained by CRC;
//! - `snapshot-a`, `snapshot-b`: the newest snapshot and the one before or being written;
//! - `streams`: the same again for the group of streams, and `entries-ID-OFFSET`, their segments;
//! - `restored`: a saved snapshot that the first start takes over;
//! - `recovering`: a recovery that is under way;
//! - `reserve`: space given up when the disk is full, so that the node can stop in good order.

mod abort;
mod disk;
mod engine;
mod failsafe;
mod gather;
mod joint;
mod leading;
mod leases;
mod lock;
mod log_store;
mod machine;
mod measure;
mod members;
mod network;
mod node;
mod open_error;
mod options;
mod peers;
mod quotas;
mod record;
mod remote;
mod replica;
mod saved;
mod snapshot;
mod snapshots;
mod store;
mod streams;
mod superblock;
mod surroundings;
mod survivor;
mod transport;
mod types;
mod wal;
mod way;
mod wire;
mod witness;

pub use disk::{Disk, DiskFile, FaultyDisk, FileLock, Operation, RealDisk};
pub use measure::BareLog;
pub use members::{Member, Members};
pub use open_error::OpenError;
pub use options::Options;
pub use peers::{PeerOptions, Peers};
pub use remote::{RemoteOptions, RemoteStore, RemoteStreams};
pub use saved::{Saved, SavedError, SavedMember, Saving, restore, verify};
pub use store::RaftStore;
pub use streams::{RaftStreams, StreamOptions};
pub use surroundings::{Simulated, Surroundings, simulate};
pub use survivor::{Kept, RecoverError, Survivor, recover};
pub use transport::{
    Accepted, CertificateAnswer, CertificateRequest, Certifier, Connection, Door, Fingerprint, MemoryNetwork,
    MemoryTransport, PEER_NAME, PeerTls, Stream, TcpTransport, TlsFiles, Transport, authority_fingerprint, knock,
};
