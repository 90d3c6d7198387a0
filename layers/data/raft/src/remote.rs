//! The store and the streams of a node that has none: asked of the cluster's servers, over connections to all of them.
//! Any server takes any request and finds the leader itself; the best one is asked (it serves, it answers, and else the
//! same one always), and another one when it fails, within the caller's patience. What was sent and not answered is
//! unknown, unless it may be done twice. The store and the streams have connections of their own, so that a noisy
//! service delays no lease.
//! Deliberately absent: a cache, and a part in any decision.

mod link;
mod store;
mod streams;
mod watch;
pub(crate) mod wire;

pub use store::{RemoteOptions, RemoteStore};
pub use streams::RemoteStreams;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use data::NotServing;
use tokio::sync::{oneshot, watch as signal};
use tokio::time::Instant;

use crate::leading::Again;
use crate::peers::Peers;
use crate::wal::lock;
use link::{Answered, Link, Missed};
use wire::RefusalV1;

/// Longest time until a request has begun at a server that takes it; as on servers.
const PATIENCE: Duration = Duration::from_secs(5);
/// A server that looks for a leader takes as long itself, and its answer is on its way.
const GRACE: Duration = Duration::from_secs(1);
/// Between two looks for a server that takes the request.
const LOOK: Duration = Duration::from_millis(20);
/// Between two looks for servers that there is no connection to.
const DIAL: Duration = Duration::from_millis(100);
/// First pause after a server could not be reached, doubled each time,
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// up to this one;
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// and the pause at an address where a server is that there is a connection to, or a witness.
const CALM: Duration = Duration::from_secs(30);
/// Longest wait, at the end, for what watches have to tell.
const LAST_WORDS_ALL: Duration = Duration::from_millis(1200);
/// Most addresses that are tried.
const MOST: usize = 64;

/// What all requests of one kind share.
pub(crate) struct Core {
    peers: Peers,
    /// The group that is asked for: 0 the store, 1 the streams.
    group: u16,
    links: Mutex<Vec<Arc<Link>>>,
    /// Told when the links change.
    changed: signal::Sender<u64>,
    places: Mutex<BTreeMap<String, Place>>,
    /// Where members are, by the word of one of them.
    members: Mutex<BTreeSet<String>>,
    next_call: AtomicU64,
    /// The newest revision that any answer told of, and whether one did.
    newest: AtomicU64,
    /// Since when no server answers; absent while one does.
    alone_since: Mutex<Option<Instant>>,
    closing: signal::Sender<Stage>,
    pub watches: Mutex<watch::Watches>,
}

/// How far the end is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    Open,
    /// Watches tell what has happened so far.
    Closing,
    Closed,
}

/// An address, and when it is tried.
#[derive(Debug)]
struct Place {
    busy: bool,
    not_before: Instant,
    pause: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
enum Failed {
    Refused { server: Arc<str>, refusal: RefusalV1 },
    Unknown,
    NotServing(NotServing),
    Closed,
}

impl Core {
    fn start(peers: Peers, group: u16) -> Arc<Self> {
        let core = Arc::new(Self {
            peers: peers.clone(),
            group,
            links: Mutex::default(),
            changed: signal::channel(0).0,
            places: Mutex::default(),
            members: Mutex::default(),
            next_call: AtomicU64::new(1),
            newest: AtomicU64::new(0),
            alone_since: Mutex::new(Some(Instant::now())),
            closing: signal::channel(Stage::Open).0,
            watches: Mutex::default(),
        });
        peers.spawn(keep_connected(Arc::downgrade(&core)));
        core
    }

    fn is_closed(&self) -> bool {
        *self.closing.borrow() != Stage::Open
    }

    /// Waits until the end has come so far.
    async fn ends(&self, so_far: Stage) {
        // An error cannot be: the sender is here.
        drop(self.closing.subscribe().wait_for(|stage| *stage >= so_far).await);
    }

    fn shut(&self) {
        self.closing.send_replace(Stage::Closed);
    }

    fn number(&self) -> u64 {
        self.next_call.fetch_add(1, Ordering::Relaxed)
    }

    /// The newest revision known here; none before any server has told one.
    fn newest(&self) -> Option<u64> {
        // A server's state comes before anything else: 1 is revision 0.
        self.newest.load(Ordering::Acquire).checked_sub(1)
    }

    fn saw(&self, revision: u64) {
        self.newest.fetch_max(revision.saturating_add(1), Ordering::AcqRel);
    }

    fn add(&self, link: Arc<Link>) {
        lock(&self.links).push(link);
        *lock(&self.alone_since) = None;
        self.changed.send_modify(|count| *count += 1);
    }

    fn remove(&self, gone: &Arc<Link>) {
        let mut links = lock(&self.links);
        links.retain(|link| !Arc::ptr_eq(link, gone));
        if links.is_empty() {
            lock(&self.alone_since).get_or_insert_with(Instant::now);
        }
        drop(links);
        self.changed.send_modify(|count| *count += 1);
    }

    fn has_link_to(&self, server: u64) -> bool {
        lock(&self.links).iter().any(|link| link.id == server)
    }

    /// The server to ask: one that was not tried yet, serves, and answers; of several, always the same one, and not the
    /// same one for all agents.
    fn best(&self, tried: &BTreeSet<u64>) -> Option<Arc<Link>> {
        let preference = |server: u64| {
            let mut hasher = DefaultHasher::new();
            (&self.peers.inner().options.name, server).hash(&mut hasher);
            hasher.finish()
        };
        let score = |link: &&Arc<Link>| {
            (tried.contains(&link.id), link.is_silent(), link.problem(self.group).is_some(), preference(link.id))
        };
        lock(&self.links).iter().min_by_key(score).cloned()
    }

    /// Why nothing is served now, if so.
    fn not_serving(&self) -> Option<NotServing> {
        match self.best(&BTreeSet::new()) {
            Some(link) => link.problem(self.group).map(|reason| reason.of(&link.name)),
            None => Some(self.unreachable()),
        }
    }

    fn unreachable(&self) -> NotServing {
        let since = lock(&self.alone_since).map_or(Duration::ZERO, |since| since.elapsed());
        let why = self.peers.inner().troubles.now().map_or_else(String::new, |troubles| format!(" ({troubles})"));
        NotServing::Unreachable { since: format!("for {} s", since.as_secs()).into(), why: why.into() }
    }

    /// Asks servers until one has done it, it is refused for good, or the time is up. `each` is how long one of them may
    /// take before another is asked, where it may be done twice.
    async fn ask(&self, payload: Bytes, again: Again, each: Duration) -> Result<Answered, Failed> {
        let until = Instant::now() + PATIENCE;
        let mut tried = BTreeSet::new();
        let mut changed = self.changed.subscribe();
        // Once a write may have been done, no later refusal can say that it was not.
        let mut perhaps_done = false;
        let unless = |perhaps_done: bool, failed: Failed| if perhaps_done { Failed::Unknown } else { failed };
        loop {
            if self.is_closed() {
                return Err(unless(perhaps_done, Failed::Closed));
            }
            let left = until.saturating_duration_since(Instant::now());
            changed.mark_unchanged();
            let failed = match self.best(&tried) {
                None => Failed::NotServing(self.unreachable()),
                Some(link) => {
                    tried.insert(link.id);
                    let patience = if again == Again::Never { left + GRACE } else { each.min(left + GRACE) };
                    let answer = link.ask(self.number(), self.group, payload.clone()).within(patience);
                    let answer = tokio::select! {
                        biased;
                        answer = answer => answer,
                        () = self.better_than(&link), if again != Again::Never => Err(Missed::Lost),
                    };
                    match answer {
                        Ok(answered) => return Ok(answered),
                        Err(Missed::NotSent) => Failed::NotServing(self.unreachable_or(&link)),
                        Err(Missed::Lost) => Failed::Unknown,
                        Err(Missed::Refused(RefusalV1::Unknown)) => Failed::Unknown,
                        Err(Missed::Refused(refusal)) => Failed::Refused { server: Arc::clone(&link.name), refusal },
                    }
                }
            };
            perhaps_done |= again == Again::Writes && matches!(failed, Failed::Unknown);
            let repeat = match &failed {
                Failed::Unknown => again != Again::Never,
                Failed::NotServing(_) => true,
                Failed::Refused { refusal: RefusalV1::NotServing(reason), .. } => reason.may_pass,
                Failed::Refused { .. } | Failed::Closed => false,
            };
            if !repeat || Instant::now() >= until {
                let vague = matches!(failed, Failed::Unknown) && again == Again::Reads;
                let is_certain =
                    matches!(&failed, Failed::Refused { refusal, .. } if !matches!(refusal, RefusalV1::NotServing(_)));
                return Err(match failed {
                    // A read changes nothing, so nothing of it is unknown.
                    _ if vague => Failed::NotServing(self.not_serving().unwrap_or_else(|| self.unreachable())),
                    failed if is_certain => failed,
                    failed => unless(perhaps_done, failed),
                });
            }
            let all_tried = lock(&self.links).iter().all(|link| tried.contains(&link.id));
            if all_tried {
                tried.clear();
                // A server that comes is asked at once.
                let _ = tokio::time::timeout(LOOK, changed.changed()).await;
            }
        }
    }

    /// Until a server is silent or does not serve, and another one does.
    async fn better_than(&self, link: &Arc<Link>) {
        let is_good = |link: &Link| !link.is_silent() && link.problem(self.group).is_none();
        let only = BTreeSet::from([link.id]);
        while is_good(link) || !self.best(&only).is_some_and(|best| best.id != link.id && is_good(&best)) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A connection that could not take the call.
    fn unreachable_or(&self, link: &Link) -> NotServing {
        link.problem(self.group).map_or_else(|| self.unreachable(), |reason| reason.of(&link.name))
    }

    /// Where servers may be.
    fn addresses(&self) -> BTreeSet<String> {
        let inner = self.peers.inner();
        let told = lock(&inner.book).notes().into_iter().map(|note| note.address);
        let members = lock(&self.members).clone();
        inner.options.join.iter().cloned().chain(told).chain(members).take(MOST).collect()
    }
}

/// Connects to every server until this is closed.
async fn keep_connected(core: Weak<Core>) {
    loop {
        let Some(core) = core.upgrade() else { return };
        if *core.closing.borrow() == Stage::Closed {
            return;
        }
        let (wanted, now) = (core.addresses(), Instant::now());
        let mut due = Vec::new();
        {
            let mut places = lock(&core.places);
            places.retain(|address, place| place.busy || wanted.contains(address));
            for address in wanted {
                let new = || Place { busy: false, not_before: now, pause: FIRST_PAUSE };
                let place = places.entry(address.clone()).or_insert_with(new);
                if !place.busy && place.not_before <= now {
                    place.busy = true;
                    due.push(address);
                }
            }
        }
        for address in due {
            core.peers.spawn(connect(Arc::downgrade(&core), address));
        }
        drop(core);
        tokio::time::sleep(DIAL).await;
    }
}

/// Connects to one address, and keeps the connection to its end.
async fn connect(core: Weak<Core>, address: String) {
    let pause = {
        let Some(core) = core.upgrade() else { return };
        let peers = Arc::clone(core.peers.inner());
        match peers.dial_address(&address, None).await {
            Ok(greeted) => {
                // It votes and has no data; or it is known under another address, too.
                let is_of_use = !lock(&peers.book).is_witness(greeted.hello.id) && !core.has_link_to(greeted.hello.id);
                drop(peers);
                if is_of_use {
                    link::run(core, greeted).await;
                    Some(FIRST_PAUSE)
                } else {
                    Some(CALM)
                }
            }
            Err(_) => None,
        }
    };
    let Some(core) = core.upgrade() else { return };
    let mut places = lock(&core.places);
    if let Some(place) = places.get_mut(&address) {
        place.busy = false;
        place.not_before = Instant::now() + pause.unwrap_or(place.pause);
        place.pause = if pause.is_some() { FIRST_PAUSE } else { (place.pause * 2).min(LONGEST_PAUSE) };
    }
}

/// An answer on its way.
struct Answer(oneshot::Receiver<Result<Answered, Missed>>);

impl Answer {
    /// Waits for it, at most so long.
    async fn within(self, patience: Duration) -> Result<Answered, Missed> {
        let answered = tokio::time::timeout(patience, self.0).await;
        // Who is dropped was never written.
        answered.map_or(Err(Missed::Lost), |answer| answer.unwrap_or(Err(Missed::NotSent)))
    }
}
