//! One line of the access log per answered request, for a consumer the caller brings.
//! Last step of the request walk. Built only when somebody listens; dropped and counted when the consumer is slow.
//! Deliberately absent: formatting and files.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use model::{InstanceId, ServiceName};

/// What happened to one request.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When its head had been read.
    pub at: SystemTime,
    /// Who sent it.
    pub client: SocketAddr,
    /// The method, lossily as text.
    pub method: String,
    /// Path and query, lossily as text.
    pub path: String,
    /// Host and port as the client named them.
    pub host: String,
    /// The status answered; 0 if the client left first.
    pub status: u16,
    /// The gateway's reason when it answered itself.
    pub reason: Option<&'static str>,
    /// The service a route chose.
    pub service: Option<ServiceName>,
    /// The instance that answered or failed last.
    pub instance: Option<InstanceId>,
    /// Head read to last byte written.
    pub duration: Duration,
    /// Body bytes given to the client.
    pub bytes: u64,
    /// The trace's id, 32 hex digits, if the request got as far as an instance.
    pub trace_id: String,
    /// `X-Request-Id`, if the request got as far as an instance.
    pub request_id: String,
}
