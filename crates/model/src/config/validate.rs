//! Rules that span fields: what a single value cannot know. Each mistake names its subject and its cure.

mod listen;
pub use listen::error_statuses;
mod route;

use std::collections::BTreeMap;

use super::Config;
use super::probe::{Hook, Probe, StopHook};
use super::service::{Mode, Service};
use crate::diagnostic::{Diagnostics, Place, nearest};
use crate::id::ServiceName;

/// The most instances of one service.
pub const MAX_REPLICAS: u32 = 1000;
/// Variables that `command` and `env` may use as `${name}`.
pub const VARIABLES: [&str; 4] = ["port", "instance", "service", "index"];

/// Checks a decoded configuration.
pub fn check(config: &Config, diagnostics: &mut Diagnostics) {
    listen::check(config, diagnostics);
    for (name, service) in &config.services {
        Checker { name, service, diagnostics }.service();
    }
    fixed_ports(config, diagnostics);
    instance_names(config, diagnostics);
    route::check(config, diagnostics);
    for notify in &config.notify {
        let place = notify.at.field("webhook");
        let rest = notify.webhook.strip_prefix("http://").or_else(|| notify.webhook.strip_prefix("https://"));
        if rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/')) {
            diagnostics.error(
                place,
                format!("`{}` is not a URL that can be posted to", notify.webhook),
                "write http://host/path or https://host/path",
            );
        }
    }
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
        if service.command.first().is_some_and(String::is_empty) {
            self.error("command", "the program's name is empty", "write command: [program, arguments]");
        }
        for name in service.env.keys().filter(|name| name.is_empty() || name.contains('=')) {
            self.error(
                "env",
                format!("`{name}` cannot be the name of a variable"),
                "a name is not empty and has no `=`",
            );
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

    fn variables(&mut self) {
        let service = self.service;
        let versions = service.versions.values().flat_map(|version| version.command.iter().chain(version.env.values()));
        let texts: Vec<&String> = service.command.iter().chain(service.env.values()).chain(versions).collect();
        for text in texts {
            if let Err(unknown) = expand(text, |_| Some(String::new())) {
                let cure = match nearest(&unknown, VARIABLES) {
                    Some(near) => format!("did you mean `${{{near}}}`?"),
                    None => format!(
                        "there are: {}; write `$${{` for a literal `${{`",
                        VARIABLES.map(|name| format!("${{{name}}}")).join(", ")
                    ),
                };
                let field = if service.at.has("command") { "command" } else { "versions" };
                self.error(field, format!("unknown variable `${{{unknown}}}`"), cure);
            }
        }
    }

    fn probe(&mut self, field: &'static str, probe: &Probe) {
        let handlers =
            [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
        let count = handlers.iter().filter(|present| **present).count();
        if count != 1 {
            let cure = "give exactly one of httpGet, tcpSocket, exec, grpc";
            self.at(probe.at.whole, field, format!("{count} handlers"), cure);
        }
        let positive = [
            ("periodSeconds", probe.period_seconds),
            ("timeoutSeconds", probe.timeout_seconds),
            ("successThreshold", probe.success_threshold),
            ("failureThreshold", probe.failure_threshold),
        ];
        for (name, value) in positive {
            if value == 0 {
                self.at(probe.at.field(name), field, format!("`{name}: 0`"), "at least 1");
            }
        }
        if field != "readinessProbe" && probe.success_threshold > 1 {
            self.at(
                probe.at.field("successThreshold"),
                field,
                "`successThreshold` must be 1 here",
                "as in Kubernetes, only a readinessProbe may have more",
            );
        }
        if field == "readinessProbe" && probe.termination_grace_period_seconds.is_some() {
            self.at(
                probe.at.field("terminationGracePeriodSeconds"),
                field,
                "a readinessProbe never stops an instance",
                "remove `terminationGracePeriodSeconds`",
            );
        }
        if let Some(http) = &probe.http_get {
            self.port(http.at.field("port"), field, http.port);
            self.path(http.at.field("path"), field, &http.path);
            if http.scheme == super::Scheme::Https {
                self.at(
                    http.at.field("scheme"),
                    field,
                    "probing over HTTPS is not supported",
                    "probe a plain HTTP port, or use tcpSocket or exec",
                );
            }
        }
        if let Some(tcp) = &probe.tcp_socket {
            self.port(tcp.at.field("port"), field, tcp.port);
        }
        if let Some(grpc) = &probe.grpc {
            self.port(grpc.at.field("port"), field, grpc.port);
        }
        if let Some(exec) = &probe.exec
            && exec.command.is_empty()
        {
            self.at(exec.at.whole, field, "an empty command", "write command: [program, arguments]");
        }
        if probe.exec.is_some() && !self.service.endpoints.is_empty() {
            self.at(
                probe.at.field("exec"),
                field,
                "`exec` cannot look at a service that runs elsewhere",
                "use httpGet, tcpSocket or grpc",
            );
        }
    }

    fn hook(&mut self, field: &'static str, hook: &Hook) {
        match (&hook.http_post, &hook.exec) {
            (Some(post), None) => {
                self.port(post.at.field("port"), field, post.port);
                self.path(post.at.field("path"), field, &post.path);
            }
            (None, Some(exec)) if exec.command.is_empty() => {
                self.at(exec.at.whole, field, "an empty command", "write command: [program, arguments]")
            }
            (None, Some(_)) => {}
            _ => self.at(hook.at.whole, field, "not exactly one handler", "give httpPost or exec"),
        }
        if hook.timeout_seconds == 0 {
            self.at(hook.at.field("timeoutSeconds"), field, "`timeoutSeconds: 0`", "at least 1");
        }
    }

    fn stop_hook(&mut self, hook: &StopHook) {
        let handlers = [hook.http_get.is_some(), hook.http_post.is_some(), hook.exec.is_some(), hook.sleep.is_some()];
        if handlers.iter().filter(|present| **present).count() != 1 {
            self.at(
                hook.at.whole,
                "preStop",
                "not exactly one handler",
                "give exactly one of httpGet, httpPost, exec, sleep",
            );
        }
        let http = hook.http_get.as_ref().map(|http| (http.at.clone(), http.port, http.path.clone()));
        let post = hook.http_post.as_ref().map(|post| (post.at.clone(), post.port, post.path.clone()));
        for (at, port, path) in http.into_iter().chain(post) {
            self.port(at.field("port"), "preStop", port);
            self.path(at.field("path"), "preStop", &path);
        }
    }

    fn at(&mut self, place: Place, field: &str, message: impl AsRef<str>, cure: &str) {
        let message = message.as_ref();
        self.diagnostics.error(place, format!("service `{}`, {field}: {message}", self.name), cure);
    }

    fn path(&mut self, place: Place, field: &str, path: &str) {
        if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
            self.at(place, field, format!("`{path}` is not a path"), "a path starts with `/` and has no spaces");
        }
    }

    fn port(&mut self, place: Place, field: &str, port: Option<u16>) {
        let Some(port) = port else { return };
        let elsewhere = self
            .service
            .endpoints
            .iter()
            .any(|endpoint| endpoint.rsplit(':').next() == Some(port.to_string().as_str()));
        if !elsewhere && !self.service.ports.contains(&port) {
            self.at(
                place,
                field,
                format!("port {port} is no instance's port"),
                "leave `port` out (the instance's own is used), or name the fixed ports in `ports`",
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

/// Replaces `${name}` by `value(name)`; `$${` stays a literal `${`.
///
/// # Errors
/// The first name that is not one of [`VARIABLES`] or has no value.
pub fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            expanded.push_str(&rest[..start - 1]);
            expanded.push_str("${");
            rest = &rest[start + 2..];
            continue;
        }
        expanded.push_str(&rest[..start]);
        let Some(end) = rest[start..].find('}') else { return Err(rest[start + 2..].to_owned()) };
        let name = &rest[start + 2..start + end];
        let known = VARIABLES.contains(&name).then(|| value(name)).flatten();
        expanded.push_str(&known.ok_or_else(|| name.to_owned())?);
        rest = &rest[start + end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}
