//! Start and stop of a voter: recovery in order, then the engine on a thread and runtime of its own, so that no
//! busy caller can starve it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use data::NotServing;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::{BasicNode, Config, ReadPolicy, SnapshotPolicy};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::disk::FileLock;
use crate::joint;
use crate::lock;
use crate::log_store::LogStore;
use crate::machine::{Machine, Shared};
use crate::members;
use crate::network::Network;
use crate::open_error::OpenError;
use crate::options::Options;
use crate::peers::Identity;
use crate::peers::serve::Group;
use crate::replica::Replica;
use crate::saved;
use crate::snapshot;
use crate::snapshots;
use crate::streams;
use crate::superblock::{self, Superblock, SuperblockV1};
use crate::surroundings::{self, planted};
use crate::survivor;
use crate::types::Raft;
use crate::wal::{Order, Wal, need_bytes};
use crate::{leases, wal, witness};

/// Longest wait for the one voter to elect itself; only a stuck disk takes that long.
const ELECTION_WAIT: Duration = Duration::from_secs(30);
/// Bits of a number that a directory draws for itself: exact in every JSON reader.
const ID_BITS: u32 = 53;
/// Followers further behind than this many entries get a snapshot.
const SNAPSHOT_LAG: u64 = 100_000;

/// A running voter.
pub(crate) struct Node {
    pub replica: Replica,
    pub snapshot_requests: tokio::sync::mpsc::Sender<snapshots::Request>,
    stop: std::sync::Mutex<Option<oneshot::Sender<()>>>,
    /// True once everything is flushed and released.
    pub stopped: watch::Receiver<bool>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
    /// Of its own thread; none in a simulated world.
    runtime: Option<tokio::runtime::Handle>,
}

/// A directory that was recovered, before the engine runs.
struct Recovered {
    lock: Box<dyn FileLock>,
    shared: Arc<Shared>,
}

/// Told once the engine runs, or why it does not.
type Ready = Box<dyn FnOnce(Result<Raft, OpenError>) + Send>;

impl Node {
    /// Recovers the directory and returns once the node serves.
    /// A group beside the store's follows the members of `base`, which is the store's.
    pub(crate) fn start(options: Options, base: Option<Replica>) -> Result<Self, OpenError> {
        let Recovered { lock, shared } = recover(options)?;
        let (ready, started) = mpsc::channel();
        // If nobody waits any more, the stop follows at once.
        let ready: Ready = Box::new(move |started| drop(ready.send(started)));
        let (snapshot_requests, requests) = tokio::sync::mpsc::channel(1);
        let (stop, stopping) = oneshot::channel();
        let (finished, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(OpenError::io("make a runtime for", &shared.options.directory))?;
        let handle = runtime.handle().clone();
        let body = {
            let shared = shared.clone();
            move || {
                if shared.streams.is_some() {
                    // With whatever threads it starts: entries are many bytes, what the store commits is few.
                    platform::thread::give_way();
                } else {
                    platform::thread::answer_soon();
                }
                runtime.block_on(run(shared, base, requests, ready, stopping));
                drop(runtime);
                drop(lock);
                finished.send_replace(true);
            }
        };
        let thread = std::thread::Builder::new()
            .name(if shared.streams.is_some() { "seawall-streams" } else { "seawall-raft" }.into())
            .spawn(body)
            .map_err(OpenError::io("start a thread for", &shared.options.directory))?;
        let raft = match started.recv() {
            Ok(Ok(raft)) => raft,
            Ok(Err(error)) => {
                // The thread releases the directory; its result is already told.
                let _ = thread.join();
                return Err(error);
            }
            Err(mpsc::RecvError) => return Err(OpenError::Engine("its thread died".into())),
        };
        let replica = Replica { raft, shared };
        Ok(Self {
            replica,
            snapshot_requests,
            stop: Some(stop).into(),
            stopped,
            thread: Some(thread).into(),
            runtime: Some(handle),
        })
    }

    /// Runs something on the node's own thread until it stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        match &self.runtime {
            Some(runtime) => drop(runtime.spawn(task)),
            None => drop(surroundings::spawn(task)),
        }
    }

    /// The same as tasks of a simulated world.
    pub(crate) async fn start_simulated(options: Options, base: Option<Replica>) -> Result<Self, OpenError> {
        let Recovered { lock, shared } = recover(options)?;
        let (ready, started) = oneshot::channel();
        let ready: Ready = Box::new(move |started| drop(ready.send(started)));
        let (snapshot_requests, requests) = tokio::sync::mpsc::channel(1);
        let (stop, stopping) = oneshot::channel();
        let (finished, stopped) = watch::channel(false);
        let running = shared.clone();
        surroundings::spawn(async move {
            run(running, base, requests, ready, stopping).await;
            drop(lock);
            finished.send_replace(true);
        });
        let died = |_| Err(OpenError::Engine("its task died".into()));
        let raft = started.await.unwrap_or_else(died)?;
        let replica = Replica { raft, shared };
        Ok(Self { replica, snapshot_requests, stop: Some(stop).into(), stopped, thread: None.into(), runtime: None })
    }

    /// Begins the orderly stop; `stopped` tells when it is done.
    pub(crate) fn begin_stop(&self) {
        if let Some(stop) = wal::lock(&self.stop).take() {
            // The thread may have died: then there is nothing to stop.
            let _ = stop.send(());
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.begin_stop();
        let thread = wal::lock(&self.thread).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the consensus thread panicked");
        }
        // Who was killed in a simulated world has had no time for it, and the two would keep each other.
        if let Some(peers) = &self.replica.shared.options.peers {
            peers.detach(&self.replica.shared);
        }
    }
}

fn recover(mut options: Options) -> Result<Recovered, OpenError> {
    let lock = lock::lock_directory(&options.directory, &*options.disk)?;
    let superblock = open_superblock(&options)?;
    options.node_id = superblock.content().node_id;
    lock::reserve(&options)?;
    let pointer = superblock.content().snapshot;
    let image = pointer.map(|pointer| snapshot::read(&*options.disk, &options.directory, pointer)).transpose()?;
    let wal = Arc::new(Wal::open(&options, superblock)?);
    let shared = Arc::new(Shared::new(options, wal, image));
    check_segments(&shared)?;
    Ok(Recovered { lock, shared })
}

/// Everything that the snapshot names must be on disk: it was flushed before the snapshot was.
fn check_segments(shared: &Shared) -> Result<(), OpenError> {
    let Some(part) = &shared.streams else { return Ok(()) };
    let streams = wal::lock(&shared.view).streams.clone();
    for (_, record) in streams.streams() {
        for segment in &record.segments {
            let name = (record.id, segment.first);
            let checked = part.segments.check(name, segment.bytes);
            checked.map_err(|error| OpenError::corrupt(&part.segments.path(name), 0, error.to_string()))?;
        }
    }
    Ok(())
}

/// A number that no other data directory has.
pub(crate) fn draw_number() -> u64 {
    surroundings::drawn_id().as_u64_pair().1 & ((1 << ID_BITS) - 1)
}

fn open_superblock(options: &Options) -> Result<Superblock, OpenError> {
    let directory = &options.directory;
    survivor::check_finished(directory)?;
    if let Some(superblock) = Superblock::read(&*options.disk, directory)? {
        check_role(options, superblock.is_witness())?;
        saved::forget_restored(options)?;
        let SuperblockV1 { node_id, group, .. } = superblock.content();
        if *group != options.group || ((options.peers.is_none() || *group != 0) && *node_id != options.node_id) {
            return Err(OpenError::ForeignFile { file: superblock.path().to_path_buf() });
        }
        return Ok(superblock);
    }
    let names = options.disk.list(directory).map_err(OpenError::io("list", directory))?;
    let is_restored = options.group == 0 && names.iter().any(|name| name == saved::RESTORED);
    // A start that was cut off may have written a snapshot of what is restored.
    if names.iter().any(|name| name.starts_with("wal-") || (name.starts_with("snapshot-") && !is_restored)) {
        let path = directory.join(superblock::FILE_NAME);
        return Err(OpenError::corrupt(
            &path,
            0,
            "there is a log but both copies of the superblock are invalid or gone",
        ));
    }
    let mut content = SuperblockV1 {
        store_id: *surroundings::drawn_id().as_bytes(),
        node_id: if options.peers.is_some() && options.group == 0 { draw_number() } else { options.node_id },
        group: options.group,
        vote: None,
        purged: None,
        snapshot: None,
        newest_segment: 0,
        clean_end: None,
    };
    if is_restored {
        check_role(options, false)?;
        saved::take_over(options, &mut content)?;
    }
    let created =
        Superblock::create(&*options.disk, directory, options.is_witness(), content).map_err(|source| match source
            .kind()
        {
            io::ErrorKind::StorageFull => {
                OpenError::DiskFull { directory: directory.clone(), need_bytes: need_bytes(options) }
            }
            _ => OpenError::Io { action: "make the superblock in", file: directory.clone(), source },
        })?;
    saved::forget_restored(options)?;
    Ok(created)
}

/// A directory is a witness's, or it is not, for ever.
fn check_role(options: &Options, was_witness: bool) -> Result<(), OpenError> {
    let name = |is_witness| if is_witness { "witness" } else { "server" };
    let (was, wanted) = (name(was_witness), name(options.is_witness()));
    if was == wanted { Ok(()) } else { Err(OpenError::OtherRole { directory: options.directory.clone(), was, wanted }) }
}

/// The body of the consensus thread.
async fn run(
    shared: Arc<Shared>,
    base: Option<Replica>,
    requests: tokio::sync::mpsc::Receiver<snapshots::Request>,
    ready: Ready,
    stop: oneshot::Receiver<()>,
) {
    match start_engine(&shared).await {
        Ok(raft) => {
            let expiry = surroundings::spawn(leases::expire(raft.clone(), shared.clone()));
            let leaders = surroundings::spawn(notice_leaders(raft.clone(), shared.clone()));
            let snapshots = surroundings::spawn(snapshots::run(raft.clone(), shared.clone(), requests));
            let replica = Replica { raft: raft.clone(), shared: shared.clone() };
            let rounds = surroundings::spawn(replica.clone().hold_rounds());
            let witnessing = shared.options.is_witness().then(|| {
                let (replica, base) = (replica.clone(), base.clone());
                surroundings::spawn(witness::keep(replica, base))
            });
            // The streams' members are changed by one alone, which finishes what it finds.
            let is_base = shared.options.group == 0 && shared.options.peers.is_some();
            let changing = is_base.then(|| surroundings::spawn(joint::look_after(replica.clone())));
            let keeping = surroundings::spawn(streams::keep(replica, base));
            ready(Ok(raft.clone()));
            let _ = stop.await;
            if let Some(peers) = shared.options.peers.as_ref() {
                members::step_aside(&Replica { raft: raft.clone(), shared: shared.clone() }).await;
                peers.detach(&shared);
            }
            expiry.abort();
            leaders.abort();
            snapshots.abort();
            if let Some(witnessing) = witnessing {
                witnessing.abort();
            }
            if let Some(changing) = changing {
                changing.abort();
            }
            keeping.abort();
            rounds.abort();
            if let Err(error) = raft.shutdown().await {
                tracing::error!(%error, "the consensus engine did not stop cleanly");
            }
            close(&shared).await;
            // The other groups stop before the store's.
            if let Some(peers) = shared.options.peers.as_ref().filter(|_| shared.options.group == 0) {
                peers.stop();
            }
        }
        Err(error) => {
            close(&shared).await;
            ready(Err(error));
        }
    }
}

/// A leader that is new is given its time: what was heard before was another's, or this node led itself.
async fn notice_leaders(raft: Raft, shared: Arc<Shared>) {
    let mut server = raft.server_metrics();
    let mut known = None;
    loop {
        let leader = server.borrow_watched().current_leader;
        if leader.is_some() && leader != known && shared.options.peers.is_some() {
            *wal::lock(&shared.heard) = Some(Instant::now());
        }
        known = leader;
        if server.changed().await.is_err() {
            return;
        }
    }
}

async fn close(shared: &Shared) {
    shared.hub.close();
    shared.snapshots.join();
    if let Err(error) = shared.wal.order_and_wait(|done| Order::Close { done }).await {
        tracing::warn!(%error, "the log was not closed in good order");
    }
    shared.wal.join();
}

async fn start_engine(shared: &Arc<Shared>) -> Result<Raft, OpenError> {
    let id = shared.options.node_id;
    let log = LogStore::new(shared.wal.clone());
    let engine = |error: &dyn std::fmt::Display| start_error(shared, error);
    let config = Arc::new(config(&shared.options).map_err(|error| OpenError::Engine(error.to_string()))?);
    let network = Network { peers: shared.options.peers.clone(), shared: shared.clone() };
    let raft =
        Raft::new(id, config, network, log, Machine::new(shared.clone())).await.map_err(|error| engine(&error))?;
    if let Some(peers) = &shared.options.peers {
        let identity = Identity { id, store_id: shared.wal.superblock().store_id };
        // Known before anybody is answered: whoever heard from a member that it is new would form a second cluster.
        let is_member = raft.is_initialized().await.map_err(|error| engine(&error))?;
        let replica = Replica { raft: raft.clone(), shared: shared.clone() };
        peers.attach(shared.options.group, (identity, is_member), Arc::new(Group { replica }));
        return Ok(raft);
    }
    if raft.is_initialized().await.map_err(|error| engine(&error))? {
        raft.trigger().elect(false).await.map_err(|error| engine(&error))?;
    } else {
        let alone = BTreeMap::from([(id, BasicNode::default())]);
        raft.initialize(alone).await.map_err(|error| engine(&error))?;
    }
    let wait = raft.wait(Some(ELECTION_WAIT));
    let _ =
        wait.state(openraft::ServerState::Leader, "one voter elects itself").await.map_err(|error| engine(&error))?;
    let _ = raft.ensure_linearizable(ReadPolicy::ReadIndex).await.map_err(|error| engine(&error))?;
    Ok(raft)
}

/// The log's own reason says more than the engine's.
fn start_error(shared: &Shared, error: &dyn std::fmt::Display) -> OpenError {
    match shared.wal.health() {
        Some(NotServing::DiskFull { need_bytes, .. }) => {
            OpenError::DiskFull { directory: shared.options.directory.clone(), need_bytes }
        }
        Some(reason) => OpenError::Engine(reason.to_string()),
        None => OpenError::Engine(error.to_string()),
    }
}

fn config(options: &Options) -> Result<Config, openraft::ConfigError> {
    let among_others = options.peers.is_some();
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Config {
        cluster_name: format!("group-{}", options.group),
        election_timeout_min: milliseconds(options.election.0),
        election_timeout_max: milliseconds(options.election.1),
        heartbeat_interval: milliseconds(options.election.0) / 3,
        replication_lag_threshold: SNAPSHOT_LAG,
        backoff: "20ms 40ms ...500ms".into(),
        // `snapshots` decides.
        snapshot_policy: SnapshotPolicy::Never,
        // `witness` decides what one drops.
        max_in_snapshot_log_to_keep: match options.is_witness() {
            true if planted("witness-snapshot") => 0,
            true => u64::MAX,
            false => options.entries_behind_snapshot,
        },
        enable_pre_vote: Some(options.pre_vote),
        // One voter needs no heartbeat and no timeout: an idle store wakes nobody.
        enable_tick: among_others,
        enable_heartbeat: among_others,
        // A witness stands when nobody else can win: see `witness`.
        enable_elect: among_others && !options.is_witness(),
        // A new term at every start, so that no entry of the old term can be confused with one that was cut off.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
    .validate()
}
