//! Routes: which request goes to which service. The first that matches wins (Istio's rule).

use std::collections::BTreeMap;
use std::time::Duration;

use super::decode::{OneOrMany, record, words};
use super::node::default_of;
use crate::id::{ServiceName, VersionName};

record! {
    /// One rule: when everything in `match` holds, the request goes to `to`.
    Route as "a route" {
        /// A name under which its requests are counted (`seawall_gateway_route_…`), unlike any other route's; only under their service when absent.
        name: Option<String> = None,
        /// What the request must look like; everything matches when absent.
        ["match"] matches: Match = Match::default(),
        /// Where it goes.
        to: Option<Target> = None,
        /// Instead of `to`: the client is sent elsewhere.
        redirect: Option<Redirect> = None,
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
        /// In place of the `pathPrefix` that matched.
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
        /// In place of the `pathPrefix` that matched: `/api` to `/` makes `/api/x` `/x`.
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
        /// The host without port; `*.example.com` matches any one or more labels in front.
        host: Option<String> = None,
        /// The path, whole, as it is sent: percent-encoded and without query.
        path: Option<String> = None,
        /// The path's beginning, on a segment's boundary: `/orders` matches `/orders` and `/orders/7`, not `/orders7`.
        path_prefix: Option<String> = None,
        /// A regular expression that must match the whole path.
        path_regex: Option<String> = None,
        /// `http` or `https`: how the client came to this gateway, or to a proxy of `gateway.trustedProxies` in front of it.
        scheme: Option<RequestScheme> = None,
        /// A method or a list of them, not an empty one; any when absent.
        ["method"] methods: OneOrMany = OneOrMany::default(),
        /// Headers and their exact values.
        headers: BTreeMap<String, String> = BTreeMap::new(),
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
