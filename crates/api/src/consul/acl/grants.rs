//! What a token or a role is given: read from a request, with links by id or by name looked up; and shown.

use discovery::acl::bind::BUILTIN;
use discovery::acl::records::{Grants, NodeIdentity, ServiceIdentity, TemplatedPolicy};
use discovery::acl::{Acls, template};
use discovery::fields::{FieldError, Fields};
use serde_json::{Map, Value, json};

use super::super::reply::Trouble;

/// Links and identities of each kind at most.
const MOST: usize = 256;

/// What a request gives, as it is written: links are not looked up yet.
#[derive(Debug, Default)]
pub struct Written {
    policies: Vec<Link>,
    roles: Vec<Link>,
    rest: Grants,
}

/// By id, else by name.
#[derive(Debug)]
struct Link {
    id: String,
    name: String,
}

impl Written {
    /// Reads it; `of_token`: roles may be among it.
    pub fn read(fields: &mut Fields<'_>, local: bool, of_token: bool) -> Result<Self, Trouble> {
        let policies = links(fields, "policies")?;
        let roles = if of_token { links(fields, "roles")? } else { Vec::new() };
        let services = objects(fields, "serviceidentities", |one| {
            let (name, datacenters) = (one.text("servicename")?, one.texts("datacenters")?);
            if local && !datacenters.is_empty() {
                let text = format!("Service identity {name:?} cannot specify a list of datacenters on a local token");
                return Err(FieldError::new(one.path("datacenters"), text));
            }
            named(one, "servicename", &name)?;
            Ok(ServiceIdentity { name, datacenters })
        })?;
        let nodes = objects(fields, "nodeidentities", |one| {
            let (name, datacenter) = (one.text("nodename")?, one.text("datacenter")?);
            named(one, "nodename", &name)?;
            if datacenter.is_empty() {
                return Err(FieldError::new(one.path("datacenter"), "a node identity needs a datacenter"));
            }
            Ok(NodeIdentity { name, datacenter })
        })?;
        let templates = objects(fields, "templatedpolicies", read_template)?;
        Ok(Self { policies, roles, rest: Grants { services, nodes, templates, ..Grants::default() } })
    }

    /// With links looked up.
    pub fn resolved(&self, acls: &Acls) -> Result<Grants, Trouble> {
        let mut grants = self.rest.clone();
        for link in &self.policies {
            let id = policy_id(acls, link).ok_or_else(|| missing("policy", link))?;
            if !grants.policies.contains(&id) {
                grants.policies.push(id);
            }
        }
        for link in &self.roles {
            let by_name = || acls.roles().find(|(_, role)| role.record.name == link.name).map(|(id, _)| id.to_owned());
            let found = if link.id.is_empty() { by_name() } else { acls.role(&link.id).map(|_| link.id.clone()) };
            let id = found.ok_or_else(|| missing("role", link))?;
            if !grants.roles.contains(&id) {
                grants.roles.push(id);
            }
        }
        Ok(grants)
    }
}

fn missing(what: &str, link: &Link) -> Trouble {
    let (by, value) = if link.id.is_empty() { ("name", &link.name) } else { ("ID", &link.id) };
    Trouble::bad(format!("No such ACL {what} with {by} {value:?}"))
}

fn policy_id(acls: &Acls, link: &Link) -> Option<String> {
    let builtin =
        BUILTIN.iter().find(|(id, name)| if link.id.is_empty() { *name == link.name } else { *id == link.id });
    if let Some((id, _)) = builtin {
        return Some((*id).to_owned());
    }
    if !link.id.is_empty() {
        return acls.policy(&link.id).map(|_| link.id.clone());
    }
    acls.policies().find(|(_, policy)| policy.record.name == link.name).map(|(id, _)| id.to_owned())
}

fn links(fields: &mut Fields<'_>, key: &'static str) -> Result<Vec<Link>, FieldError> {
    objects(fields, key, |one| Ok(Link { id: one.text("id")?, name: one.text("name")? }))
}

fn objects<T>(
    fields: &mut Fields<'_>,
    key: &'static str,
    read: impl Fn(&mut Fields<'_>) -> Result<T, FieldError>,
) -> Result<Vec<T>, FieldError> {
    let path = fields.path(key);
    let Some(value) = fields.get(key) else { return Ok(Vec::new()) };
    let Some(list) = value.as_array() else { return Err(FieldError::new(path, "a list is expected here")) };
    if list.len() > MOST {
        return Err(FieldError::new(path, format!("{MOST} at most")));
    }
    let one = |(at, one): (usize, &Value)| read(&mut Fields::of(one, &format!("{path}[{at}]"))?);
    list.iter().enumerate().map(one).collect()
}

fn named(fields: &Fields<'_>, key: &str, name: &str) -> Result<(), FieldError> {
    if template::is_name(name) {
        return Ok(());
    }
    let text = format!("{name:?} is an invalid name. Only lowercase alphanumeric characters, '-' and '_' are allowed");
    Err(FieldError::new(fields.path(key), text))
}

fn read_template(one: &mut Fields<'_>) -> Result<TemplatedPolicy, FieldError> {
    let (template, datacenters) = (one.text("templatename")?, one.texts("datacenters")?);
    let Some(known) = template::find(&template) else {
        return Err(FieldError::new(one.path("templatename"), format!("no such ACL templated policy: {template:?}")));
    };
    let path = one.path("templatevariables");
    let empty = json!({});
    let mut variables = Fields::of(one.get("templatevariables").unwrap_or(&empty), &path)?;
    let name = variables.text("name")?;
    if known.needs_name {
        named(&variables, "name", &name)?;
    }
    Ok(TemplatedPolicy { template, name: if known.needs_name { name } else { String::new() }, datacenters })
}

/// Puts what is given into an object that is shown; what is empty is left out, as in Consul.
pub fn show(acls: &Acls, grants: &Grants, object: &mut Map<String, Value>) {
    let link = |id: &String, name: &str| json!({ "ID": id, "Name": name });
    let policies = grants.policies.iter().filter_map(|id| {
        let builtin = BUILTIN.iter().find(|(known, _)| known == id).map(|(_, name)| *name);
        let name = acls.policy(id).map(|policy| policy.record.name.as_str());
        Some(link(id, name.or(builtin)?))
    });
    let roles = grants.roles.iter().filter_map(|id| Some(link(id, &acls.role(id)?.record.name)));
    let with_sites = |mut value: Value, sites: &[String]| {
        if !sites.is_empty() {
            value["Datacenters"] = json!(sites);
        }
        value
    };
    let services = grants.services.iter().map(|one| with_sites(json!({ "ServiceName": one.name }), &one.datacenters));
    let nodes = grants.nodes.iter().map(|one| json!({ "NodeName": one.name, "Datacenter": one.datacenter }));
    let templates = grants.templates.iter().map(|one| {
        let mut value = json!({ "TemplateName": one.template });
        if !one.name.is_empty() {
            value["TemplateVariables"] = json!({ "name": one.name });
        }
        with_sites(value, &one.datacenters)
    });
    let lists: [(&str, Vec<Value>); 5] = [
        ("Policies", policies.collect()),
        ("Roles", roles.collect()),
        ("ServiceIdentities", services.collect()),
        ("NodeIdentities", nodes.collect()),
        ("TemplatedPolicies", templates.collect()),
    ];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        object.insert(key.into(), Value::Array(list));
    }
}
