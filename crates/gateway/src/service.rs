//! A service's stable handle and the endpoints behind it.
//! What balance, hold and forward work on. Endpoints are swapped whole; requests in flight, suspicion, the waiting
//! room and metric handles belong to the handle and its instances and survive every swap.
//! Deliberately absent: who is ready or primary (told), which one to take (`balance.rs`).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use guard::{HoldPolicy, Latency, Places};
use model::{Epoch, InstanceId, ServiceName, VersionName};
use tokio::sync::Notify;

use crate::ended::Ends;
use crate::guards::{Fuse, Guards, Line, Meter, Notes, Row};
use crate::handshake::Distrust;
use crate::hold::WaitingRoom;
use crate::metrics::{InstanceMetrics, Metrics, ServiceMetrics};
use crate::options::Balance;
use crate::proxy_protocol::ProxyVersion;
use crate::retired::Retired;
use crate::shares::Shares;
use crate::signal::{COALESCE_MS, SIGNAL_KINDS, SignalKind};
use crate::tls::ClientTls;

/// Who may take a service's requests.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Selection {
    /// Any ready instance (active-active).
    #[default]
    Any,
    /// Only the primary of this epoch (primary-standby); `None`: nobody is primary at this moment.
    Primary(Option<(InstanceId, Epoch)>),
}

/// Whether an instance takes requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It does.
    Ready,
    /// Its readiness probe fails, or it starts.
    NotReady,
    /// It finishes what it has.
    Draining,
}

/// One instance as the control plane sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which instance.
    pub id: InstanceId,
    /// Where it listens.
    pub address: SocketAddr,
    /// The version it runs.
    pub version: Option<VersionName>,
    /// Whether it takes requests.
    pub readiness: Readiness,
    /// Its share; zero takes none.
    pub weight: u32,
    /// On this node (or in this region): preferred.
    pub local: bool,
}

/// Everything the gateway knows about a service at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Who may take requests.
    pub selection: Selection,
    /// All instances, ready or not.
    pub endpoints: Vec<Endpoint>,
    /// A promotion or switch is under way: requests wait even if an instance looks ready.
    pub holding: bool,
    /// How requests wait when nobody can take them; `None`: they are answered 503 at once.
    pub hold: Option<HoldPolicy>,
    /// Bodies up to so many bytes are kept so that the request can be sent again.
    pub replay_limit: usize,
    /// How instances share requests.
    pub balance: Balance,
    /// How instances are spoken to.
    pub upstream: Upstream,
    /// The most requests of an instance at once, for those that have a bound. Workers look at it, each by itself: one more
    /// may get there for each of them.
    pub max_requests: BTreeMap<InstanceId, u32>,
}

/// What an instance expects of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Upstream {
    /// HTTP/2, by prior knowledge in the clear and by ALPN under TLS; else HTTP/1.1.
    pub http2: bool,
    /// Under TLS.
    pub tls: Option<ClientTls>,
    /// Each connection begins with a PROXY header that names the client; it then serves that client's request alone.
    pub proxy_protocol: Option<ProxyVersion>,
}

impl Upstream {
    /// Whether a connection may serve requests of several clients.
    pub(crate) fn is_reusable(&self) -> bool {
        self.proxy_protocol.is_none()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

impl Default for Endpoints {
    fn default() -> Self {
        Self {
            selection: Selection::Any,
            endpoints: Vec::new(),
            holding: false,
            hold: None,
            replay_limit: 64 * 1024,
            balance: Balance::default(),
            upstream: Upstream::default(),
            max_requests: BTreeMap::new(),
        }
    }
}

/// Endpoints of an older epoch than one already in force: refused, nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("endpoints of epoch {offered} refused: epoch {current} is in force")]
pub struct StaleEpoch {
    /// What came.
    pub offered: Epoch,
    /// What is in force.
    pub current: Epoch,
}

/// A service's handle: one per name and gateway.
#[derive(Debug)]
pub struct Service {
    name: ServiceName,
    pub(crate) all_metrics: Metrics,
    pub(crate) metrics: ServiceMetrics,
    resolved: ArcSwap<Resolved>,
    instances: Mutex<Instances>,
    pub(crate) room: WaitingRoom,
    pub(crate) turn: AtomicUsize,
    /// Told after each change of a primary.
    pub(crate) swapped: Notify,
    /// What guards its traffic, if anything does.
    pub(crate) guards: ArcSwapOption<Guards>,
    pub(crate) notes: Notes,
    /// What passes it, for rules of others.
    pub(crate) meter: Meter,
    /// Requests that are sent again.
    pub(crate) retries: Arc<Line>,
}

#[derive(Debug, Default)]
pub(crate) struct Instances {
    pub(crate) by_id: HashMap<InstanceId, Arc<Instance>>,
    /// No longer listed, with requests left.
    leaving: Vec<Arc<Instance>>,
    epoch: Epoch,
    /// How often endpoints were put in force.
    pub(crate) swaps: u64,
    retired: Retired<Resolved>,
}

/// Endpoints with their instances' state at hand.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) told: Endpoints,
    /// Parallel to `told.endpoints`.
    pub(crate) instances: Vec<Arc<Instance>>,
    pub(crate) shares: Shares,
    /// Parallel to `told.endpoints`: the most requests of each at once. Empty where none has a bound.
    pub(crate) most: Vec<u32>,
    /// How many swaps there had been, this one included.
    pub(crate) swap: u64,
}

/// What the gateway keeps about one instance across swaps.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Unique in this process: pools are kept by it.
    pub(crate) key: u64,
    pub(crate) id: InstanceId,
    pub(crate) metrics: Arc<InstanceMetrics>,
    /// The last swap of its service that named it.
    listed: AtomicU64,
    /// No endpoint names it any more.
    pub(crate) removed: AtomicBool,
    pub(crate) ends: Ends,
    /// Milliseconds (of [`millis`]) until which it is avoided; zero: it is not.
    suspect_until_ms: AtomicU64,
    /// When a held request may try it again.
    probe_at_ms: AtomicU64,
    /// Failures in a row, and what came of them.
    pub(crate) row: Row,
    /// Its own breaker, where instances have one.
    pub(crate) fuse: Fuse,
    /// How long its answers take ([`Latency`]), where balance asks.
    latency: AtomicU64,
    signalled_ms: [AtomicU64; SIGNAL_KINDS],
    /// One bit for each [`Distrust`] that was told.
    distrusts_told: AtomicU8,
}

impl Service {
    pub(crate) fn new(name: ServiceName, all_metrics: Metrics) -> Self {
        Self {
            metrics: all_metrics.service(name.as_str()),
            name,
            all_metrics,
            resolved: ArcSwap::default(),
            instances: Mutex::default(),
            room: WaitingRoom::default(),
            turn: AtomicUsize::new(0),
            swapped: Notify::new(),
            guards: ArcSwapOption::default(),
            notes: Notes::default(),
            meter: Meter::default(),
            retries: Arc::new(Line::new(Places { max: 1, pending: 0 })),
        }
    }

    /// Its name.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// Puts endpoints in force and wakes held requests. Local suspicion of instances ends with it.
    ///
    /// # Errors
    /// [`StaleEpoch`] if a primary's epoch is older than one seen before; then nothing has changed.
    pub fn set_endpoints(&self, endpoints: Endpoints) -> Result<(), StaleEpoch> {
        let mut known = self.lock();
        if let Selection::Primary(Some((_, offered))) = endpoints.selection {
            if offered < known.epoch {
                return Err(StaleEpoch { offered, current: known.epoch });
            }
            known.epoch = offered;
        }
        known.swaps += 1;
        let before = self.resolved();
        let instances = self.instances(&mut known, &before, &endpoints.endpoints);
        known.mark_leaving(&before);
        let has_primary = endpoints.selection != Selection::Any;
        let shares = Shares::of(&endpoints);
        let swap = known.swaps;
        let most = |endpoint: &Endpoint| endpoints.max_requests.get(&endpoint.id).copied().unwrap_or(u32::MAX);
        let bounded = !endpoints.max_requests.is_empty();
        let most = if bounded { endpoints.endpoints.iter().map(most).collect() } else { Vec::new() };
        let after = Arc::new(Resolved { told: endpoints, instances, shares, most, swap });
        self.resolved.store(after.clone());
        if let Some(guards) = self.guards.load_full() {
            guards.swapped(&before, &after, &self.notes);
        }
        self.forget_left(&mut known);
        known.retired.add(before);
        drop(known);
        self.room.release(Instant::now());
        if has_primary {
            self.swapped.notify_waiters();
        }
        Ok(())
    }

    /// Requests an instance has now, over all workers; zero for one never seen. Whoever drains waits for zero.
    pub fn in_flight(&self, id: &InstanceId) -> usize {
        self.lock().by_id.get(id).map_or(0, |instance| instance.in_flight())
    }

    /// Endpoints that take requests now, of one version or of all.
    pub fn ready(&self, version: Option<&VersionName>) -> usize {
        let resolved = self.resolved();
        let takes = |endpoint: &&Endpoint| {
            endpoint.readiness == Readiness::Ready
                && endpoint.weight > 0
                && version.is_none_or(|version| endpoint.version.as_ref() == Some(version))
        };
        resolved.told.endpoints.iter().filter(takes).count()
    }

    /// Requests that wait for a switch now.
    pub fn held(&self) -> usize {
        self.room.waiting()
    }

    /// Takes the service's series out of the registry; handles in use go on unseen.
    pub(crate) fn forget_metrics(&self) {
        for instance in self.lock().by_id.values() {
            self.all_metrics.remove_instance(instance.key);
        }
        self.all_metrics.remove_service(self.name.as_str());
    }

    pub(crate) fn resolved(&self) -> Arc<Resolved> {
        self.resolved.load_full()
    }

    /// Each endpoint's instance, the known one or a new one. Lists change little from one to the next, so an instance
    /// is looked for where the one before it stood, and by its id only if it is not there.
    fn instances(&self, known: &mut Instances, before: &Resolved, endpoints: &[Endpoint]) -> Vec<Arc<Instance>> {
        let mut next = 0;
        let mut instances = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let stands_at =
                |place: &usize| before.told.endpoints.get(*place).is_some_and(|told| told.id == endpoint.id);
            let instance = match [next, next + 1].into_iter().find(stands_at) {
                Some(place) => {
                    next = place + 1;
                    before.instances[place].clone()
                }
                None => self.instance(known, &endpoint.id),
            };
            instance.trust();
            instance.listed.store(known.swaps, Ordering::Relaxed);
            instances.push(instance);
        }
        instances
    }

    fn instance(&self, known: &mut Instances, id: &InstanceId) -> Arc<Instance> {
        if let Some(instance) = known.by_id.get(id) {
            return instance.clone();
        }
        let instance = Arc::new(Instance::new(id.clone(), &self.name, &self.all_metrics));
        known.by_id.insert(id.clone(), instance.clone());
        instance
    }

    /// Instances that are gone and have no request left.
    fn forget_left(&self, known: &mut Instances) {
        let by_id = &mut known.by_id;
        known.leaving.retain(|instance| {
            let keep = instance.in_flight() > 0;
            if !keep {
                by_id.remove(&instance.id);
                self.all_metrics.remove_instance(instance.key);
            }
            keep
        });
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Instances> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolved {
    /// Whether an instance has as many requests as it may.
    pub(crate) fn is_full(&self, index: usize) -> bool {
        self.most.get(index).is_some_and(|most| self.instances[index].in_flight() >= *most as usize)
    }
}

impl Instances {
    /// Whoever was listed and is not any more leaves; whoever came back stays.
    fn mark_leaving(&mut self, before: &Resolved) {
        let is_listed = |instance: &Arc<Instance>| instance.listed.load(Ordering::Relaxed) == self.swaps;
        self.leaving.retain(|instance| {
            let listed = is_listed(instance);
            instance.removed.store(!listed, Ordering::Relaxed);
            !listed
        });
        for instance in before.instances.iter().filter(|instance| !is_listed(instance)) {
            instance.removed.store(true, Ordering::Relaxed);
            self.leaving.push(instance.clone());
        }
    }
}

impl Instance {
    fn new(id: InstanceId, service: &ServiceName, metrics: &Metrics) -> Self {
        static KEYS: AtomicU64 = AtomicU64::new(0);
        let key = KEYS.fetch_add(1, Ordering::Relaxed);
        Self {
            key,
            metrics: metrics.instance(key, service, &id),
            id,
            listed: AtomicU64::new(0),
            removed: AtomicBool::new(false),
            ends: Ends::default(),
            suspect_until_ms: AtomicU64::new(0),
            probe_at_ms: AtomicU64::new(0),
            row: Row::default(),
            fuse: Fuse::default(),
            latency: AtomicU64::new(Latency::default().pack()),
            signalled_ms: Default::default(),
            distrusts_told: AtomicU8::new(0),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        usize::try_from(self.metrics.in_flight.get()).unwrap_or(0)
    }

    /// Local evidence against it: others are taken for a while.
    pub(crate) fn suspect(&self, now: Instant, avoid: Duration, probe_interval: Duration) {
        let now_ms = millis(now);
        self.suspect_until_ms.store(now_ms + avoid.as_millis() as u64, Ordering::Relaxed);
        self.probe_at_ms.store(now_ms + probe_interval.as_millis() as u64, Ordering::Relaxed);
    }

    /// It answered, or the control plane spoke. Says whether it had been suspected.
    pub(crate) fn trust(&self) -> bool {
        // A load first: this runs for each response, and a store would pull the line away from other workers.
        self.suspect_until_ms.load(Ordering::Relaxed) != 0 && self.suspect_until_ms.swap(0, Ordering::Relaxed) != 0
    }

    pub(crate) fn is_suspect(&self, now_ms: u64) -> bool {
        self.suspect_until_ms.load(Ordering::Relaxed) > now_ms
    }

    /// When a held request may try it, in [`millis`].
    pub(crate) fn probe_at_ms(&self) -> u64 {
        self.probe_at_ms.load(Ordering::Relaxed)
    }

    /// Takes the one try that is due; everybody else waits for the next.
    pub(crate) fn claim_probe(&self, now_ms: u64, probe_interval: Duration) -> bool {
        let due = self.probe_at_ms();
        let next = now_ms + probe_interval.as_millis() as u64;
        due <= now_ms && self.probe_at_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// An answer of it began after this long, or did not come for this long. `failed`: at least as long as one that is good.
    pub(crate) fn took(&self, took: Duration, failed: bool, now: Instant) {
        let (now_ms, known) = (millis(now), Latency::unpack(self.latency.load(Ordering::Relaxed)));
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // Who fails quickly must not be preferred for it.
        let micros = if failed { micros.max(known.micros(now_ms)) } else { micros };
        // Of two that end at once one is lost, which changes little.
        self.latency.store(known.observe(micros, now_ms).pack(), Ordering::Relaxed);
    }

    /// What one more request weighs on it, beside those in flight.
    pub(crate) fn latency(&self, in_flight: u64, now_ms: u64) -> u64 {
        Latency::unpack(self.latency.load(Ordering::Relaxed)).cost(in_flight, now_ms)
    }

    /// Whether this has not been told since TLS with it last worked.
    pub(crate) fn is_new(&self, distrust: Distrust) -> bool {
        let bit = 1 << distrust as u8;
        self.distrusts_told.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// TLS with it works.
    pub(crate) fn believe(&self) {
        if self.distrusts_told.load(Ordering::Relaxed) != 0 {
            self.distrusts_told.store(0, Ordering::Relaxed);
        }
    }

    /// Whether a signal of this kind may leave now.
    pub(crate) fn may_signal(&self, kind: SignalKind, now_ms: u64) -> bool {
        let last = &self.signalled_ms[kind as usize];
        let before = last.load(Ordering::Relaxed);
        (before == 0 || now_ms >= before + COALESCE_MS)
            && last.compare_exchange(before, now_ms.max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Milliseconds since some moment of this process's life, never zero: instants that fit an atomic.
pub(crate) fn millis(now: Instant) -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    now.saturating_duration_since(*BEGIN).as_millis() as u64 + 1
}

#[cfg(test)]
mod tests;
