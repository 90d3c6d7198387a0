//! Instances that stop in good order while gateways of other nodes have requests under way to them: each node says when its
//! gateway has answered its last one, and only then is the process stopped, within `drainTimeout`.
//! Beside `lifecycle`, whose drain looks at this node's gateway alone. Deliberately absent: switches, which have an
//! agreement of their own (`handing.rs`).

use std::time::Instant;

use model::{Incarnation, InstanceId};

use super::Service;
use super::spread::Spread;
use crate::cluster::records::InstanceRecord;
use crate::instance::{DRAIN_LOOK, DRAIN_SETTLE, Stage};
use crate::shell::Shell;

/// A process of another node that is about to stop.
#[derive(Debug)]
pub(super) struct Leaving {
    incarnation: Incarnation,
    since: Instant,
    /// This gateway has nothing under way to it, and begins nothing any more.
    quiet: bool,
}

impl Spread {
    /// Another node says this of an instance; `None`: nothing any more.
    pub(super) fn note_leaving(&mut self, id: &InstanceId, record: Option<&InstanceRecord>, now: Instant) {
        let leaving = record.filter(|record| record.leaving && record.alive).and_then(|record| record.incarnation);
        let Some(incarnation) = leaving else {
            self.leaving.remove(id);
            return;
        };
        let known = self.leaving.entry(id.clone()).or_insert(Leaving { incarnation, since: now, quiet: false });
        if known.incarnation != incarnation {
            *known = Leaving { incarnation, since: now, quiet: false };
        }
    }

    /// When to look again whether this gateway has answered its last request to somebody who leaves.
    pub(super) fn next_hush(&self, now: Instant) -> Option<Instant> {
        self.leaving.values().any(|leaving| !leaving.quiet).then(|| now + DRAIN_LOOK)
    }
}

impl Service {
    /// Looks whether this gateway has answered its last request to somebody who leaves.
    pub(super) fn hush(&mut self, shell: &Shell, now: Instant) {
        let Some(spread) = self.spread.as_mut().filter(|spread| !spread.leaving.is_empty()) else { return };
        let service = shell.table.service(&self.name);
        for (id, leaving) in spread.leaving.iter_mut().filter(|(_, leaving)| !leaving.quiet) {
            leaving.quiet = now >= leaving.since + DRAIN_SETTLE && service.in_flight(id) == 0;
        }
    }

    /// Processes of other nodes that leave, and that this gateway leaves alone.
    pub fn left_alone(&self) -> impl Iterator<Item = (InstanceId, Incarnation)> {
        let leaving = self.spread.iter().flat_map(|spread| &spread.leaving).filter(|(_, leaving)| leaving.quiet);
        leaving.map(|(id, leaving)| (id.clone(), leaving.incarnation))
    }

    /// What other gateways say of instances that are about to stop here: `all` of them leave this process alone.
    pub fn hear_left_alone(&mut self, all: impl Fn(&InstanceId, Incarnation) -> bool) {
        let Some(spread) = &mut self.spread else { return };
        let draining = self.instances.values().filter(|instance| matches!(instance.stage, Stage::Draining(..)));
        let left = draining.filter(|instance| {
            instance.process.as_ref().is_some_and(|process| all(instance.id(), process.incarnation))
        });
        spread.left = left.map(|instance| instance.id().clone()).collect();
    }

    /// Whether no gateway of another node has anything under way to an instance that drains. Who cannot hear of that does
    /// not wait for it.
    pub(super) fn is_left_alone(&self, id: &InstanceId) -> bool {
        self.blind || self.spread.as_ref().is_none_or(|spread| spread.left.contains(id))
    }
}
