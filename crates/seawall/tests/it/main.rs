//! The product as a whole: the real binary, real sockets, real kills. Each test has its own folder, ports and processes.
//! Figures are printed: `cargo test -p seawall --test it -- --nocapture`.
#![cfg(unix)] // The one place outside `platform`: these tests send signals and read `/proc`.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod acme;
mod active;
mod api;
mod apply;
mod backup;
mod check;
mod clients;
mod cluster;
mod commands;
mod consul;
mod crash;
mod dns;
mod faults;
mod foreign;
mod guards;
mod istio;
mod ledger;
mod listeners;
mod lost;
mod nginx;
mod over;
mod placed;
mod primary;
mod quota;
mod refusals;
mod rolling;
mod routes;
mod sentinel;
mod shift;
mod start;
mod stop;
mod streams;
mod support;
mod switch;
mod verbs;
