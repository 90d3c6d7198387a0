//! Layer 2, guard: a request that hangs is cut off, its caller gets an answer.
//! Policies of the request walk as sans-io values: the gateway passes `now` and what happened, a policy returns a
//! decision. Deliberately absent: sockets, timers, locks, randomness, configuration.

pub mod deadline;
pub mod hold;
pub mod retry;

pub use deadline::Deadline;
pub use hold::{HoldPolicy, Release, Room, RoomFull, Ticket};
pub use retry::{Attempts, Failure, Verdict, is_idempotent};
