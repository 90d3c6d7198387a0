//! The three commits of a promotion: what is written, under which conditions, and what becomes of the proposal.
//! Middle of the failure walk, between the decision and the watch. Deliberately absent: the decision (`health::decide`).

use std::fmt::Write as _;
use std::time::Instant;

use data::{Compare, Key, KeyRange, Op, Revision, Txn, TxnOutcome};
use health::decide::{Holder, Phase, Record};
use model::{Epoch, EventKind, NodeName};

use super::{AFTER_OTHERS, KEPT_TERMS, RETRY_PAUSE, events_prefix, record_key};
use crate::service::Service;
use crate::shell::{Outcome, Shell, Subject};

impl Service {
    /// The primary is lost: the chain of events is the one its node has begun, or begins here.
    fn note_loss(&mut self, shell: &Shell, holder: &Holder) {
        let Some(promotion) = self.promotion.as_mut().filter(|promotion| promotion.lost_at.is_none()) else { return };
        promotion.mark_lost(Instant::now());
        let spread = self.spread.as_ref();
        let switch = spread.and_then(|spread| Some(spread.agreed.switch.as_ref()?.0.cause.clone()));
        let here =
            self.instances.get(&holder.instance).filter(|_| holder.node == shell.own).map(|own| own.cause.clone());
        let told = switch.or(here).or_else(|| spread.and_then(|spread| spread.cause_of(holder)));
        promotion.cause = told.unwrap_or_else(|| shell.new_cause());
    }

    /// The leader says of a primary that went without a word that it is lost, once its fence is committed.
    pub(super) fn say_lost(&mut self, shell: &Shell) {
        let record =
            self.promotion.as_ref().and_then(|promotion| promotion.recorded()).map(|(record, _)| record.clone());
        let Some((lost, cause)) = record.and_then(|record| Some((record.previous?, record.cause))) else { return };
        if shell.leads && self.is_lost_with_its_node(&lost) {
            let node = lost.node.as_ref().map_or("its node", NodeName::as_str);
            let why = format!("nothing is heard of {node} any more");
            self.primary_lost(shell, &lost.instance, &cause, &why, Instant::now());
        }
    }

    /// What the leader knows of the primary that it takes for lost.
    pub(super) fn proof_of_end(&self) -> Option<Compare> {
        self.proof(self.promotion.as_ref()?.record.as_ref()?.0.holder.as_ref()?)
    }

    pub(super) fn fence(&mut self, shell: &Shell, planned: bool, proof: Option<Compare>) {
        let previous = self.promotion.as_ref().and_then(|promotion| promotion.record.as_ref()?.0.holder.clone());
        let agreed = self.agreed_switch();
        if let Some(holder) = previous.as_ref().filter(|_| self.spread.is_some()) {
            self.note_loss(shell, holder);
        }
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.cause.is_empty() {
            promotion.cause = shell.new_cause();
        }
        let target = || promotion.switching.as_ref().map(|switching| switching.target.clone());
        let wanted = agreed.map(|switch| switch.target).or_else(target).filter(|_| planned);
        let who = previous.as_ref().map_or_else(|| "nobody yet".to_owned(), |holder| holder.instance.to_string());
        let record = Record {
            version: 1,
            phase: Phase::Fence,
            epoch: Epoch(0),
            holder: None,
            previous,
            wanted,
            cause: promotion.cause.clone(),
            sealed: None,
        };
        self.propose(shell, record, proof, EventKind::Fenced, format!("{}: nobody is primary (was: {who})", self.name));
    }

    pub(super) fn propose_fenced(&mut self, shell: &Shell) {
        let Some((record, at)) = self.promotion.as_ref().and_then(|promotion| promotion.record.clone()) else { return };
        let epoch = record.epoch(at);
        let how = if record.wanted.is_some() { "stepped down in good order" } else { "has provably ended" };
        let message = match &record.previous {
            Some(previous) if self.is_lost_with_its_node(previous) => {
                let node = previous.node.as_ref().map_or("its node", NodeName::as_str);
                format!(
                    "{}: the lease of {node} has run out, and with it the time that {} had",
                    self.name, previous.instance
                )
            }
            Some(previous) => format!("{}: {} {how}", self.name, previous.instance),
            None => format!("{}: there was no primary before", self.name),
        };
        let proof = record.previous.as_ref().and_then(|holder| self.proof(holder));
        self.propose(
            shell,
            Record { phase: Phase::Fenced, epoch, ..record },
            proof,
            EventKind::FenceConfirmed,
            message,
        );
    }

    pub(super) fn propose_primary(&mut self, shell: &Shell, holder: Holder) {
        let Some((record, at)) = self.promotion.as_ref().and_then(|promotion| promotion.record.clone()) else { return };
        let epoch = record.epoch(at);
        let mut message = format!("{} is primary of {} in epoch {epoch}", holder.instance, self.name);
        let proof = self.proof(&holder);
        let record = Record { phase: Phase::Primary, epoch, holder: Some(holder), wanted: None, ..record };
        let record = self.with_stream(record);
        if let Some(sealed) = &record.sealed {
            let _ = write!(message, "; it has read the stream {} to its end, offset {}", sealed.stream, sealed.end);
        }
        self.propose(shell, record, proof, EventKind::Promoted, message);
    }

    /// Commits a record with its event, if the record before is still what it was, and what proves it still holds.
    fn propose(&mut self, shell: &Shell, record: Record, proof: Option<Compare>, kind: EventKind, message: String) {
        let name = self.name.clone();
        let ends_switch = self.end_of_switch().filter(|_| record.phase == Phase::Primary || record.wanted.is_none());
        let Some(promotion) = &mut self.promotion else { return };
        promotion.proposing = true;
        let (key, over) = (record_key(&name), promotion.recorded_at());
        let compare = match over {
            Some(at) => Compare::mod_revision(key.clone(), at),
            None => Compare::absent(key.clone()),
        };
        let instance = record.holder.as_ref().or(record.previous.as_ref()).map(|holder| holder.instance.clone());
        let epoch = Some(record.epoch).filter(|epoch| epoch.0 > 0);
        let subject = Subject { service: Some(&name), instance: instance.as_ref(), epoch };
        let event = shell.event(kind, subject, &record.cause, message);
        let event_key = Key::new(
            format!("{}{name}/{:020}/{}", events_prefix(), record.epoch.0, phase_number(record.phase)).into_bytes(),
        )
        .expect("a short key");
        let value = serde_json::to_vec(&record).expect("a record always becomes JSON");
        let event = serde_json::to_vec(&event).expect("an event always becomes JSON");
        let mut txn = Txn::put(key, value).when(compare).then(Op::put(event_key, event));
        txn.compares.extend(proof);
        txn.then.extend(ends_switch);
        if let Some(oldest) = promotion.terms.front().filter(|_| promotion.terms.len() > KEPT_TERMS) {
            let start = format!("{}{name}/{:020}", events_prefix(), 1).into_bytes();
            let end = format!("{}{name}/{:020}/~", events_prefix(), oldest.0).into_bytes();
            txn = txn.then(Op::Delete { range: KeyRange::between(start, Some(end.into())) });
        }
        shell.commit(name, over, txn);
    }

    /// A proposal got its reply; the record was of that revision when it was made. The record itself comes by the watch.
    pub fn proposed(&mut self, shell: &Shell, over: Option<Revision>, outcome: &Outcome, now: Instant) {
        let ended_here = self.primary_ended_here();
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.recorded_at() != over {
            // Somebody wrote, and that has been read already.
            return;
        }
        match outcome {
            Ok(TxnOutcome::Committed { .. }) => {}
            Ok(TxnOutcome::Rejected { .. } | TxnOutcome::Unknown) => {
                // Either somebody else wrote, or nobody knows: the record decides.
                let pause = if self.spread.is_some() { AFTER_OTHERS } else { RETRY_PAUSE };
                promotion.not_before = Some(now + pause);
                if self.spread.is_some() && !ended_here && promotion.holder().is_some() {
                    // What looked like a loss was none, or is looked at anew with what is known then.
                    promotion.not_lost();
                }
                self.read_record(shell);
            }
            Err(error) => {
                tracing::error!(service = %self.name, %error, "a decision about the primary could not be committed; trying again");
                promotion.proposing = false;
                promotion.not_before = Some(now + RETRY_PAUSE);
            }
        }
    }
}

fn phase_number(phase: Phase) -> u8 {
    match phase {
        Phase::Fence => 1,
        Phase::Fenced => 2,
        Phase::Primary => 3,
    }
}
