//! Passive ejection: an instance that fails request after request gets none for a while, longer each time.
//! Envoy's outlier detection (`consecutive_5xx`, `base_ejection_time`, `max_ejection_percent`, the panic threshold of its
//! load balancer). Asked by the forward step of the request walk, heeded by balance.
//! Deliberately absent: counting failures in a row (the gateway's atomics) and who is ready (told by the control plane).

use std::time::{Duration, Instant};

use crate::breaker::{Millionths, WHOLE};

/// When an instance is ejected, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// So many failures in a row; zero counts as one.
    pub consecutive_errors: u32,
    /// The first time; twice that the second time in a row, and so on, at most [`LONGEST`].
    pub eject_for: Duration,
    /// The most of a service's instances that are ejected at a time; one always may be.
    pub max_ejected: Millionths,
    /// With fewer instances than this ready and not ejected, ejections are not heeded: few would be overrun.
    pub panic_threshold: Millionths,
    /// Failures are counted within this time, whatever succeeds between them (nginx' `fail_timeout`); in a row when absent.
    pub within: Option<Duration>,
    /// Whether an answer of 500 or more is a failure.
    pub server_errors: bool,
    /// Whether an ejection lasts longer each time.
    pub growing: bool,
}

/// The longest ejection, unless `eject_for` itself is longer: Envoy's `max_ejection_time`.
pub const LONGEST: Duration = Duration::from_secs(300);

/// For each such time without ejection the next one is a step shorter: Envoy's `interval`.
pub const STEP_BACK: Duration = Duration::from_secs(10);

/// A service's instances at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// All that are listed and have a share.
    pub all: usize,
    /// Those of them that may take requests and are not ejected.
    pub serving: usize,
    /// Those that are ejected.
    pub ejected: usize,
}

impl OutlierPolicy {
    /// Whether one more that serves may be ejected. Never the last one.
    pub fn may_eject(&self, census: Census) -> bool {
        let most = census.all as u64 * u64::from(self.max_ejected) / u64::from(WHOLE);
        census.serving > 1 && (census.ejected as u64) < most.max(1)
    }

    /// Whether ejections are not heeded.
    pub fn panics(&self, census: Census) -> bool {
        census.serving as u64 * u64::from(WHOLE) < u64::from(self.panic_threshold) * census.all as u64
    }
}

/// What is kept of one instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlier {
    /// How often in a row, stepped back with time.
    times: u32,
    until: Option<Instant>,
    stepped: Option<Instant>,
}

impl Outlier {
    /// Ejects it; for how long.
    pub fn eject(&mut self, policy: &OutlierPolicy, now: Instant) -> Duration {
        self.step_back(now);
        self.times = self.times.saturating_add(1);
        let longest = LONGEST.max(policy.eject_for);
        let times = if policy.growing { self.times } else { 1 };
        let length = policy.eject_for.saturating_mul(times).min(longest);
        self.until = now.checked_add(length);
        length
    }

    /// Whether its ejection has ended; true once.
    pub fn returns(&mut self, now: Instant) -> bool {
        let returns = self.until.is_some_and(|until| now >= until);
        if returns {
            (self.stepped, self.until) = (self.until, None);
        }
        returns
    }

    /// Until when it is ejected, if it is or its end has not been asked for.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ejections in a row.
    pub fn times(&self) -> u32 {
        self.times
    }

    fn step_back(&mut self, now: Instant) {
        let Some(stepped) = self.stepped else { return };
        let steps = now.saturating_duration_since(stepped).as_nanos() / STEP_BACK.as_nanos();
        self.times = self.times.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
        self.stepped = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{Census, LONGEST, Outlier, OutlierPolicy, STEP_BACK};
    use crate::breaker::WHOLE;
    use std::time::{Duration, Instant};

    const POLICY: OutlierPolicy = OutlierPolicy {
        consecutive_errors: 5,
        eject_for: Duration::from_secs(30),
        max_ejected: WHOLE / 2,
        panic_threshold: WHOLE / 2,
        within: None,
        server_errors: true,
        growing: true,
    };

    #[test]
    fn how_many_may_be_ejected() {
        for (all, serving, ejected, want) in [
            (3, 3, 0, true),
            (3, 2, 1, false),
            (4, 3, 1, true),
            (4, 2, 2, false),
            (1, 1, 0, false),
            (2, 2, 0, true),
            (3, 1, 0, false),
        ] {
            assert_eq!(POLICY.may_eject(Census { all, serving, ejected }), want, "{ejected} of {all}, {serving} serve");
        }
        let tenth = OutlierPolicy { max_ejected: WHOLE / 10, ..POLICY };
        assert!(tenth.may_eject(Census { all: 3, serving: 3, ejected: 0 }), "Envoy ejects at least one");
        assert!(!tenth.may_eject(Census { all: 19, serving: 18, ejected: 1 }));
    }

    #[test]
    fn below_the_panic_threshold_ejections_are_not_heeded() {
        assert!(!POLICY.panics(Census { all: 4, serving: 2, ejected: 2 }));
        assert!(POLICY.panics(Census { all: 4, serving: 1, ejected: 1 }));
        let never = OutlierPolicy { panic_threshold: 0, ..POLICY };
        assert!(!never.panics(Census { all: 4, serving: 0, ejected: 1 }));
    }

    #[test]
    fn each_ejection_is_longer_and_good_times_shorten_the_next() {
        let mut now = Instant::now();
        let mut outlier = Outlier::default();
        for times in 1..=12 {
            let length = outlier.eject(&POLICY, now);
            assert_eq!(length, (POLICY.eject_for * times).min(LONGEST), "time {times}");
            assert!(!outlier.returns(now + length - Duration::from_millis(1)));
            now += length;
            assert!(outlier.returns(now) && !outlier.returns(now), "once");
        }
        now += STEP_BACK * 11;
        assert_eq!(outlier.eject(&POLICY, now), POLICY.eject_for * 2, "12 less 11, and one more");
        let even = OutlierPolicy { growing: false, ..POLICY };
        let mut outlier = Outlier::default();
        assert_eq!([outlier.eject(&even, now), outlier.eject(&even, now)], [POLICY.eject_for; 2]);
        let long = OutlierPolicy { eject_for: LONGEST * 2, ..POLICY };
        assert_eq!(Outlier::default().eject(&long, now), LONGEST * 2);
    }
}
