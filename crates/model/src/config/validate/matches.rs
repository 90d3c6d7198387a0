//! Rules of what a route matches, and of routes that stand behind others.

use std::collections::BTreeMap;

use regex_lite::Regex;

use super::route::is_token;
use crate::config::{Condition, Config, CorsPolicy, Match, Route};
use crate::diagnostic::{Diagnostics, Place};

type Conditions = BTreeMap<String, Condition>;

/// Checks the conditions of one route.
pub(super) fn check(matches: &Match, diagnostics: &mut Diagnostics) {
    let paths = [
        ("path", &matches.path),
        ("pathPrefix", &matches.path_prefix),
        ("pathStart", &matches.path_start),
        ("pathRegex", &matches.path_regex),
    ];
    if paths.iter().filter(|(_, path)| path.is_some()).count() > 1 {
        let message = "a route with more than one of path, pathPrefix, pathStart, pathRegex";
        diagnostics.error(matches.at.whole, message, "keep one");
    }
    if matches.ignore_path_case && (matches.path_regex.is_some() || paths.iter().all(|(_, path)| path.is_none())) {
        let message = "`ignorePathCase` without a path that it could be about";
        diagnostics.error(matches.at.field("ignorePathCase"), message, "write (?i) in front of a regular expression");
    }
    for (field, path) in &paths[..3] {
        if let Some(path) = path
            && let Some((problem, cure)) = path_problem(path)
        {
            diagnostics.error(matches.at.field(field), format!("`{path}` {problem}"), cure);
        }
    }
    if let Some(expression) = &matches.path_regex
        && let Some((problem, cure)) = expression_problem(expression, "no path")
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
    if matches.hosts.0.is_empty() && matches.at.has("host") {
        diagnostics.error(matches.at.field("host"), "no host matches", "name some, or leave `host` out for any");
    }
    for host in &matches.hosts.0 {
        if host.is_empty() || host.contains(['/', ':', ' ']) || host.trim_start_matches("*.").contains('*') {
            diagnostics.error(
                matches.at.field("host"),
                format!("`{host}` is not a host"),
                "write a name without port or path; `*.` may stand in front",
            );
        }
    }
    for (field, conditions) in [("headers", &matches.headers), ("withoutHeaders", &matches.without_headers)] {
        for name in conditions.keys().filter(|name| !is_token(name)) {
            let message = format!("`{name}` is not the name of a header field");
            diagnostics.error(matches.at.field(field), message, "letters, digits and `-`");
        }
        check_conditions(conditions, matches.at.field(field), diagnostics);
    }
    check_conditions(&matches.query, matches.at.field("query"), diagnostics);
    for method in &matches.methods.0 {
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
            diagnostics.error(
                matches.at.field("method"),
                format!("`{method}` is not a method"),
                "methods are upper-case words such as GET",
            );
        }
    }
}

/// Checks what pages of other origins may do.
pub(super) fn check_cors(cors: &CorsPolicy, diagnostics: &mut Diagnostics) {
    let at = &cors.at;
    if cors.origins.is_empty() {
        diagnostics.error(at.field("origins"), "no origin is allowed anything", "e.g. origins: [https://shop.example]");
    }
    let origins = cors.origins.iter().map(|origin| ("origin".to_owned(), origin.clone()));
    origins.for_each(|origin| check_conditions(&Conditions::from([origin]), at.field("origins"), diagnostics));
    for (field, words) in
        [("methods", &cors.methods), ("headers", &cors.headers), ("exposeHeaders", &cors.expose_headers)]
    {
        for word in words.iter().filter(|word| !is_token(word)) {
            diagnostics.error(
                at.field(field),
                format!("`{word}` is no method and no field"),
                "a word such as GET or X-Id",
            );
        }
    }
}

fn check_conditions(conditions: &Conditions, place: Place, diagnostics: &mut Diagnostics) {
    for (name, condition) in conditions {
        let Condition::Regex(expression) = condition else { continue };
        if let Some((problem, cure)) = expression_problem(expression, "nothing but an empty value") {
            diagnostics.error(place, format!("`{name}`: {problem}"), cure);
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
fn expression_problem(expression: &str, nothing: &str) -> Option<(String, &'static str)> {
    if expression.is_empty() {
        return Some((format!("an empty expression matches {nothing}"), "leave it out to match everything"));
    }
    let compiled = Regex::new(expression).and_then(|_| Regex::new(&format!("^(?:{expression})$")));
    let error = compiled.err()?;
    let cure = "write `\\` before a character that is meant as it stands, e.g. `/v1\\.0/.*`";
    Some((format!("`{expression}` is no regular expression: {error}"), cure))
}

/// A route behind one that matches everything it could match is dead: almost always a mistake of order.
pub(super) fn shadowed(config: &Config, diagnostics: &mut Diagnostics) {
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
    let host = wide.hosts.0.is_empty()
        || (!narrow.hosts.0.is_empty() && narrow.hosts.0.iter().all(|host| wide.hosts.0.contains(host)));
    let scheme = wide.scheme.is_none() || wide.scheme == narrow.scheme;
    let methods = wide.methods.0.is_empty() || wide.methods == narrow.methods;
    let among =
        |wide: &Conditions, narrow: &Conditions| wide.iter().all(|(name, value)| narrow.get(name) == Some(value));
    let fields = among(&wide.headers, &narrow.headers)
        && among(&wide.query, &narrow.query)
        && among(&wide.without_headers, &narrow.without_headers);
    host && scheme && methods && fields && covers_path(wide, narrow)
}

fn covers_path(wide: &Match, narrow: &Match) -> bool {
    if let Some(start) = &wide.path_start {
        let inside = |path: &Option<String>| path.as_ref().is_some_and(|path| path.starts_with(start.as_str()));
        return start == "/" || inside(&narrow.path) || inside(&narrow.path_start) || inside(&narrow.path_prefix);
    }
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
