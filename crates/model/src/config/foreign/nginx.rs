//! nginx' `upstream` and `location` blocks. What each directive means is read from the reference of nginx'
//! `ngx_http_upstream_module`, `ngx_http_proxy_module`, `ngx_http_core_module`, `ngx_http_limit_req_module` and
//! `ngx_http_limit_conn_module`. An upstream is a service; locations are routes, in the order in which nginx would choose.
//! Deliberately absent: `server` and everything else of a whole configuration, variables, and what works on files.

mod limits;
mod location;
mod parse;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::decode::{Places, Ratio, dns_label};
use super::super::node::default_of;
use super::super::{BalanceBy, Config, EndpointOptions, Outlier, Service, Traffic};
use super::origin::is_of;
use super::{Origin, OriginKind, Target};
use crate::diagnostic::{Diagnostics, Place};
use crate::id::ServiceName;
use limits::Zones;
use parse::{Directive, Word, time};

/// The service of each upstream, by the name that `proxy_pass` has for it.
type Upstreams = BTreeMap<String, ServiceName>;

/// Puts the blocks of some files in force.
pub(super) fn put(target: &mut Target<'_>, texts: &[(u16, String)]) {
    let mut directives = Vec::new();
    for (file, text) in texts {
        directives.extend(parse::parse(text, *file, target.diagnostics).unwrap_or_default());
    }
    let mut upstreams = in_force(target.config);
    let mut own = BTreeSet::new();
    let mut zones = Zones::default();
    let mut locations = Vec::new();
    for directive in &directives {
        match directive.name.as_str() {
            "upstream" => upstream(target, directive, &mut own),
            "limit_req_zone" | "limit_conn_zone" => zones.add(directive, target.diagnostics),
            "location" => locations.push(directive),
            _ => unknown(
                directive,
                "upstream, location, limit_req_zone and limit_conn_zone are read",
                target.diagnostics,
            ),
        }
    }
    for name in own {
        let service = service_of(&name);
        if target.config.services.contains_key(&service) {
            upstreams.insert(name, service);
        }
    }
    location::put(target, &locations, &upstreams, &zones);
}

/// The upstreams that are there already.
fn in_force(config: &Config) -> Upstreams {
    let named = config.services.iter().filter_map(|(service, definition)| {
        let from = definition.from.as_ref().filter(|from| from.kind == OriginKind::Nginx)?;
        Some((from.name.clone(), service.clone()))
    });
    named.collect()
}

/// The service of an upstream: nginx' names are wider than those of services.
fn service_of(name: &str) -> ServiceName {
    ServiceName::from(name.to_ascii_lowercase().replace(['_', '.'], "-").as_str())
}

/// How many may be asked one after the other: backups and those that are down are not among them.
fn servers(service: &Service) -> usize {
    let counts = |endpoint: &&String| {
        service.endpoint_options.get(*endpoint).is_none_or(|option| !option.backup && !option.down)
    };
    match service.endpoints.len() {
        0 => service.total_replicas() as usize,
        _ => service.endpoints.iter().filter(counts).count(),
    }
}

fn unknown(directive: &Directive, cure: &str, diagnostics: &mut Diagnostics) {
    diagnostics.error(directive.at, format!("`{}` has no counterpart here", directive.name), cure);
}

/// The value of `name=value`.
fn value<'w>(word: &'w Word, name: &str) -> Option<&'w str> {
    word.text.strip_prefix(name)?.strip_prefix('=')
}

fn upstream(target: &mut Target<'_>, block: &Directive, own: &mut BTreeSet<String>) {
    let [name] = block.words.as_slice() else {
        target.diagnostics.error(block.at, "an upstream has one name", "upstream backend { … }");
        return;
    };
    let service = service_of(&name.text);
    if let Err(rule) = dns_label(service.as_str()) {
        target.diagnostics.error(name.at, format!("`{}` cannot be the name of a service", name.text), rule);
        return;
    }
    let is_new = own.insert(name.text.clone());
    let before = target.config.services.get(&service);
    let is_replaced = is_new
        && target.replaced.is_some()
        && before.is_some_and(|before| is_of(before.from.as_ref(), OriginKind::Nginx));
    if before.is_some() && !is_replaced {
        let message = format!("there is a service `{service}` already");
        target.diagnostics.error(name.at, message, "rename or remove one of the two");
        return;
    }
    let mut endpoints = Vec::new();
    let mut options = BTreeMap::new();
    let mut bans: Vec<(Ban, Place)> = Vec::new();
    let mut balance = BalanceBy::RoundRobin;
    for directive in block.inside.iter().flatten() {
        match directive.name.as_str() {
            "server" => {
                if let Some((address, option, ban)) = server(directive, target.diagnostics) {
                    bans.extend((!option.down).then_some((ban, directive.at)));
                    if options.insert(address.clone(), option).is_some() {
                        target.diagnostics.error(
                            directive.at,
                            format!("`{address}` stands twice"),
                            "give one the weight of both",
                        );
                        continue;
                    }
                    endpoints.push(address);
                }
            }
            "least_conn" => balance = BalanceBy::LeastRequests,
            // Connections to instances are kept anyway.
            "keepalive" | "keepalive_timeout" | "keepalive_requests" | "keepalive_time" | "zone" => {}
            _ => unknown(directive, "an upstream has server, least_conn, keepalive and zone", target.diagnostics),
        }
    }
    if endpoints.is_empty() {
        // One that cannot be read has been told of.
        if !block.inside.iter().flatten().any(|directive| directive.name == "server") {
            target.diagnostics.error(block.at, "an upstream without a server", "add server 10.0.0.7:8080;");
        }
        return;
    }
    let at = Places::from_parts(block.at, std::iter::empty());
    let from = Some(Origin::new(OriginKind::Nginx, name.text.as_str()));
    let mut definition = Service { endpoints, endpoint_options: options, balance, from, at, ..default_of() };
    // What other files say of an upstream that is written anew stays.
    definition.traffic = target.config.services.remove(&service).and_then(|before| before.traffic);
    if let Some(traffic) = &mut definition.traffic {
        traffic.outlier.take_if(|outlier| is_of(outlier.from.as_ref(), OriginKind::Nginx));
    }
    if let Some(((ban, at), others)) = bans.split_first() {
        if let Some((_, place)) = others.iter().find(|(other, _)| other != ban) {
            let message =
                format!("`max_fails` and `fail_timeout` as on line {} for all servers of an upstream", at.line);
            target.diagnostics.error(*place, message, "write the same for each, or none for any");
        }
        // nginx heeds neither where there is nobody else.
        if ban.max_fails > 0 && bans.len() > 1 {
            let traffic = definition.traffic.get_or_insert_with(default_of::<Traffic>);
            if let Some(known) = &traffic.outlier {
                let message =
                    format!("this is an `outlier`, and the service has one already ({})", target.named(known.at.whole));
                target.diagnostics.error(*at, message, "one of each kind for a service: remove one of the two");
            }
            traffic.outlier = Some(Outlier {
                consecutive_errors: ban.max_fails,
                eject_for: ban.fail_timeout,
                max_ejected: Ratio::WHOLE,
                panic_threshold: Ratio(0),
                within: Some(ban.fail_timeout),
                // Only where `proxy_next_upstream` says so.
                server_errors: false,
                growing: false,
                from: Some(Origin::new(OriginKind::Nginx, "")),
                at: Places::from_parts(*at, std::iter::empty()),
            });
        }
    }
    target.config.services.insert(service, definition);
}

/// When a server is left alone: the same time is the window and the ban.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Ban {
    max_fails: u32,
    fail_timeout: Duration,
}

fn server(directive: &Directive, diagnostics: &mut Diagnostics) -> Option<(String, EndpointOptions, Ban)> {
    let (address, words) = directive.words.split_first().or_else(|| {
        diagnostics.error(directive.at, "a server without an address", "server 10.0.0.7:8080;");
        None
    })?;
    let mut option = EndpointOptions {
        weight: 1,
        backup: false,
        down: false,
        max_requests: None,
        at: Places::from_parts(directive.at, std::iter::empty()),
    };
    let mut ban = Ban { max_fails: 1, fail_timeout: Duration::from_secs(10) };
    for word in words {
        let number = |text: &str| text.parse::<u32>().ok();
        let read = match word.text.as_str() {
            "backup" => {
                option.backup = true;
                Some(())
            }
            "down" => {
                option.down = true;
                Some(())
            }
            _ if let Some(text) = value(word, "weight") => number(text).map(|weight| option.weight = weight),
            _ if let Some(text) = value(word, "max_fails") => number(text).map(|fails| ban.max_fails = fails),
            _ if let Some(text) = value(word, "fail_timeout") => time(text).map(|time| ban.fail_timeout = time),
            // 0 is no bound.
            _ if let Some(text) = value(word, "max_conns") => {
                number(text).map(|most| option.max_requests = Some(most).filter(|most| *most > 0))
            }
            _ => None,
        };
        if read.is_none() {
            let message = format!("`{}` of a server has no counterpart here, or cannot be read", word.text);
            let cure = "weight=2, backup, down, max_conns=9, max_fails=1 and fail_timeout=10s";
            diagnostics.error(word.at, message, cure);
        }
    }
    // nginx' port is 80 where none is written.
    let text = &address.text;
    if text.starts_with("unix:") {
        diagnostics.error(address.at, "`unix:` has no counterpart here", "an address and a port");
        return None;
    }
    // A colon in brackets is IPv6's.
    let behind = text.rfind(']').map_or(0, |end| end + 1);
    let (host, port) = match text[behind..].rsplit_once(':') {
        Some((host, port)) => (&text[..behind + host.len()], port.parse::<u16>().ok().filter(|port| *port > 0)),
        None => (text.as_str(), Some(80)),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b".-_[]:".contains(&byte);
    let plain = !host.is_empty() && host.bytes().all(is_host) && (behind > 0 || !host.contains(':'));
    let Some(port) = port.filter(|_| plain) else {
        let message = format!("`{text}` is no host with a port from 1 to 65535");
        diagnostics.error(address.at, message, "server 10.0.0.7:8080;");
        return None;
    };
    Some((format!("{host}:{port}"), option, ban))
}
