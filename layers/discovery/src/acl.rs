//! Who may what in the registry, in Consul's meaning: rules that policies have ([`rules`]), what tokens, roles and identities
//! come to ([`records`], [`template`]), the decision ([`rights`]), and all of it as the store has it ([`state`]).
//! Pure but for [`guard`], which holds what this node knows. Deliberately absent: HTTP, and signatures of those who log in.

pub mod bind;
pub mod guard;
mod hcl;
pub mod records;
pub mod rights;
pub mod rules;
pub mod state;
pub mod template;
mod writing;

pub use guard::{AgentToken, Guard, Settings};
pub use rights::{Access, Identity, Rights};
pub use rules::{Kind, Rules, RulesError, Scalar};
pub use state::{ANONYMOUS, ANONYMOUS_SECRET, Acls, GLOBAL_MANAGEMENT, GLOBAL_READ_ONLY};
