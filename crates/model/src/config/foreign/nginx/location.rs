//! Locations as routes, in the order in which nginx looks: exact ones, then the longest prefix if it has `^~`, then
//! expressions as they are written, then the longest prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::super::decode::Places;
use super::super::super::node::default_of;
use super::super::super::{Match, Retry, RetryOn, Rewrite, Route, Targets};
use super::super::Target;
use super::limits::Zones;
use super::parse::{Directive, Word, time};
use super::{Upstream, unknown};
use crate::config::Target as Destination;
use crate::diagnostic::Diagnostics;

type Upstreams = BTreeMap<String, Upstream>;

/// nginx' `proxy_read_timeout` where nothing is written.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a location stands among others: its kind, then the longer one first.
type Rank = (u8, std::cmp::Reverse<usize>);

pub(super) fn put(target: &mut Target<'_>, locations: &[&Directive], upstreams: &Upstreams, zones: &Zones) {
    let mut routes: Vec<(Rank, Route)> = Vec::new();
    let mut limits: BTreeMap<String, Vec<(String, &Directive)>> = BTreeMap::new();
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    for location in locations {
        let Some((rank, matches)) = matches(location, target.diagnostics) else { continue };
        if let Some((upstream, route)) = route(target, location, matches, upstreams) {
            *used.entry(upstream.clone()).or_default() += 1;
            for limit in
                location.inside.iter().flatten().filter(|it| matches!(it.name.as_str(), "limit_req" | "limit_conn"))
            {
                let words: Vec<&str> = limit.words.iter().map(|word| word.text.as_str()).collect();
                limits
                    .entry(upstream.clone())
                    .or_default()
                    .push((format!("{} {}", limit.name, words.join(" ")), limit));
            }
            routes.push((rank, route));
        }
    }
    // A service has its limits whichever way requests come to it.
    for (name, found) in limits {
        let kinds: BTreeSet<&String> = found.iter().map(|(text, _)| text).collect();
        let Some(upstream) = upstreams.get(&name) else { continue };
        for kind in kinds {
            let same: Vec<&&Directive> = found.iter().filter(|(text, _)| text == kind).map(|(_, it)| it).collect();
            if same.len() != used[&name] {
                let message = format!("`{}` of one location, and others lead to `{name}` as well", same[0].name);
                target.diagnostics.error(
                    same[0].at,
                    message,
                    "write it in all of them, or give this one an upstream of its own",
                );
                continue;
            }
            zones.put(target, &upstream.service, same[0]);
        }
    }
    if let Some((_, route)) = nested(&routes) {
        let message = "a prefix that begins as one with `^~`, beside expressions";
        target.diagnostics.error(route.at.whole, message, "give it `^~` as well");
    }
    routes.sort_by_key(|(rank, _)| *rank);
    target.config.routes.extend(routes.into_iter().map(|(_, route)| route));
}

/// A plain prefix inside of a strong one: for it nginx looks at expressions, which the order of routes cannot say.
fn nested(routes: &[(Rank, Route)]) -> Option<&(Rank, Route)> {
    if !routes.iter().any(|((kind, _), _)| *kind == 2) {
        return None;
    }
    let start = |route: &Route| route.matches.path_start.clone().unwrap_or_default();
    let strong: Vec<String> = routes.iter().filter(|((kind, _), _)| *kind == 1).map(|(_, it)| start(it)).collect();
    let inside = |(_, route): &&(Rank, Route)| strong.iter().any(|strong| start(route).starts_with(strong.as_str()));
    routes.iter().filter(|((kind, _), _)| *kind == 3).find(inside)
}

fn matches(location: &Directive, diagnostics: &mut Diagnostics) -> Option<(Rank, Match)> {
    let at = Places::from_parts(location.at, std::iter::empty());
    let base = Match { at, ..Match::default() };
    let longer = |text: &str| std::cmp::Reverse(text.len());
    let texts: Vec<&str> = location.words.iter().map(|word| word.text.as_str()).collect();
    // An expression is found anywhere in a path, unless it says where.
    let found = |expression: &str, front: &str| format!("{front}.*(?:{expression}).*");
    Some(match texts.as_slice() {
        ["=", path] => ((0, longer(path)), Match { path: Some((*path).to_owned()), ..base }),
        ["^~", start] => ((1, longer(start)), Match { path_start: Some((*start).to_owned()), ..base }),
        ["~", expression] => ((2, std::cmp::Reverse(0)), Match { path_regex: Some(found(expression, "")), ..base }),
        ["~*", expression] => {
            ((2, std::cmp::Reverse(0)), Match { path_regex: Some(found(expression, "(?i)")), ..base })
        }
        [start] if start.starts_with('/') => {
            ((3, longer(start)), Match { path_start: Some((*start).to_owned()), ..base })
        }
        _ => {
            let message = format!("`location {}` has no counterpart here", texts.join(" "));
            diagnostics.error(location.at, message, "a prefix, or one of = ^~ ~ ~* and what it is about");
            return None;
        }
    })
}

fn route(
    target: &mut Target<'_>,
    location: &Directive,
    mut matches: Match,
    upstreams: &Upstreams,
) -> Option<(String, Route)> {
    let mut route = Route { at: Places::from_parts(location.at, std::iter::empty()), ..default_of() };
    let mut passed = None;
    let (mut tries, mut on, mut read, mut within) = (0, None, READ_TIMEOUT, None);
    for directive in location.inside.iter().flatten() {
        let diagnostics = &mut *target.diagnostics;
        let first = directive.words.first().map(|word| word.text.as_str()).unwrap_or_default();
        match directive.name.as_str() {
            "proxy_pass" => passed = pass(directive, upstreams, diagnostics),
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
    let Some((name, uri)) = passed else {
        if !location.inside.iter().flatten().any(|directive| directive.name == "proxy_pass") {
            target.diagnostics.error(location.at, "a location without `proxy_pass`", "add proxy_pass http://UPSTREAM;");
        }
        return None;
    };
    let upstream = &upstreams[&name];
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
    let most = if tries == 0 { upstream.servers.saturating_sub(1) } else { tries - 1 };
    let most = u32::try_from(most.min(10)).unwrap_or(10);
    let counts = on
        .iter()
        .flatten()
        .any(|word| matches!(word, RetryOn::Http500 | RetryOn::Http502 | RetryOn::Http503 | RetryOn::Http504));
    route.retry = Some(Retry {
        attempts: if on.is_some() { most } else { 0 },
        on: on.unwrap_or_else(|| vec![RetryOn::Error]),
        per_try_timeout: Some(read),
        backoff: Duration::ZERO,
        within,
        at: at.clone(),
    });
    if counts
        && let Some(service) = target.config.services.get_mut(&upstream.service)
        && let Some(outlier) = service.traffic.as_mut().and_then(|traffic| traffic.outlier.as_mut())
    {
        outlier.server_errors = true;
    }
    let to = Destination { service: upstream.service.clone(), version: None, weight: None, source: None, at };
    route.to = Some(Targets(vec![to]));
    matches.at = Places::from_parts(location.at, std::iter::empty());
    Some((name, Route { matches, ..route }))
}

/// The upstream, and the path that takes the place of what matched.
fn pass(
    directive: &Directive,
    upstreams: &Upstreams,
    diagnostics: &mut Diagnostics,
) -> Option<(String, Option<String>)> {
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
    if !upstreams.contains_key(name) {
        let message = format!("there is no upstream `{name}`");
        diagnostics.error(word.at, message, format!("add upstream {name} {{ server …; }}"));
        return None;
    }
    Some((name.to_owned(), uri))
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
