//! Locations as routes, in the order in which nginx looks: exact ones, then the longest prefix if it has `^~`, then
//! expressions as they are written, then the longest prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::super::decode::Places;
use super::super::super::node::default_of;
use super::super::super::{Config, Match, Retry, RetryOn, Rewrite, Route, Targets};
use super::super::origin::is_of;
use super::super::{Origin, OriginKind, Target};
use super::limits::Zones;
use super::parse::{Directive, Word, time};
use super::{Upstreams, servers, service_of, unknown};
use crate::config::Target as Destination;
use crate::diagnostic::Diagnostics;
use crate::id::ServiceName;

/// nginx' `proxy_read_timeout` where nothing is written.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a location stands among others: its kind, then the longer one first.
type Rank = (u8, std::cmp::Reverse<usize>);

/// A location with its place among others.
struct Placed {
    rank: Rank,
    /// What stands between `location` and its block.
    words: String,
    route: Route,
    /// It is in force, and was not in this file so far.
    is_old: bool,
}

pub(super) fn put(target: &mut Target<'_>, locations: &[&Directive], upstreams: &Upstreams, zones: &Zones) {
    let (mut placed, at) = in_force(target);
    let mut limits: BTreeMap<ServiceName, Vec<(String, &Directive)>> = BTreeMap::new();
    let mut used: BTreeMap<ServiceName, usize> = BTreeMap::new();
    for location in locations {
        let words = joined(&location.words);
        let Some((rank, matches)) = matches(location, target.diagnostics) else { continue };
        let Some((service, route)) = route(target, location, matches, upstreams) else { continue };
        *used.entry(service.clone()).or_default() += 1;
        let of_limits = |it: &&Directive| matches!(it.name.as_str(), "limit_req" | "limit_conn");
        for limit in location.inside.iter().flatten().filter(of_limits) {
            let text = format!("{} {}", limit.name, joined(&limit.words));
            limits.entry(service.clone()).or_default().push((text, limit));
        }
        let new = Placed { rank, words, route, is_old: false };
        let replaces = target.replaced.is_some();
        match placed.iter_mut().find(|known| replaces && known.is_old && known.words == new.words) {
            Some(old) => *old = new,
            None => placed.push(new),
        }
    }
    for (service, count) in &used {
        let found = limits.remove(service).unwrap_or_default();
        put_limits(target, zones, (service, *count), &found, &placed);
    }
    if let Some(inside) = nested(&placed) {
        let message = "a prefix that begins as one with `^~`, beside expressions";
        target.diagnostics.error(inside.route.at.whole, message, "give it `^~` as well");
    }
    placed.sort_by_key(|it| it.rank);
    let at = at.min(target.config.routes.len());
    target.config.routes.splice(at..at, placed.into_iter().map(|it| it.route));
    settle(target.config);
}

/// Takes the locations that are there out of the routes, with where the first of them stood.
fn in_force(target: &mut Target<'_>) -> (Vec<Placed>, usize) {
    let routes = &mut target.config.routes;
    let is_location = |route: &Route| is_of(route.from.as_ref(), OriginKind::Nginx);
    let at = routes.iter().position(is_location).unwrap_or(routes.len());
    let (theirs, others) = std::mem::take(routes).into_iter().partition(is_location);
    *routes = others;
    let placed = |route: Route| {
        let words = route.from.as_ref().map(|from| from.name.clone()).unwrap_or_default();
        let texts: Vec<&str> = words.split(' ').collect();
        Placed { rank: rank(&texts).unwrap_or((3, std::cmp::Reverse(0))), words, route, is_old: true }
    };
    let theirs: Vec<Route> = theirs;
    (theirs.into_iter().map(placed).collect(), at)
}

fn joined(words: &[Word]) -> String {
    words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ")
}

/// A service has its limits whichever way requests come to it.
fn put_limits(
    target: &mut Target<'_>,
    zones: &Zones,
    (service, count): (&ServiceName, usize),
    found: &[(String, &Directive)],
    placed: &[Placed],
) {
    let leads = |it: &Placed| it.route.to.as_ref().is_some_and(|to| to.lead_to(service));
    let other = placed.iter().find(|it| it.is_old && leads(it));
    if let Some(other) = other.filter(|_| !found.is_empty() || is_limited(target.config, service)) {
        let own = placed.iter().find(|it| !it.is_old && leads(it));
        let place = found.first().map(|(_, limit)| limit.at).or(own.map(|it| it.route.at.whole));
        let message = format!(
            "`location {}` is in force and leads to `{service}` as well, which has one set of limits",
            other.words
        );
        target.diagnostics.error(place.unwrap_or_default(), message, "write all locations that lead to it in one file");
        return;
    }
    target.begin(OriginKind::Nginx, service);
    let kinds: BTreeSet<&String> = found.iter().map(|(text, _)| text).collect();
    for kind in kinds {
        let same: Vec<&&Directive> = found.iter().filter(|(text, _)| text == kind).map(|(_, it)| it).collect();
        if same.len() != count {
            let message = format!("`{}` of one location, and others lead to `{service}` as well", same[0].name);
            target.diagnostics.error(
                same[0].at,
                message,
                "write it in all of them, or give this one an upstream of its own",
            );
            continue;
        }
        zones.put(target, service, same[0]);
    }
}

/// Whether locations have limited a service.
fn is_limited(config: &Config, service: &ServiceName) -> bool {
    let traffic = config.services.get(service).and_then(|service| service.traffic.as_ref());
    traffic.is_some_and(|traffic| {
        let rates = traffic.rate_limit.0.iter().map(|limit| &limit.from);
        let bounds = traffic.at_once.0.iter().map(|bound| &bound.from);
        let places = traffic.concurrency.iter().map(|places| &places.from);
        rates.chain(bounds).chain(places).any(|from| is_of(from.as_ref(), OriginKind::Nginx))
    })
}

/// What follows from locations and upstreams together: how many servers are asked, and whether an answer of 500 or more says
/// something against the one that gave it.
fn settle(config: &mut Config) {
    let Config { routes, services, .. } = config;
    let mut failing: BTreeSet<ServiceName> = BTreeSet::new();
    for route in routes.iter_mut().filter(|route| is_of(route.from.as_ref(), OriginKind::Nginx)) {
        let target = route.to.as_ref().and_then(|to| to.0.first()).map(|to| to.service.clone());
        let (Some(name), Some(retry)) = (target, &mut route.retry) else { continue };
        if route.from.as_ref().is_some_and(|from| from.each_server)
            && let Some(service) = services.get(&name)
        {
            retry.attempts = attempts(servers(service).saturating_sub(1));
        }
        let counts = [RetryOn::Http500, RetryOn::Http502, RetryOn::Http503, RetryOn::Http504];
        failing.extend(retry.on.iter().any(|word| counts.contains(word)).then_some(name));
    }
    for (name, service) in services.iter_mut().filter(|(_, it)| is_of(it.from.as_ref(), OriginKind::Nginx)) {
        let outlier = service.traffic.as_mut().and_then(|traffic| traffic.outlier.as_mut());
        if let Some(outlier) = outlier.filter(|outlier| is_of(outlier.from.as_ref(), OriginKind::Nginx)) {
            outlier.server_errors = failing.contains(name);
        }
    }
}

/// More than ten others are never asked.
fn attempts(others: usize) -> u32 {
    u32::try_from(others.min(10)).unwrap_or(10)
}

/// A plain prefix inside of a strong one: for it nginx looks at expressions, which the order of routes cannot say.
fn nested(placed: &[Placed]) -> Option<&Placed> {
    if !placed.iter().any(|it| it.rank.0 == 2) {
        return None;
    }
    let start = |it: &Placed| it.route.matches.path_start.clone().unwrap_or_default();
    let strong: Vec<String> = placed.iter().filter(|it| it.rank.0 == 1).map(start).collect();
    let inside = |it: &&Placed| strong.iter().any(|strong| start(it).starts_with(strong.as_str()));
    placed.iter().filter(|it| it.rank.0 == 3).find(inside)
}

/// Where a location of these words stands; `None` if there is none such.
fn rank(texts: &[&str]) -> Option<Rank> {
    let longer = |text: &str| std::cmp::Reverse(text.len());
    match texts {
        ["=", path] => Some((0, longer(path))),
        ["^~", start] => Some((1, longer(start))),
        ["~" | "~*", ..] if texts.len() > 1 => Some((2, std::cmp::Reverse(0))),
        [start] if start.starts_with('/') => Some((3, longer(start))),
        _ => None,
    }
}

fn matches(location: &Directive, diagnostics: &mut Diagnostics) -> Option<(Rank, Match)> {
    let at = Places::from_parts(location.at, std::iter::empty());
    let base = Match { at, ..Match::default() };
    let texts: Vec<&str> = location.words.iter().map(|word| word.text.as_str()).collect();
    // An expression is found anywhere in a path, unless it says where.
    let found = |expression: &str, front: &str| Some(format!("{front}.*(?:{expression}).*"));
    let matches = match texts.as_slice() {
        ["=", path] => Some(Match { path: Some((*path).to_owned()), ..base }),
        ["^~", start] => Some(Match { path_start: Some((*start).to_owned()), ..base }),
        ["~", expression] => Some(Match { path_regex: found(expression, ""), ..base }),
        ["~*", expression] => Some(Match { path_regex: found(expression, "(?i)"), ..base }),
        [start] if start.starts_with('/') => Some(Match { path_start: Some((*start).to_owned()), ..base }),
        _ => None,
    };
    let placed = rank(&texts).zip(matches);
    if placed.is_none() {
        let message = format!("`location {}` has no counterpart here", texts.join(" "));
        diagnostics.error(location.at, message, "a prefix, or one of = ^~ ~ ~* and what it is about");
    }
    placed
}

fn route(
    target: &mut Target<'_>,
    location: &Directive,
    mut matches: Match,
    upstreams: &Upstreams,
) -> Option<(ServiceName, Route)> {
    let mut route = Route { at: Places::from_parts(location.at, std::iter::empty()), ..default_of() };
    let mut passed = None;
    let (mut tries, mut on, mut read, mut within) = (0, None, READ_TIMEOUT, None);
    for directive in location.inside.iter().flatten() {
        let diagnostics = &mut *target.diagnostics;
        let first = directive.words.first().map(|word| word.text.as_str()).unwrap_or_default();
        match directive.name.as_str() {
            "proxy_pass" => passed = pass(directive, upstreams, target.config, diagnostics),
            "proxy_next_upstream" => on = Some(words(&directive.words, diagnostics)),
            "proxy_next_upstream_tries" => match first.parse() {
                Ok(count) => tries = count,
                Err(_) => diagnostics.error(directive.at, format!("`{first}` is no number"), "e.g. 2; 0 is no bound"),
            },
            "proxy_read_timeout" => match time(first).filter(|time| !time.is_zero()) {
                Some(time) => read = time,
                None => diagnostics.error(directive.at, format!("`{first}` is no time"), "e.g. proxy_read_timeout 5s;"),
            },
            "proxy_next_upstream_timeout" => match time(first) {
                Some(time) => within = Some(time).filter(|time| !time.is_zero()),
                None => diagnostics.error(directive.at, format!("`{first}` is no time"), "e.g. 5s; 0 is no bound"),
            },
            "proxy_connect_timeout" | "proxy_send_timeout" => {
                let message = format!("`{}` is not of a location here", directive.name);
                diagnostics.warning(directive.at, message, "gateway.connectTimeout is for all; leave it out");
            }
            "proxy_http_version" | "proxy_buffering" | "proxy_request_buffering" => {}
            "proxy_set_header" => field(directive, &mut route, diagnostics),
            "limit_req" | "limit_conn" => {}
            "limit_req_status" | "limit_conn_status" if matches!(first, "429" | "503") => {
                let is = if directive.name == "limit_req_status" { "429" } else { "503" };
                if first != is {
                    let message = format!("the status is always {is} here");
                    diagnostics.warning(directive.at, message, "leave it out");
                }
            }
            _ => unknown(
                directive,
                "a location has proxy_pass, proxy_next_upstream, proxy_read_timeout, proxy_set_header, limit_req, limit_conn",
                diagnostics,
            ),
        }
    }
    let Some((name, service, uri)) = passed else {
        if !location.inside.iter().flatten().any(|directive| directive.name == "proxy_pass") {
            target.diagnostics.error(location.at, "a location without `proxy_pass`", "add proxy_pass http://UPSTREAM;");
        }
        return None;
    };
    let at = Places::from_parts(location.at, std::iter::empty());
    // nginx names the upstream as the host, unless a field is set to what the client named.
    let host = match route.request_headers.set.remove("Host") {
        Some(said) if said.starts_with("$http_host") || said.starts_with("$host") => None,
        Some(said) => Some(said),
        None => Some(name.clone()),
    };
    let (mut path, mut prefix) = (None, None);
    match uri {
        Some(uri) if matches.path.is_some() => path = Some(uri),
        Some(_) if matches.path_regex.is_some() => {
            target.diagnostics.error(
                location.at,
                "`proxy_pass` with a path in a location by expression",
                "leave the path out, as nginx demands",
            );
        }
        Some(uri) => prefix = Some(uri),
        None => {}
    }
    route.rewrite = Rewrite { path, prefix, host, at: at.clone() };
    let on = on.unwrap_or_else(|| Some(vec![RetryOn::Error, RetryOn::Timeout]));
    // Each server once, unless something else is said.
    let each_server = tries == 0 && on.is_some();
    let others = target.config.services.get(&service).map_or(0, servers).saturating_sub(1);
    let most = if tries == 0 { others } else { tries - 1 };
    route.retry = Some(Retry {
        attempts: if on.is_some() { attempts(most) } else { 0 },
        on: on.unwrap_or_else(|| vec![RetryOn::Error]),
        per_try_timeout: Some(read),
        backoff: Duration::ZERO,
        within,
        at: at.clone(),
    });
    let to = Destination { service: service.clone(), version: None, weight: None, source: None, at };
    route.to = Some(Targets(vec![to]));
    route.from = Some(Origin { each_server, ..Origin::new(OriginKind::Nginx, joined(&location.words)) });
    matches.at = Places::from_parts(location.at, std::iter::empty());
    Some((service, Route { matches, ..route }))
}

/// The upstream's name and service, and the path that takes the place of what matched.
fn pass(
    directive: &Directive,
    upstreams: &Upstreams,
    config: &Config,
    diagnostics: &mut Diagnostics,
) -> Option<(String, ServiceName, Option<String>)> {
    let word = directive.words.first()?;
    let rest = word.text.strip_prefix("http://");
    let (name, uri) =
        match rest.map(|rest| rest.split_once('/').map_or((rest, None), |(name, path)| (name, Some(path)))) {
            Some((name, uri)) if !word.text.contains('$') => (name, uri.map(|path| format!("/{path}"))),
            _ => {
                let message = format!("`{}` has no counterpart here", word.text);
                diagnostics.error(word.at, message, "http://UPSTREAM, without variables");
                return None;
            }
        };
    // A service that is no upstream may be named as well.
    let own = Some(service_of(name)).filter(|service| config.services.contains_key(service));
    let Some(service) = upstreams.get(name).cloned().or(own) else {
        let message = format!("there is no upstream `{name}`");
        diagnostics.error(word.at, message, format!("add upstream {name} {{ server …; }}"));
        return None;
    };
    Some((name.to_owned(), service, uri))
}

/// What is repeated; `None` with `off`.
fn words(words: &[Word], diagnostics: &mut Diagnostics) -> Option<Vec<RetryOn>> {
    let mut on = Vec::new();
    for word in words {
        on.push(match word.text.as_str() {
            "error" => RetryOn::Error,
            "timeout" => RetryOn::Timeout,
            "invalid_header" => RetryOn::InvalidHeader,
            "http_500" => RetryOn::Http500,
            "http_502" => RetryOn::Http502,
            "http_503" => RetryOn::Http503,
            "http_504" => RetryOn::Http504,
            "http_403" => RetryOn::Http403,
            "http_404" => RetryOn::Http404,
            "http_429" => RetryOn::Http429,
            "non_idempotent" => RetryOn::NonIdempotent,
            "off" => return None,
            other => {
                diagnostics.error(
                    word.at,
                    format!("`{other}` is no word of `proxy_next_upstream`"),
                    "error timeout http_502 …",
                );
                continue;
            }
        });
    }
    Some(on)
}

/// `proxy_set_header`: what the gateway says anyway, or a fixed value.
fn field(directive: &Directive, route: &mut Route, diagnostics: &mut Diagnostics) {
    let [name, value] = directive.words.as_slice() else {
        diagnostics.error(directive.at, "a field has a name and a value", "proxy_set_header X-Name value;");
        return;
    };
    let lower = name.text.to_ascii_lowercase();
    let own = matches!(
        (lower.as_str(), value.text.as_str()),
        ("x-forwarded-for", "$proxy_add_x_forwarded_for" | "$remote_addr")
            | ("x-forwarded-proto", "$scheme")
            | ("x-forwarded-host", "$host" | "$http_host")
            | ("connection", "")
    );
    let is_host =
        lower == "host" && (!value.text.contains('$') || matches!(value.text.as_str(), "$host" | "$http_host"));
    if own {
        return;
    }
    if value.text.contains('$') && !is_host {
        let message = format!("`{}` has no counterpart here", value.text);
        diagnostics.error(value.at, message, "a fixed value; Host may be $host or $http_host");
        return;
    }
    let name = if is_host { "Host".to_owned() } else { name.text.clone() };
    route.request_headers.set.insert(name, value.text.clone());
}
