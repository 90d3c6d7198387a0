//! Limits on what reaches a service: how many requests a second, how many at once, by key or of some requests only. And what
//! a gateway as a whole bears. Meanings are Sentinel's where a key says so.
//! Deliberately absent: rules over several keys (`validate/limits.rs`).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::Match;
use super::decode::{Decode, Ratio, record, text, words, wrong};
use super::foreign::Origin;
use super::yaml::{Kind, Node};
use crate::diagnostic::Diagnostics;
use crate::id::ServiceName;

/// One thing, or a list of them.
#[derive(Clone, PartialEq, Debug)]
pub struct OneOrMore<T>(pub Vec<T>);

impl<T> Default for OneOrMore<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Decode> Decode for OneOrMore<T> {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Map(_) => T::decode(node, diagnostics).map(|one| Self(vec![one])),
            _ => Vec::decode(node, diagnostics).map(Self),
        }
    }

    fn encode(&self) -> Value {
        match self.0.as_slice() {
            [] => Value::Null,
            [one] => one.encode(),
            all => all.iter().map(T::encode).collect(),
        }
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        let one = T::schema(definitions);
        json!({ "oneOf": [one.clone(), { "type": "array", "items": one }] })
    }
}

/// What a key may have that is an exception.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allowance {
    /// So many; 0 is none at all.
    Count(u32),
    /// As many as it wants.
    Unlimited,
}

impl Decode for Allowance {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a whole number, or `unlimited`";
        match text(node, EXPECTED, diagnostics)? {
            "unlimited" => return Some(Self::Unlimited),
            written => {
                if let Ok(count) = written.parse() {
                    return Some(Self::Count(count));
                }
            }
        }
        wrong(node, EXPECTED, diagnostics);
        None
    }

    fn encode(&self) -> Value {
        match self {
            Self::Count(count) => (*count).into(),
            Self::Unlimited => "unlimited".into(),
        }
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        json!({ "oneOf": [{ "type": "integer", "minimum": 0 }, { "const": "unlimited" }] })
    }
}

words! {
    /// What becomes of requests that do not have the key.
    WithoutKey {
        /// They share one measure.
        Share = "share",
        /// They pass.
        Pass = "pass",
    }
}

record! {
    /// A rate, even to a twentieth of a second unless `burst` or `behaviour` says otherwise.
    RateLimit as "`rateLimit`" {
        /// Requests a second, or in each `per`: 1 to 1000000.
        qps: u32,
        /// In which time `qps` may come: 1s to 1h. Other than a second not with `window`, `warmUp` and `warmUpQueue`.
        per: Duration = Duration::from_secs(1),
        /// So many may come at once after a pause. Default: a twentieth of `qps`, at least 1. With `bucket`: so many more than `qps` may come at once; default 0.
        burst: Option<u32> = None,
        /// What has the rate for itself; all requests together when absent.
        key: Option<LimitKey> = None,
        /// Keys that have another rate, or none: `{ vip: 1000, crawler: 0, monitor: unlimited }` (Sentinel's `paramFlowItemList`).
        exceptions: BTreeMap<String, Allowance> = BTreeMap::new(),
        /// Only the `exceptions` are limited; every other key passes.
        only_exceptions: bool = false,
        /// What becomes of requests that do not have the key.
        without_key: WithoutKey = WithoutKey::Share,
        /// So many keys are remembered for sure, and never more than twice as many; when more are at work, the one that
        /// is nearest to rest is forgotten. 8 to 1000000.
        max_keys: u32 = 10_000,
        /// Only requests that look so; as a route's `match`, without `host`.
        ["match"] matches: Match = Match::default(),
        /// Only requests that came by the route of this name (Sentinel's rules by entrance).
        route: Option<String> = None,
        /// Not what reaches this service is judged, but what passes this other one: while that has `qps` or more a second, requests are refused here (Sentinel's rules by relation). Only with `window`.
        of: Option<ServiceName> = None,
        /// What becomes of a request that comes too early.
        behaviour: Behaviour = Behaviour::Reject,
        /// Whether answers that pass tell what is left of the rate (`RateLimit-Limit`, `-Remaining`, `-Reset`).
        tell: bool = true,
        /// With `warmUp` and `warmUpQueue`: how long it takes, under load, until the whole rate is let through.
        warm_up_period: Duration = Duration::from_secs(10),
        /// With `warmUp` and `warmUpQueue`: after a pause the rate begins at one part in so many.
        cold_factor: u32 = 3,
        /// With `queue` and `warmUpQueue`: a request whose turn comes later than this is refused. Inside the route's timeout; 1m at most.
        max_queueing_time: Duration = Duration::from_millis(500),
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}

words! {
    /// What becomes of a request that comes too early; Sentinel's control behaviours.
    Behaviour {
        /// It is refused.
        Reject = "reject",
        /// It is refused when the second that ends now had all of `qps`, counted in halves as Sentinel does; they may come at once. Without `burst`.
        Window = "window",
        /// It is refused when all of `qps` and `burst` have come, until `per` has passed since they began (Sentinel's hot parameters).
        Bucket = "bucket",
        /// It is refused, and after a pause the rate grows slowly.
        WarmUp = "warmUp",
        /// It waits for its turn.
        Queue = "queue",
        /// Both: it waits for its turn, and after a pause turns come more slowly.
        WarmUpQueue = "warmUpQueue",
    }
}

record! {
    /// What of a request has a measure for itself: one of these. Requests without it share one measure.
    LimitKey as "`key`" {
        /// A header field.
        header: Option<String> = None,
        /// A parameter of the query, as it is written.
        query: Option<String> = None,
        /// `true`: the client's address; behind a trusted proxy, the last one in `X-Forwarded-For`.
        address: bool = false,
        /// A segment of the path, from 1: of `/shops/7/orders` the second is `7`.
        path_segment: Option<u32> = None,
    }
}

record! {
    /// How many requests are under way at once, by key or of some requests only; one more is answered 503 `too-many-at-once`. There is no line: that is `concurrency`.
    AtOnce as "`atOnce`" {
        /// Requests at once: 1 to 1000000.
        max: u32,
        /// What has so many for itself; all requests together when absent.
        key: Option<LimitKey> = None,
        /// Keys that have another bound, or none.
        exceptions: BTreeMap<String, Allowance> = BTreeMap::new(),
        /// Only the `exceptions` are bounded; every other key passes.
        only_exceptions: bool = false,
        /// What becomes of requests that do not have the key.
        without_key: WithoutKey = WithoutKey::Share,
        /// So many keys are counted for sure; of more that are under way some may pass uncounted. 8 to 1000000.
        max_keys: u32 = 10_000,
        /// Only requests that look so; as a route's `match`, without `host`.
        ["match"] matches: Match = Match::default(),
        /// Only requests that came by the route of this name.
        route: Option<String> = None,
        /// Not this service's requests are counted, but those of this other one: while that has `max` or more under way, requests are refused here.
        of: Option<ServiceName> = None,
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}

record! {
    /// What this gateway as a whole bears (Sentinel's `SystemRule`): beyond any of these a request is answered 503 `overloaded` before its service's own guards are asked. Over all requests for services; each gateway judges by itself.
    Overload as "`overload`" {
        /// Requests a second, over a second that slides by halves: 1 to 1000000.
        qps: Option<u32> = None,
        /// Requests at once.
        concurrent: Option<u32> = None,
        /// The average time of what has ended in the last second.
        average_time: Option<Duration> = None,
        /// The machine's load over a minute. Beyond it no more requests are at once than its best second and shortest time allow. On Windows, which has no such figure: how many processors are busy.
        load: Option<f64> = None,
        /// How busy all processors together are, over the last second.
        cpu: Option<Ratio> = None,
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
    }
}
