//! What a route asks of a request, as its author wrote it and ready for use: hosts, path, method, fields, query.
//! Part of the route step. Deliberately absent: which route is asked (`index.rs`), and normalisation of any kind.

use regex_lite::Regex;

use super::RouteError;
use crate::http1::RequestHead;

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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// On the path, without query.
    pub path: Option<PathMatch>,
    /// The scheme by which the client came: what the connection is, or what a trusted proxy says.
    pub scheme: Option<Scheme>,
    /// The method, exactly.
    pub method: Option<String>,
    /// On header fields, names in any case.
    pub headers: Vec<(String, ValueMatch)>,
    /// On header fields of which none may be so.
    pub without: Vec<(String, ValueMatch)>,
    /// On parameters of the query, as they are written.
    pub query: Vec<(String, ValueMatch)>,
    /// Whether the case of letters in the path matters not; regular expressions say that themselves.
    pub ignore_path_case: bool,
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
    /// The path's first bytes, wherever segments end: Istio's and Envoy's `prefix`, nginx' `location`.
    Start(String),
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

#[derive(Clone, Debug)]
pub(crate) struct CompiledMatch {
    scheme: Option<Scheme>,
    pub(super) path: Option<CompiledPath>,
    method: Option<String>,
    headers: Vec<(String, CompiledValue)>,
    without: Vec<(String, CompiledValue)>,
    query: Vec<(String, CompiledValue)>,
}

#[derive(Clone, Debug)]
pub(crate) enum CompiledPath {
    Exact(String),
    Prefix(String),
    Start(String),
    /// Letters in any case.
    Caseless(Box<CompiledPath>),
    Regex(Regex),
}

#[derive(Clone, Debug)]
enum CompiledValue {
    Present,
    Exact(String),
    Prefix(String),
    Regex(Regex),
}

impl CompiledMatch {
    pub(crate) fn accepts(&self, head: &RequestHead, scheme: Scheme) -> bool {
        self.scheme.is_none_or(|wanted| wanted == scheme)
            && self.method.as_ref().is_none_or(|method| method.as_bytes() == head.method())
            && self.path.as_ref().is_none_or(|path| path.accepts(head.path()))
            && self.headers.iter().all(|(name, value)| has_field(head, name, value))
            && !self.without.iter().any(|(name, value)| has_field(head, name, value))
            && self.query.iter().all(|(name, value)| has_parameter(head, name.as_bytes(), value))
    }

    /// The part of a path that stands for the route, if it is one.
    pub(super) fn prefix(&self) -> Option<&str> {
        match &self.path {
            Some(CompiledPath::Prefix(prefix) | CompiledPath::Start(prefix)) => Some(prefix),
            Some(CompiledPath::Caseless(path)) => match &**path {
                CompiledPath::Prefix(prefix) | CompiledPath::Start(prefix) => Some(prefix),
                _ => None,
            },
            _ => None,
        }
    }
}

fn has_field(head: &RequestHead, name: &str, value: &CompiledValue) -> bool {
    let bytes = head.bytes();
    head.fields.headers.iter().any(|header| {
        header.name.get(bytes).eq_ignore_ascii_case(name.as_bytes()) && value.accepts(header.value.get(bytes))
    })
}

fn has_parameter(head: &RequestHead, name: &[u8], value: &CompiledValue) -> bool {
    let target = head.path_and_query();
    let Some(begin) = memchr::memchr(b'?', target) else { return false };
    target[begin + 1..].split(|&byte| byte == b'&').any(|pair| match memchr::memchr(b'=', pair) {
        Some(equals) => &pair[..equals] == name && value.accepts(&pair[equals + 1..]),
        None => pair == name && value.accepts(b""),
    })
}

impl CompiledPath {
    fn accepts(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == path,
            Self::Prefix(prefix) => {
                path.strip_prefix(prefix.as_bytes()).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
            }
            Self::Start(start) => path.starts_with(start.as_bytes()),
            Self::Caseless(wanted) => wanted.accepts_caseless(path),
            Self::Regex(regex) => matches_wholly(regex, path),
        }
    }

    fn accepts_caseless(&self, path: &[u8]) -> bool {
        let begins = |part: &str| {
            let rest = path.get(part.len()..)?;
            path[..part.len()].eq_ignore_ascii_case(part.as_bytes()).then_some(rest)
        };
        match self {
            Self::Exact(exact) => exact.as_bytes().eq_ignore_ascii_case(path),
            Self::Prefix(prefix) => begins(prefix).is_some_and(|rest| rest.is_empty() || rest[0] == b'/'),
            Self::Start(start) => begins(start).is_some(),
            Self::Caseless(_) | Self::Regex(_) => self.accepts(path),
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

pub(super) fn host_matches(wanted: &HostMatch, host: &[u8]) -> bool {
    match wanted {
        HostMatch::Exact(exact) => host.eq_ignore_ascii_case(exact.as_bytes()),
        HostMatch::Suffix(suffix) => {
            let Some(label) = host.len().checked_sub(suffix.len() + 1) else { return false };
            label > 0 && host[label] == b'.' && host[label + 1..].eq_ignore_ascii_case(suffix.as_bytes())
        }
    }
}

pub(crate) fn compile_match(route: &str, wanted: Match) -> Result<CompiledMatch, RouteError> {
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
        Some(PathMatch::Start(start)) => Some(CompiledPath::Start(start)),
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
    let path = path.map(|path| if wanted.ignore_path_case { CompiledPath::Caseless(Box::new(path)) } else { path });
    let values = |wanted: Vec<(String, ValueMatch)>| {
        wanted.into_iter().map(|(name, wanted)| Ok((name, value(wanted)?))).collect::<Result<Vec<_>, _>>()
    };
    Ok(CompiledMatch {
        scheme: wanted.scheme,
        path,
        method: wanted.method,
        headers: values(wanted.headers)?,
        without: values(wanted.without)?,
        query: values(wanted.query)?,
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
            (PathMatch::Start("/a".into()), "/ab", true),
            (PathMatch::Start("/a/".into()), "/a", false),
        ] {
            let wanted = Match { path: Some(path.clone()), ..Match::default() };
            let got = accepts(wanted, &format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!(got, want, "{path:?} on {target}");
        }
        for (path, target, want) in [
            (PathMatch::Exact("/A".into()), "/a", true),
            (PathMatch::Exact("/A".into()), "/ab", false),
            (PathMatch::Start("/A".into()), "/ab", true),
            (PathMatch::Start("/Abc".into()), "/a", false),
            (prefix("/A/"), "/a/b", true),
            (prefix("/A"), "/ab", false),
            (regex("/A"), "/a", false),
        ] {
            let wanted = Match { path: Some(path.clone()), ignore_path_case: true, ..Match::default() };
            let got = accepts(wanted, &format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
            assert_eq!(got, want, "{path:?} on {target}, in any case");
        }
    }

    #[test]
    fn fields_that_must_not_be_there_and_parameters() {
        let head = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\nX-User: bob\r\n\r\n");
        let without = |name: &str, value| Match { without: vec![(name.into(), value)], ..Match::default() };
        assert!(!accepts(without("x-user", ValueMatch::Present), &head("/")));
        assert!(!accepts(without("x-user", ValueMatch::Exact("bob".into())), &head("/")));
        assert!(accepts(without("x-user", ValueMatch::Exact("eve".into())), &head("/")));
        assert!(accepts(without("x-other", ValueMatch::Present), &head("/")));
        let query = |value| Match { query: vec![("v".into(), value)], ..Match::default() };
        for (value, target, want) in [
            (ValueMatch::Exact("2".into()), "/?u=1&v=2", true),
            (ValueMatch::Exact("2".into()), "/?v=1&v=2", true),
            (ValueMatch::Exact("2".into()), "/?vv=2", false),
            (ValueMatch::Exact(String::new()), "/?v", true),
            (ValueMatch::Present, "/", false),
            (ValueMatch::Regex("[0-9]+".into()), "/?v=12", true),
            (ValueMatch::Regex("[0-9]+".into()), "/?v=1x", false),
        ] {
            assert_eq!(accepts(query(value.clone()), &head(target)), want, "{value:?} on {target}");
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
