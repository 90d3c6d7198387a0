//! The configuration file as a value: what was written, with defaults filled in and places kept.
//! Read by [`load`], which gathers every mistake. Deliberately no file access: the caller passes a reader,
//! so the same code serves `up`, `check`, `apply` and tests.

mod acme;
mod cluster;
pub mod decode;
mod discovery;
mod foreign;
mod limits;
mod listener;
mod load;
mod node;
mod probe;
mod route;
pub mod schema;
mod service;
mod shift;
mod traffic;
pub mod validate;
pub mod yaml;

use std::collections::BTreeMap;

pub use acme::{Acme, AcmeCertificate, Challenge, ExternalAccount, LETS_ENCRYPT};
pub use cluster::{Cluster, ClusterTls, Failsafe, NodeRole, Peers};
pub use decode::{Decode, FilePath, Ratio};
pub use discovery::{ALL, Acl, DefaultPolicy, Discovery, Dns, Feeds, NginxFeed};
pub use foreign::{
    Foreign, Hystrix, Include, Includes, Istio, IstioFiles, Names, Origin, OriginKind, Rules, Sentinel, foreign,
};
pub use limits::{Allowance, AtOnce, Behaviour, LimitKey, OneOrMore, Overload, RateLimit, WithoutKey};
pub use listener::{
    ClientAuth, ClientAuthMode, HttpVersion, InstanceTls, Listen, Listener, ListenerCertificate, ListenerTls,
    MinVersion, ProxyVersion, Tcp,
};
pub use load::{IN_FORCE, Loaded, decode_effective, load, load_over};
pub use node::{AccessLog, Api, Durability, GatewayConfig, NodeConfig, Notify, NotifyKind, PortRange, StreamsConfig};
pub use probe::{
    ExecAction, GrpcAction, Header, Hook, HttpAction, HttpPostAction, Probe, Scheme, SleepAction, StopHook, TcpAction,
};
pub use route::{
    Coding, Condition, CorsPolicy, Fault, FaultAbort, FaultDelay, Headers, Match, Mirror, Mirrors, Priority, Redirect,
    RequestScheme, Respond, Retry, RetryOn, Rewrite, Route, Source, Sticky, Target, Targets,
};
pub use service::{Backoff, BalanceBy, EndpointOptions, Hold, Mode, RestartPolicy, Service, Version};
pub use shift::{Failover, Gates, PlannedStep, SeriesGate, Shift, ShiftPlan, ShiftPreset, ShiftStep, WrittenStep};
pub use traffic::{
    Adaptive, BreakerPreset, BreakerRule, BreakerScope, CircuitBreaker, Comparator, Concurrency, Fallback, Outlier,
    RetryBudget, Traffic,
};

use crate::id::ServiceName;
use decode::{OneOrMany, record};

record! {
    /// One file says which programs to run and how traffic reaches them.
    Config as "the file" {
        /// This machine: its name, region and where it keeps its state.
        node: NodeConfig = NodeConfig::default(),
        /// The cluster it belongs to; a machine by itself when absent.
        cluster: Option<Cluster> = None,
        /// The control API: status, events, key-value store, metrics.
        api: Api = Api::default(),
        /// How programs and their clients find each other.
        discovery: Discovery = Discovery::default(),
        /// DNS answered from the registry; not served when absent.
        dns: Option<Dns> = None,
        /// What op-logs of services keep.
        streams: StreamsConfig = StreamsConfig::default(),
        /// Where traffic enters.
        gateway: GatewayConfig = GatewayConfig::default(),
        /// The programs to keep up, by name.
        services: BTreeMap<ServiceName, Service> = BTreeMap::new(),
        /// Which request goes to which service; the first that matches wins.
        routes: Vec<Route> = Vec::new(),
        /// More files with `services`, `routes` and `notify`, relative to this one; and rules as other tools write them.
        include: Includes = Includes::default(),
        /// Who is told when something is wrong.
        notify: Vec<Notify> = Vec::new(),
    }
}
