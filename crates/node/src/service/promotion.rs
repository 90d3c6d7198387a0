//! The primary of a service: what is committed, what is decided next, and the reactions to what was committed.
//! Second half of the failure walk. The watch on the store is the only source of the record; a proposal's own reply
//! only says whether to try again. Three commits, then `onPromote`, then the route.

mod proposing;
mod sealing;
mod serving;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use data::{Key, Reach, Revision};
use health::decide::{Holder, Phase, Record, Step, View, decide};
use model::{Epoch, EventKind, InstanceId, ServiceName};
use observe::metrics::ServiceLabels;
use runtime::protocol::Order;

use super::Service;
use super::switching::Switching;
use crate::Input;
use crate::instance::{After, Instance, Stage};
use crate::shell::{Shell, Subject};
use sealing::Sealing;
pub use sealing::Seen;

/// How often `onPromote` is tried before another standby is.
const HOOK_TRIES: u32 = 3;
/// Between two tries.
const HOOK_PAUSE: Duration = Duration::from_millis(200);
/// An instance whose `onPromote` failed is not chosen again for so long, while others can be.
const AVOID: Duration = Duration::from_secs(10);
/// After a proposal that got no answer, or a store that does not serve.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// In a cluster, after a proposal that others were faster than: what they wrote is on its way.
const AFTER_OTHERS: Duration = Duration::from_millis(20);
/// Terms whose decision events are kept in the store.
const KEPT_TERMS: usize = 50;

/// Where the record of a service's primary is stored.
pub(super) fn record_key(service: &ServiceName) -> Key {
    Key::new(health::decide::record_key(service).into_bytes()).expect("a service's name is short")
}

/// Where decision events of all services are stored.
pub fn events_prefix() -> &'static str {
    "control/events/"
}

/// Reads a stored record.
///
/// # Errors
/// The record is damaged or of a newer format.
fn decode_record(value: &[u8]) -> Result<Record, serde_json::Error> {
    serde_json::from_slice(value)
}

#[derive(Clone, Copy, PartialEq, Debug, Default)]
enum HookState {
    #[default]
    Idle,
    Running,
    Again(Instant),
}

/// The state of a service's primary.
#[derive(Debug, Default)]
pub struct Promotion {
    record: Option<(Record, Revision)>,
    /// The record has been read at least once: before that nothing may be decided.
    known: bool,
    proposing: bool,
    not_before: Option<Instant>,
    hook: HookState,
    hook_tries: u32,
    routed: Option<Epoch>,
    avoided: Vec<(InstanceId, Instant)>,
    no_candidate: bool,
    /// The chain of events that the switch under way belongs to.
    cause: String,
    lost_at: Option<Instant>,
    terms: VecDeque<Epoch>,
    /// What had ended before the record was known, with the chain of events: one of them may have been the primary.
    ended_early: Vec<(Holder, String)>,
    pub(super) switching: Option<Switching>,
    /// What is known of the service's stream, for whoever decides, from when the old primary is gone until there is another.
    sealing: Option<Sealing>,
}

impl Promotion {
    /// The term, once there is one.
    pub fn epoch(&self) -> Option<Epoch> {
        self.record.as_ref().map(|(record, at)| record.epoch(*at))
    }

    /// Where the newest record is stored.
    pub(super) fn recorded_at(&self) -> Option<Revision> {
        self.record.as_ref().map(|(_, at)| *at)
    }

    /// The newest record, and where it is stored.
    pub(super) fn recorded(&self) -> Option<(&Record, Revision)> {
        self.record.as_ref().map(|(record, at)| (record, *at))
    }

    /// The term in which this instance has stepped down in good order, if it is doing so now.
    pub(super) fn demoted(&self, id: &InstanceId) -> Option<Epoch> {
        let switching = self.switching.as_ref()?;
        (switching.from().instance == *id && switching.is_demoted()).then(|| switching.epoch())
    }

    /// The committed primary, whether traffic goes to it yet or not.
    pub fn holder(&self) -> Option<&Holder> {
        self.record.as_ref().filter(|(record, _)| record.phase == Phase::Primary)?.0.holder.as_ref()
    }

    /// Who has stepped down in good order by the newest record, and so lives without a deadline again. One that was
    /// lost keeps its own: should its keeper be late, it is ended then.
    fn stepped_down(&self) -> Option<&Holder> {
        let planned = |record: &Record| record.phase != Phase::Primary && record.wanted.is_some();
        self.record.as_ref().filter(|(record, _)| planned(record))?.0.previous.as_ref()
    }

    /// Whether `id` has just refused to be primary.
    pub fn has_refused(&self, id: &InstanceId) -> bool {
        self.avoided.iter().any(|(known, _)| known == id)
    }

    /// It may be asked again: somebody wants it to be, or it is a new process.
    pub(super) fn forgive(&mut self, id: &InstanceId) {
        self.avoided.retain(|(known, _)| known != id);
    }

    /// The primary that gets traffic.
    pub fn routed_primary(&self) -> Option<(&Holder, Epoch)> {
        let epoch = self.epoch()?;
        Some((self.holder()?, epoch)).filter(|_| self.routed == Some(epoch) && self.switching.is_none())
    }

    /// The chain of events that the switch under way belongs to.
    pub(super) fn cause(&self) -> &str {
        &self.cause
    }

    pub(super) fn set_cause(&mut self, cause: String) {
        self.cause = cause;
    }

    /// A process ended while the record was not known yet; when it is read, it tells whether this was the primary.
    pub(super) fn note_early_end(&mut self, holder: Holder, cause: String) {
        if !self.known {
            self.ended_early.push((holder, cause));
        }
    }

    /// From now on the service has no primary that gets traffic.
    pub(super) fn mark_lost(&mut self, now: Instant) {
        self.lost_at.get_or_insert(now);
    }

    pub(super) fn not_lost(&mut self) {
        self.lost_at = None;
    }

    /// When to look again, apart from inputs.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let again = if let HookState::Again(at) = self.hook { Some(at) } else { None };
        let avoided = self.avoided.iter().map(|(_, until)| *until).min();
        let draining = self.switching.as_ref().map(|_| now + crate::instance::DRAIN_LOOK);
        let stream = self.sealing.as_ref().and_then(Sealing::next_look);
        [self.not_before, again, avoided, draining, stream].into_iter().flatten().min()
    }
}

impl Service {
    /// Whether `id`'s running process is the committed primary.
    pub(super) fn is_holder(&self, id: &InstanceId) -> bool {
        let holder = self.promotion.as_ref().and_then(Promotion::holder);
        holder.is_some_and(|holder| {
            holder.instance == *id
                && self.spread.as_ref().is_none_or(|spread| holder.node.as_ref() == Some(spread.own()))
                && self
                    .instances
                    .get(id)
                    .and_then(|instance| instance.process.as_ref())
                    .is_some_and(|process| process.incarnation == holder.incarnation)
        })
    }

    /// A primary died, or is being killed because it hangs.
    pub(super) fn primary_lost(&mut self, shell: &Shell, id: &InstanceId, cause: &str, why: &str, now: Instant) {
        let waits = self.waiting_streams();
        let Some(promotion) = &mut self.promotion else { return };
        let epoch = promotion.epoch().unwrap_or_default();
        promotion.lost_at.get_or_insert(now);
        cause.clone_into(&mut promotion.cause);
        shell.streams.give_way(Reach::Everywhere, waits);
        let subject = Subject::instance(&self.name, id).epoch(epoch);
        shell.emit(
            EventKind::PrimaryLost,
            subject,
            cause,
            format!("{} has lost its primary {id} (epoch {epoch}): {why}", self.name),
        );
    }

    pub(super) fn step_promotion(&mut self, shell: &Shell, now: Instant) {
        let mut views = match &self.spread {
            None => self.views(shell, now),
            Some(spread) => spread.views(),
        };
        let decides = self.spread.is_none() || shell.leads;
        let stream = self.stream_for_decision(decides, &mut views, now);
        let agreed = self.agreed_switch();
        let ended_here = self.primary_ended_here();
        let Some(promotion) = &mut self.promotion else { return };
        promotion.avoided.retain(|(_, until)| *until > now);
        if promotion.not_before.is_some_and(|at| at > now) || promotion.proposing || !promotion.known {
            return;
        }
        promotion.not_before = None;
        // A switch is over for the decision once its old primary is not the committed one any more.
        let switching = promotion.switching.as_ref().filter(|switching| promotion.holder() == Some(switching.from()));
        let switch = if self.spread.is_some() { agreed } else { switching.map(Switching::as_switch) };
        let step = if ended_here {
            Step::Fence
        } else {
            decide(promotion.record.as_ref().map(|(record, _)| record), &views, switch.as_ref(), stream)
        };
        if step != Step::NoCandidate {
            promotion.no_candidate = false;
        }
        if let Some(sealing) = &mut promotion.sealing {
            sealing.idle = !matches!(step, Step::Seal | Step::AwaitEntries(_));
        }
        self.say_behind(shell, &step, now);
        match step {
            Step::Stay => self.serve_term(shell, now),
            Step::AwaitEnd(holder) => self.end_previous(shell, &holder),
            Step::Fence if ended_here => self.fence(shell, false, None),
            // What the leader decides comes by the store.
            _ if !decides => {}
            Step::Fence | Step::FencePlanned => self.fence(shell, step == Step::FencePlanned, self.proof_of_end()),
            Step::Fenced => {
                self.propose_fenced(shell);
                self.begin_sealing(shell, &views, now);
            }
            Step::Seal | Step::AwaitEntries(_) => self.look_at_stream(shell, &views, now),
            Step::Promote(holder) => self.propose_primary(shell, holder),
            Step::NoCandidate => self.say_no_candidate(shell),
        }
    }

    /// In a cluster: the primary is a process of this node, and has ended or is about to. Who has seen that says at once that
    /// nobody is primary; the leader, which would, hears of it a commit later. That one steps down needs no other proof. Who
    /// reads nothing any more leaves it to the leader: its records go with its lease.
    fn primary_ended_here(&self) -> bool {
        let holder = self.promotion.as_ref().and_then(Promotion::holder);
        let Some((spread, holder)) = self.spread.as_ref().zip(holder).filter(|_| !self.blind) else { return false };
        holder.node.as_ref() == Some(spread.own())
            && self.instances.get(&holder.instance).is_some_and(|instance| {
                !instance.is_alive()
                    || instance.process.as_ref().is_none_or(|process| process.incarnation != holder.incarnation)
            })
    }

    fn views(&self, shell: &Shell, now: Instant) -> Vec<View> {
        let avoided = |holder: &Holder| {
            self.promotion.as_ref().is_some_and(|promotion| {
                promotion.avoided.iter().any(|(known, until)| *known == holder.instance && *until > now)
            })
        };
        let view = |instance: &Instance| {
            let incarnation = instance.process.as_ref()?.incarnation;
            let holder = shell.holder(instance.id().clone(), incarnation);
            Some(View {
                alive: instance.is_alive(),
                present: true,
                ready: instance.is_ready(),
                avoided: avoided(&holder),
                cursor: 0,
                holder,
            })
        };
        self.instances.values().filter_map(view).collect()
    }

    /// Unplanned: kill the tree without hooks or grace. Planned stops are left to their grace.
    fn end_previous(&mut self, shell: &Shell, holder: &Holder) {
        if self.spread.is_some() && !self.runs_here(holder) {
            return;
        }
        let running =
            self.instances.get(&holder.instance).is_some_and(|instance| matches!(instance.stage, Stage::Running));
        if running {
            self.kill(shell, &holder.instance, After::Start);
        }
    }

    /// Asks the store for the record.
    pub fn read_record(&self, shell: &Shell) {
        let (store, service) = (std::sync::Arc::clone(&shell.store), self.name.clone());
        shell.spawn(async move {
            let request = data::RangeRequest::key(&record_key(&service));
            let result = store.range(request, data::Consistency::Linearizable).await;
            Input::RecordRead { service, result: result.map(|found| found.kvs.into_iter().next()) }
        });
    }

    /// The store's answer to [`Service::read_record`].
    pub fn record_read(
        &mut self,
        shell: &Shell,
        result: Result<Option<data::KeyValue>, data::StoreError>,
        now: Instant,
    ) {
        match result {
            Ok(Some(kv)) => self.committed(shell, &kv.value, kv.mod_revision, now),
            Ok(None) => {
                if let Some(promotion) = &mut self.promotion {
                    promotion.known = true;
                    promotion.proposing = false;
                }
            }
            Err(_) => {
                if let Some(promotion) = &mut self.promotion {
                    promotion.proposing = false;
                    promotion.not_before = Some(now + RETRY_PAUSE);
                }
                self.read_record(shell);
            }
        }
    }

    /// The store has a record for this service.
    pub fn committed(&mut self, shell: &Shell, value: &[u8], at: Revision, now: Instant) {
        let (name, waits) = (self.name.clone(), self.waiting_streams());
        let Some(promotion) = &mut self.promotion else { return };
        let record = match decode_record(value) {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(service = %name, %error, "the stored record of the primary cannot be read; nothing is decided for this service");
                return;
            }
        };
        promotion.known = true;
        // An older epoch, or the same revision a second time, changes nothing.
        if promotion.record.as_ref().is_some_and(|(_, known)| *known >= at) {
            promotion.proposing = false;
            return;
        }
        promotion.proposing = false;
        promotion.not_before = None;
        promotion.cause.clone_from(&record.cause);
        match record.phase {
            Phase::Fence => {
                promotion.terms.push_back(Epoch(at.0));
                if let Some(switching) = &mut promotion.switching {
                    switching.fenced();
                }
            }
            Phase::Primary => {
                promotion.hook = HookState::Idle;
                promotion.hook_tries = 0;
            }
            Phase::Fenced => {}
        }
        while promotion.terms.len() > KEPT_TERMS + 1 {
            promotion.terms.pop_front();
        }
        shell.streams.give_way(Reach::Here, waits);
        let (epoch, is_fence) = (record.epoch(at), record.phase == Phase::Fence);
        let deposed = record.previous.clone().filter(|_| is_fence && record.wanted.is_none());
        promotion.record = Some((record, at));
        let labels = ServiceLabels { service: name.to_string() };
        shell.metrics.epoch.get_or_create(&labels).set(i64::try_from(epoch.0).unwrap_or(i64::MAX));
        if is_fence {
            self.say_lost(shell);
            if let Some(promotion) = self.promotion.as_mut().filter(|_| shell.leads && deposed.is_some()) {
                promotion.mark_lost(now);
            }
        }
        if let Some((spread, holder)) = self.spread.as_mut().zip(deposed) {
            spread.depose(&holder);
        }
        let stepped_down = self.promotion.as_ref().and_then(Promotion::stepped_down);
        if let Some(previous) = stepped_down.filter(|previous| previous.node == shell.own) {
            let (id, incarnation) = (previous.instance.clone(), previous.incarnation);
            shell.keeper.order(&Order::Deadline { id, incarnation, at_boot_ms: None, sole_voter: true });
        }
        let ended_early = self.promotion.as_mut().map(|promotion| std::mem::take(&mut promotion.ended_early));
        if let Some(holder) = self.promotion.as_ref().and_then(Promotion::holder).cloned() {
            self.give_deadline(shell, &holder);
            if let Some((_, cause)) = ended_early.into_iter().flatten().find(|(ended, _)| *ended == holder) {
                self.primary_lost(shell, &holder.instance, &cause, "it died while the node process was away", now);
            }
        }
        self.step_promotion(shell, now);
    }

    /// Tells the keeper until when the primary may live without being heard of.
    pub(super) fn give_deadline(&self, shell: &Shell, holder: &Holder) {
        let Some(until) = shell.lives_until(holder).filter(|_| holder.node == shell.own) else { return };
        let at_boot_ms = Some(u64::try_from(until.as_millis()).unwrap_or(u64::MAX));
        shell.keeper.order(&Order::Deadline {
            id: holder.instance.clone(),
            incarnation: holder.incarnation,
            at_boot_ms,
            sole_voter: shell.node.peers.is_none(),
        });
    }

    /// The lease was renewed.
    pub fn renew_deadline(&self, shell: &Shell) {
        if let Some(holder) = self.promotion.as_ref().and_then(Promotion::holder) {
            self.give_deadline(shell, holder);
        }
    }

    fn say_no_candidate(&mut self, shell: &Shell) {
        let name = self.name.clone();
        let Some(promotion) = &mut self.promotion else { return };
        // While instances are only starting up, as after a restart of Seawall, nobody has been lost yet.
        let first_start = promotion.record.is_none() || !self.ever_ready;
        if std::mem::replace(&mut promotion.no_candidate, true) || first_start {
            return;
        }
        let cause = promotion.cause.clone();
        let subject = Subject { service: Some(&name), instance: None, epoch: promotion.epoch() };
        shell.emit(
            EventKind::NoCandidate,
            subject,
            &cause,
            format!("{name} has no primary and no ready standby; requests wait or get 503 until an instance is ready"),
        );
    }
}
