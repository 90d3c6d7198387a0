//! Another tool's file by itself, put over the configuration in force as `include` would have put it beside a file: whose it
//! is, what it takes the place of, and the names that `include` says there. Around the readers of each tool's files.
//! Deliberately absent: what is read (beside each tool), and reading files (`load.rs`).

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::super::node::default_of;
use super::super::yaml::{self, Kind, Node};
use super::super::{Config, Include};
use super::origin::is_of;
use super::{Names, Origin, OriginKind, Sentinel, Target, Tool};
use crate::diagnostic::{Diagnostics, Place};
use crate::id::ServiceName;

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A list of Sentinel's rules.
    Sentinel,
    /// Hystrix' properties.
    Hystrix,
    /// Istio's objects.
    Istio,
    /// nginx' blocks.
    Nginx,
}

/// Whose file this is, if it is not one of Seawall's own: by how it begins, and else by its name.
pub fn foreign(path: &Path, text: &str) -> Option<Foreign> {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let is_comment = |line: &str| line.is_empty() || line.starts_with(['#', '!']) || line.starts_with("---");
    let first = text.lines().map(str::trim).find(|line| !is_comment(line)).unwrap_or_default();
    let word = first.split(|letter: char| letter.is_whitespace() || letter == '{').next().unwrap_or_default();
    let has_line = |start: &str| text.lines().any(|line| line.starts_with(start));
    if first.starts_with('[') {
        Some(Foreign::Sentinel)
    } else if first.starts_with("hystrix.") || extension == "properties" {
        Some(Foreign::Hystrix)
    } else if (has_line("kind:") && has_line("apiVersion:"))
        || (first.starts_with('{') && text.contains("\"apiVersion\""))
    {
        Some(Foreign::Istio)
    } else if (extension == "conf" && first.ends_with([';', '{']))
        || ["upstream", "location", "limit_req_zone", "limit_conn_zone", "server", "http"].contains(&word)
    {
        Some(Foreign::Nginx)
    } else {
        None
    }
}

/// What `include` says beside files, whose names a file by itself has as well.
#[derive(Debug, Default)]
struct Beside {
    sentinel: Sentinel,
    commands: Names,
    hosts: BTreeMap<String, ServiceName>,
}

impl Default for Sentinel {
    fn default() -> Self {
        default_of()
    }
}

impl Beside {
    fn of(config: &Config) -> Self {
        let mut beside = Self::default();
        for include in &config.include.0 {
            let Include::Rules(rules) = include else { continue };
            if let Some(sentinel) = &rules.sentinel {
                beside.sentinel.resources.extend(sentinel.resources.clone());
                beside.sentinel.parameters.extend(sentinel.parameters.clone());
                beside.sentinel.entrances.extend(sentinel.entrances.clone());
                beside.sentinel.origin = beside.sentinel.origin.take().or_else(|| sentinel.origin.clone());
            }
            if let Some(hystrix) = &rules.hystrix {
                beside.commands.services.extend(hystrix.commands.services.clone());
            }
            if let Some(istio) = &rules.istio {
                beside.hosts.extend(istio.0.hosts.clone());
            }
        }
        beside
    }
}

impl Target<'_> {
    /// Puts a file over what is in force.
    pub(in super::super) fn put_over(&mut self, whose: Foreign, text: &str, file: u16) {
        let beside = Beside::of(self.config);
        self.replaced = Some(HashSet::new());
        match whose {
            Foreign::Sentinel => {
                if let Some(kind) = kind_of_rules(text, file, self.diagnostics) {
                    let tool = match kind {
                        OriginKind::SystemRule => Tool::System,
                        OriginKind::ParamFlowRule => Tool::ParamFlow(&beside.sentinel),
                        OriginKind::DegradeRule => Tool::Degrade(&beside.sentinel),
                        _ => Tool::Flow(&beside.sentinel),
                    };
                    self.put(tool, text, file);
                }
            }
            Foreign::Hystrix => self.put(Tool::Hystrix(&beside.commands), text, file),
            Foreign::Istio => self.put_istio(&beside.hosts, &[(file, text.to_owned())]),
            Foreign::Nginx => self.put_nginx(&[(file, text.to_owned())]),
        }
    }

    /// This file says something of a service: what an earlier file of the same kind said of it is gone.
    pub(super) fn begin(&mut self, kind: OriginKind, service: &ServiceName) {
        let is_first = self.replaced.as_mut().is_some_and(|replaced| replaced.insert((kind, service.clone())));
        if is_first {
            withdraw(self.config, kind, service);
        }
    }
}

fn withdraw(config: &mut Config, kind: OriginKind, service: &ServiceName) {
    for route in &mut config.routes {
        let timed = |from: &&mut Origin| from.kind == kind && from.name == service.as_str();
        if route.timeout_from.as_mut().filter(timed).is_some() {
            (route.timeout, route.timeout_from) = (None, None);
        }
    }
    let Some(service) = config.services.get_mut(service) else { return };
    let Some(traffic) = &mut service.traffic else { return };
    traffic.rate_limit.0.retain(|limit| !is_of(limit.from.as_ref(), kind));
    traffic.at_once.0.retain(|bound| !is_of(bound.from.as_ref(), kind));
    traffic.concurrency.take_if(|places| is_of(places.from.as_ref(), kind));
    traffic.circuit_breaker.take_if(|breaker| is_of(breaker.from.as_ref(), kind));
    // An upstream's own goes with the upstream.
    traffic.outlier.take_if(|outlier| kind != OriginKind::Nginx && is_of(outlier.from.as_ref(), kind));
    if *traffic == default_of() {
        service.traffic = None;
    }
}

/// Fields that rules of one kind alone have.
const OWN: [(OriginKind, &[&str]); 4] = [
    (OriginKind::SystemRule, &["highestSystemLoad", "highestCpuUsage", "avgRt", "maxThread", "qps"]),
    (OriginKind::ParamFlowRule, &["paramIdx", "paramFlowItemList", "burstCount", "durationInSec"]),
    (OriginKind::DegradeRule, &["timeWindow", "minRequestAmount", "slowRatioThreshold", "statIntervalMs"]),
    (OriginKind::FlowRule, &["strategy", "refResource", "warmUpPeriodSec"]),
];

/// What the rules of a list are, which no field of theirs says. A rule of a rate may have none of its own, and the others
/// must have one.
fn kind_of_rules(text: &str, file: u16, diagnostics: &mut Diagnostics) -> Option<OriginKind> {
    const CURE: &str =
        "name it in `include` of the configuration: sentinel: { flow: FILE }, or degrade, paramFlow, system";
    // What cannot be read is told where it is read as rules.
    let Some(node) = yaml::parse(text, file, &mut Diagnostics::default()) else { return Some(OriginKind::FlowRule) };
    let Kind::List(rules) = &node.kind else { return Some(OriginKind::FlowRule) };
    let mut found: Option<(OriginKind, &str, Place)> = None;
    let mut is_rate = false;
    for rule in rules {
        let Kind::Map(fields) = &rule.kind else { return Some(OriginKind::FlowRule) };
        let has = |name: &str| fields.iter().any(|(key, _)| key.name == name);
        is_rate |= has("resource") && has("count");
        let nothing = |value: &Node| matches!(value.kind, Kind::Null);
        for (key, _) in fields.iter().filter(|(_, value)| !nothing(value)) {
            let Some((kind, _)) = OWN.iter().find(|(_, own)| own.contains(&key.name.as_str())) else { continue };
            match found {
                None => found = Some((*kind, &key.name, key.place)),
                Some((known, name, at)) if known != *kind => {
                    let message = format!(
                        "`{}` is of a {}, and `{name}` (line {}) of a {}",
                        key.name,
                        kind.as_str(),
                        at.line,
                        known.as_str()
                    );
                    diagnostics.error(key.place, message, "one kind of rules in a file");
                    return None;
                }
                Some(_) => {}
            }
        }
    }
    match found {
        Some((kind, ..)) => Some(kind),
        None if is_rate => Some(OriginKind::FlowRule),
        None => {
            let message = "nothing in this list says which kind of Sentinel's rules it is";
            diagnostics.error(node.place, message, CURE);
            None
        }
    }
}
