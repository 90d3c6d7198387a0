//! Sentinel's system rules, as `SystemRuleManager` takes them together: the strictest of each field is in force, for all that
//! enters by this gateway.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::super::Overload;
use super::super::super::decode::{Decode, Places, Ratio, record, text, wrong};
use super::super::super::yaml::Node;
use super::super::origin::is_of;
use super::super::{Ignored, Origin, OriginKind, Target};
use super::rules;
use crate::diagnostic::Diagnostics;

/// A threshold; below zero it is off.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Threshold(f64);

const OFF: Threshold = Threshold(-1.0);

impl Threshold {
    fn is_on(self) -> bool {
        self.0 >= 0.0
    }
}

impl Decode for Threshold {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a number, or -1 for none";
        let number = text(node, EXPECTED, diagnostics)?.parse().ok().filter(|number: &f64| number.abs() < 1e15);
        if number.is_none() {
            wrong(node, EXPECTED, diagnostics);
        }
        number.map(Self)
    }

    fn encode(&self) -> Value {
        self.0.into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "number" })
    }
}

record! {
    /// What the whole bears.
    SystemRule as "a SystemRule" {
        /// Its number, which means nothing here.
        id: Option<Ignored> = None,
        /// Of no resource.
        resource: Option<Ignored> = None,
        /// Of no caller.
        limit_app: Option<Ignored> = None,
        /// Of no pattern.
        regex: Option<Ignored> = None,
        /// The load over a minute.
        highest_system_load: Threshold = OFF,
        /// 0 to 1.
        highest_cpu_usage: Threshold = OFF,
        /// Requests a second.
        qps: Threshold = OFF,
        /// Milliseconds.
        avg_rt: Threshold = OFF,
        /// Requests at once, beyond which the next is refused.
        max_thread: Threshold = OFF,
    }
}

/// Puts system rules in force.
pub(in super::super) fn system(target: &mut Target<'_>, text: &str, file: u16) {
    let mut overload: Option<Overload> = None;
    for rule in rules::<SystemRule>(target, text, file) {
        check(target, &rule);
        let at = rule.at.renamed(&[
            ("highestSystemLoad", "load"),
            ("highestCpuUsage", "cpu"),
            ("qps", "qps"),
            ("avgRt", "averageTime"),
            ("maxThread", "concurrent"),
        ]);
        let known = overload.get_or_insert_with(|| Overload {
            qps: None,
            concurrent: None,
            average_time: None,
            load: None,
            cpu: None,
            from: Some(Origin::new(OriginKind::SystemRule, "")),
            at: Places::default(),
        });
        let on = |threshold: Threshold| threshold.is_on().then_some(threshold.0);
        let count = |number: f64| number.min(f64::from(u32::MAX)) as u32;
        known.qps = least(known.qps, on(rule.qps).map(count));
        // Sentinel refuses while more than that are under way, the next one not counted.
        known.concurrent = least(known.concurrent, on(rule.max_thread).map(|most| count(most).saturating_add(1)));
        known.average_time = least(known.average_time, on(rule.avg_rt).map(|ms| Duration::from_secs_f64(ms / 1e3)));
        known.cpu =
            least(known.cpu, on(rule.highest_cpu_usage).map(|part| Ratio((part.min(1.0) * 1e6).round() as u32)));
        known.load = least(known.load, on(rule.highest_system_load));
        known.at = known.at.with(&at);
    }
    let Some(overload) = overload else { return };
    if target.replaced.is_some() {
        let own = |overload: &mut Overload| is_of(overload.from.as_ref(), OriginKind::SystemRule);
        target.config.gateway.overload.take_if(own);
    }
    if let Some(known) = &target.config.gateway.overload {
        let message = format!("`gateway.overload` is there already ({})", target.named(known.at.whole));
        target.diagnostics.error(overload.at.whole, message, "remove one of the two");
        return;
    }
    let bounds = [overload.qps.is_some(), overload.concurrent.is_some(), overload.average_time.is_some()];
    if bounds.contains(&true) || overload.load.is_some() || overload.cpu.is_some() {
        target.config.gateway.overload = Some(overload);
    }
}

fn least<T: PartialOrd>(known: Option<T>, other: Option<T>) -> Option<T> {
    match (known, other) {
        (Some(known), Some(other)) => Some(if other < known { other } else { known }),
        (known, other) => known.or(other),
    }
}

fn check(target: &mut Target<'_>, rule: &SystemRule) {
    let mut refuse = |field: &str, what: &str, cure: &str| target.diagnostics.error(rule.at.field(field), what, cure);
    if rule.highest_cpu_usage.0 > 1.0 {
        refuse("highestCpuUsage", "`highestCpuUsage` of more than 1, which Sentinel ignores", "a part of 1, e.g. 0.8");
    }
    if rule.qps.is_on() && rule.qps.0 < 1.0 {
        refuse("qps", "a rate that lets nothing through", "1 or more, or -1 for none");
    }
    if rule.avg_rt.0 == 0.0 {
        refuse("avgRt", "`avgRt: 0` would refuse everything", "milliseconds, or -1 for none");
    }
}
