//! `/v1/acl/login`: a token for whoever shows a signed word of somebody who is believed; and giving it back.

use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use discovery::acl::bind::{self, Claims};
use discovery::acl::guard::now_ms;
use discovery::acl::records::TokenRecord;
use discovery::acl::{ANONYMOUS, Acls};
use discovery::fields::Fields;
use discovery::key::{About, AclKind};
use discovery::writing;
use serde_json::json;

use super::super::ask::Ask;
use super::super::body_of;
use super::super::caller::not_found;
use super::super::reply::{Answer, Trouble, truth};
use super::{jwt, tokens};
use crate::Context;

/// What somebody says of a login at most, in bytes.
const MAX_META_BYTES: usize = 4096;

fn denied(why: &str) -> Trouble {
    Trouble::new(StatusCode::FORBIDDEN, format!("Permission denied: {why}"))
}

/// Makes a token that may what the binding rules give.
pub async fn login(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    ask.check(context.discovery.datacenter())?;
    let value = body_of(&body)?;
    let mut fields = Fields::of(&value, "")?;
    let (name, bearer, meta) = (fields.text("authmethod")?, fields.text("bearertoken")?, fields.map("meta")?);
    if bearer.is_empty() {
        return Err(Trouble::bad("BearerToken is missing"));
    }
    let meta = if meta.is_empty() { String::new() } else { format!(": {}", json!(meta)) };
    if meta.len() > MAX_META_BYTES {
        return Err(Trouble::bad(format!("Meta has {MAX_META_BYTES} bytes at most")));
    }
    let datacenter = context.discovery.datacenter();
    tokens::keep(&context, |acls| {
        let unknown = || Trouble::new(StatusCode::FORBIDDEN, format!("auth method {name:?} not found: ACL not found"));
        let method = &acls.method(&name).ok_or_else(unknown)?.record;
        let now_ms = now_ms();
        let claimed = jwt::verify(&method.jwt, &bearer, now_ms / 1000).map_err(|why| denied(&why))?;
        let claims = Claims::of(&method.jwt, &claimed);
        let grants = bind::bind(acls, &name, datacenter, &claims).map_err(|why| denied(&why))?;
        if grants.is_empty() {
            return Err(denied("no binding rule gives anything to who claims this"));
        }
        let record = TokenRecord {
            secret: uuid::Uuid::new_v4().to_string(),
            description: format!("token created via login{meta}"),
            grants,
            local: method.token_locality != "global",
            auth_method: name.clone(),
            created_ms: now_ms,
            expires_ms: (method.max_token_ttl_ms > 0).then(|| now_ms.saturating_add(method.max_token_ttl_ms)),
        };
        Ok((uuid::Uuid::new_v4().to_string(), record))
    })
    .await
}

/// Takes the token of the request away, if a login made it.
pub async fn logout(State(context): State<Context>, ask: Ask) -> Answer {
    let caller = ask.caller().ok_or_else(super::off)?;
    let accessor = caller.identity().accessor.clone();
    let decide = |acls: &Acls| {
        let token = acls.token(&accessor);
        let made_by_login = token.is_some_and(|token| !token.record.auth_method.is_empty());
        if accessor == ANONYMOUS || token.is_none() && caller.secret().is_none() {
            return Err(not_found());
        }
        if !made_by_login {
            return Err(denied("token wasn't created via login"));
        }
        Ok((vec![writing::delete(&About::Acl(AclKind::Token, accessor.clone()))?], ()))
    };
    context.discovery.change_acls(decide).await?;
    Ok(truth(true))
}
