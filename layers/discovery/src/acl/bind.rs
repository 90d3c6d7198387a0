//! What somebody who has logged in gets: claims that are taken over, and the rules that they fit. Consul's `auth/binder.go`.
//! Deliberately absent: whether the claims are true, which a signature says (`api`).

use serde_json::{Map, Value, json};

use super::records::{
    AuthMethodRecord, BindingRuleRecord, Grants, JwtConfig, NodeIdentity, ServiceIdentity, TemplatedPolicy,
};
use super::state::{Acls, GLOBAL_MANAGEMENT, GLOBAL_READ_ONLY};
use super::template::{find, is_name};
use crate::bexpr::Filter;

/// Names of the builtin policies.
pub const BUILTIN: [(&str, &str); 2] =
    [(GLOBAL_MANAGEMENT, "global-management"), (GLOBAL_READ_ONLY, "builtin/global-read-only")];

/// What is known of who has logged in.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Claims {
    /// By the name that the method gives them.
    pub values: std::collections::BTreeMap<String, String>,
    /// The same for lists.
    pub lists: std::collections::BTreeMap<String, Vec<String>>,
}

impl Claims {
    /// What `config` takes of what was claimed. What is not there, or is no plain value, is empty.
    pub fn of(config: &JwtConfig, claimed: &Map<String, Value>) -> Self {
        let value = |(claim, name): (&String, &String)| {
            (name.clone(), claimed_at(claimed, claim).map(plain).unwrap_or_default())
        };
        let list = |(claim, name): (&String, &String)| {
            let found = match claimed_at(claimed, claim) {
                Some(Value::Array(all)) => all.iter().map(plain).collect(),
                Some(one) => vec![plain(one)],
                None => Vec::new(),
            };
            (name.clone(), found)
        };
        Self { values: config.claims.iter().map(value).collect(), lists: config.list_claims.iter().map(list).collect() }
    }

    fn selectable(&self) -> Value {
        json!({ "value": self.values, "list": self.lists })
    }
}

/// A claim by name, or by a path `/a/b`.
fn claimed_at<'a>(claimed: &'a Map<String, Value>, claim: &str) -> Option<&'a Value> {
    match claim.strip_prefix('/') {
        None => claimed.get(claim),
        Some(path) => {
            let mut parts = path.split('/');
            let first = claimed.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part))
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// What the rules of a method give to who claims this. Rules that name a role or a policy which is not there give nothing.
///
/// # Errors
/// A name that comes out is none.
pub fn bind(acls: &Acls, method: &str, datacenter: &str, claims: &Claims) -> Result<Grants, String> {
    let mut grants = Grants::default();
    let selectable = claims.selectable();
    for (_, rule) in acls.rules().filter(|(_, rule)| rule.record.auth_method == method) {
        let rule = &rule.record;
        if !fits(&rule.selector, &selectable) {
            continue;
        }
        let name = if rule.bind_type == "templated-policy" {
            rule.bind_name.clone()
        } else {
            filled(&rule.bind_name, claims)?
        };
        match rule.bind_type.as_str() {
            "service" => grants.services.push(ServiceIdentity { name: named(name)?, datacenters: Vec::new() }),
            "node" => grants.nodes.push(NodeIdentity { name: named(name)?, datacenter: datacenter.to_owned() }),
            "role" => {
                let found = acls.roles().find(|(_, role)| role.record.name == name);
                grants.roles.extend(found.map(|(id, _)| id.to_owned()));
            }
            "policy" => {
                let builtin = BUILTIN.iter().find(|(_, known)| *known == name).map(|(id, _)| *id);
                let found = acls.policies().find(|(_, policy)| policy.record.name == name).map(|(id, _)| id);
                grants.policies.extend(found.or(builtin).map(str::to_owned));
            }
            _ => {
                let needs = find(&name).is_some_and(|template| template.needs_name);
                let filled = filled(rule.bind_vars.as_deref().unwrap_or_default(), claims)?;
                let variable = if needs { named(filled)? } else { String::new() };
                grants.templates.push(TemplatedPolicy { template: name, name: variable, datacenters: Vec::new() });
            }
        }
    }
    grants.roles.dedup();
    grants.policies.dedup();
    Ok(grants)
}

fn fits(selector: &str, selectable: &Value) -> bool {
    // As in Consul: a selector that cannot be asked of these fits nobody.
    selector.is_empty() || Filter::parse(selector).is_ok_and(|filter| filter.fits(selectable).unwrap_or(false))
}

fn named(name: String) -> Result<String, String> {
    if is_name(&name) { Ok(name) } else { Err(format!("invalid bind name: {name:?}")) }
}

/// Fills `${value.NAME}` in.
fn filled(text: &str, claims: &Claims) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        out.push_str(&rest[..at]);
        let inner = &rest[at + 2..];
        let end = inner.find('}').ok_or_else(|| format!("{text:?}: `${{` has no end"))?;
        let name = inner[..end].trim();
        let known = name.strip_prefix("value.").and_then(|name| claims.values.get(name));
        out.push_str(
            known.ok_or_else(|| {
                format!("{text:?}: `{name}` is not known: `value.NAME` of a claim mapping is expected")
            })?,
        );
        rest = &inner[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Looks at a rule before it is kept.
///
/// # Errors
/// What is wrong.
pub fn check(rule: &BindingRuleRecord, method: &AuthMethodRecord) -> Result<(), String> {
    if rule.bind_name.is_empty() {
        return Err("Invalid Binding Rule: no BindName is set".into());
    }
    Filter::parse(if rule.selector.is_empty() { "value.a == b" } else { &rule.selector })
        .map_err(|error| format!("invalid Binding Rule: Selector is invalid: {error}"))?;
    let fake = |name: &String| (name.clone(), "fake".to_owned());
    let claims = Claims { values: method.jwt.claims.values().map(fake).collect(), ..Claims::default() };
    let invalid = |why: String| format!("Invalid Binding Rule: invalid BindName or BindVars: {why}");
    match rule.bind_type.as_str() {
        "service" | "node" => drop(filled(&rule.bind_name, &claims).and_then(named).map_err(invalid)?),
        "role" | "policy" => drop(filled(&rule.bind_name, &claims).map_err(invalid)?),
        "templated-policy" => {
            let template =
                find(&rule.bind_name).ok_or_else(|| invalid(format!("{:?} is no templated policy", rule.bind_name)))?;
            if template.needs_name {
                let variable = rule.bind_vars.as_deref().unwrap_or_default();
                filled(variable, &claims).and_then(named).map_err(invalid)?;
            }
        }
        other => return Err(format!("Invalid Binding Rule: unknown BindType {other:?}")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::records::{AuthMethodRecord, BindingRuleRecord, JwtConfig};
    use super::super::state::{Acls, Change, GLOBAL_READ_ONLY};
    use super::{Claims, bind, check};
    use crate::catalog::Stored;

    fn config() -> JwtConfig {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        JwtConfig {
            claims: map(&[("sub", "name"), ("/org/team", "team"), ("absent", "none")]),
            list_claims: map(&[("groups", "groups")]),
            ..JwtConfig::default()
        }
    }

    fn rule(selector: &str, bind_type: &str, bind_name: &str, bind_vars: Option<&str>) -> BindingRuleRecord {
        BindingRuleRecord {
            auth_method: "m".into(),
            selector: selector.into(),
            bind_type: bind_type.into(),
            bind_name: bind_name.into(),
            bind_vars: bind_vars.map(str::to_owned),
            ..BindingRuleRecord::default()
        }
    }

    #[test]
    fn who_logs_in_gets_what_the_rules_that_fit_say() {
        let claimed = json!({ "sub": "web", "org": { "team": "shop" }, "groups": ["ops", "dev"], "other": 1 });
        let claims = Claims::of(&config(), claimed.as_object().unwrap());
        assert_eq!((claims.values["team"].as_str(), claims.values["none"].as_str()), ("shop", ""));
        let mut acls = Acls::default();
        for (at, rule) in [
            rule("", "service", "${value.name}", None),
            rule("value.team == shop and ops in list.groups", "node", "node-${value.name}", None),
            rule("value.team == other", "service", "never", None),
            rule("value.unheard == x", "service", "never", None),
            rule("", "policy", "builtin/global-read-only", None),
            rule("", "role", "no-such-role", None),
            rule("", "templated-policy", "builtin/service", Some("${value.team}")),
        ]
        .into_iter()
        .enumerate()
        {
            check(&rule, &AuthMethodRecord { jwt: config(), ..Default::default() }).unwrap();
            acls.apply(format!("{at}"), Change::Rule(Some(Stored { record: rule, create: 1, modify: 1 })));
        }
        let grants = bind(&acls, "m", "dc1", &claims).unwrap();
        let services: Vec<&str> = grants.services.iter().map(|one| one.name.as_str()).collect();
        assert_eq!((services, grants.nodes[0].name.as_str()), (vec!["web"], "node-web"));
        assert_eq!((grants.policies, grants.roles.len()), (vec![GLOBAL_READ_ONLY.to_owned()], 0));
        assert_eq!(grants.templates[0].name, "shop");
        assert!(bind(&acls, "another", "dc1", &claims).unwrap().is_empty());
        // A claim becomes no rule: what it is filled into is a name.
        let evil = json!({ "sub": "x\" { policy = \"write\" }" });
        assert!(bind(&acls, "m", "dc1", &Claims::of(&config(), evil.as_object().unwrap())).is_err());
    }

    #[test]
    fn rules_that_could_never_work_are_refused() {
        let method = AuthMethodRecord { jwt: config(), ..Default::default() };
        for wrong in [
            rule("", "service", "", None),
            rule("", "service", "${value.unheard}", None),
            rule("", "service", "${value.name", None),
            rule("", "service", "Upper", None),
            rule("((", "service", "a", None),
            rule("", "nothing", "a", None),
            rule("", "templated-policy", "builtin/none", None),
            rule("", "templated-policy", "builtin/service", None),
        ] {
            check(&wrong, &method).unwrap_err();
        }
    }
}
