//! The bodies of the fuzz targets: each takes any bytes and panics if a promise about them does not hold.
//! Included by `fuzz/fuzz_targets` and by `corpora.rs`, which runs every seed and every past finding in `cargo test`.
//! Deliberately absent: sockets; what is compared is what the gateway would write.
#![allow(dead_code, clippy::unwrap_used, reason = "each fuzz target uses its own part")]

mod chunked;
mod cuts;
mod differential;
mod http2_head;
mod reader;
mod request_head;
mod response_head;

pub use chunked::chunked;
pub use differential::differential;
pub use http2_head::http2_head;
pub use request_head::request_head;
pub use response_head::response_head;

/// Panics if a promise about the bytes does not hold.
pub type Target = fn(&[u8]);

/// Every target with its name, which is also its folder of seeds.
pub const ALL: [(&str, Target); 5] = [
    ("request_head", request_head),
    ("chunked", chunked),
    ("response_head", response_head),
    ("differential", differential),
    ("http2_head", http2_head),
];
