//! Sessions and the keys they hold: for clients that lock as Consul does. A session with a time lives on a lease; with the
//! behaviour `delete` its keys do, too. When one ends, whoever leads frees what it held.
//! Deliberately absent: promotions of services, which do not rest on this.

use data::{Compare, Consistency, Key, KeyRange, KeyValue, LeaseId, Op, RangeRequest};
use model::Revision;

use crate::catalog::Stored;
use crate::key::About;
use crate::record::{Behavior, KeyRecord, SessionRecord};
use crate::registry::{Registry, RegistryError, Written};
use crate::writing::{delete, put_leased, user_key};

/// Against somebody who changes the same key all the time.
const ATTEMPTS: usize = 32;
/// Keys that are freed in one round.
const AT_ONCE: usize = 1000;

/// A user's key and what hangs on it, as they are in the store.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The key with its value.
    pub kv: Option<KeyValue>,
    /// What hangs on it; only if it is about this key and not about one of the same name before it.
    pub record: Option<Stored<KeyRecord>>,
    /// When that was changed last, also if it is of one before; 0 if there is none.
    hangs_at: u64,
}

impl Entry {
    /// Conditions under which it is still so.
    ///
    /// # Errors
    /// The key is too long.
    pub fn unchanged(&self, key: &[u8]) -> Result<[Compare; 2], data::StoreError> {
        let at = self.kv.as_ref().map_or(Revision(0), |kv| kv.mod_revision);
        Ok([
            Compare::mod_revision(user_key(key)?, at),
            Compare::mod_revision(About::Kv(key.to_vec()).key()?, Revision(self.hangs_at)),
        ])
    }

    /// Who holds it.
    pub fn holder(&self) -> Option<&str> {
        self.record.as_ref().and_then(|known| known.record.session.as_deref())
    }
}

/// What a key is to become.
#[derive(Clone, Debug)]
pub struct Change {
    /// Its value.
    pub value: bytes::Bytes,
    /// What hangs on it.
    pub record: KeyRecord,
    /// The lease it goes with.
    pub lease: Option<LeaseId>,
}

/// Operations that make a change.
///
/// # Errors
/// The key is too long.
pub fn change_ops(key: &[u8], change: &Change) -> Result<Vec<Op>, data::StoreError> {
    let about = About::Kv(key.to_vec());
    let value = Op::Put { key: user_key(key)?, value: change.value.clone(), lease: change.lease };
    let hanging = if change.record == KeyRecord::default() {
        delete(&about)?
    } else {
        put_leased(&about, &change.record, change.lease)?
    };
    Ok(vec![value, hanging])
}

impl Registry {
    /// Reads a user's key with what hangs on it.
    ///
    /// # Errors
    /// The store's.
    pub async fn entry(&self, key: &[u8]) -> Result<Entry, RegistryError> {
        let one = async |key: Key| {
            let found = self.store().range(RangeRequest::key(&key), Consistency::Linearizable).await?;
            Ok::<_, RegistryError>(found.kvs.into_iter().next())
        };
        let kv = one(user_key(key)?).await?;
        let hanging = one(About::Kv(key.to_vec()).key()?).await?;
        let hangs_at = hanging.as_ref().map_or(0, |hanging| hanging.mod_revision.0);
        let created = kv.as_ref().map(|kv| kv.create_revision.0);
        let record = hanging.filter(|hanging| created.is_some_and(|created| hanging.mod_revision.0 >= created));
        let record = record.and_then(|kv| {
            let record = serde_json::from_slice(&kv.value).ok()?;
            Some(Stored { record, create: kv.create_revision.0, modify: kv.mod_revision.0 })
        });
        Ok(Entry { kv, record, hangs_at })
    }

    /// Changes a user's key by what it is: `decide` says what it becomes, or that it stays. True if it was changed. With
    /// `session`, only while that lives.
    ///
    /// # Errors
    /// The store's; [`RegistryError::Busy`].
    pub async fn change_key(
        &self,
        key: &[u8],
        session: Option<&str>,
        decide: impl Fn(&Entry) -> Option<Change>,
    ) -> Result<bool, RegistryError> {
        for _ in 0..ATTEMPTS {
            let entry = self.entry(key).await?;
            let Some(change) = decide(&entry) else { return Ok(false) };
            let mut compares = entry.unchanged(key)?.to_vec();
            if let Some(session) = session {
                compares.push(Compare::exists(About::Session(session.to_owned()).key()?));
            }
            if let Written::At(_) = self.write(compares, change_ops(key, &change)?).await? {
                return Ok(true);
            }
            if let Some(session) = session
                && !self.session_lives(session).await?
            {
                return Err(RegistryError::NoSession(session.to_owned()));
            }
        }
        Err(RegistryError::Busy)
    }

    /// Whether a session is there.
    ///
    /// # Errors
    /// The store's.
    pub async fn session_lives(&self, id: &str) -> Result<bool, RegistryError> {
        let key = About::Session(id.to_owned()).key()?;
        Ok(!self.store().range(RangeRequest::key(&key), Consistency::Linearizable).await?.kvs.is_empty())
    }

    /// Ends a session and frees what it held.
    ///
    /// # Errors
    /// The store's.
    pub async fn end_session(&self, id: &str, session: &SessionRecord) -> Result<(), RegistryError> {
        self.change(vec![delete(&About::Session(id.to_owned()))?]).await?;
        self.free_keys(id, session.behavior).await?;
        if let Some(lease) = session.lease {
            match self.store().lease_revoke(LeaseId(lease)).await {
                Ok(_) | Err(data::StoreError::LeaseNotFound(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Frees the keys that a session held which has ended.
    ///
    /// # Errors
    /// The store's.
    pub async fn free_keys(&self, id: &str, behavior: Behavior) -> Result<(), RegistryError> {
        let held: Vec<Vec<u8>> = {
            let catalog = self.read();
            let held = catalog.keys().filter(|(_, found)| found.record.session.as_deref() == Some(id));
            held.map(|(key, _)| key.to_vec()).take(AT_ONCE).collect()
        };
        for key in held {
            for _ in 0..ATTEMPTS {
                let entry = self.entry(&key).await?;
                let about = About::Kv(key.clone());
                let ops = match (&entry.kv, entry.holder() == Some(id)) {
                    (Some(_), true) if behavior == Behavior::Delete => {
                        vec![Op::Delete { range: KeyRange::key(&user_key(&key)?) }, delete(&about)?]
                    }
                    (Some(kv), true) => {
                        let record = entry.record.as_ref().map(|known| known.record.clone()).unwrap_or_default();
                        let record = KeyRecord { session: None, ..record };
                        change_ops(&key, &Change { value: kv.value.clone(), record, lease: None })?
                    }
                    // It is about a key that is no more.
                    (None, _) if entry.hangs_at > 0 => vec![delete(&about)?],
                    _ => break,
                };
                if let Written::At(_) = self.write(entry.unchanged(&key)?.to_vec(), ops).await? {
                    break;
                }
            }
        }
        self.is_freed(id);
        Ok(())
    }

    /// Sessions that hold keys and are no more: an end that nobody has cleaned up after.
    pub fn orphans(&self) -> Vec<String> {
        let catalog = self.read();
        let holders = catalog.keys().filter_map(|(_, found)| found.record.session.clone());
        let gone: std::collections::BTreeSet<String> =
            holders.filter(|session| catalog.session(session).is_none()).collect();
        gone.into_iter().collect()
    }
}
