//! Whether a failed attempt may be made again: by what was written, by the method, by a bounded count.
//! Asked by the forward step of the request walk after each failure. Deliberately absent: which instance comes
//! next (balance decides) and any waiting (hold decides).

use std::time::Duration;

/// What is known about an attempt that brought no byte of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing was handed to the kernel: refused, unreachable, connect timed out.
    NothingWritten,
    /// Nothing was handed to it, because it is not whom it should be (TLS).
    Distrusted,
    /// A pooled connection turned out to be closed: it says nothing about the instance.
    StalePooled,
    /// A fresh connection took bytes of the request and then ended.
    Reset,
    /// The instance answered with something that is no HTTP: it has seen the request.
    Garbage,
    /// The instance answered with a status that its route has repeated.
    Status,
    /// The attempt's own time was over before an answer came.
    TimedOut,
}

/// Which failed attempts a route has repeated, in nginx' (`proxy_next_upstream`) and Istio's (`retries`) sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included.
    pub total: u32,
    /// No connection could be made.
    pub connect: bool,
    /// The connection ended before an answer.
    pub reset: bool,
    /// The attempt's own time was over.
    pub timeout: bool,
    /// The answer was no HTTP.
    pub garbage: bool,
    /// Answers of these statuses.
    pub statuses: Vec<u16>,
    /// And of all from 500 on.
    pub server_errors: bool,
    /// Also methods that may do their work twice.
    pub non_idempotent: bool,
    /// The time of one attempt, until its answer begins.
    pub per_try: Option<Duration>,
    /// The pause before the first repetition, doubled for each one more, up to ten times this; each is drawn evenly from
    /// zero up (Envoy's).
    pub backoff: Duration,
    /// Nothing is repeated later than this after the request came (nginx' `proxy_next_upstream_timeout`).
    pub within: Option<Duration>,
}

impl RetryPolicy {
    /// Whether an answer of this status is repeated.
    pub fn repeats(&self, status: u16) -> bool {
        (self.server_errors && status >= 500) || self.statuses.contains(&status)
    }

    /// The pause before the `number`th repetition, from 1; `bits` are well-mixed.
    pub fn pause(&self, number: u32, bits: u64) -> Duration {
        let longest = self.backoff.saturating_mul(1 << number.saturating_sub(1).min(10)).min(self.backoff * 10);
        longest.mul_f64((bits >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// What to do about a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again; the attempt counted.
    Again,
    /// Try again on a fresh connection; the attempt did not count.
    AgainUncounted,
    /// Answer the client with the failure.
    GiveUp,
}

/// The attempts of one request, bounded.
#[derive(Clone, Copy, Debug)]
pub struct Attempts {
    left: u32,
    /// Failures of which somebody has said that they are not repeated.
    spared: [bool; 3],
    stale: u32,
    distrusted: u32,
}

/// Stale pooled connections forgiven per request: the second attempt uses a fresh connection, so more than one
/// can only come from another instance's pool.
const STALE_FORGIVEN: u32 = 2;

/// Distrusted instances forgiven per request: mostly all of them have the same mistake, and waiting mends none.
const DISTRUSTED_FORGIVEN: u32 = 1;

impl Attempts {
    /// A budget of `total` attempts, the first included; zero means one.
    pub fn new(total: u32) -> Self {
        Self {
            left: total.max(1),
            spared: [false, false, true],
            stale: STALE_FORGIVEN,
            distrusted: DISTRUSTED_FORGIVEN,
        }
    }

    /// The budget of a route that says which failures are repeated.
    pub fn by(policy: &RetryPolicy) -> Self {
        Self { spared: [!policy.connect, !policy.reset, !policy.garbage], ..Self::new(policy.total) }
    }

    /// There is no time for another one.
    pub fn end(&mut self) {
        self.left = self.left.min(1);
    }

    /// Whether there may be one more.
    pub fn has_more(&self) -> bool {
        self.left > 1
    }

    /// Judges a failure. `idempotent` is the method's property (RFC 9110, 9.2.2); `replayable` says that every
    /// byte of the body taken from the client is still at hand; `may_wait` that the service holds requests: then an
    /// instance that takes no connection costs no attempt, since the hold bounds how long and how often it is tried.
    pub fn after(&mut self, failure: Failure, idempotent: bool, replayable: bool, may_wait: bool) -> Verdict {
        let allowed = match failure {
            // Who waits for an instance waits, whatever is repeated.
            Failure::NothingWritten => replayable && (may_wait || !self.spared[0]),
            Failure::Distrusted => replayable && self.distrusted > 0,
            Failure::StalePooled | Failure::Status | Failure::TimedOut => idempotent && replayable,
            Failure::Reset => idempotent && replayable && !self.spared[1],
            Failure::Garbage => idempotent && replayable && !self.spared[2],
        };
        if !allowed {
            return Verdict::GiveUp;
        }
        if failure == Failure::NothingWritten && may_wait {
            return Verdict::AgainUncounted;
        }
        if failure == Failure::Distrusted {
            self.distrusted -= 1;
        }
        if failure == Failure::StalePooled && self.stale > 0 {
            self.stale -= 1;
            return Verdict::AgainUncounted;
        }
        self.left = self.left.saturating_sub(1);
        if self.left == 0 { Verdict::GiveUp } else { Verdict::Again }
    }
}

/// Methods that RFC 9110 9.2.2 defines as idempotent. Compared exactly: methods are case-sensitive.
pub fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE")
}

#[cfg(test)]
mod tests {
    use super::{Attempts, Failure, Verdict, is_idempotent};

    #[test]
    fn table() {
        use Failure::{Distrusted, Garbage, NothingWritten, Reset, StalePooled};
        use Verdict::{Again, AgainUncounted, GiveUp};
        for (failure, idempotent, replayable, verdict) in [
            (NothingWritten, false, true, Again),
            (NothingWritten, true, true, Again),
            (NothingWritten, true, false, GiveUp),
            (Distrusted, false, true, Again),
            (Distrusted, true, false, GiveUp),
            (StalePooled, true, true, AgainUncounted),
            (StalePooled, false, true, GiveUp),
            (Reset, true, true, Again),
            (Reset, true, false, GiveUp),
            (Reset, false, true, GiveUp),
            (Garbage, true, true, GiveUp),
        ] {
            let got = Attempts::new(3).after(failure, idempotent, replayable, false);
            assert_eq!(got, verdict, "{failure:?} idempotent {idempotent} replayable {replayable}");
        }
    }

    #[test]
    fn budgets_end() {
        let mut attempts = Attempts::new(3);
        let verdicts: Vec<_> = (0..3).map(|_| attempts.after(Failure::Reset, true, true, true)).collect();
        assert_eq!(verdicts, [Verdict::Again, Verdict::Again, Verdict::GiveUp]);

        let mut attempts = Attempts::new(1);
        let verdicts: Vec<_> = (0..3).map(|_| attempts.after(Failure::StalePooled, true, true, false)).collect();
        assert_eq!(verdicts, [Verdict::AgainUncounted, Verdict::AgainUncounted, Verdict::GiveUp]);

        let mut attempts = Attempts::new(5);
        let verdicts: Vec<_> = (0..2).map(|_| attempts.after(Failure::Distrusted, true, true, true)).collect();
        assert_eq!(verdicts, [Verdict::Again, Verdict::GiveUp], "one other instance, and no wait");

        let mut once = Attempts::new(0);
        assert_eq!(once.after(Failure::NothingWritten, true, true, true), Verdict::AgainUncounted);
        assert_eq!(once.after(Failure::NothingWritten, true, true, false), Verdict::GiveUp);
    }

    #[test]
    fn methods() {
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            assert!(is_idempotent(method.as_bytes()), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "get", "PURGE"] {
            assert!(!is_idempotent(method.as_bytes()), "{method}");
        }
    }
}
