//! What guards a service's requests, as it is shown. Each node tells of its own gateway.

use std::collections::BTreeMap;

use model::InstanceId;
use serde::{Deserialize, Serialize};

/// The guards of a service.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficView {
    /// Its circuit breaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerView>,
    /// Its instances' breakers, of those that have had a request, where each has its own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub instance_breakers: BTreeMap<InstanceId, BreakerView>,
    /// Its concurrency limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<ConcurrencyView>,
    /// Its rate limit; of several the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimitView>,
    /// Its other rate limits, in the order in which they are asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more_rate_limits: Vec<RateLimitView>,
    /// Its bounds of what is under way at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at_once: Vec<AtOnceView>,
    /// Its instances that get no requests for a while.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ejected: Vec<EjectionView>,
}

/// That a limit refuses requests. One that has refused none for 10 s has stopped.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusingView {
    /// Since when, RFC 3339.
    pub since: String,
    /// Why.
    pub why: String,
}

/// A rate limit.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitView {
    /// Requests a second, or in each `perSeconds`.
    pub qps: u32,
    /// Other than one second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_seconds: Option<u64>,
    /// Requests refused since the node process began.
    pub refused: u64,
    /// Since when it refuses requests, and why; absent while it refuses none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<RefusingView>,
    /// Keys at work now, for a limit by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u32>,
    /// So many may be at work before any is forgotten; never more than twice as many are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_keys: Option<u32>,
    /// Keys that were forgotten while at work, for want of room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub displaced: Option<u64>,
}

/// A bound of what is under way at once.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AtOnceView {
    /// Requests at once.
    pub max: u32,
    /// Under way now, of all keys.
    pub active: u64,
    /// Keys that have some under way, for a bound by key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u32>,
    /// Requests turned away since the node process began.
    pub refused: u64,
    /// Since when it refuses requests, and why; absent while it refuses none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<RefusingView>,
}

/// How much a gateway has to do.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverloadView {
    /// Requests refused since the node process began.
    pub refused: u64,
    /// Requests under way.
    pub concurrent: u64,
    /// The machine's load.
    pub load: f64,
    /// How busy its processors are, from 0 to 1.
    pub cpu: f64,
}

/// An instance that gets no requests for a while.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EjectionView {
    /// Which.
    pub instance: InstanceId,
    /// Since when, RFC 3339.
    pub since: String,
    /// Until when.
    pub until: String,
    /// How often in a row.
    pub times: u32,
    /// Why.
    pub why: String,
}

/// A shift of a service's requests.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShiftView {
    /// The version or service that had them.
    pub from: String,
    /// The version or service that gets them.
    pub to: String,
    /// Nobody asked: the breaker has opened, and `to` is a backup.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub automatic: bool,
    /// So many hundredths of them go there.
    pub percent: u32,
    /// Which step, from 1.
    pub step: usize,
    /// Of how many.
    pub steps: usize,
    /// `running`, `paused`, `done`, `rolled-back` or `aborted`.
    pub state: String,
    /// Since when it stands so, RFC 3339.
    pub since: String,
    /// Why.
    pub why: String,
    /// The chain that its events are in.
    pub cause: String,
    /// The last judgement of this step; only where it is judged, on the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<String>,
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
    /// Since when it refuses requests, and why; absent while it refuses none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<RefusingView>,
    /// The bounds of a limit that finds itself: `max` is then what it has found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveView>,
}

/// A concurrency limit that finds itself.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdaptiveView {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// The shortest time that answers take, in milliseconds, once it has been measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rtt_ms: Option<u64>,
}
