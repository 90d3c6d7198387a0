//! A planned switch of primary in a cluster, and a planned restart: agreed on in the store, carried out by the node that
//! runs the process concerned. Every gateway holds new requests from when it reads the agreement and says when its last
//! one is answered; then the old primary's node demotes it (`switching.rs`), and the leader commits the rest.

use api::{Refusal, RefusalKind, Switched};
use data::{Compare, KeyRange, Op, Revision, Txn, TxnOutcome};
use health::decide::{Holder, Switch};
use model::{InstanceId, ServiceName};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use tokio::sync::oneshot;

use super::promotion::record_key;
use super::{RollKind, Service};
use crate::Input;
use crate::cluster::records::{RESTART, SWITCH, key};
use crate::shell::{Outcome, Shell};

/// Who is told how a switch went.
type Reply = oneshot::Sender<Result<Switched, Refusal>>;

/// A switch that was agreed on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SwitchRecord {
    /// To whom.
    pub target: InstanceId,
    /// From whom.
    pub from: Holder,
    /// The chain of events it belongs to.
    pub cause: String,
}

/// What is agreed on for a service, and who waits for it here.
#[derive(Debug, Default)]
pub struct Agreed {
    /// The switch under way, and where it was agreed on.
    pub switch: Option<(SwitchRecord, Revision)>,
    /// The newest switch of all, under way or not.
    newest: Revision,
    /// The newest restart; processes of older ones are to be replaced.
    pub generation: u64,
    /// Every other gateway has answered its last request to the old primary.
    pub drained_elsewhere: bool,
    waiting: Vec<(Reply, InstanceId, Revision)>,
}

impl Service {
    /// Puts a switch to the store, or says why not.
    pub(super) fn agree_on_switch(
        &mut self,
        shell: &Shell,
        target: InstanceId,
        from: Holder,
        reply: Option<(Reply, bool)>,
    ) {
        let Some((_, at)) = self.promotion.as_ref().and_then(super::Promotion::recorded) else { return };
        let record = SwitchRecord { target: target.clone(), from, cause: shell.new_cause() };
        let agreed = key(&format!("{SWITCH}{}", self.name));
        let value = serde_json::to_vec(&record).expect("a record always becomes JSON");
        let txn = Txn::put(agreed.clone(), value)
            .when(Compare::absent(agreed))
            .when(Compare::mod_revision(record_key(&self.name), at));
        let (store, service) = (std::sync::Arc::clone(&shell.store), self.name.clone());
        shell.spawn(async move {
            let outcome = store.txn(txn).await;
            Input::SwitchAgreed { service, target, reply, outcome }
        });
    }

    /// The store's answer to a switch that was put to it here.
    pub fn switch_agreed(&mut self, target: InstanceId, reply: Option<(Reply, bool)>, outcome: &Outcome) {
        self.handing_over = false;
        let (Some((reply, wait)), Some(spread)) = (reply, &mut self.spread) else { return };
        let refusal = |kind, message: String| Err(Refusal { kind, message });
        let answer = match outcome {
            Ok(TxnOutcome::Committed { revision, .. }) if wait => {
                return spread.agreed.waiting.push((reply, target, *revision));
            }
            Ok(TxnOutcome::Committed { .. }) => {
                Ok(Switched { service: self.name.clone(), primary: target, epoch: None, done: false })
            }
            Ok(TxnOutcome::Rejected { .. }) => refusal(
                RefusalKind::Refused,
                format!(
                    "{} is being switched already, or its primary has just changed; look at `seawall status`",
                    self.name
                ),
            ),
            Ok(TxnOutcome::Unknown) => refusal(
                RefusalKind::Failed,
                format!("nobody knows yet whether {} is switched; look at `seawall status`", self.name),
            ),
            Err(error) => refusal(RefusalKind::Failed, format!("{error}; nothing was changed")),
        };
        // Ignored: who asked has gone.
        let _ = reply.send(answer);
    }

    /// A switch is agreed on, or over.
    pub fn switch_is(&mut self, shell: &Shell, switch: Option<(SwitchRecord, Revision)>, now: Instant) {
        let Some(spread) = &mut self.spread else { return };
        if let Some((_, at)) = &switch {
            spread.agreed.newest = spread.agreed.newest.max(*at);
        }
        spread.agreed.drained_elsewhere = false;
        spread.agreed.switch = switch;
        let begun = spread.agreed.switch.as_ref().map(|(record, _)| record.clone());
        let under_way = self.promotion.as_ref().is_some_and(|promotion| promotion.switching.is_some());
        if let Some(record) = begun.filter(|record| !under_way && self.runs_here(&record.from)) {
            self.switch_to(shell, record.target, record.from, None, now);
        }
        self.tell_gateway(shell);
    }

    /// The switch under way, as decisions see it.
    pub(super) fn agreed_switch(&self) -> Option<Switch> {
        let spread = self.spread.as_ref()?;
        let (record, _) = spread.agreed.switch.as_ref()?;
        let promotion = self.promotion.as_ref()?;
        if promotion.holder() != Some(&record.from) {
            return None;
        }
        let demoted = spread.process(&record.from).is_some_and(|process| process.demoted == promotion.epoch());
        Some(Switch { target: record.target.clone(), demoted })
    }

    /// With the decision that ends a switch, what was agreed on goes.
    pub(super) fn end_of_switch(&self) -> Option<Op> {
        self.spread.as_ref()?.agreed.switch.as_ref()?;
        Some(Op::Delete { range: KeyRange::key(&key(&format!("{SWITCH}{}", self.name))) })
    }

    /// Takes a switch back that cannot be carried out.
    pub(super) fn disagree(&self, shell: &Shell) {
        let Some((_, at)) = self.spread.as_ref().and_then(|spread| spread.agreed.switch.as_ref()) else { return };
        let agreed = key(&format!("{SWITCH}{}", self.name));
        let txn = Txn::delete(KeyRange::key(&agreed)).when(Compare::mod_revision(agreed, *at));
        shell.commit(self.name.clone(), txn);
    }

    /// Whether this gateway has answered its last request to the primary that hands over; and for which switch.
    pub fn drained_for(&self, shell: &Shell) -> Option<Revision> {
        let (record, at) = self.spread.as_ref()?.agreed.switch.as_ref()?;
        (shell.table.service(&self.name).in_flight(&record.from.instance) == 0).then_some(*at)
    }

    /// What other gateways say of the switch under way.
    pub fn hear_drained(&mut self, all: impl Fn(&ServiceName, Revision) -> bool) {
        let Some(agreed) = self.spread.as_mut().map(|spread| &mut spread.agreed) else { return };
        if let Some((_, at)) = &agreed.switch {
            agreed.drained_elsewhere = all(&self.name, *at);
        }
    }

    /// Answers who waits for a switch that is over.
    pub(super) fn answer_switches(&mut self, shell: &Shell) {
        let routed = self.promotion.as_ref().and_then(super::Promotion::routed_primary);
        let routed = routed.map(|(holder, epoch)| (holder.instance.clone(), epoch));
        let Some(agreed) = self.spread.as_mut().map(|spread| &mut spread.agreed) else { return };
        let (Some((primary, epoch)), None) = (routed, &agreed.switch) else { return };
        let newest = agreed.newest;
        let over = agreed.waiting.extract_if(.., |(_, _, at)| *at <= newest).collect::<Vec<_>>();
        for (reply, target, _) in over {
            let service = self.name.clone();
            let answer = if primary == target {
                Ok(Switched { service, primary: primary.clone(), epoch: Some(epoch), done: true })
            } else {
                let message = format!(
                    "{target} could not take over; {primary} is primary of {service} in epoch {epoch}: `seawall events` tells why"
                );
                Err(Refusal { kind: RefusalKind::Failed, message })
            };
            shell.answer(reply, answer);
        }
    }

    /// Puts a restart to the store.
    pub(super) fn agree_on_restart(&self, shell: &Shell, reply: oneshot::Sender<Result<String, Refusal>>) {
        let agreed = key(&format!("{RESTART}{}", self.name));
        let (store, name) = (std::sync::Arc::clone(&shell.store), self.name.clone());
        let txn = Txn::put(agreed, shell.new_cause().into_bytes());
        tokio::spawn(async move {
            let answer = match store.txn(txn).await {
                Ok(TxnOutcome::Committed { .. }) => Ok(format!(
                    "{name}: agreed on; its instances are replaced one at a time, each by its node (`seawall events --follow`)"
                )),
                Ok(_) => Err(format!("{name}: nobody knows yet whether it is restarted; look at `seawall status`")),
                Err(error) => Err(format!("{name}: {error}; nothing was changed")),
            };
            // Ignored: who asked has gone.
            let _ = reply.send(answer.map_err(|message| Refusal { kind: RefusalKind::Failed, message }));
        });
    }

    /// Processes older than this restart are to be replaced.
    pub fn restart_is(&mut self, shell: &Shell, at: Revision) {
        let Some(spread) = &mut self.spread else { return };
        if at.0 <= spread.agreed.generation {
            return;
        }
        spread.agreed.generation = at.0;
        let older = |instance: &&crate::instance::Instance| {
            instance.process.as_ref().is_some_and(|process| process.generation < at.0)
        };
        let pending: std::collections::BTreeSet<InstanceId> =
            self.instances.values().filter(older).map(|instance| instance.id().clone()).collect();
        if !pending.is_empty() && self.roll.is_none() {
            self.begin_roll(shell, RollKind::Restart(None), pending, std::collections::BTreeSet::new(), Instant::now());
        }
    }
}
