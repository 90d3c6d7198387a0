//! Rules of routes: where they lead, what they change, what is done on purpose. What they match: `matches.rs`.

use std::collections::BTreeMap;

use super::{matches, targets};
use crate::config::{Config, Redirect, Respond, Retry, Route};
use crate::diagnostic::{Diagnostics, Place};

/// Checks every route of a configuration.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    for route in &config.routes {
        check_route(route, config, diagnostics);
    }
    same_names(config, diagnostics);
    matches::shadowed(config, diagnostics);
}

fn same_names(config: &Config, diagnostics: &mut Diagnostics) {
    let mut names = BTreeMap::new();
    for route in &config.routes {
        let Some(name) = &route.name else { continue };
        if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
            diagnostics.error(route.at.field("name"), "a name has 1 to 100 characters", "e.g. `checkout`");
        }
        let place = route.at.field("name");
        if let Some(other) = names.insert(name, place) {
            let message = format!("two routes are called `{name}`: the other one is on line {}", other.line);
            diagnostics.error(place, message, "give one of them another name: requests are counted by it");
        }
    }
}

fn check_route(route: &Route, config: &Config, diagnostics: &mut Diagnostics) {
    matches::check(&route.matches, diagnostics);
    if let Some(cors) = &route.cors {
        matches::check_cors(cors, diagnostics);
    }
    if route.timeout.is_some_and(|timeout| timeout.is_zero()) {
        diagnostics.error(
            route.at.field("timeout"),
            "a timeout of 0 answers every request 504",
            "leave `timeout` out for none",
        );
    }
    if let Some(retry) = &route.retry {
        check_retry(retry, diagnostics);
    }
    check_changes(route, diagnostics);
    check_on_purpose(route, config, diagnostics);
    let ways =
        [("to", route.to.is_some()), ("redirect", route.redirect.is_some()), ("respond", route.respond.is_some())];
    let mut written = ways.iter().filter(|(_, is)| *is);
    match (written.next(), written.next()) {
        (Some((first, _)), Some((second, _))) => {
            let message = format!("a route with both `{first}` and `{second}`");
            diagnostics.error(route.at.field(second), message, "keep one");
        }
        (Some(_), None) => {
            if let Some(targets) = &route.to {
                targets::check(route, targets, config, diagnostics);
            }
            if let Some(redirect) = &route.redirect {
                check_redirect(route, redirect, config, diagnostics);
            }
            if let Some(respond) = &route.respond {
                check_respond(respond, diagnostics);
            }
        }
        // One that was written and cannot be read has been told already.
        (None, _) if ways.iter().any(|(name, _)| route.at.has(name)) => {}
        (None, _) => {
            diagnostics.error(
                route.at.whole,
                "a route that leads nowhere",
                "add `to: { service: … }`, `redirect: { … }` or `respond: { … }`",
            );
        }
    }
}

/// The most who get copies of a route's requests.
const MOST_MIRRORS: usize = 8;

/// Rules of mirrors and faults.
fn check_on_purpose(route: &Route, config: &Config, diagnostics: &mut Diagnostics) {
    let is_alone = route.to.is_none() && !route.at.has("to");
    for key in ["mirror", "fault"] {
        if route.at.has(key) && is_alone {
            let message = format!("`{key}` on a route that leads to no service");
            diagnostics.error(route.at.field(key), message, "add `to`, or leave it out");
        }
    }
    if route.mirror.0.len() > MOST_MIRRORS {
        let message = format!("{} copies of each request", route.mirror.0.len());
        diagnostics.error(route.at.field("mirror"), message, format!("at most {MOST_MIRRORS}"));
    }
    for mirror in &route.mirror.0 {
        targets::check_named(&mirror.service, mirror.version.as_ref(), &mirror.at, config, diagnostics);
        check_percent(mirror.percent, mirror.at.field("percent"), diagnostics);
    }
    let Some(fault) = &route.fault else { return };
    if let Some(delay) = &fault.delay {
        check_percent(delay.percent, delay.at.field("percent"), diagnostics);
    }
    if let Some(abort) = &fault.abort {
        check_percent(abort.percent, abort.at.field("percent"), diagnostics);
        if !(400..=599).contains(&abort.status) {
            let message = format!("{} is no status of a failure", abort.status);
            diagnostics.error(abort.at.field("status"), message, "400 to 599, e.g. 503");
        }
    }
    if fault.delay.is_none() && fault.abort.is_none() && !fault.at.has("delay") && !fault.at.has("abort") {
        diagnostics.error(
            fault.at.whole,
            "a fault that does nothing",
            "add delay: { for: 2s } or abort: { status: 503 }",
        );
    }
}

fn check_percent(percent: f64, place: Place, diagnostics: &mut Diagnostics) {
    if percent > 100.0 {
        diagnostics.error(place, format!("{percent} of a hundred"), "0 to 100, e.g. percent: 10");
    }
}

/// The longest body of a fixed answer, in bytes.
const LONGEST_BODY: usize = 65_536;

fn check_respond(respond: &Respond, diagnostics: &mut Diagnostics) {
    let place = respond.at.field("headers");
    if !(200..=599).contains(&respond.status) || matches!(respond.status, 205 | 304) {
        let message = format!("a fixed answer cannot have status {}", respond.status);
        diagnostics.error(respond.at.field("status"), message, "200 to 599, but for 205 and 304");
    }
    if (respond.status == 204 && !respond.body.is_empty()) || respond.body.len() > LONGEST_BODY {
        let message = "a body that is too long, or one of a 204, which has none";
        diagnostics.error(respond.at.field("body"), message, "at most 65536 bytes; it is kept in memory");
    }
    for (name, value) in &respond.headers {
        check_field_name(name, place, diagnostics);
        check_field_value(name, value, place, diagnostics);
    }
}

/// The most attempts after the first.
const MOST_RETRIES: u32 = 10;

fn check_retry(retry: &Retry, diagnostics: &mut Diagnostics) {
    if retry.attempts > MOST_RETRIES {
        let message = format!("{} repetitions of one request", retry.attempts);
        diagnostics.error(retry.at.field("attempts"), message, "at most 10; 2 is usual");
    }
    if retry.on.is_empty() {
        diagnostics.error(retry.at.field("on"), "nothing is repeated", "e.g. on: [connect, reset], or attempts: 0");
    }
    if retry.per_try_timeout.is_some_and(|time| time.is_zero()) {
        diagnostics.error(retry.at.field("perTryTimeout"), "an attempt without any time", "e.g. perTryTimeout: 200ms");
    }
}

/// Rules of what a route changes on the way.
fn check_changes(route: &Route, diagnostics: &mut Diagnostics) {
    let rewrite = &route.rewrite;
    check_new_path(route, &rewrite.at, rewrite.path.as_deref(), rewrite.prefix.as_deref(), diagnostics);
    check_new_host(&rewrite.at, rewrite.host.as_deref(), diagnostics);
    for headers in [&route.request_headers, &route.response_headers] {
        let lists = [("remove", None), ("set", Some(&headers.set)), ("add", Some(&headers.add))];
        for (field, fields) in lists {
            let place = headers.at.field(field);
            let names: Vec<&String> =
                fields.map_or_else(|| headers.remove.iter().collect(), |fields| fields.keys().collect());
            for name in names {
                check_field_name(name, place, diagnostics);
            }
            for (name, value) in fields.into_iter().flatten() {
                check_field_value(name, value, place, diagnostics);
            }
        }
    }
}

pub(super) fn check_field_value(name: &str, value: &str, place: Place, diagnostics: &mut Diagnostics) {
    if value.bytes().any(|byte| byte < b' ' && byte != b'\t' || byte == 0x7f) || value.trim() != value {
        let message = format!("the value of `{name}` cannot stand in a header field");
        diagnostics.error(place, message, "no line breaks or control characters, no space at either end");
    }
}

pub(super) fn check_field_name(name: &str, place: Place, diagnostics: &mut Diagnostics) {
    const OWN: [&str; 15] = [
        "grpc-timeout",
        "x-request-timeout-ms",
        "connection",
        "content-length",
        "expect",
        "forwarded",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "traceparent",
        "tracestate",
        "x-request-id",
    ];
    let lower = name.to_ascii_lowercase().replace('_', "-");
    if !is_token(name) {
        diagnostics.error(place, format!("`{name}` is not the name of a header field"), "letters, digits and `-`");
    } else if OWN.contains(&lower.as_str()) || lower.starts_with("seawall-") || lower.starts_with("x-forwarded-") {
        let message = format!("`{name}` is the gateway's own: it cannot be changed");
        let cure = if lower == "host" { "to change the host write rewrite: { host: … }" } else { "leave it out" };
        diagnostics.error(place, message, cure);
    }
}

/// What the name of a field is made of (RFC 9110, 5.6.2).
pub(super) fn is_token(name: &str) -> bool {
    let may = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty() && name.bytes().all(may)
}

/// Rules of a path that takes the place of another.
fn check_new_path(
    route: &Route,
    at: &crate::config::decode::Places,
    path: Option<&str>,
    prefix: Option<&str>,
    diagnostics: &mut Diagnostics,
) {
    if path.is_some() && prefix.is_some() {
        diagnostics.error(at.field("prefix"), "both `path` and `prefix`", "keep one");
    }
    for (field, new) in [("path", path), ("prefix", prefix)] {
        if let Some(new) = new
            && (!new.starts_with('/') || !new.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#\\<>".contains(&byte)))
        {
            diagnostics.error(
                at.field(field),
                format!("`{new}` is not a path"),
                "a path starts with `/` and has no query",
            );
        }
    }
    if prefix.is_some() && route.matches.path_prefix.is_none() && route.matches.path_start.is_none() {
        diagnostics.error(
            at.field("prefix"),
            "`prefix` without a `pathPrefix` to stand in place of",
            "add match: { pathPrefix: … }, or write `path`",
        );
    }
}

/// Rules of a host that takes the place of another: it is written into a head as it stands.
fn check_new_host(at: &crate::config::decode::Places, host: Option<&str>, diagnostics: &mut Diagnostics) {
    let Some(host) = host else { return };
    let is_address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = !host.is_empty()
        && host.len() <= 253
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if !is_address && !is_name {
        let message = format!("`{}` is not a host", host.escape_debug());
        diagnostics.error(
            at.field("host"),
            message,
            "write a name or an address without a port, e.g. shop.example.com",
        );
    }
}

fn check_redirect(route: &Route, redirect: &Redirect, config: &Config, diagnostics: &mut Diagnostics) {
    if ![301, 302, 303, 307, 308].contains(&redirect.status) {
        let message = format!("{} is no status of a redirect", redirect.status);
        diagnostics.error(redirect.at.field("status"), message, "write 301, 302, 303, 307 or 308");
    }
    if redirect.scheme.as_ref().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
        diagnostics.error(redirect.at.field("scheme"), "an unknown scheme", "write http or https");
    }
    check_new_path(route, &redirect.at, redirect.path.as_deref(), redirect.prefix.as_deref(), diagnostics);
    check_new_host(&redirect.at, redirect.host.as_deref(), diagnostics);
    if redirect.port == Some(0) {
        diagnostics.error(redirect.at.field("port"), "nobody listens on port 0", "write a port from 1 to 65535");
    }
    let says_nothing = redirect.scheme.is_none()
        && redirect.host.is_none()
        && redirect.port.is_none()
        && redirect.path.is_none()
        && redirect.prefix.is_none();
    if says_nothing {
        diagnostics.error(
            redirect.at.whole,
            "a redirect to where the client is",
            "add scheme, host, port, path or prefix",
        );
    }
    // Under the scheme it leads to, a client would be sent where it is, again and again.
    let elsewhere =
        redirect.host.is_some() || redirect.port.is_some() || redirect.path.is_some() || redirect.prefix.is_some();
    let both =
        |tls: bool| config.gateway.listen.iter().any(|listen| listen.0.tls.is_some() == tls && listen.0.tcp.is_none());
    if let Some(scheme) = redirect.scheme.as_deref().filter(|_| !elsewhere && both(true) && both(false)) {
        let other = if scheme == "https" { "http" } else { "https" };
        if route.matches.scheme.is_none_or(|matched| matched.as_str() == scheme) {
            let message = format!("clients that come by {scheme} would be sent where they are");
            diagnostics.error(redirect.at.field("scheme"), message, format!("add match: {{ scheme: {other} }}"));
        }
    }
}
