//! Everything that is registered, as the store says: built from a listing, brought up to date by each change, read by every
//! question. A change tells which questions it concerns, and no more: whoever waits for another one is not woken.
//! Deliberately absent: clocks, the network, and what is only derived for one answer (`select.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use data::Key;
use serde::de::DeserializeOwned;

use crate::acl::Acls;
use crate::acl::state::Change;
use crate::key::{About, AclKind};
use crate::record::{
    CheckRecord, CheckStatus, EventRecord, KeyRecord, NodeRecord, Owner, QueryRecord, ServiceRecord, SessionRecord,
};
use crate::topic::Topic;

/// The check that every machine with a Seawall has: whether that is alive. Consul's name, which clients look for.
pub const ALIVE: &str = "serfHealth";

/// The service, and on each machine the instance, that stands for those who keep the registry. Consul's name for its servers.
pub const SERVERS: &str = "consul";

/// A record with the revisions at which it came and was changed last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored<T> {
    /// What is stored.
    pub record: T,
    /// When it came.
    pub create: u64,
    /// When it was changed last.
    pub modify: u64,
}

/// A machine with all that is on it.
#[derive(Clone, Debug, Default)]
pub struct NodeEntry {
    /// The machine; absent while only its parts are known, which then do not count.
    pub node: Option<Stored<NodeRecord>>,
    /// Its Seawall is alive.
    pub alive: bool,
    /// When that changed last.
    pub alive_at: u64,
    /// Instances by id.
    pub services: BTreeMap<String, Stored<ServiceRecord>>,
    /// Checks by id, without [`ALIVE`], which is derived.
    pub checks: BTreeMap<String, Stored<CheckRecord>>,
    /// Which of them each instance has; its own are under the empty id.
    of_instance: BTreeMap<String, BTreeSet<String>>,
    /// How it stands by its Seawall, as a check; absent for machines without one.
    alive_check: Option<Stored<CheckRecord>>,
}

impl NodeEntry {
    /// Whether its Seawall is alive, as a check.
    pub fn alive_check(&self) -> Option<&Stored<CheckRecord>> {
        self.alive_check.as_ref()
    }

    /// The checks of an instance by id, or for the empty id those of the machine itself, without [`ALIVE`].
    pub fn checks_of(&self, instance: &str) -> impl Iterator<Item = (&str, &Stored<CheckRecord>)> {
        let ids = self.of_instance.get(instance).into_iter().flatten();
        ids.filter_map(|id| Some((id.as_str(), self.checks.get(id)?)))
    }

    fn derive(&mut self) {
        let node = self.node.as_ref().filter(|node| node.record.agent);
        self.alive_check = node.map(|node| {
            let (status, output) = if self.alive {
                (CheckStatus::Passing, "Agent alive and reachable")
            } else {
                (CheckStatus::Critical, "Agent not live or unreachable")
            };
            let record = CheckRecord {
                name: "Serf Health Status".into(),
                status,
                output: output.into(),
                owner: Owner::Seawall,
                ..CheckRecord::default()
            };
            Stored { record, create: node.create, modify: self.alive_at.max(node.create) }
        });
    }
}

/// A service: who has its name, and with which tags.
#[derive(Clone, Debug, Default)]
pub struct NameEntry {
    /// Node and id of each instance.
    pub members: BTreeSet<(String, String)>,
    /// How many instances have each tag.
    pub tags: BTreeMap<String, usize>,
}

/// See the file.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    nodes: BTreeMap<String, NodeEntry>,
    /// Machines by how they are in lower case, and by id.
    aliases: HashMap<String, BTreeSet<String>>,
    names: BTreeMap<String, NameEntry>,
    /// Names by how they are in lower case, for those who ask in any case.
    lower: BTreeMap<String, BTreeSet<String>>,
    sessions: BTreeMap<String, Stored<SessionRecord>>,
    keys: BTreeMap<Vec<u8>, Stored<KeyRecord>>,
    queries: BTreeMap<String, Stored<QueryRecord>>,
    events: BTreeMap<String, Stored<EventRecord>>,
    acls: Acls,
}

/// What a key holds now.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// The bytes.
    pub value: &'a [u8],
    /// When it came.
    pub create: u64,
    /// When it was changed last.
    pub modify: u64,
}

impl Catalog {
    /// Machines by name; those without a record of their own are left out.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &Stored<NodeRecord>, &NodeEntry)> {
        self.nodes.iter().filter_map(|(name, entry)| Some((name.as_str(), entry.node.as_ref()?, entry)))
    }

    /// A machine.
    pub fn node(&self, name: &str) -> Option<(&Stored<NodeRecord>, &NodeEntry)> {
        let entry = self.nodes.get(name)?;
        Some((entry.node.as_ref()?, entry))
    }

    /// The machine of this name in any case, or of this id.
    pub fn find_node(&self, name: &str) -> Option<&str> {
        if self.node(name).is_some() {
            return self.nodes.get_key_value(name).map(|(known, _)| known.as_str());
        }
        let same = self.aliases.get(&name.to_ascii_lowercase()).or_else(|| self.aliases.get(name))?;
        same.first().map(String::as_str)
    }

    /// Services by name.
    pub fn names(&self) -> impl Iterator<Item = (&str, &NameEntry)> {
        self.names.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// A service.
    pub fn name(&self, name: &str) -> Option<&NameEntry> {
        self.names.get(name)
    }

    /// A service's name as it is registered, for one in any case.
    pub fn find_name(&self, name: &str) -> Option<&str> {
        match self.names.get_key_value(name) {
            Some((known, _)) => Some(known),
            None => self.lower.get(&name.to_ascii_lowercase())?.first().map(String::as_str),
        }
    }

    /// Instances of a service whose node is known: node, id, instance, all of the node.
    pub fn instances<'a>(
        &'a self,
        service: &str,
    ) -> impl Iterator<Item = (&'a str, &'a str, &'a Stored<ServiceRecord>, &'a NodeEntry)> {
        self.names.get(service).into_iter().flat_map(|entry| &entry.members).filter_map(|(node, id)| {
            let entry = self.nodes.get(node)?;
            entry.node.as_ref()?;
            Some((node.as_str(), id.as_str(), entry.services.get(id)?, entry))
        })
    }

    /// A session.
    pub fn session(&self, id: &str) -> Option<&Stored<SessionRecord>> {
        self.sessions.get(id)
    }

    /// Sessions by id.
    pub fn sessions(&self) -> impl Iterator<Item = (&str, &Stored<SessionRecord>)> {
        self.sessions.iter().map(|(id, session)| (id.as_str(), session))
    }

    /// What hangs on a user's key; `created` is when that key came: what is older was about another one.
    pub fn key(&self, user: &[u8], created: u64) -> Option<&Stored<KeyRecord>> {
        self.keys.get(user).filter(|found| found.modify >= created)
    }

    /// All that hangs on users' keys.
    pub fn keys(&self) -> impl Iterator<Item = (&[u8], &Stored<KeyRecord>)> {
        self.keys.iter().map(|(key, found)| (key.as_slice(), found))
    }

    /// Prepared queries by id.
    pub fn queries(&self) -> impl Iterator<Item = (&str, &Stored<QueryRecord>)> {
        self.queries.iter().map(|(id, query)| (id.as_str(), query))
    }

    /// A prepared query.
    pub fn query(&self, id: &str) -> Option<&Stored<QueryRecord>> {
        self.queries.get(id)
    }

    /// Fired events by id.
    pub fn events(&self) -> impl Iterator<Item = (&str, &Stored<EventRecord>)> {
        self.events.iter().map(|(id, event)| (id.as_str(), event))
    }

    /// Who may what.
    pub fn acls(&self) -> &Acls {
        &self.acls
    }

    /// Takes over what a key holds since `revision`, and tells whom that concerns.
    pub fn apply(&mut self, key: &Key, held: Option<Held<'_>>, revision: u64, touched: &mut Vec<Topic>) {
        match About::of(key) {
            About::Node(name) => self.node_is(&name, decoded(key, held), touched),
            About::Alive(name) => self.alive_is(&name, held.is_some(), revision, touched),
            About::Service(node, id) => self.service_is(&node, id, decoded(key, held), touched),
            About::Check(node, id) => self.check_is(&node, id, decoded(key, held), touched),
            About::Session(id) => {
                let new: Option<Stored<SessionRecord>> = decoded(key, held);
                let old = put(&mut self.sessions, id.clone(), new);
                touched.extend([Topic::Sessions, Topic::Session(id.clone())]);
                let node = old.or(self.sessions.get(&id).cloned()).map(|session| session.record.node);
                touched.extend(node.map(Topic::NodeSessions));
            }
            About::Kv(user) => drop(put(&mut self.keys, user, decoded(key, held))),
            About::Query(id) => {
                put(&mut self.queries, id, decoded(key, held));
                touched.push(Topic::Queries);
            }
            About::Fired(id) => {
                put(&mut self.events, id, decoded(key, held));
                touched.push(Topic::Fired);
            }
            About::Acl(kind, id) => {
                let change = match kind {
                    AclKind::Token => Change::Token(decoded(key, held)),
                    AclKind::Policy => Change::Policy(decoded(key, held)),
                    AclKind::Role => Change::Role(decoded(key, held)),
                    AclKind::Method => Change::Method(decoded(key, held)),
                    AclKind::Rule => Change::Rule(decoded(key, held)),
                };
                self.acls.apply(id, change);
                touched.push(Topic::Acls);
            }
            About::AclSequence => self.acls.changed_at(held.map_or(0, |held| held.modify)),
            About::Sequence | About::Other => {}
        }
    }

    fn node_is(&mut self, name: &str, new: Option<Stored<NodeRecord>>, touched: &mut Vec<Topic>) {
        let entry = self.nodes.entry(name.to_owned()).or_default();
        let old = std::mem::replace(&mut entry.node, new);
        entry.derive();
        for alias in old.iter().flat_map(|old| aliases(name, &old.record)) {
            if let Some(same) = self.aliases.get_mut(&alias) {
                same.remove(name);
                if same.is_empty() {
                    self.aliases.remove(&alias);
                }
            }
        }
        for alias in entry.node.iter().flat_map(|new| aliases(name, &new.record)) {
            self.aliases.entry(alias).or_default().insert(name.to_owned());
        }
        let (services, checks) = (Topic::NodeServices(name.to_owned()), Topic::NodeChecks(name.to_owned()));
        touched.extend([Topic::Nodes, Topic::Instances, services, checks]);
        for service in entry.services.values() {
            touched.push(Topic::Service(service.record.service.clone()));
            touched.push(Topic::Health(service.record.service.clone()));
        }
        self.forget_empty(name);
    }

    fn alive_is(&mut self, name: &str, alive: bool, revision: u64, touched: &mut Vec<Topic>) {
        let entry = self.nodes.entry(name.to_owned()).or_default();
        if entry.alive != alive {
            (entry.alive, entry.alive_at) = (alive, revision);
            entry.derive();
            touched.extend(of_node_check(entry, name));
            touched.extend([Topic::State(CheckStatus::Passing), Topic::State(CheckStatus::Critical)]);
        }
        self.forget_empty(name);
    }

    fn service_is(&mut self, node: &str, id: String, new: Option<Stored<ServiceRecord>>, touched: &mut Vec<Topic>) {
        let entry = self.nodes.entry(node.to_owned()).or_default();
        let now = new.as_ref().map(|new| new.record.clone());
        let old = put(&mut entry.services, id.clone(), new);
        self.forget_empty(node);
        touched.extend([Topic::Instances, Topic::NodeServices(node.to_owned())]);
        for name in old.iter().map(|old| &old.record.service).chain(now.iter().map(|now| &now.service)) {
            touched.extend([Topic::Service(name.clone()), Topic::Health(name.clone())]);
        }
        // What comes first, so that a tag that stays is not gone in between.
        let mut changed = now.as_ref().is_some_and(|now| self.add_name(now, node, &id));
        if let Some(old) = &old {
            let same = now.as_ref().is_some_and(|now| now.service == old.record.service);
            changed |= self.take_name(&old.record, node, &id, same);
        }
        if changed {
            touched.push(Topic::Services);
        }
    }

    /// True when the list of services shows something new.
    fn add_name(&mut self, record: &ServiceRecord, node: &str, id: &str) -> bool {
        let mut changed = !self.names.contains_key(&record.service);
        if changed {
            self.lower.entry(record.service.to_ascii_lowercase()).or_default().insert(record.service.clone());
        }
        let entry = self.names.entry(record.service.clone()).or_default();
        entry.members.insert((node.to_owned(), id.to_owned()));
        for tag in &record.tags {
            let count = entry.tags.entry(tag.clone()).or_default();
            changed |= *count == 0;
            *count += 1;
        }
        changed
    }

    fn take_name(&mut self, record: &ServiceRecord, node: &str, id: &str, stays: bool) -> bool {
        let Some(entry) = self.names.get_mut(&record.service) else { return false };
        let mut changed = false;
        if !stays {
            entry.members.remove(&(node.to_owned(), id.to_owned()));
        }
        for tag in &record.tags {
            if let Some(count) = entry.tags.get_mut(tag) {
                *count -= 1;
                if *count == 0 {
                    entry.tags.remove(tag);
                    changed = true;
                }
            }
        }
        if entry.members.is_empty() {
            self.names.remove(&record.service);
            let lower = record.service.to_ascii_lowercase();
            if let Some(same) = self.lower.get_mut(&lower) {
                same.remove(&record.service);
                if same.is_empty() {
                    self.lower.remove(&lower);
                }
            }
            changed = true;
        }
        changed
    }

    fn check_is(&mut self, node: &str, id: String, new: Option<Stored<CheckRecord>>, touched: &mut Vec<Topic>) {
        let entry = self.nodes.entry(node.to_owned()).or_default();
        let now = new.as_ref().map(|new| new.record.clone());
        let old = put(&mut entry.checks, id.clone(), new).map(|old| old.record);
        if let Some(old) = old.as_ref().filter(|old| now.as_ref().is_none_or(|now| now.service_id != old.service_id))
            && let Some(ids) = entry.of_instance.get_mut(&old.service_id)
        {
            ids.remove(&id);
            if ids.is_empty() {
                entry.of_instance.remove(&old.service_id);
            }
        }
        if let Some(now) = &now {
            entry.of_instance.entry(now.service_id.clone()).or_default().insert(id);
        }
        for record in old.iter().chain(&now) {
            if record.service_id.is_empty() {
                touched.extend(of_node_check(entry, node));
            } else {
                touched.push(Topic::NodeChecks(node.to_owned()));
                touched.extend([Topic::ServiceChecks(record.service.clone()), Topic::Health(record.service.clone())]);
            }
            touched.push(Topic::State(record.status));
        }
        touched.push(Topic::Checks);
        self.forget_empty(node);
    }

    fn forget_empty(&mut self, name: &str) {
        let empty = |entry: &NodeEntry| {
            entry.node.is_none() && !entry.alive && entry.services.is_empty() && entry.checks.is_empty()
        };
        if self.nodes.get(name).is_some_and(empty) {
            self.nodes.remove(name);
        }
    }
}

/// By what else a machine is found.
fn aliases(name: &str, record: &NodeRecord) -> impl Iterator<Item = String> {
    let id = Some(&record.id).filter(|id| !id.is_empty());
    std::iter::once(name.to_ascii_lowercase()).chain(id.cloned())
}

/// A check of a machine concerns everything on it.
fn of_node_check(entry: &NodeEntry, node: &str) -> Vec<Topic> {
    let services: BTreeSet<&String> = entry.services.values().map(|service| &service.record.service).collect();
    let services = services.into_iter().map(|service| Topic::Health(service.clone()));
    services.chain([Topic::NodeChecks(node.to_owned()), Topic::Checks]).collect()
}

fn put<K: Ord, T>(map: &mut BTreeMap<K, Stored<T>>, key: K, new: Option<Stored<T>>) -> Option<Stored<T>> {
    match new {
        Some(new) => map.insert(key, new),
        None => map.remove(&key),
    }
}

fn decoded<T: DeserializeOwned>(key: &Key, held: Option<Held<'_>>) -> Option<Stored<T>> {
    let held = held?;
    match serde_json::from_slice(held.value) {
        Ok(record) => Some(Stored { record, create: held.create, modify: held.modify }),
        Err(error) => {
            tracing::error!(%key, %error, "a record of the registry cannot be read; is it of a newer version?");
            None
        }
    }
}
