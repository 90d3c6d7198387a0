//! Changes of ACLs: decided on all that there is, and written only if none of that has changed meanwhile. Names and secrets stay
//! unique that way, whichever nodes are asked at the same time.

use data::{Compare, Op};
use model::Revision;

use super::guard::now_ms;
use super::state::Acls;
use crate::key::{About, AclKind};
use crate::registry::{Registry, RegistryError, Written};
use crate::writing;

/// Against others who change ACLs all the time.
const ATTEMPTS: usize = 32;
/// Tokens that are taken away at once.
const TOGETHER: usize = 90;

impl Registry {
    /// Writes what `decide` makes of what there is, which may be nothing. What comes with it is handed on, with the revision.
    ///
    /// # Errors
    /// What `decide` says; the store's.
    pub async fn change_acls<T, E: From<RegistryError>>(
        &self,
        decide: impl Fn(&Acls) -> Result<(Vec<Op>, T), E>,
    ) -> Result<(T, u64), E> {
        for _ in 0..ATTEMPTS {
            self.catch_up().await?;
            let (mut ops, told, compare) = {
                let reading = self.read();
                let (ops, told) = decide(reading.acls())?;
                if ops.is_empty() {
                    return Ok((told, reading.revision()));
                }
                let key = About::AclSequence.key().map_err(RegistryError::from)?;
                (ops, told, Compare::mod_revision(key, Revision(reading.acls().sequence())))
            };
            ops.push(Op::put(About::AclSequence.key().map_err(RegistryError::from)?, ""));
            if let Written::At(revision) = self.write(vec![compare], ops).await? {
                return Ok((told, revision));
            }
        }
        Err(RegistryError::Busy.into())
    }

    /// Takes tokens away whose time is over. How many that were.
    ///
    /// # Errors
    /// The store's.
    pub async fn remove_expired_tokens(&self) -> Result<usize, RegistryError> {
        let expired = |acls: &Acls| -> Vec<String> {
            let now_ms = now_ms();
            let over = acls.tokens().filter(|(_, token)| token.record.is_expired(now_ms));
            over.map(|(accessor, _)| accessor.to_owned()).take(TOGETHER).collect()
        };
        if expired(self.read().acls()).is_empty() {
            return Ok(0);
        }
        let decide = |acls: &Acls| {
            let gone = expired(acls);
            let ops: Result<Vec<Op>, _> =
                gone.iter().map(|accessor| writing::delete(&About::Acl(AclKind::Token, accessor.clone()))).collect();
            Ok::<_, RegistryError>((ops?, gone.len()))
        };
        Ok(self.change_acls(decide).await?.0)
    }
}
