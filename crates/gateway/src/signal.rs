//! What the data plane noticed about instances, for whoever judges health: passive, coalesced, never blocking.
//! Leaves the request walk sideways, at forward and balance. Deliberately absent: any verdict; only a commit adds
//! a backend or changes a primary.

use model::{InstanceId, ServiceName};

/// One observation; repeats within [`COALESCE_MS`] are swallowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// No connection could be made.
    ConnectFailed {
        /// The service asked for.
        service: ServiceName,
        /// The instance that did not take the connection.
        instance: InstanceId,
    },
    /// A connection ended before its response did.
    Reset {
        /// The service asked for.
        service: ServiceName,
        /// The instance whose connection ended.
        instance: InstanceId,
    },
    /// What came back was no HTTP/1.1 response.
    BadResponse {
        /// The service asked for.
        service: ServiceName,
        /// The instance that answered.
        instance: InstanceId,
    },
    /// A response with a status of 500 or more.
    ServerError {
        /// The service asked for.
        service: ServiceName,
        /// The instance that answered.
        instance: InstanceId,
        /// Its status.
        status: u16,
    },
    /// The request's deadline passed while the instance had it.
    TimedOut {
        /// The service asked for.
        service: ServiceName,
        /// The instance that was too slow.
        instance: InstanceId,
    },
    /// No local instance could take a request: a remote one did.
    Spilled {
        /// The service asked for.
        service: ServiceName,
        /// The remote instance that took it.
        instance: InstanceId,
    },
    /// A guard of the service did something: [`crate::Service::take_notes`] says what. Not coalesced.
    Guarded {
        /// Whose guard.
        service: ServiceName,
    },
}

/// At most one signal of a kind per instance leaves in this many milliseconds.
pub const COALESCE_MS: u64 = 10;

/// Kinds, for coalescing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SignalKind {
    ConnectFailed,
    Reset,
    BadResponse,
    ServerError,
    TimedOut,
    Spilled,
}

/// How many kinds there are.
pub(crate) const SIGNAL_KINDS: usize = 6;
