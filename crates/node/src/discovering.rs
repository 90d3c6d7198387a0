//! This node in the registry: what it runs is written there as what others register is, so that both are found in the same
//! way; and what has to be cleaned up is. Everything here comes back to the store: nobody else is told anything.
//! Beside the failure walk: readiness that changes is written here, too. Deliberately absent: routing to what Seawall runs,
//! which rests on the controller alone.

mod checks;
pub mod definitions;
mod feeds;
mod making;
mod own;
mod reaper;
mod routed;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::ConsulFacts;
use api::view::Status;
use data::Store;
use discovery::acl::{Guard, Settings};
use discovery::{Registry, RegistryError, Topic};
use gateway::Table;
use model::config::{DefaultPolicy, NodeRole, Source};
use model::{Config, ServiceName};
use tokio::sync::{Notify, watch};

use crate::cluster;
use crate::shell::Shell;

/// Keeps the node's id, as Consul does.
const NODE_ID: &str = "node-id";
/// After definitions that could not be registered.
const FILES_AGAIN: Duration = Duration::from_secs(1);
/// Being registered takes no longer, unless the store does not serve.
const REGISTERING: Duration = Duration::from_secs(2);

/// What the configuration in force wants of the registry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// Services that routes lead to and no file declares.
    pub routed: BTreeSet<ServiceName>,
    /// Files of service definitions.
    pub definitions: Vec<PathBuf>,
    /// Files that are written for other programs.
    pub feeds: Vec<feeds::Feed>,
}

impl Asked {
    /// By this configuration.
    pub fn by(config: &Config) -> Self {
        let targets = config.routes.iter().filter_map(|route| route.to.as_ref()).flat_map(|to| &to.0);
        let routed = targets.filter(|to| to.source == Some(Source::Registry)).map(|to| to.service.clone());
        let definitions = config.discovery.definitions.iter().map(|file| PathBuf::from(&file.path));
        let feeds = feeds::Feed::by(&config.discovery.feeds);
        Self { routed: routed.collect(), definitions: definitions.collect(), feeds }
    }
}

/// The registry and this node's part in it, before it starts.
pub struct Discovering {
    registry: Arc<Registry>,
    facts: ConsulFacts,
    /// A machine by itself.
    alone: bool,
    /// It runs instances.
    serves: bool,
    /// It keeps the store.
    votes: bool,
    /// Where programs of checks run.
    folder: PathBuf,
}

impl Discovering {
    /// For this node; `token` is the one that stands for its owner.
    ///
    /// # Errors
    /// The file of the node's id cannot be used.
    pub fn new(config: &Config, store: &Arc<dyn Store>, data_dir: &Path, token: &str) -> Result<Self, String> {
        let mut registry = Registry::new(Arc::clone(store), config.node.name.as_str(), &config.node.region);
        let alone = config.cluster.is_none();
        let facts = ConsulFacts {
            node_id: node_id(data_dir)?,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            script_checks: config.discovery.remote_script_checks,
            reload: Arc::default(),
            blocking: Arc::default(),
        };
        if config.discovery.acl.enabled {
            registry = registry.guarded(Guard::new(Settings {
                allows_by_default: config.discovery.acl.default_policy == DefaultPolicy::Allow,
                management: token.to_owned(),
                management_accessor: facts.node_id.clone(),
            }));
        }
        Ok(Self {
            registry: Arc::new(registry),
            facts,
            alone,
            serves: alone || cluster::serves(config),
            votes: config.node.role == NodeRole::Server,
            folder: data_dir.to_owned(),
        })
    }

    /// What is registered.
    pub fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry)
    }

    /// What Consul's clients are told.
    pub fn facts(&self) -> ConsulFacts {
        self.facts.clone()
    }

    /// Has the gateway keep requests for what only the registry knows, until that has been read.
    pub fn expect(&self, table: &Table, config: &Config) {
        if self.serves {
            routed::expect(table, &Asked::by(config));
        }
    }

    /// Serves DNS, if the configuration says so.
    ///
    /// # Errors
    /// The address is none, or taken.
    pub fn dns(&self, config: &Config) -> Result<Option<dns::Server>, String> {
        let Some(written) = &config.dns else { return Ok(None) };
        let listen = written.listen.parse().map_err(|error| format!("dns.listen: {}: {error}", written.listen))?;
        let zone = dns::Zone {
            domain: written.domain.trim_matches('.').to_ascii_lowercase(),
            datacenter: config.node.region.clone(),
            node: config.node.name.to_string(),
            forwards: !written.forward.is_empty(),
        };
        let servers = written.forward.iter().filter_map(|text| model::config::Dns::server(text)).collect();
        let served = dns::serve(listen, zone, servers, self.registry());
        served.map(Some).map_err(|error| format!("DNS on {listen}: {error}; `dns.listen` names another address"))
    }

    /// Starts to follow, to write what runs here, and to clean up. A witness has no part in it. Returns once this node is
    /// registered, on a machine by itself: in a cluster that may take until others are there.
    pub async fn start(self, shell: &Shell, status: watch::Receiver<Arc<Status>>) {
        if !self.serves {
            return;
        }
        tokio::spawn(Arc::clone(&self.registry).follow());
        tokio::spawn(reaper::run(Arc::clone(&self.registry)));
        let writing = feeds::Shared {
            registry: Arc::clone(&self.registry),
            inputs: shell.inputs.clone(),
            folder: self.folder.clone(),
        };
        tokio::spawn(feeds::run(writing, shell.asked.subscribe()));
        tokio::spawn(checks::run(Arc::clone(&self.registry), self.folder));
        let own = own::Own {
            registry: self.registry,
            node_id: self.facts.node_id,
            version: self.facts.version,
            host: shell.host,
            leased: !self.alone,
            keeps_registry: self.alone || self.votes,
        };
        let registry = Arc::clone(&own.registry);
        tokio::spawn(own.keep(status, shell.lease_told.subscribe()));
        tokio::spawn(follow_files(Arc::clone(&registry), shell.asked.subscribe(), self.facts.reload));
        let table = Arc::clone(&shell.table);
        tokio::spawn(routed::run(Arc::clone(&registry), table, shell.asked.subscribe()));
        if self.alone {
            // A store that does not serve must not keep the node from starting.
            let _ = tokio::time::timeout(REGISTERING, registered(&registry)).await;
        }
    }
}

/// Registers what definition files say, whenever a configuration is put in force; files may have changed though it has not.
/// Whoever may call the API may have them read again, too.
async fn follow_files(registry: Arc<Registry>, mut asked: watch::Receiver<Asked>, reload: Arc<Notify>) {
    loop {
        let files = asked.borrow_and_update().definitions.clone();
        match definitions::register(&registry, files).await {
            Ok(()) => {
                tokio::select! {
                    changed = asked.changed() => if changed.is_err() { return },
                    () = reload.notified() => {}
                }
            }
            Err(RegistryError::Store(data::StoreError::Closed)) => return,
            Err(error) => {
                tracing::debug!(%error, "service definitions could not be registered; trying again");
                tokio::time::sleep(FILES_AGAIN).await;
            }
        }
    }
}

async fn registered(registry: &Registry) {
    loop {
        let seen = {
            let catalog = registry.read();
            if catalog.node(registry.node()).is_some() {
                return;
            }
            catalog.index(&Topic::Nodes)
        };
        registry.wait(&Topic::Nodes, seen, REGISTERING).await;
    }
}

fn node_id(data_dir: &Path) -> Result<String, String> {
    let path = data_dir.join(NODE_ID);
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    match std::fs::read_to_string(&path) {
        Ok(text) if uuid::Uuid::parse_str(text.trim()).is_ok() => Ok(text.trim().to_owned()),
        Ok(_) => Err(format!("{}: this is no UUID; remove the file, and a new one is made", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = uuid::Uuid::new_v4().to_string();
            std::fs::write(&path, &id).map_err(failed)?;
            Ok(id)
        }
        Err(error) => Err(failed(error)),
    }
}
