//! The vocabulary of the product: one word per idea, used by code, API, docs and screens alike.
//! Identifiers, the configuration with its validation, and the typed event. No I/O, no async, no clock:
//! everything here is a value, so every crate may depend on it and it depends on none.

pub mod config;
pub mod diagnostic;
mod event;
mod id;
mod network;

pub use config::{Config, Service};
pub use event::{Event, EventKind};
pub use id::{Epoch, Incarnation, InstanceId, NodeName, Revision, Role, ServiceName, VersionName};
pub use network::Network;
