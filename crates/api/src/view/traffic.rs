//! What guards a service's requests, as it is shown. Each node tells of its own gateway.

use serde::{Deserialize, Serialize};

/// The guards of a service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficView {
    /// Its circuit breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerView>,
    /// Its concurrency limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyView>,
}

/// A circuit breaker.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BreakerView {
    /// `closed`, `open` or `half-open`.
    pub state: String,
    /// `open` or `closed` while an operator holds it so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced: Option<String>,
    /// When it got into this state, RFC 3339.
    pub since: String,
    /// Why it opened; absent while it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// A concurrency limit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConcurrencyView {
    /// Requests under way.
    pub active: u32,
    /// The most of them.
    pub max: u32,
    /// Requests that wait for a place.
    pub pending: u32,
    /// The most of them.
    pub max_pending: u32,
}
