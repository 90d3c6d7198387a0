//! Rules of limits: rates, how many at once, what a gateway bears.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::decode::Places;
use crate::config::{Allowance, AtOnce, Behaviour, Config, LimitKey, RateLimit, Service};
use crate::diagnostic::{Diagnostics, Place};
use crate::id::ServiceName;

/// The highest rate, and the most at once.
const MOST: u32 = 1_000_000;

/// The most keys that are remembered.
const MOST_KEYS: u32 = 1_000_000;

/// The most limits of a kind: each request asks all of them.
const MOST_LIMITS: usize = 100;

/// The longest time of a rate.
const LONGEST: Duration = Duration::from_secs(3600);

type Report<'a> = &'a mut dyn FnMut(Place, &str, &str);

/// Checks the limits of a service.
pub fn check(name: &ServiceName, service: &Service, config: &Config, diagnostics: &mut Diagnostics) {
    let Some(traffic) = &service.traffic else { return };
    let (rates, bounds) = (&traffic.rate_limit.0, &traffic.at_once.0);
    for (matches, at) in
        rates.iter().map(|it| (&it.matches, &it.at)).chain(bounds.iter().map(|it| (&it.matches, &it.at)))
    {
        super::matches::check(matches, diagnostics);
        if !matches.hosts.0.is_empty() {
            let message = format!("service `{name}`: a limit of one host");
            diagnostics.error(at.field("match"), message, "give the route of that host a name, and write route: NAME");
        }
    }
    let mut error = |place: Place, message: &str, cure: &str| {
        diagnostics.error(place, format!("service `{name}`: {message}"), cure);
    };
    for (kind, at) in
        [("rateLimit", rates.get(MOST_LIMITS).map(|it| &it.at)), ("atOnce", bounds.get(MOST_LIMITS).map(|it| &it.at))]
    {
        if let Some(at) = at {
            let message = format!("more than {MOST_LIMITS} of `{kind}`: each request would ask all of them");
            error(at.whole, &message, "one limit with a `key` and `exceptions` does for many");
        }
    }
    for limit in rates {
        check_rate(limit, &mut error);
        let scope = Scope { name, at: &limit.at, route: limit.route.as_deref(), of: &limit.of };
        scope.check(limit.key.is_some(), config, &mut error);
    }
    for bound in bounds {
        check_bound(bound, &mut error);
        let scope = Scope { name, at: &bound.at, route: bound.route.as_deref(), of: &bound.of };
        scope.check(bound.key.is_some(), config, &mut error);
    }
}

/// Checks `gateway.overload`.
pub fn overload(config: &Config, diagnostics: &mut Diagnostics) {
    let Some(overload) = &config.gateway.overload else { return };
    let at = &overload.at;
    let all = ["qps", "concurrent", "averageTime", "load", "cpu"];
    if !all.iter().any(|key| at.has(key)) {
        diagnostics.error(at.whole, "an `overload` that bounds nothing", format!("one of {}", all.join(", ")));
    }
    if overload.qps.is_some_and(|qps| qps == 0 || qps > MOST) {
        diagnostics.error(at.field("qps"), "a rate of 0, or of more than 1000000", "1 to 1000000 requests a second");
    }
    for (field, is_none) in
        [("concurrent", overload.concurrent == Some(0)), ("averageTime", overload.average_time == Some(Duration::ZERO))]
    {
        if is_none {
            diagnostics.error(at.field(field), format!("`{field}: 0` would refuse everything"), "more than 0");
        }
    }
    if overload.load.is_some_and(|load| load > 10_000.0) {
        diagnostics.error(at.field("load"), "a load of more than 10000", "about as many as the machine has processors");
    }
}

struct Scope<'a> {
    name: &'a ServiceName,
    at: &'a Places,
    route: Option<&'a str>,
    of: &'a Option<ServiceName>,
}

impl Scope<'_> {
    fn check(&self, has_key: bool, config: &Config, error: Report<'_>) {
        if let Some(route) = self.route
            && !config.routes.iter().any(|known| known.name.as_deref() == Some(route))
        {
            let names: Vec<&str> = config.routes.iter().filter_map(|route| route.name.as_deref()).collect();
            let cure = match crate::diagnostic::nearest(route, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "give the route a `name`".to_owned(),
            };
            error(self.at.field("route"), &format!("there is no route named `{route}`"), &cure);
        }
        let Some(of) = self.of else { return };
        if of == self.name || !config.services.contains_key(of) {
            let message = format!("`of: {of}` is no other service");
            error(self.at.field("of"), &message, "name another service of this configuration");
        }
        if has_key {
            error(self.at.field("of"), "`of` with a `key`", "what passes another service is counted all together");
        }
    }
}

fn check_key(key: Option<&LimitKey>, at: &Places, exceptions: &BTreeMap<String, Allowance>, error: Report<'_>) {
    match key {
        Some(key) => {
            let named = [&key.header, &key.query].into_iter().flatten();
            let count = named.clone().count() + usize::from(key.address) + usize::from(key.path_segment.is_some());
            if count != 1 || named.clone().any(String::is_empty) || key.path_segment == Some(0) {
                let cure = "one of header: NAME, query: NAME, address: true, pathSegment: 1";
                error(key.at.whole, "a key is one thing", cure);
            }
        }
        None => {
            for field in ["exceptions", "onlyExceptions", "withoutKey"].iter().filter(|field| at.has(field)) {
                error(at.field(field), &format!("`{field}` without a `key`"), "add key: { header: NAME }");
            }
        }
    }
    for (key, allowance) in exceptions {
        if key.is_empty() || matches!(allowance, Allowance::Count(count) if *count > MOST) {
            let message = format!("an exception for nobody, or of more than {MOST}: `{key}`");
            error(at.field("exceptions"), &message, "0 to 1000000, or `unlimited`");
        }
    }
}

fn check_keys(max_keys: u32, exceptions: usize, at: &Places, error: Report<'_>) {
    if !(8..=MOST_KEYS).contains(&max_keys) {
        error(at.field("maxKeys"), "room for fewer than 8 keys, or for more than 1000000", "e.g. maxKeys: 10000");
    } else if exceptions > max_keys as usize {
        error(at.field("maxKeys"), "less room for keys than there are exceptions", "as much at least");
    }
}

fn check_bound(bound: &AtOnce, error: Report<'_>) {
    let at = &bound.at;
    if bound.max == 0 || bound.max > MOST {
        error(at.field("max"), "a bound of 0, or of more than 1000000", "1 to 1000000 requests at once");
    }
    check_key(bound.key.as_ref(), at, &bound.exceptions, error);
    check_keys(bound.max_keys, bound.exceptions.len(), at, error);
}

fn check_rate(limit: &RateLimit, error: Report<'_>) {
    let at = &limit.at;
    let warms_up = matches!(limit.behaviour, Behaviour::WarmUp | Behaviour::WarmUpQueue);
    let queues = matches!(limit.behaviour, Behaviour::Queue | Behaviour::WarmUpQueue);
    if limit.qps == 0 || limit.qps > MOST {
        error(at.field("qps"), "a rate of 0, or of more than 1000000", "1 to 1000000 requests a second");
    }
    if limit.per < Duration::from_secs(1) || limit.per > LONGEST {
        error(at.field("per"), "a rate over less than 1s or more than 1h", "e.g. per: 1m");
    }
    if limit.per != Duration::from_secs(1) && (warms_up || limit.behaviour == Behaviour::Window) {
        let message = format!("`per` with `behaviour: {}`, which is of a second", limit.behaviour.as_str());
        error(at.field("per"), &message, "remove it, or write behaviour: reject, bucket or queue");
    }
    if limit.burst == Some(0) && limit.behaviour != Behaviour::Bucket {
        error(at.field("burst"), "`burst: 0` would let nothing through", "1 or more, or leave it out");
    }
    if limit.burst.is_some_and(|burst| burst > MOST) {
        error(at.field("burst"), "a burst of more than 1000000", "1 to 1000000");
    }
    check_key(limit.key.as_ref(), at, &limit.exceptions, error);
    check_keys(limit.max_keys, limit.exceptions.len(), at, error);
    if limit.key.is_some() && warms_up {
        error(
            at.field("behaviour"),
            "a warm-up with a `key`",
            "keys have no warm-up of their own: `reject` or `queue`",
        );
    }
    if limit.of.is_some() && limit.behaviour != Behaviour::Window {
        error(
            at.field("of"),
            "`of` without `behaviour: window`",
            "add it: another service's requests are only counted",
        );
    }
    if warms_up && (limit.warm_up_period < Duration::from_secs(1) || limit.cold_factor < 2) {
        let cure = "e.g. warmUpPeriod: 10s, coldFactor: 3";
        error(at.field("behaviour"), "a warm-up of less than 1s, or with a `coldFactor` of less than 2", cure);
    }
    for (field, behaviour) in
        [("warmUpPeriod", Behaviour::WarmUp), ("coldFactor", Behaviour::WarmUp), ("maxQueueingTime", Behaviour::Queue)]
    {
        let is = if behaviour == Behaviour::Queue { queues } else { warms_up };
        if at.has(field) && !is {
            let message = format!("`{field}` means nothing with `behaviour: {}`", limit.behaviour.as_str());
            error(at.field(field), &message, &format!("add behaviour: {}, or remove it", behaviour.as_str()));
        }
    }
    if queues && limit.burst.is_some() {
        error(at.field("burst"), "`burst` with `queue`", "remove it: requests in a queue pass one after the other");
    }
    if limit.behaviour == Behaviour::Window && limit.burst.is_some() {
        error(at.field("burst"), "`burst` with `window`", "remove it: all of `qps` may come at once");
    }
    if queues && limit.max_queueing_time > Duration::from_secs(60) {
        error(at.field("maxQueueingTime"), "requests would wait for more than a minute", "e.g. maxQueueingTime: 500ms");
    }
}
