//! One worker: a thread, its runtime, its connections, its pool. Nothing of a connection ever leaves it.
//! Below the whole request walk. Deliberately absent: what a connection does (`connection.rs`).

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use crate::buffer::Spares;
use crate::compress::Encoders;
use crate::entry::{self, Clients, Manner};
use crate::guards::Spared;
use crate::listen::{self, Entrance};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::pool::Pool;
use crate::service::{Instance, Service};
use crate::signal::{Signal, SignalKind};
use crate::table::Table;
use crate::text::Date;

/// What a gateway is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Run,
    Drain,
    Stop,
}

/// What workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) table: Arc<Table>,
    pub(crate) metrics: Metrics,
    pub(crate) signals: mpsc::Sender<Signal>,
    /// Connections open, over all workers.
    pub(crate) open: AtomicUsize,
    /// Told when `open` has become zero.
    pub(crate) empty: Notify,
    pub(crate) doors: Vec<Door>,
    pub(crate) clients: Clients,
}

/// Where a worker takes connections that another one accepted.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) sender: mpsc::Sender<Handed>,
    /// Connections it has.
    pub(crate) load: Arc<AtomicUsize>,
}

/// A connection on its way to its worker.
pub(crate) type Handed = (TcpStream, SocketAddr, Admission);

/// A connection's place among those its listener and the gateway allow.
#[derive(Debug)]
pub(crate) struct Admission {
    shared: Arc<Shared>,
    listener: Arc<Listening>,
    load: Arc<AtomicUsize>,
}

/// A listener as its connections know it.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) manner: Arc<Manner>,
    /// Connections open.
    pub(crate) open: AtomicUsize,
}

impl Admission {
    /// Counts a connection to `worker`; `None` if its listener has as many as it may.
    pub(crate) fn ask(shared: &Arc<Shared>, listener: &Arc<Listening>, worker: usize) -> Option<Self> {
        if listener.open.fetch_add(1, Ordering::Relaxed) >= shared.options.max_connections {
            listener.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        shared.open.fetch_add(1, Ordering::AcqRel);
        shared.metrics.connections().inc();
        let load = shared.doors[worker].load.clone();
        load.fetch_add(1, Ordering::Relaxed);
        Some(Self { shared: shared.clone(), listener: listener.clone(), load })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.listener.open.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.connections().dec();
        if self.shared.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.empty.notify_waiters();
        }
    }
}

/// One worker's own things.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) pool: Pool,
    pub(crate) spares: Spares,
    /// Boxes for requests that guards let in.
    pub(crate) admissions: Spared,
    pub(crate) encoders: Encoders,
    pub(crate) draining: Cell<bool>,
    drains_since: Cell<Option<Instant>>,
    pub(crate) date: RefCell<Date>,
    /// Tasks of connections, woken when draining begins.
    tasks: RefCell<Vec<Option<Waker>>>,
    free_slots: RefCell<Vec<usize>>,
    random: Cell<u64>,
    /// Copies of requests under way.
    pub(crate) copies: Cell<usize>,
}

impl std::ops::Deref for Worker {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// How often pools are swept.
const SWEEP: Duration = Duration::from_secs(1);

/// Connections between two requests are kept for so long when draining begins, in case that another one is coming.
const DRAIN_IDLE: Duration = Duration::from_millis(500);

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, index: usize) -> Self {
        let options = &shared.options;
        Self {
            index,
            pool: Pool::new(options.pool_idle_connections, options.pool_idle_timeout),
            spares: Spares::default(),
            admissions: Spared::default(),
            encoders: Encoders::default(),
            draining: Cell::new(false),
            drains_since: Cell::new(None),
            date: RefCell::default(),
            tasks: RefCell::default(),
            free_slots: RefCell::default(),
            random: Cell::new(RandomState::new().hash_one(index)),
            copies: Cell::new(0),
            shared,
        }
    }

    /// Runs until told to stop. What it spawned ends with its runtime.
    pub(crate) async fn run(
        self: Rc<Self>,
        entrances: Vec<Entrance>,
        mut handed: mpsc::Receiver<Handed>,
        mut phase: watch::Receiver<Phase>,
    ) {
        for entrance in entrances {
            tokio::task::spawn_local(listen::accept(self.clone(), entrance, phase.clone()));
        }
        tokio::task::spawn_local(self.clone().sweep());
        loop {
            tokio::select! {
                Some((stream, peer, admission)) = handed.recv() => self.adopt(stream, peer, admission),
                changed = phase.changed() => {
                    let now = if changed.is_ok() { *phase.borrow_and_update() } else { Phase::Stop };
                    match now {
                        Phase::Run => {}
                        Phase::Drain => self.begin_drain(),
                        Phase::Stop => return,
                    }
                }
            }
        }
    }

    async fn sweep(self: Rc<Self>) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            sweep.tick().await;
            self.pool.sweep().await;
            self.spares.trim();
        }
    }

    fn adopt(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, admission: Admission) {
        match tokio::net::TcpStream::from_std(stream) {
            Ok(stream) => self.serve(stream, peer, admission),
            Err(error) => tracing::warn!(%error, %peer, "connection not taken over"),
        }
    }

    /// Gives a connection its task. A panic in it ends that connection only.
    pub(crate) fn serve(self: &Rc<Self>, stream: tokio::net::TcpStream, peer: SocketAddr, admission: Admission) {
        // Heads and bodies leave in as few writes as possible already: waiting for more only costs time.
        let _ = stream.set_nodelay(true);
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            let manner = admission.listener.manner.clone();
            entry::enter(&worker, stream, peer, &manner).await;
            drop(admission);
        });
    }

    fn begin_drain(&self) {
        self.draining.set(true);
        self.drains_since.set(Some(Instant::now()));
        self.tasks.borrow().iter().flatten().for_each(Waker::wake_by_ref);
    }

    /// When draining closes a connection that is between two requests: a client that sends one at that very moment would
    /// not know what became of it, so those that are in use get an answer first, which says that they are closed.
    pub(crate) fn idle_until(&self) -> Option<Instant> {
        self.drains_since.get().map(|since| since + DRAIN_IDLE)
    }

    /// Registers a connection's task for [`Self::begin_drain`]; the slot is given back by [`Self::leave`].
    pub(crate) fn enter(&self, waker: Waker) -> usize {
        let mut tasks = self.tasks.borrow_mut();
        match self.free_slots.borrow_mut().pop() {
            Some(slot) => {
                tasks[slot] = Some(waker);
                slot
            }
            None => {
                tasks.push(Some(waker));
                tasks.len() - 1
            }
        }
    }

    pub(crate) fn leave(&self, slot: usize) {
        self.tasks.borrow_mut()[slot] = None;
        self.free_slots.borrow_mut().push(slot);
    }

    /// Well-mixed bits (splitmix64), good for balancing and ids, not for secrets.
    pub(crate) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Tells whoever writes events that a guard has something to say. A signal that is lost costs a moment only.
    pub(crate) fn tell_guarded(&self, service: &Service) {
        if self.signals.try_send(Signal::Guarded { service: service.name().clone() }).is_err() {
            self.metrics.signal_dropped();
        }
    }

    /// Tells whoever judges health, unless the same was told just now or nobody listens in time.
    pub(crate) fn signal(&self, service: &Service, instance: &Instance, kind: SignalKind, status: u16) {
        if !instance.may_signal(kind, crate::service::millis(Instant::now())) {
            return;
        }
        let (service, instance) = (service.name().clone(), instance.id.clone());
        let signal = match kind {
            SignalKind::ConnectFailed => Signal::ConnectFailed { service, instance },
            SignalKind::Reset => Signal::Reset { service, instance },
            SignalKind::BadResponse => Signal::BadResponse { service, instance },
            SignalKind::ServerError => Signal::ServerError { service, instance, status },
            SignalKind::TimedOut => Signal::TimedOut { service, instance },
            SignalKind::Spilled => Signal::Spilled { service, instance },
        };
        if self.signals.try_send(signal).is_err() {
            self.metrics.signal_dropped();
        }
    }
}
