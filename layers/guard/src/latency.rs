//! How long an instance takes to answer, for whoever chooses among instances: it rises at once with a slow answer, falls
//! slowly with quick ones, and fades while nothing is heard of it. Finagle's and Linkerd's peak EWMA.
//! Told by the forward step of the request walk, asked by balance. It fits an atomic. Deliberately absent: clocks, atomics.

/// What is known of one instance's answers; the default knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// Low half of the milliseconds at which it was told last.
    at_ms: u32,
    /// The estimate then.
    micros: u32,
}

/// After so long an estimate has faded to a part in e: Finagle's `decayTime`.
pub const DECAY_MS: u32 = 10_000;

/// What an instance of which nothing is known counts while it has a request: the first one shows what it is worth.
const UNKNOWN: u64 = 1 << 40;

impl Latency {
    /// As one word.
    pub fn pack(self) -> u64 {
        u64::from(self.at_ms) << 32 | u64::from(self.micros)
    }

    /// From one word.
    pub fn unpack(word: u64) -> Self {
        Self { at_ms: (word >> 32) as u32, micros: word as u32 }
    }

    /// An answer took so long.
    #[must_use]
    pub fn observe(self, took_micros: u64, now_ms: u64) -> Self {
        let took = u32::try_from(took_micros).unwrap_or(u32::MAX).max(1);
        let micros = if took >= self.micros {
            took
        } else {
            let kept = self.kept(now_ms);
            (f64::from(self.micros) * kept + f64::from(took) * (1.0 - kept)) as u32
        };
        Self { at_ms: now_ms as u32, micros: micros.max(1) }
    }

    /// How long the next answer will take, in microseconds; zero: nothing is known.
    pub fn micros(self, now_ms: u64) -> u64 {
        (f64::from(self.micros) * self.kept(now_ms)) as u64
    }

    /// What one more request weighs beside so many that are under way.
    pub fn cost(self, in_flight: u64, now_ms: u64) -> u64 {
        match (self.micros(now_ms), in_flight) {
            (0, 0) => 0,
            (0, in_flight) => UNKNOWN + in_flight,
            (micros, in_flight) => micros.saturating_mul(in_flight + 1),
        }
    }

    /// The part of the estimate that time has left.
    fn kept(self, now_ms: u64) -> f64 {
        let age = (now_ms as u32).wrapping_sub(self.at_ms);
        // Told by somebody who read the clock a moment later.
        let age = if age > u32::MAX / 2 { 0 } else { age };
        (-f64::from(age) / f64::from(DECAY_MS)).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::{DECAY_MS, Latency, UNKNOWN};

    #[test]
    fn it_rises_at_once_falls_slowly_and_fades() {
        let quick = Latency::default().observe(1_000, 5);
        assert_eq!(quick.micros(5), 1_000);
        let slow = quick.observe(100_000, 6);
        assert_eq!(slow.micros(6), 100_000);
        let falling = slow.observe(1_000, 106);
        assert!((98_000..100_000).contains(&falling.micros(106)), "{falling:?}");
        let faded = slow.micros(6 + u64::from(DECAY_MS));
        assert!((36_000..37_500).contains(&faded), "{faded}");
        assert_eq!(slow.micros(5), 100_000, "an earlier look");
        assert_eq!(slow.observe(u64::MAX, 7).micros(7), u64::from(u32::MAX));
        let wrapped = Latency::default().observe(9, u64::from(u32::MAX));
        assert_eq!(wrapped.observe(5, u64::from(u32::MAX) + 2).micros(u64::from(u32::MAX) + 2), 8);
    }

    #[test]
    fn one_of_which_nothing_is_known_gets_one_request() {
        let unknown = Latency::default();
        assert_eq!((unknown.cost(0, 9), unknown.cost(2, 9)), (0, UNKNOWN + 2));
        assert_eq!(unknown.observe(7, 9).cost(2, 9), 21);
    }

    #[test]
    fn a_word_holds_it() {
        for latency in
            [Latency::default(), Latency::default().observe(12, 34), Latency::default().observe(u64::MAX, u64::MAX)]
        {
            assert_eq!(Latency::unpack(latency.pack()), latency);
        }
    }
}
