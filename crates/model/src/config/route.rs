//! Routes: which request goes to which service. The first that matches wins (Istio's rule).

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::decode::{Decode, OneOrMany, record, text, words, wrong};
use super::foreign::Origin;
use super::node::default_of;
use super::yaml::{Kind, Node};
use crate::diagnostic::Diagnostics;
use crate::id::{ServiceName, VersionName};

record! {
    /// One rule: when everything in `match` holds, the request goes to `to`.
    Route as "a route" {
        /// A name under which its requests are counted (`seawall_gateway_route_…`), unlike any other route's; only under their service when absent.
        name: Option<String> = None,
        /// What the request must look like; everything matches when absent.
        ["match"] matches: Match = Match::default(),
        /// Where it goes: one destination, or a list of them that share its requests by weight.
        to: Option<Targets> = None,
        /// Whoever brings the same value is sent to the same of several destinations, for as long as their weights stay and mostly beyond.
        sticky: Option<Sticky> = None,
        /// Instead of `to`: the client is sent elsewhere.
        redirect: Option<Redirect> = None,
        /// Instead of `to`: the gateway answers itself, always the same.
        respond: Option<Respond> = None,
        /// Who gets a copy of its requests, one or a list. Nobody sees the answers, and nobody waits for them; `-shadow` stands behind the host. Left out are upgrades, bodies of more than 64 KiB, and copies beyond 128 under way in a worker.
        mirror: Mirrors = Mirrors::default(),
        /// What is done to its requests on purpose, to see whether callers bear it. Limits and breakers see no request that is answered here.
        fault: Option<Fault> = None,
        /// What pages of other origins may do (CORS), as Istio's `corsPolicy`. Preflights of origins that are allowed are answered by the gateway, 200 with the reason `cors-preflight`; those of others go to the service.
        cors: Option<CorsPolicy> = None,
        /// The instance gets another path or host than the client named.
        rewrite: Rewrite = Rewrite::default(),
        /// Changes to the fields an instance gets.
        request_headers: Headers = Headers::default(),
        /// Changes to the fields a client gets from an instance.
        response_headers: Headers = Headers::default(),
        /// The most bytes of a request's body, instead of `gateway.maxBodyBytes`; more is answered 413.
        max_body_bytes: Option<u64> = None,
        /// Codings for answers that the instance has not coded itself, in order of preference: the first that the client takes. None when absent.
        compress: Vec<Coding> = Vec::new(),
        /// From the request's head to the last byte of the answer; then 504 and the instance's connection is closed. None when absent.
        timeout: Option<Duration> = None,
        /// How much its requests matter when the places of a service's `concurrency` run short.
        priority: Priority = Priority::Normal,
        /// Which failed attempts are made again; when absent, those that are certain to have done nothing and those of idempotent methods whose connection ended, three attempts in all.
        retry: Option<Retry> = None,
        /// Set where another tool's file has it.
        from: Option<Origin> = None,
        /// Set where `timeout` is from another tool's file.
        timeout_from: Option<Origin> = None,
    }
}

record! {
    /// Which failed attempts are made again, within the request's time and the service's retry budget. An answer that has begun is never repeated.
    Retry as "`retry`" {
        /// So many attempts after the first (Istio's `attempts`).
        attempts: u32 = 2,
        /// What is repeated, in Istio's or nginx' words.
        on: Vec<RetryOn> = vec![RetryOn::Connect, RetryOn::Reset],
        /// How long one attempt may take until its answer begins.
        per_try_timeout: Option<Duration> = None,
        /// The pause before the first repetition, doubled for each one more up to ten times this; each is drawn evenly from zero up.
        backoff: Duration = Duration::from_millis(25),
        /// Nothing is repeated later than this after the request came (nginx' `proxy_next_upstream_timeout`). No bound when absent.
        within: Option<Duration> = None,
    }
}

words! {
    /// A failure that is repeated. Methods that may do their work twice are left out unless `non_idempotent` is there too, or nothing was sent.
    RetryOn {
        /// No connection could be made.
        Connect = "connect",
        /// The same in Istio's words.
        ConnectFailure = "connect-failure",
        /// The connection ended before an answer.
        Reset = "reset",
        /// The stream was refused, or its connection ended: as `reset`.
        RefusedStream = "refused-stream",
        /// nginx: no connection could be made, or it ended before an answer.
        Error = "error",
        /// The attempt took longer than `perTryTimeout`.
        Timeout = "timeout",
        /// The answer was no HTTP.
        InvalidHeader = "invalid_header",
        /// Any answer from 500 on, and none: `connect`, `reset`, `timeout` and `invalid_header` too (Envoy's meaning).
        ServerError = "5xx",
        /// 502, 503, 504, and no answer.
        GatewayError = "gateway-error",
        /// 409 (Envoy's meaning).
        Retriable4xx = "retriable-4xx",
        /// An answer with this status.
        Http500 = "http_500",
        /// An answer with this status.
        Http502 = "http_502",
        /// An answer with this status.
        Http503 = "http_503",
        /// An answer with this status.
        Http504 = "http_504",
        /// An answer with this status.
        Http403 = "http_403",
        /// An answer with this status.
        Http404 = "http_404",
        /// An answer with this status.
        Http429 = "http_429",
        /// Also POST and PATCH, which may do their work twice.
        NonIdempotent = "non_idempotent",
    }
}

words! {
    /// Who goes first when not all can be served.
    Priority {
        /// Before others in line; if the line is full, in the place of the last that is not critical, which is answered 503 `shed`.
        Critical = "critical",
        /// In line.
        Normal = "normal",
        /// Within four fifths of the places, and never in line: 503 `shed` at once.
        Sheddable = "sheddable",
    }
}

words! {
    /// How a client came.
    RequestScheme {
        /// In the clear.
        Http = "http",
        /// Under TLS.
        Https = "https",
    }
}

words! {
    /// A content coding.
    Coding {
        /// Read by every client.
        Gzip = "gzip",
        /// Brotli: smaller, slower.
        Br = "br",
        /// Zstandard: as small, faster; newer clients.
        Zstd = "zstd",
    }
}

record! {
    /// Another address for the client, as the Kubernetes Gateway API's `RequestRedirect`. What is absent stays as the client named it.
    Redirect as "`redirect`" {
        /// `http` or `https`.
        scheme: Option<String> = None,
        /// The host.
        host: Option<String> = None,
        /// The port. When absent, and the scheme or host changes, the scheme's own.
        port: Option<u16> = None,
        /// The whole path; the query stays.
        path: Option<String> = None,
        /// In place of the `pathPrefix` or `pathStart` that matched.
        prefix: Option<String> = None,
        /// 301, 302, 303, 307 or 308.
        status: u16 = 302,
    }
}

record! {
    /// Another target for the instance, as the Kubernetes Gateway API's `URLRewrite`. What is absent stays as the client named it.
    Rewrite as "`rewrite`" {
        /// The whole path; the query stays.
        path: Option<String> = None,
        /// In place of the `pathPrefix` or `pathStart` that matched: `/api` to `/` makes `/api/x` `/x`.
        prefix: Option<String> = None,
        /// The host.
        host: Option<String> = None,
    }
}

impl Default for Rewrite {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// Changes to header fields, in the order `remove`, `set`, `add`. Fields that frame, route or fence a message are the gateway's own.
    Headers as "changes to headers" {
        /// Names that stay behind.
        remove: Vec<String> = Vec::new(),
        /// Fields in place of those of the same name.
        set: BTreeMap<String, String> = BTreeMap::new(),
        /// Fields besides those of the same name.
        add: BTreeMap<String, String> = BTreeMap::new(),
    }
}

impl Default for Headers {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// Conditions, all of which must hold.
    Match as "`match`" {
        /// The host without port, or a list of which one matches; `*.example.com` matches any one or more labels in front. Any when absent.
        ["host"] hosts: OneOrMany = OneOrMany::default(),
        /// The path, whole, as it is sent: percent-encoded and without query.
        path: Option<String> = None,
        /// The path's beginning, on a segment's boundary: `/orders` matches `/orders` and `/orders/7`, not `/orders7`.
        path_prefix: Option<String> = None,
        /// The path's first characters, wherever segments end: `/orders` matches `/orders7`, too. Istio's `prefix`, nginx' `location`.
        path_start: Option<String> = None,
        /// Whether the case of letters does not matter in `path`, `pathPrefix` and `pathStart`.
        ignore_path_case: bool = false,
        /// A regular expression that must match the whole path.
        path_regex: Option<String> = None,
        /// `http` or `https`: how the client came to this gateway, or to a proxy of `gateway.trustedProxies` in front of it.
        scheme: Option<RequestScheme> = None,
        /// A method or a list of them, not an empty one; any when absent.
        ["method"] methods: OneOrMany = OneOrMany::default(),
        /// Headers and their exact values, or one of `{ prefix: … }`, `{ regex: … }` and `{ present: true }`.
        headers: BTreeMap<String, Condition> = BTreeMap::new(),
        /// Headers that must not be so.
        without_headers: BTreeMap<String, Condition> = BTreeMap::new(),
        /// Parameters of the query, as they are written, and their values in the same words.
        query: BTreeMap<String, Condition> = BTreeMap::new(),
    }
}

impl Default for Match {
    fn default() -> Self {
        default_of()
    }
}

record! {
    /// A route's destination.
    Target as "`to`" {
        /// The service. In `primary-standby` mode that means its primary.
        service: ServiceName,
        /// Only instances of this version.
        version: Option<VersionName> = None,
        /// In a list: its share of the requests, beside the weights of the others; 0 gets none. 1 when absent.
        weight: Option<u32> = None,
        /// `registry`: a service that no file declares; its instances are those that are registered and whose checks do not fail.
        source: Option<Source> = None,
    }
}

words! {
    /// Where a service's instances come from.
    Source {
        /// They registered themselves, or somebody else did.
        Registry = "registry",
    }
}

record! {
    /// By what a request is told from others, in the order it is written. A request without it is sent by weight alone.
    Sticky as "`sticky`" {
        /// The value of this header field.
        header: Option<String> = None,
        /// The value of this cookie.
        cookie: Option<String> = None,
    }
}

/// A route's destinations: one, or several with their weights.
#[derive(Clone, PartialEq, Debug)]
pub struct Targets(pub Vec<Target>);

impl Targets {
    /// The destination, where there is one alone.
    pub fn single(&self) -> Option<&Target> {
        if let [target] = self.0.as_slice() { Some(target) } else { None }
    }

    /// Whether one of them is this service.
    pub fn lead_to(&self, service: &ServiceName) -> bool {
        self.0.iter().any(|target| target.service == *service)
    }
}

impl Decode for Targets {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::List(_) => Vec::decode(node, diagnostics).map(Self),
            _ => Target::decode(node, diagnostics).map(|target| Self(vec![target])),
        }
    }

    fn encode(&self) -> Value {
        self.single().map_or_else(|| self.0.encode(), Target::encode)
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        let one = Target::schema(definitions);
        json!({ "oneOf": [one.clone(), { "type": "array", "items": one }] })
    }
}

/// What a value must be like.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// This, whole.
    Exact(String),
    /// It begins so.
    Prefix(String),
    /// The expression matches all of it.
    Regex(String),
    /// It is there.
    Present,
}

impl Decode for Condition {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        const EXPECTED: &str = "a value, or one of { prefix: … }, { regex: … }, { present: true }";
        let Kind::Map(pairs) = &node.kind else {
            return text(node, EXPECTED, diagnostics).map(|exact| Self::Exact(exact.to_owned()));
        };
        let said = match pairs.as_slice() {
            [(key, value)] => match (key.name.as_str(), &value.kind) {
                ("exact", Kind::Scalar { text, .. }) => Some(Self::Exact(text.clone())),
                ("prefix", Kind::Scalar { text, .. }) => Some(Self::Prefix(text.clone())),
                ("regex", Kind::Scalar { text, .. }) => Some(Self::Regex(text.clone())),
                ("present", Kind::Scalar { text, quoted: false }) if text == "true" => Some(Self::Present),
                _ => None,
            },
            _ => None,
        };
        if said.is_none() {
            wrong(node, EXPECTED, diagnostics);
        }
        said
    }

    fn encode(&self) -> Value {
        match self {
            Self::Exact(text) => text.as_str().into(),
            Self::Prefix(text) => json!({ "prefix": text }),
            Self::Regex(text) => json!({ "regex": text }),
            Self::Present => json!({ "present": true }),
        }
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        let one = |key: &str, value: Value| json!({ "type": "object", "required": [key], "properties": { key: value }, "additionalProperties": false });
        json!({ "oneOf": [
            { "type": ["string", "number", "boolean"] },
            one("exact", json!({ "type": "string" })),
            one("prefix", json!({ "type": "string" })),
            one("regex", json!({ "type": "string" })),
            one("present", json!({ "const": true })),
        ] })
    }
}

record! {
    /// A fixed answer of the gateway's own.
    Respond as "`respond`" {
        /// Its status.
        status: u16,
        /// Its body.
        body: String = String::new(),
        /// Its fields, `content-type` among them.
        headers: BTreeMap<String, String> = BTreeMap::new(),
    }
}

record! {
    /// Who gets a copy of a route's requests.
    Mirror as "`mirror`" {
        /// The service.
        service: ServiceName,
        /// Only instances of this version.
        version: Option<VersionName> = None,
        /// Of so many of a hundred requests.
        percent: f64 = 100.0,
    }
}

/// All who get copies: one, or a list.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Mirrors(pub Vec<Mirror>);

impl Decode for Mirrors {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Map(_) => Mirror::decode(node, diagnostics).map(|mirror| Self(vec![mirror])),
            _ => Vec::decode(node, diagnostics).map(Self),
        }
    }

    fn encode(&self) -> Value {
        match self.0.as_slice() {
            [] => Value::Null,
            [one] => one.encode(),
            all => all.iter().map(Mirror::encode).collect(),
        }
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        let one = Mirror::schema(definitions);
        json!({ "oneOf": [one.clone(), { "type": "array", "items": one }] })
    }
}

record! {
    /// What pages of other origins may do. The field `Access-Control-Allow-Origin` names the origin that asks.
    CorsPolicy as "`cors`" {
        /// Whose pages: values such as `https://shop.example`, `{ prefix: … }`, `{ regex: … }`, or `*` for every origin.
        origins: Vec<Condition>,
        /// With which methods.
        methods: Vec<String> = Vec::new(),
        /// With which fields.
        headers: Vec<String> = Vec::new(),
        /// Which fields of an answer they may read.
        expose_headers: Vec<String> = Vec::new(),
        /// For how long the answer to a preflight is good.
        max_age: Option<Duration> = None,
        /// Whether they may come with cookies.
        credentials: Option<bool> = None,
    }
}

record! {
    /// Faults injected into a route's requests: the delay first, then the abort.
    Fault as "`fault`" {
        /// They wait before anything else, inside the route's `timeout`.
        delay: Option<FaultDelay> = None,
        /// The gateway answers itself, with the reason `fault`.
        abort: Option<FaultAbort> = None,
    }
}

record! {
    /// How long requests wait.
    FaultDelay as "`delay`" {
        /// So long.
        ["for"] wait: Duration,
        /// So many of a hundred.
        percent: f64 = 100.0,
    }
}

record! {
    /// What requests are answered.
    FaultAbort as "`abort`" {
        /// The status, 400 to 599.
        status: u16,
        /// So many of a hundred.
        percent: f64 = 100.0,
    }
}
