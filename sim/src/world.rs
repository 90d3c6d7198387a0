//! One world: machines, a network, clients, faults, and the judge who watches. It lives on one thread, in paused time,
//! and is over when faults have ceased and every node has come back, or at the first violation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use data::{Consistency, KeyRange, NotServing, RangeRequest, Revision, Store, Txn, WatchItem};
use data_raft::{RaftStore, Surroundings};
use tokio::time::Instant;

use crate::chance::Chance;
use crate::clients;
use crate::disk::SimDisk;
use crate::faults;
use crate::judge::{Change, Judge, Observation, Violation, Written};
use crate::network::SimNet;
use crate::node::{self, Machine, Setup};
use crate::plants::Plant;
use crate::promotion::{self, Keeper};
use crate::trace::Trace;

/// Between two looks at what nodes say of themselves.
const LOOK: Duration = Duration::from_millis(20);
/// Longest time until every node has come back after the last fault.
const RECOVERY: Duration = Duration::from_secs(40);

/// How a world ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Of which seed.
    pub seed: u64,
    /// Over everything that happened.
    pub hash: u64,
    /// Lines of the trace.
    pub lines: u64,
    /// Revisions of the store.
    pub revisions: u64,
    /// What the judge was told.
    pub observations: u64,
    /// Simulated time.
    pub lasted: Duration,
    /// What befell it, and how often.
    pub faults: BTreeMap<&'static str, u64>,
    /// What was violated.
    pub violation: Option<Violation>,
    /// The end of the trace, or all of it.
    pub trace: String,
}

/// A world while it lasts.
pub struct World {
    /// Chance.
    pub chance: Chance,
    /// What happens.
    pub trace: Trace,
    /// Who watches.
    pub judge: Judge,
    /// The network.
    pub net: SimNet,
    /// How nodes are set up.
    pub setup: Setup,
    /// The machines.
    pub machines: Vec<Rc<Machine>>,
    /// What holds their processes.
    pub keepers: Vec<Rc<Keeper>>,
    /// The bug in it.
    pub plant: Option<Plant>,
    /// Clients are to stop.
    pub clients_stop: Cell<bool>,
    /// What befell it, and how often.
    pub faults: RefCell<BTreeMap<&'static str, u64>>,
    /// A disk of it has been damaged.
    pub rotten: Cell<bool>,
}

/// What a node's code asks the world it runs in.
struct Around {
    chance: Chance,
    machines: RefCell<Vec<Rc<Machine>>>,
    plant: Option<Plant>,
}

impl Surroundings for Around {
    fn random(&self) -> u64 {
        self.chance.next()
    }

    fn wall_clock(&self) -> Duration {
        const SOME_DAY: i64 = 1_800_000_000_000;
        thread_local!(static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) });
        let began = BEGAN.get().unwrap_or_else(Instant::now);
        BEGAN.set(Some(began));
        let ahead = self.machines.borrow().get(node::running()).map_or(0, |machine| machine.ahead_ms.get());
        let now = SOME_DAY + ahead + i64::try_from(began.elapsed().as_millis()).unwrap_or_default();
        Duration::from_millis(u64::try_from(now).unwrap_or_default())
    }

    fn disk_time(&self) -> Duration {
        let slow = self.machines.borrow().get(node::running()).is_some_and(|machine| machine.slow_disk.get());
        if slow {
            self.chance.millis(20, 300)
        } else {
            self.chance.time(Duration::from_micros(50), Duration::from_millis(4))
        }
    }

    fn planted(&self) -> Option<&'static str> {
        self.plant.map(Plant::name)
    }
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Panics of this thread are kept for the judge instead of being printed.
pub fn keep_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let running = node::running();
            if running == usize::MAX {
                return before(info);
            }
            let what = info.payload().downcast_ref::<&str>().map(|text| (*text).to_owned());
            let what = what.or_else(|| info.payload().downcast_ref::<String>().cloned()).unwrap_or_default();
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            PANICS.with_borrow_mut(|panics| panics.push(format!("n{} panics at {place}: {what}", running + 1)));
        }));
    });
}

/// Runs the world of a seed on this thread; `whole` keeps every line of its trace.
pub fn run(seed: u64, plant: Option<Plant>, whole: bool) -> Outcome {
    keep_panics();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime of one thread needs nothing from the machine");
    let set = tokio::task::LocalSet::new();
    let outcome = set.block_on(&runtime, World::live(seed, plant, whole));
    // What is left of it draws from the world's chance.
    drop(set);
    drop(runtime);
    outcome
}

impl World {
    async fn live(seed: u64, plant: Option<Plant>, whole: bool) -> Outcome {
        let chance = Chance::new(seed);
        let trace = Trace::new(whole);
        let setup = Setup::draw(seed, &chance);
        let net = SimNet::new(chance.fork(), trace.clone());
        let machine = |place| {
            let disk = SimDisk::new(place, chance.fork(), trace.clone(), plant);
            Rc::new(Machine::new(place, disk))
        };
        let machines: Vec<Rc<Machine>> = (0..setup.founders).map(machine).collect();
        let around = Around { chance: chance.fork(), machines: RefCell::new(machines.clone()), plant };
        let _simulated = data_raft::simulate(Rc::new(around));
        trace.say(format!("seed {seed}: {setup:?}"));
        let (judge, starts) = (Judge::new(trace.clone()), Rc::<Cell<u64>>::default());
        let keeper = |place| Keeper::new(place, judge.clone(), chance.fork(), plant, Rc::clone(&starts));
        let keepers = (0..setup.founders).map(keeper).collect();
        let forgets = setup.witness.is_some_and(|(_, limit)| limit < u64::MAX);
        let world = Rc::new(World {
            judge,
            keepers,
            plant,
            chance,
            trace,
            net,
            setup,
            machines,
            clients_stop: Cell::new(false),
            faults: RefCell::default(),
            // One that has lost its vote lacks what the other's disk alone has.
            rotten: Cell::new(forgets),
        });
        world.script().await;
        for machine in &world.machines {
            machine.end(&world.net, false);
        }
        world.look_for_panics();
        let kept = world.keepers.iter().map(|keeper| keeper.kept.get()).sum();
        if kept > 0 {
            world.faults.borrow_mut().insert("a primary's lease kept without a quorum", kept);
        }
        Outcome {
            seed,
            hash: world.trace.hash(),
            lines: world.trace.count(),
            revisions: world.judge.revisions(),
            observations: world.judge.count(),
            lasted: world.trace.elapsed(),
            faults: world.faults.take(),
            violation: world.judge.violation(),
            trace: world.trace.text(),
        }
    }

    /// A fault befalls a machine.
    pub fn befalls(&self, fault: &'static str, place: usize, more: u64) {
        *self.faults.borrow_mut().entry(fault).or_default() += 1;
        self.trace.mark(fault, [place as u64, more, 0, 0]);
    }

    /// Whether something has been violated.
    pub fn is_judged(&self) -> bool {
        self.judge.violation().is_some()
    }

    async fn script(self: &Rc<Self>) {
        for machine in &self.machines {
            self.start(machine);
        }
        for keeper in self.keepers.iter().zip(0..).filter_map(|(keeper, at)| self.setup.has_data(at).then_some(keeper))
        {
            tokio::task::spawn_local(Rc::clone(keeper).keep());
        }
        let looking = tokio::task::spawn_local(Rc::clone(self).look());
        let mut clients = Vec::new();
        for number in 0..3 {
            clients.push(tokio::task::spawn_local(clients::client(Rc::clone(self), number)));
        }
        clients.push(tokio::task::spawn_local(clients::leaseholder(Rc::clone(self), 0)));
        faults::reign(self).await;
        self.clients_stop.set(true);
        if !self.is_judged() {
            self.recover().await;
        }
        for client in clients {
            client.abort();
        }
        if !self.is_judged() {
            let until = Instant::now() + Duration::from_secs(15);
            while !self.is_settled() && Instant::now() < until && !self.is_judged() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.hold().await;
            self.judge.see(&Observation::Over);
        }
        looking.abort();
    }

    /// Starts a machine's node.
    pub fn start(self: &Rc<Self>, machine: &Rc<Machine>) {
        self.trace.mark("start", [machine.place as u64, machine.starts.get() + 1, 0, 0]);
        let (world, opening) = (Rc::clone(self), Rc::clone(machine));
        machine.start(&self.setup, &self.net, move |opened| world.opened(&opening, opened));
        self.net.refuse_old(&node::name(machine.place));
    }

    fn opened(self: &Rc<Self>, machine: &Rc<Machine>, opened: Result<Arc<RaftStore>, String>) {
        let place = machine.place;
        let damaged = machine.damaged.get();
        let error = match &opened {
            // It is no wonder, and the machine ends anyway.
            Err(_) if machine.disk.is_dead() || machine.excused.get() => return,
            Err(error) => Some(error.clone()),
            Ok(_) => None,
        };
        self.trace.say(format!("n{} opened: {error:?}", place + 1));
        self.judge.see(&Observation::Opened { place, error, damaged });
        if let Ok(store) = opened
            && self.setup.has_data(place)
        {
            let (keeper, plant) = (Rc::clone(&self.keepers[place]), self.plant);
            let failsafe = self.setup.failsafe;
            drop(machine.run(promotion::control(place, Arc::clone(&store), keeper, plant, failsafe)));
            tokio::task::spawn_local(watch(self.judge.clone(), place, store));
        }
    }

    /// Looks at what nodes say of themselves, and for what goes wrong inside them.
    async fn look(self: Rc<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look_for_panics();
            for machine in self.machines.iter().filter(|machine| !machine.is_paused()) {
                let Some(store) = machine.store() else { continue };
                let status = store.status();
                let now = (status.role, status.term);
                if machine.said.replace(Some(now)) != Some(now) {
                    self.trace.say(format!("n{} is {:?} in term {}", machine.place + 1, status.role, status.term));
                }
                self.judge.see(&Observation::Looked {
                    place: machine.place,
                    start: machine.starts.get(),
                    role: status.role,
                    term: status.term,
                    revision: status.revision.0,
                    applied: status.applied_index,
                });
            }
        }
    }

    fn look_for_panics(&self) {
        for message in PANICS.take() {
            self.judge.see(&Observation::Panicked { message });
        }
    }

    /// Every node must serve again, and all must stand at the same revision.
    async fn recover(self: &Rc<Self>) {
        let until = Instant::now() + RECOVERY;
        let mut problems: BTreeMap<usize, String> =
            self.machines.iter().map(|machine| (machine.place, "it has not been asked".to_owned())).collect();
        let mut round = 0;
        while !problems.is_empty() && Instant::now() < until && !self.is_judged() {
            round += 1;
            for machine in &self.machines {
                self.nurse(machine);
                if !problems.contains_key(&machine.place) {
                    continue;
                }
                let value = format!("r{}-{round}", machine.place);
                let put = Txn::put(clients::key("k0"), value.clone());
                match clients::write(self, machine.place, "k0", value.into(), put).await {
                    Written::At(_) => drop(problems.remove(&machine.place)),
                    other => {
                        let status = machine.store().map(|store| store.status());
                        let problem = format!("a write is answered {other:?}; {status:?}");
                        problems.insert(machine.place, problem);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Leases that were let go end, and the last entries arrive everywhere.
        tokio::time::sleep(Duration::from_secs(5)).await;
        while self.primaries() != 1 && Instant::now() < until + Duration::from_secs(20) && !self.is_judged() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if self.primaries() != 1 {
            let problem = Some("the service has no primary".to_owned());
            self.judge.see(&Observation::Recovered { place: 0, problem });
        }
        for place in 0..self.machines.len() {
            let problem = problems.remove(&place);
            self.judge.see(&Observation::Recovered { place, problem });
        }
    }

    /// All stand at the same revision, at this moment: processes still come and go, and with them a record now and then.
    fn is_settled(&self) -> bool {
        let revisions: Option<Vec<Revision>> =
            self.with_data().map(|machine| Some(machine.store()?.status().revision)).collect();
        revisions.is_some_and(|revisions| revisions.windows(2).all(|pair| pair[0] == pair[1]))
    }

    /// Machines whose nodes apply what is committed.
    fn with_data(&self) -> impl Iterator<Item = &Rc<Machine>> {
        self.machines.iter().filter(|machine| self.setup.has_data(machine.place))
    }

    fn primaries(&self) -> usize {
        self.keepers.iter().filter(|keeper| keeper.is_primary().is_some()).count()
    }

    /// The machine is without power.
    pub fn power_off(&self, machine: &Machine) {
        machine.end(&self.net, true);
        self.keepers[machine.place].power(false);
    }

    /// What an operator does: starts what is down, and what says that it has stopped for good.
    pub fn nurse(self: &Rc<Self>, machine: &Rc<Machine>) {
        if machine.disk.is_dead() {
            self.power_off(machine);
            machine.disk.power_on();
            self.keepers[machine.place].power(true);
        }
        let stopped_for_good = machine.store().is_some_and(|store| {
            let problem = store.status().not_serving;
            matches!(
                problem,
                Some(
                    NotServing::FlushFailed { .. }
                        | NotServing::WriteFailed { .. }
                        | NotServing::DiskFull { .. }
                        | NotServing::Stopped { .. }
                )
            )
        });
        if stopped_for_good {
            machine.end(&self.net, false);
        }
        if machine.is_up() && machine.store().is_none() && !machine.is_paused() {
            // It did not open: its process would have ended.
            machine.end(&self.net, false);
            if machine.damaged.replace(false) {
                self.trace.mark("wipe", [machine.place as u64, 0, 0, 0]);
                machine.disk.wipe();
                self.judge.see(&Observation::Wiped { place: machine.place });
            }
        }
        machine.excused.set(false);
        machine.disk.mend();
        if !machine.is_up() {
            self.start(machine);
        }
    }

    /// What each node holds.
    async fn hold(&self) {
        for machine in self.with_data() {
            let Some(store) = machine.store() else { continue };
            let read = store.range(RangeRequest::new(KeyRange::all()), Consistency::Stale).await;
            let Ok(read) = read else { continue };
            let pair = |kv: data::KeyValue| {
                (String::from_utf8_lossy(kv.key.as_bytes()).into_owned(), (kv.value, kv.mod_revision.0))
            };
            let pairs = read.kvs.into_iter().map(pair).collect();
            self.judge.see(&Observation::Held { place: machine.place, revision: read.revision.0, pairs });
        }
    }
}

/// Tells the judge what a node's watch brings, until the node ends.
async fn watch(judge: Judge, place: usize, store: Arc<RaftStore>) {
    let mut last = store.status().revision.0;
    judge.see(&Observation::WatchBegan { place, revision: last });
    while let Ok(mut stream) = store.watch(KeyRange::all(), Some(Revision(last + 1))) {
        while let Some(item) = stream.next().await {
            match item {
                WatchItem::Events { revision, events } => {
                    last = revision.0;
                    let changes = events.iter().map(change).collect();
                    judge.see(&Observation::Watched { place, revision: last, changes });
                }
                WatchItem::Compacted(oldest) => {
                    last = oldest.0 - 1;
                    judge.see(&Observation::WatchBegan { place, revision: last });
                    break;
                }
                WatchItem::Progress(_) => {}
                WatchItem::Lagged => {
                    // A snapshot was taken over, perhaps: what it holds is not told by changes.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    break;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn change(event: &data::Event) -> Change {
    let key = String::from_utf8_lossy(event.key().as_bytes()).into_owned();
    match event {
        data::Event::Put(kv) => Change { key, value: Some(kv.value.clone()), lease: kv.lease },
        data::Event::Delete { .. } => Change { key, value: None, lease: None },
    }
}
