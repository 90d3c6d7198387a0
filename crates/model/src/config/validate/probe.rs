//! Rules of probes and hooks: exactly one handler, bounds that Kubernetes has, ports and paths that can be asked.

use super::Checker;
use crate::config::probe::{ExecAction, Hook, Probe, StopHook};
use crate::diagnostic::Place;

impl Checker<'_> {
    pub(super) fn probe(&mut self, field: &'static str, probe: &Probe) {
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
            if http.scheme == crate::config::Scheme::Https {
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
        if let Some(exec) = &probe.exec {
            self.exec(field, exec);
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

    pub(super) fn hook(&mut self, field: &'static str, hook: &Hook) {
        match (&hook.http_post, &hook.exec) {
            (Some(post), None) => {
                self.port(post.at.field("port"), field, post.port);
                self.path(post.at.field("path"), field, &post.path);
            }
            (None, Some(exec)) => self.exec(field, exec),
            _ => self.at(hook.at.whole, field, "not exactly one handler", "give httpPost or exec"),
        }
        if hook.timeout_seconds == 0 {
            self.at(hook.at.field("timeoutSeconds"), field, "`timeoutSeconds: 0`", "at least 1");
        }
    }

    pub(super) fn stop_hook(&mut self, hook: &StopHook) {
        let handlers = [hook.http_get.is_some(), hook.http_post.is_some(), hook.exec.is_some(), hook.sleep.is_some()];
        if handlers.iter().filter(|present| **present).count() != 1 {
            self.at(
                hook.at.whole,
                "preStop",
                "not exactly one handler",
                "give exactly one of httpGet, httpPost, exec, sleep",
            );
        }
        if let Some(exec) = &hook.exec {
            self.exec("preStop", exec);
        }
        let http = hook.http_get.as_ref().map(|http| (http.at.clone(), http.port, http.path.clone()));
        let post = hook.http_post.as_ref().map(|post| (post.at.clone(), post.port, post.path.clone()));
        for (at, port, path) in http.into_iter().chain(post) {
            self.port(at.field("port"), "preStop", port);
            self.path(at.field("path"), "preStop", &path);
        }
    }

    fn exec(&mut self, field: &str, exec: &ExecAction) {
        let place = exec.at.field("command");
        if exec.command.first().is_none_or(String::is_empty) {
            self.at(place, field, "no command", "write command: [program, arguments]");
        }
        self.known_variables(place, field, &exec.command);
    }

    fn at(&mut self, place: Place, field: &str, message: impl AsRef<str>, cure: &str) {
        let message = message.as_ref();
        self.diagnostics.error(place, format!("service `{}`, {field}: {message}", self.name), cure);
    }

    fn path(&mut self, place: Place, field: &str, path: &str) {
        if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            let cure = "a path starts with `/` and has no spaces and no `#`; other letters are percent-encoded";
            self.at(place, field, format!("`{path}` is not a path"), cure);
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
