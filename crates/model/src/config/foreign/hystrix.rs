//! Hystrix' properties of commands, with the defaults of `HystrixCommandProperties` 1.5.18. A command is a service: its
//! breaker, how many it runs at once under the semaphore strategy, and its timeout, for routes without one of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::decode::{Places, Ratio};
use super::super::{BreakerPreset, BreakerScope, CircuitBreaker, Concurrency};
use super::{Guard, Names, OriginKind, Target};
use crate::diagnostic::{Place, nearest};
use crate::id::ServiceName;

/// The command whose properties are those of all that do not set them.
const DEFAULT: &str = "default";
const PREFIX: &str = "hystrix.command.";
const ENABLED: &str = "circuitBreaker.enabled";
const VOLUME: &str = "circuitBreaker.requestVolumeThreshold";
const PERCENTAGE: &str = "circuitBreaker.errorThresholdPercentage";
const SLEEP: &str = "circuitBreaker.sleepWindowInMilliseconds";
const FORCE_OPEN: &str = "circuitBreaker.forceOpen";
const FORCE_CLOSED: &str = "circuitBreaker.forceClosed";
const WINDOW: &str = "metrics.rollingStats.timeInMilliseconds";
const BUCKETS: &str = "metrics.rollingStats.numBuckets";
const STRATEGY: &str = "execution.isolation.strategy";
const SEMAPHORE: &str = "execution.isolation.semaphore.maxConcurrentRequests";
const TIMEOUT: &str = "execution.isolation.thread.timeoutInMilliseconds";
const TIMES_OUT: &str = "execution.timeout.enabled";
pub(super) const KNOWN: [&str; 12] = [
    ENABLED,
    VOLUME,
    PERCENTAGE,
    SLEEP,
    FORCE_OPEN,
    FORCE_CLOSED,
    WINDOW,
    BUCKETS,
    STRATEGY,
    SEMAPHORE,
    TIMEOUT,
    TIMES_OUT,
];

/// What is written of one command, by the property's name.
type Written<'t> = BTreeMap<&'t str, (&'t str, Place)>;

/// Puts the properties of commands in force.
pub(super) fn properties(target: &mut Target<'_>, names: &Names, text: &str, file: u16) {
    let mut commands: BTreeMap<&str, Written<'_>> = BTreeMap::new();
    for (key, value, place) in lines(target, text, file) {
        let Some((command, property)) = key.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.')) else {
            let what = format!("`{key}` has no counterpart here");
            target.diagnostics.error(place, what, "only `hystrix.command.KEY.…` has: leave it out");
            continue;
        };
        if !KNOWN.contains(&property) {
            let cure = match nearest(property, KNOWN) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("a command has: {}", KNOWN.join(", ")),
            };
            target.diagnostics.error(place, format!("`{property}` has no counterpart here"), cure);
            continue;
        }
        if commands.entry(command).or_default().insert(property, (value, place)).is_some() {
            target.diagnostics.error(place, format!("`{key}` is written twice"), "remove one of the two");
        }
    }
    let defaults = commands.remove(DEFAULT).unwrap_or_default();
    let mut named: BTreeSet<&str> = commands.keys().copied().collect();
    // A file that is put over others is about the commands in it, unless it has the defaults alone.
    if target.replaced.is_none() || named.is_empty() {
        named.extend(names.services.keys().map(String::as_str));
    }
    for name in named {
        let own = commands.remove(name).unwrap_or_default();
        let first = own.values().chain(defaults.values()).map(|(_, place)| *place).next();
        // One that is only named beside the file stands there.
        let named = names.services.contains_key(name).then(|| names.at.field(name));
        let place = own.values().map(|(_, place)| *place).next().or(named).or(first);
        let place = place.unwrap_or(Place { file, line: 0, column: 0 });
        let Some(service) = target.service("command", name, &names.services, place) else { continue };
        let command = Command { own, defaults: &defaults, place };
        command.put(target, &service);
    }
}

struct Command<'t> {
    own: Written<'t>,
    defaults: &'t Written<'t>,
    place: Place,
}

impl Command<'_> {
    fn written(&self, property: &str) -> Option<(&str, Place)> {
        self.own.get(property).or_else(|| self.defaults.get(property)).map(|(value, place)| (*value, *place))
    }

    fn number(&self, target: &mut Target<'_>, property: &str, default: u32, most: u32) -> u32 {
        let Some((value, place)) = self.written(property) else { return default };
        match value.parse() {
            Ok(number) if number <= most => return number,
            _ => {}
        }
        let what = format!("`{property}={value}` is no whole number from 0 to {most}");
        target.diagnostics.error(place, what, format!("Hystrix' default is {default}"));
        default
    }

    fn flag(&self, target: &mut Target<'_>, property: &str, default: bool) -> bool {
        match self.written(property) {
            None => default,
            Some(("true", _)) => true,
            Some(("false", _)) => false,
            Some((value, place)) => {
                let what = format!("`{property}={value}` is neither true nor false");
                target.diagnostics.error(place, what, format!("Hystrix' default is {default}"));
                default
            }
        }
    }

    /// The places of properties under the names that they have here.
    fn places(&self, names: &[(&str, &str)]) -> Places {
        let place = |(property, name): &(&str, &str)| self.written(property).map(|(_, at)| ((*name).to_owned(), at));
        Places::from_parts(self.place, names.iter().filter_map(place))
    }

    fn put(&self, target: &mut Target<'_>, service: &ServiceName) {
        target.begin(OriginKind::Hystrix, service);
        for property in [FORCE_OPEN, FORCE_CLOSED] {
            if self.flag(target, property, false)
                && let Some((_, place)) = self.written(property)
            {
                let state = if property == FORCE_OPEN { "open" } else { "closed" };
                let cure = format!("`seawall breaker {service} {state}` does it in all gateways, and is not forgotten");
                target.diagnostics.error(place, format!("`{property}=true` is done by hand here"), cure);
            }
        }
        if let Some((value, place)) = self.written(BUCKETS).filter(|(value, _)| *value != "10") {
            let what = format!("`{BUCKETS}={value}`: a window has 10 buckets here");
            target.diagnostics.error(place, what, "10, or leave it out");
        }
        if self.flag(target, ENABLED, true) {
            let breaker = CircuitBreaker {
                preset: Some(BreakerPreset::Hystrix),
                error_ratio: Some(Ratio::percent(self.number(target, PERCENTAGE, 50, 100))),
                slow_ratio: None,
                slow_threshold: None,
                error_count: None,
                comparator: None,
                window: Some(milliseconds(self.number(target, WINDOW, 10_000, u32::MAX))),
                window_requests: None,
                min_requests: Some(self.number(target, VOLUME, 20, u32::MAX)),
                open_for: Some(milliseconds(self.number(target, SLEEP, 5_000, u32::MAX))),
                probes: None,
                per: BreakerScope::Service,
                from: None,
                at: self.places(&[
                    (PERCENTAGE, "errorRatio"),
                    (WINDOW, "window"),
                    (VOLUME, "minRequests"),
                    (SLEEP, "openFor"),
                ]),
            };
            target.guard(service, Guard::Breaker(breaker), OriginKind::Hystrix, self.place);
        }
        match self.written(STRATEGY) {
            None | Some(("THREAD", _)) => {
                if let Some((_, place)) = self.written(SEMAPHORE) {
                    let what = format!("`{SEMAPHORE}` means nothing without `{STRATEGY}=SEMAPHORE`");
                    target.diagnostics.error(place, what, "add that, or remove it");
                }
            }
            Some(("SEMAPHORE", _)) => {
                let concurrency = Concurrency {
                    adaptive: None,
                    max: self.number(target, SEMAPHORE, 10, u32::MAX),
                    pending: 0,
                    max_wait: Duration::from_secs(10),
                    from: None,
                    at: self.places(&[(SEMAPHORE, "max")]),
                };
                target.guard(service, Guard::Concurrency(concurrency), OriginKind::Hystrix, self.place);
            }
            Some((value, place)) => {
                let what = format!("`{STRATEGY}={value}` is neither THREAD nor SEMAPHORE");
                target.diagnostics.error(place, what, "THREAD is Hystrix' default");
            }
        }
        if self.flag(target, TIMES_OUT, true) {
            let after = self.number(target, TIMEOUT, 1000, u32::MAX);
            target.time_out(service, milliseconds(after));
        }
    }
}

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

/// Keys and values of a properties file, with the place of each.
fn lines<'t>(target: &mut Target<'_>, text: &'t str, file: u16) -> Vec<(&'t str, &'t str, Place)> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let written = line.trim();
        if written.is_empty() || written.starts_with(['#', '!']) {
            continue;
        }
        let column = u32::try_from(line.len() - line.trim_start().len()).unwrap_or(u32::MAX).saturating_add(1);
        let place = Place { file, line: number, column };
        if written.ends_with('\\') {
            target.diagnostics.error(place, "a line that goes on in the next", "write it on one line");
            continue;
        }
        let end = written.find(|letter: char| letter == '=' || letter == ':' || letter.is_whitespace());
        let Some(end) = end else {
            target.diagnostics.error(place, format!("`{written}` has no value"), "key=value");
            continue;
        };
        let value = written[end..].trim_start().trim_start_matches(['=', ':']).trim();
        found.push((&written[..end], value, place));
    }
    found
}
