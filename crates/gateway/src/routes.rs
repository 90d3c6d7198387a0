//! Which service a request is for: an ordered list, the first route that matches wins (Istio's rule).
//! The route step of the request walk. Compiled once, swapped whole, never changed in place. Deliberately absent:
//! path normalisation; what an instance gets is what was matched.

mod index;
mod split;

use std::sync::Arc;
use std::time::Duration;

use guard::RetryPolicy;
use model::{ServiceName, VersionName};
use regex_lite::Regex;

use crate::http1::RequestHead;
use crate::metrics::{Metrics, RouteMetrics};
use crate::policy::{Policy, Redirect};
use crate::service::Service;
use index::Index;
use split::CompiledSplit;
pub use split::{Part, Split, Sticky};
use traffic::Tally;

/// One route as its author wrote it. Empty lists match everything; within a list any entry suffices.
#[derive(Clone, Debug)]
pub struct Route {
    /// What logs call it.
    pub name: String,
    /// Its requests are counted under this name; absent: only under their service's.
    pub series: Option<String>,
    /// Hosts it is for.
    pub hosts: Vec<HostMatch>,
    /// Conditions, of which one must hold.
    pub matches: Vec<Match>,
    /// What becomes of the request.
    pub action: Action,
    /// The whole request's time, holding and retries included; beyond: 504. `None`: as long as it takes.
    pub timeout: Option<Duration>,
    /// Which failed attempts are made again; the gateway's own rule when absent.
    pub retry: Option<RetryPolicy>,
    /// What is changed on the way.
    pub policy: Policy,
}

/// What becomes of a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// An instance answers.
    Forward(Target),
    /// An instance of one of several destinations answers.
    Split(Split),
    /// The client is sent elsewhere.
    Redirect(Redirect),
}

/// A host, without port, in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This name.
    Exact(String),
    /// Any name below this one: `Suffix("example.com")` is `*.example.com`, one label or more.
    Suffix(String),
}

impl HostMatch {
    /// Reads `*.example.com` or `example.com`.
    pub fn parse(host: &str) -> Self {
        match host.strip_prefix("*.") {
            Some(suffix) => Self::Suffix(suffix.to_owned()),
            None => Self::Exact(host.to_owned()),
        }
    }
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// On the path, without query.
    pub path: Option<PathMatch>,
    /// The scheme by which the client came: what the connection is, or what a trusted proxy says.
    pub scheme: Option<Scheme>,
    /// The method, exactly.
    pub method: Option<String>,
    /// On header fields, names in any case.
    pub headers: Vec<(String, ValueMatch)>,
}

/// How a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Under TLS.
    Https,
}

impl Scheme {
    /// As it stands in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A path's condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments, as the Kubernetes Gateway API's `PathPrefix`: `/a` matches `/a`, `/a/` and `/a/b`, not `/ab`.
    /// A slash at the end is ignored; `/` matches everything.
    Prefix(String),
    /// A regular expression that must match the whole path (as RE2 in Istio).
    Regex(String),
}

/// A header value's condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueMatch {
    /// The field is there.
    Present,
    /// One field of the name has this value.
    Exact(String),
    /// One field of the name begins so.
    Prefix(String),
    /// One field of the name matches wholly.
    Regex(String),
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The service.
    pub service: ServiceName,
    /// Only its instances of this version.
    pub version: Option<VersionName>,
}

/// A route that cannot be compiled; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("route {route}: {expression:?} is no regular expression: {source}")]
pub struct RouteError {
    /// The route's name.
    pub route: String,
    /// What its author wrote.
    pub expression: String,
    /// What is wrong with it.
    pub source: regex_lite::Error,
}

/// Fewer routes than this are walked: that takes less time than to look anything up.
const INDEXED: usize = 16;

/// Routes ready for use.
#[derive(Debug, Default)]
pub struct Routes {
    list: Vec<Arc<CompiledRoute>>,
    /// Of a long list.
    index: Option<Index>,
}

/// One route with its service at hand.
#[derive(Debug)]
pub(crate) struct CompiledRoute {
    pub(crate) action: CompiledAction,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Option<RetryPolicy>,
    pub(crate) policy: Policy,
    pub(crate) series: Option<RouteSeries>,
    hosts: Vec<HostMatch>,
    matches: Vec<CompiledMatch>,
}

/// A route that is counted by itself.
#[derive(Debug)]
pub(crate) struct RouteSeries {
    pub(crate) name: String,
    pub(crate) metrics: RouteMetrics,
}

#[derive(Debug)]
pub(crate) enum CompiledAction {
    Forward(Destination),
    Split(CompiledSplit),
    Redirect(Redirect),
}

/// A service at hand.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(crate) service: Arc<Service>,
    pub(crate) version: Option<VersionName>,
    /// Somebody asks what becomes of its requests.
    pub(crate) tally: Option<Arc<Tally>>,
}

#[derive(Debug)]
struct CompiledMatch {
    scheme: Option<Scheme>,
    path: Option<CompiledPath>,
    method: Option<String>,
    headers: Vec<(String, CompiledValue)>,
}

#[derive(Debug)]
enum CompiledPath {
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum CompiledValue {
    Present,
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

impl Routes {
    /// Compiles routes in their order; `service` gives each target's handle.
    pub(crate) fn compile(
        routes: Vec<Route>,
        mut service: impl FnMut(&ServiceName) -> Arc<Service>,
        metrics: &Metrics,
    ) -> Result<Self, RouteError> {
        let mut compiled = Vec::with_capacity(routes.len());
        for mut route in routes {
            let wanted = std::mem::take(&mut route.matches);
            let matches =
                wanted.into_iter().map(|wanted| compile_match(&route.name, wanted)).collect::<Result<_, _>>()?;
            compiled.push((matches, route));
        }
        // Neighbours often lead to the same service: it is asked for once.
        let mut last: Option<Arc<Service>> = None;
        let mut service = |name: &ServiceName| {
            last = last.take().filter(|last| last.name() == name).or_else(|| Some(service(name)));
            last.clone().expect("just put there")
        };
        // Services come into being only once every route is known to be good.
        let finish = |(matches, route): (Vec<CompiledMatch>, Route)| {
            Arc::new(CompiledRoute {
                action: match route.action {
                    Action::Forward(target) => CompiledAction::Forward(Destination {
                        service: service(&target.service),
                        version: target.version,
                        tally: None,
                    }),
                    Action::Split(split) => CompiledAction::Split(CompiledSplit::of(split, &mut service)),
                    Action::Redirect(redirect) => CompiledAction::Redirect(redirect),
                },
                timeout: route.timeout,
                retry: route.retry,
                policy: route.policy,
                series: route.series.map(|name| RouteSeries { metrics: metrics.route(&name), name }),
                hosts: route.hosts,
                matches,
            })
        };
        let list: Vec<_> = compiled.into_iter().map(finish).collect();
        let index = (list.len() >= INDEXED).then(|| Index::of(&list));
        Ok(Self { list, index })
    }

    /// Names under which routes are counted.
    pub(crate) fn series(&self) -> impl Iterator<Item = &str> {
        self.list.iter().filter_map(|route| route.series.as_ref()).map(|series| series.name.as_str())
    }

    /// The first route that matches.
    pub(crate) fn find(&self, head: &RequestHead, scheme: Scheme) -> Option<&Arc<CompiledRoute>> {
        match &self.index {
            None => self.list.iter().find(|route| route.accepts(head, scheme)),
            Some(index) => {
                let found = index.first(head.host(), head.path(), |number| self.list[number].accepts(head, scheme));
                found.map(|number| &self.list[number])
            }
        }
    }
}

impl CompiledRoute {
    /// Which of its destinations takes a request.
    pub(crate) fn choose(&self, head: &RequestHead) -> u8 {
        let CompiledAction::Split(split) = &self.action else { return 0 };
        u8::try_from(split.choose(head)).unwrap_or(0)
    }

    /// One of the destinations it leads to.
    pub(crate) fn destination(&self, chosen: u8) -> Option<&Destination> {
        match &self.action {
            CompiledAction::Forward(to) => Some(to),
            CompiledAction::Split(split) => split.parts.get(usize::from(chosen)),
            CompiledAction::Redirect(_) => None,
        }
    }

    /// The prefix by which it matches this request, if by one.
    pub(crate) fn matched_prefix(&self, head: &RequestHead, scheme: Scheme) -> Option<&str> {
        let matched = self.matches.iter().find(|wanted| wanted.accepts(head, scheme))?;
        match &matched.path {
            Some(CompiledPath::Prefix(prefix)) => Some(prefix),
            _ => None,
        }
    }

    fn accepts(&self, head: &RequestHead, scheme: Scheme) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|host| host_matches(host, head.host())))
            && (self.matches.is_empty() || self.matches.iter().any(|wanted| wanted.accepts(head, scheme)))
    }
}

impl CompiledMatch {
    fn accepts(&self, head: &RequestHead, scheme: Scheme) -> bool {
        self.scheme.is_none_or(|wanted| wanted == scheme)
            && self.method.as_ref().is_none_or(|method| method.as_bytes() == head.method())
            && self.path.as_ref().is_none_or(|path| path.accepts(head.path()))
            && self.headers.iter().all(|(name, value)| {
                let bytes = head.bytes();
                head.fields.headers.iter().any(|header| {
                    header.name.get(bytes).eq_ignore_ascii_case(name.as_bytes())
                        && value.accepts(header.value.get(bytes))
                })
            })
    }
}

impl CompiledPath {
    fn accepts(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            Self::Regex(regex) => matches_wholly(regex, path),
        }
    }
}

impl CompiledValue {
    fn accepts(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
            Self::Regex(regex) => matches_wholly(regex, value),
        }
    }
}

fn matches_wholly(regex: &Regex, bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| regex.is_match(text))
}

fn host_matches(wanted: &HostMatch, host: &[u8]) -> bool {
    match wanted {
        HostMatch::Exact(exact) => host.eq_ignore_ascii_case(exact.as_bytes()),
        HostMatch::Suffix(suffix) => {
            let Some(label) = host.len().checked_sub(suffix.len() + 1) else { return false };
            label > 0 && host[label] == b'.' && host[label + 1..].eq_ignore_ascii_case(suffix.as_bytes())
        }
    }
}

fn compile_match(route: &str, wanted: Match) -> Result<CompiledMatch, RouteError> {
    let regex = |expression: &str| {
        Regex::new(&format!("^(?:{expression})$")).map_err(|source| RouteError {
            route: route.to_owned(),
            expression: expression.to_owned(),
            source,
        })
    };
    let path = match wanted.path {
        None => None,
        Some(PathMatch::Exact(exact)) => Some(CompiledPath::Exact(exact)),
        Some(PathMatch::Prefix(mut prefix)) => {
            prefix.truncate(prefix.trim_end_matches('/').len());
            Some(CompiledPath::Prefix(prefix))
        }
        Some(PathMatch::Regex(expression)) => Some(CompiledPath::Regex(regex(&expression)?)),
    };
    let value = |wanted: ValueMatch| {
        Ok(match wanted {
            ValueMatch::Present => CompiledValue::Present,
            ValueMatch::Exact(exact) => CompiledValue::Exact(exact),
            ValueMatch::Prefix(prefix) => CompiledValue::Prefix(prefix),
            ValueMatch::Regex(expression) => CompiledValue::Regex(regex(&expression)?),
        })
    };
    let headers = wanted.headers.into_iter().map(|(name, wanted)| Ok((name, value(wanted)?)));
    Ok(CompiledMatch {
        scheme: wanted.scheme,
        path,
        method: wanted.method,
        headers: headers.collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::{HostMatch, Match, PathMatch, Scheme, ValueMatch, compile_match, host_matches};
    use crate::http1::{Limits, RequestHead};

    fn accepts(wanted: Match, head: &str) -> bool {
        let mut request = RequestHead::default();
        request.parse(head.as_bytes(), &Limits::default()).unwrap();
        compile_match("r", wanted).unwrap().accepts(&request, Scheme::Https)
    }

    #[test]
    fn paths() {
        let prefix = |text: &str| PathMatch::Prefix(text.to_owned());
        let regex = |text: &str| PathMatch::Regex(text.to_owned());
        for (path, target, want) in [
            (prefix("/"), "/", true),
            (prefix("/"), "/x/y", true),
            (prefix("/a"), "/a", true),
            (prefix("/a"), "/a/", true),
            (prefix("/a"), "/a/b?c", true),
            (prefix("/a"), "/ab", false),
            (prefix("/a"), "/A", false),
            (prefix("/a/"), "/a", true),
            (PathMatch::Exact("/a".into()), "/a?x", true),
            (PathMatch::Exact("/a".into()), "/a/", false),
            (regex("/v[0-9]+/.*"), "/v12/x", true),
            (regex("/v[0-9]+"), "/v12/x", false),
            (regex("/a|/b"), "/xb", false),
        ] {
            let wanted = Match { path: Some(path.clone()), ..Match::default() };
            let got = accepts(wanted, &format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!(got, want, "{path:?} on {target}");
        }
    }

    #[test]
    fn hosts() {
        for (pattern, host, want) in [
            ("a.b", "A.b", true),
            ("a.b", "x.a.b", false),
            ("*.b", "a.b", true),
            ("*.b", "x.A.B", true),
            ("*.b", "b", false),
            ("*.b", ".b", false),
            ("*.b", "ab", false),
        ] {
            assert_eq!(host_matches(&HostMatch::parse(pattern), host.as_bytes()), want, "{pattern} on {host}");
        }
    }

    #[test]
    fn methods_and_headers() {
        let head = "PUT / HTTP/1.1\r\nHost: h\r\nX-User: bob\r\nx-user: eve\r\n\r\n";
        let with = |value| Match { headers: vec![("x-USER".into(), value)], ..Match::default() };
        assert!(accepts(with(ValueMatch::Present), head));
        assert!(accepts(with(ValueMatch::Exact("eve".into())), head));
        assert!(accepts(with(ValueMatch::Prefix("bo".into())), head));
        assert!(!accepts(with(ValueMatch::Regex("b".into())), head));
        assert!(accepts(Match { scheme: Some(Scheme::Https), ..Match::default() }, head));
        assert!(!accepts(Match { scheme: Some(Scheme::Http), ..Match::default() }, head));
        assert!(accepts(Match { method: Some("PUT".into()), ..Match::default() }, head));
        assert!(!accepts(Match { method: Some("put".into()), ..Match::default() }, head));
        let bad = Match { path: Some(PathMatch::Regex("(".into())), ..Match::default() };
        assert_eq!(compile_match("r", bad).unwrap_err().route, "r");
    }
}
