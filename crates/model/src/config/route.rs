//! Routes: which request goes to which service. The first that matches wins (Istio's rule).

use std::collections::BTreeMap;
use std::time::Duration;

use super::decode::{OneOrMany, record};
use super::node::default_of;
use crate::id::{ServiceName, VersionName};

record! {
    /// One rule: when everything in `match` holds, the request goes to `to`.
    Route as "a route" {
        /// What the request must look like; everything matches when absent.
        ["match"] matches: Match = Match::default(),
        /// Where it goes.
        to: Target,
        /// From the request's head to the last byte of the answer; then 504 and the instance's connection is closed. None when absent.
        timeout: Option<Duration> = None,
    }
}

record! {
    /// Conditions, all of which must hold.
    Match as "`match`" {
        /// The host without port; `*.example.com` matches any one or more labels in front.
        host: Option<String> = None,
        /// The path, whole.
        path: Option<String> = None,
        /// The path's beginning, on a segment's boundary: `/orders` matches `/orders` and `/orders/7`, not `/orders7`.
        path_prefix: Option<String> = None,
        /// A regular expression that must match the whole path.
        path_regex: Option<String> = None,
        /// A method or a list of them; any when absent.
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
    }
}
