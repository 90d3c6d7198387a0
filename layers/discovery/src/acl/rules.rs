//! The rules of a policy: which access to which things, by exact name and by prefix. Consul's language, in HCL or JSON; what is
//! a mistake there is one here, with its place, and what only Consul Enterprise has is refused by name.

use std::collections::BTreeMap;

use super::hcl::{self, Body};
use super::rights::Access;

/// The longest rules, in bytes.
pub const MAX_RULES_BYTES: usize = 64 << 10;

/// Things that rules name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// What an agent says and does.
    Agent,
    /// Fired events.
    Event,
    /// Users' keys.
    Key,
    /// Machines.
    Node,
    /// Prepared queries.
    Query,
    /// Services.
    Service,
    /// Sessions, by their machine.
    Session,
}

/// Things of which there is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scalar {
    /// Tokens, policies, roles.
    Acl,
    /// Keys of gossip, of which there are none.
    Keyring,
    /// The consensus.
    Operator,
    /// The service mesh, which there is not.
    Mesh,
    /// Other clusters, which are not known.
    Peering,
}

const KINDS: [(&str, Kind); 7] = [
    ("agent", Kind::Agent),
    ("event", Kind::Event),
    ("key", Kind::Key),
    ("node", Kind::Node),
    ("query", Kind::Query),
    ("service", Kind::Service),
    ("session", Kind::Session),
];

const SCALARS: [(&str, Scalar); 5] = [
    ("acl", Scalar::Acl),
    ("keyring", Scalar::Keyring),
    ("operator", Scalar::Operator),
    ("mesh", Scalar::Mesh),
    ("peering", Scalar::Peering),
];

/// Words of Consul Enterprise, and of parts of Consul that are not here.
const ELSEWHERE: [&str; 6] =
    ["namespace", "namespace_prefix", "partition", "partition_prefix", "identity", "identity_prefix"];

impl Kind {
    /// Consul's word.
    pub fn word(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }
}

impl Scalar {
    /// Consul's word.
    pub fn word(self) -> &'static str {
        SCALARS.iter().find(|(_, scalar)| *scalar == self).map_or("", |(word, _)| word)
    }
}

/// What is wrong with rules, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}{what}", if place.is_empty() { String::new() } else { format!("{place}: ") })]
pub struct RulesError {
    /// A line and a column, or the keys that lead there.
    pub place: String,
    /// What, and what is expected.
    pub what: String,
}

impl RulesError {
    pub(super) fn new(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self { place: place.into(), what: what.into() }
    }
}

/// See the file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// By kind and name; true: of all names that begin so.
    pub(super) named: BTreeMap<(Kind, bool, String), Access>,
    pub(super) scalars: BTreeMap<Scalar, Access>,
}

impl Rules {
    /// Reads rules. Nothing is no rule.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let mut rules = Self::default();
        for statement in hcl::statements(text)? {
            match statement.body {
                Body::Word(word) => rules.scalar(&statement.kind, &statement.place, &word)?,
                Body::Block(name, pairs) => {
                    let (kind, is_prefix) = kind_of(&statement.kind, &statement.place)?;
                    let mut access = None;
                    for pair in pairs {
                        match (pair.key.to_ascii_lowercase().as_str(), kind) {
                            ("policy", _) => access = Some(word(&pair.value, kind == Kind::Key, &pair.place)?),
                            // Read, so that policies written for Consul are good; there are no intentions that it could be about.
                            ("intentions", Kind::Service) => drop(word(&pair.value, false, &pair.place)?),
                            ("sentinel", _) => {
                                return Err(RulesError::new(pair.place, "`sentinel` is Consul Enterprise's"));
                            }
                            _ => {
                                let known = if kind == Kind::Service { "`policy` or `intentions`" } else { "`policy`" };
                                let what = format!("{known} is expected here, not `{}`", pair.key);
                                return Err(RulesError::new(pair.place, what));
                            }
                        }
                    }
                    let Some(access) = access else {
                        return Err(RulesError::new(statement.place, "`policy` is missing: read, write or deny"));
                    };
                    // Consul: of two rules about the same, the stricter holds.
                    rules.add(kind, is_prefix, name, access);
                }
            }
        }
        Ok(rules)
    }

    fn scalar(&mut self, kind: &str, place: &str, value: &str) -> Result<(), RulesError> {
        let Some((_, scalar)) = SCALARS.iter().find(|(word, _)| *word == kind) else {
            kind_of(kind, place)?;
            return Err(RulesError::new(place, format!("`{kind}` needs a name: `{kind} \"NAME\" {{ policy = … }}`")));
        };
        let access = word(value, false, place)?;
        let merged = self.scalars.get(scalar).map_or(access, |known| known.and(access));
        self.scalars.insert(*scalar, merged);
        Ok(())
    }

    fn add(&mut self, kind: Kind, is_prefix: bool, name: String, access: Access) {
        let entry = self.named.entry((kind, is_prefix, name)).or_insert(access);
        *entry = entry.and(access);
    }

    /// Both together: of two rules about the same, `deny` holds, then `write`, `list`, `read`.
    pub fn merge(&mut self, other: &Self) {
        for ((kind, is_prefix, name), access) in &other.named {
            self.add(*kind, *is_prefix, name.clone(), *access);
        }
        for (scalar, access) in &other.scalars {
            let merged = self.scalars.get(scalar).map_or(*access, |known| known.and(*access));
            self.scalars.insert(*scalar, merged);
        }
    }

    /// With one more.
    #[must_use]
    pub fn with(mut self, kind: Kind, is_prefix: bool, name: &str, access: Access) -> Self {
        self.add(kind, is_prefix, name.to_owned(), access);
        self
    }
}

/// The kind of a rule with a name, and whether the name is a prefix.
fn kind_of(word: &str, place: &str) -> Result<(Kind, bool), RulesError> {
    let (plain, is_prefix) = word.strip_suffix("_prefix").map_or((word, false), |plain| (plain, true));
    if let Some((_, kind)) = KINDS.iter().find(|(known, _)| *known == plain) {
        return Ok((*kind, is_prefix));
    }
    if ELSEWHERE.contains(&word) {
        return Err(RulesError::new(
            place,
            format!("`{word}` is not supported: there is nothing here that it could be about"),
        ));
    }
    if SCALARS.iter().any(|(known, _)| *known == word) {
        return Err(RulesError::new(place, format!("`{word}` has no names: `{word} = \"read\"`")));
    }
    let known: Vec<String> = KINDS
        .iter()
        .flat_map(|(known, _)| [(*known).to_owned(), format!("{known}_prefix")])
        .chain(SCALARS.iter().map(|(known, _)| (*known).to_owned()))
        .collect();
    let near = model::diagnostic::nearest(word, known.iter().map(String::as_str));
    let near = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Err(RulesError::new(place, format!("`{word}` is no kind of rule{near}")))
}

fn word(text: &str, lists: bool, place: &str) -> Result<Access, RulesError> {
    match Access::parse(text) {
        Some(Access::List) if !lists => Err(RulesError::new(place, "`list` is for keys only: read, write or deny")),
        Some(access) => Ok(access),
        None => Err(RulesError::new(place, format!("read, write or deny is expected, found {text:?}"))),
    }
}
