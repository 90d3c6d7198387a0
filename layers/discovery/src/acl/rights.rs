//! The decision: what somebody may do, by the rules that they have and by what holds where no rule says anything. An exact
//! name goes before a prefix, a longer prefix before a shorter one (Consul's `acl/policy_authorizer.go`).

use std::collections::{BTreeSet, HashMap};

use super::rules::{Kind, Rules, Scalar};

/// What a rule gives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Access {
    /// Nothing.
    Deny,
    /// To see it.
    Read,
    /// To see it among others; keys only.
    List,
    /// To see and change it.
    Write,
}

impl Access {
    /// Reads Consul's word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "deny" => Self::Deny,
            "read" => Self::Read,
            "list" => Self::List,
            "write" => Self::Write,
            _ => return None,
        })
    }

    /// Consul's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Read => "read",
            Self::List => "list",
            Self::Write => "write",
        }
    }

    /// Of two policies about the same: who denies wins, else who gives more.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        if self == Self::Deny || other == Self::Deny { Self::Deny } else { self.max(other) }
    }
}

/// What somebody may do.
#[derive(Clone, Debug)]
pub struct Rights {
    kinds: HashMap<Kind, Of>,
    scalars: HashMap<Scalar, Access>,
    /// Where no rule says anything: everything but [`Scalar::Acl`], or nothing.
    otherwise: bool,
    /// It may everything, whatever rules say.
    manages: bool,
}

/// Rules of one kind.
#[derive(Clone, Debug, Default)]
struct Of {
    exact: HashMap<String, Access>,
    prefixes: HashMap<String, Access>,
    /// How long prefixes are, in bytes.
    lengths: BTreeSet<usize>,
}

impl Of {
    fn rule(&self, name: &str) -> Option<Access> {
        self.exact.get(name).or_else(|| self.longest(name)).copied()
    }

    fn longest(&self, name: &str) -> Option<&Access> {
        let fitting = self.lengths.range(..=name.len()).rev();
        fitting.filter_map(|length| name.get(..*length)).find_map(|prefix| self.prefixes.get(prefix))
    }
}

impl Rights {
    /// By these rules; `otherwise`: what no rule is about is allowed.
    pub fn new(rules: &Rules, otherwise: bool) -> Self {
        let mut kinds: HashMap<Kind, Of> = HashMap::new();
        for ((kind, is_prefix, name), access) in &rules.named {
            let of = kinds.entry(*kind).or_default();
            if *is_prefix {
                of.lengths.insert(name.len());
                of.prefixes.insert(name.clone(), *access);
            } else {
                of.exact.insert(name.clone(), *access);
            }
        }
        let scalars = rules.scalars.iter().map(|(scalar, access)| (*scalar, *access)).collect();
        Self { kinds, scalars, otherwise, manages: false }
    }

    /// To do everything.
    pub fn management() -> Self {
        Self { manages: true, ..Self::new(&Rules::default(), true) }
    }

    /// To do nothing.
    pub fn none() -> Self {
        Self::new(&Rules::default(), false)
    }

    /// Nothing is kept from it, so that nothing needs to be left out.
    pub fn is_management(&self) -> bool {
        self.manages
    }

    /// Whether `access` to one thing is given.
    pub fn may(&self, kind: Kind, name: &str, access: Access) -> bool {
        self.manages || self.kinds.get(&kind).and_then(|of| of.rule(name)).map_or(self.otherwise, |rule| rule >= access)
    }

    /// Whether all keys that begin so may be written: none of them is excepted by a rule.
    pub fn may_write_tree(&self, prefix: &str) -> bool {
        if self.manages {
            return true;
        }
        let Some(of) = self.kinds.get(&Kind::Key) else { return self.otherwise };
        let excepted = |(name, access): (&String, &Access)| name.starts_with(prefix) && *access != Access::Write;
        let base = of.longest(prefix).map_or(self.otherwise, |access| *access == Access::Write);
        base && !of.prefixes.iter().any(excepted) && !of.exact.iter().any(excepted)
    }

    /// Whether `access` to what there is one of is given. ACLs are never open by default, as in Consul.
    pub fn may_in(&self, scalar: Scalar, access: Access) -> bool {
        let by_default = self.otherwise && scalar != Scalar::Acl;
        self.manages || self.scalars.get(&scalar).map_or(by_default, |rule| *rule >= access)
    }
}

/// Somebody who was recognized by a token.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The token's public id.
    pub accessor: String,
    /// What it may.
    pub rights: Rights,
    /// When it ends, in milliseconds since the Unix epoch.
    pub expires_ms: Option<u64>,
}

impl Identity {
    /// Whoever is not recognized: nothing.
    pub fn nobody() -> Self {
        Self { accessor: super::state::ANONYMOUS.to_owned(), rights: Rights::none(), expires_ms: None }
    }

    /// Whether a machine may be seen.
    pub fn sees_node(&self, node: &str) -> bool {
        self.rights.may(Kind::Node, node, Access::Read)
    }

    /// Whether a service may be seen; what belongs to none is seen with its machine.
    pub fn sees_service(&self, service: &str) -> bool {
        service.is_empty() || self.rights.may(Kind::Service, service, Access::Read)
    }
}

#[cfg(test)]
mod tests {
    use super::{Access, Kind, Rights, Rules, Scalar};

    fn rights(texts: &[&str], otherwise: bool) -> Rights {
        let mut all = Rules::default();
        texts.iter().for_each(|text| all.merge(&Rules::parse(text).unwrap()));
        Rights::new(&all, otherwise)
    }

    #[test]
    fn an_exact_name_goes_before_the_longest_prefix_and_that_before_shorter_ones() {
        let text = r#"
            key_prefix "" { policy = "read" }
            key_prefix "app/" { policy = "write" } # the team's
            key_prefix "app/secret" { policy = "deny" }
            key "app/secret/open" { policy = "read" }
            service "web" { policy = "write", intentions = "read" } // another
            node_prefix "db-" { policy = "read" } /* and
            more */ operator = "read"
        "#;
        for otherwise in [true, false] {
            let rights = rights(&[text], otherwise);
            let key = |name, access| rights.may(Kind::Key, name, access);
            assert!(key("x", Access::Read) && !key("x", Access::Write) && !key("x", Access::List));
            assert!(key("app/x", Access::Write) && key("app/x", Access::Read) && key("app/x", Access::List));
            assert!(!key("app/secrets", Access::Read));
            assert!(key("app/secret/open", Access::Read) && !key("app/secret/open", Access::Write));
            assert!(!key("app/secret/open/more", Access::Read));
            assert!(rights.may(Kind::Service, "web", Access::Write));
            assert_eq!(rights.may(Kind::Service, "web-2", Access::Read), otherwise);
            assert!(rights.may(Kind::Node, "db-1", Access::Read) && !rights.may(Kind::Node, "db-1", Access::Write));
            assert_eq!(rights.may(Kind::Node, "db", Access::Read), otherwise);
            assert!(rights.may_in(Scalar::Operator, Access::Read) && !rights.may_in(Scalar::Operator, Access::Write));
            assert_eq!(rights.may_in(Scalar::Keyring, Access::Read), otherwise);
            // Whatever holds by default, ACLs are for those who have them by a rule.
            assert!(!rights.may_in(Scalar::Acl, Access::Read));
        }
        // A prefix that ends within a letter of several bytes fits nothing.
        let cut = rights(&[r#"key_prefix "ä" { policy = "read" }"#], false);
        assert!(cut.may(Kind::Key, "äb", Access::Read) && !cut.may(Kind::Key, "ö", Access::Read));
    }

    #[test]
    fn of_several_policies_deny_wins_then_the_one_that_gives_more() {
        let of = |word: &str| format!(r#"{{ "key": {{ "k": {{ "policy": "{word}" }} }} }}"#);
        let words = ["read", "list", "write", "deny"];
        for (at, one) in words.iter().enumerate() {
            for (other_at, other) in words.iter().enumerate() {
                let rights = rights(&[&of(one), &of(other)], true);
                let wins = Access::parse(words[at.max(other_at)]).unwrap();
                for asked in [Access::Read, Access::List, Access::Write] {
                    assert_eq!(rights.may(Kind::Key, "k", asked), wins >= asked, "{one} and {other}: {asked:?}");
                }
            }
        }
    }

    #[test]
    fn a_tree_is_written_only_if_nothing_in_it_is_excepted() {
        let rights = rights(
            &[
                r#"key_prefix "a/" { policy = "write" } key_prefix "a/b/c" { policy = "read" } key "d" { policy = "write" }"#,
            ],
            false,
        );
        for (prefix, expected) in
            [("a/", false), ("a/b/", false), ("a/x", true), ("a/b/d", true), ("", false), ("a", false), ("d", false)]
        {
            assert_eq!(rights.may_write_tree(prefix), expected, "{prefix:?}");
        }
        let open = super::Rights::new(&Rules::parse(r#"key "keep" { policy = "read" }"#).unwrap(), true);
        assert!(open.may_write_tree("x") && !open.may_write_tree("") && !open.may_write_tree("keep"));
    }

    #[test]
    fn mistakes_have_their_place_and_a_cure() {
        for (text, expected) in [
            (
                "service \"web\" {\n  policy = \"wirte\"\n}",
                "line 2, column 3: read, write or deny is expected, found \"wirte\"",
            ),
            (
                "servce \"web\" { policy = \"read\" }",
                "line 1, column 1: `servce` is no kind of rule; did you mean `service`?",
            ),
            (
                "service \"web\" { plicy = \"read\" }",
                "line 1, column 17: `policy` or `intentions` is expected here, not `plicy`",
            ),
            (
                "service \"web\" { policy = \"list\" }",
                "line 1, column 17: `list` is for keys only: read, write or deny",
            ),
            ("service \"web\" { }", "line 1, column 1: `policy` is missing: read, write or deny"),
            ("service = \"read\"", "line 1, column 1: `service` needs a name: `service \"NAME\" { policy = … }`"),
            (
                "operator \"x\" { policy = \"read\" }",
                "line 1, column 1: `operator` has no names: `operator = \"read\"`",
            ),
            (
                "partition \"x\" { policy = \"read\" }",
                "line 1, column 1: `partition` is not supported: there is nothing here that it could be about",
            ),
            ("key \"a { policy", "line 1, column 5: this text has no end"),
            ("key \"a\" { policy = 1 }", "line 1, column 20: a text in quotes is expected, found '1'"),
            (
                "key \"a\" { policy = \"read\"",
                "line 1, column 26: a key, like `policy`, or `}` is expected, found the end",
            ),
            ("/* x", "line 1, column 1: this comment has no end"),
            (r#"{ "key": { "a": { "policy": 1 } } }"#, "key.\"a\".policy: a text is expected here"),
            (r#"{ "key": 3 }"#, "key: an object is expected here"),
            ("{ nonsense", "line 1, column 3: no JSON: key must be a string at line 1 column 3"),
        ] {
            assert_eq!(Rules::parse(text).unwrap_err().to_string(), expected, "{text}");
        }
        let long = format!("# {}", "x".repeat(70_000));
        assert!(Rules::parse(&long).unwrap_err().what.contains("65536 bytes"));
        assert_eq!(Rules::parse("").unwrap(), Rules::default());
        // A list in JSON is the same key several times.
        let list = r#"{ "key": [{ "a": { "policy": "read" } }, { "b": [{ "policy": "write" }] }], "acl": "write" }"#;
        let rights = rights(&[list], false);
        assert!(rights.may(Kind::Key, "a", Access::Read) && rights.may(Kind::Key, "b", Access::Write));
        assert!(rights.may_in(Scalar::Acl, Access::Write));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_written_nothing_panics(text in "[ -~\\n\"{}=ä]{0,200}") {
            let _ = Rules::parse(&text);
        }
    }
}
