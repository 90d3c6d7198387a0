//! Which chains of requests have had a failure: a request that leads to others is told by the trace that all of them are
//! in. At the record step of the request walk: whoever fails is noted, and whoever is judged by whole chains looks here
//! when its own answer is out, which is after those of its hops. Deliberately absent: hops past other nodes' gateways.

use std::sync::atomic::{AtomicU64, Ordering};

use traffic::weights::key_of;

/// The last failures that are remembered, about: a later one of the same place takes it.
const PLACES: usize = 4096;

/// Traces with a failure.
#[derive(Debug)]
pub(crate) struct Chains(Box<[AtomicU64]>);

impl Default for Chains {
    fn default() -> Self {
        Self((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Chains {
    /// A request of this trace has failed.
    pub(crate) fn failed(&self, traceparent: &[u8]) {
        if let Some((place, key)) = self.place(traceparent) {
            place.store(key, Ordering::Relaxed);
        }
    }

    /// Whether one has.
    pub(crate) fn has_failed(&self, traceparent: &[u8]) -> bool {
        self.place(traceparent).is_some_and(|(place, key)| place.load(Ordering::Relaxed) == key)
    }

    fn place(&self, traceparent: &[u8]) -> Option<(&AtomicU64, u64)> {
        let key = key_of(traceparent.get(3..35)?);
        self.0.get(key as usize % PLACES).map(|place| (place, key))
    }
}

#[cfg(test)]
mod tests {
    use super::{Chains, PLACES};

    #[test]
    fn a_trace_is_told_by_its_id_alone_and_forgotten_in_time() {
        let chains = Chains::default();
        let parent = |trace: usize, span: usize| format!("00-{trace:032x}-{span:016x}-01");
        chains.failed(parent(7, 1).as_bytes());
        assert!(chains.has_failed(parent(7, 2).as_bytes()));
        assert!(!chains.has_failed(parent(8, 1).as_bytes()) && !chains.has_failed(b""));
        (1000..1000 + PLACES * 20).for_each(|trace| chains.failed(parent(trace, 1).as_bytes()));
        assert!(!chains.has_failed(parent(7, 1).as_bytes()));
    }
}
