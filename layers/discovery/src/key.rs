//! Keys of the registry in the store. They lie under a prefix of their own: no key of a user, and none of Consul's
//! key-value store, which is the users', reaches them.

use data::{Key, StoreError};

/// In front of every key of the registry.
pub const REGISTRY: &str = "registry/";
/// In front of what hangs on a user's key.
pub(crate) const KV: &str = "registry/kv/";
/// Written with every change: a confirmed read of it tells how far the registry is.
const SEQUENCE: &str = "registry/sequence";
/// Written with every change of ACLs: one that was decided on what is there no more is refused.
const ACL_SEQUENCE: &str = "registry/acl-sequence";
/// The longest name of a node, an instance or a check, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// What a key is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum About {
    /// A machine.
    Node(String),
    /// A machine's Seawall is alive.
    Alive(String),
    /// An instance on a node.
    Service(String, String),
    /// A check on a node.
    Check(String, String),
    /// A session.
    Session(String),
    /// What hangs on a user's key.
    Kv(Vec<u8>),
    /// A prepared query.
    Query(String),
    /// A fired event.
    Fired(String),
    /// Something of ACLs.
    Acl(AclKind, String),
    /// Written with every change.
    Sequence,
    /// Written with every change of ACLs.
    AclSequence,
    /// Of a newer version.
    Other,
}

/// What there is of ACLs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AclKind {
    /// A token, by its accessor.
    Token,
    /// A policy, by its id.
    Policy,
    /// A role, by its id.
    Role,
    /// A way to log in, by its name.
    Method,
    /// A binding rule, by its id.
    Rule,
}

const ACL_KINDS: [(&str, AclKind); 5] = [
    ("acl-token", AclKind::Token),
    ("acl-policy", AclKind::Policy),
    ("acl-role", AclKind::Role),
    ("acl-method", AclKind::Method),
    ("acl-rule", AclKind::Rule),
];

impl AclKind {
    fn word(self) -> &'static str {
        ACL_KINDS.iter().find(|(_, kind)| *kind == self).map_or("acl", |(word, _)| word)
    }

    fn of(word: &str) -> Option<Self> {
        ACL_KINDS.iter().find(|(known, _)| *known == word).map(|(_, kind)| *kind)
    }
}

impl About {
    /// Reads a key.
    pub fn of(key: &Key) -> Self {
        let bytes = key.as_bytes();
        if let Some(user) = bytes.strip_prefix(KV.as_bytes()) {
            return Self::Kv(user.to_vec());
        }
        let Some(text) = key.as_str() else { return Self::Other };
        if text == SEQUENCE {
            return Self::Sequence;
        }
        if text == ACL_SEQUENCE {
            return Self::AclSequence;
        }
        let mut parts = text.strip_prefix(REGISTRY).unwrap_or_default().split('/');
        let read = (parts.next(), parts.next().and_then(unescape), parts.next().map(unescape), parts.next());
        match read {
            (Some("node"), Some(node), None, None) => Self::Node(node),
            (Some("alive"), Some(node), None, None) => Self::Alive(node),
            (Some("service"), Some(node), Some(Some(id)), None) => Self::Service(node, id),
            (Some("check"), Some(node), Some(Some(id)), None) => Self::Check(node, id),
            (Some("session"), Some(id), None, None) => Self::Session(id),
            (Some("query"), Some(id), None, None) => Self::Query(id),
            (Some("event"), Some(id), None, None) => Self::Fired(id),
            (Some(word), Some(id), None, None) => AclKind::of(word).map_or(Self::Other, |kind| Self::Acl(kind, id)),
            _ => Self::Other,
        }
    }

    /// The key.
    ///
    /// # Errors
    /// A name of it is too long.
    pub fn key(&self) -> Result<Key, StoreError> {
        match self {
            Self::Node(node) => named("node", &[node]),
            Self::Alive(node) => named("alive", &[node]),
            Self::Service(node, id) => named("service", &[node, id]),
            Self::Check(node, id) => named("check", &[node, id]),
            Self::Session(id) => named("session", &[id]),
            Self::Query(id) => named("query", &[id]),
            Self::Fired(id) => named("event", &[id]),
            Self::Acl(kind, id) => named(kind.word(), &[id]),
            Self::Kv(user) => Key::new([KV.as_bytes(), user.as_slice()].concat()),
            Self::AclSequence => Key::try_from(ACL_SEQUENCE),
            Self::Sequence | Self::Other => Key::try_from(SEQUENCE),
        }
    }
}

/// In front of everything of one kind on a node, `service` or `check`.
pub fn on_node(kind: &str, node: &str) -> Vec<u8> {
    format!("{REGISTRY}{kind}/{}/", escape(node)).into_bytes()
}

fn named(kind: &str, names: &[&String]) -> Result<Key, StoreError> {
    let mut text = format!("{REGISTRY}{kind}");
    for name in names {
        if name.is_empty() {
            return Err(StoreError::Invalid { what: "a name in the registry must not be empty" });
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(StoreError::TooLarge {
                what: "a name in the registry",
                bytes: name.len(),
                limit: MAX_NAME_BYTES,
            });
        }
        text.push('/');
        text += &escape(name);
    }
    Key::new(text.into_bytes())
}

/// Names may have a `/`, which parts a key.
fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2f")
}

fn unescape(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| name.replace("%2f", "/").replace("%25", "%"))
}

#[cfg(test)]
mod tests {
    use super::{About, AclKind};

    #[test]
    fn keys_are_read_as_they_are_written() {
        let all = [
            About::Node("n/1%2f".into()),
            About::Alive("n1".into()),
            About::Service("n1".into(), "web/a%".into()),
            About::Check("n1".into(), "service:web".into()),
            About::Session("s".into()),
            About::Kv(vec![0xff, b'/']),
            About::Query("q".into()),
            About::Fired("e".into()),
            About::Acl(AclKind::Token, "t".into()),
            About::Acl(AclKind::Policy, "p".into()),
            About::Acl(AclKind::Role, "r".into()),
            About::Acl(AclKind::Method, "m/1".into()),
            About::Acl(AclKind::Rule, "b".into()),
            About::Sequence,
            About::AclSequence,
        ];
        for about in all {
            assert_eq!(About::of(&about.key().unwrap()), about);
        }
        assert_eq!(About::of(&data::Key::try_from("registry/new/x/y/z").unwrap()), About::Other);
        assert!(About::Node(String::new()).key().is_err());
        assert!(About::Node("n".repeat(256)).key().is_err());
    }
}
