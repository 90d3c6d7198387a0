//! `/v1/acl/auth-method` and `/v1/acl/binding-rule`: who may log in, and what they get. What could log nobody in is refused.

use axum::extract::{Path, State};
use bytes::Bytes;
use discovery::acl::records::{AuthMethodRecord, BindingRuleRecord, JwtConfig};
use discovery::acl::{Acls, bind};
use discovery::fields::Fields;
use discovery::key::{About, AclKind};
use discovery::{Stored, Topic, definition, duration, writing};
use serde_json::{Map, Value, json};

use super::super::ask::Ask;
use super::super::body_of;
use super::super::reply::{Answer, Trouble, blocking, json as reply_json, truth};
use super::{is_name, is_uuid, jwt, require_read, require_write, tokens};
use crate::Context;

/// Ways to log in, and binding rules, at most.
const MOST: usize = 1000;
/// Tokens and rules that go with their way to log in, in one transaction.
const TOGETHER: usize = 90;
/// Consul's defaults, in seconds.
const LEEWAY: u64 = 150;
const SKEW: u64 = 60;

fn read_method(body: &Bytes) -> Result<(String, AuthMethodRecord), Trouble> {
    let value = body_of(body)?;
    let mut fields = Fields::of(&value, "")?;
    let (name, kind) = (fields.text("name")?, fields.text("type")?);
    if !kind.is_empty() && kind != "jwt" {
        return Err(Trouble::bad(format!(
            "Invalid Auth Method: no auth method of type {kind:?}: `jwt` is the only one here"
        )));
    }
    let locality = fields.text("tokenlocality")?;
    if !matches!(locality.as_str(), "" | "local" | "global") {
        return Err(Trouble::bad(format!(
            "Invalid Auth Method: TokenLocality is `local` or `global`, not {locality:?}"
        )));
    }
    for unsupported in ["tokennameformat", "namespacerules"] {
        if fields.get(unsupported).is_some_and(|value| !matches!(value.as_str(), Some(""))) {
            return Err(Trouble::bad(format!("Invalid Auth Method: {} is not supported", fields.path(unsupported))));
        }
    }
    let max_token_ttl_ms = fields.millis("maxtokenttl")?;
    if max_token_ttl_ms > 0 && !(tokens::TTL_MS.0..=tokens::TTL_MS.1).contains(&max_token_ttl_ms) {
        return Err(Trouble::bad("Invalid Auth Method: MaxTokenTTL must be between 1s and 24h"));
    }
    let empty = json!({});
    let record = AuthMethodRecord {
        display_name: fields.text("displayname")?,
        description: fields.text("description")?,
        max_token_ttl_ms,
        token_locality: if locality.is_empty() { "local".into() } else { locality },
        jwt: read_config(fields.get("config").unwrap_or(&empty))?,
    };
    definition::bounded(&record, "")?;
    Ok((name, record))
}

fn read_config(value: &Value) -> Result<JwtConfig, Trouble> {
    let mut fields = Fields::of(value, "Config")?;
    for elsewhere in ["jwksurl", "jwkscacert", "oidcdiscoveryurl", "oidcdiscoverycacert"] {
        if fields.get(elsewhere).is_some_and(|value| value.as_str() != Some("")) {
            let text =
                format!("{} is not supported: keys are written down in JWTValidationPubKeys", fields.path(elsewhere));
            return Err(Trouble::bad(format!("Invalid Auth Method: {text}")));
        }
    }
    let mut seconds = |key: &'static str, otherwise: u64| -> Result<u64, Trouble> {
        // Consul: a negative one is none, none is the default.
        let negative = match fields.get(key) {
            Some(Value::String(text)) => text.starts_with('-'),
            Some(Value::Number(number)) => number.as_f64().is_some_and(|number| number < 0.0),
            _ => false,
        };
        let millis = if negative { 0 } else { fields.millis(key)? };
        Ok(if millis == 0 && !negative { otherwise } else { millis / 1000 })
    };
    let (expiration_leeway, not_before_leeway) =
        (seconds("expirationleeway", LEEWAY)?, seconds("notbeforeleeway", LEEWAY)?);
    let clock_skew_leeway = seconds("clockskewleeway", SKEW)?;
    let config = JwtConfig {
        keys: fields.texts("jwtvalidationpubkeys")?,
        algorithms: fields.texts("jwtsupportedalgs")?,
        bound_issuer: fields.text("boundissuer")?,
        bound_audiences: fields.texts("boundaudiences")?,
        claims: fields.map("claimmappings")?,
        list_claims: fields.map("listclaimmappings")?,
        expiration_leeway,
        not_before_leeway,
        clock_skew_leeway,
    };
    fields.refuse_unknown()?;
    if config.keys.is_empty() {
        let text = "Invalid Auth Method: Config.JWTValidationPubKeys is missing: without keys nobody could log in";
        return Err(Trouble::bad(text));
    }
    for (at, key) in config.keys.iter().enumerate() {
        jwt::check_key(key)
            .map_err(|why| Trouble::bad(format!("Invalid Auth Method: Config.JWTValidationPubKeys[{at}]: {why}")))?;
    }
    if let Some(unknown) = config.algorithms.iter().find(|name| !jwt::ALGORITHMS.contains(&name.as_str())) {
        let known = jwt::ALGORITHMS.join(", ");
        let text = format!("Invalid Auth Method: Config.JWTSupportedAlgs: {unknown:?} is not one of {known}");
        return Err(Trouble::bad(text));
    }
    Ok(config)
}

async fn keep(context: &Context, ask: &Ask, name: &str, record: AuthMethodRecord, must_exist: bool) -> Answer {
    if !is_name(name, 128) {
        let text =
            "Invalid Auth Method: invalid Name. Only alphanumeric characters, '-' and '_' are allowed, 128 at most";
        return Err(Trouble::bad(text));
    }
    let decide = |acls: &Acls| {
        let before = acls.method(name).map(|known| known.create);
        match before {
            None if must_exist => return Err(no_method()),
            None if acls.methods().count() >= MOST => {
                return Err(Trouble::failed(format!("{MOST} auth methods already: delete some")));
            }
            Some(_) if !must_exist => {
                return Err(Trouble::bad(format!(
                    "Invalid Auth Method: {name:?} exists already: PUT /v1/acl/auth-method/{name}"
                )));
            }
            _ => {}
        }
        Ok((vec![writing::put(&About::Acl(AclKind::Method, name.to_owned()), &record)?], before))
    };
    let (before, revision) = context.discovery.change_acls(decide).await?;
    let stored = Stored { record, create: before.unwrap_or(revision), modify: revision };
    Ok(reply_json(ask, &shown(name, &stored, true)))
}

fn no_method() -> Trouble {
    Trouble::missing("Requested auth method does not exist: ACL not found")
}

/// Makes one.
pub async fn create(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let (name, record) = read_method(&body)?;
    keep(&context, &ask, &name, record, false).await
}

/// Puts another in its place.
pub async fn update(State(context): State<Context>, Path(name): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let (given, record) = read_method(&body)?;
    if !given.is_empty() && given != name {
        return Err(Trouble::bad("Auth Method name in URL and payload do not match"));
    }
    keep(&context, &ask, &name, record, true).await
}

/// Takes one away, with its rules and the tokens that were made by it: those first, so that none is left behind.
pub async fn remove(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    require_write(&ask)?;
    let decide = |acls: &Acls| {
        acls.method(&name).ok_or_else(no_method)?;
        let tokens = acls.tokens().filter(|(_, token)| token.record.auth_method == name);
        let rules = acls.rules().filter(|(_, rule)| rule.record.auth_method == name);
        let gone = tokens
            .map(|(id, _)| About::Acl(AclKind::Token, id.to_owned()))
            .chain(rules.map(|(id, _)| About::Acl(AclKind::Rule, id.to_owned())));
        let mut ops = gone.take(TOGETHER).map(|about| writing::delete(&about)).collect::<Result<Vec<_>, _>>()?;
        let is_last = ops.len() < TOGETHER;
        if is_last {
            ops.push(writing::delete(&About::Acl(AclKind::Method, name.clone()))?);
        }
        Ok::<_, Trouble>((ops, is_last))
    };
    while !context.discovery.change_acls(decide).await?.0 {}
    Ok(truth(true))
}

fn shown(name: &str, method: &Stored<AuthMethodRecord>, whole: bool) -> Value {
    let record = &method.record;
    let mut value = json!({
        "Name": name, "Type": "jwt", "DisplayName": record.display_name, "Description": record.description,
        "TokenLocality": record.token_locality, "CreateIndex": method.create, "ModifyIndex": method.modify,
    });
    if record.max_token_ttl_ms > 0 {
        let ttl = std::time::Duration::from_millis(record.max_token_ttl_ms);
        value["MaxTokenTTL"] = duration::show(ttl).into();
    }
    if whole {
        value["Config"] = Value::Object(shown_config(&record.jwt));
    }
    value
}

fn shown_config(config: &JwtConfig) -> Map<String, Value> {
    let seconds = |seconds: u64| json!(duration::show(std::time::Duration::from_secs(seconds)));
    let all = [
        ("JWTValidationPubKeys", json!(config.keys), config.keys.is_empty()),
        ("JWTSupportedAlgs", json!(config.algorithms), config.algorithms.is_empty()),
        ("BoundIssuer", json!(config.bound_issuer), config.bound_issuer.is_empty()),
        ("BoundAudiences", json!(config.bound_audiences), config.bound_audiences.is_empty()),
        ("ClaimMappings", json!(config.claims), config.claims.is_empty()),
        ("ListClaimMappings", json!(config.list_claims), config.list_claims.is_empty()),
        ("ExpirationLeeway", seconds(config.expiration_leeway), config.expiration_leeway == LEEWAY),
        ("NotBeforeLeeway", seconds(config.not_before_leeway), config.not_before_leeway == LEEWAY),
        ("ClockSkewLeeway", seconds(config.clock_skew_leeway), config.clock_skew_leeway == SKEW),
    ];
    all.into_iter().filter(|(_, _, is_default)| !is_default).map(|(key, value, _)| (key.to_owned(), value)).collect()
}

/// All of them.
pub async fn list(State(context): State<Context>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        Ok(catalog.acls().methods().map(|(name, method)| shown(name, method, false)).collect())
    })
    .await
}

/// One of them.
pub async fn read(State(context): State<Context>, Path(name): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        Ok(shown(&name, catalog.acls().method(&name).ok_or_else(no_method)?, true))
    })
    .await
}

fn read_rule_of(body: &Bytes) -> Result<(String, BindingRuleRecord), Trouble> {
    let value = body_of(body)?;
    let mut fields = Fields::of(&value, "")?;
    let variables = match fields.get("bindvars") {
        Some(value) => Some(Fields::of(value, "BindVars")?.text("name")?),
        None => None,
    };
    let record = BindingRuleRecord {
        auth_method: fields.text("authmethod")?,
        description: fields.text("description")?,
        selector: fields.text("selector")?,
        bind_type: fields.text("bindtype")?,
        bind_name: fields.text("bindname")?,
        bind_vars: variables,
    };
    definition::bounded(&record, "")?;
    Ok((fields.text("id")?, record))
}

async fn keep_rule(context: &Context, ask: &Ask, id: &str, asked: BindingRuleRecord, must_exist: bool) -> Answer {
    let decide = |acls: &Acls| {
        let before = acls.rule(id);
        if must_exist && before.is_none() {
            return Err(no_rule());
        }
        if before.is_none() && acls.rules().count() >= MOST {
            return Err(Trouble::failed(format!("{MOST} binding rules already: delete some")));
        }
        let mut record = asked.clone();
        if let Some(before) = before {
            if record.auth_method.is_empty() {
                record.auth_method.clone_from(&before.record.auth_method);
            }
            if record.auth_method != before.record.auth_method {
                return Err(Trouble::bad("Invalid Binding Rule: the AuthMethod field of a binding rule is immutable"));
            }
        }
        let unknown =
            || Trouble::bad(format!("Invalid Binding Rule: auth method {:?} is not there", record.auth_method));
        let method = acls.method(&record.auth_method).ok_or_else(unknown)?;
        bind::check(&record, &method.record).map_err(Trouble::bad)?;
        let create = before.map(|known| known.create);
        Ok((vec![writing::put(&About::Acl(AclKind::Rule, id.to_owned()), &record)?], (record, create)))
    };
    let ((record, create), revision) = context.discovery.change_acls(decide).await?;
    let stored = Stored { record, create: create.unwrap_or(revision), modify: revision };
    Ok(reply_json(ask, &shown_rule(id, &stored)))
}

fn no_rule() -> Trouble {
    Trouble::missing("Requested binding rule does not exist: ACL not found")
}

/// Makes a rule.
pub async fn create_rule(State(context): State<Context>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let (id, record) = read_rule_of(&body)?;
    if !id.is_empty() {
        return Err(Trouble::bad("Cannot specify the ID when creating a new binding rule"));
    }
    keep_rule(&context, &ask, &uuid::Uuid::new_v4().to_string(), record, false).await
}

/// Puts another in its place.
pub async fn update_rule(State(context): State<Context>, Path(id): Path<String>, ask: Ask, body: Bytes) -> Answer {
    require_write(&ask)?;
    let (given, record) = read_rule_of(&body)?;
    if !given.is_empty() && given != id {
        return Err(Trouble::bad("BindingRule ID in URL and payload do not match"));
    }
    keep_rule(&context, &ask, &id, record, true).await
}

/// Takes one away. Tokens that it gave something keep it.
pub async fn remove_rule(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    require_write(&ask)?;
    let decide = |acls: &Acls| {
        acls.rule(&id).ok_or_else(no_rule)?;
        Ok::<_, Trouble>((vec![writing::delete(&About::Acl(AclKind::Rule, id.clone()))?], ()))
    };
    context.discovery.change_acls(decide).await?;
    Ok(truth(true))
}

fn shown_rule(id: &str, rule: &Stored<BindingRuleRecord>) -> Value {
    let record = &rule.record;
    let mut value = json!({
        "ID": id, "Description": record.description, "AuthMethod": record.auth_method, "Selector": record.selector,
        "BindType": record.bind_type, "BindName": record.bind_name, "CreateIndex": rule.create, "ModifyIndex": rule.modify,
    });
    if let Some(name) = &record.bind_vars {
        value["BindVars"] = json!({ "Name": name });
    }
    value
}

/// All of them, or those of a way to log in.
pub async fn rules(State(context): State<Context>, ask: Ask) -> Answer {
    let method = ask.get("authmethod");
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        let fits = |rule: &BindingRuleRecord| method.is_none_or(|name| rule.auth_method == name);
        let all = catalog.acls().rules().filter(|(_, rule)| fits(&rule.record));
        Ok(all.map(|(id, rule)| shown_rule(id, rule)).collect())
    })
    .await
}

/// One of them.
pub async fn read_rule(State(context): State<Context>, Path(id): Path<String>, ask: Ask) -> Answer {
    blocking(&context, &ask, Topic::Acls, |catalog| {
        require_read(&ask)?;
        if !is_uuid(&id) {
            return Err(Trouble::bad(format!("the ID of a binding rule is a UUID, not {id:?}")));
        }
        Ok(shown_rule(&id, catalog.acls().rule(&id).ok_or_else(no_rule)?))
    })
    .await
}
