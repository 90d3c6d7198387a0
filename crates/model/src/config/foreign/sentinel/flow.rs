//! Sentinel's flow rules, as `FlowRuleChecker` chooses whose statistics a rule looks at, and its controllers judge by them.
//! Rules for callers by name are one limit by key with an exception for each, so that many of them cost no more than one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::super::decode::{Places, record};
use super::super::super::{
    Allowance, AtOnce, Behaviour, Concurrency, Condition, LimitKey, Match, RateLimit, WithoutKey,
};
use super::super::{Guard, Ignored, Number, OriginKind, Sentinel, Target};
use super::{ANYBODY, Refusals, rules};
use crate::diagnostic::Place;
use crate::id::ServiceName;

/// The word for callers that no rule of the resource names.
const OTHERS: &str = "other";

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
        /// The other resource of strategy 1, the entrance of 2.
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

/// Rules for callers by name that are kept in the same way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    AtOnce,
    Window,
    /// With how many milliseconds of waiting at most.
    Queue(u32),
}

/// They become one limit by key.
struct ByCaller {
    named: BTreeMap<String, u32>,
    others: Option<u32>,
    at: Places,
    /// Where the first of several counts stands.
    first: Place,
}

/// A rule that has been read, for a service.
struct Read<'r> {
    rule: &'r FlowRule,
    service: ServiceName,
    count: u32,
    /// `None`: what is under way at once.
    behaviour: Option<Behaviour>,
    of: Option<ServiceName>,
}

/// Puts flow rules in force.
pub(in super::super) fn flow(target: &mut Target<'_>, told: &Sentinel, text: &str, file: u16) {
    let rules = rules::<FlowRule>(target, text, file);
    let read: Vec<Read<'_>> = rules.iter().flat_map(|rule| read(target, told, rule)).collect();
    let mut named: BTreeMap<&ServiceName, BTreeSet<&str>> = BTreeMap::new();
    for read in &read {
        named.entry(&read.service).or_default().extend(app(read.rule).filter(|app| *app != OTHERS));
    }
    let mut groups: BTreeMap<(ServiceName, Kept), ByCaller> = BTreeMap::new();
    for read in &read {
        put(target, told, read, &mut groups);
    }
    for ((service, kept), mut group) in groups {
        let exceptions: BTreeMap<String, Allowance> =
            group.named.iter().map(|(app, count)| (app.clone(), Allowance::Count(*count))).collect();
        let mut limited = exceptions;
        if group.others.is_some() {
            // Callers that rules of another kind name are not among the others.
            for app in named.get(&service).into_iter().flatten() {
                limited.entry((*app).to_owned()).or_insert(Allowance::Unlimited);
            }
        }
        group.at.whole = group.first;
        let keyed = (told.origin.clone(), limited, group.others.is_none());
        let most = group.others.or(group.named.values().copied().max()).unwrap_or(1).max(1);
        let guard = match kept {
            Kept::AtOnce => Guard::AtOnce(at_once(most, keyed, group.at)),
            Kept::Window => Guard::Limit(by_caller(most, keyed, Behaviour::Window, 0, group.at)),
            Kept::Queue(ms) => Guard::Limit(by_caller(most, keyed, Behaviour::Queue, ms, group.at)),
        };
        target.guard(&service, guard, OriginKind::FlowRule, group.first);
    }
}

/// Whose use a rule limits; nobody in particular where it says nothing.
fn app(rule: &FlowRule) -> impl Iterator<Item = &str> {
    rule.limit_app.as_deref().filter(|app| *app != ANYBODY && !app.is_empty()).into_iter()
}

/// A rule for each service that it is about, or everything that refuses it.
fn read<'r>(target: &mut Target<'_>, told: &Sentinel, rule: &'r FlowRule) -> Vec<Read<'r>> {
    let mut refusals = Refusals { target, at: &rule.at, count: 0 };
    if rule.cluster_mode {
        refusals.add(
            "clusterMode",
            "`clusterMode: true`: each gateway limits what passes through itself",
            "divide `count` by the gateways, and set clusterMode to false",
        );
    }
    let count = rule.count.whole();
    if count.is_none() {
        refusals.add("count", "a `count` with a fraction", "a whole number");
    }
    let behaviour = match (rule.grade, rule.control_behavior) {
        (0, _) => Some(None),
        (1, 0) => Some(Some(Behaviour::Window)),
        (1, 1) => Some(Some(Behaviour::WarmUp)),
        (1, 2) => Some(Some(Behaviour::Queue)),
        (1, 3) => Some(Some(Behaviour::WarmUpQueue)),
        (1, _) => {
            let cure = "0 reject, 1 warm-up, 2 queue, 3 both";
            refusals.add("controlBehavior", "there is no such `controlBehavior`", cure);
            None
        }
        _ => {
            refusals.add("grade", "there is no such `grade`", "0 for requests at once, 1 for requests a second");
            None
        }
    };
    let has_reference = rule.ref_resource.as_ref().is_some_and(|name| !name.is_empty());
    match rule.strategy {
        0 => {}
        1 | 2 if !has_reference => {
            refusals.add("strategy", "a `strategy` without `refResource`", "name the resource, or the entrance");
        }
        1 if !matches!(behaviour, Some(None | Some(Behaviour::Window))) => {
            let cure = "controlBehavior 0: another resource's use is only counted";
            refusals.add("controlBehavior", "`strategy: 1` with a warm-up or a queue", cure);
        }
        1 | 2 => {}
        _ => refusals.add("strategy", "there is no such `strategy`", "0 direct, 1 related, 2 by entrance"),
    }
    if let Some(app) = app(rule).next() {
        if told.origin.is_none() {
            let what = format!("`limitApp: {app}`, and nothing says where a caller's name stands");
            refusals.add("limitApp", &what, "add origin: { header: X-Client } beside the file in `include`");
        }
        let by_key = rule.strategy == 0 && matches!(behaviour, Some(None | Some(Behaviour::Window)));
        if app == OTHERS && !by_key {
            let what = "`limitApp: other` with a strategy, a warm-up or a queue";
            refusals.add("limitApp", what, "strategy 0 with controlBehavior 0, or rules for callers by name");
        }
    }
    let services = refusals.services(told, &rule.resource, rule.regex);
    let of = match (rule.strategy, &rule.ref_resource) {
        (1, Some(name)) if has_reference => {
            let place = rule.at.field("refResource");
            let of = refusals.target.service("resource", name, &told.resources, place);
            refusals.count += usize::from(of.is_none());
            of
        }
        _ => None,
    };
    let (0, Some(count), Some(behaviour)) = (refusals.count, count, behaviour) else { return Vec::new() };
    let one = |service| Read { rule, service, count, behaviour, of: of.clone() };
    services.into_iter().map(one).collect()
}

/// Puts one rule in force, or adds it to those that become one limit.
fn put(
    target: &mut Target<'_>,
    told: &Sentinel,
    read: &Read<'_>,
    groups: &mut BTreeMap<(ServiceName, Kept), ByCaller>,
) {
    let Read { rule, service, count, behaviour, of } = read;
    let app = app(rule).next();
    let kept = match behaviour {
        None => Some(Kept::AtOnce),
        Some(Behaviour::Window) => Some(Kept::Window),
        Some(Behaviour::Queue) => Some(Kept::Queue(rule.max_queueing_time_ms)),
        _ => None,
    };
    if let (Some(app), Some(kept), 0) = (app, kept, rule.strategy) {
        let first = rule.at.whole;
        let group = groups.entry((service.clone(), kept)).or_insert_with(|| ByCaller {
            named: BTreeMap::new(),
            others: None,
            at: rule.at.renamed(&[("count", "qps"), ("count", "max"), ("limitApp", "key")]),
            first,
        });
        let twice = match app {
            OTHERS => group.others.replace(*count).is_some(),
            app => group.named.insert(app.to_owned(), *count).is_some(),
        };
        if twice {
            let what = format!("another rule for `{}` limits `{app}` already", rule.resource);
            target.diagnostics.error(rule.at.field("limitApp"), what, "the stricter one is enough: remove the other");
        }
        return;
    }
    let matches = app.map_or_else(Match::default, |app| called_by(told.origin.as_ref(), app));
    let route = match (rule.strategy, &rule.ref_resource) {
        (2, Some(entrance)) => Some(told.entrances.get(entrance).unwrap_or(entrance).clone()),
        _ => None,
    };
    let guard = match behaviour {
        Some(behaviour) => {
            let mut limit = limit(rule, *count, *behaviour);
            (limit.matches, limit.route, limit.of) = (matches, route, of.clone());
            Guard::Limit(limit)
        }
        None if rule.strategy == 0 && app.is_none() => Guard::Concurrency(Concurrency {
            adaptive: None,
            max: *count,
            pending: 0,
            max_wait: Duration::from_secs(10),
            from: None,
            at: rule.at.renamed(&[("count", "max")]),
        }),
        None => {
            let at = rule.at.renamed(&[("count", "max"), ("refResource", "route"), ("refResource", "of")]);
            let bound = at_once(*count, (None, BTreeMap::new(), false), at);
            Guard::AtOnce(AtOnce { matches, route, of: of.clone(), ..bound })
        }
    };
    target.guard(service, guard, OriginKind::FlowRule, rule.at.whole);
}

/// Requests of one caller.
fn called_by(origin: Option<&LimitKey>, app: &str) -> Match {
    let is = |name: &String| BTreeMap::from([(name.clone(), Condition::Exact(app.to_owned()))]);
    let headers = origin.and_then(|key| key.header.as_ref()).map(is).unwrap_or_default();
    let query = origin.and_then(|key| key.query.as_ref()).map(is).unwrap_or_default();
    Match { headers, query, ..Match::default() }
}

/// A key, its exceptions, and whether nobody else is limited.
type KeyedBy = (Option<LimitKey>, BTreeMap<String, Allowance>, bool);

fn at_once(max: u32, (key, exceptions, only_exceptions): KeyedBy, at: Places) -> AtOnce {
    AtOnce {
        max,
        max_keys: room(exceptions.len()),
        without_key: if key.is_some() { WithoutKey::Pass } else { WithoutKey::Share },
        key,
        exceptions,
        only_exceptions,
        matches: Match::default(),
        route: None,
        of: None,
        from: None,
        at,
    }
}

fn by_caller(qps: u32, keyed: KeyedBy, behaviour: Behaviour, waits_ms: u32, at: Places) -> RateLimit {
    let (key, exceptions, only_exceptions) = keyed;
    let plain = super::plain(qps, behaviour, at);
    let queues = behaviour == Behaviour::Queue;
    RateLimit {
        max_keys: room(exceptions.len()),
        key,
        exceptions,
        only_exceptions,
        without_key: WithoutKey::Pass,
        max_queueing_time: if queues { Duration::from_millis(waits_ms.into()) } else { plain.max_queueing_time },
        ..plain
    }
}

fn room(exceptions: usize) -> u32 {
    u32::try_from(exceptions).unwrap_or(u32::MAX).max(10_000)
}

fn limit(rule: &FlowRule, qps: u32, behaviour: Behaviour) -> RateLimit {
    let mut names =
        vec![("count", "qps"), ("controlBehavior", "behaviour"), ("refResource", "route"), ("refResource", "of")];
    // What does not belong to the behaviour is written by most tools all the same.
    let warms_up = matches!(behaviour, Behaviour::WarmUp | Behaviour::WarmUpQueue);
    let queues = matches!(behaviour, Behaviour::Queue | Behaviour::WarmUpQueue);
    names.extend(warms_up.then_some(("warmUpPeriodSec", "warmUpPeriod")));
    names.extend(queues.then_some(("maxQueueingTimeMs", "maxQueueingTime")));
    let mut limit = super::plain(qps, behaviour, rule.at.renamed(&names));
    if warms_up {
        limit.warm_up_period = Duration::from_secs(rule.warm_up_period_sec.into());
    }
    if queues {
        limit.max_queueing_time = Duration::from_millis(rule.max_queueing_time_ms.into());
    }
    limit
}
