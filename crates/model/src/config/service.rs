//! A service: what to run, how many, how it is watched, restarted and stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use super::decode::{record, words};
use super::foreign::Origin;
use super::listener::{InstanceTls, ProxyVersion};
use super::node::default_of;
use super::probe::{Hook, Probe, StopHook};
use super::traffic::Traffic;
use crate::id::VersionName;

record! {
    /// A program kept up as replicas, or (with `endpoints`) somebody else's that is checked and routed to.
    Service as "a service" {
        /// Program and arguments, run without a shell. `${port}`, `${instance}`, `${service}`, `${index}` are replaced, `$${` is a literal `${`.
        command: Vec<String> = Vec::new(),
        /// Environment, added to the node's own; with the same variables. `PORT`, `SEAWALL_INSTANCE`, `SEAWALL_SERVICE` are always set, and `SEAWALL_API` (the URL of this node's API); `SEAWALL_STREAM` with `stream`.
        env: BTreeMap<String, String> = BTreeMap::new(),
        /// Where the program runs, a folder that exists; relative to the file, whose folder is the default.
        working_dir: Option<String> = None,
        /// How many instances.
        replicas: u32 = 1,
        /// A planned restart or stop never leaves fewer ready instances than this. Default: one less than `replicas`.
        min_available: Option<u32> = None,
        /// All instances serve, or one does and the others stand by.
        mode: Mode = Mode::ActiveActive,
        /// Two or more versions side by side, each with its own command; `command` and `replicas` above are then their defaults.
        versions: BTreeMap<VersionName, Version> = BTreeMap::new(),
        /// Fixed ports, one for each instance in order; chosen by the node when absent.
        ports: Vec<u16> = Vec::new(),
        /// Addresses (`host:port`) of instances that run elsewhere; instead of `command`.
        endpoints: Vec<String> = Vec::new(),
        /// What is special about some of the `endpoints`, by the text they are written with.
        endpoint_options: BTreeMap<String, EndpointOptions> = BTreeMap::new(),
        /// How its requests are shared among its instances.
        balance: BalanceBy = BalanceBy::LeastRequests,
        /// Decides whether an instance is alive; one that is not is restarted.
        liveness_probe: Option<Probe> = None,
        /// Decides whether an instance gets traffic.
        readiness_probe: Option<Probe> = None,
        /// Holds the other two back until the instance has started.
        startup_probe: Option<Probe> = None,
        /// What happens when an instance's process exits.
        restart_policy: RestartPolicy = RestartPolicy::Always,
        /// The pause before a restart.
        restart_backoff: Backoff = Backoff::default(),
        /// Seconds from being told to stop to being killed; `preStop` counts inside it.
        termination_grace_period_seconds: u32 = 30,
        /// Done before an instance is told to stop.
        pre_stop: Option<StopHook> = None,
        /// Done to a new primary before it gets traffic.
        on_promote: Option<Hook> = None,
        /// Done to a primary in a planned switch, after its traffic has drained.
        on_demote: Option<Hook> = None,
        /// The stream in which its primary writes down what its standbys must have: sealed at each promotion, and nobody is promoted who has not read it to its end.
        stream: Option<ServiceStream> = None,
        /// Most bytes that keys which begin with the service's name and `/` may take in the key-value store, with 128 for each pair. A write that would take more is refused with 507.
        kv_quota_bytes: u64 = 67_108_864,
        /// Labels, for selection.
        labels: BTreeMap<String, String> = BTreeMap::new(),
        /// Requests wait while nobody can answer them, instead of failing.
        hold: Hold = Hold::default(),
        /// What guards its requests in the gateway: breaker, concurrency, fallback. Nothing when absent. Not for TCP connections.
        traffic: Option<Traffic> = None,
        /// How long requests under way may finish before an instance is stopped or demoted on purpose.
        drain_timeout: Duration = Duration::from_secs(10),
        /// Instances are spoken to in HTTP/2: by prior knowledge in the clear, by ALPN under `tls`. gRPC needs it.
        http2: bool = false,
        /// Instances are spoken to under TLS.
        tls: Option<InstanceTls> = None,
        /// Each connection to an instance begins with a PROXY protocol header that names the client; such connections are not shared between clients.
        send_proxy_protocol: Option<ProxyVersion> = None,
        /// Request bodies up to this many bytes are kept, so that an idempotent request can be sent again.
        replay_limit_bytes: u32 = 65_536,
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}

words! {
    /// Who serves.
    Mode {
        /// Every ready instance.
        ActiveActive = "active-active",
        /// One, chosen by promotion; the others stand by.
        PrimaryStandby = "primary-standby",
    }
}

words! {
    /// How requests are shared among instances.
    BalanceBy {
        /// The one of two that has the fewest under way, for its weight.
        LeastRequests = "leastRequests",
        /// The one of two that answers sooner, by its latest answers and by what it has under way, for its weight. Not for services whose answers are meant to take long now and then.
        PeakEwma = "peakEwma",
        /// In turn, each as often as its weight.
        RoundRobin = "roundRobin",
    }
}

record! {
    /// One of the `endpoints`, beside the others.
    EndpointOptions as "`endpointOptions`" {
        /// Its share beside those of the others.
        weight: u32 = 1,
        /// It gets requests only when none of the others can take them.
        backup: bool = false,
        /// It gets none.
        down: bool = false,
        /// The most requests it has at once, over all of a gateway's workers; when all have as many as they may, a request is answered 503 `instances-full`. No bound when absent.
        max_requests: Option<u32> = None,
    }
}

words! {
    /// What happens when an instance's process exits; Kubernetes' words.
    RestartPolicy {
        /// It is started again.
        Always = "Always",
        /// It is started again unless it exited with 0.
        OnFailure = "OnFailure",
        /// It stays stopped.
        Never = "Never",
    }
}

record! {
    /// One version of a service.
    Version as "a version" {
        /// Instead of the service's.
        command: Vec<String> = Vec::new(),
        /// Added to the service's.
        env: BTreeMap<String, String> = BTreeMap::new(),
        /// Added to the service's.
        labels: BTreeMap<String, String> = BTreeMap::new(),
        /// Instead of the service's.
        replicas: Option<u32> = None,
    }
}

record! {
    /// An exponential pause between restarts.
    Backoff as "`restartBackoff`" {
        /// The first pause; doubled with every exit in a row.
        initial: Duration = Duration::from_millis(100),
        /// The longest pause.
        max: Duration = Duration::from_secs(30),
        /// An instance that has run this long starts again from the first pause.
        reset_after: Duration = Duration::from_secs(60),
    }
}

impl Default for Backoff {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// The stream of a primary-standby service. Each instance says how far it has read by a cursor of its own name.
    ServiceStream as "`stream`" {
        /// Its name. No other service may have it.
        name: String,
        /// How long a switch waits for the standby that is wanted to read the rest, before another that has everything is taken; and from when on it is said that nobody has (`promote-behind`).
        catch_up: Duration = Duration::from_secs(5),
    }
}

record! {
    /// Bounds of holding.
    Hold as "`hold`" {
        /// How long a request waits at most; 0 turns holding off.
        max_wait: Duration = Duration::from_secs(10),
        /// How many wait at a time; more are answered 503 at once.
        max_requests: u32 = 1024,
    }
}

impl Default for Hold {
    fn default() -> Self {
        default_of()
    }
}
