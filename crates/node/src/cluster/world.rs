//! The cluster as this node sees it: control state comes in by listing and watching, and is given to the services; what
//! this node runs goes out; on the leader, instances are given their places.
//! Around the failure walk: a lost node shows here as records that are gone. Deliberately absent: promotion, which is the
//! services' own.

use std::collections::BTreeMap;
use std::future::{Future as _, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use data::{Compare, KeyRange, RangeRequest, RangeResult, Revision, Store, Txn, TxnOutcome, WatchItem, WatchStream};
use data::{Consistency, Event as Change};
use model::Config;
use model::config::NodeRole;
use model::{EventKind, NodeName, ServiceName};
use runtime::placement::{self, Presence};
use runtime::plan;
use tokio::sync::mpsc;

use super::agents::{AGENT, Agents};
use super::awaited::Awaited;
use super::publisher::{self, Publisher, Said, Saying};
use super::records::{About, CONTROL, ConfigRecord, NODE, NodeRecord, PLACEMENT, PlacementRecord, key};
use crate::controller::Controller;
use crate::input::Input;
use crate::service::Service;
use crate::shell::{Outcome, Subject};

/// More changes than that at once come from a node that was away: what is now is read instead.
const AT_ONCE: usize = 64;
/// Between two attempts to list.
const LIST_AGAIN: Duration = Duration::from_millis(100);
/// Giving the lease back may take so long.
const LEAVING: Duration = Duration::from_secs(1);
/// New placements wait for so long for a member that has not said yet that it takes instances.
const COMING: Duration = Duration::from_secs(5);
/// After a placement that was not committed.
const PLACE_AGAIN: Duration = Duration::from_millis(200);

/// What this node knows of its cluster.
#[derive(Debug, Default)]
pub struct World {
    /// Nodes that are there.
    pub nodes: BTreeMap<NodeName, NodeRecord>,
    /// Those among them, and of before, that are agents.
    pub agents: Agents,
    /// Nodes that were there or should be, and since when they are not.
    away: BTreeMap<NodeName, Instant>,
    /// Members that have not said yet that they are there, and are not known to be away, and since when this node knows of them.
    coming: BTreeMap<NodeName, Instant>,
    /// Placements, instances, switches and restarts, as they were read: for services that come later.
    kept: BTreeMap<String, (Vec<u8>, Revision)>,
    /// The revision of the configuration in force; 0 while there is none.
    pub config_at: Revision,
    /// What was in force before that, to go back to.
    pub before: Option<ConfigRecord>,
    /// Who waits for what has been agreed on to be carried out.
    pub awaited: Vec<Awaited>,
    /// What is said to others.
    pub publisher: Publisher,
    /// A placement is on its way, or is tried again then.
    placing: BTreeMap<ServiceName, Option<Instant>>,
}

/// Lists and follows control state until the node ends; begins again whenever the watch does. What is listed has been
/// confirmed by a quorum: a node that starts, or that was away, does not act on the history that it is still reading.
pub async fn follow(store: Arc<dyn Store>, inputs: mpsc::Sender<Input>) {
    loop {
        let Ok(listed) = store.range(RangeRequest::prefix(CONTROL), Consistency::Linearizable).await else {
            tokio::time::sleep(LIST_AGAIN).await;
            continue;
        };
        let from = Revision(listed.revision.0 + 1);
        if inputs.send(Input::Listed(listed)).await.is_err() {
            return;
        }
        let Ok(watch) = store.watch(KeyRange::prefix(CONTROL), Some(from)) else { return };
        if !pass_on(watch, &inputs).await {
            return;
        }
    }
}

/// Passes on what changes, until the watch ends or so much has come at once that it must be old. False when nobody
/// listens any more.
async fn pass_on(mut watch: WatchStream, inputs: &mpsc::Sender<Input>) -> bool {
    while let Some(first) = watch.next().await {
        let mut items = vec![first];
        while items.len() <= AT_ONCE {
            let mut next = std::pin::pin!(watch.next());
            let more = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await;
            match more {
                Poll::Ready(Some(item)) => items.push(item),
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if items.len() > AT_ONCE {
            return true;
        }
        for item in items {
            if inputs.send(Input::Watched(item)).await.is_err() {
                return false;
            }
        }
    }
    tokio::time::sleep(LIST_AGAIN).await;
    true
}

impl World {
    /// Nodes that were there and are not.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.away.keys().map(NodeName::as_str)
    }

    /// Tells a service what the other nodes have said that it waits for.
    pub fn tell_of_others(&self, service: &mut Service, config: &Config) {
        let others = || self.nodes.iter().filter(|(node, _)| **node != config.node.name);
        service.hear_drained(|name, at| others().all(|(_, record)| record.drained.get(name) == Some(&at)));
        // A service that is no more has no routes either, and others may have forgotten it.
        let forgotten = !config.services.contains_key(&service.name);
        service.hear_left_alone(|id, process| {
            forgotten || others().all(|(_, record)| record.left.get(id) == Some(&process))
        });
    }
}

impl Controller {
    /// All control state, as of one revision.
    pub fn listed(&mut self, found: RangeResult, now: Instant) {
        let mut kvs = found.kvs;
        kvs.sort_by_key(|kv| kv.mod_revision);
        let there: std::collections::BTreeSet<String> =
            kvs.iter().filter_map(|kv| kv.key.as_str().map(str::to_owned)).collect();
        let Some(world) = &self.world else { return };
        let nodes = world.nodes.keys().map(|node| format!("{NODE}{node}"));
        let gone: Vec<String> =
            world.kept.keys().cloned().chain(nodes).filter(|known| !there.contains(known)).collect();
        for name in gone {
            self.control(&name, None, now);
        }
        // Services first: everything else is about them.
        let (config, rest): (Vec<_>, Vec<_>) =
            kvs.into_iter().partition(|kv| kv.key.as_str().is_some_and(|key| About::of(key) == About::Config));
        for kv in config.into_iter().chain(rest) {
            if let Some(name) = kv.key.as_str() {
                publisher::vouch(&mut self.shell, &kv);
                self.control(name, Some((&kv.value, kv.mod_revision)), now);
            }
        }
        self.shell.table.set_unknown(false);
    }

    /// Control state has changed.
    pub fn followed(&mut self, item: &WatchItem, now: Instant) {
        let WatchItem::Events { events, .. } = item else { return };
        for change in events.iter() {
            let Some(name) = change.key().as_str() else { continue };
            match change {
                Change::Put(kv) => {
                    publisher::vouch(&mut self.shell, kv);
                    self.control(name, Some((&kv.value, kv.mod_revision)), now);
                }
                Change::Delete { .. } => self.control(name, None, now),
            }
        }
    }

    fn control(&mut self, name: &str, value: Option<(&[u8], Revision)>, now: Instant) {
        match About::of(name) {
            About::Config => {
                if let Some((value, at)) = value {
                    self.follow_config(value, at, now);
                }
            }
            About::Node(node) => self.node_is(node, value.map(|(value, _)| value), now),
            About::Decision => {
                if let Some((value, at)) = value {
                    self.decision(value, at);
                }
            }
            About::Primary(service) => {
                if let (Some((value, at)), Some(service)) = (value, self.services.get_mut(&service)) {
                    service.committed(&self.shell, value, at, now);
                }
            }
            About::Placement(_) | About::Instance(..) | About::Switch(_) | About::Restart(_) | About::Breaker(_) => {
                if let Some(world) = &mut self.world {
                    match value {
                        Some((value, at)) => world.kept.insert(name.to_owned(), (value.to_vec(), at)),
                        None => world.kept.remove(name),
                    };
                }
                self.tell_service(name, value, now);
            }
            About::Shift(service) => {
                if let Some(world) = &mut self.world {
                    match value {
                        Some((value, at)) => world.kept.insert(name.to_owned(), (value.to_vec(), at)),
                        None => world.kept.remove(name),
                    };
                }
                self.shift_read(&service, value);
            }
            About::Measure(service, node) => self.measure_read(&service, node, value.map(|(value, _)| value)),
            About::Other => {}
        }
    }

    fn tell_service(&mut self, name: &str, value: Option<(&[u8], Revision)>, now: Instant) {
        let unreadable = |error: serde_json::Error| tracing::error!(key = name, %error, "what another node has written cannot be read; is it of a newer version?");
        match About::of(name) {
            About::Placement(service) => {
                let Some((service, (value, at))) = self.services.get_mut(&service).zip(value) else { return };
                match serde_json::from_slice::<PlacementRecord>(value) {
                    Ok(record) => service.place(&self.shell, record.instances, at, now),
                    Err(error) => unreadable(error),
                }
            }
            About::Instance(service, id, node) => {
                let Some(service) = self.services.get_mut(&service) else { return };
                match value.map(|(value, at)| (serde_json::from_slice(value), at)) {
                    Some((Ok(record), at)) => service.told(id, node, Some((record, at)), now),
                    Some((Err(error), _)) => unreadable(error),
                    None => service.told(id, node, None, now),
                }
            }
            About::Switch(service) => {
                let Some(service) = self.services.get_mut(&service) else { return };
                match value.map(|(value, at)| (serde_json::from_slice(value), at)) {
                    Some((Ok(record), at)) => service.switch_is(&self.shell, Some((record, at)), now),
                    Some((Err(error), _)) => unreadable(error),
                    None => service.switch_is(&self.shell, None, now),
                }
            }
            About::Breaker(service) => self.breaker_read(&service, value.map(|(value, _)| value)),
            About::Restart(service) => {
                if let (Some(service), Some((_, at))) = (self.services.get_mut(&service), value) {
                    service.restart_is(&self.shell, at);
                }
            }
            _ => {}
        }
    }

    /// Gives a service that is new here what has been read of it before.
    pub fn tell_kept(&mut self, service: &ServiceName, now: Instant) {
        let Some(world) = &self.world else { return };
        let about = |name: &str| match About::of(name) {
            About::Placement(known) | About::Switch(known) | About::Restart(known) | About::Instance(known, ..) => {
                known == *service
            }
            _ => false,
        };
        let kept: Vec<_> = world
            .kept
            .iter()
            .filter(|(name, _)| about(name))
            .map(|(name, kept)| (name.clone(), kept.clone()))
            .collect();
        for (name, (value, at)) in kept {
            self.tell_service(&name, Some((&value, at)), now);
        }
    }

    fn node_is(&mut self, node: NodeName, value: Option<&[u8]>, now: Instant) {
        let Some(world) = &mut self.world else { return };
        let record = value.map(|value| serde_json::from_slice::<NodeRecord>(value).unwrap_or_default());
        let own = node == self.config.node.name;
        match record {
            Some(record) => {
                world.agents.heard(&node, &record);
                let was_away = world.away.remove(&node).is_some();
                let new = world.nodes.insert(node.clone(), record).is_none();
                if new && was_away && !own {
                    let cause = self.shell.new_cause();
                    let message = format!("node {node} is there again");
                    self.shell.emit(EventKind::NodeBack, Subject::default(), &cause, message);
                }
            }
            None => {
                let Some(last) = world.nodes.remove(&node) else { return };
                world.away.insert(node.clone(), now);
                world.agents.lost(&node, now);
                if !own {
                    let cause = self.shell.new_cause();
                    let after =
                        self.config.cluster.as_ref().map(|cluster| cluster.reschedule_after).unwrap_or_default();
                    let what =
                        if last.stopping { "has stopped" } else { "is not heard of any more: its lease has ended" };
                    let message = format!(
                        "node {node} {what}; its primaries are replaced, and in {} s its instances are run elsewhere",
                        after.as_secs()
                    );
                    self.shell.emit(EventKind::NodeLost, Subject::default(), &cause, message);
                }
            }
        }
    }

    fn follow_config(&mut self, value: &[u8], at: Revision, now: Instant) {
        let Some(world) = &mut self.world else { return };
        if at <= world.config_at {
            return;
        }
        world.config_at = at;
        world.before = Some(super::recorded(&self.config));
        let read = serde_json::from_slice::<ConfigRecord>(value).map_err(|error| error.to_string());
        match read.and_then(|record| super::merged(&self.config, &record)) {
            Ok(config) => self.put_in_force_here(config, now),
            Err(error) => {
                let cause = self.shell.new_cause();
                let message = format!(
                    "the cluster's configuration cannot be read here ({error}); this node goes on with the one before"
                );
                self.shell.emit(EventKind::ConfigRejected, Subject::default(), &cause, message);
            }
        }
    }

    /// The last word: everything of this node has ended, and others need not wait for its lease to run out.
    pub async fn leave(&self) {
        let Some(lease) = self.shell.lease.filter(|_| self.world.is_some()) else { return };
        let left = tokio::time::timeout(LEAVING, self.shell.store.lease_revoke(lease)).await;
        if !matches!(left, Ok(Ok(_))) {
            tracing::debug!("the lease could not be given back; it runs out by itself");
        }
    }

    /// Says what is new and, on the leader, places what has no place.
    pub fn step_world(&mut self, now: Instant) {
        if !self.pace.may_say(now) {
            return;
        }
        let Some(mut world) = self.world.take() else { return };
        let began = Instant::now();
        if let Some(lease) = self.shell.lease {
            let wanted = self.said();
            world.publisher.step(&self.shell, lease, &wanted, now);
        }
        self.answer_awaited(&mut world);
        if self.shell.leads && !self.shell.stopping {
            self.place_all(&mut world, now);
        }
        self.world = Some(world);
        self.pace.said(now, began.elapsed());
    }

    /// What this node says of itself.
    fn said(&self) -> Said {
        let is_agent = self.config.node.role == NodeRole::Agent;
        let record = NodeRecord {
            api: self.facts.api.clone(),
            gateway: self.facts.gateway.clone(),
            region: self.config.node.region.clone(),
            role: if is_agent { AGENT } else { "server" }.to_owned(),
            address: if is_agent { self.shell.host.to_string() } else { String::new() },
            stopping: self.shell.stopping,
            drained: self
                .services
                .values()
                .filter_map(|service| Some((service.name.clone(), service.drained_for(&self.shell)?)))
                .collect(),
            left: self.services.values().flat_map(Service::left_alone).collect(),
            open: self.open_breakers(),
        };
        let value = serde_json::to_vec(&record).expect("a record always becomes JSON");
        let mut said = Said::from([(format!("{NODE}{}", self.config.node.name), value)]);
        for (key, record) in self.services.values().flat_map(Service::own_records) {
            let value = serde_json::to_vec(&record).expect("a record always becomes JSON");
            said.insert(key.as_str().unwrap_or_default().to_owned(), value);
        }
        said.extend(self.said_of_shifts());
        said
    }

    /// Whether a member is about to take instances. A cluster that has just come up would be filled on the nodes that
    /// were quickest, and instances stay where they are.
    fn somebody_comes(&self, world: &mut World, now: Instant) -> bool {
        let members = self.members.iter().flat_map(|members| &members.members);
        // One that has not answered yet may still do so.
        let awaited = members.filter(|member| !member.witness && member.silent.is_none_or(|silent| silent < COMING));
        let coming: Vec<NodeName> = awaited
            .map(|member| NodeName::from(&*member.name))
            // The leader itself may be the one that has not said so yet.
            .filter(|name| !world.nodes.contains_key(name) && !world.away.contains_key(name))
            .collect();
        world.coming.retain(|name, _| coming.contains(name));
        for name in coming {
            world.coming.entry(name).or_insert(now);
        }
        world.coming.values().any(|since| now.saturating_duration_since(*since) < COMING)
    }

    fn place_all(&mut self, world: &mut World, now: Instant) {
        let Some(cluster) = &self.config.cluster else { return };
        let somebody_comes = self.somebody_comes(world, now);
        let placements: BTreeMap<&ServiceName, _> = self
            .services
            .iter()
            .filter_map(|(name, service)| Some((name, service.spread.as_ref()?.placed())))
            .collect();
        let everybody = placements.values().flat_map(|(placed, _)| placed.values());
        for node in everybody.clone() {
            if !world.nodes.contains_key(node) {
                // Since this node has been looking.
                world.away.entry(node.clone()).or_insert(now);
            }
        }
        let presence = |record: &NodeRecord| {
            if record.stopping { Presence::Away(Duration::ZERO) } else { Presence::There }
        };
        let there = world.nodes.iter().map(|(node, record)| (node.clone(), presence(record)));
        let away = world
            .away
            .iter()
            .map(|(node, since)| (node.clone(), Presence::Away(now.saturating_duration_since(*since))));
        let nodes: BTreeMap<NodeName, Presence> = away.chain(there).collect();
        let mut load: BTreeMap<NodeName, usize> = BTreeMap::new();
        for node in everybody {
            *load.entry(node.clone()).or_default() += 1;
        }
        self.forget_places(world, now);
        for (name, (placed, at)) in placements {
            if world.placing.get(name).is_some_and(|until| until.is_none_or(|until| until > now)) {
                continue;
            }
            let Some(definition) = self.config.services.get(name) else { continue };
            let wanted = plan::instances(name, definition);
            let mut others = load.clone();
            placed.values().for_each(|node| *others.entry(node.clone()).or_default() -= 1);
            let ids = wanted.iter().map(|plan| &plan.id);
            let next = placement::decide(ids, &placed, &nodes, &others, cluster.reschedule_after);
            let new = next.keys().any(|id| !placed.contains_key(id));
            if next == placed || (new && somebody_comes) {
                continue;
            }
            for (id, node) in next.iter().filter(|(id, node)| placed.get(*id).is_some_and(|before| before != *node)) {
                let message = format!("{id} is run on {node} from now on: its node has been away for too long");
                let cause = self.shell.new_cause();
                self.shell.emit(EventKind::InstanceMoved, Subject::instance(name, id), &cause, message);
            }
            for node in next.values() {
                *load.entry(node.clone()).or_default() += 1;
            }
            placed.values().for_each(|node| *load.entry(node.clone()).or_default() -= 1);
            let at_key = key(&format!("{PLACEMENT}{name}"));
            let value = serde_json::to_vec(&PlacementRecord { instances: next }).expect("names always become JSON");
            let txn = Txn::put(at_key.clone(), value).when(Compare::mod_revision(at_key, at));
            let (store, service) = (Arc::clone(&self.shell.store), name.clone());
            world.placing.insert(name.clone(), None);
            self.shell.spawn(async move { Input::Placed { service, outcome: store.txn(txn).await } });
        }
    }

    /// Where instances of a service were that is not there any more says nothing of one with its name that comes later.
    fn forget_places(&self, world: &mut World, now: Instant) {
        let places = world.kept.iter().filter_map(|(name, (_, at))| match About::of(name) {
            About::Placement(service) if !self.config.services.contains_key(&service) => Some((service, *at)),
            _ => None,
        });
        for (service, at) in places.collect::<Vec<_>>() {
            if world.placing.get(&service).is_some_and(|until| until.is_none_or(|until| until > now)) {
                continue;
            }
            let place = key(&format!("{PLACEMENT}{service}"));
            let txn = Txn::delete(KeyRange::key(&place)).when(Compare::mod_revision(place, at));
            let store = Arc::clone(&self.shell.store);
            world.placing.insert(service.clone(), None);
            self.shell.spawn(async move { Input::Placed { service, outcome: store.txn(txn).await } });
        }
    }

    /// What was said has its answer.
    pub fn answered(&mut self, saying: Saying, outcome: &Outcome, now: Instant) {
        let Some(world) = &mut self.world else { return };
        world.publisher.said(saying, outcome, now);
    }

    /// A placement has its answer; it comes by the watch itself.
    pub fn placed(&mut self, service: &ServiceName, outcome: &Outcome, now: Instant) {
        let Some(world) = &mut self.world else { return };
        match outcome {
            // Until it has come by the watch, the old one would be proposed again.
            Ok(TxnOutcome::Committed { .. }) => world.placing.insert(service.clone(), Some(now + PLACE_AGAIN / 10)),
            _ => world.placing.insert(service.clone(), Some(now + PLACE_AGAIN)),
        };
    }
}
