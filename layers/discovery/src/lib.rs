//! Layer discovery: a caller always finds a live instance. What is registered lies in the store, what this node knows of it
//! in the [`Catalog`], which every question is put to; whoever waits for a change waits for its own topic only.
//! Deliberately absent: I/O other than the store's, Consul's HTTP and DNS, and making checks.

pub mod acl;
pub mod bexpr;
pub mod catalog;
pub mod definition;
pub mod duration;
pub mod fields;
pub mod judge;
pub mod key;
pub mod locks;
pub mod prepared;
pub mod record;
mod registry;
pub mod select;
mod topic;
pub mod writing;

pub use catalog::{ALIVE, Catalog, NameEntry, NodeEntry, Stored};
pub use registry::{Heard, Reading, Registry, RegistryError, Written};
pub use topic::Topic;
