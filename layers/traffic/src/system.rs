//! What a gateway as a whole bears: Sentinel's `SystemRule`s, over all requests that enter. So many a second, so many at
//! once, an average time; and while the machine's load is high, no more at once than its best second and shortest time
//! allow (the check that `SystemRuleManager.checkBbr` makes). Before the guards of a service in the request walk.
//! No lock: in the moment in which a half of a second begins, a few endings may be counted in neither.
//! Deliberately absent: clocks and the measuring of load (`platform`).

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::limit::nanos;
use crate::window;

/// What is borne; absent: it is not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SystemPolicy {
    /// Requests a second, over a second that slides by halves.
    pub qps: Option<u32>,
    /// Requests at once.
    pub concurrent: Option<u32>,
    /// The average time of those that ended in the last second.
    pub average: Option<Duration>,
    /// The machine's load, in thousandths, beyond which only as many are at once as it can work off.
    pub load: Option<u32>,
    /// How busy the processors are, in millionths.
    pub cpu: Option<u32>,
}

/// What is too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// Requests a second.
    Qps,
    /// Requests at once.
    Concurrent,
    /// The average time.
    Average,
    /// The machine's load, and more at once than it can work off.
    Load,
    /// Its processors.
    Cpu,
}

impl Overload {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 5] = [Self::Qps, Self::Concurrent, Self::Average, Self::Load, Self::Cpu];

    /// One word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qps => "qps",
            Self::Concurrent => "concurrent",
            Self::Average => "average-time",
            Self::Load => "load",
            Self::Cpu => "cpu",
        }
    }
}

/// What was measured last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemView {
    /// Passed in the second that ends now.
    pub qps: u64,
    /// Under way.
    pub concurrent: u64,
    /// The average time of those that ended in the last second.
    pub average: Duration,
    /// The machine's load, in thousandths.
    pub load: u32,
    /// How busy its processors are, in millionths.
    pub cpu: u32,
}

/// The state of one gateway's protection.
#[derive(Debug)]
pub struct System {
    policy: SystemPolicy,
    passes: AtomicU64,
    active: AtomicU64,
    halves: [Half; 2],
    load: AtomicU32,
    cpu: AtomicU32,
}

/// What ended in one half of a second.
#[derive(Debug, Default)]
struct Half {
    number: AtomicU64,
    ended: AtomicU64,
    micros: AtomicU64,
    shortest: AtomicU64,
}

const HALF: u64 = window::SECOND / 2;
/// Sentinel's `statisticMaxRt`: the shortest time where nothing has ended.
const LONGEST: u64 = 5_000_000;
/// Sentinel reckons in whole milliseconds, and in one at the least.
const MILLISECOND: u64 = 1_000;

impl System {
    /// One at rest.
    pub fn new(policy: SystemPolicy) -> Self {
        Self {
            policy,
            passes: AtomicU64::new(0),
            active: AtomicU64::new(0),
            halves: Default::default(),
            load: AtomicU32::new(0),
            cpu: AtomicU32::new(0),
        }
    }

    /// What it bears.
    pub fn policy(&self) -> SystemPolicy {
        self.policy
    }

    /// The machine's load in thousandths and its processors' in millionths, measured just now.
    pub fn measured(&self, load: u32, cpu: u32) {
        self.load.store(load, Ordering::Relaxed);
        self.cpu.store(cpu, Ordering::Relaxed);
    }

    /// Lets a request in; it is to be given back by [`Self::leave`].
    ///
    /// # Errors
    /// What is too much.
    pub fn enter(&self, now: Duration) -> Result<(), Overload> {
        let now = nanos(now);
        let SystemPolicy { qps, concurrent, average, load, cpu } = self.policy;
        let most = qps.map_or(window::MOST, u64::from);
        if window::counted(&self.passes, now) >= most {
            return Err(Overload::Qps);
        }
        let active = self.active.load(Ordering::Relaxed);
        if concurrent.is_some_and(|most| active >= u64::from(most)) {
            return Err(Overload::Concurrent);
        }
        if average.is_some_and(|most| self.average(now) > most) {
            return Err(Overload::Average);
        }
        if load.is_some_and(|most| self.load.load(Ordering::Relaxed) > most) && active > 1 && active > self.bears(now) {
            return Err(Overload::Load);
        }
        if cpu.is_some_and(|most| self.cpu.load(Ordering::Relaxed) > most) {
            return Err(Overload::Cpu);
        }
        if qps.is_some() || average.is_some() || load.is_some() {
            window::count(&self.passes, now, most).map_err(|_| Overload::Qps)?;
        }
        let joined = self.active.fetch_add(1, Ordering::Relaxed);
        if concurrent.is_some_and(|most| joined >= u64::from(most)) {
            self.active.fetch_sub(1, Ordering::Relaxed);
            window::take_back(&self.passes, now);
            return Err(Overload::Concurrent);
        }
        Ok(())
    }

    /// One that was let in has ended, after so long.
    pub fn leave(&self, now: Duration, took: Duration) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).min(LONGEST * 1_000);
        let half = self.half(nanos(now) / HALF);
        half.ended.fetch_add(1, Ordering::Relaxed);
        half.micros.fetch_add(micros, Ordering::Relaxed);
        half.shortest.fetch_min(micros, Ordering::Relaxed);
    }

    /// As it is now.
    pub fn view(&self, now: Duration) -> SystemView {
        let at = nanos(now);
        SystemView {
            qps: window::counted(&self.passes, at),
            concurrent: self.active.load(Ordering::Relaxed),
            average: self.average(at),
            load: self.load.load(Ordering::Relaxed),
            cpu: self.cpu.load(Ordering::Relaxed),
        }
    }

    fn half(&self, number: u64) -> &Half {
        let half = &self.halves[(number % 2) as usize];
        let known = half.number.load(Ordering::Relaxed);
        if known < number && half.number.compare_exchange(known, number, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            half.ended.store(0, Ordering::Relaxed);
            half.micros.store(0, Ordering::Relaxed);
            half.shortest.store(LONGEST, Ordering::Relaxed);
        }
        half
    }

    /// Halves that are in the second that ends now.
    fn current(&self, now: u64) -> impl Iterator<Item = &Half> {
        let number = now / HALF;
        self.halves.iter().filter(move |half| half.number.load(Ordering::Relaxed) + 1 >= number.max(1))
    }

    fn average(&self, now: u64) -> Duration {
        let sum = |of: fn(&Half) -> &AtomicU64| self.current(now).map(|half| of(half).load(Ordering::Relaxed)).sum();
        let (ended, micros): (u64, u64) = (sum(|half| &half.ended), sum(|half| &half.micros));
        Duration::from_micros(micros.checked_div(ended).unwrap_or(0))
    }

    /// How many at once the machine works off: its better half's rate times its shortest time.
    fn bears(&self, now: u64) -> u64 {
        let ended = self.current(now).map(|half| half.ended.load(Ordering::Relaxed)).max();
        let shortest = self.current(now).map(|half| half.shortest.load(Ordering::Relaxed)).min();
        let rate = ended.unwrap_or(0).max(1) * 2;
        let shortest = shortest.unwrap_or(LONGEST).clamp(MILLISECOND, LONGEST) / MILLISECOND * MILLISECOND;
        rate.saturating_mul(shortest) / 1_000_000
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Overload, System, SystemPolicy};

    fn at(ms: u64) -> Duration {
        Duration::from_millis(100_000 + ms)
    }

    #[test]
    fn so_many_a_second_and_so_many_at_once() {
        let system = System::new(SystemPolicy { qps: Some(3), ..SystemPolicy::default() });
        let answers: Vec<_> = (0..5).map(|_| system.enter(at(100))).collect();
        assert_eq!(answers, [Ok(()), Ok(()), Ok(()), Err(Overload::Qps), Err(Overload::Qps)]);
        assert_eq!(system.enter(at(1_000)), Ok(()), "a second later");
        let system = System::new(SystemPolicy { concurrent: Some(2), ..SystemPolicy::default() });
        assert_eq!([(); 3].map(|()| system.enter(at(0))), [Ok(()), Ok(()), Err(Overload::Concurrent)]);
        system.leave(at(1), Duration::ZERO);
        assert_eq!(system.enter(at(2)), Ok(()));
    }

    #[test]
    fn an_average_that_is_too_long_refuses_until_its_second_has_gone() {
        let system = System::new(SystemPolicy { average: Some(Duration::from_millis(50)), ..SystemPolicy::default() });
        for took in [20, 100] {
            assert_eq!(system.enter(at(0)), Ok(()));
            system.leave(at(10), Duration::from_millis(took));
        }
        assert_eq!(system.view(at(20)).average, Duration::from_millis(60));
        assert_eq!(system.enter(at(20)), Err(Overload::Average));
        assert_eq!(system.enter(at(1_000)), Ok(()), "nothing ended in this second");
    }

    /// `checkBbr`: with 10 ended in half a second and 100 ms at the shortest, two are worked off at once.
    #[test]
    fn under_load_only_as_many_as_can_be_worked_off() {
        let system = System::new(SystemPolicy { load: Some(1_500), ..SystemPolicy::default() });
        (0..10).for_each(|_| {
            system.enter(at(0)).unwrap();
            system.leave(at(10), Duration::from_millis(100));
        });
        let three = || [(); 5].map(|()| system.enter(at(20)));
        system.measured(1_500, 0);
        assert_eq!(three(), [Ok(()); 5], "the load itself is not too much");
        (0..5).for_each(|_| system.leave(at(20), Duration::from_millis(100)));
        system.measured(1_501, 0);
        // 15 ended: 30 a second, 100 ms each: three.
        assert_eq!(three(), [Ok(()), Ok(()), Ok(()), Ok(()), Err(Overload::Load)], "more than three are too many");
    }

    #[test]
    fn busy_processors_refuse_everybody() {
        let system = System::new(SystemPolicy { cpu: Some(800_000), ..SystemPolicy::default() });
        system.measured(0, 800_000);
        assert_eq!(system.enter(at(0)), Ok(()));
        system.measured(0, 800_001);
        assert_eq!(system.enter(at(0)), Err(Overload::Cpu));
    }
}
