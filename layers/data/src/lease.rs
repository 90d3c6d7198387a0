//! Leases: ids and answers, and the leader's clock of deadlines.
//! The clock only proposes expiry; a lease ends when the proposal commits. Apply never looks at a clock.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::Key;

/// Shortest time to live.
pub const MIN_TTL: Duration = Duration::from_millis(100);
/// Longest time to live (Consul's longest session).
pub const MAX_TTL: Duration = Duration::from_secs(86_400);

/// A lease's name, given by the store, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A lease granted or kept alive: it lives at least `ttl` from the moment the request was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseGrant {
    /// Its name.
    pub lease: LeaseId,
    /// Time to live.
    pub ttl: Duration,
}

/// What the leader knows of a lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseInfo {
    /// Its name.
    pub lease: LeaseId,
    /// Time to live as granted.
    pub ttl: Duration,
    /// Time left; zero when its expiry is being committed.
    pub remaining: Duration,
    /// The keys that hang on it, in key order.
    pub keys: Vec<Key>,
}

/// The leader's deadlines. Every method that needs the time is given it.
#[derive(Default, Debug)]
pub struct LeaseClock {
    deadlines: BTreeMap<LeaseId, Deadline>,
}

#[derive(Clone, Copy, Debug)]
struct Deadline {
    ttl: Duration,
    at: Instant,
    renewal: u64,
    expiring: bool,
}

impl LeaseClock {
    /// Starts (or restarts) a lease's full time; `renewal` is its committed renewal sequence.
    pub fn start(&mut self, lease: LeaseId, ttl: Duration, renewal: u64, now: Instant) {
        self.deadlines.insert(lease, Deadline { ttl, at: now + ttl, renewal, expiring: false });
    }

    /// Restarts a lease's time. False if the lease is unknown or its expiry is already proposed.
    pub fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> bool {
        match self.deadlines.get_mut(&lease) {
            Some(deadline) if !deadline.expiring => {
                deadline.at = deadline.at.max(now + deadline.ttl);
                true
            }
            _ => false,
        }
    }

    /// Whether keep-alives can still reach the lease.
    pub fn is_alive(&self, lease: LeaseId) -> bool {
        self.deadlines.get(&lease).is_some_and(|deadline| !deadline.expiring)
    }

    /// Forgets a lease that ended.
    pub fn remove(&mut self, lease: LeaseId) {
        self.deadlines.remove(&lease);
    }

    /// Forgets all leases.
    pub fn clear(&mut self) {
        self.deadlines.clear();
    }

    /// Time left, if the lease is known.
    pub fn remaining(&self, lease: LeaseId, now: Instant) -> Option<Duration> {
        self.deadlines.get(&lease).map(|deadline| deadline.at.saturating_duration_since(now))
    }

    /// The leases whose time is up, with their renewal sequence; each is handed out once.
    pub fn take_due(&mut self, now: Instant) -> Vec<(LeaseId, u64)> {
        let due = self.deadlines.iter_mut().filter(|(_, deadline)| !deadline.expiring && deadline.at <= now);
        due.map(|(lease, deadline)| {
            deadline.expiring = true;
            (*lease, deadline.renewal)
        })
        .collect()
    }

    /// The proposal to expire `lease` failed: try again at the next look.
    pub fn retry(&mut self, lease: LeaseId) {
        if let Some(deadline) = self.deadlines.get_mut(&lease) {
            deadline.expiring = false;
        }
    }

    /// When the next lease is due.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.values().filter(|deadline| !deadline.expiring).map(|deadline| deadline.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::{LeaseClock, LeaseId};
    use std::time::{Duration, Instant};

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn a_kept_lease_is_not_due_and_a_due_lease_is_handed_out_once() {
        let start = Instant::now();
        let mut clock = LeaseClock::default();
        clock.start(LeaseId(1), TTL, 7, start);
        assert_eq!(clock.next_deadline(), Some(start + TTL));
        assert!(clock.keep_alive(LeaseId(1), start + TTL / 2));
        assert!(clock.take_due(start + TTL).is_empty());
        assert_eq!(clock.take_due(start + TTL * 2), [(LeaseId(1), 7)]);
        assert!(clock.take_due(start + TTL * 2).is_empty());
        assert!(!clock.keep_alive(LeaseId(1), start + TTL * 2), "its expiry is on the way to the log");
        clock.retry(LeaseId(1));
        assert_eq!(clock.take_due(start + TTL * 2), [(LeaseId(1), 7)]);
    }
}
