//! Sentinel's rules for hot parameters, as `ParamFlowChecker` judges them: each value has a token bucket, a queue, or so many
//! under way, for itself. What the parameters of a resource are is said beside the file: a request has no numbered ones.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::super::decode::{Decode, record, text, wrong};
use super::super::super::yaml::Node;
use super::super::super::{Allowance, AtOnce, Behaviour, LimitKey, Match, RateLimit, WithoutKey};
use super::super::{Guard, Ignored, Number, OriginKind, Sentinel, Target};
use super::{ANYBODY, Refusals, rules};
use crate::diagnostic::Diagnostics;

/// A place in a list: from the end below zero.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Position(i32);

impl Decode for Position {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a whole number";
        let position = text(node, EXPECTED, diagnostics)?.parse().ok();
        if position.is_none() {
            wrong(node, EXPECTED, diagnostics);
        }
        position.map(Self)
    }

    fn encode(&self) -> Value {
        self.0.into()
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "type": "integer" })
    }
}

record! {
    /// A limit on each value of a parameter.
    ParamFlowRule as "a ParamFlowRule" {
        /// Its number, which means nothing here.
        id: Option<Ignored> = None,
        /// What is limited.
        resource: String,
        /// Not asked by Sentinel either.
        limit_app: Option<String> = None,
        /// Whether the resource is a pattern.
        regex: bool = false,
        /// 0: at once, 1: in each `durationInSec`.
        grade: u32 = 1,
        /// Which parameter, from 0; below zero from the end.
        param_idx: Position,
        /// How many.
        count: Number,
        /// 0: rejected, 2: queue.
        control_behavior: u32 = 0,
        /// Of 2.
        max_queueing_time_ms: u32 = 0,
        /// So many more at once, of 0.
        burst_count: u32 = 0,
        /// In how many seconds.
        duration_in_sec: u32 = 1,
        /// Values that have another count.
        param_flow_item_list: Vec<ParamFlowItem> = Vec::new(),
        /// Over several machines together.
        cluster_mode: bool = false,
        /// Of that.
        cluster_config: Option<Ignored> = None,
    }
}

record! {
    /// A value that has another count.
    ParamFlowItem as "`paramFlowItemList`" {
        /// The value.
        object: String,
        /// How Java has it; here it is text, as requests have it.
        class_type: Option<String> = None,
        /// How many.
        count: u32,
    }
}

/// Java's types of a parameter that Sentinel tells apart.
const TYPES: [&str; 17] = [
    "int",
    "long",
    "double",
    "float",
    "byte",
    "short",
    "boolean",
    "char",
    "java.lang.String",
    "java.lang.Integer",
    "java.lang.Long",
    "java.lang.Double",
    "java.lang.Float",
    "java.lang.Byte",
    "java.lang.Short",
    "java.lang.Boolean",
    "java.lang.Character",
];

/// Puts rules for parameters in force.
pub(in super::super) fn param_flow(target: &mut Target<'_>, told: &Sentinel, text: &str, file: u16) {
    for rule in rules::<ParamFlowRule>(target, text, file) {
        put(target, told, &rule);
    }
}

fn put(target: &mut Target<'_>, told: &Sentinel, rule: &ParamFlowRule) {
    let mut refusals = Refusals { target, at: &rule.at, count: 0 };
    check(&mut refusals, rule);
    let count = rule.count.whole();
    if count.is_none() {
        refusals.add("count", "a `count` with a fraction", "a whole number");
    }
    let key = parameter(&mut refusals, told, rule);
    let service = refusals.target.service("resource", &rule.resource, &told.resources, rule.at.field("resource"));
    let (0, Some(count), Some(key), Some(service)) = (refusals.count, count, key, service) else { return };
    let one = |item: &ParamFlowItem| (item.object.clone(), Allowance::Count(item.count));
    let exceptions: BTreeMap<String, Allowance> = rule.param_flow_item_list.iter().map(one).collect();
    let max_keys = u32::try_from(exceptions.len()).unwrap_or(u32::MAX).max(10_000);
    let names = [
        ("count", "qps"),
        ("count", "max"),
        ("paramIdx", "key"),
        ("burstCount", "burst"),
        ("durationInSec", "per"),
        ("controlBehavior", "behaviour"),
        ("paramFlowItemList", "exceptions"),
    ];
    let at = rule.at.renamed(&names);
    let guard = if rule.grade == 0 {
        Guard::AtOnce(AtOnce {
            max: count,
            key: Some(key),
            exceptions,
            only_exceptions: false,
            without_key: WithoutKey::Pass,
            max_keys,
            matches: Match::default(),
            route: None,
            of: None,
            from: None,
            at,
        })
    } else {
        let queues = rule.control_behavior == 2;
        let behaviour = if queues { Behaviour::Queue } else { Behaviour::Bucket };
        let plain = super::plain(count, behaviour, at);
        let waits = Duration::from_millis(rule.max_queueing_time_ms.into());
        Guard::Limit(RateLimit {
            per: Duration::from_secs(rule.duration_in_sec.into()),
            burst: (!queues).then_some(rule.burst_count),
            key: Some(key),
            exceptions,
            // Sentinel: who has no such parameter is not asked.
            without_key: WithoutKey::Pass,
            max_keys,
            max_queueing_time: if queues { waits } else { plain.max_queueing_time },
            ..plain
        })
    };
    target.guard(&service, guard, OriginKind::ParamFlowRule, rule.at.whole);
}

fn check(refusals: &mut Refusals<'_, '_>, rule: &ParamFlowRule) {
    if rule.cluster_mode {
        refusals.add(
            "clusterMode",
            "`clusterMode: true`: each gateway limits what passes through itself",
            "divide `count` by the gateways, and set clusterMode to false",
        );
    }
    if rule.regex {
        refusals.add("regex", "`regex: true` with parameters, which are of one resource", "a rule for each service");
    }
    if let Some(app) = rule.limit_app.as_ref().filter(|app| *app != ANYBODY && !app.is_empty()) {
        let what = format!("`limitApp: {app}`, which Sentinel does not ask here");
        refusals.add("limitApp", &what, "`default`");
    }
    if rule.grade > 1 {
        refusals.add("grade", "there is no such `grade`", "0 for requests at once, 1 for requests in a time");
    }
    if !matches!(rule.control_behavior, 0 | 2) {
        let cure = "0 reject, 2 queue: Sentinel has no other for parameters";
        refusals.add("controlBehavior", "there is no such `controlBehavior`", cure);
    }
    if rule.duration_in_sec == 0 {
        refusals.add("durationInSec", "`durationInSec: 0`", "1 or more seconds");
    }
    for item in &rule.param_flow_item_list {
        if let Some(kind) = item.class_type.as_deref().filter(|kind| !kind.is_empty() && !TYPES.contains(kind)) {
            refusals.count += 1;
            let what = format!("`classType: {kind}` is no type of a parameter");
            refusals.target.diagnostics.error(
                item.at.field("classType"),
                what,
                "e.g. java.lang.String, int or boolean",
            );
        }
    }
}

/// What of a request the parameter is.
fn parameter(refusals: &mut Refusals<'_, '_>, told: &Sentinel, rule: &ParamFlowRule) -> Option<LimitKey> {
    let none = Vec::new();
    let listed = told.parameters.get(&rule.resource).unwrap_or(&none);
    let Position(written) = rule.param_idx;
    let position = if written < 0 { written + i32::try_from(listed.len()).unwrap_or(0) } else { written };
    let key = usize::try_from(position).ok().and_then(|position| listed.get(position));
    if key.is_none() {
        let what = match listed.len() {
            0 => format!("nothing says what the parameters of `{}` are", rule.resource),
            count => format!("there is no parameter {written} of `{}`, which has {count}", rule.resource),
        };
        let cure =
            format!("add parameters: {{ {}: [{{ header: X-User }}] }} beside the file in `include`", rule.resource);
        refusals.add("paramIdx", &what, &cure);
    }
    key.cloned()
}
