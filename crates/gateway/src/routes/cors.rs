//! Which pages of other origins may read a route's answers (the Fetch standard's CORS protocol), as Envoy's filter does for
//! Istio's `corsPolicy`: preflights of origins that are allowed are answered by the gateway, their other requests' answers get
//! fields; everybody else's pass as they are. Part of the route step. Deliberately absent: refusing requests, which is the
//! browser's.

use super::RouteError;
use super::matching::{CompiledMatch, Match, Scheme, ValueMatch, compile_match};
use crate::guards::Fallback;
use crate::http1::RequestHead;

/// What pages of other origins may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// Whose pages; without any, those of every origin.
    pub origins: Vec<ValueMatch>,
    /// With which methods, as the field has them.
    pub methods: String,
    /// With which fields.
    pub headers: String,
    /// Which fields of an answer they may read.
    pub exposed: String,
    /// For how many seconds a preflight's answer is good.
    pub max_age: Option<u64>,
    /// Whether with cookies.
    pub credentials: Option<bool>,
}

/// It, ready for use.
#[derive(Debug)]
pub(crate) struct CompiledCors {
    told: Cors,
    origins: Vec<CompiledMatch>,
}

impl CompiledCors {
    pub(super) fn of(route: &str, told: Cors) -> Result<Self, RouteError> {
        let origin = |wanted: &ValueMatch| {
            compile_match(route, Match { headers: vec![("origin".into(), wanted.clone())], ..Match::default() })
        };
        let origins = told.origins.iter().map(origin).collect::<Result<_, _>>()?;
        Ok(Self { told, origins })
    }

    /// Whether a request is of an origin that is allowed.
    pub(crate) fn allows(&self, head: &RequestHead, scheme: Scheme) -> bool {
        field(head, b"origin").is_some()
            && (self.origins.is_empty() || self.origins.iter().any(|wanted| wanted.accepts(head, scheme)))
    }

    /// The answer to a preflight of such an origin.
    pub(crate) fn preflight(&self, head: &RequestHead, scheme: Scheme) -> Option<Fallback> {
        let asks = head.method() == b"OPTIONS" && field(head, b"access-control-request-method").is_some();
        if !asks || !self.allows(head, scheme) {
            return None;
        }
        let mut headers = self.common(head);
        for (name, value) in [("Methods", &self.told.methods), ("Headers", &self.told.headers)] {
            if !value.is_empty() {
                headers.push((format!("Access-Control-Allow-{name}"), value.clone()));
            }
        }
        headers.extend(self.told.max_age.map(|age| ("Access-Control-Max-Age".to_owned(), age.to_string())));
        Some(Fallback { status: 200, headers, body: Vec::new() })
    }

    /// What an answer to such an origin gets.
    pub(crate) fn fields(&self, head: &RequestHead) -> Vec<(String, String)> {
        let mut fields = self.common(head);
        if !self.told.exposed.is_empty() {
            fields.push(("Access-Control-Expose-Headers".to_owned(), self.told.exposed.clone()));
        }
        fields
    }

    fn common(&self, head: &RequestHead) -> Vec<(String, String)> {
        let origin = String::from_utf8_lossy(field(head, b"origin").unwrap_or_default()).into_owned();
        let mut fields = vec![("Access-Control-Allow-Origin".to_owned(), origin)];
        if self.told.credentials == Some(true) {
            fields.push(("Access-Control-Allow-Credentials".to_owned(), "true".to_owned()));
        }
        fields
    }
}

fn field<'h>(head: &'h RequestHead, name: &[u8]) -> Option<&'h [u8]> {
    let bytes = head.bytes();
    let named = head.fields.headers.iter().find(|header| header.name.get(bytes).eq_ignore_ascii_case(name));
    named.map(|header| header.value.get(bytes)).filter(|value| !value.is_empty())
}
