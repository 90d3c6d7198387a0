//! Layer 2, guard: a request that hangs is cut off, its caller gets an answer.
//! Policies of the request walk as sans-io values: the gateway passes `now` and what happened, a policy returns a
//! decision. Deliberately absent: sockets, timers, locks, randomness, configuration.

pub mod adaptive;
pub mod breaker;
pub mod budget;
pub mod bulkhead;
pub mod deadline;
pub mod hold;
pub mod latency;
pub mod outlier;
pub mod retry;

pub use adaptive::{Adaptive, AdaptivePolicy};
pub use breaker::{Breaker, BreakerPolicy};
pub use budget::RetryBudget;
pub use bulkhead::{Bulkhead, Places, Priority};
pub use deadline::Deadline;
pub use hold::{HoldPolicy, Release, Room, RoomFull, Ticket};
pub use latency::Latency;
pub use outlier::{Outlier, OutlierPolicy};
pub use retry::{Attempts, Failure, RetryPolicy, Verdict, is_idempotent};
