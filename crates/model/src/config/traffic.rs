//! How a service's requests are guarded: when it gets none for a while, how many at once, what is answered instead.
//! Presets are the defaults of the tools they are named after. Deliberately absent: rules over several keys
//! (`validate/traffic.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::decode::{Ratio, record, words};
use super::foreign::Origin;
use super::limits::{AtOnce, OneOrMore, RateLimit};
use super::node::default_of;
use super::shift::{Failover, Shift};
use crate::id::ServiceName;

record! {
    /// What guards a service's requests.
    Traffic as "`traffic`" {
        /// How many requests a second are let through, one limit or a list of them, each of which must let a request pass; the rest is answered 429 `rate-limited`. 100 at most.
        rate_limit: OneOrMore<RateLimit> = OneOrMore::default(),
        /// How many requests are under way at once, by key or of some requests only, one bound or a list of them. 100 at most.
        at_once: OneOrMore<AtOnce> = OneOrMore::default(),
        /// The service gets no requests for a while when too many have failed or were slow.
        circuit_breaker: Option<CircuitBreaker> = None,
        /// How many requests it has at once.
        concurrency: Option<Concurrency> = None,
        /// An instance that fails request after request gets none for a while.
        outlier: Option<Outlier> = None,
        /// How many failed requests are sent again at a time. In force with these defaults for every service.
        retry_budget: RetryBudget = RetryBudget::default(),
        /// What is answered while the breaker is open, no instance is there, the concurrency limit is reached, or when the request's time was over before any of an answer had come; instead of 502, 503 or 504.
        fallback: Option<Fallback> = None,
        /// How `seawall shift` moves its requests elsewhere, unless the verb says otherwise.
        shift: Option<Shift> = None,
        /// Services that take its requests when its breaker has opened: the first of them that has a ready instance.
        backup: Vec<ServiceName> = Vec::new(),
        /// How requests go to a backup, and how they come back.
        failover: Failover = Failover::default(),
    }
}

record! {
    /// When a service gets no requests, and what ends that. Each gateway judges by the requests it has passed on itself. A failure is a 5xx, a connection that cannot be made or breaks, no answer in time, or nobody there to answer.
    CircuitBreaker as "`circuitBreaker`" {
        /// Another tool's rule; keys written here go before it. `hystrix`: at least 50 % of 20 or more in 10 s, open for 5 s. `resilience4j`: at least 50 % failed, or all slower than 60 s, of the last 100; open for 60 s, 10 probes. `sentinel`: more than 50 % of 5 or more in 1 s, open for 10 s (the ratio and the time have no default there). `source`: more than 50 % of 20 or more in 10 s, open for 30 s.
        preset: Option<BreakerPreset> = None,
        /// Failed requests of all. Any threshold written here is instead of all those of the preset.
        error_ratio: Option<Ratio> = None,
        /// Slow requests of all; with `slowThreshold`.
        slow_ratio: Option<Ratio> = None,
        /// A request is slow when the instance's answer begins later than this.
        slow_threshold: Option<Duration> = None,
        /// Failed requests.
        error_count: Option<u32> = None,
        /// Whether the threshold itself opens it (`>=`) or only more (`>`). A ratio of 1 is reached when all are. Default `>`.
        comparator: Option<Comparator> = None,
        /// The time looked at. Default 10s.
        window: Option<Duration> = None,
        /// Instead of `window`: the last so many requests are looked at; 1 to 100000.
        window_requests: Option<u32> = None,
        /// With fewer requests in the window nothing is judged. Default 20.
        min_requests: Option<u32> = None,
        /// How long no request passes; then come the probes. More than 0, 24h at most. Default 30s.
        open_for: Option<Duration> = None,
        /// Requests let through to see whether the service is better; judged together by the same thresholds, and only then it closes. Default 1.
        probes: Option<u32> = None,
        /// Who has a breaker.
        per: BreakerScope = BreakerScope::Service,
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}

words! {
    /// Who has a breaker.
    BreakerScope {
        /// The service.
        Service = "service",
        /// Each of its instances, by these settings: one whose breaker is open gets no requests, the others do. If all are open, the service has none, as with a breaker of its own.
        Instance = "instance",
    }
}

words! {
    /// A tool whose rule is meant.
    BreakerPreset {
        /// Netflix Hystrix' defaults.
        Hystrix = "hystrix",
        /// Alibaba Sentinel's `DegradeRule`.
        Sentinel = "sentinel",
        /// resilience4j's defaults.
        Resilience4j = "resilience4j",
        /// Strictly more than half, 30 s.
        Source = "source",
    }
}

words! {
    /// How a measure is compared with its threshold.
    Comparator {
        /// More than the threshold.
        Above = ">",
        /// The threshold or more.
        AtLeast = ">=",
    }
}

/// A breaker's rule with its preset and defaults filled in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BreakerRule {
    /// Failed requests of all.
    pub error_ratio: Option<Ratio>,
    /// Slow requests of all, and what is slow.
    pub slow: Option<(Ratio, Duration)>,
    /// Failed requests.
    pub error_count: Option<u32>,
    /// How they are compared.
    pub comparator: Comparator,
    /// The time looked at, unless `window_requests` is set.
    pub window: Duration,
    /// The last so many requests are looked at.
    pub window_requests: Option<u32>,
    /// With fewer requests nothing is judged.
    pub min_requests: u32,
    /// How long no request passes.
    pub open_for: Duration,
    /// Requests let through then.
    pub probes: u32,
}

impl CircuitBreaker {
    /// The rule that is meant.
    pub fn rule(&self) -> BreakerRule {
        let base = self.preset.map_or_else(BreakerRule::default, BreakerPreset::rule);
        let slow = self.slow_ratio.zip(self.slow_threshold);
        let writes = self.error_ratio.is_some() || slow.is_some() || self.error_count.is_some();
        let (error_ratio, slow) = if writes { (self.error_ratio, slow) } else { (base.error_ratio, base.slow) };
        BreakerRule {
            error_ratio,
            slow,
            error_count: self.error_count,
            comparator: self.comparator.unwrap_or(base.comparator),
            window: self.window.unwrap_or(base.window),
            // A window that is written is instead of a preset's count.
            window_requests: self.window_requests.or(base.window_requests.filter(|_| self.window.is_none())),
            min_requests: self.min_requests.unwrap_or(base.min_requests),
            open_for: self.open_for.unwrap_or(base.open_for),
            probes: self.probes.unwrap_or(base.probes),
        }
    }
}

impl Default for BreakerRule {
    /// Without a threshold.
    fn default() -> Self {
        Self {
            error_ratio: None,
            slow: None,
            error_count: None,
            comparator: Comparator::Above,
            window: Duration::from_secs(10),
            window_requests: None,
            min_requests: 20,
            open_for: Duration::from_secs(30),
            probes: 1,
        }
    }
}

impl BreakerPreset {
    fn rule(self) -> BreakerRule {
        let half = BreakerRule { error_ratio: Some(Ratio::percent(50)), ..BreakerRule::default() };
        match self {
            // HystrixCommandProperties: 10 s in 10 buckets, requestVolumeThreshold 20, errorThresholdPercentage 50,
            // sleepWindow 5 s.
            Self::Hystrix => BreakerRule { comparator: Comparator::AtLeast, open_for: Duration::from_secs(5), ..half },
            // DegradeRule: statIntervalMs 1000, minRequestAmount 5.
            Self::Sentinel => BreakerRule {
                window: Duration::from_secs(1),
                min_requests: 5,
                open_for: Duration::from_secs(10),
                ..half
            },
            // CircuitBreakerConfig: COUNT_BASED 100, minimumNumberOfCalls 100, slowCallRateThreshold 100 over 60 s,
            // waitDurationInOpenState 60 s, permittedNumberOfCallsInHalfOpenState 10.
            Self::Resilience4j => BreakerRule {
                slow: Some((Ratio::WHOLE, Duration::from_secs(60))),
                comparator: Comparator::AtLeast,
                window_requests: Some(100),
                min_requests: 100,
                open_for: Duration::from_secs(60),
                probes: 10,
                ..half
            },
            Self::Source => half,
        }
    }
}

record! {
    /// How many requests a service has at once, over all of a gateway's workers; more wait in order, and the rest is answered 503 `too-many-requests-pending` at once.
    Concurrency as "`concurrency`" {
        /// Requests at once. Must be written unless `adaptive` is.
        max: u32 = 0,
        /// Instead of `max`: as many as the service bears, found out while it serves.
        adaptive: Option<Adaptive> = None,
        /// Requests that wait for a place.
        pending: u32 = 0,
        /// How long one waits at most, within its route's timeout; then 503 `pending-too-long`.
        max_wait: Duration = Duration::from_secs(10),
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}

record! {
    /// Envoy's gradient controller: as long as the median of answers takes hardly longer than with few requests at a time, more pass at once, else fewer.
    Adaptive as "`adaptive`" {
        /// Never fewer at once. The shortest time is measured with so many.
        min: u32 = 3,
        /// Never more.
        max: u32 = 1_000,
        /// How often the limit is worked out.
        interval: Duration = Duration::from_millis(100),
        /// How often the shortest time is measured; up to 15 % later each time, so that not all gateways do at once.
        min_rtt_interval: Duration = Duration::from_secs(60),
        /// Of how many requests.
        min_rtt_requests: u32 = 50,
        /// By how much of the shortest time answers may take longer before the limit falls.
        buffer: Ratio = Ratio::percent(25),
    }
}

record! {
    /// What is answered instead, with the reason in `Seawall-Reason`: a kept answer, if `cached` is there and one was kept; else another service's, if `service` is there and it answers; else a fixed one, unless neither `status` nor `body` nor `headers` is written beside them.
    Fallback as "`fallback`" {
        /// Another service gets the request: its guards hold, and its own fallback. Not when the request's time is over, nor when more of its body was sent than `replayLimitBytes` keeps.
        service: Option<ServiceName> = None,
        /// For so long the last good answer to a GET is kept and given to whoever asks for the same host, path and query, with `Age` and `Warning: 110`. Kept are answers of status 200 that a shared cache may serve stale: none to a request with `Authorization`, or with `Cookie` unless they say `Cache-Control: public`, none with `Set-Cookie`, none that vary by more than `Accept-Encoding`, none of more than 1 MiB.
        cached: Option<Duration> = None,
        /// The most bytes of kept answers.
        max_cached_bytes: u64 = 8_388_608,
        /// The most kept answers; the one kept longest ago goes first.
        max_cached_answers: u32 = 1_000,
        /// The fixed answer's status: 200 to 599, but for 205 and 304; 503 when absent.
        status: Option<u16> = None,
        /// Its body.
        body: String = String::new(),
        /// Its fields, `content-type` among them.
        headers: BTreeMap<String, String> = BTreeMap::new(),
    }
}

impl Fallback {
    /// Whether there is a fixed answer.
    pub fn is_fixed(&self) -> bool {
        let alone = self.service.is_none() && self.cached.is_none();
        alone || self.status.is_some() || !self.body.is_empty() || !self.headers.is_empty()
    }

    /// Its status.
    pub fn fixed_status(&self) -> u16 {
        self.status.unwrap_or(503)
    }
}

record! {
    /// Envoy's outlier detection by failures in a row: 5xx, connections that cannot be made or break, answers that are no HTTP, answers that do not come in time. Never the last instance that serves.
    Outlier as "`outlier`" {
        /// Failures in a row.
        consecutive_errors: u32 = 5,
        /// How long the instance gets nothing; twice that the second time in a row and so on, 5 minutes at most.
        eject_for: Duration = Duration::from_secs(30),
        /// The most instances that are ejected at a time; one may always be.
        max_ejected: Ratio = Ratio::percent(50),
        /// With fewer instances than this ready and not ejected, ejections are not heeded, so that few are not overrun.
        panic_threshold: Ratio = Ratio::percent(50),
        /// Failures are counted within this time, whatever succeeds between them, as nginx does; in a row when absent.
        within: Option<Duration> = None,
        /// Whether an answer of 500 or more is a failure.
        server_errors: bool = true,
        /// Whether each ejection is longer than the one before.
        growing: bool = true,
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}

record! {
    /// Envoy's retry budget. A request beyond it waits within `hold.maxWait`, or is given up where holding is off.
    RetryBudget as "`retryBudget`" {
        /// Of the requests under way.
        part: Ratio = Ratio::percent(20),
        /// At least so many.
        min_concurrency: u32 = 3,
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        default_of()
    }
}
