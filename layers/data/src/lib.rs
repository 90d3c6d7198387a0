//! The one seam for control state: a narrow revisioned key-value store with etcd's semantics; beside it the one for
//! op-logs of services ([`Streams`]).
//! Stands between the domain rules (which live above it, once) and the engines (embedded Raft, later etcd).
//! Deliberately absent: I/O, clocks inside [`StateMachine::apply`], reads of past revisions.

mod error;
mod key;
mod lease;
mod metrics;
mod state;
mod status;
mod store;
mod streams;
mod txn;
mod watch;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "conformance")]
pub mod memory;

pub use error::{NotServing, StoreError};
pub use key::{Key, KeyRange, MAX_KEY_BYTES};
pub use lease::{LeaseClock, LeaseGrant, LeaseId, LeaseInfo, MAX_TTL, MIN_TTL};
pub use metrics::{Histogram, OwnerBytes, StoreMetrics};
pub use model::Revision;
pub use state::{Applied, Command, LeaseRecord, Response, StateMachine};
pub use status::{Durability, RaftRole, Status};
pub use store::{BoxFuture, Consistency, DEFAULT_QUOTA_BYTES, Store};
pub use streams::{
    Append, Appended, Counted, DEFAULT_MAX_BYTES, ENTRY_OVERHEAD, MAX_CURSORS, MAX_ENTRY_BYTES, MAX_NAME_BYTES,
    MAX_PRODUCERS, MAX_READ_BYTES, MAX_READ_ENTRIES, MAX_STREAMS, MIN_MAX_BYTES, Name, PRODUCER_IDLE, Place,
    ProducerRecord, REMEMBERED_SEQS, Reach, Retention, SegmentRecord, StreamAnswer, StreamCommand, StreamEntry,
    StreamError, StreamInfo, StreamRead, StreamRecord, StreamRequest, Streams, StreamsMetrics, StreamsState, Waits,
};
pub use txn::{
    Compare, CompareOp, CompareTarget, KeyValue, MAX_TXN_BYTES, MAX_TXN_OPS, MAX_VALUE_BYTES, Op, OpResult,
    RangeRequest, RangeResult, Txn, TxnOutcome, USER_KEYS,
};
pub use watch::{Event, HistoryLimits, WatchHub, WatchItem, WatchStream};
