//! Who may do what: same-site checks for every request, authority for everything that changes or reveals something.
//! Authority is the token from an owner-only file, or being a process of the same user on this machine, which the
//! operating system tells about a loopback connection; so the owner needs no token, and nobody else gets in.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use axum::extract::ConnectInfo;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::Context;
use crate::problem::Problem;

/// The rules of this node.
#[derive(Debug)]
pub struct Authority {
    /// The token that stands for the owner.
    pub token: String,
    /// `Host` names accepted besides loopback's own.
    pub allowed_hosts: Vec<String>,
}

/// The two ends of a connection, and whether the other end is the same user: found out once, when first needed.
#[derive(Clone, Debug)]
pub struct Peer {
    local: SocketAddr,
    remote: SocketAddr,
    same_user: Arc<OnceLock<bool>>,
}

impl Peer {
    /// Of the connection between these two ends.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, same_user: Arc::default() }
    }

    fn is_same_user(&self) -> bool {
        *self.same_user.get_or_init(|| platform::identity::peer_is_same_user(self.local, self.remote))
    }
}

/// Lets a request through only with authority.
pub async fn require(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if has_authority(&context, &peer, request.headers()) {
        return next.run(request).await;
    }
    not_allowed().into_response()
}

/// The answer to who has none.
pub(crate) fn not_allowed() -> Problem {
    let cure = "call as the user that runs seawall, or send `Authorization: Bearer TOKEN` with the token from DATA_DIR/api-token";
    Problem::new(StatusCode::UNAUTHORIZED, "this needs authority", cure)
}

pub(crate) fn has_authority(context: &Context, peer: &Peer, headers: &HeaderMap) -> bool {
    let given = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    match given {
        Some(given) => is_token(context, given),
        None => peer.is_same_user(),
    }
}

/// Whether somebody may see what is registered, here where no token of Consul's counts: everybody, unless ACLs allow nothing by
/// default.
pub(crate) fn sees_registered(context: &Context, peer: &Peer, headers: &HeaderMap) -> bool {
    let is_open = context.discovery.guard().is_none_or(|guard| guard.allows_by_default());
    is_open || has_authority(context, peer, headers)
}

/// Whether this is the token that stands for the owner.
pub(crate) fn is_token(context: &Context, given: &str) -> bool {
    constant_time_equal(given.as_bytes(), context.authority.token.as_bytes())
}

/// Refuses what a web page in the operator's browser could send: a foreign `Host` (DNS rebinding) or a foreign `Origin`.
pub(crate) fn same_site(context: &Context, headers: &HeaderMap) -> Result<(), Problem> {
    let cure = "call the API by a loopback address or a name in `api.allowedHosts`";
    check_site(headers, &context.authority.allowed_hosts)
        .map_err(|error| Problem::new(StatusCode::FORBIDDEN, error, cure))
}

fn check_site(headers: &HeaderMap, allowed: &[String]) -> Result<(), String> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_allowed_host(host, allowed) {
        return Err(format!("the Host `{host}` is not one of this API's"));
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let origin = origin.to_str().unwrap_or_default();
    let same =
        origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://")).is_some_and(|rest| rest == host);
    if same { Ok(()) } else { Err(format!("the Origin `{origin}` is another site")) }
}

fn is_allowed_host(host: &str, allowed: &[String]) -> bool {
    let name = if let Some(end) = host.strip_prefix('[').and_then(|rest| rest.find(']')) {
        &host[1..=end]
    } else {
        host.rsplit_once(':').map_or(host, |(name, _)| name)
    };
    let loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    loopback || name.eq_ignore_ascii_case("localhost") || allowed.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Compares without telling by its duration how much was right.
fn constant_time_equal(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, header};

    use super::{check_site, constant_time_equal};

    fn check(host: &str, origin: Option<&str>, expected: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        let allowed = ["ops.example".to_owned()];
        assert_eq!(check_site(&headers, &allowed).is_ok(), expected, "{host} {origin:?}");
    }

    #[test]
    fn foreign_hosts_and_origins_are_refused() {
        check("127.0.0.1:8500", None, true);
        check("[::1]:8500", None, true);
        check("localhost", None, true);
        check("ops.example:8500", None, true);
        check("evil.example:8500", None, false);
        check("127.0.0.1.evil.example", None, false);
        check("", None, false);
        check("127.0.0.1:8500", Some("http://127.0.0.1:8500"), true);
        check("127.0.0.1:8500", Some("http://127.0.0.1:9999"), false);
        check("127.0.0.1:8500", Some("http://evil.example"), false);
        check("127.0.0.1:8500", Some("null"), false);
    }

    #[test]
    fn tokens_are_compared_whole() {
        assert!(constant_time_equal(b"abc", b"abc"));
        assert!(!constant_time_equal(b"abc", b"abd"));
        assert!(!constant_time_equal(b"abc", b"ab"));
    }
}
