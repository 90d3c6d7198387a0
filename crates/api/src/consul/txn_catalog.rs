//! Operations of `/v1/txn` on machines, instances and checks: each is judged in order on a small catalog of the machines that
//! they name, which takes over what was decided before it. Errors are in Consul's words, which clients compare.
//! Deliberately absent: keys (`txn.rs`), and running what a check says: nobody does, as for `/v1/catalog/register`.

use std::collections::BTreeSet;

use data::{Compare, Op, Revision, StoreError};
use discovery::catalog::{Catalog, Held};
use discovery::fields::Fields;
use discovery::key::About;
use discovery::record::{CheckRecord, NodeRecord, ServiceRecord};
use discovery::{definition, writing};
use serde_json::{Value, json};

use super::ask::Ask;
use super::catalog::{read_check, read_service};
use super::reply::Trouble;
use super::{own_if_agent, refuse_own, refuse_own_check, render};

/// When something was changed that is not committed yet.
const PENDING: u64 = u64::MAX;

/// One operation.
pub struct Operation {
    verb: String,
    node: String,
    /// What a condition compares with.
    index: u64,
    what: What,
}

enum What {
    Node(NodeRecord),
    Service(String, ServiceRecord),
    Check(String, Box<CheckRecord>),
}

impl Operation {
    /// Reads what stands at `path` under one of these keys; `None` if it is another one.
    pub fn read(fields: &mut Fields<'_>, path: &str) -> Result<Option<Self>, Trouble> {
        let empty = json!({});
        let found = ["node", "service", "check"].into_iter().find_map(|kind| Some((kind, fields.get(kind)?)));
        let Some((kind, value)) = found else { return Ok(None) };
        let path = format!("{path}.{kind}");
        let mut outer = Fields::of(value, &path)?;
        let verb = outer.text("verb")?;
        if !["get", "set", "cas", "delete", "delete-cas"].contains(&verb.as_str()) {
            return Err(Trouble::bad(format!("{path}.Verb: {verb:?} is none")));
        }
        let inner = outer.get(kind).unwrap_or(&empty);
        let mut own = Fields::of(inner, &format!("{path}.{kind}"))?;
        let index = own.number("modifyindex", u64::MAX)?.unwrap_or(0);
        let (node, what) = match kind {
            "node" => {
                let record = NodeRecord {
                    id: own.text("id")?,
                    address: own.text("address")?,
                    tagged_addresses: own.map("taggedaddresses")?,
                    meta: own.map("meta")?,
                    agent: false,
                };
                definition::bounded(&record, &path)?;
                let name = own.text("node")?;
                (if name.is_empty() { record.id.clone() } else { name }, What::Node(record))
            }
            "service" => {
                let (id, record) = read_service(inner, &path)?;
                (outer.text("node")?, What::Service(id, record))
            }
            _ => {
                let (id, record) = read_check(inner, &path)?;
                (own.text("node")?, What::Check(id, Box::new(record)))
            }
        };
        if node.is_empty() {
            return Err(Trouble::bad(format!("{path}: Must provide node")));
        }
        Ok(Some(Self { verb, node, index, what }))
    }
}

/// What operations so far have come to.
#[derive(Default)]
pub struct Working {
    catalog: Catalog,
    copied: BTreeSet<String>,
    seen: BTreeSet<data::Key>,
    /// That nothing has changed meanwhile.
    pub compares: Vec<Compare>,
    /// What is written.
    pub ops: Vec<Op>,
}

impl Working {
    /// Judges one operation on what `known` shows and was decided before: what it shows, or why it fails.
    pub fn judge(
        &mut self,
        known: &Catalog,
        datacenter: &str,
        ask: &Ask,
        one: &Operation,
    ) -> Result<Option<Value>, String> {
        let broken = |error: StoreError| error.to_string();
        let name = known.find_node(&one.node).unwrap_or(&one.node).to_owned();
        self.copy(known, &name).map_err(broken)?;
        let seen = self.require(ask, &name, one).map_err(|refused| refused.text().to_owned())?;
        let (about, subject) = match &one.what {
            What::Node(_) => (About::Node(name.clone()), format!("node {name:?}")),
            What::Service(id, _) => {
                (About::Service(name.clone(), id.clone()), format!("service {id:?} on node {name:?}"))
            }
            What::Check(id, _) => (About::Check(name.clone(), id.clone()), format!("check {id:?} on node {name:?}")),
        };
        let index = self.index(&about);
        self.hold(&about).map_err(broken)?;
        let verb = one.verb.split('-').next().unwrap_or_default();
        if one.verb.ends_with("cas") && index.unwrap_or(0) != one.index {
            let verb = if verb == "cas" { "set" } else { verb };
            return Err(format!("failed to {verb} {subject}, index is stale"));
        }
        match verb {
            "get" if index.is_none() => return Err(format!("{subject} doesn't exist")),
            "get" if !seen => return Ok(None),
            "get" => {}
            "delete" => {
                self.delete(&name, one)?;
                return Ok(None);
            }
            _ => self.set(&name, about, one)?,
        }
        Ok(self.shown(datacenter, &name, &one.what))
    }

    /// Refuses who may not change this; whether what is only read may be shown.
    fn require(&self, ask: &Ask, name: &str, one: &Operation) -> Result<bool, Trouble> {
        let entry = self.catalog.node(name).map(|(_, entry)| entry);
        let (there, new) = match &one.what {
            What::Node(_) => (None, ""),
            What::Service(id, record) => {
                let there = entry.and_then(|entry| entry.services.get(id)).map(|known| known.record.service.as_str());
                (there, record.service.as_str())
            }
            What::Check(id, record) => {
                let there = entry.and_then(|entry| entry.checks.get(id)).map(|known| known.record.service.as_str());
                let of = entry.and_then(|entry| entry.services.get(&record.service_id));
                (there, of.map_or(record.service.as_str(), |of| of.record.service.as_str()))
            }
        };
        if one.verb == "get" {
            return Ok(ask.sees_on(name, there.unwrap_or(new)));
        }
        if let Some(there) = there {
            ask.require_change(name, there)?;
        }
        // What is taken away is what there is, whatever else was written down.
        if there.is_none() || !one.verb.starts_with("delete") {
            ask.require_change(name, new)?;
        }
        Ok(true)
    }

    /// The machine as it is known, with all that is on it.
    fn copy(&mut self, known: &Catalog, name: &str) -> Result<(), StoreError> {
        if !self.copied.insert(name.to_owned()) {
            return Ok(());
        }
        let Some((node, entry)) = known.node(name) else { return Ok(()) };
        let mut put = |about: About, value: &[u8], create, modify| {
            self.catalog.apply(&about.key()?, Some(Held { value, create, modify }), modify, &mut Vec::new());
            Ok(())
        };
        put(About::Node(name.into()), &writing::encoded(&node.record), node.create, node.modify)?;
        if entry.alive {
            put(About::Alive(name.into()), b"", entry.alive_at, entry.alive_at)?;
        }
        for (id, one) in &entry.services {
            put(About::Service(name.into(), id.clone()), &writing::encoded(&one.record), one.create, one.modify)?;
        }
        for (id, one) in &entry.checks {
            put(About::Check(name.into(), id.clone()), &writing::encoded(&one.record), one.create, one.modify)?;
        }
        Ok(())
    }

    /// When something was changed last; `None` if it is not there.
    fn index(&self, about: &About) -> Option<u64> {
        let on = |node: &String| self.catalog.node(node);
        match about {
            About::Node(name) => Some(on(name)?.0.modify),
            About::Service(node, id) => Some(on(node)?.1.services.get(id)?.modify),
            About::Check(node, id) => Some(on(node)?.1.checks.get(id)?.modify),
            _ => None,
        }
    }

    /// The transaction is only good while this is as it was read.
    fn hold(&mut self, about: &About) -> Result<(), StoreError> {
        let key = about.key()?;
        if self.seen.insert(key.clone()) {
            // Once something was changed here, it has been held before.
            let at = self.index(about).filter(|index| *index != PENDING).unwrap_or(0);
            self.compares.push(Compare::mod_revision(key, Revision(at)));
        }
        Ok(())
    }

    fn set(&mut self, name: &str, about: About, one: &Operation) -> Result<(), String> {
        let broken = |error: StoreError| error.to_string();
        let there = self.catalog.node(name).is_some();
        let op = match &one.what {
            What::Node(_) if self.catalog.node(name).is_some_and(|(node, _)| node.record.agent) => {
                return Err(format!("node {name:?} has a Seawall, which writes it itself"));
            }
            What::Node(record) if record.address.is_empty() => return Err("Must provide address".to_owned()),
            What::Node(record) => writing::put(&about, record),
            _ if !there => return Err("Missing node registration".to_owned()),
            What::Service(id, record) => {
                refuse_own(&self.catalog, name, id).map_err(|trouble| trouble.text().to_owned())?;
                self.hold(&About::Node(name.into())).map_err(broken)?;
                writing::put(&about, record)
            }
            What::Check(id, record) => {
                let refused = refuse_own_check(&self.catalog, name, id)
                    .and_then(|()| refuse_own(&self.catalog, name, &record.service_id));
                refused.map_err(|trouble| trouble.text().to_owned())?;
                self.hold(&About::Node(name.into())).map_err(broken)?;
                let mut record = CheckRecord::clone(record);
                if !record.service_id.is_empty() {
                    let service = About::Service(name.into(), record.service_id.clone());
                    self.hold(&service).map_err(broken)?;
                    let of = self.catalog.node(name).and_then(|(_, entry)| entry.services.get(&record.service_id));
                    let Some(of) = of else { return Err("Missing service registration".to_owned()) };
                    record.service.clone_from(&of.record.service);
                }
                writing::put(&about, &record)
            }
        };
        self.take(about, op.map_err(broken)?);
        Ok(())
    }

    fn take(&mut self, about: About, op: Op) {
        if let Op::Put { key, value, .. } = &op {
            let create = match &about {
                About::Node(name) => self.catalog.node(name).map(|(node, _)| node.create),
                About::Service(node, id) => {
                    self.catalog.node(node).and_then(|(_, entry)| Some(entry.services.get(id)?.create))
                }
                About::Check(node, id) => {
                    self.catalog.node(node).and_then(|(_, entry)| Some(entry.checks.get(id)?.create))
                }
                _ => None,
            };
            let held = Held { value, create: create.unwrap_or(PENDING), modify: PENDING };
            self.catalog.apply(key, Some(held), PENDING, &mut Vec::new());
        }
        self.ops.push(op);
    }

    fn delete(&mut self, name: &str, one: &Operation) -> Result<(), String> {
        let refused = match &one.what {
            What::Node(_) => own_if_agent(&self.catalog, name),
            What::Service(id, _) => refuse_own(&self.catalog, name, id),
            What::Check(id, _) => refuse_own_check(&self.catalog, name, id),
        };
        refused.map_err(|trouble| trouble.text().to_owned())?;
        let entry = self.catalog.node(name).map(|(_, entry)| entry.clone()).unwrap_or_default();
        let check = |id: &str| About::Check(name.into(), id.to_owned());
        let (ops, gone) = match &one.what {
            What::Node(_) => {
                let services = entry.services.keys().map(|id| About::Service(name.into(), id.clone()));
                let all = services.chain(entry.checks.keys().map(|id| check(id)));
                (writing::remove_node(name), all.chain([About::Alive(name.into()), About::Node(name.into())]).collect())
            }
            What::Service(id, _) => {
                let mut gone: Vec<About> = entry.checks_of(id).map(|(id, _)| check(id)).collect();
                gone.push(About::Service(name.into(), id.clone()));
                (writing::deregister(&self.catalog, name, id), gone)
            }
            What::Check(id, _) => (writing::delete(&check(id)).map(|op| vec![op]), vec![check(id)]),
        };
        self.ops.extend(ops.map_err(|error| error.to_string())?);
        for about in gone {
            let key = about.key().map_err(|error| error.to_string())?;
            self.catalog.apply(&key, None, PENDING, &mut Vec::new());
        }
        Ok(())
    }

    fn shown(&self, datacenter: &str, name: &str, what: &What) -> Option<Value> {
        let (node, entry) = self.catalog.node(name)?;
        Some(match what {
            What::Node(_) => json!({ "Node": render::node(datacenter, name, node) }),
            What::Service(id, _) => json!({ "Service": render::service(id, entry.services.get(id)?) }),
            What::Check(id, _) => {
                json!({ "Check": render::check(name, Some(entry), &(id.as_str(), entry.checks.get(id)?)) })
            }
        })
    }
}

/// What was shown before the commit, with the revision at which that was.
pub fn committed(mut shown: Value, revision: u64) -> Value {
    for part in shown.as_object_mut().into_iter().flat_map(|object| object.values_mut()) {
        for index in ["CreateIndex", "ModifyIndex"] {
            if part[index].as_u64() == Some(PENDING) {
                part[index] = revision.into();
            }
        }
    }
    shown
}
