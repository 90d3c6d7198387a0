//! Simulated clusters: the production store (write-ahead log, Raft, peers, leases) and the production deciders, linked as
//! they are, in worlds where disk, network, clock and machines obey a seed. Stands beside the tests that drive real
//! processes (`crates/seawall/tests`, `cargo xtask rounds`): it sees fewer layers and thousands of times as many faults.
//! The same seed gives the same world, line by line. How: docs/adr/0016-simulation.md.

mod chance;
mod clients;
mod disk;
mod faults;
mod invariants;
mod judge;
mod network;
mod node;
mod plants;
mod promotion;
mod trace;
mod world;

pub use judge::Violation;
pub use node::{FAILSAFE_WORLDS, WITNESS_WORLDS};
pub use plants::Plant;
pub use world::{Outcome, run};
