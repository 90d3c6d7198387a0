//! Rules of what guards a service's requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::route::{check_field_name, check_field_value};
use crate::config::Service;
use crate::config::traffic::{Adaptive, BreakerScope, CircuitBreaker, Concurrency, Fallback};
use crate::diagnostic::{Diagnostics, Place};
use crate::id::ServiceName;

/// The longest window of a breaker.
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);

/// The longest time that a breaker is open by itself.
const LONGEST_OPEN: Duration = Duration::from_secs(24 * 3600);

/// The most requests a breaker looks at: a byte is kept for each.
const MOST_REQUESTS: u32 = 100_000;

/// The most requests that wait for a place.
const MOST_PENDING: u32 = 100_000;

/// The most kept answers of a fallback, and their bytes.
const MOST_CACHED: u32 = 1_000_000;
const MOST_CACHED_BYTES: u64 = 1 << 30;

/// The longest body of a fallback, in bytes.
const LONGEST_BODY: usize = 65_536;

/// Checks `traffic` of a service.
pub fn check(
    name: &ServiceName,
    service: &Service,
    services: &BTreeMap<ServiceName, Service>,
    diagnostics: &mut Diagnostics,
) {
    let Some(traffic) = &service.traffic else { return };
    let mut error = |place: Place, message: &str, cure: &str| {
        diagnostics.error(place, format!("service `{name}`: {message}"), cure);
    };
    if let Some(breaker) = &traffic.circuit_breaker {
        check_breaker(breaker, &mut error);
    }
    if let Some(outlier) = &traffic.outlier {
        let at = &outlier.at;
        if outlier.consecutive_errors == 0 {
            error(at.field("consecutiveErrors"), "`consecutiveErrors: 0`", "1 or more failures in a row");
        }
        if outlier.eject_for.is_zero() {
            error(at.field("ejectFor"), "`ejectFor: 0` would eject nobody", "e.g. ejectFor: 30s");
        }
    }
    if let Some(shift) = &traffic.shift {
        super::shift::check(shift, &mut error);
    }
    super::shift::check(&traffic.failover.shift, &mut error);
    if !traffic.backup.is_empty() && traffic.circuit_breaker.is_none() {
        let cure = "add circuitBreaker: { preset: source }";
        error(traffic.at.field("backup"), "a `backup` without a `circuitBreaker`, whose opening it waits for", cure);
    }
    if let Some(breaker) = traffic.circuit_breaker.as_ref().filter(|breaker| breaker.per == BreakerScope::Instance)
        && !traffic.backup.is_empty()
    {
        let cure = "remove `per: instance`, or `backup`";
        error(breaker.at.field("per"), "a `backup` waits for the breaker of the service, which it does not have", cure);
    }
    for backup in &traffic.backup {
        if backup == name || !services.contains_key(backup) {
            let place = traffic.at.field("backup");
            error(place, &format!("`{backup}` cannot be its backup"), "name another service of this configuration");
        }
    }
    if let Some(concurrency) = &traffic.concurrency {
        check_concurrency(concurrency, &mut error);
    }
    if let Some(fallback) = &traffic.fallback {
        check_fallback(fallback, &mut error);
        check_other(name, fallback, services, &mut error);
        let place = fallback.at.field("headers");
        for (field, value) in &fallback.headers {
            check_field_name(field, place, diagnostics);
            check_field_value(field, value, place, diagnostics);
        }
    }
}

/// Keys of which one at least opens a breaker; one that cannot be read has its mistake already.
const OPENERS: [&str; 5] = ["preset", "errorRatio", "slowRatio", "slowThreshold", "errorCount"];

type Report<'a> = &'a mut dyn FnMut(Place, &str, &str);

fn check_breaker(breaker: &CircuitBreaker, error: Report<'_>) {
    let at = &breaker.at;
    let rule = breaker.rule();
    let one_of_two = breaker.slow_ratio.is_some() != breaker.slow_threshold.is_some();
    if one_of_two {
        let cure = "write both: slowRatio: 0.5 and slowThreshold: 200ms";
        error(at.whole, "`slowRatio` and `slowThreshold` belong together", cure);
    } else if !OPENERS.iter().any(|key| at.has(key)) && breaker.preset.is_none() {
        let cure = "add errorRatio: 0.5, or slowRatio and slowThreshold, or errorCount, or a preset";
        error(at.whole, "a circuit breaker that nothing opens", cure);
    }
    if breaker.window.is_some() && breaker.window_requests.is_some() {
        error(
            at.field("windowRequests"),
            "both `window` and `windowRequests`",
            "keep one: a time, or a number of requests",
        );
    }
    if rule.window < Duration::from_millis(100) || rule.window > LONGEST_WINDOW {
        error(at.field("window"), "a window of less than 100ms or more than 1h", "e.g. window: 10s");
    }
    if let Some(count) = rule.window_requests {
        if count == 0 || count > MOST_REQUESTS {
            error(
                at.field("windowRequests"),
                "a window of no requests, or of more than 100000",
                "e.g. windowRequests: 100",
            );
        } else if rule.min_requests > count && !at.has("minRequests") {
            let default = rule.min_requests;
            let message =
                format!("a window of {count} requests, and {default} are needed unless `minRequests` says less");
            error(at.field("windowRequests"), &message, &format!("add minRequests: {count}, or a longer window"));
        } else if rule.min_requests > count && breaker.min_requests.is_some() {
            let cure = "lower `minRequests` to `windowRequests` or less";
            error(
                at.field("minRequests"),
                "`minRequests` is more than the window holds: nothing would ever be judged",
                cure,
            );
        }
    }
    if rule.min_requests == 0 {
        error(at.field("minRequests"), "`minRequests: 0`", "1 or more: without a request nothing is judged");
    }
    if rule.open_for.is_zero() {
        error(at.field("openFor"), "`openFor: 0` would never be open", "e.g. openFor: 5s");
    }
    if rule.open_for > LONGEST_OPEN {
        let cure = "e.g. openFor: 30s; `seawall breaker NAME open` holds it open until it is taken back";
        error(at.field("openFor"), "open for more than 24h", cure);
    }
    if rule.probes == 0 || rule.probes > 1000 {
        error(
            at.field("probes"),
            "no probe, or more than 1000",
            "1 or more: only a probe that passes closes the breaker",
        );
    }
}

fn check_concurrency(concurrency: &Concurrency, error: Report<'_>) {
    let at = &concurrency.at;
    match &concurrency.adaptive {
        Some(_) if concurrency.max > 0 => {
            error(at.field("max"), "both `max` and `adaptive`", "keep one; the most that it finds is adaptive.max");
        }
        Some(adaptive) => check_adaptive(adaptive, error),
        None if concurrency.max == 0 && !at.has("max") => {
            error(at.whole, "a limit without a number", "add max: 200, or adaptive: {}");
        }
        None if concurrency.max == 0 => {
            error(at.field("max"), "`max: 0` would turn every request away", "1 or more");
        }
        None => {}
    }
    if concurrency.pending > MOST_PENDING {
        error(
            at.field("pending"),
            "more than 100000 requests would wait",
            "a line as long as can be worked off in time",
        );
    }
    if concurrency.pending > 0 && concurrency.max_wait.is_zero() {
        error(at.field("maxWait"), "`maxWait: 0` with places to wait", "e.g. maxWait: 2s, or pending: 0");
    }
}

fn check_adaptive(adaptive: &Adaptive, error: Report<'_>) {
    let at = &adaptive.at;
    if adaptive.min == 0 || adaptive.min > adaptive.max || adaptive.max > MOST_PENDING {
        error(at.whole, "`min` and `max` leave no limit between 1 and 100000", "e.g. min: 3, max: 1000");
    }
    if !(Duration::from_millis(10)..=Duration::from_secs(60)).contains(&adaptive.interval) {
        error(at.field("interval"), "an interval of less than 10ms, or of more than 60s", "e.g. interval: 100ms");
    }
    if adaptive.min_rtt_interval < adaptive.interval || adaptive.min_rtt_interval > LONGEST_WINDOW {
        let cure = "e.g. minRttInterval: 60s";
        error(
            at.field("minRttInterval"),
            "the shortest time measured more often than `interval`, or less than hourly",
            cure,
        );
    }
    if !(1..=MOST_REQUESTS).contains(&adaptive.min_rtt_requests) {
        let cure = "e.g. minRttRequests: 50";
        error(at.field("minRttRequests"), "a measurement of no request, or of more than 100000", cure);
    }
}

/// The service that answers instead: there is one, and asking on and on does not lead back.
fn check_other(name: &ServiceName, fallback: &Fallback, services: &BTreeMap<ServiceName, Service>, error: Report<'_>) {
    let Some(first) = &fallback.service else { return };
    let place = fallback.at.field("service");
    if !services.contains_key(first) {
        error(place, &format!("`{first}` cannot be its fallback"), "name another service of this configuration");
        return;
    }
    let next = |of: &ServiceName| services.get(of)?.traffic.as_ref()?.fallback.as_ref()?.service.as_ref();
    let mut way = vec![name, first];
    // Another circle, which does not lead back here, is told of at its own services.
    while let Some(service) = way.last().and_then(|last| next(last)).filter(|_| way.last() != Some(&name)) {
        if way[1..].contains(&service) {
            return;
        }
        way.push(service);
    }
    if way.last() == Some(&name) {
        let words: Vec<&str> = way.iter().map(|service| service.as_str()).collect();
        error(place, &format!("its fallback leads back to it: {}", words.join(" -> ")), "end the circle somewhere");
    }
}

fn check_fallback(fallback: &Fallback, error: Report<'_>) {
    let at = &fallback.at;
    let status = fallback.fixed_status();
    if !(200..=599).contains(&status) || matches!(status, 205 | 304) {
        error(at.field("status"), "a fallback cannot have this status", "200 to 599, but for 205 and 304");
    }
    if status == 204 && !fallback.body.is_empty() {
        error(at.field("body"), "204 has no body", "remove `body`, or answer 200");
    }
    for key in ["maxCachedBytes", "maxCachedAnswers"] {
        if at.has(key) && fallback.cached.is_none() {
            error(at.field(key), &format!("`{key}` means nothing without `cached`"), "add cached: 5m, or remove it");
        }
    }
    if fallback.cached.is_some_and(|cached| cached.is_zero()) {
        error(at.field("cached"), "`cached: 0` would keep nothing", "e.g. cached: 5m");
    }
    if !(65_536..=MOST_CACHED_BYTES).contains(&fallback.max_cached_bytes) {
        let message = "room for less than 64 KiB, or for more than 1 GiB";
        error(at.field("maxCachedBytes"), message, "e.g. maxCachedBytes: 8388608");
    }
    if !(1..=MOST_CACHED).contains(&fallback.max_cached_answers) {
        let message = "no room, or room for more than 1000000 answers";
        error(at.field("maxCachedAnswers"), message, "e.g. maxCachedAnswers: 1000");
    }
    if fallback.body.len() > LONGEST_BODY {
        error(at.field("body"), "a body of more than 65536 bytes", "a short one: it is kept in memory");
    }
}
