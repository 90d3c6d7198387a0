//! Changes of the registry as transactions: what is the same already is not written again, so that nobody is woken for
//! nothing; what belongs together is written together.

use bytes::Bytes;
use data::{Compare, Key, KeyRange, LeaseId, Op, StoreError};
use serde::Serialize;

use crate::catalog::{Catalog, Stored};
use crate::definition::ServiceDefinition;
use crate::key::{About, KV, on_node};
use crate::record::{CheckRecord, CheckStatus, NodeRecord};
use crate::registry::{Registry, RegistryError, Written};

/// Operations of one transaction, with room for what is added to it.
const OPS: usize = 100;

/// Puts a record under its key.
///
/// # Errors
/// The key is none.
pub fn put(about: &About, record: &impl Serialize) -> Result<Op, StoreError> {
    Ok(Op::put(about.key()?, encoded(record)))
}

/// The same, for as long as a lease lives.
///
/// # Errors
/// The key is none.
pub fn put_leased(about: &About, record: &impl Serialize, lease: Option<LeaseId>) -> Result<Op, StoreError> {
    Ok(Op::Put { key: about.key()?, value: encoded(record), lease })
}

/// Takes a key away.
///
/// # Errors
/// The key is none.
pub fn delete(about: &About) -> Result<Op, StoreError> {
    Ok(Op::Delete { range: KeyRange::key(&about.key()?) })
}

/// A record as it is stored.
pub fn encoded(record: &impl Serialize) -> Bytes {
    serde_json::to_vec(record).expect("records always become JSON").into()
}

/// What registering an instance with its checks on a node takes; empty if all of it is there. A check that is there keeps
/// how it stands. `replace`: checks of the instance that are not among these go.
///
/// # Errors
/// A name is none.
pub fn register(
    catalog: &Catalog,
    node: &str,
    definition: &ServiceDefinition,
    replace: bool,
) -> Result<Vec<Op>, StoreError> {
    let mut ops = Vec::new();
    let known = catalog.node(node).map(|(_, entry)| entry);
    let same = known.and_then(|entry| entry.services.get(&definition.id));
    if same.is_none_or(|same| same.record != definition.record) {
        ops.push(put(&About::Service(node.into(), definition.id.clone()), &definition.record)?);
    }
    let check = |id: &str| known.and_then(|entry| entry.checks.get(id));
    for (id, record) in &definition.checks {
        ops.extend(check_op(node, id, record, check(id))?);
    }
    if replace {
        let of_it = known.into_iter().flat_map(|entry| entry.checks_of(&definition.id));
        for (id, _) in of_it.filter(|(id, _)| !definition.checks.contains_key(*id) && !id.starts_with('_')) {
            ops.push(delete(&About::Check(node.into(), id.to_owned()))?);
        }
    }
    Ok(ops)
}

/// What registering a check takes; nothing if it is there.
///
/// # Errors
/// A name is none.
pub fn check_op(
    node: &str,
    id: &str,
    record: &CheckRecord,
    known: Option<&Stored<CheckRecord>>,
) -> Result<Option<Op>, StoreError> {
    let mut record = record.clone();
    if let Some(known) = known {
        (record.status, record.output) = (known.record.status, known.record.output.clone());
        if known.record == record {
            return Ok(None);
        }
    }
    put(&About::Check(node.into(), id.into()), &record).map(Some)
}

/// What taking an instance out takes.
///
/// # Errors
/// A name is none.
pub fn deregister(catalog: &Catalog, node: &str, id: &str) -> Result<Vec<Op>, StoreError> {
    let mut ops = vec![delete(&About::Service(node.into(), id.into()))?];
    let known = catalog.node(node).map(|(_, entry)| entry);
    for (check, _) in known.into_iter().flat_map(|entry| entry.checks_of(id)) {
        ops.push(delete(&About::Check(node.into(), check.to_owned()))?);
    }
    Ok(ops)
}

/// What taking a machine out with all that is on it takes.
///
/// # Errors
/// The name is none.
pub fn remove_node(node: &str) -> Result<Vec<Op>, StoreError> {
    let all = |kind| Op::Delete { range: KeyRange::prefix(on_node(kind, node)) };
    Ok(vec![delete(&About::Node(node.into()))?, delete(&About::Alive(node.into()))?, all("service"), all("check")])
}

/// What writing a machine takes; nothing if it is there.
///
/// # Errors
/// The name is none.
pub fn node_op(catalog: &Catalog, node: &str, record: &NodeRecord) -> Result<Option<Op>, StoreError> {
    let same = catalog.node(node).is_some_and(|(known, _)| known.record == *record);
    if same { Ok(None) } else { put(&About::Node(node.into()), record).map(Some) }
}

impl Registry {
    /// Writes what a change takes, in as many transactions as that needs; nothing is no change.
    ///
    /// # Errors
    /// The store's; [`RegistryError::Unknown`].
    pub async fn change(&self, ops: Vec<Op>) -> Result<(), RegistryError> {
        let mut ops = ops.into_iter().peekable();
        while ops.peek().is_some() {
            let some: Vec<Op> = ops.by_ref().take(OPS).collect();
            self.write(Vec::new(), some).await?;
        }
        Ok(())
    }

    /// Writes how a check stands. False if there is no such check, or somebody has taken it out meanwhile.
    ///
    /// # Errors
    /// The store's; [`RegistryError::Unknown`].
    pub async fn stands(&self, node: &str, id: &str, status: CheckStatus, output: &str) -> Result<bool, RegistryError> {
        for _ in 0..ATTEMPTS {
            let Some(known) = self.read().node(node).and_then(|(_, entry)| entry.checks.get(id).cloned()) else {
                return Ok(false);
            };
            if known.record.status == status && known.record.output == output {
                return Ok(true);
            }
            let record = CheckRecord { status, output: output.to_owned(), ..known.record };
            let about = About::Check(node.into(), id.into());
            let unchanged = Compare::mod_revision(about.key()?, model::Revision(known.modify));
            if let Written::At(_) = self.write(vec![unchanged], vec![put(&about, &record)?]).await? {
                return Ok(true);
            }
            // It was changed, which this node is about to see.
            self.catch_up().await?;
        }
        Ok(false)
    }
}

/// Against somebody who changes the same check all the time.
const ATTEMPTS: usize = 8;

/// A key made of bytes.
///
/// # Errors
/// It is too long or empty.
pub fn user_key(key: &[u8]) -> Result<Key, StoreError> {
    // What hangs on it needs a key of its own, with more in front.
    let limit = data::MAX_KEY_BYTES - KV.len();
    if key.len() > limit {
        return Err(StoreError::TooLarge { what: "key", bytes: key.len(), limit });
    }
    Key::new([data::USER_KEYS.as_bytes(), key].concat())
}
