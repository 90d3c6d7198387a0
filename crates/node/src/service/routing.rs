//! What the gateway is told of a service. Last link of the failure walk: the swap that moves traffic.

use std::collections::BTreeMap;

use gateway::{Balance, Endpoint, Endpoints, HoldPolicy, Readiness, Selection};
use model::config::{BalanceBy, Mode};
use observe::metrics::InstanceLabels;

use super::Service;
use crate::instance::{Instance, Stage};
use crate::shell::Shell;

/// Every instance has the same share unless the service says otherwise.
pub(super) const WEIGHT: u32 = 100;

impl Service {
    /// Tells the gateway, if anything it must know has changed.
    pub fn tell_gateway(&mut self, shell: &Shell) {
        let endpoints = self.endpoints();
        let lost = self.spread.as_mut().map(super::Spread::take_lost).unwrap_or_default();
        if self.told.as_ref() == Some(&endpoints) && lost.is_empty() {
            return;
        }
        self.set_gauges(shell);
        let service = shell.table.service(&self.name);
        match service.set_endpoints(endpoints.clone()) {
            Ok(()) => {
                self.told = Some(endpoints);
                // Now that nobody is sent there any more.
                service.end_requests(&lost);
            }
            Err(error) => tracing::error!(service = %self.name, %error, "the gateway refused new endpoints"),
        }
    }

    fn endpoints(&self) -> Endpoints {
        let options = &self.definition.endpoint_options;
        let usual = if options.is_empty() { WEIGHT } else { 1 };
        let has_backup = options.values().any(|option| option.backup);
        let endpoint = |instance: &Instance| {
            let readiness = match instance.stage {
                Stage::Running if instance.is_ready() => Readiness::Ready,
                Stage::Draining(..) => Readiness::Draining,
                _ => Readiness::NotReady,
            };
            let named =
                usize::try_from(instance.plan.index).ok().and_then(|index| self.definition.endpoints.get(index));
            let option = named.and_then(|name| options.get(name));
            Some(Endpoint {
                id: instance.id().clone(),
                address: instance.address?,
                version: instance.plan.version.clone(),
                readiness,
                weight: option.map_or(usual, |option| if option.down { 0 } else { option.weight }),
                // Where some come last, the others are the near ones, wherever all of them are.
                local: if has_backup {
                    !option.is_some_and(|option| option.backup)
                } else {
                    instance.elsewhere.is_none()
                },
            })
        };
        let selection = match self.definition.mode {
            Mode::ActiveActive => Selection::Any,
            Mode::PrimaryStandby => Selection::Primary(self.primary_to_route()),
        };
        let hold = &self.definition.hold;
        let reachable = self.upstream.is_ok();
        Endpoints {
            holding: matches!(selection, Selection::Primary(None)),
            selection,
            endpoints: self
                .instances
                .values()
                .filter_map(endpoint)
                .chain(self.endpoints_elsewhere())
                // One alone gets the traffic: there is no nearer one.
                .map(|endpoint| Endpoint { local: endpoint.local || self.promotion.is_some(), ..endpoint })
                .filter(|_| reachable)
                .collect(),
            hold: (!hold.max_wait.is_zero())
                .then_some(HoldPolicy { max_wait: hold.max_wait, max_requests: hold.max_requests as usize }),
            replay_limit: self.definition.replay_limit_bytes as usize,
            balance: match self.definition.balance {
                BalanceBy::LeastRequests => Balance::LeastRequests,
                BalanceBy::PeakEwma => Balance::PeakEwma,
                BalanceBy::RoundRobin => Balance::RoundRobin,
            },
            upstream: self.upstream.clone().unwrap_or_default(),
            max_requests: self.bounded(),
        }
    }

    /// Instances that may have so many requests at once.
    fn bounded(&self) -> BTreeMap<model::InstanceId, u32> {
        let options = &self.definition.endpoint_options;
        let bound = |instance: &Instance| {
            let named = self.definition.endpoints.get(usize::try_from(instance.plan.index).ok()?)?;
            Some((instance.id().clone(), options.get(named)?.max_requests?))
        };
        self.instances.values().filter_map(bound).collect()
    }

    /// The primary with its epoch; nobody while it is dead, dying or handing over: local evidence is enough to stop using it.
    fn primary_to_route(&self) -> Option<(model::InstanceId, model::Epoch)> {
        let (holder, epoch) = self.promotion.as_ref()?.routed_primary()?;
        // It hands over: from the moment that was agreed on it gets nothing new, from any gateway.
        let hands_over =
            |spread: &super::Spread| spread.agreed.switch.as_ref().is_some_and(|(switch, _)| switch.from == *holder);
        if self.blind || self.spread.as_ref().is_some_and(hands_over) {
            return None;
        }
        if let Some(spread) = self.spread.as_ref().filter(|spread| holder.node.as_ref() != Some(spread.own())) {
            let process = spread.process(holder)?;
            return (process.alive && !process.leaving).then(|| (holder.instance.clone(), epoch));
        }
        let instance = self.instances.get(&holder.instance)?;
        let same = instance.process.as_ref().is_some_and(|process| process.incarnation == holder.incarnation);
        (same && instance.stage == Stage::Running).then(|| (holder.instance.clone(), epoch))
    }

    fn set_gauges(&self, shell: &Shell) {
        let primary = self.primary_to_route().map(|(primary, _)| primary);
        for instance in self.instances.values() {
            let labels = InstanceLabels { service: self.name.to_string(), instance: instance.id().to_string() };
            shell.metrics.ready.get_or_create(&labels).set(i64::from(instance.is_ready()));
            if self.promotion.is_some() {
                shell.metrics.primary.get_or_create(&labels).set(i64::from(primary.as_ref() == Some(instance.id())));
            }
        }
    }
}
