//! Istio's VirtualServices and DestinationRules (`networking.istio.io` `v1`, `v1beta1`, `v1alpha3`). What each field means is
//! read from Istio's reference and from what Pilot makes of it for Envoy (`pilot/pkg/networking/core/route`): the first
//! route that matches wins, a host that is named wins over one with `*`, prefixes are of characters and not of segments.
//! Deliberately absent: objects of other kinds, and whatever a cluster adds to them.

mod groups;
mod policy;
mod rules;
mod shapes;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use super::super::decode::{Decode, Places};
use super::super::node::default_of;
use super::super::yaml::{self, Kind, Node};
use super::super::{Condition, Headers, Match, Mirror, Mirrors, OneOrMany, Redirect, Respond, Rewrite, Route, Targets};
use super::{Origin, OriginKind, Target};
use crate::config::Target as Destination;
use crate::diagnostic::{Diagnostics, Place};
use crate::id::{ServiceName, VersionName};
use groups::Group;
use policy::Subsets;
use rules::DestinationRule;
use shapes::{
    DestinationRef, HeaderOperations, HttpDestination, HttpMatch, HttpRoute, Operations, StringMatch, VirtualService,
};

/// The most objects of all files together.
const MAX_OBJECTS: usize = 10_000;

type Names = BTreeMap<String, ServiceName>;

/// Says of fields that were written that they have no counterpart.
fn refuse(at: &Places, fields: &[&str], diagnostics: &mut Diagnostics) {
    for field in fields.iter().filter(|field| at.has(field)) {
        let message = format!("`{field}` has no counterpart here");
        diagnostics.error(at.field(field), message, "leave it out, or write a route of Seawall's own instead");
    }
}

/// Puts the objects of some files in force: first what DestinationRules say, then routes.
pub(super) fn put(target: &mut Target<'_>, names: &Names, texts: &[(u16, String)]) {
    let mut services = Vec::new();
    let mut rules = Vec::new();
    for (file, text) in texts {
        for node in yaml::parse_all(text, *file, target.diagnostics).unwrap_or_default() {
            match kind_of(&node) {
                Some("VirtualService") => services.extend(VirtualService::decode(&node, target.diagnostics)),
                Some("DestinationRule") => rules.extend(DestinationRule::decode(&node, target.diagnostics)),
                other => {
                    let message = format!("an object of kind `{}`", other.unwrap_or("nothing"));
                    let cure = "VirtualService and DestinationRule are read: move the others to another file";
                    target.diagnostics.error(Places::of(&node).field("kind"), message, cure);
                }
            }
        }
    }
    if services.len() + rules.len() > MAX_OBJECTS {
        let place = Place { file: texts.first().map_or(0, |(file, _)| *file), line: 0, column: 0 };
        target.diagnostics.error(
            place,
            format!("more than {MAX_OBJECTS} objects"),
            "leave out those that are not used",
        );
        return;
    }
    let versions = services.iter().map(|it| (&it.api_version, &it.at));
    for (version, at) in versions.chain(rules.iter().map(|it| (&it.api_version, &it.at))) {
        let known = ["v1", "v1beta1", "v1alpha3"].map(|known| format!("networking.istio.io/{known}"));
        if !known.contains(version) {
            let message = format!("`{version}` is not known");
            target.diagnostics.error(at.field("apiVersion"), message, format!("one of {}", known.join(", ")));
        }
    }
    let subsets = policy::rules(target, names, &rules);
    if services.is_empty() {
        return;
    }
    let (mut groups, at) = groups::in_force(&mut target.config.routes);
    let replaces = target.replaced.is_some();
    if replaces {
        check_names(&services, target.diagnostics);
    }
    let objects: BTreeSet<&str> = services.iter().map(|service| service.metadata.name.as_str()).collect();
    let stays = |group: &&Group| !(replaces && objects.contains(group.object.as_str()));
    let taken = groups.iter().filter(stays).flat_map(|group| &group.routes).filter_map(|route| route.name.clone());
    let taken = taken.collect();
    let mut writer = Writer { target, names, subsets, ports: BTreeMap::new(), taken };
    for service in &services {
        writer.service(service, &mut groups);
    }
    if replaces {
        groups.retain(|group| !(group.is_old && objects.contains(group.object.as_str())));
    }
    groups::put(&mut target.config.routes, groups, at);
}

/// An object that is applied takes the place of the one of its name, so that it needs one.
fn check_names(services: &[VirtualService], diagnostics: &mut Diagnostics) {
    let mut seen = BTreeSet::new();
    for service in services {
        let name = service.metadata.name.as_str();
        let place = service.at.field("metadata");
        if name.is_empty() {
            let cure =
                "add metadata: { name: … }: when it is applied again, it takes the place of the one of this name";
            diagnostics.error(place, "a VirtualService without a name", cure);
        } else if !seen.insert(name) {
            let message = format!("there are two VirtualServices `{name}`");
            diagnostics.error(place, message, "rename or remove one of the two");
        }
    }
}

fn kind_of(node: &Node) -> Option<&str> {
    let Kind::Map(pairs) = &node.kind else { return None };
    pairs.iter().find(|(key, _)| key.name == "kind").and_then(|(_, value)| match &value.kind {
        Kind::Scalar { text, .. } => Some(text.as_str()),
        _ => None,
    })
}

struct Writer<'t, 'c> {
    target: &'t mut Target<'c>,
    names: &'t Names,
    subsets: Subsets,
    /// The port by which each service is named: it has one here.
    ports: BTreeMap<ServiceName, u16>,
    /// The names that routes have.
    taken: BTreeSet<String>,
}

impl Writer<'_, '_> {
    fn service(&mut self, service: &VirtualService, groups: &mut Vec<Group>) {
        let (spec, object) = (&service.spec, &service.metadata.name);
        refuse(&spec.at, &["tls", "tcp", "exportTo"], self.target.diagnostics);
        if spec.hosts.is_empty() || spec.http.is_empty() {
            let message = "a VirtualService without hosts, or without `http`";
            self.target.diagnostics.error(spec.at.whole, message, "add hosts: [\"*\"] and http: […]");
        }
        let exact: Vec<String> = spec.hosts.iter().filter(|host| !host.starts_with('*')).cloned().collect();
        let wild = spec.hosts.iter().filter(|host| host.starts_with('*'));
        let place = spec.at.field("hosts");
        let mut kinds: Vec<Vec<String>> = Vec::new();
        if !exact.is_empty() {
            kinds.push(exact);
        }
        kinds.extend(wild.map(|host| if host == "*" { Vec::new() } else { vec![host.clone()] }));
        // What is wrong in a route is told once, however many hosts it is for.
        for (number, hosts) in kinds.into_iter().enumerate() {
            let mut quiet = Diagnostics::default();
            let mut routes = Vec::new();
            for route in &spec.http {
                if number == 0 {
                    self.route(route, &hosts, &mut routes);
                } else {
                    let sources = self.target.sources;
                    let config = &mut *self.target.config;
                    let mut target = Target { config, diagnostics: &mut quiet, sources, replaced: None };
                    let mut writer = Writer {
                        target: &mut target,
                        names: self.names,
                        subsets: self.subsets.clone(),
                        ports: self.ports.clone(),
                        taken: std::mem::take(&mut self.taken),
                    };
                    writer.route(route, &hosts, &mut routes);
                    self.taken = writer.taken;
                }
            }
            let from = Origin { hosts: hosts.clone(), ..Origin::new(OriginKind::VirtualService, object.as_str()) };
            routes.iter_mut().for_each(|route| route.from = Some(from.clone()));
            let group = Group { object: object.clone(), hosts, routes, place, is_old: false };
            group.put(groups, self.target.replaced.is_some());
        }
    }

    fn route(&mut self, written: &HttpRoute, hosts: &[String], routes: &mut Vec<Route>) {
        refuse(&written.at, &["delegate"], self.target.diagnostics);
        let Some(base) = self.base(written) else { return };
        if written.matches.is_empty() {
            let matches = Match { hosts: OneOrMany(hosts.to_vec()), ..Match::default() };
            return routes.push(self.finished(written, base, matches));
        }
        for wanted in &written.matches {
            if let Some(matches) = self.matches(wanted, hosts) {
                let route = self.finished(written, base.clone(), matches);
                routes.push(route);
            }
        }
    }

    /// All of a route but what depends on how it matches.
    fn base(&mut self, written: &HttpRoute) -> Option<Route> {
        let at = written.at.renamed(&[
            ("route", "to"),
            ("redirect", "redirect"),
            ("directResponse", "respond"),
            ("rewrite", "rewrite"),
            ("timeout", "timeout"),
            ("retries", "retry"),
            ("fault", "fault"),
            ("mirror", "mirror"),
            ("mirrors", "mirror"),
            ("corsPolicy", "cors"),
            ("name", "name"),
        ]);
        let mut route = Route { at, ..default_of() };
        if !written.route.is_empty() {
            route.to = Some(Targets(self.destinations(&written.route)?));
        }
        let fields = written.headers.iter().chain(written.route.iter().filter_map(|one| one.headers.as_ref()));
        for (count, operations) in fields.enumerate() {
            if written.route.len() > 1 && (count > 0 || written.headers.is_none()) {
                let message = "`headers` of one of several destinations";
                let cure = "write them for the whole route, or route each destination by a rule of its own";
                self.target.diagnostics.error(operations.at.whole, message, cure);
            }
            self.headers(operations, &mut route);
        }
        if let Some(redirect) = &written.redirect {
            refuse(&redirect.at, &["derivePort"], self.target.diagnostics);
            let authority = redirect.authority.as_deref();
            let with_port = authority.and_then(|it| it.rsplit_once(':')).filter(|(host, _)| !host.contains(':'));
            let port = with_port.and_then(|(_, port)| port.parse().ok());
            let host = if port.is_some() { with_port.map(|(host, _)| host) } else { authority };
            route.redirect = Some(Redirect {
                scheme: redirect.scheme.clone(),
                host: host.map(str::to_owned),
                port: redirect.port.or(port),
                path: redirect.uri.clone(),
                prefix: None,
                status: redirect.redirect_code,
                at: redirect.at.renamed(&[
                    ("scheme", "scheme"),
                    ("authority", "host"),
                    ("port", "port"),
                    ("uri", "path"),
                    ("redirectCode", "status"),
                ]),
            });
        }
        if let Some(direct) = &written.direct_response {
            if let Some(body) = &direct.body {
                refuse(&body.at, &["bytes"], self.target.diagnostics);
            }
            let body = direct.body.as_ref().map(|body| body.string.clone()).unwrap_or_default();
            let at = direct.at.renamed(&[("status", "status"), ("body", "body")]);
            route.respond = Some(Respond { status: direct.status, body, headers: BTreeMap::new(), at });
        }
        route.timeout = written.timeout.filter(|timeout| !timeout.is_zero());
        route.retry = written.retries.as_ref().map(|retries| words::retry(retries, self.target.diagnostics));
        route.fault = written.fault.as_ref().and_then(|fault| words::fault(fault, self.target.diagnostics));
        if written.fault.is_some() {
            // Istio's reference: timeouts and retries are not in force beside faults.
            for (field, is) in [("timeout", route.timeout.is_some()), ("retries", route.retry.is_some())] {
                if is {
                    let message = format!("`{field}` beside `fault` is not in force, as in Istio");
                    self.target.diagnostics.warning(
                        written.at.field(field),
                        message,
                        "remove it while the fault is there",
                    );
                }
            }
            (route.timeout, route.retry) = (None, None);
        }
        route.mirror = self.mirrors(written);
        route.cors = written.cors_policy.as_ref().map(|cors| words::cors(cors, self.target.diagnostics));
        Some(route)
    }

    fn mirrors(&mut self, written: &HttpRoute) -> Mirrors {
        let one = written.mirror.as_ref().map(|to| {
            let said = written.mirror_percentage.as_ref().map(|part| part.value).or(written.mirror_percent);
            (to, said)
        });
        let more = written.mirrors.iter().map(|it| (&it.destination, it.percentage.as_ref().map(|part| part.value)));
        let mut mirrors = Vec::new();
        for (to, percent) in one.into_iter().chain(more) {
            let Some((service, version)) = self.destination(to) else { continue };
            // Istio: all of them, unless something else is said.
            let percent = percent.unwrap_or(100.0);
            let at = to.at.renamed(&[("host", "service"), ("subset", "version")]);
            mirrors.push(Mirror { service, version, percent, at });
        }
        Mirrors(mirrors)
    }

    fn destinations(&mut self, written: &[HttpDestination]) -> Option<Vec<Destination>> {
        let several = written.len() > 1;
        let one = |one: &HttpDestination| {
            let (service, version) = self.destination(&one.destination)?;
            // Istio: alone it has everything, beside others nothing that is not said.
            let weight = several.then(|| one.weight.unwrap_or(0));
            let at = one.destination.at.renamed(&[("host", "service"), ("subset", "version")]);
            Some(Destination { service, version, weight, source: None, at })
        };
        written.iter().map(one).collect()
    }

    /// The service and version that a destination means.
    fn destination(&mut self, written: &DestinationRef) -> Option<(ServiceName, Option<VersionName>)> {
        let service = policy::service(self.target, self.names, &written.host, written.at.field("host"))?;
        if let Some(port) = &written.port {
            let known = *self.ports.entry(service.clone()).or_insert(port.number);
            if known != port.number {
                let message =
                    format!("port {} of `{}`, and {known} elsewhere: a service has one", port.number, service);
                self.target.diagnostics.error(port.at.whole, message, "make a service of each port");
            }
        }
        let Some(subset) = &written.subset else { return Some((service, None)) };
        let place = written.at.field("subset");
        let version = self.subsets.version(self.target, &service, subset, place)?;
        Some((service, version))
    }

    fn headers(&mut self, written: &HeaderOperations, route: &mut Route) {
        let add = |to: &mut Headers, operations: &Operations| {
            to.remove.extend(operations.remove.iter().cloned());
            to.set.extend(operations.set.clone());
            to.add.extend(operations.add.clone());
            to.at = operations.at.clone();
        };
        if let Some(request) = &written.request {
            add(&mut route.request_headers, request);
            // Envoy sets the authority by this name.
            let is_host = |name: &String| name.eq_ignore_ascii_case("host") || name == ":authority";
            let named: Vec<String> = route.request_headers.set.keys().filter(|name| is_host(name)).cloned().collect();
            for name in named {
                route.rewrite.host = route.request_headers.set.remove(&name);
            }
        }
        if let Some(response) = &written.response {
            add(&mut route.response_headers, response);
        }
    }

    /// With its conditions, and with what depends on them.
    fn finished(&mut self, written: &HttpRoute, mut route: Route, mut matches: Match) -> Route {
        if let Some(rewrite) = &written.rewrite {
            refuse(&rewrite.at, &["uriRegexRewrite"], self.target.diagnostics);
            let whole = matches.path.is_some() || matches.path_regex.is_some();
            let at = rewrite.at.renamed(&[("uri", if whole { "path" } else { "prefix" }), ("authority", "host")]);
            let host = rewrite.authority.clone().or(route.rewrite.host.take());
            let (path, prefix) = if whole { (rewrite.uri.clone(), None) } else { (None, rewrite.uri.clone()) };
            if prefix.is_some() && matches.path_start.is_none() {
                matches.path_start = Some("/".to_owned());
            }
            route.rewrite = Rewrite { path, prefix, host, at };
        }
        if let Some(name) = &written.name {
            let number = |count: usize| if count == 1 { name.clone() } else { format!("{name}-{count}") };
            let free = (1..).map(number).find(|name| !self.taken.contains(name));
            self.taken.extend(free.clone());
            route.name = free;
        }
        Route { matches, ..route }
    }

    fn matches(&mut self, written: &HttpMatch, hosts: &[String]) -> Option<Match> {
        let refused = ["port", "sourceLabels", "sourceNamespace", "gateways", "statPrefix"];
        refuse(&written.at, &refused, self.target.diagnostics);
        let diagnostics = &mut *self.target.diagnostics;
        let mut matches = Match {
            hosts: OneOrMany(hosts.to_vec()),
            headers: conditions(&written.headers),
            without_headers: conditions(&written.without_headers),
            query: conditions(&written.query_params),
            at: written.at.renamed(&[
                ("uri", "path"),
                ("uri", "pathStart"),
                ("uri", "pathRegex"),
                ("headers", "headers"),
                ("withoutHeaders", "withoutHeaders"),
                ("queryParams", "query"),
                ("method", "method"),
                ("authority", "host"),
                ("ignoreUriCase", "ignorePathCase"),
            ]),
            ..Match::default()
        };
        match written.uri.as_ref().map(|uri| &uri.0) {
            Some(Condition::Exact(path)) => matches.path = Some(path.clone()),
            Some(Condition::Prefix(start)) => matches.path_start = Some(start.clone()),
            Some(Condition::Regex(expression)) => matches.path_regex = Some(expression.clone()),
            Some(Condition::Present) | None => {}
        }
        // Istio: not of expressions, and of nothing where no path is asked for.
        matches.ignore_path_case = written.ignore_uri_case && (matches.path.is_some() || matches.path_start.is_some());
        for name in ["uri", "scheme", "method", "authority"].iter().filter(|name| written.headers.contains_key(**name))
        {
            let message = format!("`{name}` as a header is not looked at, as in Istio");
            diagnostics.error(written.at.field("headers"), message, format!("write {name}: {{ … }} beside `headers`"));
        }
        if let Some(scheme) = &written.scheme {
            matches.scheme = words::scheme(&scheme.0, written.at.field("scheme"), diagnostics)?;
        }
        if let Some(method) = &written.method {
            matches.methods = OneOrMany(words::methods(&method.0, written.at.field("method"), diagnostics)?);
        }
        match written.authority.as_ref().map(|authority| &authority.0) {
            Some(Condition::Exact(host)) if !host.contains(':') => {
                if !hosts.is_empty() && !hosts.iter().any(|known| words::is_host(known, host)) {
                    return None;
                }
                matches.hosts = OneOrMany(vec![host.clone()]);
            }
            Some(condition) => drop(matches.headers.insert("host".to_owned(), condition.clone())),
            None => {}
        }
        Some(matches)
    }
}

fn conditions(written: &BTreeMap<String, StringMatch>) -> BTreeMap<String, Condition> {
    written.iter().map(|(name, value)| (name.clone(), value.0.clone())).collect()
}

/// What objects of each kind may have.
#[cfg(test)]
pub(super) fn schemas(definitions: &mut BTreeMap<String, serde_json::Value>) -> [(&'static str, serde_json::Value); 2] {
    [
        ("Istio: VirtualService", VirtualService::schema(definitions)),
        ("Istio: DestinationRule", DestinationRule::schema(definitions)),
    ]
}
