//! Who calls, while ACLs are on: recognized by a token before a handler runs, asked by it for each thing that it would show or
//! change, and recognized anew after a wait. Refusals are in Consul's words. Nothing of it is done while ACLs are off.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use axum::http::{HeaderMap, StatusCode, header};
use discovery::acl::{ANONYMOUS, ANONYMOUS_SECRET, Access, Guard, Identity, Kind, Scalar};

use super::reply::Trouble;
use crate::Context;

/// Who calls. Clones share it.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Parts>);

struct Parts {
    /// What was sent; nothing is the anonymous token.
    secret: Option<String>,
    identity: RwLock<Arc<Identity>>,
    /// Something was left out of the answer.
    filtered: AtomicBool,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Caller").field("accessor", &self.identity).finish_non_exhaustive()
    }
}

/// The token of a request: `?token=`, `X-Consul-Token`, `Authorization: Bearer`, in Consul's order.
pub fn token<'a>(headers: &'a HeaderMap, parameter: Option<&'a str>) -> Option<&'a str> {
    // What is no text is a token that nobody has, and not the want of one.
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or(UNREADABLE));
    let bearer = || {
        let (scheme, token) = text(header::AUTHORIZATION.as_str())?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    };
    let sent = || text("x-consul-token").filter(|token| !token.is_empty());
    parameter.filter(|token| !token.is_empty()).or_else(sent).or_else(bearer).filter(|token| !token.is_empty())
}

/// A secret that no token can have.
const UNREADABLE: &str = "\u{fffd}";

/// There is no such token, or its time is over.
pub fn not_found() -> Trouble {
    Trouble::new(StatusCode::FORBIDDEN, "ACL not found")
}

impl Caller {
    /// Recognizes a caller.
    ///
    /// # Errors
    /// There is no such token; nobody can say.
    pub async fn recognize(context: &Context, guard: &Guard, secret: Option<&str>) -> Result<Self, Trouble> {
        let registry = &context.discovery;
        let found = match guard.identity(registry, secret) {
            Some(found) => found,
            None => {
                // It may have been made on another node a moment ago.
                registry.catch_up().await?;
                guard.identity(registry, secret).ok_or_else(not_found)?
            }
        };
        let secret = secret.map(str::to_owned);
        Ok(Self(Arc::new(Parts { secret, identity: RwLock::new(found), filtered: AtomicBool::new(false) })))
    }

    /// Recognizes it anew, after a wait: its token may have been changed or taken away.
    ///
    /// # Errors
    /// There is no such token any more.
    pub fn renew(&self, context: &Context) -> Result<(), Trouble> {
        let Some(guard) = context.discovery.guard() else { return Ok(()) };
        let found = guard.identity(&context.discovery, self.0.secret.as_deref()).ok_or_else(not_found)?;
        *self.0.identity.write().unwrap_or_else(PoisonError::into_inner) = found;
        Ok(())
    }

    /// As whom it was recognized.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.0.identity.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it has shown that it is somebody.
    pub fn shows_a_token(&self) -> bool {
        self.secret().is_some_and(|secret| secret != ANONYMOUS_SECRET)
    }

    /// What was sent.
    pub fn secret(&self) -> Option<&str> {
        self.0.secret.as_deref()
    }

    /// Whether a thing may be shown; if not, the answer says that it is not whole.
    pub fn sees(&self, kind: Kind, name: &str) -> bool {
        let seen = self.identity().rights.may(kind, name, Access::Read);
        if !seen {
            self.leave_out();
        }
        seen
    }

    /// Something is left out.
    pub fn leave_out(&self) {
        self.0.filtered.store(true, Ordering::Relaxed);
    }

    /// A new answer begins, which leaves nothing out yet.
    pub fn begin(&self) {
        self.0.filtered.store(false, Ordering::Relaxed);
    }

    /// Whether something was left out. As in Consul, whoever shows no token is not told.
    pub fn has_filtered(&self) -> bool {
        self.0.filtered.load(Ordering::Relaxed) && self.identity().accessor != ANONYMOUS
    }

    /// Why it may not, in Consul's words.
    pub fn denied(&self, resource: &str, access: Access, name: Option<&str>) -> Trouble {
        let identity = self.identity();
        let anonymous = identity.accessor == ANONYMOUS;
        let who = if anonymous {
            "anonymous token".to_owned()
        } else {
            format!("token with AccessorID '{}'", identity.accessor)
        };
        let on = name.map(|name| format!(" on {name:?}")).unwrap_or_default();
        let more = if anonymous {
            ". The anonymous token is used implicitly when a request does not specify a token."
        } else {
            ""
        };
        let text = format!("Permission denied: {who} lacks permission '{resource}:{}'{on}{more}", access.word());
        Trouble::new(StatusCode::FORBIDDEN, text)
    }

    /// Refuses who may not.
    ///
    /// # Errors
    /// It may not.
    pub fn require(&self, kind: Kind, name: &str, access: Access) -> Result<(), Trouble> {
        let identity = self.identity();
        let may = |name: &str| identity.rights.may(kind, name, access);
        // DNS knows no case: nobody takes a name over by writing it another way.
        let folded =
            || kind == Kind::Service && access == Access::Write && name.bytes().any(|byte| byte.is_ascii_uppercase());
        if may(name) && (!folded() || may(&name.to_ascii_lowercase())) {
            return Ok(());
        }
        Err(self.denied(kind.word(), access, Some(name)))
    }

    /// The same for what there is one of.
    ///
    /// # Errors
    /// It may not.
    pub fn require_in(&self, scalar: Scalar, access: Access) -> Result<(), Trouble> {
        if self.identity().rights.may_in(scalar, access) {
            return Ok(());
        }
        Err(self.denied(scalar.word(), access, None))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderMap;

    use super::token;

    #[test]
    fn a_token_is_found_wherever_clients_put_it() {
        let of = |pairs: &[(&'static str, &str)], parameter| {
            let headers: HeaderMap =
                pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            token(&headers, parameter).map(str::to_owned)
        };
        let bearer = ("authorization", "Bearer b");
        assert_eq!(of(&[("x-consul-token", "a"), bearer], Some("c")).as_deref(), Some("c"));
        assert_eq!(of(&[("x-consul-token", "a"), bearer], None).as_deref(), Some("a"));
        assert_eq!(of(&[("authorization", "bearer  b")], None).as_deref(), Some("b"));
        assert_eq!(of(&[("x-consul-token", "\u{e9}")], None).as_deref(), Some(super::UNREADABLE));
        assert_eq!(of(&[("x-consul-token", ""), bearer], Some("c")).as_deref(), Some("c"));
        assert_eq!(of(&[bearer], None).as_deref(), Some("b"));
        assert_eq!(of(&[("authorization", "Basic x")], None), None);
        assert_eq!(of(&[("authorization", "Bearer ")], None), None);
        assert_eq!(of(&[], None), None);
    }
}
