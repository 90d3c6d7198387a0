//! Rules of routes: what they match, where they lead, and whether they can be reached.

use crate::config::{Config, Match, Route};
use crate::diagnostic::{Diagnostics, nearest};
use crate::id::ServiceName;

/// Checks every route of a configuration.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    for route in &config.routes {
        check_route(route, config, diagnostics);
    }
    shadowed_routes(config, diagnostics);
}

fn check_route(route: &Route, config: &Config, diagnostics: &mut Diagnostics) {
    let matches = &route.matches;
    let paths = [("path", &matches.path), ("pathPrefix", &matches.path_prefix), ("pathRegex", &matches.path_regex)];
    if paths.iter().filter(|(_, path)| path.is_some()).count() > 1 {
        diagnostics.error(matches.at.whole, "a route with more than one of path, pathPrefix, pathRegex", "keep one");
    }
    for (field, path) in &paths[..2] {
        if let Some(path) = path
            && !path.starts_with('/')
        {
            diagnostics.error(
                matches.at.field(field),
                format!("`{path}` does not start with `/`"),
                format!("write `/{path}`"),
            );
        }
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
    check_target(route, config, diagnostics);
}

fn check_target(route: &Route, config: &Config, diagnostics: &mut Diagnostics) {
    let target = &route.to;
    let place = target.at.field("service");
    let Some(service) = config.services.get(&target.service) else {
        let names: Vec<&str> = config.services.keys().map(ServiceName::as_str).collect();
        let cure = match nearest(target.service.as_str(), names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => "define it under `services`".into(),
            None => format!("there are: {}", names.join(", ")),
        };
        diagnostics.error(place, format!("a route to `{}`, which is no service", target.service), cure);
        return;
    };
    if let Some(version) = &target.version
        && !service.versions.contains_key(version)
    {
        let names: Vec<&str> = service.versions.keys().map(|name| name.as_str()).collect();
        let cure = nearest(version.as_str(), names.iter().copied()).map_or_else(
            || format!("`{}` has: {}", target.service, names.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        diagnostics.error(target.at.field("version"), format!("`{}` has no version `{version}`", target.service), cure);
    }
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
    let host = wide.host.is_none() || wide.host == narrow.host;
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
