//! Sentinel's rules. What each field means is read from `FlowRule`, `DegradeRule` and the classes that check them
//! (`DefaultController`, `WarmUpController`, `ThrottlingController`, `WarmUpRateLimiterController`, `ResponseTimeCircuitBreaker`,
//! `ExceptionCircuitBreaker`) of Sentinel 1.8.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::decode::{Decode, Places, Ratio, record};
use super::super::{Behaviour, BreakerPreset, BreakerScope, CircuitBreaker, Concurrency, RateLimit, yaml};
use super::{Guard, Ignored, Number, Target};
use crate::diagnostic::Place;
use crate::id::ServiceName;

/// The most rules of a file.
const MAX_RULES: usize = 10_000;
/// Beside which rules their origin and pattern are asked: the words of Sentinel's `AbstractRule`.
const ANYBODY: &str = "default";

type Names = BTreeMap<String, ServiceName>;

record! {
    /// A limit on how much of a resource is used.
    FlowRule as "a FlowRule" {
        /// Its number, which means nothing here.
        id: Option<Ignored> = None,
        /// What is limited.
        resource: String,
        /// Whose use.
        limit_app: Option<String> = None,
        /// Whether the resource is a pattern.
        regex: bool = false,
        /// 0: at once, 1: a second.
        grade: u32 = 1,
        /// How many.
        count: Number,
        /// 0: the resource itself, 1: related, 2: by entrance.
        strategy: u32 = 0,
        /// The other resource of strategies 1 and 2.
        ref_resource: Option<String> = None,
        /// 0: rejected, 1: warm-up, 2: queue, 3: both.
        control_behavior: u32 = 0,
        /// Of 1 and 3.
        warm_up_period_sec: u32 = 10,
        /// Of 2 and 3.
        max_queueing_time_ms: u32 = 500,
        /// Over several machines together.
        cluster_mode: bool = false,
        /// Of that.
        cluster_config: Option<Ignored> = None,
    }
}

record! {
    /// When a resource is not used for a while.
    DegradeRule as "a DegradeRule" {
        /// Its number, which means nothing here.
        id: Option<Ignored> = None,
        /// What is guarded.
        resource: String,
        /// Whose use.
        limit_app: Option<String> = None,
        /// Whether the resource is a pattern.
        regex: bool = false,
        /// 0: part of slow calls, 1: part of errors, 2: number of errors.
        grade: u32 = 0,
        /// Milliseconds beyond which a call is slow, or the part, or the number.
        count: Number,
        /// Seconds that it stays open.
        time_window: u32,
        /// With fewer calls nothing is judged.
        min_request_amount: u32 = 5,
        /// Of grade 0.
        slow_ratio_threshold: Number = Number(1.0),
        /// The time looked at.
        stat_interval_ms: u32 = 1000,
    }
}

/// Puts flow rules in force.
pub(super) fn flow(target: &mut Target<'_>, names: &Names, text: &str, file: u16) {
    for rule in rules::<FlowRule>(target, text, file) {
        let at = rule.at.clone();
        if !common(target, &at, rule.limit_app.as_deref(), rule.regex) {
            continue;
        }
        let mut refuse = |field: &str, what: &str, cure: &str| target.diagnostics.error(at.field(field), what, cure);
        if rule.strategy != 0 {
            let what = format!("`strategy: {}` (related, or by entrance) has no counterpart here", rule.strategy);
            refuse("strategy", &what, "leave the rule out, or limit the resource itself: strategy 0");
            continue;
        }
        if rule.cluster_mode {
            let what = "`clusterMode: true`: each gateway limits what passes through itself";
            refuse("clusterMode", what, "divide `count` by the gateways, and set clusterMode to false");
            continue;
        }
        let Some(count) = rule.count.whole() else {
            refuse("count", "a `count` with a fraction", "a whole number");
            continue;
        };
        let behaviour = match (rule.grade, rule.control_behavior) {
            (0, _) => None,
            (1, 0) => Some(Behaviour::Window),
            (1, 1) => Some(Behaviour::WarmUp),
            (1, 2) => Some(Behaviour::Queue),
            (1, 3) => Some(Behaviour::WarmUpQueue),
            (1, _) => {
                refuse("controlBehavior", "there is no such `controlBehavior`", "0 reject, 1 warm-up, 2 queue, 3 both");
                continue;
            }
            _ => {
                refuse("grade", "there is no such `grade`", "0 for requests at once, 1 for requests a second");
                continue;
            }
        };
        let Some(service) = target.service("resource", &rule.resource, names, at.field("resource")) else { continue };
        let guard = match behaviour {
            Some(behaviour) => Guard::Limit(limit(&rule, count, behaviour)),
            None => Guard::Concurrency(Concurrency {
                adaptive: None,
                max: count,
                pending: 0,
                max_wait: Duration::from_secs(10),
                at: at.renamed(&[("count", "max")]),
            }),
        };
        target.guard(&service, guard, at.whole);
    }
}

fn limit(rule: &FlowRule, qps: u32, behaviour: Behaviour) -> RateLimit {
    let mut names = vec![("count", "qps"), ("controlBehavior", "behaviour")];
    // What does not belong to the behaviour is written by most tools all the same.
    match behaviour {
        Behaviour::WarmUp => names.push(("warmUpPeriodSec", "warmUpPeriod")),
        Behaviour::Queue => names.push(("maxQueueingTimeMs", "maxQueueingTime")),
        Behaviour::WarmUpQueue => {
            names.extend([("warmUpPeriodSec", "warmUpPeriod"), ("maxQueueingTimeMs", "maxQueueingTime")]);
        }
        Behaviour::Reject | Behaviour::Window => {}
    }
    RateLimit {
        qps,
        burst: None,
        key: None,
        max_keys: 10_000,
        behaviour,
        warm_up_period: Duration::from_secs(rule.warm_up_period_sec.into()),
        cold_factor: 3,
        max_queueing_time: Duration::from_millis(rule.max_queueing_time_ms.into()),
        at: rule.at.renamed(&names),
    }
}

/// Puts degrade rules in force. Several of one resource become one breaker, which opens by any of them.
pub(super) fn degrade(target: &mut Target<'_>, names: &Names, text: &str, file: u16) {
    let mut breakers: BTreeMap<ServiceName, (CircuitBreaker, Place)> = BTreeMap::new();
    for rule in rules::<DegradeRule>(target, text, file) {
        let at = rule.at.clone();
        if !common(target, &at, rule.limit_app.as_deref(), rule.regex) {
            continue;
        }
        let Some(service) = target.service("resource", &rule.resource, names, at.field("resource")) else { continue };
        let mut breaker = CircuitBreaker {
            preset: Some(BreakerPreset::Sentinel),
            error_ratio: None,
            slow_ratio: None,
            slow_threshold: None,
            error_count: None,
            comparator: None,
            window: Some(Duration::from_millis(rule.stat_interval_ms.into())),
            window_requests: None,
            min_requests: Some(rule.min_request_amount),
            open_for: Some(Duration::from_secs(rule.time_window.into())),
            probes: None,
            per: BreakerScope::Service,
            at: at.renamed(&measure(rule.grade)),
        };
        let mut refuse = |field: &str, what: &str, cure: &str| target.diagnostics.error(at.field(field), what, cure);
        let part = |number: Number| (0.0..=1.0).contains(&number.0).then(|| Ratio((number.0 * 1e6).round() as u32));
        match rule.grade {
            0 => {
                let Some(ratio) = part(rule.slow_ratio_threshold) else {
                    refuse("slowRatioThreshold", "a part of more than 1", "0 to 1");
                    continue;
                };
                let Some(milliseconds) = rule.count.whole() else {
                    refuse("count", "`count` is in whole milliseconds with grade 0", "e.g. 200");
                    continue;
                };
                (breaker.slow_ratio, breaker.slow_threshold) =
                    (Some(ratio), Some(Duration::from_millis(milliseconds.into())));
            }
            1 => {
                let Some(ratio) = part(rule.count) else {
                    refuse("count", "`count` is a part with grade 1", "0 to 1, e.g. 0.5");
                    continue;
                };
                breaker.error_ratio = Some(ratio);
            }
            2 => {
                let Some(number) = rule.count.whole() else {
                    refuse("count", "`count` is a whole number with grade 2", "e.g. 10");
                    continue;
                };
                breaker.error_count = Some(number);
            }
            _ => {
                refuse("grade", "there is no such `grade`", "0 slow calls, 1 part of errors, 2 number of errors");
                continue;
            }
        }
        let Some((known, _)) = breakers.get_mut(&service) else {
            breakers.insert(service, (breaker, at.whole));
            continue;
        };
        let frame = |breaker: &CircuitBreaker| (breaker.window, breaker.min_requests, breaker.open_for);
        if frame(known) != frame(&breaker) {
            let what = format!(
                "another rule for `{}` (line {}) looks at another time, or opens for another",
                rule.resource, known.at.whole.line
            );
            refuse("resource", &what, "give both the same statIntervalMs, minRequestAmount and timeWindow");
            continue;
        }
        let is_twice = (known.error_ratio.is_some() && breaker.error_ratio.is_some())
            || (known.slow_ratio.is_some() && breaker.slow_ratio.is_some())
            || (known.error_count.is_some() && breaker.error_count.is_some());
        if is_twice {
            let line = known.at.whole.line;
            let what = format!("another rule for `{}` (line {line}) has this grade already", rule.resource);
            refuse("resource", &what, "the stricter one is enough: remove the other");
            continue;
        }
        known.error_ratio = known.error_ratio.or(breaker.error_ratio);
        known.slow_ratio = known.slow_ratio.or(breaker.slow_ratio);
        known.slow_threshold = known.slow_threshold.or(breaker.slow_threshold);
        known.error_count = known.error_count.or(breaker.error_count);
    }
    for (service, (breaker, place)) in breakers {
        target.guard(&service, Guard::Breaker(breaker), place);
    }
}

/// Under which names a rule's fields are checked later on.
fn measure(grade: u32) -> Vec<(&'static str, &'static str)> {
    let mut names = vec![("statIntervalMs", "window"), ("minRequestAmount", "minRequests"), ("timeWindow", "openFor")];
    names.push(match grade {
        0 => ("count", "slowThreshold"),
        1 => ("count", "errorRatio"),
        _ => ("count", "errorCount"),
    });
    names
}

/// What holds for rules of every kind.
fn common(target: &mut Target<'_>, at: &Places, limit_app: Option<&str>, regex: bool) -> bool {
    if let Some(app) = limit_app.filter(|app| *app != ANYBODY && !app.is_empty()) {
        let what = format!("`limitApp: {app}`: callers are not told apart here");
        target.diagnostics.error(at.field("limitApp"), what, "`default`, or a `rateLimit` with a `key` in the service");
    } else if regex {
        let what = "`regex: true`: a rule belongs to one service here";
        target.diagnostics.error(at.field("regex"), what, "a rule for each service");
    } else {
        return true;
    }
    false
}

/// The rules of a file. JSON is YAML, so each knows its place.
fn rules<T: Decode>(target: &mut Target<'_>, text: &str, file: u16) -> Vec<T> {
    let Some(node) = yaml::parse(text, file, target.diagnostics) else { return Vec::new() };
    let rules = Vec::<T>::decode(&node, target.diagnostics).unwrap_or_default();
    if rules.len() > MAX_RULES {
        let what = format!("{} rules; the limit is {MAX_RULES}", rules.len());
        target.diagnostics.error(node.place, what, "leave out those that no service needs");
        return Vec::new();
    }
    rules
}
