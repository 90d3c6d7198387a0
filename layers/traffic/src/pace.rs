//! One rate in one atomic: when the next request would be due if all came evenly (GCRA, the cell rate algorithm of ATM's
//! traffic management; a token bucket that keeps a time instead of tokens).
//! Deliberately absent: what the rate is and who waits (`limit.rs`).

use std::sync::atomic::{AtomicU64, Ordering};

/// A moment, in nanoseconds since some origin of the caller's.
pub(crate) type Nanos = u64;

/// Takes the next turn if it is due within `tolerance`; how far ahead it is then.
///
/// # Errors
/// How long until it would be.
pub(crate) fn take(next: &AtomicU64, now: Nanos, interval: Nanos, tolerance: Nanos) -> Result<Nanos, Nanos> {
    let mut seen = next.load(Ordering::Relaxed);
    loop {
        let due = seen.max(now);
        let ahead = due - now;
        if ahead > tolerance {
            return Err(ahead - tolerance);
        }
        match next.compare_exchange_weak(seen, due.saturating_add(interval), Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Ok(ahead),
            Err(newer) => seen = newer,
        }
    }
}
