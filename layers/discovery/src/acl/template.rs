//! Builtin policies with a name filled in, and the identities that are the same: what they come to as rules. Consul's own texts'
//! meaning (`agent/structs/acltemplatedpolicy`); those for what is not here are absent, as `builtin/workload-identity`.

use super::records::Grants;
use super::rules::Rules;

/// A builtin policy.
#[derive(Debug)]
pub struct Template {
    /// By which it is asked for.
    pub name: &'static str,
    /// A name must be filled in.
    pub needs_name: bool,
    /// What it gives, for people.
    pub description: &'static str,
    /// Its rules.
    pub text: &'static str,
}

/// What stands for the name in a template.
const NAME: &str = "{{.Name}}";

/// Everything that registers under a service's name.
const SERVICE: &str = "service \"{{.Name}}\" {\n\tpolicy = \"write\"\n}\nservice \"{{.Name}}-sidecar-proxy\" {\n\tpolicy = \"write\"\n}\nservice_prefix \"\" {\n\tpolicy = \"read\"\n}\nnode_prefix \"\" {\n\tpolicy = \"read\"\n}\n";
const NODE: &str = "node \"{{.Name}}\" {\n\tpolicy = \"write\"\n}\nservice_prefix \"\" {\n\tpolicy = \"read\"\n}\n";

/// All of them.
pub const TEMPLATES: [Template; 6] = [
    Template {
        name: "builtin/api-gateway",
        needs_name: true,
        description: "Gives the token or role permissions for a Consul api gateway",
        text: "mesh = \"read\"\nnode_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice \"{{.Name}}\" {\n\tpolicy = \"write\"\n}\n",
    },
    Template {
        name: "builtin/dns",
        needs_name: false,
        description: "Gives the token or role permissions for the Consul DNS to query services in the network.",
        text: "node_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \"read\"\n}\nquery_prefix \"\" {\n\tpolicy = \"read\"\n}\n",
    },
    Template {
        name: "builtin/node",
        needs_name: true,
        description: "Gives the token or role permissions for a register an agent/node into the catalog. A node is typically a consul agent but can also be a physical server, cloud instance or a container.",
        text: NODE,
    },
    Template {
        name: "builtin/nomad-client",
        needs_name: false,
        description: "Gives the token or role permissions required for integration with a nomad client.",
        text: "agent_prefix \"\" {\n\tpolicy = \"read\"\n}\nnode_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \"write\"\n}\nkey_prefix \"\" {\n\tpolicy = \"read\"\n}\n",
    },
    Template {
        name: "builtin/nomad-server",
        needs_name: false,
        description: "Gives the token or role permissions required for integration with a nomad server.",
        text: "acl = \"write\"\nagent_prefix \"\" {\n\tpolicy = \"read\"\n}\nnode_prefix \"\" {\n\tpolicy = \"read\"\n}\nservice_prefix \"\" {\n\tpolicy = \"write\"\n}\n",
    },
    Template {
        name: "builtin/service",
        needs_name: true,
        description: "Gives the token or role permissions to register a service and discover services in the Consul catalog. It also gives the specified service's sidecar proxy the permission to discover and route traffic to other services.",
        text: SERVICE,
    },
];

/// One by its name.
pub fn find(name: &str) -> Option<&'static Template> {
    TEMPLATES.iter().find(|template| template.name == name)
}

impl Template {
    /// Its rules with a name filled in. The name must be one: [`is_name`].
    pub fn filled(&self, name: &str) -> String {
        self.text.replace(NAME, name)
    }
}

/// Whether services and machines may have this name in an identity: nothing in it means something in rules.
pub fn is_name(name: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let inner = |byte: u8| alphanumeric(byte) || matches!(byte, b'-' | b'_');
    let bytes = name.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| alphanumeric(*first) && alphanumeric(*last));
    ends && name.len() <= 256 && bytes.iter().all(|byte| inner(*byte))
}

/// What identities and templated policies of these come to on this site.
pub fn expand(grants: &Grants, datacenter: &str, rules: &mut Rules) {
    let here = |list: &[String]| list.is_empty() || list.iter().any(|one| one.eq_ignore_ascii_case(datacenter));
    let services = grants.services.iter().filter(|one| here(&one.datacenters)).map(|one| (SERVICE, one.name.as_str()));
    let nodes = grants.nodes.iter().filter(|one| one.datacenter.eq_ignore_ascii_case(datacenter));
    let nodes = nodes.map(|one| (NODE, one.name.as_str()));
    let templates = grants.templates.iter().filter(|one| here(&one.datacenters));
    let templates = templates.filter_map(|one| Some((find(&one.template)?.text, one.name.as_str())));
    for (text, name) in services.chain(nodes).chain(templates) {
        // What does not parse gives nothing: names were looked at before they were kept.
        if let Ok(more) = Rules::parse(&text.replace(NAME, name)) {
            rules.merge(&more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{Grants, NodeIdentity, ServiceIdentity, TemplatedPolicy};
    use super::super::rights::{Access, Rights};
    use super::super::rules::{Kind, Rules};
    use super::{TEMPLATES, expand, is_name};

    #[test]
    fn identities_give_their_own_and_the_sight_of_others_on_their_site() {
        let grants = Grants {
            services: vec![
                ServiceIdentity { name: "web".into(), datacenters: Vec::new() },
                ServiceIdentity { name: "far".into(), datacenters: vec!["elsewhere".into()] },
            ],
            nodes: vec![NodeIdentity { name: "n1".into(), datacenter: "DC1".into() }],
            templates: vec![TemplatedPolicy {
                template: "builtin/service".into(),
                name: "db".into(),
                ..Default::default()
            }],
            ..Grants::default()
        };
        let mut rules = Rules::default();
        expand(&grants, "dc1", &mut rules);
        let rights = Rights::new(&rules, false);
        for (kind, name, access, expected) in [
            (Kind::Service, "web", Access::Write, true),
            (Kind::Service, "web-sidecar-proxy", Access::Write, true),
            (Kind::Service, "db", Access::Write, true),
            (Kind::Service, "far", Access::Write, false),
            (Kind::Service, "far", Access::Read, true),
            (Kind::Node, "n1", Access::Write, true),
            (Kind::Node, "n2", Access::Write, false),
            (Kind::Node, "n2", Access::Read, true),
            (Kind::Key, "web", Access::Read, false),
        ] {
            assert_eq!(rights.may(kind, name, access), expected, "{kind:?} {name} {access:?}");
        }
    }

    #[test]
    fn every_template_is_rules_and_no_name_reaches_into_them() {
        for template in &TEMPLATES {
            Rules::parse(&template.filled("a-name")).unwrap();
            assert_eq!(template.needs_name, template.text.contains("{{.Name}}"), "{}", template.name);
        }
        for good in ["a", "a-b_c9", "9"] {
            assert!(is_name(good), "{good}");
        }
        for wrong in ["", "A", "-a", "a-", "a\"", "a b", "ä", &"a".repeat(257)] {
            assert!(!is_name(wrong), "{wrong}");
        }
    }
}
