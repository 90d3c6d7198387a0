//! All of ACLs as the store says, as a part of the catalog: found by id, by name, by secret; and what a secret comes to.
//! Deliberately absent: clocks (time is an argument), and what this node is told beside the store (`guard.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use super::records::{AuthMethodRecord, BindingRuleRecord, Grants, PolicyRecord, RoleRecord, TokenRecord};
use super::rights::{Identity, Rights};
use super::rules::Rules;
use super::template;
use crate::catalog::Stored;

/// The accessor of the token that stands for whoever sends none.
pub const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
/// Its secret, which is none.
pub const ANONYMOUS_SECRET: &str = "anonymous";
/// The builtin policy that gives everything.
pub const GLOBAL_MANAGEMENT: &str = "00000000-0000-0000-0000-000000000001";
/// The builtin policy that shows everything.
pub const GLOBAL_READ_ONLY: &str = "00000000-0000-0000-0000-000000000002";
/// What ids of builtin things begin with, which nobody else may use.
pub const RESERVED: &str = "00000000-0000-0000-0000-0000000000";

/// What [`GLOBAL_READ_ONLY`] says.
pub const READ_ONLY_RULES: &str = r#"acl = "read"
agent_prefix "" { policy = "read" }
event_prefix "" { policy = "read" }
key_prefix "" { policy = "read" }
keyring = "read"
mesh = "read"
node_prefix "" { policy = "read" }
operator = "read"
peering = "read"
query_prefix "" { policy = "read" }
service_prefix "" { policy = "read" intentions = "read" }
session_prefix "" { policy = "read" }
"#;

/// What [`GLOBAL_MANAGEMENT`] says.
pub const MANAGEMENT_RULES: &str = r#"acl = "write"
agent_prefix "" { policy = "write" }
event_prefix "" { policy = "write" }
key_prefix "" { policy = "write" }
keyring = "write"
mesh = "write"
node_prefix "" { policy = "write" }
operator = "write"
peering = "write"
query_prefix "" { policy = "write" }
service_prefix "" { policy = "write" intentions = "write" }
session_prefix "" { policy = "write" }
"#;

/// A policy that is read once.
#[derive(Clone, Debug)]
pub struct Policy {
    /// As it is stored.
    pub stored: Stored<PolicyRecord>,
    rules: Rules,
}

/// See the file.
#[derive(Clone, Debug, Default)]
pub struct Acls {
    tokens: BTreeMap<String, Stored<TokenRecord>>,
    policies: BTreeMap<String, Policy>,
    roles: BTreeMap<String, Stored<RoleRecord>>,
    methods: BTreeMap<String, Stored<AuthMethodRecord>>,
    rules: BTreeMap<String, Stored<BindingRuleRecord>>,
    /// Accessors by secret.
    secrets: HashMap<String, String>,
    /// Another one after every change, also when everything was read anew.
    version: u64,
    /// When any of it was changed last, in the store.
    sequence: u64,
}

/// A change of one of them.
#[derive(Debug)]
pub(crate) enum Change {
    Token(Option<Stored<TokenRecord>>),
    Policy(Option<Stored<PolicyRecord>>),
    Role(Option<Stored<RoleRecord>>),
    Method(Option<Stored<AuthMethodRecord>>),
    Rule(Option<Stored<BindingRuleRecord>>),
}

impl Acls {
    /// Takes one over.
    pub(crate) fn apply(&mut self, id: String, change: Change) {
        static VERSIONS: AtomicU64 = AtomicU64::new(0);
        self.version = VERSIONS.fetch_add(1, Ordering::Relaxed) + 1;
        match change {
            Change::Token(new) => self.token_is(id, new),
            Change::Policy(Some(stored)) => {
                // Rules were read before they were kept; what a newer version wrote and this one cannot read gives nothing.
                let rules = Rules::parse(&stored.record.rules).unwrap_or_else(|error| {
                    tracing::error!(policy = id, %error, "the rules of a policy cannot be read; it gives nothing");
                    Rules::default()
                });
                self.policies.insert(id, Policy { stored, rules });
            }
            Change::Policy(None) => drop(self.policies.remove(&id)),
            Change::Role(new) => put(&mut self.roles, id, new),
            Change::Method(new) => put(&mut self.methods, id, new),
            Change::Rule(new) => put(&mut self.rules, id, new),
        }
    }

    fn token_is(&mut self, accessor: String, new: Option<Stored<TokenRecord>>) {
        if let Some(old) = self.tokens.remove(&accessor) {
            self.secrets.remove(&old.record.secret);
        }
        if let Some(new) = new {
            self.secrets.insert(new.record.secret.clone(), accessor.clone());
            self.tokens.insert(accessor, new);
        }
    }

    pub(crate) fn changed_at(&mut self, revision: u64) {
        self.sequence = revision;
    }

    /// When any of it was changed last, as a revision of the store.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Another one after every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Tokens by accessor.
    pub fn tokens(&self) -> impl Iterator<Item = (&str, &Stored<TokenRecord>)> {
        self.tokens.iter().map(|(id, one)| (id.as_str(), one))
    }

    /// A token.
    pub fn token(&self, accessor: &str) -> Option<&Stored<TokenRecord>> {
        self.tokens.get(accessor)
    }

    /// A token by what its holder sends.
    pub fn token_of(&self, secret: &str) -> Option<(&str, &Stored<TokenRecord>)> {
        let (accessor, token) = self.tokens.get_key_value(self.secrets.get(secret)?)?;
        Some((accessor, token))
    }

    /// Policies by id.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &Stored<PolicyRecord>)> {
        self.policies.iter().map(|(id, one)| (id.as_str(), &one.stored))
    }

    /// A policy.
    pub fn policy(&self, id: &str) -> Option<&Stored<PolicyRecord>> {
        self.policies.get(id).map(|one| &one.stored)
    }

    /// Roles by id.
    pub fn roles(&self) -> impl Iterator<Item = (&str, &Stored<RoleRecord>)> {
        self.roles.iter().map(|(id, one)| (id.as_str(), one))
    }

    /// A role.
    pub fn role(&self, id: &str) -> Option<&Stored<RoleRecord>> {
        self.roles.get(id)
    }

    /// Ways to log in, by name.
    pub fn methods(&self) -> impl Iterator<Item = (&str, &Stored<AuthMethodRecord>)> {
        self.methods.iter().map(|(id, one)| (id.as_str(), one))
    }

    /// A way to log in.
    pub fn method(&self, name: &str) -> Option<&Stored<AuthMethodRecord>> {
        self.methods.get(name)
    }

    /// Binding rules by id.
    pub fn rules(&self) -> impl Iterator<Item = (&str, &Stored<BindingRuleRecord>)> {
        self.rules.iter().map(|(id, one)| (id.as_str(), one))
    }

    /// A binding rule.
    pub fn rule(&self, id: &str) -> Option<&Stored<BindingRuleRecord>> {
        self.rules.get(id)
    }

    /// Whom a secret stands for at `now_ms`; nobody, if there is no such token or its time is over. `otherwise`: what no rule
    /// is about is allowed.
    pub fn identity(&self, secret: &str, datacenter: &str, otherwise: bool, now_ms: u64) -> Option<Identity> {
        let anonymous = secret == ANONYMOUS_SECRET;
        let found = if anonymous { self.tokens.get_key_value(ANONYMOUS) } else { None };
        let found = found.map(|(accessor, token)| (accessor.as_str(), token)).or_else(|| self.token_of(secret));
        let Some((accessor, token)) = found else {
            let rights = Rights::new(&Rules::default(), otherwise);
            return anonymous.then(|| Identity { accessor: ANONYMOUS.to_owned(), rights, expires_ms: None });
        };
        if token.record.is_expired(now_ms) {
            return None;
        }
        let rights = self.rights(&token.record.grants, datacenter, otherwise);
        Some(Identity { accessor: accessor.to_owned(), rights, expires_ms: token.record.expires_ms })
    }

    /// What these come to. Links to what is no more give nothing.
    pub fn rights(&self, grants: &Grants, datacenter: &str, otherwise: bool) -> Rights {
        let mut rules = Rules::default();
        let roles = grants.roles.iter().filter_map(|id| self.roles.get(id)).map(|role| &role.record.grants);
        for grants in std::iter::once(grants).chain(roles) {
            template::expand(grants, datacenter, &mut rules);
            for id in &grants.policies {
                if id == GLOBAL_MANAGEMENT {
                    return Rights::management();
                }
                if id == GLOBAL_READ_ONLY {
                    rules.merge(&Rules::parse(READ_ONLY_RULES).unwrap_or_default());
                }
                let Some(policy) = self.policies.get(id) else { continue };
                let sites = &policy.stored.record.datacenters;
                if sites.is_empty() || sites.iter().any(|site| site.eq_ignore_ascii_case(datacenter)) {
                    rules.merge(&policy.rules);
                }
            }
        }
        Rights::new(&rules, otherwise)
    }
}

fn put<T>(map: &mut BTreeMap<String, T>, id: String, new: Option<T>) {
    match new {
        Some(new) => drop(map.insert(id, new)),
        None => drop(map.remove(&id)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::{Grants, PolicyRecord, RoleRecord, ServiceIdentity, TokenRecord};
    use super::super::rights::Access;
    use super::super::rules::{Kind, Rules, Scalar};
    use super::{ANONYMOUS, Acls, Change, GLOBAL_MANAGEMENT, GLOBAL_READ_ONLY, MANAGEMENT_RULES, READ_ONLY_RULES};
    use crate::catalog::Stored;

    fn stored<T>(record: T) -> Option<Stored<T>> {
        Some(Stored { record, create: 1, modify: 1 })
    }

    fn policy(acls: &mut Acls, id: &str, rules: &str, datacenters: &[&str]) {
        let datacenters = datacenters.iter().map(|one| (*one).to_owned()).collect();
        let record = PolicyRecord { name: id.into(), rules: rules.into(), datacenters, ..Default::default() };
        acls.apply(id.into(), Change::Policy(stored(record)));
    }

    fn token(acls: &mut Acls, accessor: &str, secret: &str, grants: Grants, expires_ms: Option<u64>) {
        let record = TokenRecord { secret: secret.into(), grants, expires_ms, ..Default::default() };
        acls.apply(accessor.into(), Change::Token(stored(record)));
    }

    #[test]
    fn a_secret_comes_to_what_its_policies_roles_and_identities_give_and_to_nothing_when_its_time_is_over() {
        let mut acls = Acls::default();
        policy(&mut acls, "p1", r#"key_prefix "a/" { policy = "write" }"#, &[]);
        policy(&mut acls, "p2", r#"key_prefix "b/" { policy = "write" }"#, &["dc2"]);
        let services = vec![ServiceIdentity { name: "web".into(), datacenters: Vec::new() }];
        let role = RoleRecord {
            grants: Grants { policies: vec!["p2".into()], services, ..Default::default() },
            ..Default::default()
        };
        acls.apply("r1".into(), Change::Role(stored(role)));
        let grants =
            Grants { policies: vec!["p1".into(), "gone".into()], roles: vec!["r1".into()], ..Default::default() };
        token(&mut acls, "t1", "secret", grants, Some(100));
        let identity = acls.identity("secret", "dc1", false, 99).unwrap();
        assert_eq!(identity.accessor, "t1");
        assert!(identity.rights.may(Kind::Key, "a/x", Access::Write));
        assert!(!identity.rights.may(Kind::Key, "b/x", Access::Write), "that policy is for another site");
        assert!(identity.rights.may(Kind::Service, "web", Access::Write));
        let there = acls.identity("secret", "dc2", false, 99).unwrap();
        assert!(there.rights.may(Kind::Key, "b/x", Access::Write));
        assert!(acls.identity("secret", "dc1", false, 100).is_none(), "its time is over");
        assert!(acls.identity("other", "dc1", true, 0).is_none());
        // A policy that is changed changes what its tokens may; one that is gone gives nothing.
        let before = acls.version();
        policy(&mut acls, "p1", r#"key_prefix "a/" { policy = "read" }"#, &[]);
        assert_ne!(acls.version(), before);
        assert!(!acls.identity("secret", "dc1", false, 0).unwrap().rights.may(Kind::Key, "a/x", Access::Write));
        acls.apply("t1".into(), Change::Token(None));
        assert!(acls.identity("secret", "dc1", false, 0).is_none());
    }

    #[test]
    fn the_anonymous_token_is_there_without_being_written_and_may_be_given_more() {
        let mut acls = Acls::default();
        for (otherwise, secret) in [(true, "anonymous"), (false, "anonymous")] {
            let identity = acls.identity(secret, "dc1", otherwise, 0).unwrap();
            assert_eq!((identity.accessor.as_str(), identity.sees_node("n")), (ANONYMOUS, otherwise));
            assert!(!identity.rights.may_in(Scalar::Acl, Access::Read));
        }
        policy(&mut acls, "p", r#"node_prefix "" { policy = "read" }"#, &[]);
        token(&mut acls, ANONYMOUS, "anonymous", Grants { policies: vec!["p".into()], ..Default::default() }, None);
        assert!(acls.identity("anonymous", "dc1", false, 0).unwrap().sees_node("n"));
    }

    #[test]
    fn builtin_policies_are_rules_and_give_what_they_say() {
        Rules::parse(MANAGEMENT_RULES).unwrap();
        Rules::parse(READ_ONLY_RULES).unwrap();
        let acls = Acls::default();
        let of = |id: &str| acls.rights(&Grants { policies: vec![id.into()], ..Default::default() }, "dc1", false);
        assert!(of(GLOBAL_MANAGEMENT).may_in(Scalar::Acl, Access::Write));
        let reads = of(GLOBAL_READ_ONLY);
        assert!(reads.may(Kind::Key, "x", Access::Read) && !reads.may(Kind::Key, "x", Access::Write));
        assert!(reads.may_in(Scalar::Acl, Access::Read) && !reads.may_in(Scalar::Acl, Access::Write));
    }
}
