//! What a request of a Consul client asks for besides its path: consistency, what to wait for, what to leave out. Parameters
//! that mean nothing here are passed over, as Consul does; one that means something and cannot be read is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use discovery::acl::{Access, Kind, Scalar};
use discovery::bexpr::Filter;
use discovery::duration;
use discovery::select::Wanted;
use serde_json::Value;

use super::caller::{self, Caller};
use super::reply::Trouble;
use crate::Context;

/// How long a blocking query waits unless it says otherwise; Consul's default.
const WAIT: Duration = Duration::from_secs(300);
/// The longest one may wait; Consul's bound.
const MAX_WAIT: Duration = Duration::from_secs(600);
/// Parameters of a request at most.
const MAX_PARAMETERS: usize = 256;

/// The parameters of a request, and who calls while ACLs are on.
#[derive(Clone, Debug, Default)]
pub struct Ask(Vec<(String, String)>, Option<Caller>);

impl FromRequestParts<Context> for Ask {
    type Rejection = Trouble;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, Trouble> {
        let given: Query<Vec<(String, String)>> =
            Query::try_from_uri(&parts.uri).map_err(|error| Trouble::bad(error.body_text()))?;
        if given.0.len() > MAX_PARAMETERS {
            return Err(Trouble::bad(format!("{MAX_PARAMETERS} parameters at most")));
        }
        let mut ask = Self(given.0, None);
        if let Some(guard) = context.discovery.guard() {
            // Whoever let the request through has recognized its caller already.
            ask.1 = match parts.extensions.get::<Caller>() {
                Some(known) => Some(known.clone()),
                None => {
                    let secret = caller::token(&parts.headers, ask.get("token"));
                    Some(Caller::recognize(context, guard, secret).await?)
                }
            };
        }
        Ok(ask)
    }
}

impl Ask {
    /// The first value of a parameter, unless it is empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        let of_name = self.0.iter().find(|(known, _)| known == name);
        of_name.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is there at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(known, _)| known == name)
    }

    /// Whether a parameter is there and does not say no.
    pub fn is_on(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name), Some("false" | "0" | "f" | "False"))
    }

    /// All values of a parameter.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// A whole number.
    ///
    /// # Errors
    /// It is none.
    pub fn number(&self, name: &str) -> Result<Option<u64>, Trouble> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| Trouble::bad(format!("Invalid {name}: a whole number is expected, not {text:?}")))
    }

    /// What this node has, though others may know more.
    pub fn is_stale(&self) -> bool {
        self.has("stale")
    }

    /// Consul's word for how fresh the answer is.
    pub fn consistency(&self) -> &'static str {
        match (self.has("stale"), self.has("consistent")) {
            (true, _) => "stale",
            (false, true) => "consistent",
            (false, false) => "leader",
        }
    }

    /// Refuses what contradicts itself, and what is about another site.
    ///
    /// # Errors
    /// See there.
    pub fn check(&self, datacenter: &str) -> Result<(), Trouble> {
        if self.has("stale") && self.has("consistent") {
            return Err(Trouble::bad("Cannot specify ?stale with ?consistent, conflicting semantics."));
        }
        match self.get("dc") {
            Some(dc) if !dc.eq_ignore_ascii_case(datacenter) => {
                Err(Trouble::failed(format!("No path to datacenter: {dc:?} is not known here, this is {datacenter:?}")))
            }
            _ => Ok(()),
        }
    }

    /// What is known already: the answer waits for something newer. `-1` is none: Spring begins so.
    ///
    /// # Errors
    /// It is no number.
    pub fn index(&self) -> Result<Option<u64>, Trouble> {
        if self.get("index") == Some("-1") {
            return Ok(None);
        }
        let index = self.number("index").map_err(|_| Trouble::bad("Invalid index"))?;
        Ok(index.filter(|index| *index > 0))
    }

    /// For how long; with a little more for each, so that those who began together do not end together.
    ///
    /// # Errors
    /// It is no duration.
    pub fn wait(&self) -> Result<Duration, Trouble> {
        let wait = match self.get("wait") {
            None => WAIT,
            Some(text) => duration::parse(text).ok_or_else(|| Trouble::bad("Invalid wait time"))?,
        };
        let wait = if wait.is_zero() { WAIT } else { wait.min(MAX_WAIT) };
        let chance = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos() % 1000);
        Ok(wait + wait / 16 * chance / 1000)
    }

    /// A filter, if there is one.
    ///
    /// # Errors
    /// It is none.
    pub fn filter(&self) -> Result<Option<Filter>, Trouble> {
        let parsed = self.get("filter").map(Filter::parse).transpose();
        parsed.map_err(|error| Trouble::bad(format!("Failed to create boolean expression evaluator: {error}")))
    }

    /// What nodes must say of themselves.
    ///
    /// # Errors
    /// It is no `key:value`.
    pub fn node_meta(&self) -> BTreeMap<String, String> {
        let pair = |text: String| match text.split_once(':') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (text, String::new()),
        };
        self.all("node-meta").into_iter().map(pair).collect()
    }

    /// Which instances.
    pub fn wanted(&self) -> Wanted {
        Wanted { tags: self.all("tag"), node_meta: self.node_meta(), passing: self.is_on("passing") }
    }

    /// The same without a parameter.
    pub fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|(known, _)| known != name).cloned().collect(), self.1.clone())
    }

    /// Who calls; nobody is asked about while ACLs are off.
    pub fn caller(&self) -> Option<&Caller> {
        self.1.as_ref()
    }

    /// Who calls, if something may have to be left out of an answer.
    pub fn limited(&self) -> Option<&Caller> {
        self.1.as_ref().filter(|caller| !caller.identity().rights.is_management())
    }

    /// Whether a thing may be shown.
    pub fn sees(&self, kind: Kind, name: &str) -> bool {
        self.1.as_ref().is_none_or(|caller| caller.sees(kind, name))
    }

    /// Whether an instance may be shown: it needs both, as in Consul. What belongs to no service is its machine's.
    pub fn sees_on(&self, node: &str, service: &str) -> bool {
        self.1.as_ref().is_none_or(|caller| {
            caller.sees(Kind::Node, node) && (service.is_empty() || caller.sees(Kind::Service, service))
        })
    }

    /// Refuses who may not.
    ///
    /// # Errors
    /// It may not.
    pub fn require(&self, kind: Kind, name: &str, access: Access) -> Result<(), Trouble> {
        self.1.as_ref().map_or(Ok(()), |caller| caller.require(kind, name, access))
    }

    /// The same for what there is one of.
    ///
    /// # Errors
    /// It may not.
    pub fn require_in(&self, scalar: Scalar, access: Access) -> Result<(), Trouble> {
        self.1.as_ref().map_or(Ok(()), |caller| caller.require_in(scalar, access))
    }

    /// Refuses who may not change an instance, or what belongs to a machine alone.
    ///
    /// # Errors
    /// It may not.
    pub fn require_change(&self, node: &str, service: &str) -> Result<(), Trouble> {
        if service.is_empty() {
            self.require(Kind::Node, node, Access::Write)
        } else {
            self.require(Kind::Service, service, Access::Write)
        }
    }

    /// Whether the answer is for people.
    pub fn is_pretty(&self) -> bool {
        self.has("pretty")
    }
}

/// Narrows a list, or an object of objects, to what fits.
///
/// # Errors
/// The filter names something that is not there.
pub fn narrow(filter: Option<&Filter>, value: &mut Value) -> Result<(), Trouble> {
    let Some(filter) = filter else { return Ok(()) };
    let wrong = |error: discovery::bexpr::FilterError| Trouble::bad(error.to_string());
    match value {
        Value::Array(list) => filter.keep(list).map_err(wrong),
        Value::Object(object) => {
            let mut kept = serde_json::Map::new();
            for (key, one) in std::mem::take(object) {
                if filter.fits(&one).map_err(wrong)? {
                    kept.insert(key, one);
                }
            }
            *object = kept;
            Ok(())
        }
        _ => Ok(()),
    }
}
