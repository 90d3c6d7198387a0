//! Sentinel's rules. What each field means is read from `FlowRule`, `DegradeRule`, `ParamFlowRule`, `SystemRule` and the classes
//! that check them (`FlowRuleChecker`, `DefaultController`, `WarmUpController`, `ThrottlingController`,
//! `WarmUpRateLimiterController`, `ResponseTimeCircuitBreaker`, `ExceptionCircuitBreaker`, `ParamFlowChecker`,
//! `SystemRuleManager`) of Sentinel 1.8. Here are degrade rules, and what all kinds share.

mod flow;
mod param;
mod system;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use regex_lite::Regex;

use super::super::decode::{Decode, Places, Ratio, record};
use super::super::{BreakerPreset, BreakerScope, CircuitBreaker, yaml};
use super::{Guard, Ignored, Number, OriginKind, Sentinel, Target, plain};
use crate::diagnostic::{Diagnostics, Place};
use crate::id::ServiceName;
pub(super) use flow::flow;
pub(super) use param::param_flow;
pub(super) use system::system;

/// The most rules of a file.
const MAX_RULES: usize = 10_000;
/// Beside which rules their origin and pattern are asked: the words of Sentinel's `AbstractRule`.
const ANYBODY: &str = "default";

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

/// Puts degrade rules in force. Several of one resource become one breaker, which opens by any of them.
pub(super) fn degrade(target: &mut Target<'_>, told: &Sentinel, text: &str, file: u16) {
    let mut breakers: BTreeMap<ServiceName, (CircuitBreaker, Place)> = BTreeMap::new();
    for rule in rules::<DegradeRule>(target, text, file) {
        let mut refusals = Refusals { target, at: &rule.at, count: 0 };
        let breaker = breaker(&mut refusals, &rule);
        let services = refusals.services(told, &rule.resource, rule.regex);
        let (0, Some(breaker)) = (refusals.count, breaker) else { continue };
        for service in services {
            join(target, &mut breakers, (&rule, &breaker), service);
        }
    }
    for (service, (breaker, place)) in breakers {
        target.guard(&service, Guard::Breaker(breaker), OriginKind::DegradeRule, place);
    }
}

fn breaker(refusals: &mut Refusals<'_, '_>, rule: &DegradeRule) -> Option<CircuitBreaker> {
    if let Some(app) = rule.limit_app.as_deref().filter(|app| *app != ANYBODY && !app.is_empty()) {
        let what = format!("`limitApp: {app}`, which Sentinel does not ask here");
        refusals.add("limitApp", &what, "`default`");
    }
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
        from: None,
        at: rule.at.renamed(&measure(rule.grade)),
    };
    let part = |number: Number| (0.0..=1.0).contains(&number.0).then(|| Ratio((number.0 * 1e6).round() as u32));
    match rule.grade {
        0 => {
            breaker.slow_ratio = part(rule.slow_ratio_threshold);
            if breaker.slow_ratio.is_none() {
                refusals.add("slowRatioThreshold", "a part of more than 1", "0 to 1");
            }
            breaker.slow_threshold = rule.count.whole().map(|milliseconds| Duration::from_millis(milliseconds.into()));
            if breaker.slow_threshold.is_none() {
                refusals.add("count", "`count` is in whole milliseconds with grade 0", "e.g. 200");
            }
        }
        1 => {
            breaker.error_ratio = part(rule.count);
            if breaker.error_ratio.is_none() {
                refusals.add("count", "`count` is a part with grade 1", "0 to 1, e.g. 0.5");
            }
        }
        2 => {
            breaker.error_count = rule.count.whole();
            if breaker.error_count.is_none() {
                refusals.add("count", "`count` is a whole number with grade 2", "e.g. 10");
            }
        }
        _ => {
            refusals.add("grade", "there is no such `grade`", "0 slow calls, 1 part of errors, 2 number of errors");
            return None;
        }
    }
    Some(breaker)
}

/// Adds a rule's breaker to what other rules have for the service.
fn join(
    target: &mut Target<'_>,
    breakers: &mut BTreeMap<ServiceName, (CircuitBreaker, Place)>,
    (rule, breaker): (&DegradeRule, &CircuitBreaker),
    service: ServiceName,
) {
    let at = &rule.at;
    let Some((known, _)) = breakers.get_mut(&service) else {
        breakers.insert(service, (breaker.clone(), at.whole));
        return;
    };
    let mut refuse = |field: &str, what: &str, cure: &str| target.diagnostics.error(at.field(field), what, cure);
    let frame = |breaker: &CircuitBreaker| (breaker.window, breaker.min_requests, breaker.open_for);
    if frame(known) != frame(breaker) {
        let line = known.at.whole.line;
        let what =
            format!("another rule for `{}` (line {line}) looks at another time, or opens for another", rule.resource);
        refuse("resource", &what, "give both the same statIntervalMs, minRequestAmount and timeWindow");
        return;
    }
    let is_twice = (known.error_ratio.is_some() && breaker.error_ratio.is_some())
        || (known.slow_ratio.is_some() && breaker.slow_ratio.is_some())
        || (known.error_count.is_some() && breaker.error_count.is_some());
    if is_twice {
        let line = known.at.whole.line;
        let what = format!("another rule for `{}` (line {line}) has this grade already", rule.resource);
        refuse("resource", &what, "the stricter one is enough: remove the other");
        return;
    }
    known.error_ratio = known.error_ratio.or(breaker.error_ratio);
    known.slow_ratio = known.slow_ratio.or(breaker.slow_ratio);
    known.slow_threshold = known.slow_threshold.or(breaker.slow_threshold);
    known.error_count = known.error_count.or(breaker.error_count);
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

/// Everything that refuses a rule, not only the first.
struct Refusals<'r, 't> {
    target: &'r mut Target<'t>,
    at: &'r Places,
    count: usize,
}

impl Refusals<'_, '_> {
    fn add(&mut self, field: &str, what: &str, cure: &str) {
        self.count += 1;
        self.target.diagnostics.error(self.at.field(field), what, cure);
    }

    /// The services that a rule's resource means.
    fn services(&mut self, told: &Sentinel, resource: &str, regex: bool) -> Vec<ServiceName> {
        if !regex {
            let place = self.at.field("resource");
            let service = self.target.service("resource", resource, &told.resources, place);
            self.count += usize::from(service.is_none());
            return service.into_iter().collect();
        }
        let pattern = match Regex::new(&format!("^(?:{resource})$")) {
            Ok(pattern) => pattern,
            Err(error) => {
                let what = format!("`{resource}` is no regular expression: {error}");
                self.add("resource", &what, "write `\\` before a character that is meant as it stands");
                return Vec::new();
            }
        };
        let services = &self.target.config.services;
        let aliases = told.resources.iter().filter(|(name, _)| pattern.is_match(name)).map(|(_, service)| service);
        let own = services.keys().filter(|name| pattern.is_match(name.as_str()));
        let found: BTreeSet<ServiceName> =
            aliases.filter(|service| services.contains_key(*service)).chain(own).cloned().collect();
        if found.is_empty() {
            let what = format!("no service and no name under `resources` is as `{resource}`");
            self.add("resource", &what, "the expression is of the whole name");
        }
        found.into_iter().collect()
    }
}

/// The rules of a file. JSON is YAML, so each knows its place.
fn rules<T: Decode>(target: &mut Target<'_>, text: &str, file: u16) -> Vec<T> {
    let mut found = Diagnostics::default();
    let Some(node) = yaml::parse(text, file, &mut found) else {
        // Whoever writes JSON does not want to hear of YAML.
        match serde_json::from_str::<serde::de::IgnoredAny>(text) {
            Err(error) => {
                let number = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
                let place = Place { file, line: number(error.line()), column: number(error.column()) };
                let what = error.to_string();
                let what = what.split(" at line ").next().unwrap_or_default();
                let cure = "a list of rules: [{\"resource\": …}, …]";
                target.diagnostics.error(place, format!("not JSON: {what}"), cure);
            }
            Ok(_) => target.diagnostics.append(found),
        }
        return Vec::new();
    };
    let rules = Vec::<T>::decode(&node, target.diagnostics).unwrap_or_default();
    if rules.len() > MAX_RULES {
        let what = format!("{} rules; the limit is {MAX_RULES}", rules.len());
        target.diagnostics.error(node.place, what, "leave out those that no service needs");
        return Vec::new();
    }
    rules
}

/// What the rules of each kind may have.
#[cfg(test)]
pub(super) fn schemas(definitions: &mut BTreeMap<String, serde_json::Value>) -> [(&'static str, serde_json::Value); 4] {
    [
        ("Sentinel: FlowRule", flow::FlowRule::schema(definitions)),
        ("Sentinel: DegradeRule", DegradeRule::schema(definitions)),
        ("Sentinel: ParamFlowRule", param::ParamFlowRule::schema(definitions)),
        ("Sentinel: SystemRule", system::SystemRule::schema(definitions)),
    ]
}
