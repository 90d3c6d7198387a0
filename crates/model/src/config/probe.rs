//! Probes and hooks, with Kubernetes' fields, names and defaults (core/v1 Probe and LifecycleHandler).
//! One addition: `port` may be left out and is then the instance's own.

use std::collections::BTreeMap;
use std::time::Duration;

use super::decode::{record, words};

record! {
    /// A check that decides whether an instance lives, is ready or has started. Exactly one of the four handlers.
    Probe as "a probe" {
        /// A GET that must answer 200 to 399.
        http_get: Option<HttpAction> = None,
        /// A TCP connection that must be accepted.
        tcp_socket: Option<TcpAction> = None,
        /// A command that must exit with 0.
        exec: Option<ExecAction> = None,
        /// The gRPC health protocol (grpc.health.v1), which must answer SERVING.
        grpc: Option<GrpcAction> = None,
        /// Seconds after the instance's start before the first probe.
        initial_delay_seconds: u32 = 0,
        /// Seconds between probes; at least 1.
        period_seconds: u32 = 10,
        /// Seconds a probe may take; at least 1.
        timeout_seconds: u32 = 1,
        /// Successes in a row that turn it healthy; must be 1 for liveness and startup.
        success_threshold: u32 = 1,
        /// Failures in a row that turn it unhealthy.
        failure_threshold: u32 = 3,
        /// Overrides the service's grace period when this probe stops the instance (liveness and startup only).
        termination_grace_period_seconds: Option<u32> = None,
    }
}

impl Probe {
    /// Time between probes.
    pub fn period(&self) -> Duration {
        Duration::from_secs(self.period_seconds.into())
    }

    /// Time a probe may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.into())
    }
}

record! {
    /// An HTTP GET.
    HttpAction as "`httpGet`" {
        /// The path, with query.
        path: String = "/".to_owned(),
        /// The instance's own port when absent.
        port: Option<u16> = None,
        /// The host to connect to; the instance's own when absent.
        host: Option<String> = None,
        /// HTTP only: probing instances over TLS is not supported.
        scheme: Scheme = Scheme::Http,
        /// Headers to send.
        http_headers: Vec<Header> = Vec::new(),
    }
}

words! {
    /// The probe's protocol, in Kubernetes' spelling.
    Scheme {
        /// Plain HTTP.
        Http = "HTTP",
        /// HTTP over TLS, the certificate not verified (as in Kubernetes).
        Https = "HTTPS",
    }
}

record! {
    /// A header of a probe.
    Header as "an item of `httpHeaders`" {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    }
}

record! {
    /// A TCP connection.
    TcpAction as "`tcpSocket`" {
        /// The instance's own port when absent.
        port: Option<u16> = None,
        /// The host to connect to; the instance's own when absent.
        host: Option<String> = None,
    }
}

record! {
    /// A command; not run in a shell.
    ExecAction as "`exec`" {
        /// Program and arguments, with the variables of the service's `command`, its `env` and its `workingDir`.
        command: Vec<String>,
    }
}

record! {
    /// The gRPC health check protocol.
    GrpcAction as "`grpc`" {
        /// The instance's own port when absent.
        port: Option<u16> = None,
        /// The service name asked about; the server as a whole when empty.
        service: String = String::new(),
    }
}

record! {
    /// Something done to an instance when its role changes. Exactly one of the two.
    Hook as "a hook" {
        /// A POST that must answer 200 to 299. Carries `Seawall-Epoch`, `Seawall-Service`, `Seawall-Instance`; `onPromote` with a `stream` also `Seawall-Stream`, `Seawall-Stream-End`.
        http_post: Option<HttpPostAction> = None,
        /// A command that must exit with 0. Gets `SEAWALL_EPOCH`, `SEAWALL_SERVICE`, `SEAWALL_INSTANCE`; `onPromote` with a `stream` also `SEAWALL_STREAM`, `SEAWALL_STREAM_END`.
        exec: Option<ExecAction> = None,
        /// Seconds it may take; at least 1.
        timeout_seconds: u32 = 5,
    }
}

record! {
    /// An HTTP POST with an empty body.
    HttpPostAction as "`httpPost`" {
        /// The path, with query.
        path: String,
        /// The instance's own port when absent.
        port: Option<u16> = None,
        /// More headers to send.
        headers: BTreeMap<String, String> = BTreeMap::new(),
    }
}

record! {
    /// Something done before an instance is told to stop, inside its grace period. Exactly one.
    StopHook as "`preStop`" {
        /// A GET; its answer is logged, never a reason not to stop.
        http_get: Option<HttpAction> = None,
        /// A POST.
        http_post: Option<HttpPostAction> = None,
        /// A command.
        exec: Option<ExecAction> = None,
        /// Only wait.
        sleep: Option<SleepAction> = None,
    }
}

record! {
    /// A pause.
    SleepAction as "`sleep`" {
        /// Its length.
        seconds: u32,
    }
}
