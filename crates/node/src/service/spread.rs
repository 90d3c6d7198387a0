//! A service in a cluster: which of its instances belong here, and what other nodes say of theirs.
//! Beside `lifecycle`, which knows local instances only, and before `promotion`, which decides by what is committed.
//! Deliberately absent: where instances belong (`cluster/placing.rs`, on the leader).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use api::view::InstanceView;
use data::{Compare, Key, Revision};
use gateway::{Endpoint, Readiness};
use health::decide::{Holder, View};
use model::{Incarnation, InstanceId, NodeName};
use runtime::placement::Placed;
use runtime::plan;
use runtime::roll;

use super::Service;
use super::handing::Agreed;
use super::leaving::Leaving;
use super::routing::WEIGHT;
use crate::cluster::records::{InstanceRecord, Shown, instance_key};
use crate::instance::{Instance, Stage};
use crate::shell::Shell;

/// What is known of a service over all nodes.
#[derive(Debug)]
pub struct Spread {
    own: NodeName,
    /// Absent until it has been read: before that nothing is started or removed.
    placed: Option<(Placed, Revision)>,
    /// Switches and restarts.
    pub agreed: Agreed,
    records: BTreeMap<(InstanceId, NodeName), (InstanceRecord, Revision)>,
    /// Processes of other nodes that went without a word, until the gateway has been told.
    lost: BTreeMap<InstanceId, Option<Incarnation>>,
    /// Processes of other nodes that are about to stop.
    pub(super) leaving: BTreeMap<InstanceId, Leaving>,
    /// Instances of this node that drain, and that every other gateway leaves alone.
    pub(super) left: BTreeSet<InstanceId>,
}

impl Spread {
    /// Nothing known yet.
    pub fn new(own: NodeName) -> Self {
        Self {
            own,
            placed: None,
            agreed: Agreed::default(),
            records: BTreeMap::new(),
            lost: BTreeMap::new(),
            leaving: BTreeMap::new(),
            left: BTreeSet::new(),
        }
    }

    /// This node.
    pub fn own(&self) -> &NodeName {
        &self.own
    }

    /// Where instances belong, and since which revision.
    pub fn placed(&self) -> (Placed, Revision) {
        self.placed.clone().unwrap_or_default()
    }

    fn belongs_here(&self, id: &InstanceId) -> bool {
        self.placed.as_ref().is_some_and(|(placed, _)| placed.get(id) == Some(&self.own))
    }

    /// What other nodes say, of each instance at most once: of one that moves, what its new node says counts.
    fn others(&self) -> impl Iterator<Item = (&InstanceId, &NodeName, &InstanceRecord)> {
        let told = self.records.iter().filter(|(key, _)| self.counts(key));
        told.map(|((id, node), (record, _))| (id, node, record))
    }

    fn counts(&self, (id, node): &(InstanceId, NodeName)) -> bool {
        let placed_at = self.placed.as_ref().and_then(|(placed, _)| placed.get(id));
        *node != self.own
            && (placed_at == Some(node)
                || !placed_at.is_some_and(|at| self.records.contains_key(&(id.clone(), at.clone()))))
    }

    /// One that was alive says nothing any more, nor does its node: nothing comes from it either. Whoever ends in good
    /// order has said so before, and has its connections closed by its system.
    fn lose(&mut self, key: &(InstanceId, NodeName)) {
        let counted = self.counts(key);
        let Some((gone, _)) = self.records.remove(key) else { return };
        if counted && gone.alive && !gone.leaving {
            self.lost.insert(key.0.clone(), gone.incarnation);
        }
    }

    /// The term of this process, which is said not to work any more, was ended: whatever is under way to it is of no use. One
    /// that has ended itself has had its connections closed by its system.
    pub(super) fn depose(&mut self, holder: &Holder) {
        let Some(node) = holder.node.clone() else { return };
        if self.counts(&(holder.instance.clone(), node)) && self.process(holder).is_some_and(|process| !process.alive) {
            self.lost.insert(holder.instance.clone(), Some(holder.incarnation));
        }
    }

    /// Whose requests are to end, once.
    pub(super) fn take_lost(&mut self) -> Vec<InstanceId> {
        std::mem::take(&mut self.lost).into_keys().collect()
    }

    fn of(&self, holder: &Holder) -> Option<&(InstanceRecord, Revision)> {
        self.records.get(&(holder.instance.clone(), holder.node.clone()?))
    }

    /// The chain of events that its node sees it in.
    pub(super) fn cause_of(&self, holder: &Holder) -> Option<String> {
        self.of(holder).map(|(record, _)| record.shown.cause.clone()).filter(|cause| !cause.is_empty())
    }

    /// The record of exactly this process, if it is known and not gone.
    pub(super) fn process(&self, holder: &Holder) -> Option<&InstanceRecord> {
        self.of(holder).map(|(record, _)| record).filter(|record| record.incarnation == Some(holder.incarnation))
    }

    /// All processes that are known, as decisions see them.
    pub(super) fn views(&self) -> Vec<View> {
        let view = |((id, node), (record, _)): (&(InstanceId, NodeName), &(InstanceRecord, Revision))| {
            let holder = Holder { instance: id.clone(), incarnation: record.incarnation?, node: Some(node.clone()) };
            let (alive, ready, avoided) = (record.alive, record.ready, record.refused);
            Some(View { holder, alive, present: true, ready, avoided, cursor: 0 })
        };
        self.records.iter().filter_map(view).collect()
    }
}

impl Service {
    /// The restart that running processes must be younger than; 0 for a machine by itself.
    pub(super) fn generation(&self) -> u64 {
        self.spread.as_ref().map_or(0, |spread| spread.agreed.generation)
    }

    /// The instance is ready, here or elsewhere.
    pub(super) fn is_ready_anywhere(&self, id: &InstanceId) -> bool {
        match self.instances.get(id) {
            Some(instance) => instance.is_ready(),
            None => self.endpoints_elsewhere().any(|known| known.id == *id && known.readiness == Readiness::Ready),
        }
    }

    /// Whether this very process is one of this node's.
    pub(super) fn runs_here(&self, holder: &Holder) -> bool {
        let own = self.spread.as_ref().map(|spread| &spread.own);
        holder.node.as_ref() == own
            && self.instances.get(&holder.instance).is_some_and(|instance| {
                instance.process.as_ref().is_some_and(|process| process.incarnation == holder.incarnation)
            })
    }

    /// It went without a word: with the lease of its node, which is another one.
    pub(super) fn is_lost_with_its_node(&self, holder: &Holder) -> bool {
        self.spread
            .as_ref()
            .is_some_and(|spread| holder.node.as_ref() != Some(&spread.own) && spread.of(holder).is_none())
    }

    /// What a decision about this process rests on: its record is still the one that was looked at. So nobody is taken
    /// for stopped because news of it came late. `None` for a machine by itself, whose keeper is the witness.
    pub(super) fn proof(&self, holder: &Holder) -> Option<Compare> {
        let spread = self.spread.as_ref()?;
        let key = instance_key(&self.name, &holder.instance, holder.node.as_ref()?);
        Some(match spread.of(holder) {
            Some((_, at)) => Compare::mod_revision(key, *at),
            None => Compare::absent(key),
        })
    }

    /// A node says this of an instance, or nothing any more.
    pub fn told(&mut self, id: InstanceId, node: NodeName, record: Option<(InstanceRecord, Revision)>, now: Instant) {
        let Some(spread) = &mut self.spread else { return };
        if node != spread.own {
            spread.note_leaving(&id, record.as_ref().map(|(record, _)| record), now);
        }
        let Some(record) = record else { return spread.lose(&(id, node)) };
        // It is heard of again before anybody was told.
        let incarnation = record.0.incarnation;
        let _ = spread.lost.extract_if(.., |lost, process| *lost == id && *process == incarnation).count();
        spread.records.insert((id, node), record);
    }

    /// The leader has decided where instances belong.
    pub fn place(&mut self, shell: &Shell, placed: Placed, at: Revision, now: Instant) {
        let Some(spread) = &mut self.spread else { return };
        if spread.placed.as_ref().is_some_and(|(_, known)| *known >= at) {
            return;
        }
        spread.placed = Some((placed, at));
        let cause = shell.new_cause();
        // What has to be replaced besides is in a roll already.
        self.fit_to_plan(shell, &cause, now);
    }

    /// The instances that should run on this node.
    pub(crate) fn planned_here(&self) -> Vec<plan::Instance> {
        let mut planned = plan::instances(&self.name, &self.definition);
        if let Some(spread) = &self.spread {
            match spread.placed {
                Some(_) => planned.retain(|plan| spread.belongs_here(&plan.id)),
                // What a node process before this one ran goes on.
                None => planned.retain(|plan| self.instances.contains_key(&plan.id)),
            }
        }
        planned
    }

    /// What this node says of its instances.
    pub fn own_records(&self) -> impl Iterator<Item = (Key, InstanceRecord)> {
        let own = self.spread.as_ref().map(|spread| spread.own.clone());
        self.instances.values().filter_map(move |instance| {
            let record = self.own_record(instance);
            Some((instance_key(&self.name, instance.id(), own.as_ref()?), record))
        })
    }

    fn own_record(&self, instance: &Instance) -> InstanceRecord {
        let process = instance.process.as_ref();
        InstanceRecord {
            incarnation: process.map(|process| process.incarnation),
            address: instance.address,
            alive: instance.is_alive(),
            ready: instance.is_ready(),
            leaving: instance.stage != Stage::Running,
            refused: self.promotion.as_ref().is_some_and(|promotion| promotion.has_refused(instance.id())),
            promoted: process.and_then(|process| process.promoted),
            demoted: self.promotion.as_ref().and_then(|promotion| promotion.demoted(instance.id())),
            generation: process.map_or(0, |process| process.generation),
            fingerprint: process.map_or_else(|| instance.plan.fingerprint(), |process| process.fingerprint),
            version: instance.plan.version.clone(),
            shown: Shown {
                pid: process.and_then(|process| process.pid),
                state: instance.state_word().to_owned(),
                since: instance.since.clone(),
                restarts: instance.restarts,
                note: instance.note.clone(),
                cause: instance.cause.clone(),
            },
        }
    }

    /// Instances on other nodes, for the gateway. They come after local ones, but where there are none they are as near
    /// as any.
    pub(super) fn endpoints_elsewhere(&self) -> impl Iterator<Item = Endpoint> {
        let others = self.spread.as_ref().into_iter().flat_map(Spread::others);
        others.filter(|(id, ..)| !self.instances.contains_key(*id)).filter_map(|(id, _, record)| {
            let readiness = match (record.ready, record.leaving) {
                (true, false) => Readiness::Ready,
                (_, true) if record.alive => Readiness::Draining,
                _ => Readiness::NotReady,
            };
            Some(Endpoint {
                id: id.clone(),
                address: record.address?,
                version: record.version.clone(),
                readiness,
                weight: WEIGHT,
                local: false,
            })
        })
    }

    /// Instances on other nodes, their version and how often they have been started again.
    pub(super) fn restarts_elsewhere(&self) -> impl Iterator<Item = (&InstanceId, Option<&model::VersionName>, u32)> {
        let others = self.spread.as_ref().into_iter().flat_map(Spread::others);
        others.map(|(id, _, record)| (id, record.version.as_ref(), record.shown.restarts))
    }

    /// How many instances on other nodes are ready.
    pub(super) fn ready_elsewhere(&self) -> usize {
        self.endpoints_elsewhere().filter(|endpoint| endpoint.readiness == Readiness::Ready).count()
    }

    /// Instances on other nodes, for a roll: one that runs something else is pending there.
    pub(super) fn roll_elsewhere(&self, primary: Option<&InstanceId>) -> Vec<roll::View> {
        let planned: BTreeMap<InstanceId, u64> = plan::instances(&self.name, &self.definition)
            .into_iter()
            .map(|plan| (plan.id.clone(), plan.fingerprint()))
            .collect();
        let others = self.spread.as_ref().into_iter().flat_map(Spread::others);
        let generation = self.generation();
        let view = |(id, _, record): (&InstanceId, &NodeName, &InstanceRecord)| {
            Some(roll::View {
                id: id.clone(),
                pending: record.fingerprint != *planned.get(id)? || record.generation < generation,
                ready: record.ready,
                primary: primary == Some(id),
            })
        };
        others.filter(|(id, ..)| !self.instances.contains_key(*id)).filter_map(view).collect()
    }

    /// Every instance runs what it should, since the newest restart, and is ready.
    pub fn is_rolled_out(&self) -> bool {
        let Some(spread) = &self.spread else { return true };
        let generation = self.generation();
        let others: Vec<_> = spread.others().collect();
        plan::instances(&self.name, &self.definition).iter().all(|plan| match self.instances.get(&plan.id) {
            Some(instance) => {
                instance.is_ready()
                    && instance.process.as_ref().is_some_and(|process| {
                        process.fingerprint == plan.fingerprint() && process.generation >= generation
                    })
            }
            None => others.iter().any(|(id, _, record)| {
                *id == &plan.id
                    && record.ready
                    && record.fingerprint == plan.fingerprint()
                    && record.generation >= generation
            }),
        })
    }

    /// Instances on other nodes, for screens; with those that belong to a node that says nothing.
    pub(super) fn views_elsewhere(&self, primary: Option<&InstanceId>) -> Vec<InstanceView> {
        let Some(spread) = &self.spread else { return Vec::new() };
        let role = |id: &InstanceId| {
            self.promotion.as_ref().map(|_| if primary == Some(id) { "primary" } else { "standby" }.to_owned())
        };
        let told = |(id, node, record): (&InstanceId, &NodeName, &InstanceRecord)| InstanceView {
            id: id.clone(),
            node: Some(node.clone()),
            pid: record.shown.pid,
            address: record.address.map(|address| address.to_string()).unwrap_or_default(),
            version: record.version.clone(),
            role: role(id),
            state: record.shown.state.clone(),
            restarts: record.shown.restarts,
            since: record.shown.since.clone(),
            note: record.shown.note.clone(),
        };
        let mut views: Vec<InstanceView> =
            spread.others().filter(|(id, ..)| !self.instances.contains_key(*id)).map(told).collect();
        for (id, node) in &spread.placed().0 {
            if *node != spread.own && !views.iter().any(|view| view.id == *id) && !self.instances.contains_key(id) {
                views.push(InstanceView {
                    id: id.clone(),
                    node: Some(node.clone()),
                    pid: None,
                    address: String::new(),
                    version: None,
                    role: role(id),
                    state: "unknown".to_owned(),
                    restarts: 0,
                    since: String::new(),
                    note: Some(format!("node {node} says nothing of it: is it down?")),
                });
            }
        }
        views
    }
}
