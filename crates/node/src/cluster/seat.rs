//! What this node is to the cluster's store: a member with a store of its own, or an agent that asks servers.
//! Whatever is done with keys goes through the `Store` trait; here is the little that is about members.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use data::{Store, StoreError, Streams};
use data_raft::{
    CertificateAnswer, CertificateRequest, Members, OpenError, Options, Peers, RaftStore, RemoteOptions, RemoteStore,
};
use model::config::{Durability, NodeRole, Service};
use model::{Config, ServiceName};

use crate::offline::STORE;

/// A store is waited for so long, if a node process still holds it whose keeper has just died: the directory is this
/// keeper's, so that process is on its way out.
const LEFT_OVER: Duration = Duration::from_secs(5);
/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The node's store, by what the node is.
#[derive(Clone)]
pub enum Seat {
    /// It has one.
    Member(Arc<RaftStore>),
    /// It asks servers.
    Agent(Arc<RemoteStore>),
}

/// The same without keeping it.
#[derive(Clone)]
pub enum WeakSeat {
    /// See [`Seat::Member`].
    Member(Weak<RaftStore>),
    /// See [`Seat::Agent`].
    Agent(Weak<RemoteStore>),
}

impl Seat {
    /// Opens the store of this node; with `peers`, as their member or agent.
    ///
    /// # Errors
    /// What is wrong with its directory, and what to do.
    pub fn open(config: &Config, data_dir: &Path, peers: Option<Peers>) -> Result<Self, String> {
        let directory = data_dir.join(STORE);
        if let (NodeRole::Agent, Some(peers)) = (config.node.role, &peers) {
            if directory.exists() {
                let name = &config.node.name;
                return Err(format!(
                    "{} holds the data of a member, and this node is to be an agent. Set node.role back, or take it out of \
                     the cluster (`seawall cluster remove {name}` on another node) and start it with an empty data directory",
                    directory.display()
                ));
            }
            let directory = Some(data_dir.to_path_buf());
            return Ok(Self::Agent(RemoteStore::open(RemoteOptions { peers: peers.clone(), directory })));
        }
        let mut options = Options::new(directory);
        options.durability = match config.node.durability {
            Durability::Sync => data::Durability::Sync,
            Durability::Async => data::Durability::Async,
        };
        if peers.is_some() {
            options.entries_behind_snapshot = super::ENTRIES_BEHIND_SNAPSHOT;
            options.witness_log_bytes = config.node.witness_log_limit;
        }
        options.peers = peers;
        let is_held = |error: &OpenError| matches!(error, OpenError::Locked { .. });
        let store = when_free(|| RaftStore::open(options.clone()), is_held).map_err(|error| error.to_string())?;
        Ok(Self::Member(store))
    }

    /// The store itself.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Member(store) => Arc::<RaftStore>::clone(store),
            Self::Agent(store) => Arc::<RemoteStore>::clone(store),
        }
    }

    /// The streams beside it.
    ///
    /// # Errors
    /// What is wrong with their directory, and what to do.
    pub fn open_streams(&self, config: &Config) -> Result<Arc<dyn Streams>, String> {
        Ok(match self {
            Self::Member(store) => crate::streams::open(store, config)?,
            Self::Agent(store) => store.open_streams(),
        })
    }

    /// Holds each service's keys to its `kvQuotaBytes`. An agent holds none.
    pub fn hold_to_quotas(&self, config: &Config) {
        if let Self::Member(store) = self {
            let quota = |(name, service): (&ServiceName, &Service)| (name.to_string(), service.kv_quota_bytes);
            store.hold_to(config.services.iter().map(quota).collect());
        }
    }

    /// See [`RaftStore::members`].
    pub async fn members(&self) -> Members {
        match self {
            Self::Member(store) => store.members().await,
            Self::Agent(store) => store.members().await,
        }
    }

    /// See [`RaftStore::remove_member`].
    ///
    /// # Errors
    /// As there.
    pub async fn remove_member(&self, name: &str) -> Result<Members, StoreError> {
        match self {
            Self::Member(store) => store.remove_member(name).await,
            Self::Agent(store) => store.remove_member(name).await,
        }
    }

    /// See [`RaftStore::transfer_leader`].
    ///
    /// # Errors
    /// As there.
    pub async fn transfer_leader(&self, name: &str) -> Result<Members, StoreError> {
        match self {
            Self::Member(store) => store.transfer_leader(name).await,
            Self::Agent(store) => store.transfer_leader(name).await,
        }
    }

    /// See [`RaftStore::certificate`].
    pub async fn certificate(&self, request: &CertificateRequest) -> CertificateAnswer {
        match self {
            Self::Member(store) => store.certificate(request).await,
            Self::Agent(store) => store.certificate(request).await,
        }
    }

    /// A handle that does not keep it.
    pub fn downgrade(&self) -> WeakSeat {
        match self {
            Self::Member(store) => WeakSeat::Member(Arc::downgrade(store)),
            Self::Agent(store) => WeakSeat::Agent(Arc::downgrade(store)),
        }
    }
}

/// Has a store opened that a node process on its way out may still hold: the last of it that goes may be a flush.
///
/// # Errors
/// As `open`; the store is still held after [`LEFT_OVER`], too.
pub(crate) fn when_free<T, E>(open: impl Fn() -> Result<T, E>, is_held: impl Fn(&E) -> bool) -> Result<T, E> {
    let until = Instant::now() + LEFT_OVER;
    loop {
        match open() {
            Err(error) if is_held(&error) && Instant::now() < until => std::thread::sleep(LOOK_AGAIN),
            opened => return opened,
        }
    }
}

impl WeakSeat {
    /// The store, while it is there.
    pub fn upgrade(&self) -> Option<Seat> {
        match self {
            Self::Member(store) => store.upgrade().map(Seat::Member),
            Self::Agent(store) => store.upgrade().map(Seat::Agent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::when_free;

    #[test]
    fn what_is_held_for_a_moment_is_waited_for_and_nothing_else() {
        let asked = Cell::new(0);
        let open = || {
            asked.set(asked.get() + 1);
            if asked.get() < 3 { Err("held") } else { Ok(asked.get()) }
        };
        assert_eq!(when_free(open, |error| *error == "held"), Ok(3));
        asked.set(0);
        assert_eq!(when_free(open, |error| *error == "lost"), Err("held"));
        assert_eq!(asked.get(), 1);
    }
}
