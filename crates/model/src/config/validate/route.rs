//! Rules of routes: what they match, where they lead, and whether they can be reached.

use std::collections::BTreeMap;

use regex_lite::Regex;

use super::targets;
use crate::config::{Config, Match, Redirect, Retry, Route};
use crate::diagnostic::{Diagnostics, Place};

/// Checks every route of a configuration.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    for route in &config.routes {
        check_route(route, config, diagnostics);
    }
    same_names(config, diagnostics);
    shadowed_routes(config, diagnostics);
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
    let matches = &route.matches;
    let paths = [("path", &matches.path), ("pathPrefix", &matches.path_prefix), ("pathRegex", &matches.path_regex)];
    if paths.iter().filter(|(_, path)| path.is_some()).count() > 1 {
        diagnostics.error(matches.at.whole, "a route with more than one of path, pathPrefix, pathRegex", "keep one");
    }
    for (field, path) in &paths[..2] {
        if let Some(path) = path
            && let Some((problem, cure)) = path_problem(path)
        {
            diagnostics.error(matches.at.field(field), format!("`{path}` {problem}"), cure);
        }
    }
    if let Some(expression) = &matches.path_regex
        && let Some((problem, cure)) = expression_problem(expression)
    {
        diagnostics.error(matches.at.field("pathRegex"), problem, cure);
    }
    if matches.methods.0.is_empty() && matches.at.has("method") {
        diagnostics.error(
            matches.at.field("method"),
            "no method matches",
            "name some, e.g. [GET, POST], or leave `method` out for any",
        );
    }
    if let Some(host) = &matches.host
        && (host.is_empty() || host.contains(['/', ':', ' ']) || host.trim_start_matches("*.").contains('*'))
    {
        diagnostics.error(
            matches.at.field("host"),
            format!("`{host}` is not a host"),
            "write a name without port or path; `*.` may stand in front",
        );
    }
    for name in matches.headers.keys() {
        if !is_token(name) {
            let message = format!("`{name}` is not the name of a header field");
            diagnostics.error(matches.at.field("headers"), message, "letters, digits and `-`");
        }
    }
    for method in &matches.methods.0 {
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
            diagnostics.error(
                matches.at.field("method"),
                format!("`{method}` is not a method"),
                "methods are upper-case words such as GET",
            );
        }
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
    match (&route.to, &route.redirect) {
        (Some(targets), None) => targets::check(route, targets, config, diagnostics),
        (None, Some(redirect)) => check_redirect(route, redirect, config, diagnostics),
        // One that was written and cannot be read has been told already.
        (None, None) if route.at.has("to") || route.at.has("redirect") => {}
        (None, None) => {
            diagnostics.error(
                route.at.whole,
                "a route that leads nowhere",
                "add `to: { service: … }` or `redirect: { … }`",
            );
        }
        (Some(_), Some(_)) => {
            diagnostics.error(route.at.field("redirect"), "a route with both `to` and `redirect`", "keep one");
        }
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
    if prefix.is_some() && route.matches.path_prefix.is_none() {
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

/// Why no request can have this path, and what to write instead.
fn path_problem(path: &str) -> Option<(&'static str, String)> {
    if !path.starts_with('/') {
        return Some(("does not start with `/`", format!("write `/{path}`")));
    }
    let bare = path.split(['?', '#']).next().unwrap_or_default();
    if bare.len() < path.len() {
        return Some((
            "has a `?` or `#`: a route sees the path alone",
            format!("write `{bare}`; what stands behind it is not matched"),
        ));
    }
    if path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let encoded = path.bytes().fold(String::new(), |text, byte| {
        if byte.is_ascii_graphic() {
            text + char::from(byte).encode_utf8(&mut [0; 4])
        } else {
            format!("{text}%{byte:02X}")
        }
    });
    Some(("has characters that no request's path has", format!("write it as it is sent: `{encoded}`")))
}

/// Why the gateway could not use the expression. Alone as well as in the form that matches whole paths: `a)|(b` is
/// only the latter.
fn expression_problem(expression: &str) -> Option<(String, &'static str)> {
    if expression.is_empty() {
        return Some(("an empty expression matches no path".into(), "leave `pathRegex` out to match every path"));
    }
    let compiled = Regex::new(expression).and_then(|_| Regex::new(&format!("^(?:{expression})$")));
    let error = compiled.err()?;
    let cure = "write `\\` before a character that is meant as it stands, e.g. `/v1\\.0/.*`";
    Some((format!("`{expression}` is no regular expression: {error}"), cure))
}

/// A route behind one that matches everything it could match is dead: almost always a mistake of order.
fn shadowed_routes(config: &Config, diagnostics: &mut Diagnostics) {
    for (index, route) in config.routes.iter().enumerate() {
        let shadow = config.routes[..index].iter().find(|earlier| covers(earlier, route));
        if let Some(shadow) = shadow {
            let message =
                format!("this route is never reached: the one on line {} matches first", shadow.at.whole.line);
            diagnostics.warning(route.at.whole, message, "routes are tried in order: put the narrower one first");
        }
    }
}

fn covers(wide: &Route, narrow: &Route) -> bool {
    let (wide, narrow) = (&wide.matches, &narrow.matches);
    let host =
        (wide.host.is_none() || wide.host == narrow.host) && (wide.scheme.is_none() || wide.scheme == narrow.scheme);
    let methods = wide.methods.0.is_empty() || wide.methods == narrow.methods;
    let headers = wide.headers.iter().all(|(name, value)| narrow.headers.get(name) == Some(value));
    host && methods && headers && covers_path(wide, narrow)
}

fn covers_path(wide: &Match, narrow: &Match) -> bool {
    if let Some(prefix) = &wide.path_prefix {
        let inside = |path: &String| {
            prefix == "/" || path == prefix || path.starts_with(&format!("{}/", prefix.trim_end_matches('/')))
        };
        return narrow.path.as_ref().is_some_and(inside)
            || narrow.path_prefix.as_ref().is_some_and(inside)
            || prefix == "/";
    }
    wide.path.is_none() && wide.path_regex.is_none()
        || (wide.path.is_some() && wide.path == narrow.path)
        || (wide.path_regex.is_some() && wide.path_regex == narrow.path_regex)
}
