//! Layer 1, runtime: a process that dies comes back.
//! The decisions only: what should run ([`plan`]) and where ([`placement`]), when it is started again ([`backoff`]), what is stopped next in a roll
//! ([`roll`]), and the words in which the node orders and the keeper reports ([`protocol`]).
//! Deliberately absent: processes and clocks. The keeper owns the former, callers pass the latter.

pub mod backoff;
pub mod placement;
pub mod plan;
pub mod protocol;
pub mod roll;
