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

    /// How much is left, if it ends at all.
    pub fn left(self, now: Instant) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now))
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

/// What a caller asks for in `X-Request-Timeout-Ms`: whole milliseconds. `None`: it is no such number.
pub fn asked_in_ms(text: &[u8]) -> Option<Duration> {
    number(text, 15).map(Duration::from_millis)
}

/// What a caller asks for in `grpc-timeout` (gRPC over HTTP/2: at most 8 digits and a unit).
pub fn asked_by_grpc(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let count = number(digits, 8)?;
    Some(match unit {
        b'H' => Duration::from_secs(count * 3600),
        b'M' => Duration::from_secs(count * 60),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

fn number(digits: &[u8], most: usize) -> Option<u64> {
    let fits = !digits.is_empty() && digits.len() <= most && digits.iter().all(u8::is_ascii_digit);
    fits.then(|| digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::{Deadline, asked_by_grpc, asked_in_ms};
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
    fn what_callers_ask_for() {
        let ms = |count| Some(Duration::from_millis(count));
        for (text, asked) in
            [("250", ms(250)), ("0", ms(0)), ("", None), ("-1", None), ("1.5", None), ("9999999999999999", None)]
        {
            assert_eq!(asked_in_ms(text.as_bytes()), asked, "{text}");
        }
        for (text, asked) in [
            ("100m", ms(100)),
            ("2S", ms(2000)),
            ("1M", ms(60_000)),
            ("1H", ms(3_600_000)),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("5n", Some(Duration::from_nanos(5))),
            ("123456789m", None),
            ("m", None),
            ("10", None),
            ("1 m", None),
            ("", None),
        ] {
            assert_eq!(asked_by_grpc(text.as_bytes()), asked, "{text}");
        }
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
