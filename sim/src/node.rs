//! A simulated machine: a disk, a place in the network, and the tasks of one node process in a `LocalSet` that can be
//! paused, killed, or lose its power together with the disk.

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use data_raft::{Options, PeerOptions, Peers, RaftStore};
use tokio::task::LocalSet;

use crate::chance::Chance;
use crate::disk::SimDisk;
use crate::network::SimNet;

thread_local! {
    static RUNNING: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The machine whose task runs now.
pub fn running() -> usize {
    RUNNING.get()
}

/// What all nodes of a world are set up with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Nodes that form the cluster.
    pub founders: usize,
    /// A snapshot after so many entries.
    pub snapshot_entries: u64,
    /// Entries kept behind it.
    pub entries_behind_snapshot: u64,
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Space held back.
    pub reserve_bytes: u64,
    /// Time without a leader.
    pub election: (Duration, Duration),
    /// The machine whose node votes and has no data, and the bytes of log that it keeps for one that is away.
    pub witness: Option<(usize, u64)>,
    /// Without a quorum primaries go on while every other voter agrees (`cluster.failsafe: keepPrimary`).
    pub failsafe: bool,
}

/// Worlds from this seed on have two nodes with data and a witness,
pub const WITNESS_WORLDS: u64 = 1 << 40;
/// and from this one on primaries that go on without a quorum, some with a witness, some without.
pub const FAILSAFE_WORLDS: u64 = 1 << 41;

impl Setup {
    /// One by chance.
    pub fn draw(seed: u64, chance: &Chance) -> Self {
        let election = *chance.one_of(&[150, 150, 300]);
        let setup = Self {
            founders: if chance.percent(15) { 5 } else { 3 },
            snapshot_entries: *chance.one_of(&[15, 40, 120, 1000]),
            entries_behind_snapshot: *chance.one_of(&[0, 10, 50]),
            segment_bytes: *chance.one_of(&[4096, 8192, 32_768]),
            reserve_bytes: *chance.one_of(&[0, 4096]),
            election: (Duration::from_millis(election), Duration::from_millis(election * 2)),
            witness: None,
            failsafe: seed >= FAILSAFE_WORLDS,
        };
        if seed < WITNESS_WORLDS || (setup.failsafe && chance.percent(70)) {
            return setup;
        }
        let limit = *chance.one_of(&[u64::MAX, 4 * setup.segment_bytes]);
        Self { founders: 3, witness: Some((2, limit)), ..setup }
    }

    /// Whether the machine at a place has data, and runs something.
    pub fn has_data(&self, place: usize) -> bool {
        self.witness.is_none_or(|(witness, _)| witness != place)
    }
}

/// A machine.
pub struct Machine {
    /// Its place among the others, from 0.
    pub place: usize,
    /// Its disk.
    pub disk: SimDisk,
    /// Starts of its node process so far.
    pub starts: Cell<u64>,
    /// Its wall clock is so much ahead of true time, in milliseconds.
    pub ahead_ms: Cell<i64>,
    /// What it said last of itself: its role and term.
    pub said: Cell<Option<(data::RaftRole, u64)>>,
    /// Its disk is slow.
    pub slow_disk: Cell<bool>,
    /// Its disk has failed or is full: it may refuse to open.
    pub excused: Cell<bool>,
    /// Its disk was damaged on purpose since it was last opened.
    pub damaged: Cell<bool>,
    process: RefCell<Option<Process>>,
}

struct Process {
    set: Rc<LocalSet>,
    store: Rc<RefCell<Option<Arc<RaftStore>>>>,
    control: Rc<Control>,
}

struct Control {
    paused: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// Runs the process's tasks; gone once it has ended.
    running: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

impl Control {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// A node's name, which is its address too.
pub fn name(place: usize) -> String {
    format!("n{}", place + 1)
}

impl Machine {
    /// A machine that is off.
    pub fn new(place: usize, disk: SimDisk) -> Self {
        Self {
            place,
            disk,
            starts: Cell::new(0),
            ahead_ms: Cell::new(0),
            said: Cell::new(None),
            slow_disk: Cell::new(false),
            excused: Cell::new(false),
            damaged: Cell::new(false),
            process: RefCell::new(None),
        }
    }

    /// Whether its node process runs, or will once it is not paused any more.
    pub fn is_up(&self) -> bool {
        self.process.borrow().is_some()
    }

    /// Its store, once it is open.
    pub fn store(&self) -> Option<Arc<RaftStore>> {
        self.process.borrow().as_ref()?.store.borrow().clone()
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.process.borrow().as_ref().is_some_and(|process| process.control.paused.get())
    }

    /// Stops its process from running for a while, or lets it go on.
    pub fn pause(&self, paused: bool) {
        if let Some(process) = &*self.process.borrow() {
            process.control.paused.set(paused);
            process.control.wake();
        }
    }

    /// Starts the node process; `opened` is called with what became of opening the store.
    pub fn start(
        self: &Rc<Self>,
        setup: &Setup,
        net: &SimNet,
        opened: impl FnOnce(Result<Arc<RaftStore>, String>) + 'static,
    ) {
        self.starts.set(self.starts.get() + 1);
        let set = Rc::new(LocalSet::new());
        let store = Rc::<RefCell<Option<Arc<RaftStore>>>>::default();
        let options = self.options(setup, net);
        let opening = Rc::clone(&store);
        set.spawn_local(async move {
            let result = RaftStore::open_simulated(options()).await;
            if let Ok(open) = &result {
                *opening.borrow_mut() = Some(Arc::clone(open));
            }
            opened(result.map_err(|error| error.to_string()));
        });
        let tasks = Rc::clone(&set);
        let running: Pin<Box<dyn Future<Output = ()>>> =
            Box::pin(async move { tasks.run_until(pending::<()>()).await });
        let control = Rc::new(Control {
            paused: Cell::new(false),
            waker: RefCell::new(None),
            running: RefCell::new(Some(running)),
        });
        tokio::task::spawn_local(Drive { place: self.place, control: Rc::clone(&control) });
        *self.process.borrow_mut() = Some(Process { set, store, control });
    }

    fn options(&self, setup: &Setup, net: &SimNet) -> impl FnOnce() -> Options + 'static {
        let (setup, net, disk, name, founders) =
            (setup.clone(), net.clone(), self.disk.clone(), name(self.place), (0..setup.founders).map(name).collect());
        let place = self.place;
        move || {
            let founders: Vec<String> = founders;
            let peers = PeerOptions {
                cluster: "sim".into(),
                name: name.clone(),
                advertise: name.clone(),
                join: founders.clone(),
                founders,
                voter: true,
                witness: !setup.has_data(place),
                agent: false,
            };
            Options {
                segment_bytes: setup.segment_bytes,
                snapshot_entries: setup.snapshot_entries,
                entries_behind_snapshot: setup.entries_behind_snapshot,
                reserve_bytes: setup.reserve_bytes,
                election: setup.election,
                patience: Duration::from_secs(2),
                witness_log_bytes: setup.witness.map_or(u64::MAX, |(_, bytes)| bytes),
                peers: Some(Peers::simulated(peers, Arc::new(net.attach(&name)))),
                disk: Arc::new(disk),
                ..Options::new(PathBuf::from("/").join(name))
            }
        }
    }

    /// Runs something as a task of the node process; nothing comes of it if that ends before.
    pub fn run<T: 'static>(
        &self,
        work: impl Future<Output = T> + 'static,
    ) -> impl Future<Output = Option<T>> + 'static {
        let task = self.process.borrow().as_ref().map(|process| process.set.spawn_local(work));
        async move { task?.await.ok() }
    }

    /// The process ends, without a word, wherever it is.
    pub fn end(&self, net: &SimNet, silently: bool) {
        let address = name(self.place);
        if silently {
            net.fall_silent(&address);
        } else {
            net.detach(&address);
        }
        let Some(process) = self.process.borrow_mut().take() else { return };
        RUNNING.set(self.place);
        let running = process.control.running.borrow_mut().take();
        drop(running);
        process.control.wake();
        drop(process);
        RUNNING.set(usize::MAX);
    }
}

/// Polls a node's tasks unless it is paused, until it is killed.
struct Drive {
    place: usize,
    control: Rc<Control>,
}

impl Future for Drive {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut running = self.control.running.borrow_mut();
        let Some(tasks) = running.as_mut() else { return Poll::Ready(()) };
        *self.control.waker.borrow_mut() = Some(cx.waker().clone());
        if self.control.paused.get() {
            return Poll::Pending;
        }
        RUNNING.set(self.place);
        let polled = tasks.as_mut().poll(cx);
        RUNNING.set(usize::MAX);
        polled
    }
}
