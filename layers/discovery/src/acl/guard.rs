//! What this node goes by: whether ACLs are on, what holds where no rule says anything, its own management token, and the
//! tokens that stand in where a request or a question by DNS has none. Whom a secret stands for is kept until any of the ACLs
//! changes, so that a request costs a look into a map and never the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::SystemTime;

use super::rights::{Access, Identity, Rights};
use super::rules::{Kind, Rules};
use super::state::ANONYMOUS_SECRET;
use crate::registry::Registry;

/// Identities that are kept at most.
const MOST: usize = 10_000;

/// See the file.
pub struct Settings {
    /// What no rule is about is allowed.
    pub allows_by_default: bool,
    /// The secret that may everything on this node, whatever the store says.
    pub management: String,
    /// Its accessor.
    pub management_accessor: String,
}

/// Tokens that somebody may give an agent.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum AgentToken {
    /// For requests that have none.
    Default,
    /// For questions by DNS.
    Dns,
    /// That may change this agent though the registry cannot be read.
    Recovery,
}

/// What this node goes by; only there while ACLs are on.
pub struct Guard {
    settings: Settings,
    management: Arc<Identity>,
    given: RwLock<HashMap<AgentToken, String>>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Of which version of the ACLs.
    version: u64,
    by_secret: HashMap<String, Arc<Identity>>,
}

impl Guard {
    /// By these.
    pub fn new(settings: Settings) -> Self {
        let accessor = settings.management_accessor.clone();
        let management = Identity { accessor, rights: Rights::management(), expires_ms: None };
        Self { settings, management: Arc::new(management), given: RwLock::default(), known: Mutex::default() }
    }

    /// What no rule is about is allowed.
    pub fn allows_by_default(&self) -> bool {
        self.settings.allows_by_default
    }

    /// The secret and the accessor of this node's management token.
    pub fn management(&self) -> (&str, &str) {
        (&self.settings.management, &self.settings.management_accessor)
    }

    /// A token that this node was given; until it ends.
    pub fn given(&self, which: AgentToken) -> Option<String> {
        self.given.read().unwrap_or_else(PoisonError::into_inner).get(&which).cloned()
    }

    /// Gives this node a token; an empty one takes it away.
    pub fn give(&self, which: AgentToken, secret: String) {
        let mut given = self.given.write().unwrap_or_else(PoisonError::into_inner);
        if secret.is_empty() {
            given.remove(&which);
        } else {
            given.insert(which, secret);
        }
    }

    /// Whom a secret stands for as far as `registry` knows; without one, whoever stands in.
    pub fn identity(&self, registry: &Registry, secret: Option<&str>) -> Option<Arc<Identity>> {
        let stands_in = if secret.is_none() { self.given(AgentToken::Default) } else { None };
        let secret = secret.or(stands_in.as_deref()).unwrap_or(ANONYMOUS_SECRET);
        if same(secret, &self.settings.management) {
            return Some(Arc::clone(&self.management));
        }
        if self.given(AgentToken::Recovery).is_some_and(|recovery| same(secret, &recovery)) {
            return Some(Arc::new(recovery(registry.node())));
        }
        let reading = registry.read();
        if !reading.is_known() {
            // Nobody knows yet what the anonymous token may: nothing, then.
            return (secret == ANONYMOUS_SECRET).then(|| Arc::new(Identity::nobody()));
        }
        let (acls, now_ms) = (reading.acls(), now_ms());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.version != acls.version() || known.by_secret.len() >= MOST {
            *known = Known { version: acls.version(), ..Known::default() };
        }
        if let Some(found) = known.by_secret.get(secret) {
            let is_over = found.expires_ms.is_some_and(|expires| expires <= now_ms);
            return (!is_over).then(|| Arc::clone(found));
        }
        let found = acls.identity(secret, registry.datacenter(), self.settings.allows_by_default, now_ms)?;
        let found = Arc::new(found);
        known.by_secret.insert(secret.to_owned(), Arc::clone(&found));
        Some(found)
    }

    /// Who asks by DNS: a token that was given for that, else whoever stands in for those without any.
    pub fn dns(&self, registry: &Registry) -> Option<Arc<Identity>> {
        let given = self.given(AgentToken::Dns);
        self.identity(registry, given.as_deref())
    }
}

/// Consul: it may change its agent, and see machines.
fn recovery(node: &str) -> Identity {
    let rules = Rules::default().with(Kind::Agent, false, node, Access::Write).with(Kind::Node, true, "", Access::Read);
    Identity { accessor: "agent-recovery".into(), rights: Rights::new(&rules, false), expires_ms: None }
}

/// Now, in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Compares without telling by its duration how much was right.
fn same(one: &str, other: &str) -> bool {
    let pairs = one.bytes().zip(other.bytes());
    one.len() == other.len() && pairs.fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

// Secrets are in no log.
impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guard").field("allows_by_default", &self.settings.allows_by_default).finish_non_exhaustive()
    }
}
