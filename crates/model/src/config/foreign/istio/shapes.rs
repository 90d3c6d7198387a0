//! Istio's VirtualServices as they are written, and what every object has: `networking.istio.io` `v1`, `v1beta1` and `v1alpha3` have the same fields.
//! Fields read as [`Ignored`] are known to Istio; whether they are refused is said where they would be used.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use super::super::super::Condition;
use super::super::super::decode::{Decode, record, wrong};
use super::super::super::yaml::{Kind, Node};
use super::super::Ignored;
use crate::diagnostic::Diagnostics;

/// `exact`, `prefix` or `regex`; of a header an empty one means that it is there.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct StringMatch(pub Condition);

impl Decode for StringMatch {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        match &node.kind {
            Kind::Null => Some(Self(Condition::Present)),
            Kind::Map(pairs) if pairs.is_empty() => Some(Self(Condition::Present)),
            Kind::Map(pairs) if pairs.iter().all(|(key, _)| key.name != "present") => {
                Condition::decode(node, diagnostics).map(Self)
            }
            _ => {
                wrong(node, "one of { exact: … }, { prefix: … }, { regex: … }", diagnostics);
                None
            }
        }
    }

    fn encode(&self) -> Value {
        self.0.encode()
    }

    fn schema(definitions: &mut BTreeMap<String, Value>) -> Value {
        Condition::schema(definitions)
    }
}

/// What tells objects apart; whatever else a cluster keeps there is passed over.
#[derive(Clone, PartialEq, Debug, Default)]
pub(super) struct Metadata {
    /// `NAMESPACE/NAME`, or the name alone; empty when there is none.
    pub name: String,
}

impl Decode for Metadata {
    fn decode(node: &Node, diagnostics: &mut Diagnostics) -> Option<Self> {
        let pairs = match &node.kind {
            Kind::Map(pairs) => pairs.as_slice(),
            Kind::Null => &[],
            _ => {
                wrong(node, "a mapping with `name`", diagnostics);
                return None;
            }
        };
        let mut field = |name: &str| match pairs.iter().find(|(key, _)| key.name == name) {
            Some((_, value)) => String::decode(value, diagnostics),
            None => Some(String::new()),
        };
        let (namespace, name) = (field("namespace")?, field("name")?);
        Some(Self { name: if namespace.is_empty() { name } else { format!("{namespace}/{name}") } })
    }

    fn encode(&self) -> Value {
        serde_json::json!({ "name": self.name })
    }

    fn schema(_: &mut BTreeMap<String, Value>) -> Value {
        serde_json::json!({ "type": "object" })
    }
}

record! {
    /// An object of either kind.
    VirtualService as "a VirtualService" {
        /// Which version of Istio's interface.
        api_version: String,
        /// `VirtualService`.
        kind: String,
        /// Its name.
        metadata: Metadata = Metadata::default(),
        /// What it says.
        spec: Spec,
        /// What a cluster says of it.
        status: Option<Ignored> = None,
    }
}

record! {
    /// Routes of hosts.
    Spec as "`spec` of a VirtualService" {
        /// For which hosts.
        hosts: Vec<String>,
        /// At which gateways: this one is all of them.
        gateways: Option<Ignored> = None,
        /// The routes.
        http: Vec<HttpRoute> = Vec::new(),
        /// Refused.
        tls: Option<Ignored> = None,
        /// Refused.
        tcp: Option<Ignored> = None,
        /// Refused.
        export_to: Option<Ignored> = None,
    }
}

record! {
    /// A route.
    HttpRoute as "`http` of a VirtualService" {
        /// Under which it is counted.
        name: Option<String> = None,
        /// Any of these.
        ["match"] matches: Vec<HttpMatch> = Vec::new(),
        /// Where to.
        route: Vec<HttpDestination> = Vec::new(),
        /// Elsewhere.
        redirect: Option<HttpRedirect> = None,
        /// A fixed answer.
        direct_response: Option<DirectResponse> = None,
        /// Refused.
        delegate: Option<Ignored> = None,
        /// Another target.
        rewrite: Option<HttpRewrite> = None,
        /// 0 is none.
        timeout: Option<Duration> = None,
        /// What is repeated.
        retries: Option<HttpRetries> = None,
        /// What is done on purpose.
        fault: Option<HttpFault> = None,
        /// One copy.
        mirror: Option<DestinationRef> = None,
        /// Several.
        mirrors: Vec<HttpMirror> = Vec::new(),
        /// Of `mirror`.
        mirror_percentage: Option<Percent> = None,
        /// The same, of before.
        mirror_percent: Option<f64> = None,
        /// What pages of other origins may do.
        cors_policy: Option<Cors> = None,
        /// Changes to fields.
        headers: Option<HeaderOperations> = None,
    }
}

record! {
    /// What pages of other origins may do.
    Cors as "`corsPolicy` of a VirtualService" {
        /// Whose pages.
        allow_origins: Vec<StringMatch> = Vec::new(),
        /// The same, of before.
        allow_origin: Vec<String> = Vec::new(),
        /// With which methods.
        allow_methods: Vec<String> = Vec::new(),
        /// With which fields.
        allow_headers: Vec<String> = Vec::new(),
        /// Which fields they may read.
        expose_headers: Vec<String> = Vec::new(),
        /// For how long a preflight is good.
        max_age: Option<Duration> = None,
        /// Whether with cookies.
        allow_credentials: Option<bool> = None,
        /// What becomes of other preflights.
        unmatched_preflights: Option<String> = None,
    }
}

record! {
    /// Conditions that all must hold.
    HttpMatch as "`match` of a VirtualService" {
        /// Of itself.
        name: Option<Ignored> = None,
        /// The path.
        uri: Option<StringMatch> = None,
        /// http or https.
        scheme: Option<StringMatch> = None,
        /// The method.
        method: Option<StringMatch> = None,
        /// The host, with its port.
        authority: Option<StringMatch> = None,
        /// Fields.
        headers: BTreeMap<String, StringMatch> = BTreeMap::new(),
        /// Fields that must not be so.
        without_headers: BTreeMap<String, StringMatch> = BTreeMap::new(),
        /// Parameters.
        query_params: BTreeMap<String, StringMatch> = BTreeMap::new(),
        /// Of `uri`.
        ignore_uri_case: bool = false,
        /// Refused.
        port: Option<Ignored> = None,
        /// Refused.
        source_labels: Option<Ignored> = None,
        /// Refused.
        source_namespace: Option<Ignored> = None,
        /// Refused.
        gateways: Option<Ignored> = None,
        /// Refused.
        stat_prefix: Option<Ignored> = None,
    }
}

record! {
    /// Who.
    DestinationRef as "a destination" {
        /// The service.
        host: String,
        /// Its subset.
        subset: Option<String> = None,
        /// A service has one port here.
        port: Option<Port> = None,
    }
}

record! {
    /// A port.
    Port as "`port`" {
        /// Its number.
        number: u16,
    }
}

record! {
    /// A share.
    HttpDestination as "`route` of a VirtualService" {
        /// Who.
        destination: DestinationRef,
        /// How much.
        weight: Option<u32> = None,
        /// Changes to fields of this share.
        headers: Option<HeaderOperations> = None,
    }
}

record! {
    /// A copy.
    HttpMirror as "`mirrors` of a VirtualService" {
        /// Who.
        destination: DestinationRef,
        /// How many.
        percentage: Option<Percent> = None,
    }
}

record! {
    /// A part.
    Percent as "a percentage" {
        /// Of a hundred.
        value: f64 = 0.0,
    }
}

record! {
    /// Elsewhere.
    HttpRedirect as "`redirect` of a VirtualService" {
        /// The whole path.
        uri: Option<String> = None,
        /// Host, or host and port.
        authority: Option<String> = None,
        /// The port.
        port: Option<u16> = None,
        /// Refused.
        derive_port: Option<Ignored> = None,
        /// http or https.
        scheme: Option<String> = None,
        /// The status.
        redirect_code: u16 = 301,
    }
}

record! {
    /// A fixed answer.
    DirectResponse as "`directResponse` of a VirtualService" {
        /// Its status.
        status: u16,
        /// Its body.
        body: Option<DirectBody> = None,
    }
}

record! {
    /// A body.
    DirectBody as "`body` of a `directResponse`" {
        /// As text.
        string: String = String::new(),
        /// Refused.
        bytes: Option<Ignored> = None,
    }
}

record! {
    /// Another target.
    HttpRewrite as "`rewrite` of a VirtualService" {
        /// In place of the prefix that matched, or of the whole path.
        uri: Option<String> = None,
        /// The host.
        authority: Option<String> = None,
        /// Refused.
        uri_regex_rewrite: Option<Ignored> = None,
    }
}

record! {
    /// What is repeated.
    HttpRetries as "`retries` of a VirtualService" {
        /// So many more.
        attempts: u32 = 0,
        /// Of each.
        per_try_timeout: Option<Duration> = None,
        /// Envoy's words.
        retry_on: Option<String> = None,
        /// Refused.
        retry_remote_localities: Option<Ignored> = None,
        /// Always so here.
        retry_ignore_previous_hosts: bool = true,
        /// The first pause.
        backoff: Duration = Duration::from_millis(25),
    }
}

record! {
    /// What is done on purpose.
    HttpFault as "`fault` of a VirtualService" {
        /// Waiting.
        delay: Option<HttpDelay> = None,
        /// Answering.
        abort: Option<HttpAbort> = None,
    }
}

record! {
    /// Waiting.
    HttpDelay as "`delay` of a VirtualService" {
        /// So long.
        fixed_delay: Duration,
        /// How many; none when absent.
        percentage: Option<Percent> = None,
        /// The same, of before.
        percent: Option<f64> = None,
        /// Refused.
        exponential_delay: Option<Ignored> = None,
    }
}

record! {
    /// Answering.
    HttpAbort as "`abort` of a VirtualService" {
        /// With this.
        http_status: Option<u16> = None,
        /// How many; none when absent.
        percentage: Option<Percent> = None,
        /// Refused.
        grpc_status: Option<Ignored> = None,
        /// Refused.
        http2_error: Option<Ignored> = None,
    }
}

record! {
    /// Changes to fields.
    HeaderOperations as "`headers` of a VirtualService" {
        /// Towards the service.
        request: Option<Operations> = None,
        /// Towards the client.
        response: Option<Operations> = None,
    }
}

record! {
    /// Changes in one direction.
    Operations as "changes to headers" {
        /// In place of others.
        set: BTreeMap<String, String> = BTreeMap::new(),
        /// Besides others.
        add: BTreeMap<String, String> = BTreeMap::new(),
        /// Left behind.
        remove: Vec<String> = Vec::new(),
    }
}
