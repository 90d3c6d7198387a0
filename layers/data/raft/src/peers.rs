//! The other nodes: who they are, where they are, and calls to them. All groups of a node share one of these.
//! A call is a frame with an answer. Calls of a kind go over a connection of their own ([`Lane`]), so that entries on
//! their way hold up no heartbeat; snapshots have one each. Everything runs apart from the engines, on one thread, but for
//! the entries of streams: a second one that gives way, so that many bytes under way hold up nothing that is small and
//! urgent ([`Inner::spawn_for`]).
//! Deliberately absent: Raft itself (`network.rs` asks through here, `serve.rs` answers).

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use crate::machine::Shared;
use crate::streams::STREAMS_GROUP;
use crate::surroundings;
use crate::transport::{Connection, Transport};
use crate::wal::lock;

pub(crate) mod agents;
pub(crate) mod book;
pub(crate) mod certify;
pub(crate) mod finder;
pub(crate) mod frame;
pub(crate) mod hello;
pub(crate) mod lane;
pub(crate) mod message;
mod segment_lane;
pub(crate) mod serve;
pub(crate) mod snapshot_lane;
pub(crate) mod troubles;

use book::Book;
use frame::{Frame, Kind};
use lane::Call;
use serve::Group;

/// Calls that wait to be sent on one lane; more are refused.
const LANE_CALLS: usize = 4096;

/// A frame that tells something is worth nothing after this time.
const TOLD: Duration = Duration::from_millis(100);
/// How often certificate files are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Who this node is among the others, and how it finds them.
#[derive(Clone, Debug)]
pub struct PeerOptions {
    /// The cluster's name; nodes of another one are refused.
    pub cluster: String,
    /// This node's name, unique in the cluster.
    pub name: String,
    /// Where others reach it (`host:port`).
    pub advertise: String,
    /// Addresses at which other nodes may be; this node's own does no harm.
    pub join: Vec<String>,
    /// Names of the nodes that form the cluster together when none has a store yet.
    pub founders: Vec<String>,
    /// Whether it wants a vote when it joins a cluster that exists.
    pub voter: bool,
    /// It votes and keeps the log, and has no data: it applies nothing.
    pub witness: bool,
    /// It neither votes nor stores, and is no member: see [`RemoteStore`](crate::RemoteStore).
    pub agent: bool,
}

/// What calls are grouped by into connections.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Lane {
    /// Heartbeats, votes, reads, leases: small and urgent.
    Control,
    /// Entries of one group.
    Log(u16),
    /// Commands for the leader of one group.
    Forward(u16),
}

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// It was not sent.
    #[error("{0}")]
    NotSent(Arc<str>),
    /// It was sent, and nobody knows what became of it.
    #[error("no answer: {0}")]
    Lost(Arc<str>),
    /// The other answered that it failed.
    #[error("{0}")]
    Failed(data::StoreError),
}

/// Who this node's store is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub id: u64,
    pub store_id: [u8; 16],
}

/// Where connections live.
enum Home {
    /// On threads of their own: most of them on the first, those with the entries of streams on the second.
    Threads(Handle, Handle),
    /// In a simulated world: where the node is.
    Here,
}

/// All other nodes, from this one's point of view. Cloning shares it; the last clone's end ends all connections.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

pub(crate) struct Inner {
    pub options: PeerOptions,
    pub transport: Arc<dyn Transport>,
    pub identity: OnceLock<Identity>,
    /// This node belongs to a cluster.
    pub member: AtomicBool,
    /// It holds a part of the log, and was never let in.
    pub unlisted: AtomicBool,
    pub book: Mutex<Book>,
    lanes: Mutex<BTreeMap<(u64, Lane), mpsc::Sender<Call>>>,
    pub groups: RwLock<BTreeMap<u16, Arc<Group>>>,
    /// What agents are served with.
    pub agents: agents::Agents,
    /// When this process began, in milliseconds since the Unix epoch.
    pub began_ms: u64,
    /// What last went wrong with whom, so that status and log can say it.
    pub troubles: troubles::Troubles,
    next_call: AtomicU64,
    home: Home,
    stop: watch::Sender<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Peers {
    /// Starts the threads for connections; `transport` is made on the first. Nobody is let in before a store is opened with this.
    ///
    /// # Errors
    /// The transport cannot be made, or there are no threads left.
    pub fn start(
        options: PeerOptions,
        transport: impl FnOnce() -> io::Result<Arc<dyn Transport>> + Send + 'static,
    ) -> io::Result<Self> {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (usual, bulk) = (runtime()?, runtime()?);
        let home = Home::Threads(usual.handle().clone(), bulk.handle().clone());
        let transport = {
            let _context = usual.enter();
            transport()?
        };
        let (stop, stopping) = watch::channel(false);
        let mut threads = Vec::new();
        let begun = run("seawall-peers", usual, stopping.clone(), platform::thread::answer_soon).and_then(|thread| {
            threads.push(thread);
            run("seawall-bulk", bulk, stopping, platform::thread::give_way)
        });
        match begun {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                stop.send_replace(true);
                return Err(error);
            }
        }
        Ok(Self::new(options, transport, home, (stop, threads)))
    }

    /// In a simulated world: connections live where the node is, and end with it.
    pub fn simulated(options: PeerOptions, transport: Arc<dyn Transport>) -> Self {
        Self::new(options, transport, Home::Here, (watch::channel(false).0, Vec::new()))
    }

    fn new(
        options: PeerOptions,
        transport: Arc<dyn Transport>,
        home: Home,
        (stop, threads): (watch::Sender<bool>, Vec<JoinHandle<()>>),
    ) -> Self {
        Self(Arc::new(Inner {
            options,
            transport,
            identity: OnceLock::new(),
            member: AtomicBool::new(false),
            unlisted: AtomicBool::new(false),
            book: Mutex::default(),
            lanes: Mutex::default(),
            groups: RwLock::default(),
            agents: agents::Agents::default(),
            began_ms: surroundings::wall_clock_ms().max(1),
            troubles: troubles::Troubles::default(),
            next_call: AtomicU64::new(1),
            home,
            stop,
            threads: Mutex::new(threads),
        }))
    }

    /// Lets a group's calls in. The first group's identity is the node's, as is whether it is a member already; with them
    /// the doors are opened.
    pub(crate) fn attach(&self, number: u16, (identity, is_member): (Identity, bool), group: Arc<Group>) {
        let inner = &self.0;
        let (disk, directory) = {
            let options = &group.replica.shared.options;
            (Arc::clone(&options.disk), options.directory.clone())
        };
        let mut groups = inner.groups.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        groups.insert(number, group);
        drop(groups);
        let fresh = inner.identity.set(identity).is_ok();
        if fresh {
            inner.member.store(is_member, Ordering::Release);
            lock(&inner.book).keep_in(disk, &directory);
            inner.spawn(serve::accept(Arc::downgrade(inner)));
            inner.spawn(finder::find(Arc::downgrade(inner)));
            self.keep_files_current();
        }
    }

    /// Has the transport look at its files until this node stops.
    pub(crate) fn keep_files_current(&self) {
        self.0.spawn(keep_current(Arc::downgrade(&self.0)));
    }

    /// The group takes no more calls.
    pub(crate) fn detach(&self, gone: &Arc<Shared>) {
        let mut groups = self.0.groups.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // One that was opened after it stays.
        let dropped = groups.extract_if(.., |_, group| Arc::ptr_eq(&group.replica.shared, gone)).collect::<Vec<_>>();
        drop(groups);
        drop(dropped);
    }

    /// Ends every connection.
    pub(crate) fn stop(&self) {
        self.0.stop();
    }

    /// For whom a node waits that is in no cluster yet.
    pub(crate) fn waiting(&self) -> Arc<str> {
        let inner = &self.0;
        let spoken = lock(&inner.book).spoken();
        let here =
            |name: &&String| **name == inner.options.name || spoken.iter().any(|(_, entry)| *entry.name == ***name);
        let missing: Vec<&str> = inner.options.founders.iter().filter(|name| !here(name)).map(String::as_str).collect();
        let troubles = inner.troubles.now().map_or_else(String::new, |troubles| format!(" ({troubles})"));
        let words = match missing[..] {
            [] if inner.options.founders.is_empty() => "waiting to be let in".to_owned(),
            [] => "all founders are here".to_owned(),
            _ => format!("waiting for {}", missing.join(", ")),
        };
        format!("{words}{troubles}").into()
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0
    }

    /// Begins a call. Frames leave in the order of these calls.
    pub(crate) fn begin(&self, to: u64, lane: Lane, kind: Kind, group: u16, payload: Bytes) -> Answer {
        let (reply, answer) = oneshot::channel();
        let call = self.0.next_call.fetch_add(1, Ordering::Relaxed);
        let call = Call { frame: Frame { kind, group, call, payload }, reply };
        let queue = self.lane(to, lane);
        if let Err(error) = queue.try_send(call) {
            let why = match error {
                mpsc::error::TrySendError::Full(_) => "too many calls wait already",
                mpsc::error::TrySendError::Closed(_) => "this node is stopping",
            };
            let (reply, answer) = oneshot::channel();
            // Received below.
            let _ = reply.send(Err(CallError::NotSent(why.into())));
            return Answer(answer);
        }
        Answer(answer)
    }

    /// Calls and waits, at most so long.
    pub(crate) async fn call(
        &self,
        to: u64,
        lane: Lane,
        kind: Kind,
        group: u16,
        payload: Bytes,
        patience: Duration,
    ) -> Result<Bytes, CallError> {
        self.begin(to, lane, kind, group, payload).within(patience).await
    }

    /// Sends a frame to every member that this node has spoken with. Who cannot be reached does without.
    pub(crate) fn tell_members(&self, kind: Kind, group: u16, payload: &Bytes) {
        let members: Vec<u64> = lock(&self.0.book).spoken().into_iter().map(|(id, _)| id).collect();
        for member in members {
            let told = self.begin(member, Lane::Control, kind, group, payload.clone());
            // Whoever does not wait for an answer takes back what was not sent.
            self.spawn(async move { drop(told.within(TOLD).await) });
        }
    }

    fn lane(&self, to: u64, lane: Lane) -> mpsc::Sender<Call> {
        let mut lanes = lock(&self.0.lanes);
        let queue = lanes.entry((to, lane)).or_insert_with(|| {
            let (queue, calls) = mpsc::channel(LANE_CALLS);
            let running = lane::run(Arc::downgrade(&self.0), to, calls);
            match lane {
                Lane::Log(group) | Lane::Forward(group) => self.0.spawn_for(group, running),
                Lane::Control => self.0.spawn(running),
            }
            queue
        });
        queue.clone()
    }

    /// A connection of one's own to a node.
    pub(crate) async fn dial(&self, to: u64) -> io::Result<hello::Greeted> {
        let inner = Arc::clone(&self.0);
        let (done, dialed) = oneshot::channel();
        // Who waits for it may have given up.
        self.0.spawn(async move { drop(done.send(inner.dial(to).await)) });
        dialed.await.unwrap_or_else(|_| Err(io::Error::other("this node is stopping")))
    }

    /// Runs something where connections live.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(work);
    }

    /// Runs something where connections of a group's entries live.
    pub(crate) fn spawn_for(&self, group: u16, work: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn_for(group, work);
    }
}

/// Runs connections on a thread until they are to end.
fn run(name: &str, runtime: Runtime, mut stopping: watch::Receiver<bool>, begin: fn()) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name.into()).spawn(move || {
        begin();
        // An error means that the handle is gone, which is a stop too.
        runtime.block_on(async { drop(stopping.wait_for(|stop| *stop).await) });
        // Ends every connection without waiting for look-ups of names that hang.
        runtime.shutdown_background();
    })
}

/// Has the transport look at its files again and again until the node stops.
async fn keep_current(inner: std::sync::Weak<Inner>) {
    while let Some(transport) = inner.upgrade().map(|inner| Arc::clone(&inner.transport)) {
        transport.look();
        tokio::time::sleep(LOOK).await;
    }
}

impl Inner {
    fn stop(&self) {
        self.stop.send_replace(true);
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        match &self.home {
            Home::Threads(runtime, _) => drop(runtime.spawn(work)),
            Home::Here => drop(surroundings::spawn(work)),
        }
    }

    /// Runs what carries a group's entries: those of streams are many, and give way.
    pub(crate) fn spawn_for(&self, group: u16, work: impl Future<Output = ()> + Send + 'static) {
        match &self.home {
            Home::Threads(_, bulk) if group == STREAMS_GROUP => drop(bulk.spawn(work)),
            Home::Threads(..) | Home::Here => self.spawn(work),
        }
    }

    pub(crate) fn identity(&self) -> Identity {
        *self.identity.get().expect("connections are made after the first group is attached")
    }

    pub(crate) fn group(&self, number: u16) -> Option<Arc<Group>> {
        self.groups.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(&number).cloned()
    }

    /// Connects to a node where it was last heard of, and makes sure that it is the one.
    pub(crate) async fn dial(&self, to: u64) -> io::Result<hello::Greeted> {
        let address = lock(&self.book).address(to);
        let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "its address is not known"))?;
        self.dial_address(&address, Some(to)).await
    }

    pub(crate) async fn dial_address(&self, address: &str, expects: Option<u64>) -> io::Result<hello::Greeted> {
        let greeted = async {
            let connection: Connection = self.transport.connect(address).await?;
            hello::greet(self, connection, expects).await
        };
        let late = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
        let greeted = tokio::time::timeout(hello::PATIENCE, greeted).await.unwrap_or_else(|_| Err(late()));
        self.troubles.note(address, greeted.as_ref().err());
        greeted
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // The last handle may go on one of these very threads.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread for connections to other nodes panicked");
            }
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("options", &self.0.options).finish_non_exhaustive()
    }
}

/// An answer on its way.
pub(crate) struct Answer(oneshot::Receiver<Result<Bytes, CallError>>);

impl Answer {
    /// Waits for it, at most so long.
    pub(crate) async fn within(self, patience: Duration) -> Result<Bytes, CallError> {
        let late = |_| Err(CallError::Lost(format!("nothing came within {} ms", patience.as_millis()).into()));
        let answered = tokio::time::timeout(patience, self.0).await;
        answered
            .map_or_else(late, |answer| answer.unwrap_or_else(|_| Err(CallError::Lost("the connection ended".into()))))
    }
}
