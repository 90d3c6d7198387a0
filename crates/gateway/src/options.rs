//! Every bound and timeout of the gateway, with its default.
//! Given once at start. Deliberately absent: configuration files; the composition root translates them into this.

use std::time::Duration;

use crate::challenge::Challenges;
use crate::http1::Limits;
use crate::record::AccessRecord;
use guard::Release;
use model::Network;

/// How instances of a service share its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Balance {
    /// Two instances at random, the one with fewer requests in flight for its weight takes it.
    #[default]
    LeastRequests,
    /// Two instances at random, the one that is likely to answer sooner takes it: by its latest answers, and by what it has
    /// in flight for its weight (peak EWMA).
    PeakEwma,
    /// One after the other, by weight.
    RoundRobin,
}

/// What becomes of trailers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Trailers {
    /// Read, bounded, dropped.
    Drop,
    /// Passed on if the receiver gets chunks or frames, except fields that frame, route or authenticate (RFC 9110,
    /// 6.5.1).
    #[default]
    Forward,
}

/// A page instead of the gateway's own words, for clients that do not ask for JSON.
#[derive(Clone, Debug)]
pub struct ErrorPage {
    /// For these statuses.
    pub statuses: std::ops::RangeInclusive<u16>,
    /// What it is.
    pub content_type: String,
    /// What is shown.
    pub body: std::sync::Arc<[u8]>,
}

impl ErrorPage {
    pub(crate) fn is_for(&self, status: u16) -> bool {
        self.statuses.contains(&status)
    }
}

/// The gateway's settings; `Options::default()` is meant for production.
#[derive(Debug)]
pub struct Options {
    /// Threads, one runtime each; a connection stays on its thread. Default: one per core, at most 8.
    pub workers: usize,
    /// Client connections per listener; one more is told 503 and closed. Default 10 000.
    pub max_connections: usize,
    /// Bounds on heads.
    pub limits: Limits,
    /// Most bytes of a request's body; beyond: 413. Default: no bound.
    pub max_body_bytes: Option<u64>,
    /// From a request's first byte to its head's last; beyond: 408. Default 10 s.
    pub header_timeout: Duration,
    /// Between requests of a client. Default 60 s.
    pub idle_timeout: Duration,
    /// To establish a connection to an instance. Default 1 s.
    pub connect_timeout: Duration,
    /// A client that takes no byte, or sends none of a body it owes, for so long is cut off. Default 30 s.
    pub stall_timeout: Duration,
    /// Idle connections kept per instance and worker. Default 64.
    pub pool_idle_connections: usize,
    /// How long an idle connection to an instance is kept. Default 45 s.
    pub pool_idle_timeout: Duration,
    /// Attempts of one request, the first included. Default 3.
    pub max_attempts: u32,
    /// How long an instance that refused a connection is avoided while others live. Default 1 s.
    pub avoid: Duration,
    /// How often one held request tries an instance that refused, when there is no other. Default 20 ms.
    pub probe_interval: Duration,
    /// How a room of held requests empties.
    pub release: Release,
    /// The end of a client's stream so soon after its request means "that was all", and the answer is sent; later
    /// it means "gone", and the request is cancelled. Default 50 ms.
    pub half_close_grace: Duration,
    /// What becomes of trailers. Default: forwarded.
    pub trailers: Trailers,
    /// A tunnel (upgrade, TCP) on which nothing moves for so long is closed. Default 1 h.
    pub tunnel_idle_timeout: Duration,
    /// Connections of one client address over all listeners; one more is closed. 0: no bound. Default 0.
    pub max_connections_per_client: u32,
    /// Proxies in front whose `X-Forwarded-*` fields are believed. Default: none.
    pub trusted_proxies: Vec<Network>,
    /// Answers of instances tell where their time went (`Server-Timing`). Default: they do not.
    pub server_timing: bool,
    /// Pages for the gateway's own answers; the first that fits is shown.
    pub error_pages: Vec<ErrorPage>,
    /// Visits of a certificate authority to be answered. Default: none.
    pub challenges: std::sync::Arc<Challenges>,
    /// Where access records go, if anywhere. A full channel drops and counts.
    pub access_log: Option<tokio::sync::mpsc::Sender<AccessRecord>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, usize::from).min(8),
            max_connections: 10_000,
            limits: Limits::default(),
            max_body_bytes: None,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            stall_timeout: Duration::from_secs(30),
            pool_idle_connections: 64,
            pool_idle_timeout: Duration::from_secs(45),
            max_attempts: 3,
            avoid: Duration::from_secs(1),
            probe_interval: Duration::from_millis(20),
            release: Release::default(),
            half_close_grace: Duration::from_millis(50),
            trailers: Trailers::Forward,
            tunnel_idle_timeout: Duration::from_secs(3600),
            max_connections_per_client: 0,
            trusted_proxies: Vec::new(),
            server_timing: false,
            error_pages: Vec::new(),
            challenges: std::sync::Arc::default(),
            access_log: None,
        }
    }
}
