//! What a route changes on the way: fields added, set and removed, the target rewritten, the client sent elsewhere.
//! Part of the forward step, towards either side; names as in the Kubernetes Gateway API's filters. Deliberately
//! absent: fields that frame, route or fence a message; those are the gateway's own (`is_own_field`).

use std::time::Duration;

use guard::Priority;

use crate::compress::Coding;
use crate::http1::{Kind, RequestHead};
use crate::routes::{Cors, Target};
use crate::text::push_decimal;

/// A route's changes. The default changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// To what an instance gets.
    pub request: HeaderEdits,
    /// To what a client gets from an instance.
    pub response: HeaderEdits,
    /// Another path than the client's.
    pub path: Option<PathRewrite>,
    /// Another host than the client's.
    pub host: Option<String>,
    /// Most bytes of a request's body, instead of the gateway's bound; beyond: 413.
    pub max_body_bytes: Option<u64>,
    /// Codings for answers that the instance has not coded, the first that the client takes.
    pub compress: Vec<Coding>,
    /// Others that get a copy of its requests, and whose answers nobody sees.
    pub mirrors: Vec<Mirror>,
    /// What is done to its requests on purpose.
    pub fault: Option<Fault>,
    /// What pages of other origins may do.
    pub cors: Option<Cors>,
    /// How much its requests matter when a service's places run short.
    pub priority: Priority,
}

/// Somebody who gets a copy of requests (Istio's `mirrors`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Who.
    pub target: Target,
    /// Of how many requests, in millionths.
    pub part: u32,
}

/// Faults injected into a route's requests, the delay first (Istio's `fault`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How long a request waits before anything else, inside its time; and how many do, in millionths.
    pub delay: Option<(Duration, u32)>,
    /// The status with which the gateway answers itself; and how many it answers, in millionths.
    pub abort: Option<(u16, u32)>,
}

/// Changes to fields, in this order: removed, set, added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Names, in any case.
    pub remove: Vec<String>,
    /// In place of whatever has the name.
    pub set: Vec<(String, String)>,
    /// Besides what has the name.
    pub add: Vec<(String, String)>,
}

impl HeaderEdits {
    /// Whether a field that came stays behind.
    pub(crate) fn drops(&self, name: &[u8]) -> bool {
        let is = |known: &str| known.as_bytes().eq_ignore_ascii_case(name);
        (!self.remove.is_empty() && self.remove.iter().any(|removed| is(removed)))
            || (!self.set.is_empty() && self.set.iter().any(|(set, _)| is(set)))
    }

    /// Fields to write.
    pub(crate) fn written(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.set.iter().chain(&self.add).map(|(name, value)| (name.as_bytes(), value.as_bytes()))
    }
}

/// Whether a field belongs to the gateway, so that no route may touch it.
pub fn is_own_field(name: &str) -> bool {
    !matches!(Kind::of(name.as_bytes()), Kind::Other | Kind::Accept)
}

/// Another path; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// This one.
    Full(String),
    /// In place of the prefix by which the route matched: `/a` to `/b` makes `/a/x` `/b/x`.
    Prefix(String),
    /// In place of the bytes by which the route matched, wherever segments end: `/a` to `/b` makes `/ax` `/bx`.
    Start(String),
}

impl PathRewrite {
    /// Writes the target for `path` (without query), of which the route matched `prefix`.
    fn push(&self, out: &mut Vec<u8>, path: &[u8], prefix: Option<&str>) {
        match (self, prefix) {
            (Self::Full(full), _) => out.extend_from_slice(full.as_bytes()),
            (Self::Prefix(new), Some(old)) => {
                // By its length: the case of its letters may have been ignored.
                let rest = path.get(old.trim_end_matches('/').len()..).unwrap_or_default();
                let new = new.trim_end_matches('/');
                out.extend_from_slice(new.as_bytes());
                if rest.first() != Some(&b'/') && (new.is_empty() || !rest.is_empty()) {
                    out.push(b'/');
                }
                out.extend_from_slice(rest);
            }
            (Self::Start(new), Some(old)) => {
                out.extend_from_slice(new.as_bytes());
                out.extend_from_slice(path.get(old.len()..).unwrap_or_default());
            }
            (Self::Prefix(_) | Self::Start(_), None) => out.extend_from_slice(path),
        }
    }
}

/// Writes the target an instance or a redirect gets: path, perhaps another one, and the client's query.
pub(crate) fn push_target(out: &mut Vec<u8>, head: &RequestHead, path: Option<&PathRewrite>, prefix: Option<&str>) {
    let target = head.path_and_query();
    match path {
        // `OPTIONS *` asks about the server, not about a path.
        Some(rewrite) if target != b"*" => {
            rewrite.push(out, head.path(), prefix);
            if let Some(query) = memchr::memchr(b'?', target) {
                out.extend_from_slice(&target[query..]);
            }
        }
        _ => {
            if target.is_empty() || target[0] == b'?' {
                out.push(b'/');
            }
            out.extend_from_slice(target);
        }
    }
}

/// The client is sent elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`; the client's when absent.
    pub scheme: Option<String>,
    /// Another host; the client's when absent.
    pub host: Option<String>,
    /// A port; the client's when absent, unless the scheme changes.
    pub port: Option<u16>,
    /// Another path; the client's when absent.
    pub path: Option<PathRewrite>,
}

impl Redirect {
    /// Where to. `scheme` and `authority` are what the client used.
    pub(crate) fn location(
        &self,
        head: &RequestHead,
        (scheme, authority): (&str, &[u8]),
        prefix: Option<&str>,
    ) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        if self.host.is_none() && authority.is_empty() {
            // A client that names no host knows where it is.
            push_target(&mut out, head, self.path.as_ref(), prefix);
            return out;
        }
        let scheme = self.scheme.as_deref().unwrap_or(scheme);
        out.extend_from_slice(scheme.as_bytes());
        out.extend_from_slice(b"://");
        match (&self.host, &self.scheme, self.port) {
            (None, None, None) => out.extend_from_slice(authority),
            (host, _, _) => {
                out.extend_from_slice(host.as_ref().map_or(without_port(authority), |host| host.as_bytes()))
            }
        }
        if let Some(port) = self.port.filter(|port| !matches!((scheme, port), ("http", 80) | ("https", 443))) {
            out.push(b':');
            push_decimal(&mut out, port.into());
        }
        push_target(&mut out, head, self.path.as_ref(), prefix);
        out
    }
}

/// The host of `host:port`; both parts have been judged when the head was.
fn without_port(authority: &[u8]) -> &[u8] {
    let bracket = memchr::memchr(b']', authority).unwrap_or(0);
    memchr::memchr(b':', &authority[bracket..]).map_or(authority, |colon| &authority[..bracket + colon])
}

#[cfg(test)]
mod tests {
    use super::{HeaderEdits, PathRewrite, Redirect, is_own_field, push_target};
    use crate::http1::{Limits, RequestHead};

    fn head(target: &str) -> RequestHead {
        let mut head = RequestHead::default();
        let text = format!("GET {target} HTTP/1.1\r\nHost: shop.local:8080\r\n\r\n");
        head.parse(text.as_bytes(), &Limits::default()).unwrap();
        head
    }

    #[test]
    fn targets() {
        let prefix = |new: &str| PathRewrite::Prefix(new.to_owned());
        for (target, rewrite, matched, want) in [
            ("/a/x?q=1", prefix("/b"), "/a", "/b/x?q=1"),
            ("/a", prefix("/b"), "/a", "/b"),
            ("/a", prefix("/"), "/a", "/"),
            ("/a/", prefix("/"), "/a", "/"),
            ("/a/x", prefix("/"), "/a/", "/x"),
            ("/x", prefix("/b"), "/", "/b/x"),
            ("/?q", prefix("/b/"), "/", "/b/?q"),
            ("/ax?q", PathRewrite::Start("/b/".into()), "/a", "/b/x?q"),
            ("/x", PathRewrite::Start("/b".into()), "/", "/bx"),
            ("/a/x?q", PathRewrite::Full("/c".into()), "/a", "/c?q"),
        ] {
            let mut out = Vec::new();
            push_target(&mut out, &head(target), Some(&rewrite), Some(matched));
            assert_eq!(String::from_utf8(out).unwrap(), want, "{target} {rewrite:?}");
        }
    }

    #[test]
    fn locations() {
        let to = Redirect { status: 301, scheme: None, host: None, port: None, path: None };
        let https = Redirect { scheme: Some("https".into()), ..to.clone() };
        for (redirect, want) in [
            (to.clone(), "http://shop.local:8080/a?b"),
            (https.clone(), "https://shop.local/a?b"),
            (Redirect { port: Some(8443), ..https.clone() }, "https://shop.local:8443/a?b"),
            (Redirect { port: Some(443), ..https }, "https://shop.local/a?b"),
            (Redirect { host: Some("new.local".into()), ..to.clone() }, "http://new.local/a?b"),
            (Redirect { path: Some(PathRewrite::Full("/z".into())), ..to }, "http://shop.local:8080/z?b"),
        ] {
            assert_eq!(
                String::from_utf8(redirect.location(&head("/a?b"), ("http", b"shop.local:8080"), None)).unwrap(),
                want
            );
        }
    }

    #[test]
    fn fields() {
        let edits = HeaderEdits {
            remove: vec!["Server".into()],
            set: vec![("X-A".into(), "1".into())],
            add: vec![("X-B".into(), "2".into())],
        };
        assert!(edits.drops(b"server") && edits.drops(b"x-a") && !edits.drops(b"x-b"));
        for name in ["Host", "content-length", "Seawall-Epoch", "seawall_epoch", "Connection", "X-Forwarded-For"] {
            assert!(is_own_field(name), "{name}");
        }
        assert!(!is_own_field("Strict-Transport-Security"));
    }
}
