//! Rules of where a route leads: its destinations, their weights, and by what a client is told again.

use super::route::is_token;
use crate::config::decode::Places;
use crate::config::{Config, Route, Source, Target, Targets};
use crate::diagnostic::{Diagnostics, nearest};
use crate::id::{ServiceName, VersionName};

/// The most destinations of a route.
const MOST: usize = 32;

/// The largest weight: in finer shares nothing would be told apart.
const LARGEST_WEIGHT: u32 = 10_000;

/// Checks a route's destinations.
pub fn check(route: &Route, targets: &Targets, config: &Config, diagnostics: &mut Diagnostics) {
    let place = route.at.field("to");
    if targets.0.is_empty() || targets.0.len() > MOST {
        let message = format!("a route leads to {} destinations", targets.0.len());
        diagnostics.error(place, message, format!("1 to {MOST}, e.g. to: {{ service: … }}"));
    }
    for (index, target) in targets.0.iter().enumerate() {
        check_target(target, config, diagnostics);
        let same = |other: &&Target| other.service == target.service && other.version == target.version;
        if let Some(first) = targets.0[..index].iter().find(same) {
            let message = format!("the same destination as on line {}", first.at.whole.line);
            diagnostics.error(target.at.whole, message, "write it once, with the weight of both");
        }
        if target.weight.is_some_and(|weight| weight > LARGEST_WEIGHT) {
            let message = format!("a weight over {LARGEST_WEIGHT}");
            diagnostics.error(target.at.field("weight"), message, "weights count beside each other: 80 and 20");
        }
    }
    if !targets.0.is_empty() && targets.0.iter().all(|target| target.weight == Some(0)) {
        diagnostics.error(place, "every weight is 0: nobody gets the requests", "give one of them a weight");
    }
    let Some(sticky) = &route.sticky else { return };
    let at = route.at.field("sticky");
    match (&sticky.header, &sticky.cookie) {
        (Some(name), None) if !is_token(name) => {
            let message = format!("`{name}` is not the name of a header field");
            diagnostics.error(sticky.at.field("header"), message, "letters, digits and `-`");
        }
        (None, Some(name)) if !is_token(name) => {
            let message = format!("`{name}` is not the name of a cookie");
            diagnostics.error(sticky.at.field("cookie"), message, "letters, digits, `-` and `_`");
        }
        (Some(_), None) | (None, Some(_)) => {}
        _ => diagnostics.error(at, "`sticky` takes one of `header` and `cookie`", "e.g. sticky: { header: X-User }"),
    }
}

fn check_target(target: &Target, config: &Config, diagnostics: &mut Diagnostics) {
    if target.source == Some(Source::Registry) {
        return check_registered(target, config, diagnostics);
    }
    check_named(&target.service, target.version.as_ref(), &target.at, config, diagnostics);
}

/// A service, and perhaps one of its versions, must be there.
pub(super) fn check_named(
    name: &ServiceName,
    version: Option<&VersionName>,
    at: &Places,
    config: &Config,
    diagnostics: &mut Diagnostics,
) {
    let place = at.field("service");
    let Some(service) = config.services.get(name) else {
        let names: Vec<&str> = config.services.keys().map(ServiceName::as_str).collect();
        let cure = match nearest(name.as_str(), names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => {
                "define it under `services`, or add `source: registry` if it registers itself".into()
            }
            None => format!("there are: {}; or add `source: registry` if it registers itself", names.join(", ")),
        };
        diagnostics.error(place, format!("a route to `{name}`, which is no service"), cure);
        return;
    };
    if let Some(version) = version
        && !service.versions.contains_key(version)
    {
        let names: Vec<&str> = service.versions.keys().map(|name| name.as_str()).collect();
        let cure = nearest(version.as_str(), names.iter().copied())
            .map_or_else(|| format!("`{name}` has: {}", names.join(", ")), |near| format!("did you mean `{near}`?"));
        diagnostics.error(at.field("version"), format!("`{name}` has no version `{version}`"), cure);
    }
}

/// What registers itself is declared nowhere.
fn check_registered(target: &Target, config: &Config, diagnostics: &mut Diagnostics) {
    let name = &target.service;
    if config.services.contains_key(name) {
        let message = format!("`source: registry`, and `{name}` is declared under `services`");
        diagnostics.error(target.at.field("source"), message, "leave `source` out, or route to another name");
    }
    if target.version.is_some() {
        let message = "`version` with `source: registry`";
        diagnostics.error(
            target.at.field("version"),
            message,
            "what registers itself has no versions here: leave it out",
        );
    }
}
