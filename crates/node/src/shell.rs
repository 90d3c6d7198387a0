//! What controllers may do to the world: order the keeper, commit to the store, ask instances, say what happened.
//! Everything that takes time is started here and comes back as an [`Input`]; nothing here waits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use data::{LeaseId, Store, StoreError, Streams, Txn, TxnOutcome};
use health::decide::Holder;
use health::prober::{self, Target};
use model::config::{NodeConfig, Probe};
use model::{Epoch, Event, EventKind, Incarnation, InstanceId, NodeName, Revision, ServiceName};
use observe::journal::Journal;
use observe::metrics::{ControlMetrics, EventLabels};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Input;
use crate::link::Keeper;

/// Handles on the world, and the small state that decisions of all services share.
pub struct Shell {
    /// Orders to the keeper.
    pub keeper: Keeper,
    /// Where results come back.
    pub inputs: mpsc::Sender<Input>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The op-logs of services.
    pub streams: Arc<dyn Streams>,
    /// The URL of this node's API, for what it runs.
    pub api: String,
    /// The event journal.
    pub journal: Journal,
    /// The control plane's metrics.
    pub metrics: ControlMetrics,
    /// The gateway's table.
    pub table: Arc<gateway::Table>,
    /// `node` of the configuration.
    pub node: NodeConfig,
    /// True once the node is stopping: nothing is started or promoted any more.
    pub stopping: bool,
    /// On the clock since boot: until when the lease that primaries live on is good.
    pub lease_until: Option<Duration>,
    /// In a cluster: this node's name.
    pub own: Option<NodeName>,
    /// Where instances of this node listen.
    pub host: IpAddr,
    /// This node leads the cluster: it places instances and decides about primaries.
    pub leads: bool,
    /// In a cluster: the lease this node lives on.
    pub lease: Option<LeaseId>,
    /// The same for those who only need to know which it is.
    pub lease_told: watch::Sender<Option<LeaseId>>,
    /// What the configuration in force wants of the registry; told anew whenever one is put in force.
    pub asked: watch::Sender<crate::discovering::Asked>,
    /// In a cluster: until when the last few leases were good, on the clock since boot.
    pub leases: Vec<(LeaseId, Duration)>,
    /// In a cluster: processes whose record is in what this node has read of the store, and under which lease.
    pub vouched: BTreeMap<InstanceId, (Incarnation, LeaseId)>,
    /// Starts from this one on are of this node process.
    pub born: Incarnation,
    /// Breakers that an operator holds open or closed.
    pub held_breakers: BTreeMap<ServiceName, gateway::breaker::Forced>,
    /// Something happened since the status was published: whoever gets an answer must find it there.
    pub changed: Cell<bool>,
    /// Answers to verbs, given once the status shows what they say: who reads it next must not see the past.
    pub answers: RefCell<Vec<Box<dyn FnOnce()>>>,
    /// Rolls that ended since the controller last looked, with what went wrong.
    pub ended_rolls: Vec<(ServiceName, Result<(), String>)>,
}

impl Shell {
    /// A new chain of events.
    pub fn new_cause(&self) -> String {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let micros = jiff::Timestamp::now().as_microsecond();
        format!("{micros:x}-{:x}", COUNTER.fetch_add(1, Ordering::Relaxed))
    }

    /// A process of this node, as decisions name it.
    pub fn holder(&self, instance: InstanceId, incarnation: Incarnation) -> Holder {
        Holder { instance, incarnation, node: self.own.clone() }
    }

    /// The lease was renewed.
    pub fn renewed(&mut self, lease: Option<LeaseId>, until: Duration) {
        /// A record that is under an older one has been written again long before.
        const KEPT: usize = 4;
        (self.lease, self.lease_until) = (lease, Some(until));
        let Some(lease) = lease else { return };
        self.lease_told.send_if_modified(|told| told.replace(lease) != Some(lease));
        match self.leases.iter_mut().find(|(known, _)| *known == lease) {
            Some((_, known)) => *known = until,
            None => self.leases.push((lease, until)),
        }
        if self.leases.len() > KEPT {
            self.leases.remove(0);
        }
    }

    /// In a cluster: the lease has run out, so what this node knows of primaries is old. Requests to them wait.
    pub fn is_blind(&self) -> bool {
        self.own.is_some() && self.lease_until.is_none_or(|until| until < platform::clock::since_boot())
    }

    /// Until when a primary may live without another renewal, on the clock since boot. In a cluster that is for as long
    /// as its record stays in the store: when the record goes with its lease, others take the process for stopped. So
    /// what counts is the lease that the record is under, not the one that is renewed now.
    pub fn lives_until(&self, holder: &Holder) -> Option<Duration> {
        if self.own.is_none() {
            return self.lease_until;
        }
        match self.vouched.get(&holder.instance).filter(|(incarnation, _)| *incarnation == holder.incarnation) {
            Some((_, lease)) => self.leases.iter().find(|(known, _)| known == lease).map(|(_, until)| *until),
            // Started here: its record is under one of those that are known.
            None if holder.incarnation >= self.born => self.leases.iter().map(|(_, until)| *until).min(),
            // Of a node process before this one: the keeper has its deadline already.
            None => None,
        }
    }

    /// A start that has never been before, also not under another keeper.
    pub fn new_incarnation(&self) -> Incarnation {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let micros = u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0);
        let previous = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(micros.max(last + 1)));
        Incarnation(micros.max(previous.unwrap_or(0) + 1))
    }

    /// An event as of now.
    pub fn event(&self, kind: EventKind, subject: Subject<'_>, cause: &str, message: impl Into<String>) -> Event {
        Event {
            at: observe::now(),
            kind,
            node: self.node.name.clone(),
            service: subject.service.cloned(),
            instance: subject.instance.cloned(),
            epoch: subject.epoch,
            cause: cause.to_owned(),
            message: message.into(),
        }
    }

    /// Says what happened: journal, metric, log.
    pub fn emit(&self, kind: EventKind, subject: Subject<'_>, cause: &str, message: impl Into<String>) {
        self.record(self.event(kind, subject, cause, message), None);
    }

    /// Records an event; `revision` is where it was committed, if it was.
    pub fn record(&self, event: Event, revision: Option<Revision>) {
        self.changed.set(true);
        let kind = event.kind.name();
        let service = event.service.as_ref().map(ServiceName::as_str);
        let instance = event.instance.as_ref().map(InstanceId::as_str);
        let epoch = event.epoch.map(|epoch| epoch.0);
        if needs_somebody(event.kind) {
            tracing::error!(event = kind, service, instance, epoch, cause = event.cause, "{}", event.message);
        } else {
            tracing::info!(event = kind, service, instance, epoch, cause = event.cause, "{}", event.message);
        }
        self.metrics.events.get_or_create(&EventLabels { kind }).inc();
        self.journal.append(event, revision);
    }

    /// Answers a verb, after the status has been published.
    pub fn answer<T: 'static>(&self, reply: oneshot::Sender<T>, answer: T) {
        // Ignored: who asked has gone.
        self.answers.borrow_mut().push(Box::new(move || drop(reply.send(answer))));
    }

    /// Starts something that comes back as an input.
    pub fn spawn(&self, work: impl Future<Output = Input> + Send + 'static) {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            let input = work.await;
            // Ignored: the controller has ended, and nobody waits for results any more.
            let _ = inputs.send(input).await;
        });
    }

    /// Sends a probe.
    pub fn probe(
        &self,
        service: ServiceName,
        instance: InstanceId,
        incarnation: Incarnation,
        kind: health::detect::ProbeKind,
        probe: Probe,
        target: Target,
    ) {
        self.spawn(async move {
            let result = prober::probe(&probe, &target).await;
            Input::Probed { service, instance, incarnation, kind, result }
        });
    }

    /// Proposes a transaction for `service`, over the record of a revision: once there is a newer one, its reply is old.
    pub fn commit(&self, service: ServiceName, over: Option<Revision>, txn: Txn) {
        let store = Arc::clone(&self.store);
        self.spawn(async move { Input::Proposed { service, over, outcome: store.txn(txn).await } });
    }
}

/// The result of a proposal.
pub type Outcome = Result<TxnOutcome, StoreError>;

/// What an event is about.
#[derive(Clone, Copy, Default)]
pub struct Subject<'a> {
    /// The service.
    pub service: Option<&'a ServiceName>,
    /// The instance.
    pub instance: Option<&'a InstanceId>,
    /// The term.
    pub epoch: Option<Epoch>,
}

impl<'a> Subject<'a> {
    /// About a service.
    pub fn service(service: &'a ServiceName) -> Self {
        Self { service: Some(service), ..Self::default() }
    }

    /// About an instance.
    pub fn instance(service: &'a ServiceName, instance: &'a InstanceId) -> Self {
        Self { service: Some(service), instance: Some(instance), epoch: None }
    }

    /// In a term.
    pub fn epoch(self, epoch: Epoch) -> Self {
        Self { epoch: Some(epoch), ..self }
    }
}

/// Events after which somebody must act; everything else the product deals with by itself.
fn needs_somebody(kind: EventKind) -> bool {
    use EventKind as K;
    matches!(
        kind,
        K::CrashLoop
            | K::InstanceUnkillable
            | K::NoCandidate
            | K::PromoteBehind
            | K::NoReadyInstance
            | K::RollAborted
            | K::ShiftPaused
            | K::ShiftRolledBack
            | K::InstanceStartFailed
            | K::CertificateRefused
            | K::CertificateNotIssued
            | K::CertificateExpiring
            | K::NodeCertificateExpires
            | K::NotifyFailed
            | K::FeedFailed
            | K::ConfigRejected
    )
}
