//! Limits of a service in the gateway's words, and how they stand for `seawall status`. Part of what `guarding.rs` tells the
//! gateway. Deliberately absent: any decision.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use api::view::{AtOnceView, RateLimitView, RefusingView, TrafficView};
use gateway::{Allowance, AtOnce, Behaviour, Keyed, LimitKey, LimitPolicy, LimitView, Meter, RateLimit, Scope};
use model::ServiceName;
use model::config::{self, WithoutKey};

use super::guarding::{at, count};

type Meters<'a> = &'a dyn Fn(&ServiceName) -> Meter;

pub(super) fn rate(written: &config::RateLimit, meter: Meters<'_>) -> RateLimit {
    let burst = |qps: u32| match written.behaviour {
        config::Behaviour::Bucket => written.burst.unwrap_or(0),
        _ => written.burst.unwrap_or(qps / 20).max(1),
    };
    let policy = LimitPolicy {
        qps: written.qps,
        per: written.per,
        burst: burst(written.qps),
        behaviour: match written.behaviour {
            config::Behaviour::Reject => Behaviour::Reject,
            config::Behaviour::Window => Behaviour::Window,
            config::Behaviour::Bucket => Behaviour::Bucket,
            config::Behaviour::WarmUp => {
                Behaviour::WarmUp { period: written.warm_up_period, cold_factor: written.cold_factor }
            }
            config::Behaviour::Queue => Behaviour::Queue(written.max_queueing_time),
            config::Behaviour::WarmUpQueue => Behaviour::WarmUpQueue {
                period: written.warm_up_period,
                cold_factor: written.cold_factor,
                longest: written.max_queueing_time,
            },
        },
        keys: written.key.as_ref().map(|_| written.max_keys as usize),
    };
    let keyed = Keyed {
        key: written.key.as_ref().and_then(key),
        exceptions: exceptions(&written.exceptions, |qps| (qps, burst(qps))),
        only_exceptions: written.only_exceptions,
        without_passes: written.without_key == WithoutKey::Pass,
    };
    let scope = scope(&written.matches, written.route.as_ref(), written.of.as_ref(), meter);
    RateLimit { policy, keyed, scope, tells: written.tell }
}

pub(super) fn bound(written: &config::AtOnce, meter: Meters<'_>) -> AtOnce {
    AtOnce {
        max: written.max,
        keys: written.max_keys as usize,
        keyed: Keyed {
            key: written.key.as_ref().and_then(key),
            exceptions: exceptions(&written.exceptions, |max| max),
            only_exceptions: written.only_exceptions,
            without_passes: written.without_key == WithoutKey::Pass,
        },
        scope: scope(&written.matches, written.route.as_ref(), written.of.as_ref(), meter),
    }
}

fn exceptions<T>(
    written: &BTreeMap<String, config::Allowance>,
    measure: impl Fn(u32) -> T,
) -> BTreeMap<String, Allowance<T>> {
    let one = |(key, allowance): (&String, &config::Allowance)| {
        let allowance = match allowance {
            config::Allowance::Count(count) => Allowance::Measure(measure(*count)),
            config::Allowance::Unlimited => Allowance::Unlimited,
        };
        (key.clone(), allowance)
    };
    written.iter().map(one).collect()
}

fn key(key: &config::LimitKey) -> Option<LimitKey> {
    let header = key.header.clone().map(LimitKey::Header);
    let query = key.query.clone().map(LimitKey::Query);
    let segment = key.path_segment.map(|number| LimitKey::PathSegment(number as usize));
    header.or(query).or(segment).or(key.address.then_some(LimitKey::Address))
}

fn scope(matches: &config::Match, route: Option<&String>, of: Option<&ServiceName>, meter: Meters<'_>) -> Scope {
    let all = config::Match::default();
    Scope {
        matches: if *matches == all { Vec::new() } else { crate::routes::matches(matches) },
        route: route.cloned(),
        of: of.map(meter),
    }
}

/// What a limit tells of what it refuses, if it does.
pub(super) fn refusing(since: Option<SystemTime>, why: impl FnOnce() -> String) -> Option<RefusingView> {
    since.map(|since| RefusingView { since: at(since), why: why() })
}

/// The first limit that refuses requests, in one line.
pub(super) fn note(traffic: &TrafficView) -> Option<String> {
    let rates = traffic.rate_limit.iter().chain(&traffic.more_rate_limits).filter_map(|limit| limit.refusing.as_ref());
    let bounds = traffic.at_once.iter().filter_map(|bound| bound.refusing.as_ref());
    let line = traffic.concurrency.iter().filter_map(|line| line.refusing.as_ref());
    let first = rates.chain(bounds).chain(line).next()?;
    Some(format!("requests are refused since {}Z: {}", first.since.get(..19).unwrap_or_default(), first.why))
}

pub(super) fn rate_view(limit: &LimitView) -> RateLimitView {
    let why = || {
        let each = match limit.per.as_secs() {
            1 => "a second".to_owned(),
            seconds => format!("in {seconds} s"),
        };
        format!("more than {} {each}{}", limit.qps, if limit.keys.is_some() { " of one key" } else { "" })
    };
    RateLimitView {
        refusing: refusing(limit.refusing_since, why),
        qps: limit.qps,
        per_seconds: (limit.per != Duration::from_secs(1)).then_some(limit.per.as_secs()),
        refused: limit.refused,
        keys: limit.keys.map(|(at_work, _)| count(at_work)),
        max_keys: limit.keys.map(|(_, room)| count(room)),
        displaced: limit.keys.map(|_| limit.displaced),
    }
}

pub(super) fn bound_view(bound: &gateway::AtOnceView) -> AtOnceView {
    let of_one = if bound.keys.is_some() { " of one key" } else { "" };
    AtOnceView {
        max: bound.max,
        active: bound.active,
        keys: bound.keys.map(count),
        refused: bound.refused,
        refusing: refusing(bound.refusing_since, || format!("more than {} at once{of_one}", bound.max)),
    }
}
