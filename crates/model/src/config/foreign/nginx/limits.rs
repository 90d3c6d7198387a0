//! `limit_req` and `limit_conn`: zones, their keys and rates, and what they become for a service.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::super::decode::Places;
use super::super::super::node::default_of;
use super::super::super::{AtOnce, Behaviour, Concurrency, LimitKey, Match, RateLimit, WithoutKey};
use super::super::{Guard, OriginKind, Target, plain};
use super::parse::{Directive, Word};
use super::value;
use crate::diagnostic::Diagnostics;
use crate::id::ServiceName;

/// Zones by their names.
#[derive(Default)]
pub(super) struct Zones {
    /// With how many requests in which time.
    requests: BTreeMap<String, (Option<LimitKey>, u32, Duration)>,
    connections: BTreeMap<String, Option<LimitKey>>,
}

impl Zones {
    pub(super) fn add(&mut self, directive: &Directive, diagnostics: &mut Diagnostics) {
        let zone = directive.words.iter().find_map(|word| value(word, "zone"));
        let zone = zone.map(|zone| zone.split(':').next().unwrap_or_default().to_owned());
        let (Some(key), Some(zone)) = (directive.words.first(), zone) else {
            let message = "a zone has a key, a name and a rate";
            diagnostics.error(directive.at, message, "limit_req_zone $binary_remote_addr zone=one:10m rate=5r/s;");
            return;
        };
        let Some(of) = key_of(key) else {
            let message = format!("`{}` has no counterpart here", key.text);
            let cure = "$binary_remote_addr, $http_NAME, $arg_NAME, or $server_name for all together";
            diagnostics.error(key.at, message, cure);
            return;
        };
        if directive.name == "limit_conn_zone" {
            self.connections.insert(zone, of);
            return;
        }
        let rate = directive.words.iter().find_map(|word| Some((value(word, "rate")?, word.at)));
        let read = rate.and_then(|(rate, _)| {
            let second = rate.strip_suffix("r/s").and_then(|count| count.parse::<u32>().ok());
            let minute = rate.strip_suffix("r/m").and_then(|count| count.parse::<u32>().ok());
            let second = second.map(|count| (count, Duration::from_secs(1)));
            second.or(minute.map(|count| (count, Duration::from_secs(60)))).filter(|(count, _)| *count > 0)
        });
        let Some((qps, per)) = read else {
            let place = rate.map_or(directive.at, |(_, place)| place);
            diagnostics.error(place, "a rate is whole requests a second, or a minute", "rate=5r/s, or rate=30r/m");
            return;
        };
        self.requests.insert(zone, (of, qps, per));
    }

    /// Puts `limit_req` and `limit_conn` of locations in force for their service.
    pub(super) fn put(&self, target: &mut Target<'_>, service: &ServiceName, directive: &Directive) {
        if directive.name == "limit_conn" {
            self.concurrency(target, service, directive)
        } else {
            self.rate(target, service, directive)
        }
    }

    fn rate(&self, target: &mut Target<'_>, service: &ServiceName, directive: &Directive) {
        let name = directive.words.iter().find_map(|word| value(word, "zone")).unwrap_or_default();
        let Some((key, qps, per)) = self.requests.get(name).cloned() else {
            target.diagnostics.error(
                directive.at,
                format!("there is no zone `{name}`"),
                "add limit_req_zone … zone=NAME:10m rate=5r/s;",
            );
            return;
        };
        let mut burst = 0;
        let mut nodelay = false;
        for word in &directive.words {
            match word.text.as_str() {
                "nodelay" => nodelay = true,
                _ if value(word, "zone").is_some() => {}
                _ if let Some(count) = value(word, "burst").and_then(|count| count.parse::<u32>().ok()) => {
                    burst = count
                }
                _ => {
                    let message = format!("`{}` of limit_req has no counterpart here", word.text);
                    target.diagnostics.error(word.at, message, "zone=NAME, burst=10 and nodelay");
                }
            }
        }
        // Those beyond the rate wait for their turn, so many of them; with `nodelay` so many pass at once.
        let queues = burst > 0 && !nodelay;
        let plain = plain(qps, Behaviour::Reject, Places::default());
        let is_keyed = key.is_some();
        let waits = per.mul_f64(f64::from(burst) / f64::from(qps));
        let limit = RateLimit {
            qps,
            per,
            burst: (!queues).then_some(burst.saturating_add(1)),
            key,
            behaviour: if queues { Behaviour::Queue } else { Behaviour::Reject },
            max_queueing_time: if queues { waits } else { plain.max_queueing_time },
            at: Places::from_parts(directive.at, std::iter::empty()),
            // nginx: a request without the key is not counted.
            without_key: if is_keyed { WithoutKey::Pass } else { plain.without_key },
            ..plain
        };
        target.guard(service, Guard::Limit(limit), OriginKind::Nginx, directive.at);
    }

    fn concurrency(&self, target: &mut Target<'_>, service: &ServiceName, directive: &Directive) {
        let name = directive.words.first().map(|word| word.text.as_str()).unwrap_or_default();
        let count = directive.words.get(1).and_then(|word| word.text.parse::<u32>().ok());
        let (Some(key), Some(max)) = (self.connections.get(name), count) else {
            target.diagnostics.error(
                directive.at,
                format!("there is no zone `{name}`, or no number"),
                "limit_conn_zone $server_name zone=NAME:10m; limit_conn NAME 100;",
            );
            return;
        };
        if let Some(key) = key {
            let bound = AtOnce { key: Some(key.clone()), without_key: WithoutKey::Pass, ..bound(max, directive) };
            return target.guard(service, Guard::AtOnce(bound), OriginKind::Nginx, directive.at);
        }
        let at = Places::from_parts(directive.at, std::iter::empty());
        let concurrency =
            Concurrency { max, adaptive: None, pending: 0, max_wait: Duration::from_secs(10), from: None, at };
        target.guard(service, Guard::Concurrency(concurrency), OriginKind::Nginx, directive.at);
    }
}

fn bound(max: u32, directive: &Directive) -> AtOnce {
    AtOnce {
        max,
        key: None,
        exceptions: BTreeMap::new(),
        only_exceptions: false,
        without_key: WithoutKey::Share,
        max_keys: 10_000,
        matches: Match::default(),
        route: None,
        of: None,
        from: None,
        at: Places::from_parts(directive.at, std::iter::empty()),
    }
}

/// What has the rate for itself; `Some(None)`: all together.
fn key_of(word: &Word) -> Option<Option<LimitKey>> {
    let none: LimitKey = default_of();
    match word.text.as_str() {
        "$binary_remote_addr" | "$remote_addr" => Some(Some(LimitKey { address: true, ..none })),
        "$server_name" | "$host" => Some(None),
        text => {
            let header = text.strip_prefix("$http_").map(|name| name.replace('_', "-"));
            let query = text.strip_prefix("$arg_").map(str::to_owned);
            (header.is_some() || query.is_some()).then_some(Some(LimitKey { header, query, ..none }))
        }
    }
}
