//! The bodies of the fuzz targets: each takes any bytes and panics if a promise about them does not hold.
//! Included by `fuzz/fuzz_targets` and by `corpora.rs`, which runs every seed and every past finding in `cargo test`.
//! Deliberately absent: sockets and the store.
#![allow(dead_code, clippy::unwrap_used, reason = "each fuzz target uses its own part")]

mod dns;
mod filter;

pub use self::dns::dns;
pub use filter::filter;

/// Panics if a promise about the bytes does not hold.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also its folder of seeds.
pub const ALL: [(&str, Target); 2] = [("dns", dns), ("filter", filter)];
