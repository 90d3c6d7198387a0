//! Keep-alive connections to instances, one pool per worker: no lock, no crossing of threads.
//! Used at the begin and end of each forward. Bounded per instance and in age; a connection whose peer has closed is
//! never handed out. Deliberately absent: making connections (`forward.rs`).

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::balance::Taken;
use crate::buffer::{Buffer, Spares};
use crate::carrier::Wire;
use crate::ended::Ending;
use crate::http2;
use crate::service::Instance;

/// A connection to an instance, in use. In a box from its begin to its end: it goes from hand to hand with every request.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) wire: Wire,
    pub(crate) input: Buffer,
    /// It has served a request before.
    pub(crate) reused: bool,
    address: SocketAddr,
    instance: Arc<Instance>,
    /// The swap by whose endpoints it was made.
    swap: u64,
}

impl Link {
    pub(crate) fn new(wire: Wire, address: SocketAddr, instance: Arc<Instance>, swap: u64) -> Box<Self> {
        instance.metrics.pool_busy.inc();
        Box::new(Self { wire, input: Buffer::default(), reused: false, address, instance, swap })
    }

    /// The process at its other end is no more.
    pub(crate) fn is_lost(&self) -> bool {
        self.instance.ends.is_before(self.swap)
    }

    /// Tells of the end of the process at its other end, should that be lost.
    pub(crate) fn ending(&self) -> Ending {
        Ending::of(&self.instance, self.swap)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.instance.metrics.pool_busy.dec();
    }
}

#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
}

impl Idle {
    fn new(link: Box<Link>, since: Instant) -> Self {
        link.instance.metrics.pool_idle.inc();
        link.instance.metrics.pool_busy.dec();
        Self { link, since }
    }

    fn into_link(self) -> Box<Link> {
        self.link.instance.metrics.pool_busy.inc();
        self.link.instance.metrics.pool_idle.dec();
        self.link
    }
}

/// Connections looked at in one go, with what the last instance among them has (at most `most`).
const SLICE: usize = 32;

/// A worker's idle connections, by instance.
#[derive(Debug)]
pub(crate) struct Pool {
    idle: RefCell<HashMap<u64, Vec<Idle>>>,
    /// Connections of HTTP/2, each shared by many requests.
    shared: RefCell<HashMap<u64, Vec<Shared>>>,
    most: usize,
    timeout: Duration,
}

impl Pool {
    pub(crate) fn new(most: usize, timeout: Duration) -> Self {
        Self { idle: RefCell::default(), shared: RefCell::default(), most, timeout }
    }

    /// The connection used last, if one lives. `certain` asks the kernel itself, for requests that cannot be sent
    /// twice; otherwise what the reactor has seen is enough.
    pub(crate) fn take(
        &self,
        instance: &Instance,
        address: SocketAddr,
        certain: bool,
        now: Instant,
    ) -> Option<Box<Link>> {
        let mut idle = self.idle.borrow_mut();
        let list = idle.get_mut(&instance.key)?;
        while let Some(entry) = list.pop() {
            let young = now.saturating_duration_since(entry.since) < self.timeout;
            let mut link = entry.into_link();
            if young && link.address == address && !link.is_lost() && is_alive(&mut link.wire, certain) {
                link.reused = true;
                return Some(link);
            }
        }
        None
    }

    /// Keeps a connection that can serve again.
    pub(crate) fn put(&self, mut link: Box<Link>, spares: &Spares, now: Instant) {
        link.input.release(spares);
        let mut idle = self.idle.borrow_mut();
        let list = idle.entry(link.instance.key).or_default();
        if list.len() < self.most && !link.instance.removed.load(Ordering::Relaxed) {
            list.push(Idle::new(link, now));
        }
    }

    /// Closes what is too old, closed by its peer, or to an instance that is gone: a few at a time, for requests do not
    /// wait until thousands are looked at.
    pub(crate) async fn sweep(&self) {
        let keys: Vec<u64> = self.idle.borrow().keys().copied().collect();
        let (mut now, mut seen) = (Instant::now(), 0);
        for key in keys {
            seen += self.sweep_instance(key, now);
            if seen >= SLICE {
                tokio::task::yield_now().await;
                (now, seen) = (Instant::now(), 0);
            }
        }
        self.sweep_shared(now);
    }

    /// How many were looked at.
    fn sweep_instance(&self, instance: u64, now: Instant) -> usize {
        let mut idle = self.idle.borrow_mut();
        let Entry::Occupied(mut entry) = idle.entry(instance) else { return 0 };
        let list = entry.get_mut();
        let seen = list.len();
        let keep = |idle: &mut Idle| {
            now.saturating_duration_since(idle.since) < self.timeout
                && !idle.link.instance.removed.load(Ordering::Relaxed)
                && !idle.link.is_lost()
                && is_alive(&mut idle.link.wire, false)
        };
        for index in (0..list.len()).rev() {
            if !keep(&mut list[index]) {
                drop(list.swap_remove(index).into_link());
            }
        }
        if list.is_empty() {
            entry.remove();
        }
        seen
    }

    fn sweep_shared(&self, now: Instant) {
        self.shared.borrow_mut().retain(|_, list| {
            list.retain(|shared| {
                let idle = shared.connection.idle_since();
                !shared.connection.is_closed()
                    && !shared.is_lost()
                    && (idle.is_none()
                        || !shared.instance.removed.load(Ordering::Relaxed)
                            && idle.is_some_and(|since| now.saturating_duration_since(since) < self.timeout))
            });
            !list.is_empty()
        });
    }

    /// A place on a connection of HTTP/2 that has room.
    pub(crate) fn share(&self, instance: &Arc<Instance>, address: SocketAddr) -> Option<Box<Link>> {
        let shared = self.shared.borrow();
        let has_room =
            |shared: &&Shared| shared.address == address && !shared.is_lost() && shared.connection.has_room();
        let found = shared.get(&instance.key)?.iter().find(has_room)?;
        let exchange = Wire::Http2(Box::new(found.connection.exchange()));
        let mut link = Link::new(exchange, address, instance.clone(), found.swap);
        link.reused = true;
        Some(link)
    }

    /// Lets others use a new connection of HTTP/2; the first place on it.
    pub(crate) fn open(&self, connection: http2::Connection, taken: &Taken) -> Box<Link> {
        let (address, instance, swap) = (taken.endpoint().address, taken.instance(), taken.swap());
        let exchange = connection.exchange();
        let mut shared = self.shared.borrow_mut();
        let list = shared.entry(instance.key).or_default();
        list.retain(|shared| !shared.connection.is_closed());
        if list.len() < self.most {
            list.push(Shared { connection, address, instance: instance.clone(), swap });
        }
        Link::new(Wire::Http2(Box::new(exchange)), address, instance.clone(), swap)
    }
}

/// A connection many requests share.
#[derive(Debug)]
struct Shared {
    connection: http2::Connection,
    address: SocketAddr,
    instance: Arc<Instance>,
    swap: u64,
}

impl Shared {
    fn is_lost(&self) -> bool {
        self.instance.ends.is_before(self.swap)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        for idle in self.idle.borrow_mut().drain().flat_map(|(_, list)| list) {
            drop(idle.into_link());
        }
    }
}

fn is_alive(wire: &mut Wire, certain: bool) -> bool {
    match wire {
        Wire::Http1(carrier) => carrier.is_quiet(certain),
        Wire::Http2(_) => false,
    }
}
