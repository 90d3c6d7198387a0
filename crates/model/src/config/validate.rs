//! Rules that span fields: what a single value cannot know. Each mistake names its subject and its cure.

mod acme;
mod cluster;
mod feeds;
mod limits;
mod listen;
mod matches;
mod node;
mod probe;
mod route;
mod shift;
mod stream;
mod targets;
mod traffic;
mod variables;

use std::collections::BTreeMap;

pub use feeds::is_upstream_name;
pub use listen::error_statuses;
pub use shift::read as read_shift;
pub use variables::{VARIABLES, expand};

use super::Config;
use super::service::{Mode, Service};
use crate::diagnostic::Diagnostics;
use crate::id::ServiceName;

/// The most instances of one service.
pub const MAX_REPLICAS: u32 = 1000;
/// What a service's keys may be held to, in bytes: at most what the store lets users have.
const KV_QUOTAS: std::ops::RangeInclusive<u64> = 4096..=251_658_240;

/// Checks a decoded configuration.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    node::check(config, diagnostics);
    cluster::check(config, diagnostics);
    listen::check(config, diagnostics);
    acme::check(config, diagnostics);
    feeds::check(config, diagnostics);
    check_rules(config, diagnostics);
}

/// Checks services, routes and what the gateway bears: all that another tool's file may say something of.
pub fn check_rules(config: &Config, diagnostics: &mut Diagnostics) {
    limits::overload(config, diagnostics);
    for (name, service) in &config.services {
        Checker { name, service, diagnostics }.service();
        traffic::check(name, service, &config.services, diagnostics);
        limits::check(name, service, config, diagnostics);
    }
    fixed_ports(config, diagnostics);
    instance_names(config, diagnostics);
    stream::check(config, diagnostics);
    route::check(config, diagnostics);
}

struct Checker<'a> {
    name: &'a ServiceName,
    service: &'a Service,
    diagnostics: &'a mut Diagnostics,
}

impl Checker<'_> {
    fn error(&mut self, field: &str, message: impl AsRef<str>, cure: impl Into<String>) {
        let place = self.service.at.field(field);
        self.diagnostics.error(place, format!("service `{}`: {}", self.name, message.as_ref()), cure);
    }

    fn service(&mut self) {
        self.source();
        listen::upstream(self.service, self.diagnostics);
        self.counts();
        self.mode();
        self.variables();
        let service = self.service;
        let probes = [
            ("livenessProbe", &service.liveness_probe),
            ("readinessProbe", &service.readiness_probe),
            ("startupProbe", &service.startup_probe),
        ];
        for (field, probe) in probes {
            if let Some(probe) = probe {
                self.probe(field, probe);
            }
        }
        for (field, hook) in [("onPromote", &service.on_promote), ("onDemote", &service.on_demote)] {
            if let Some(hook) = hook {
                self.hook(field, hook);
            }
        }
        if let Some(hook) = &service.pre_stop {
            self.stop_hook(hook);
        }
        if service.restart_backoff.initial > service.restart_backoff.max {
            self.error("restartBackoff", "`restartBackoff.initial` is longer than `max`", "make `max` the longer one");
        }
    }

    fn source(&mut self) {
        let service = self.service;
        let runs = !service.command.is_empty() || service.versions.values().any(|version| !version.command.is_empty());
        match (runs, service.endpoints.is_empty()) {
            (true, false) => self.error(
                "endpoints",
                "both `command` and `endpoints`",
                "`command` runs the service here, `endpoints` names one that runs elsewhere: keep one",
            ),
            (false, true) => self.error(
                "command",
                "nothing to run",
                "add `command: [program, arguments]`, or `endpoints: [host:port]` for a service that runs elsewhere",
            ),
            _ => {}
        }
        for (name, version) in &service.versions {
            if version.command.is_empty() && service.command.is_empty() && runs {
                self.diagnostics.error(
                    version.at.whole,
                    format!("service `{}`: version `{name}` has no command", self.name),
                    "add `command` to the version or to the service",
                );
            }
        }
        let versions = service.versions.values().map(|version| (&version.command, &version.at));
        for (command, at) in std::iter::once((&service.command, &service.at)).chain(versions) {
            if command.first().is_some_and(String::is_empty) {
                let message = format!("service `{}`: the program's name is empty", self.name);
                self.diagnostics.error(at.field("command"), message, "write command: [program, arguments]");
            }
        }
        for name in service.env.keys().filter(|name| name.is_empty() || name.contains('=')) {
            self.error(
                "env",
                format!("`{name}` cannot be the name of a variable"),
                "a name is not empty and has no `=`",
            );
        }
        for (name, options) in &service.endpoint_options {
            if !service.endpoints.contains(name) {
                let message = format!("`{name}` is none of its endpoints");
                self.error("endpointOptions", message, "write it as under `endpoints`");
            }
            if options.max_requests == Some(0) {
                self.error("endpointOptions", format!("`{name}` with maxRequests 0"), "1 or more, or down: true");
            }
            if options.weight == 0 || options.weight > 10_000 {
                self.error(
                    "endpointOptions",
                    format!("`{name}` has weight {}", options.weight),
                    "1 to 10000, or down: true",
                );
            }
        }
        for endpoint in &service.endpoints {
            let valid = endpoint
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
            if !valid {
                self.error("endpoints", format!("`{endpoint}` is not host:port"), "write e.g. 10.0.0.7:8080");
            }
        }
        if !service.endpoints.is_empty() {
            self.not_for_endpoints();
        }
    }

    fn not_for_endpoints(&mut self) {
        for field in [
            "replicas",
            "versions",
            "ports",
            "restartPolicy",
            "restartBackoff",
            "preStop",
            "workingDir",
            "env",
            "terminationGracePeriodSeconds",
        ] {
            if self.service.at.has(field) {
                self.error(
                    field,
                    format!("`{field}` has no meaning with `endpoints`"),
                    "remove it: Seawall does not run this service",
                );
            }
        }
    }

    fn counts(&mut self) {
        let service = self.service;
        let total = service.total_replicas();
        if service.endpoints.is_empty() && total > MAX_REPLICAS {
            self.error("replicas", format!("{total} replicas"), format!("at most {MAX_REPLICAS}"));
        }
        if !KV_QUOTAS.contains(&service.kv_quota_bytes) {
            let message = format!(
                "`kvQuotaBytes: {}` is not from {} to {}",
                service.kv_quota_bytes,
                KV_QUOTAS.start(),
                KV_QUOTAS.end()
            );
            self.error("kvQuotaBytes", message, "leave it out for 67108864");
        }
        if let Some(minimum) = service.min_available
            && minimum > total
        {
            self.error(
                "minAvailable",
                format!("`minAvailable: {minimum}` with {total} replicas can never be met"),
                "lower it or add replicas",
            );
        }
        if !service.ports.is_empty() {
            if service.ports.len() != total as usize {
                self.error(
                    "ports",
                    format!("{} ports for {total} replicas", service.ports.len()),
                    "give one port for each instance, or none and let the node choose",
                );
            }
            if service.ports.contains(&0) {
                self.error("ports", "port 0", "name real ports, or leave `ports` out and let the node choose");
            }
        }
    }

    fn mode(&mut self) {
        let service = self.service;
        if service.mode == Mode::ActiveActive {
            for field in ["onPromote", "onDemote"] {
                if service.at.has(field) {
                    self.error(
                        field,
                        format!("`{field}` in an active-active service is never called"),
                        "add `mode: primary-standby` or remove the hook",
                    );
                }
            }
            return;
        }
        if !service.endpoints.is_empty() {
            self.error(
                "mode",
                "primary-standby with `endpoints`",
                "Seawall can fence only what it runs: use `command`, or active-active",
            );
        }
        if service.total_replicas() == 1 {
            let place = service.at.field("mode");
            let message = format!("service `{}`: primary-standby with one instance: nobody can take over", self.name);
            self.diagnostics.warning(place, message, "set `replicas: 2` or more");
        }
        if !service.versions.is_empty() {
            self.error(
                "versions",
                "`versions` in a primary-standby service",
                "a primary has one version: use `command`, and change it to roll",
            );
        }
    }
}

/// `web` with a version `v1` and a service `web-v1` would both have an instance `web-v1-0`.
fn instance_names(config: &Config, diagnostics: &mut Diagnostics) {
    let mut owners: BTreeMap<String, &ServiceName> = BTreeMap::new();
    for (name, service) in &config.services {
        let prefixes: Vec<String> = match service.versions.len() {
            0 => vec![name.to_string()],
            _ => service.versions.keys().map(|version| format!("{name}-{version}")).collect(),
        };
        for prefix in prefixes {
            if let Some(owner) = owners.insert(prefix.clone(), name) {
                let message = format!("services `{owner}` and `{name}` would both have an instance `{prefix}-0`");
                diagnostics.error(service.at.whole, message, "rename one of the services or the version");
            }
        }
    }
}

fn fixed_ports(config: &Config, diagnostics: &mut Diagnostics) {
    let mut owners: BTreeMap<u16, &ServiceName> = BTreeMap::new();
    for (name, service) in &config.services {
        for port in &service.ports {
            if let Some(owner) = owners.insert(*port, name) {
                diagnostics.error(
                    service.at.field("ports"),
                    format!("port {port} is given twice (`{owner}` and `{name}`)"),
                    "give each instance its own port",
                );
            }
        }
    }
}

impl Service {
    /// How many instances the service has: over all versions, or given as `endpoints`.
    pub fn total_replicas(&self) -> u32 {
        if !self.endpoints.is_empty() {
            return u32::try_from(self.endpoints.len()).unwrap_or(u32::MAX);
        }
        if self.versions.is_empty() {
            return self.replicas;
        }
        self.versions.values().map(|version| version.replicas.unwrap_or(self.replicas)).fold(0, u32::saturating_add)
    }

    /// The fewest ready instances that a planned change may leave.
    pub fn min_available(&self) -> u32 {
        self.min_available.unwrap_or_else(|| self.total_replicas().saturating_sub(1))
    }
}
