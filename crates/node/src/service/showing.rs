//! A service as `seawall status` shows it.

use api::view::{InstanceView, ServiceView, StreamView, TrafficView};

use super::Service;
use crate::instance::Instance;
use crate::shell::Shell;

impl Service {
    /// The view of this moment.
    pub fn view(&self, shell: &Shell) -> ServiceView {
        let routed = self.promotion.as_ref().and_then(|promotion| promotion.routed_primary());
        let primary = routed.as_ref().map(|(holder, _)| holder.instance.clone());
        let ready = u32::try_from(self.ready()).unwrap_or(u32::MAX);
        let desired = self.definition.total_replicas();
        let hands_over = self.hands_over();
        let state = if hands_over.is_some() {
            "switching"
        } else if self.roll.is_some() {
            "rolling"
        } else if ready == 0 && desired > 0 {
            "down"
        } else if self.promotion.is_some() && primary.is_none() {
            "switching"
        } else if ready < desired {
            "degraded"
        } else {
            "ready"
        };
        let traffic = self.traffic_view(shell);
        ServiceView {
            name: self.name.clone(),
            mode: self.definition.mode.as_str().to_owned(),
            state: state.to_owned(),
            epoch: self.promotion.as_ref().and_then(|promotion| promotion.epoch()),
            stream: self
                .promotion
                .as_ref()
                .and_then(|promotion| promotion.sealed())
                .map(|sealed| StreamView { name: sealed.stream.clone(), end: sealed.end }),
            ready,
            desired,
            held: u32::try_from(shell.table.service(&self.name).held()).unwrap_or(u32::MAX),
            note: self.note(ready).or_else(|| Self::traffic_note(traffic.as_ref(), &self.name)),
            instances: self.instance_views(shell, primary.as_ref(), traffic.as_ref()),
            traffic,
            shift: None,
            primary,
        }
    }

    /// The worst that is so, in one line.
    fn note(&self, ready: u32) -> Option<String> {
        if let Err(error) = &self.upstream {
            return Some(format!("instances are not spoken to: {error}"));
        }
        let looping = self.instances.values().find(|instance| instance.streak.is_loop() && !instance.is_ready());
        if let Some((from, to)) = self.hands_over() {
            return Some(format!("{from} hands over to {to}; requests wait"));
        }
        if self.blind && self.promotion.is_some() {
            return Some("this node has lost its lease: requests to the primary wait until a quorum hears it".into());
        }
        if let Some(waits) = self.promotion.as_ref().and_then(|promotion| promotion.waits_for_stream()) {
            return Some(waits);
        }
        let stuck = self.instances.values().find(|instance| instance.stage == crate::instance::Stage::Stuck);
        if let Some(instance) = stuck.or(looping) {
            return Some(format!("{}: {}", instance.id(), instance.note.clone().unwrap_or_default()));
        }
        if self.promotion.as_ref().is_some_and(|promotion| promotion.routed_primary().is_none()) && ready == 0 {
            return Some("no standby is ready to be promoted".into());
        }
        None
    }

    fn instance_views(
        &self,
        shell: &Shell,
        primary: Option<&model::InstanceId>,
        traffic: Option<&TrafficView>,
    ) -> Vec<InstanceView> {
        let own =
            |instance| InstanceView { node: Some(shell.node.name.clone()), ..self.instance_view(instance, primary) };
        let mut views: Vec<InstanceView> = self.instances.values().map(own).collect();
        views.extend(self.views_elsewhere(primary));
        views.sort_by(|one, other| one.id.cmp(&other.id));
        for ejection in traffic.iter().flat_map(|traffic| &traffic.ejected) {
            let is_it = |view: &&mut InstanceView| view.id == ejection.instance && view.note.is_none();
            if let Some(view) = views.iter_mut().find(is_it) {
                view.note = Some(format!("gets no requests until {}: {}", ejection.until, ejection.why));
            }
        }
        views
    }

    fn instance_view(&self, instance: &Instance, primary: Option<&model::InstanceId>) -> InstanceView {
        let role = self.promotion.as_ref().map(|_| if primary == Some(instance.id()) { "primary" } else { "standby" });
        InstanceView {
            id: instance.id().clone(),
            node: None,
            pid: instance.process.as_ref().and_then(|process| process.pid),
            address: instance
                .address
                .map(|address| address.to_string())
                .or(instance.elsewhere.clone())
                .unwrap_or_default(),
            version: instance.plan.version.clone(),
            role: role.map(str::to_owned),
            state: instance.state_word().to_owned(),
            restarts: instance.restarts,
            since: instance.since.clone(),
            note: instance.note.clone(),
        }
    }
}
