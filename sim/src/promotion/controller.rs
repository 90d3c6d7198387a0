//! The controller of one node: follows control state, keeps the lease, says what runs here, gives deadlines, and decides
//! while it leads. A step looks at everything once and starts what is due, as in `crates/node`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use data::{
    Compare, Consistency, Event, KeyRange, KeyValue, LeaseId, NotServing, Op, RaftRole, RangeRequest, Revision, Store,
    StoreError, Txn, TxnOutcome, WatchItem,
};
use data_raft::RaftStore;
use health::decide::{Holder, Phase, Record, Step, Stream, View, decide};
use model::{Epoch, NodeName};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::Keeper;
use super::record::{CONTROL, holder, instance_key, node, node_of, primary_key};
use crate::plants::Plant;

/// The lease's time to live, between renewals, and after one that failed: those of `crates/node`.
const TTL: Duration = Duration::from_millis(1800);
const EVERY: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(50);
const DOUBT: Duration = Duration::from_millis(250);
/// After a proposal that got no answer.
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Without news everything is looked at this often.
const IDLE_LOOK: Duration = Duration::from_millis(250);
/// Leases whose end is known.
const KEPT: usize = 4;

struct Controller {
    own: NodeName,
    store: Arc<RaftStore>,
    keeper: Rc<Keeper>,
    plant: Option<Plant>,
    failsafe: bool,
    news: Notify,
    state: RefCell<State>,
}

/// What a node says of its process.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Process {
    /// 0: nothing of it is left.
    incarnation: u64,
    alive: bool,
}

impl Process {
    fn written(self) -> String {
        format!("{}{}", self.incarnation, if self.alive { "" } else { " hangs" })
    }

    fn read(text: &[u8]) -> Self {
        let text = String::from_utf8_lossy(text);
        let (incarnation, rest) = text.split_once(' ').unwrap_or((&text, ""));
        Self { incarnation: incarnation.parse().unwrap_or_default(), alive: rest.is_empty() }
    }
}

#[derive(Default)]
struct State {
    lease: Option<LeaseId>,
    leases: Vec<(LeaseId, Instant)>,
    /// What was said last, and under which lease,
    said: Option<(Process, LeaseId)>,
    /// and the start of the process whose record was read from the store, and its lease.
    vouched: Option<(u64, LeaseId)>,
    saying: bool,
    not_before: Option<Instant>,
    known: bool,
    record: Option<(Record, Revision)>,
    processes: BTreeMap<NodeName, (Process, Revision)>,
    proposing: bool,
    decide_not_before: Option<Instant>,
}

/// Runs for as long as the node process does.
pub async fn control(place: usize, store: Arc<RaftStore>, keeper: Rc<Keeper>, plant: Option<Plant>, failsafe: bool) {
    let (own, news, state) = (node(place), Notify::new(), RefCell::default());
    let controller = Rc::new(Controller { own, store, keeper, plant, failsafe, news, state });
    spawn_local(Rc::clone(&controller).renew());
    spawn_local(Rc::clone(&controller).follow());
    loop {
        controller.step();
        let changed = Rc::clone(&controller.keeper.changed);
        let changed = changed.notified();
        tokio::select! {
            biased;
            () = controller.news.notified() => {}
            () = changed => {}
            () = tokio::time::sleep(IDLE_LOOK) => {}
        }
    }
}

impl Controller {
    async fn renew(self: Rc<Self>) {
        let mut lease = None;
        let mut until = Instant::now();
        loop {
            let (known, sent) = (lease, Instant::now());
            let mut kept = None;
            let good = {
                let mut renewal = pin!(tokio::time::timeout(EVERY, self.once(&mut lease)));
                let doubt = tokio::time::sleep(DOUBT);
                let early = tokio::select! {
                    biased;
                    renewed = &mut renewal => Some(renewed),
                    () = doubt, if self.failsafe => None,
                };
                if self.failsafe && !matches!(early, Some(Ok(Ok(())))) {
                    kept = self.kept(known, until).await;
                }
                match early {
                    Some(renewed) => matches!(renewed, Ok(Ok(()))),
                    None => kept.is_none() && matches!(renewal.await, Ok(Ok(()))),
                }
            };
            if good && let Some(lease) = lease {
                let from =
                    if self.plant == Some(Plant::DeadlineFromAnswer) { Instant::now() + EVERY * 2 } else { sent };
                until = from + TTL - Keeper::MARGIN;
                self.renewed(lease, until);
            } else if let Some((known, kept)) = kept {
                until = kept;
                self.renewed(known, until);
            }
            tokio::time::sleep(if good { EVERY } else { AGAIN }).await;
        }
    }

    /// The lease, and until when it is good by the word of every other voter.
    async fn kept(&self, lease: Option<LeaseId>, until: Instant) -> Option<(LeaseId, Instant)> {
        let (lease, sent) = (lease?, Instant::now());
        let asked = tokio::time::timeout(EVERY, self.store.lease_confirm(lease));
        if sent >= until || !matches!(asked.await, Ok(Ok(()))) || Instant::now() >= until {
            return None;
        }
        if self.own_holder().is_some() {
            self.keeper.kept.set(self.keeper.kept.get() + 1);
        }
        Some((lease, sent + TTL - Keeper::MARGIN))
    }

    async fn once(&self, lease: &mut Option<LeaseId>) -> Result<(), StoreError> {
        if let Some(known) = *lease {
            match self.store.lease_keep_alive(known).await {
                Err(StoreError::LeaseNotFound(_)) => *lease = None,
                other => return other.map(drop),
            }
        }
        *lease = Some(self.store.lease_grant(TTL).await?.lease);
        Ok(())
    }

    fn renewed(&self, lease: LeaseId, until: Instant) {
        {
            let state = &mut *self.state.borrow_mut();
            state.lease = Some(lease);
            match state.leases.iter_mut().find(|(known, _)| *known == lease) {
                Some((_, known)) => *known = until,
                None => state.leases.push((lease, until)),
            }
            if state.leases.len() > KEPT {
                state.leases.remove(0);
            }
        }
        self.give_deadline();
        self.news.notify_one();
    }

    /// Until when this process may live: for as long as its record stays in the store.
    fn lives_until(&self, incarnation: u64) -> Option<Instant> {
        let state = self.state.borrow();
        if self.plant == Some(Plant::VouchedUnread) {
            return state.leases.last().map(|(_, until)| *until);
        }
        match state.vouched {
            Some((vouched, lease)) if vouched == incarnation => {
                state.leases.iter().find(|(known, _)| *known == lease).map(|(_, until)| *until)
            }
            // Of a node process before this one: the keeper has its deadline already.
            _ => None,
        }
    }

    fn own_holder(&self) -> Option<u64> {
        let state = self.state.borrow();
        let (record, _) = state.record.as_ref().filter(|(record, _)| record.phase == Phase::Primary)?;
        let holder = record.holder.as_ref()?;
        (holder.node.as_ref() == Some(&self.own)).then_some(holder.incarnation.0)
    }

    /// The committed primary is this node's, and its process is not what it was or hangs.
    fn ended_here(&self) -> bool {
        self.own_holder().is_some_and(|holder| {
            self.keeper.hangs.get() || self.keeper.incarnation.get().is_none_or(|runs| runs != holder)
        })
    }

    fn give_deadline(&self) {
        if let Some(incarnation) = self.own_holder()
            && let Some(until) = self.lives_until(incarnation)
        {
            self.keeper.order_deadline(incarnation, Some(until));
        }
    }

    async fn follow(self: Rc<Self>) {
        loop {
            let Ok(mut listed) = self.store.range(RangeRequest::prefix(CONTROL), Consistency::Linearizable).await
            else {
                tokio::time::sleep(RETRY_PAUSE).await;
                continue;
            };
            listed.kvs.sort_by_key(|kv| kv.mod_revision);
            let from = Revision(listed.revision.0 + 1);
            self.state.borrow_mut().processes.clear();
            listed.kvs.iter().for_each(|kv| self.put(kv));
            self.state.borrow_mut().known = true;
            self.news.notify_one();
            let Ok(mut watch) = self.store.watch(KeyRange::prefix(CONTROL), Some(from)) else { return };
            while let Some(item) = watch.next().await {
                let WatchItem::Events { events, .. } = item else { continue };
                for event in events.iter() {
                    match event {
                        Event::Put(kv) => self.put(kv),
                        Event::Delete { key, .. } => {
                            if let Some(node) = key.as_str().and_then(node_of) {
                                self.state.borrow_mut().processes.remove(&node);
                            }
                        }
                    }
                }
                self.news.notify_one();
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn put(self: &Rc<Self>, kv: &KeyValue) {
        if let Some(node) = kv.key.as_str().and_then(node_of) {
            let process = Process::read(&kv.value);
            let mut state = self.state.borrow_mut();
            if let Some(lease) = kv.lease.filter(|_| node == self.own) {
                // Only now: what was committed may be newer than what this node knows of the term.
                state.vouched = Some((process.incarnation, lease));
            }
            state.processes.insert(node, (process, kv.mod_revision));
        } else if kv.key == primary_key() {
            self.committed(kv);
        }
    }

    /// The store has a record: an older one changes nothing.
    fn committed(self: &Rc<Self>, kv: &KeyValue) {
        let Ok(record) = serde_json::from_slice::<Record>(&kv.value) else { return };
        {
            let mut state = self.state.borrow_mut();
            state.proposing = false;
            if state.record.as_ref().is_some_and(|(_, known)| *known >= kv.mod_revision) {
                return;
            }
            state.decide_not_before = None;
            state.record = Some((record.clone(), kv.mod_revision));
        }
        if record.phase != Phase::Primary
            && let Some(previous) = record.previous.filter(|previous| previous.node.as_ref() == Some(&self.own))
            && self.keeper.is_primary().is_none()
        {
            self.keeper.order_deadline(previous.incarnation.0, None);
        }
        self.give_deadline();
        self.step();
    }

    fn step(self: &Rc<Self>) {
        self.say();
        self.decide();
    }

    /// Says what runs here, under the lease.
    fn say(self: &Rc<Self>) {
        let now = Instant::now();
        let (lease, process) = {
            let state = self.state.borrow();
            let Some(lease) = state.lease else { return };
            let incarnation = self.keeper.incarnation.get().unwrap_or_default();
            let process = Process { incarnation, alive: !self.keeper.hangs.get() };
            let said = state.said == Some((process, lease));
            if state.saying || said || state.not_before.is_some_and(|at| at > now) {
                return;
            }
            (lease, process)
        };
        self.state.borrow_mut().saying = true;
        let at = instance_key(&self.own);
        let put = Op::put_leased(at, process.written(), lease);
        let (store, keeper) = (Arc::clone(&self.store), Rc::clone(&self.keeper));
        let this = Rc::clone(self);
        spawn_local(async move {
            let outcome = store.txn(Txn::default().then(put)).await;
            let mut state = this.state.borrow_mut();
            state.saying = false;
            if matches!(outcome, Ok(TxnOutcome::Committed { .. })) {
                state.said = Some((process, lease));
            } else {
                state.not_before = Some(Instant::now() + RETRY_PAUSE);
            }
            drop(state);
            keeper.changed.notify_waiters();
            this.give_deadline();
            this.news.notify_one();
        });
    }

    fn views(&self) -> Vec<View> {
        let view = |(node, (process, _)): (&NodeName, &(Process, Revision))| View {
            holder: holder(node, process.incarnation),
            alive: process.alive,
            present: true,
            ready: process.alive,
            avoided: false,
            cursor: 0,
        };
        let state = self.state.borrow();
        state.processes.iter().filter(|(_, (process, _))| process.incarnation > 0).map(view).collect()
    }

    /// What a decision about a process rests on: its record is still the one that was looked at.
    fn proof(&self, holder: &Holder) -> Option<Compare> {
        let node = holder.node.as_ref()?;
        Some(match self.state.borrow().processes.get(node) {
            Some((_, at)) => Compare::mod_revision(instance_key(node), *at),
            None => Compare::absent(instance_key(node)),
        })
    }

    fn decide(self: &Rc<Self>) {
        {
            let state = self.state.borrow();
            let waits = state.decide_not_before.is_some_and(|at| at > Instant::now());
            if !state.known || state.proposing || waits {
                return;
            }
        }
        let status = self.store.status();
        if self.plant == Some(Plant::PromoteWithoutQuorum)
            && matches!(status.not_serving, Some(NotServing::NoQuorum { .. }))
            && let Some(incarnation) = self.keeper.incarnation.get()
        {
            // Nobody else is there, so it must be this one.
            let epoch = self.state.borrow().record.as_ref().map_or(0, |(record, at)| record.epoch(*at).0);
            return self.keeper.promote(incarnation, epoch + 1);
        }
        let leads = status.role == RaftRole::Leader;
        let (record, at) = self.state.borrow().record.clone().map_or((None, Revision(0)), |(r, at)| (Some(r), at));
        let views = self.views();
        // Who runs the primary sees its end before the leader hears of it.
        let ended_here = self.ended_here();
        let step = if ended_here { Step::Fence } else { decide(record.as_ref(), &views, None, Stream::None) };
        let epoch = record.as_ref().map_or(Epoch(0), |record| record.epoch(at));
        let base = Record {
            version: 1,
            phase: Phase::Fence,
            epoch: Epoch(0),
            holder: None,
            previous: None,
            wanted: None,
            cause: "sim".into(),
            sealed: None,
        };
        match step {
            Step::Stay => self.serve_term(epoch),
            // Somebody else is ready, so why wait.
            Step::AwaitEnd(_) if leads && self.plant == Some(Plant::PromoteBeforeFenced) => {
                let Some(record) = record else { return };
                self.propose(Record { phase: Phase::Fenced, epoch, ..record }, at, None);
            }
            Step::AwaitEnd(previous) => self.end_previous(&previous),
            _ if !leads && !ended_here => {}
            Step::Fence | Step::FencePlanned => {
                let previous = record.and_then(|record| record.holder);
                let proof = previous.as_ref().filter(|_| !ended_here).and_then(|holder| self.proof(holder));
                self.propose(Record { previous, ..base }, at, proof);
            }
            Step::Fenced => {
                let Some(record) = record else { return };
                let proof = record.previous.as_ref().and_then(|holder| self.proof(holder));
                self.propose(Record { phase: Phase::Fenced, epoch, ..record }, at, proof);
            }
            Step::Promote(chosen) => {
                let Some(record) = record else { return };
                let proof = self.proof(&chosen);
                self.propose(Record { phase: Phase::Primary, epoch, holder: Some(chosen), ..record }, at, proof);
            }
            // The service has no stream.
            Step::Seal | Step::AwaitEntries(_) | Step::NoCandidate => {}
        }
    }

    /// The committed primary is told, if it runs here and its time is not over.
    fn serve_term(&self, epoch: Epoch) {
        let Some(incarnation) = self.own_holder() else { return };
        let over = self.lives_until(incarnation).is_none_or(|until| until <= Instant::now());
        if !over || self.plant == Some(Plant::PromotedTooLate) {
            self.give_deadline();
            self.keeper.promote(incarnation, epoch.0);
        }
    }

    fn end_previous(&self, previous: &Holder) {
        let here = previous.node.as_ref() == Some(&self.own);
        if here && self.keeper.incarnation.get() == Some(previous.incarnation.0) {
            self.keeper.end();
        }
    }

    fn propose(self: &Rc<Self>, record: Record, at: Revision, proof: Option<Compare>) {
        self.state.borrow_mut().proposing = true;
        let compare = if at.0 == 0 { Compare::absent(primary_key()) } else { Compare::mod_revision(primary_key(), at) };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        let mut txn = Txn::put(primary_key(), value).when(compare);
        txn.compares.extend(proof);
        let (store, this) = (Arc::clone(&self.store), Rc::clone(self));
        spawn_local(async move {
            let outcome = store.txn(txn).await;
            let again = match outcome {
                Ok(TxnOutcome::Committed { .. }) => None,
                Ok(_) => Some(Duration::from_millis(20)),
                Err(_) => Some(RETRY_PAUSE),
            };
            {
                let mut state = this.state.borrow_mut();
                state.proposing = false;
                state.decide_not_before = again.map(|pause| Instant::now() + pause);
            }
            if let Some(pause) = again {
                tokio::time::sleep(pause).await;
                this.read_record().await;
            }
            this.news.notify_one();
        });
    }

    async fn read_record(self: &Rc<Self>) {
        let request = RangeRequest::key(&primary_key());
        let read = self.store.range(request, Consistency::Linearizable).await;
        if let Ok(read) = read
            && let Some(kv) = read.kvs.first()
        {
            self.committed(kv);
        }
    }
}
