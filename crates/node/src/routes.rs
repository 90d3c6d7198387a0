//! A configuration's routes as the gateway takes them, with what shifts make of their destinations.
//! Around the request walk: worked out whenever configuration or shifts change. Deliberately absent: rules
//! (`model::config::validate`) and matching (`gateway::routes`).

use std::collections::BTreeMap;
use std::sync::Arc;

use gateway::{
    Action, Coding, Cors, Fallback, Fault, HeaderEdits, HostMatch, Match, Mirror, PathMatch, PathRewrite, Policy,
    Priority, Redirect, RetryPolicy, Route, Scheme, Split, Sticky, Target, ValueMatch,
};
use model::config;
use model::{Config, ServiceName};

use crate::shifts::Shifts;

/// The routes as the gateway takes them.
pub fn routes(config: &Config, shifts: &Shifts) -> Vec<Route> {
    let route = |(index, route): (usize, &model::config::Route)| {
        let written = &route.matches;
        Route {
            name: format!("routes[{index}] on line {}", route.at.whole.line),
            series: route.name.clone(),
            hosts: written.hosts.0.iter().map(|host| HostMatch::parse(host)).collect(),
            matches: matches(written),
            action: action(config, route, shifts),
            timeout: route.timeout,
            retry: route.retry.as_ref().map(retry),
            policy: Policy {
                request: edits(&route.request_headers),
                response: edits(&route.response_headers),
                path: new_path(written, route.rewrite.path.as_ref(), route.rewrite.prefix.as_ref()),
                host: route.rewrite.host.clone(),
                max_body_bytes: route.max_body_bytes,
                mirrors: route.mirror.0.iter().map(mirror).collect(),
                fault: route.fault.as_ref().map(fault),
                cors: route.cors.as_ref().map(cors),
                priority: match route.priority {
                    config::Priority::Critical => Priority::Critical,
                    config::Priority::Normal => Priority::Normal,
                    config::Priority::Sheddable => Priority::Sheddable,
                },
                compress: route.compress.iter().map(|coding| coding_of(*coding)).collect(),
            },
        }
    };
    config.routes.iter().enumerate().map(route).collect()
}

/// Conditions as the gateway takes them, one for each method that is named.
pub fn matches(written: &config::Match) -> Vec<Match> {
    let exact = written.path.clone().map(PathMatch::Exact);
    let start = || written.path_start.clone().map(PathMatch::Start);
    let prefix = || written.path_prefix.clone().map(PathMatch::Prefix);
    let regex = || written.path_regex.clone().map(PathMatch::Regex);
    let path = exact.or_else(prefix).or_else(start).or_else(regex);
    let scheme = written.scheme.map(|scheme| match scheme {
        config::RequestScheme::Http => Scheme::Http,
        config::RequestScheme::Https => Scheme::Https,
    });
    let one = |method: Option<String>| Match {
        scheme,
        path: path.clone(),
        method,
        headers: conditions(&written.headers),
        without: conditions(&written.without_headers),
        query: conditions(&written.query),
        ignore_path_case: written.ignore_path_case,
    };
    if written.methods.0.is_empty() {
        vec![one(None)]
    } else {
        written.methods.0.iter().cloned().map(Some).map(one).collect()
    }
}

fn action(config: &Config, route: &config::Route, shifts: &Shifts) -> Action {
    match (&route.to, &route.redirect, &route.respond) {
        (Some(targets), ..) => forward(config, route, targets, shifts),
        (None, None, Some(respond)) => Action::Respond(Arc::new(Fallback {
            status: respond.status,
            headers: respond.headers.clone().into_iter().collect(),
            body: respond.body.clone().into_bytes(),
        })),
        (None, Some(redirect), _) => Action::Redirect(Redirect {
            status: redirect.status,
            scheme: redirect.scheme.clone(),
            host: redirect.host.clone(),
            port: redirect.port,
            path: new_path(&route.matches, redirect.path.as_ref(), redirect.prefix.as_ref()),
        }),
        (None, None, None) => unreachable!("validation has refused a route that leads nowhere"),
    }
}

/// One destination, or several with their shares.
fn forward(config: &Config, route: &config::Route, targets: &config::Targets, shifts: &Shifts) -> Action {
    let target = |to: &config::Target| Target { service: to.service.clone(), version: to.version.clone() };
    let written: Vec<(Target, u32)> = targets.0.iter().map(|to| (target(to), to.weight.unwrap_or(1))).collect();
    if let ([(only, _)], false) = (written.as_slice(), shifts.concern(&written)) {
        return Action::Forward(only.clone());
    }
    let parts = shifts.shared(config, &written);
    let sticky = route.sticky.as_ref().and_then(|sticky| {
        let header = sticky.header.clone().map(Sticky::Header);
        header.or_else(|| sticky.cookie.clone().map(Sticky::Cookie))
    });
    Action::Split(Split { parts, sticky })
}

/// What is repeated, by the tools' meaning of their words.
fn retry(written: &config::Retry) -> RetryPolicy {
    use config::RetryOn as On;
    let has = |words: &[On]| written.on.iter().any(|on| words.contains(on));
    // No answer is a 5xx to whoever asked for one.
    let none = [On::ServerError, On::GatewayError];
    let status = |on: &On| match on {
        On::GatewayError => vec![502, 503, 504],
        On::Retriable4xx => vec![409],
        On::Http500 => vec![500],
        On::Http502 => vec![502],
        On::Http503 => vec![503],
        On::Http504 => vec![504],
        On::Http403 => vec![403],
        On::Http404 => vec![404],
        On::Http429 => vec![429],
        _ => Vec::new(),
    };
    RetryPolicy {
        total: written.attempts.saturating_add(1),
        connect: has(&[On::Connect, On::ConnectFailure, On::Error]) || has(&none),
        reset: has(&[On::Reset, On::RefusedStream, On::Error]) || has(&none),
        timeout: has(&[On::Timeout]) || has(&none),
        garbage: has(&[On::InvalidHeader]) || has(&none),
        statuses: written.on.iter().flat_map(status).collect(),
        server_errors: has(&[On::ServerError]),
        non_idempotent: has(&[On::NonIdempotent]),
        per_try: written.per_try_timeout,
        backoff: written.backoff,
        within: written.within,
    }
}

fn coding_of(written: config::Coding) -> Coding {
    match written {
        config::Coding::Gzip => Coding::Gzip,
        config::Coding::Br => Coding::Brotli,
        config::Coding::Zstd => Coding::Zstd,
    }
}

fn conditions(written: &BTreeMap<String, config::Condition>) -> Vec<(String, ValueMatch)> {
    let one = |(name, wanted): (&String, &config::Condition)| (name.clone(), condition(wanted));
    written.iter().map(one).collect()
}

fn condition(written: &config::Condition) -> ValueMatch {
    match written {
        config::Condition::Exact(text) => ValueMatch::Exact(text.clone()),
        config::Condition::Prefix(text) => ValueMatch::Prefix(text.clone()),
        config::Condition::Regex(text) => ValueMatch::Regex(text.clone()),
        config::Condition::Present => ValueMatch::Present,
    }
}

fn mirror(written: &config::Mirror) -> Mirror {
    let target = Target { service: written.service.clone(), version: written.version.clone() };
    Mirror { target, part: millionths(written.percent) }
}

fn fault(written: &config::Fault) -> Fault {
    Fault {
        delay: written.delay.as_ref().map(|delay| (delay.wait, millionths(delay.percent))),
        abort: written.abort.as_ref().map(|abort| (abort.status, millionths(abort.percent))),
    }
}

fn cors(written: &config::CorsPolicy) -> Cors {
    // `*` is every origin, as in the field itself.
    let is_any = written.origins.contains(&config::Condition::Exact("*".to_owned()));
    Cors {
        origins: if is_any { Vec::new() } else { written.origins.iter().map(condition).collect() },
        methods: written.methods.join(","),
        headers: written.headers.join(","),
        exposed: written.expose_headers.join(","),
        max_age: written.max_age.map(|age| age.as_secs()),
        credentials: written.credentials,
    }
}

fn millionths(percent: f64) -> u32 {
    (percent * 1e4).round() as u32
}

/// What stands in place of a path, or of what of it the route has matched.
fn new_path(matches: &config::Match, path: Option<&String>, prefix: Option<&String>) -> Option<PathRewrite> {
    let part = if matches.path_start.is_some() { PathRewrite::Start } else { PathRewrite::Prefix };
    path.cloned().map(PathRewrite::Full).or_else(|| prefix.cloned().map(part))
}

fn edits(written: &config::Headers) -> HeaderEdits {
    let pairs = |fields: &BTreeMap<String, String>| fields.clone().into_iter().collect();
    HeaderEdits { remove: written.remove.clone(), set: pairs(&written.set), add: pairs(&written.add) }
}

fn falls_back(traffic: &config::Traffic, service: &ServiceName) -> bool {
    traffic.fallback.as_ref().is_some_and(|fallback| fallback.service.as_ref() == Some(service))
}

/// Whether a route or a TCP listener leads to `service`.
pub fn is_routed(config: &Config, service: &ServiceName) -> bool {
    let by_tcp = |listener: &model::config::Listen| listener.0.tcp.as_ref().is_some_and(|tcp| tcp.service == *service);
    let copied = |route: &config::Route| route.mirror.0.iter().any(|mirror| mirror.service == *service);
    config.routes.iter().any(|route| route.to.as_ref().is_some_and(|to| to.lead_to(service)) || copied(route))
        || config.gateway.listen.iter().any(by_tcp)
        || config
            .services
            .values()
            .filter_map(|other| other.traffic.as_ref())
            .any(|other| other.backup.contains(service) || falls_back(other, service))
}
