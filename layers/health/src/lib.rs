//! Layer 4, health: a dead primary is replaced, by exactly one.
//! [`detect`] turns probe results into verdicts, [`decide`] turns committed state and verdicts into the next step of a
//! promotion; both are functions of (state, input, now). [`prober`] and [`hook`] are the thin shells that ask instances.
//! Deliberately absent: the store. The node commits what is decided here and feeds back what was committed.

pub mod decide;
pub mod detect;
pub mod hook;
pub mod prober;
