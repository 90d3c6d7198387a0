//! Apply: committed entries in log order onto the state machine, then events to watchers, then the reply.
//! A panic in here aborts the process: a replica that skipped an entry must not go on.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data::{Applied, Command, Key, LeaseClock, LeaseId, Response, StateMachine, StreamCommand, StreamsState, WatchHub};
use futures_util::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::abort::AbortOnPanic;
use crate::gather::{Line, Waiting};
use crate::options::Options;
use crate::quotas::Quotas;
use crate::snapshot::{self, Image};
use crate::snapshots::{self, Snapshots};
use crate::streams::STREAMS_GROUP;
use crate::streams::part::Part;
use crate::superblock::SnapshotPointerV1;
use crate::surroundings::planted;
use crate::types::{self, Content, Entry, LogId, Proposal, Reply, StoredMembership, Types};
use crate::wal::{Order, Wal, lock};
use crate::witness::Witness;

/// What apply writes and readers read.
pub(crate) struct View {
    pub state: StateMachine,
    /// Of the group of streams; empty in the store's.
    pub streams: StreamsState,
    pub applied: Option<LogId>,
    pub membership: StoredMembership,
}

/// Everything apply touches; shared with the store's handle.
pub(crate) struct Shared {
    pub options: Options,
    pub view: Mutex<View>,
    pub hub: WatchHub,
    pub leases: Mutex<LeaseClock>,
    pub leases_changed: tokio::sync::Notify,
    pub wal: Arc<Wal>,
    pub snapshots: Snapshots,
    /// The entries on disk, in the group of streams.
    pub streams: Option<Part>,
    /// When a node among others last heard of its leader; at first, when it began to listen.
    pub heard: Mutex<Option<Instant>>,
    /// Who waits for a round of a quorum, as the leader,
    pub rounds: Line<(), LogId>,
    /// and where they come out: taken by whoever answers them.
    pub waiting_for_rounds: Mutex<Option<mpsc::Receiver<Waiting<(), LogId>>>>,
    /// What owners of keys may hold.
    pub quotas: Quotas,
    /// What a witness's tasks share; without meaning elsewhere.
    pub witness: Witness,
}

impl Shared {
    /// Starts from a snapshot, or empty.
    pub(crate) fn new(options: Options, wal: Arc<Wal>, image: Option<Image>) -> Self {
        let view = image.map_or_else(
            || View {
                state: StateMachine::default(),
                streams: StreamsState::default(),
                applied: None,
                membership: StoredMembership::default(),
            },
            view_of,
        );
        let hub = WatchHub::new(view.state.revision(), options.history);
        let among_others = options.peers.is_some();
        let streams = (options.group == STREAMS_GROUP).then(|| Part::new(&options));
        let (rounds, waiting) = Line::new();
        let shared = Self {
            options,
            streams,
            view: Mutex::new(view),
            hub,
            leases: Mutex::default(),
            leases_changed: tokio::sync::Notify::new(),
            wal,
            snapshots: Snapshots::default(),
            heard: Mutex::new(among_others.then(Instant::now)),
            rounds,
            waiting_for_rounds: Mutex::new(Some(waiting)),
            quotas: Quotas::default(),
            witness: Witness::default(),
        };
        shared.restart_leases();
        shared
    }

    /// Gives every lease its full time.
    fn restart_leases(&self) {
        let state = lock(&self.view).state.clone();
        let mut leases = lock(&self.leases);
        leases.clear();
        for record in state.leases() {
            leases.start(record.lease, record.ttl, record.renewal, Instant::now().into_std());
        }
        self.leases_changed.notify_one();
    }

    /// Keeps the leader's clock in step with what was applied.
    fn follow_leases(&self, response: &Response) {
        match response {
            Response::LeaseGranted { lease, ttl } => {
                lock(&self.leases).start(*lease, *ttl, 0, Instant::now().into_std())
            }
            Response::LeaseEnded { lease, .. } => lock(&self.leases).remove(*lease),
            Response::LeaseKept { lease } => lock(&self.leases).retry(*lease),
            Response::LeasesRenewed => return self.restart_leases(),
            Response::Txn { .. } | Response::Nothing | Response::Failed(_) => return,
        }
        self.leases_changed.notify_one();
    }

    /// A lease's time to live and keys, as applied.
    pub(crate) fn view_lease(&self, lease: LeaseId) -> Option<(Duration, Vec<Key>)> {
        lock(&self.view).state.lease(lease).map(|(record, keys)| (record.ttl, keys))
    }

    pub(crate) fn image(&self) -> Option<Image> {
        let view = lock(&self.view);
        let mut last = types::log_id_dto(view.applied.as_ref()?);
        if planted("snapshot-forgets-an-entry") {
            last.index = last.index.saturating_sub(1).max(1);
        }
        Some(Image {
            last,
            membership_log: view.membership.log_id().as_ref().map(types::log_id_dto),
            membership: types::membership_dto(view.membership.membership()),
            state: view.state.clone(),
            streams: self.streams.is_some().then(|| view.streams.clone()),
        })
    }
}

fn view_of(image: Image) -> View {
    let membership_log = image.membership_log.map(types::log_id);
    View {
        state: image.state,
        streams: image.streams.unwrap_or_default(),
        applied: Some(types::log_id(image.last)),
        membership: StoredMembership::new(membership_log, types::membership(image.membership)),
    }
}

/// The engine's state machine.
pub(crate) struct Machine {
    shared: Arc<Shared>,
}

impl Machine {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn apply_entry(&self, entry: &Entry) -> io::Result<Reply> {
        let _guard = AbortOnPanic { doing: "applying the log" };
        let commands = match &entry.payload {
            EntryPayload::Normal(Proposal { content: Content::Store(commands), .. }) => commands.len() as u64,
            _ => 1,
        };
        self.shared.snapshots.count_entries(commands, self.shared.options.snapshot_entries);
        let proposal = match &entry.payload {
            EntryPayload::Blank => {
                lock(&self.shared.view).applied = Some(entry.log_id);
                return Ok(Reply::Nothing);
            }
            EntryPayload::Membership(membership) => {
                let mut view = lock(&self.shared.view);
                view.applied = Some(entry.log_id);
                view.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                return Ok(Reply::Nothing);
            }
            EntryPayload::Normal(_) if self.shared.options.is_witness() => {
                lock(&self.shared.view).applied = Some(entry.log_id);
                return Ok(Reply::Nothing);
            }
            EntryPayload::Normal(proposal) => proposal,
        };
        match &proposal.content {
            Content::Store(commands) => {
                let mut view = lock(&self.shared.view);
                view.applied = Some(entry.log_id);
                // Under one lock: whoever looks, or takes a snapshot, finds all of an entry or none of it.
                let mut apply = |command| {
                    if planted("clock-inside-apply") && self.is_early(command) {
                        return Applied {
                            response: Response::Nothing,
                            revision: view.state.revision(),
                            events: vec![],
                        };
                    }
                    view.state.apply(command)
                };
                let applied: Vec<Applied> = commands.iter().map(&mut apply).collect();
                drop(view);
                let answer = |(command, applied): (&Command, Applied)| {
                    let Applied { response, revision, events } = applied;
                    if !planted("expiry-untold") || !matches!(command, Command::LeaseExpire { .. }) {
                        self.shared.hub.publish(revision, events);
                    }
                    self.shared.follow_leases(&response);
                    response
                };
                Ok(Reply::Store(commands.iter().zip(applied).map(answer).collect()))
            }
            Content::Streams(command) => self.apply_to_streams(entry.log_id, command),
        }
    }

    /// A replica that goes by its own clock; for `planted` alone.
    fn is_early(&self, command: &Command) -> bool {
        let Command::LeaseExpire { lease, .. } = command else { return false };
        lock(&self.shared.leases).remaining(*lease, Instant::now().into_std()).is_some_and(|left| !left.is_zero())
    }

    /// First the entry's bytes, then the state that says that they are there.
    fn apply_to_streams(&self, log_id: LogId, command: &StreamCommand) -> io::Result<Reply> {
        let shared = &self.shared;
        let part = shared.streams.as_ref().ok_or_else(|| io::Error::other("this group has no streams"))?;
        let place = lock(&shared.view).streams.place(command);
        if let Some(place) = &place {
            part.write(place, command).inspect_err(|error| shared.wal.close_for_good(error, false))?;
        }
        let (answer, garbage_bytes) = {
            let mut view = lock(&shared.view);
            view.applied = Some(log_id);
            (view.streams.apply(command), view.streams.garbage_bytes())
        };
        part.applied(command, place.is_some());
        if part.garbage(garbage_bytes) >= shared.options.snapshot_log_bytes {
            shared.snapshots.hurry();
        }
        Ok(Reply::Streams(answer))
    }
}

/// A snapshot, by its place on disk.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotFile {
    pub pointer: SnapshotPointerV1,
    /// Its content, if it has just been read.
    pub image: Option<Image>,
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let view = lock(&self.shared.view);
        Ok((view.applied, view.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let response = self.apply_entry(&entry)?;
            if let Some(responder) = responder {
                responder.send(response);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder { shared: self.shared.clone(), image: self.shared.image() }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMetaOf<Types>,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let SnapshotFile { pointer, image } = snapshot;
        let read = || snapshot::read(&*self.shared.options.disk, &self.shared.options.directory, pointer);
        let image = image.map_or_else(read, Ok).map_err(io::Error::other)?;
        self.shared.wal.order_and_wait(|done| Order::SaveSnapshot { pointer, done }).await?;
        self.shared.hub.reset(image.state.revision());
        *lock(&self.shared.view) = view_of(image);
        self.shared.restart_leases();
        if let Some(part) = &self.shared.streams {
            part.restarted();
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<SnapshotOf<Types, SnapshotFile>>, io::Error> {
        current_snapshot(&self.shared)
    }
}

/// Holds the state as it was when the snapshot was asked for.
pub(crate) struct Builder {
    shared: Arc<Shared>,
    image: Option<Image>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    /// Names the newest snapshot: `snapshots` writes them, because there a failure to write one stops nothing.
    async fn build_snapshot(&mut self) -> Result<SnapshotOf<Types, SnapshotFile>, io::Error> {
        if self.shared.wal.superblock().snapshot.is_none() {
            let image = self.image.take().ok_or_else(|| io::Error::other("nothing is applied yet"))?;
            snapshots::write(&self.shared, image).await?;
        }
        current_snapshot(&self.shared)?.ok_or_else(|| io::Error::other("there is no snapshot"))
    }
}

fn current_snapshot(shared: &Shared) -> io::Result<Option<SnapshotOf<Types, SnapshotFile>>> {
    let Some(pointer) = shared.wal.superblock().snapshot else { return Ok(None) };
    let meta =
        snapshot::read_meta(&*shared.options.disk, &shared.options.directory, pointer).map_err(io::Error::other)?;
    let meta = snapshots::meta(&pointer, meta.membership_log, meta.membership);
    Ok(Some(openraft::Snapshot { meta, snapshot: SnapshotFile { pointer, image: None } }))
}
