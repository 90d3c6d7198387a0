//! See `tests/targets/filter.rs`, which `cargo test` runs on every seed, too.
#![no_main]

#[path = "../../tests/targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::filter(bytes));
