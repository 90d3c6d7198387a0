//! Everything that differs between operating systems, and every `unsafe` block of the product.
//! Twins: a module has one signature and a body per platform; callers never see a `cfg`.
//! Deliberately absent: policy. This crate does what it is told and reports what happened.

pub mod clock;
pub mod file;
pub mod identity;
pub mod limits;
pub mod load;
pub mod process;
pub mod program;
pub mod signal;
#[cfg(target_os = "linux")]
mod sock_diag;
pub mod socket;
pub mod thread;
