//! How exact a limit is, and its behaviours beside Sentinel's, on a simulated clock.

use super::{Behaviour, Decision, LimitPolicy, Limiter};
use std::time::Duration;

/// A twentieth of a second's worth, as the configuration has it.
fn policy(qps: u32) -> LimitPolicy {
    LimitPolicy { qps, per: Duration::from_secs(1), burst: (qps / 20).max(1), behaviour: Behaviour::Reject, keys: None }
}

/// Requests admitted in each second under an even load of `rate` a second from `begin` on.
fn admitted(limiter: &Limiter, rate: u64, begin: Duration, seconds: u64) -> Vec<u64> {
    let mut counts = vec![0; seconds as usize];
    for request in 0..rate * seconds {
        let at = Duration::from_nanos(request * 1_000_000_000 / rate);
        if limiter.ask(0, begin + at) == Decision::Admitted {
            counts[at.as_secs() as usize] += 1;
        }
    }
    counts
}

#[test]
fn under_four_times_the_load_it_admits_the_rate_within_one_percent_over_ten_seconds() {
    for qps in [50, 1_000, 20_000] {
        // After any pause: what a bucket holds is in the figure.
        let limiter = Limiter::new(&policy(qps));
        let total: u64 = admitted(&limiter, u64::from(qps) * 4, Duration::from_secs(1_000), 10).iter().sum();
        let (want, got) = (f64::from(qps) * 10.0, total as f64);
        assert!((got - want).abs() <= want * 0.01, "{qps} QPS: {got} of {want}");
    }
}

#[test]
fn many_threads_share_one_rate() {
    let limiter = Limiter::new(&policy(1_000));
    let count = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (limiter, count) = (&limiter, &count);
            scope.spawn(move || {
                for request in 0..10_000_u64 {
                    let now = Duration::from_micros(5_000_000 + request * 1_000 + thread);
                    if limiter.ask(0, now) == Decision::Admitted {
                        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let got = count.into_inner();
    assert!((9_900..=10_100).contains(&got), "{got} of 10000");
}

#[test]
fn a_burst_passes_at_once_and_what_is_refused_is_told_when_to_come() {
    let limiter = Limiter::new(&LimitPolicy { burst: 3, ..policy(10) });
    let now = Duration::from_secs(9);
    let answers: Vec<_> = (0..5).map(|_| limiter.ask(0, now)).collect();
    let refused = Decision::Refused(Duration::from_millis(100));
    assert_eq!(answers, [Decision::Admitted, Decision::Admitted, Decision::Admitted, refused, refused]);
    assert_eq!(limiter.ask(0, now + Duration::from_millis(100)), Decision::Admitted);
    assert_eq!(
        limiter.ask(0, now),
        Decision::Refused(Duration::from_millis(200)),
        "a clock that goes back admits nothing"
    );
}

#[test]
fn each_key_has_the_rate_for_itself() {
    let limiter = Limiter::new(&LimitPolicy { burst: 1, keys: Some(64), ..policy(1) });
    let now = Duration::from_secs(9);
    for key in [0x1000_0000_0000_0000, 0x9000_0000_0000_0000] {
        assert_eq!(limiter.ask(key, now), Decision::Admitted);
        assert!(matches!(limiter.ask(key, now), Decision::Refused(_)));
    }
    assert_eq!(limiter.keys().map(|keys| keys.at_work(9_000_000_000)), Some(2));
}

/// Sentinel's `RateLimiterController`: `latestPassedTime`, a cost of `1 / count`, `maxQueueingTimeMs`.
#[test]
fn requests_in_a_queue_pass_one_after_the_other() {
    let queue = Behaviour::Queue(Duration::from_millis(250));
    let limiter = Limiter::new(&LimitPolicy { behaviour: queue, burst: 99, ..policy(10) });
    let now = Duration::from_secs(9);
    let ms = Duration::from_millis;
    let answers: Vec<_> = (0..4).map(|_| limiter.ask(0, now)).collect();
    let want = [Decision::Admitted, Decision::Wait(ms(100)), Decision::Wait(ms(200)), Decision::Refused(ms(50))];
    assert_eq!(answers, want);
    assert_eq!(limiter.ask(0, now + ms(50)), Decision::Wait(ms(250)));
}

/// Sentinel's `WarmUpController` as its source has it: tokens synchronised at whole seconds, the last second's passes
/// against the warning rate.
struct Sentinel {
    count: f64,
    cold_factor: f64,
    warning: f64,
    most: f64,
    slope: f64,
    stored: f64,
}

impl Sentinel {
    fn new(count: f64, period: f64, cold_factor: f64) -> Self {
        let warning = (period * count / (cold_factor - 1.0)).floor();
        let most = warning + (2.0 * period * count / (1.0 + cold_factor)).floor();
        let slope = (cold_factor - 1.0) / count / (most - warning);
        Self { count, cold_factor, warning, most, slope, stored: most }
    }

    /// Passes in the next second, when `asked` come in it and `before` passed in the second before.
    fn second(&mut self, asked: f64, before: f64) -> f64 {
        let cools = self.stored < self.warning
            || (self.stored > self.warning && before < (self.count / self.cold_factor).floor());
        let filled = if cools { self.stored + self.count } else { self.stored }.min(self.most);
        self.stored = (filled - before).max(0.0);
        let above = (self.stored - self.warning).max(0.0);
        asked.min((1.0 / (above * self.slope + 1.0 / self.count)).floor())
    }
}

#[test]
fn warm_up_follows_sentinels_curve_within_five_percent() {
    for (qps, period, cold_factor) in [(1_000, 10, 3), (200, 5, 3), (20_000, 10, 3), (1_000, 20, 5)] {
        let behaviour = Behaviour::WarmUp { period: Duration::from_secs(period), cold_factor };
        let limiter = Limiter::new(&LimitPolicy { behaviour, ..policy(qps) });
        let load = u64::from(qps) * 2;
        let got = admitted(&limiter, load, Duration::from_secs(77), period + 5);
        let mut sentinel = Sentinel::new(f64::from(qps), period as f64, f64::from(cold_factor));
        let mut before = 0.0;
        for (second, got) in got.iter().enumerate() {
            before = sentinel.second(load as f64, before);
            let off = (*got as f64 - before).abs() / before;
            assert!(off <= 0.05, "{qps} QPS, second {second}: {got}, Sentinel {before}");
        }
        let last = *got.last().unwrap() as f64;
        assert!((last - f64::from(qps)).abs() <= f64::from(qps) * 0.01, "warm at the end: {last}");
        assert!((got[0] as f64) < f64::from(qps) / f64::from(cold_factor) * 1.2, "cold at the begin: {}", got[0]);
    }
}

#[test]
fn a_pause_makes_it_cold_again() {
    let behaviour = Behaviour::WarmUp { period: Duration::from_secs(5), cold_factor: 3 };
    let limiter = Limiter::new(&LimitPolicy { behaviour, ..policy(300) });
    let warm = admitted(&limiter, 600, Duration::from_secs(10), 10)[9];
    let cold = admitted(&limiter, 600, Duration::from_secs(200), 1)[0];
    assert!(warm >= 297 && cold <= 120, "{warm}, then {cold}");
}

#[test]
fn a_queue_that_warms_up_begins_with_a_third_of_the_rate_and_ends_with_all_of_it() {
    let longest = Duration::from_millis(500);
    let behaviour = Behaviour::WarmUpQueue { period: Duration::from_secs(10), cold_factor: 3, longest };
    let limiter = Limiter::new(&LimitPolicy { behaviour, burst: 1, ..policy(90) });
    // Who is told to wait has his turn: it counts when it comes.
    let mut counts = [0_u32; 40];
    for request in 0..40 * 360 {
        let at = Duration::from_nanos(request * 1_000_000_000 / 360);
        let turn = match limiter.ask(0, Duration::from_secs(100) + at) {
            Decision::Admitted => at,
            Decision::Wait(wait) => {
                assert!(wait <= longest, "{wait:?}");
                at + wait
            }
            Decision::Refused(_) => continue,
        };
        if let Some(count) = counts.get_mut(turn.as_secs() as usize) {
            *count += 1;
        }
    }
    assert!((28..=34).contains(&counts[1]), "{counts:?}");
    assert!(counts[30..].iter().all(|count| (88..=92).contains(count)), "{counts:?}");
    assert!(counts.windows(2).all(|pair| pair[1] + 3 >= pair[0]), "it only grows: {counts:?}");
}

#[test]
fn windows_and_buckets_are_kept_by_key_and_an_exception_has_its_own() {
    for behaviour in [Behaviour::Window, Behaviour::Bucket] {
        let limiter = Limiter::new(&LimitPolicy { burst: 0, keys: Some(64), behaviour, ..policy(2) });
        let now = Duration::from_secs(9);
        let vip = super::Rate::new(4, Duration::from_secs(1), 0);
        let ask = |rate: &super::Rate, key: u64| limiter.ask_at(rate, key << 40, now).decision == Decision::Admitted;
        let passed = |rate: &super::Rate, key| (0..9).filter(|_| ask(rate, key)).count();
        let own = limiter.rate();
        assert_eq!([passed(&own, 1), passed(&own, 2), passed(&vip, 3)], [2, 2, 4], "{behaviour:?}");
        assert_eq!(passed(&super::Rate::new(0, Duration::from_secs(1), 0), 4), 0, "nobody");
        assert_eq!(limiter.at_work(now), Some(3));
        let later = now + Duration::from_millis(1_500);
        assert_eq!(limiter.at_work(later), Some(0), "{behaviour:?}");
        assert_eq!(limiter.ask(1 << 40, later), Decision::Admitted);
        assert_eq!(limiter.keys().map(super::Keys::displaced), Some(0));
    }
}

#[test]
fn what_is_left_is_told() {
    let limiter = Limiter::new(&LimitPolicy { burst: 3, ..policy(10) });
    let now = Duration::from_secs(9);
    let asked: Vec<_> = (0..4).map(|_| limiter.ask_at(&limiter.rate(), 0, now)).collect();
    assert_eq!(asked.iter().map(|asked| asked.left).collect::<Vec<_>>(), [2, 1, 0, 0]);
    assert_eq!(asked[1].reset, Duration::from_millis(200), "all three again");
    let minute = Limiter::new(&LimitPolicy { per: Duration::from_secs(60), burst: 1, ..policy(6) });
    assert_eq!(minute.ask(0, now), Decision::Admitted);
    assert_eq!(minute.ask(0, now), Decision::Refused(Duration::from_secs(10)), "six a minute");
}
