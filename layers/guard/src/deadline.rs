//! How long a request may take in all: holding, every attempt and the answer share one deadline.
//! First of the guards in the request walk. Deliberately absent: a timer; the caller sleeps, this only compares.

use std::time::{Duration, Instant};

/// The moment after which a request is cut off; `None` inside means it may take for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// A request that begins at `now` and may take `timeout` in all.
    pub fn begin(now: Instant, timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| now.checked_add(timeout)))
    }

    /// When to wake up, if ever.
    pub fn at(self) -> Option<Instant> {
        self.0
    }

    /// Whether the request's time is over.
    pub fn expired(self, now: Instant) -> bool {
        self.0.is_some_and(|at| now >= at)
    }

    /// The earlier of this deadline and a step's own bound.
    pub fn or_earlier(self, other: Option<Instant>) -> Option<Instant> {
        match (self.0, other) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Deadline;
    use std::time::{Duration, Instant};

    #[test]
    fn table() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        for (timeout, at, expired) in
            [(None, 1_000_000, false), (Some(10), 9, false), (Some(10), 10, true), (Some(0), 0, true)]
        {
            let deadline = Deadline::begin(start, timeout.map(ms));
            assert_eq!(deadline.expired(start + ms(at)), expired, "timeout {timeout:?} at {at}");
        }
        // A timeout past the clock's end is no timeout.
        assert_eq!(Deadline::begin(start, Some(Duration::MAX)).at(), None);
    }

    #[test]
    fn the_earlier_bound_wins() {
        let start = Instant::now();
        let late = start + Duration::from_secs(2);
        let none = Deadline::begin(start, None);
        let early = Deadline::begin(start, Some(Duration::from_secs(1)));
        assert_eq!(none.or_earlier(Some(late)), Some(late));
        assert_eq!(early.or_earlier(Some(late)), early.at());
        assert_eq!(early.or_earlier(None), early.at());
        assert_eq!(none.or_earlier(None), None);
    }
}
