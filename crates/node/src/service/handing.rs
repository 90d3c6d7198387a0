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

use super::promotion::{Promotion, record_key};
use super::{RollKind, Service};
use crate::Input;
use crate::cluster::awaited::Awaited;
use crate::cluster::records::{RESTART, SWITCH, key};
use crate::shell::{Outcome, Shell};

/// Who is told how a switch went.
type Reply = oneshot::Sender<Result<Switched, Refusal>>;

/// Between two attempts to have a switch forgotten.
const FORGET_AGAIN: std::time::Duration = std::time::Duration::from_millis(500);

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
    /// It cannot be carried out and is to be forgotten; since when that was asked for.
    cancelled: Option<Instant>,
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
        (spread.agreed.drained_elsewhere, spread.agreed.cancelled) = (false, None);
        spread.agreed.switch = switch;
        let begun = spread.agreed.switch.as_ref().map(|(record, _)| record.clone());
        let under_way = self.promotion.as_ref().is_some_and(|promotion| promotion.switching.is_some());
        if let Some(record) = begun.filter(|record| !under_way && self.runs_here(&record.from)) {
            self.switch_to(shell, record.target, record.from, None, now);
        }
        self.tell_gateway(shell);
    }

    /// A switch that was agreed on and that nobody carries out, because the node process that did has died, begins again.
    pub(super) fn take_up_switch(&mut self, shell: &Shell, now: Instant) {
        if let Some(asked) = self.spread.as_ref().and_then(|spread| spread.agreed.cancelled) {
            if now.saturating_duration_since(asked) > FORGET_AGAIN {
                self.disagree(shell, now);
            }
            return;
        }
        let idle = self.promotion.as_ref().is_some_and(|promotion| promotion.switching.is_none());
        let agreed = self.spread.as_ref().and_then(|spread| spread.agreed.switch.as_ref());
        let Some(record) = agreed.map(|(record, _)| record.clone()).filter(|_| idle) else { return };
        let holds = self.promotion.as_ref().and_then(super::Promotion::holder) == Some(&record.from);
        if holds && self.runs_here(&record.from) && self.is_holder(&record.from.instance) {
            self.switch_to(shell, record.target, record.from, None, now);
        }
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

    /// Who hands over to whom, by a switch that was agreed on.
    pub(super) fn hands_over(&self) -> Option<(&InstanceId, &InstanceId)> {
        let (record, _) = self.spread.as_ref()?.agreed.switch.as_ref()?;
        Some((&record.from.instance, &record.target))
    }

    /// With the decision that ends a switch, what was agreed on goes.
    pub(super) fn end_of_switch(&self) -> Option<Op> {
        self.spread.as_ref()?.agreed.switch.as_ref()?;
        Some(Op::Delete { range: KeyRange::key(&key(&format!("{SWITCH}{}", self.name))) })
    }

    /// Takes a switch back that cannot be carried out.
    pub(super) fn disagree(&mut self, shell: &Shell, now: Instant) {
        let Some(spread) = &mut self.spread else { return };
        let Some((_, at)) = &spread.agreed.switch else { return };
        spread.agreed.cancelled = Some(now);
        let agreed = key(&format!("{SWITCH}{}", self.name));
        let txn = Txn::delete(KeyRange::key(&agreed)).when(Compare::mod_revision(agreed, *at));
        let over = self.promotion.as_ref().and_then(Promotion::recorded_at);
        shell.commit(self.name.clone(), over, txn);
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
        let inputs = shell.inputs.clone();
        tokio::spawn(async move {
            let message = match store.txn(txn).await {
                Ok(TxnOutcome::Committed { revision, .. }) => {
                    // Ignored: the controller has ended.
                    let _ = inputs.send(Input::Await(Awaited::Restart(revision, name, reply))).await;
                    return;
                }
                Ok(_) => format!("{name}: nobody knows yet whether it is restarted; look at `seawall status`"),
                Err(error) => format!("{name}: {error}; nothing was changed"),
            };
            // Ignored: who asked has gone.
            let _ = reply.send(Err(Refusal { kind: RefusalKind::Failed, message }));
        });
    }

    /// This restart has been read here.
    pub fn restarted_since(&self, at: Revision) -> bool {
        self.generation() >= at.0
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
