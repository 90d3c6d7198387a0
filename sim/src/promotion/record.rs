//! What nodes write about their process and read of others': the keys of `crates/node`, and of the records what
//! decisions rest on.

use data::Key;
use health::decide::Holder;
use model::{Incarnation, InstanceId, NodeName};

use super::SERVICE;
use crate::clients::key;
use crate::node::name;

/// Before everything here.
pub const CONTROL: &str = "control/";

/// Where the record of the service's primary is.
pub fn primary_key() -> Key {
    key(&health::decide::record_key(&SERVICE.into()))
}

/// Where a machine's process is said to be.
pub fn instance_key(node: &NodeName) -> Key {
    key(&format!("control/instance/{SERVICE}/{SERVICE}-{node}/{node}"))
}

/// The node of such a key.
pub fn node_of(key: &str) -> Option<NodeName> {
    key.strip_prefix("control/instance/")?.rsplit('/').next().map(Into::into)
}

/// A machine's process, as decisions name it.
pub fn holder(node: &NodeName, incarnation: u64) -> Holder {
    Holder {
        instance: InstanceId::from(format!("{SERVICE}-{node}").as_str()),
        incarnation: Incarnation(incarnation),
        node: Some(node.clone()),
    }
}

/// A machine's name, as decisions have it.
pub fn node(place: usize) -> NodeName {
    name(place).as_str().into()
}
