//! The node as a member of its cluster: its store opened among peers, the members watched, changed when an operator
//! wants it, and the configuration that all of them share. What the cluster runs is in `world`; what nodes tell each
//! other, in `records` and `publisher`. Deliberately absent: consensus (`data/raft`).

pub mod agents;
pub mod authority;
pub mod awaited;
pub mod certificates;
pub mod joining;
pub mod publisher;
pub mod records;
pub mod renewal;
pub mod seat;
pub mod tokens;
pub mod world;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::view::ClusterView;
use api::{Applied, JoinToken, MemberChange, Refusal, RefusalKind};
use awaited::Awaited;
use certificates::OwnFiles;
use data::{Compare, NotServing, Revision, StoreError, Txn, TxnOutcome};
use data_raft::{PeerOptions, PeerTls, Peers, TcpTransport, TlsFiles, Transport};
use model::config::Decode as _;
use model::config::NodeRole;
use model::{Config, EventKind, ServiceName};
use records::ConfigRecord;
use seat::Seat;
use tokio::sync::{mpsc, oneshot};

use crate::controller::Controller;
use crate::input::Input;
use crate::shell::Subject;

/// How often the members are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Entries kept in the log for members that are a little behind.
pub const ENTRIES_BEHIND_SNAPSHOT: u64 = 20_000;
/// Names of the nodes that form the cluster together, one a line; made by `seawall cluster init`.
const FOUNDERS: &str = "founders";

/// Whether this machine is in a cluster and runs what that runs: a witness does not.
pub fn serves(config: &Config) -> bool {
    config.cluster.is_some() && config.node.role != NodeRole::Witness
}

/// What a witness says to those who want it to run something.
pub fn witness_refuses(config: &Config, members: Option<&data_raft::Members>) -> Option<String> {
    let name = &config.node.name;
    let others = || members.iter().flat_map(|members| &members.members).filter(|member| !member.witness);
    let others: Vec<&str> = others().map(|member| &*member.name).collect();
    let others = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
    (config.cluster.is_some() && config.node.role == NodeRole::Witness)
        .then(|| format!("{name} is a witness: it votes, and knows and runs no services; ask another node{others}"))
}

/// The other nodes, as the configuration says, and where they reach this one, which they do not if it is an agent; `None`
/// for a machine by itself.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn peers(config: &Config, socket: Option<TcpListener>) -> Result<Option<(Peers, Option<String>)>, String> {
    let (Some(cluster), Some(written)) = (&config.cluster, &config.node.peers) else { return Ok(None) };
    let agent = config.node.role == NodeRole::Agent;
    if socket.is_none() && !agent {
        return Ok(None);
    }
    let folder = Path::new(&cluster.tls.dir);
    let name = config.node.name.as_str();
    let OwnFiles { authority, certificate, key, .. } = OwnFiles::of(folder, name);
    let files = TlsFiles { authority, certificate, key };
    let cure = "`seawall cluster init` makes these files, `seawall cluster issue` or `join` those of one node";
    let tls = PeerTls::open(files).map_err(|error| format!("{error}; {cure}"))?;
    let founders = founders(folder)?;
    let bound = socket.as_ref().map(TcpListener::local_addr).transpose();
    let bound = bound.map_err(|error| format!("the socket for other nodes: {error}"))?;
    let address = bound.map(|bound| advertised(config.node.advertise.as_deref(), bound));
    let options = PeerOptions {
        cluster: cluster.name.clone(),
        name: name.to_owned(),
        advertise: address.clone().unwrap_or_default(),
        join: written.join.clone(),
        founders,
        voter: !agent,
        witness: config.node.role == NodeRole::Witness,
        agent,
    };
    let transport = move || -> std::io::Result<Arc<dyn Transport>> {
        Ok(Arc::new(match socket {
            Some(socket) => TcpTransport::new(socket, Some(tls))?,
            None => TcpTransport::outgoing(Some(tls)),
        }))
    };
    let peers = Peers::start(options, transport).map_err(|error| format!("connections to other nodes: {error}"))?;
    Ok(Some((peers, address)))
}

fn founders(folder: &Path) -> Result<Vec<String>, String> {
    match std::fs::read_to_string(folder.join(FOUNDERS)) {
        Ok(text) => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()),
        // A node that joins a cluster has no need of it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(format!("{}: {error}", folder.join(FOUNDERS).display())),
    }
}

/// Why the cluster that this node's folder names survives the loss of nobody, if it does not.
pub fn cannot_fail_over(config: &Config) -> Option<String> {
    let founders = founders(Path::new(&config.cluster.as_ref()?.tls.dir)).ok()?;
    let [first, second] = founders.as_slice() else { return None };
    Some(format!(
        "the cluster is {first} and {second}, and two nodes cannot fail over: one alone is no majority, so the loss of \
         either stops every decision; add a third, which may be a small machine whose file says node: {{ role: witness }}"
    ))
}

fn advertised(host: Option<&str>, bound: SocketAddr) -> String {
    match host {
        None => bound.to_string(),
        // An IPv6 address needs its brackets.
        Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]:{}", bound.port()),
        Some(host) => format!("{host}:{}", bound.port()),
    }
}

/// Has certificates signed: those of other nodes, if the authority's key is here, and this one's, before it ends.
pub fn keep_certified(config: &Config, seat: &Seat, inputs: &mpsc::Sender<Input>) {
    let Some(own) = OwnFiles::of_config(config) else { return };
    if let Seat::Member(store) = seat {
        store.certify_with(authority::Authority::new(&own.folder).certifier(store));
    }
    tokio::spawn(renewal::keep(own, config.node.name.to_string(), seat.downgrade(), inputs.clone()));
}

/// Looks at the members until the node ends.
pub async fn watch_members(store: Seat, inputs: mpsc::Sender<Input>) {
    loop {
        let members = store.members().await;
        if inputs.send(Input::Members(members)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Where instances of this node listen: where other nodes reach it.
///
/// # Errors
/// `node.advertise` is a name without an address.
pub fn host(config: &Config) -> Result<IpAddr, String> {
    let (Some(_), Some(written)) = (&config.cluster, &config.node.peers) else {
        return Ok(Ipv4Addr::LOCALHOST.into());
    };
    let Some(advertised) = &config.node.advertise else {
        let listen: SocketAddr = written.listen.parse().map_err(|error| format!("{}: {error}", written.listen))?;
        return Ok(listen.ip());
    };
    let found = (advertised.as_str(), 0).to_socket_addrs();
    let mut found = found.map_err(|error| format!("node.advertise: {advertised} has no address: {error}"))?;
    found.next().map(|address| address.ip()).ok_or_else(|| format!("node.advertise: {advertised} has no address"))
}

/// This machine's configuration with the cluster's services and routes.
///
/// # Errors
/// The record is of a version that writes what this one does not know.
pub fn merged(own: &Config, record: &ConfigRecord) -> Result<Config, String> {
    let mut written = own.encode();
    written["services"] = serde_json::to_value(&record.services).map_err(|error| error.to_string())?;
    written["routes"] = record.routes.clone().into();
    let mut config = model::config::decode_effective(&written.to_string())?;
    // The data directory may have been given on the command line.
    config.node.clone_from(&own.node);
    Ok(config)
}

pub(crate) fn recorded(config: &Config) -> ConfigRecord {
    let written = config.encode();
    ConfigRecord {
        services: serde_json::from_value(written["services"].clone()).unwrap_or_default(),
        routes: serde_json::from_value(written["routes"].clone()).unwrap_or_default(),
    }
}

impl Controller {
    /// Commits the services and routes of `new`: every node puts them in force when it reads them.
    pub fn commit_config(&self, new: &Config, reply: oneshot::Sender<Result<Applied, Refusal>>) {
        let Some(world) = &self.world else { return };
        let applied = difference(&self.config, new);
        let txn = txn_of(&recorded(new), world.config_at);
        let store = Arc::clone(&self.shell.store);
        self.shell.spawn(async move { Input::ConfigCommitted { outcome: store.txn(txn).await, applied, reply } });
    }

    /// The store's answer to a configuration that was given here.
    pub fn config_committed(
        &mut self,
        outcome: Result<TxnOutcome, StoreError>,
        applied: Applied,
        reply: oneshot::Sender<Result<Applied, Refusal>>,
    ) {
        let refused = |kind, message: String| Err(Refusal { kind, message });
        let answer = match outcome {
            Ok(TxnOutcome::Committed { revision, .. }) => {
                return self.awaits(Awaited::Config(revision, applied, reply));
            }
            Ok(TxnOutcome::Rejected { .. }) => refused(
                RefusalKind::Refused,
                "another configuration was applied at the same moment, or this node has not read the newest yet; nothing was changed: look (`seawall status`) and apply again".to_owned(),
            ),
            Ok(TxnOutcome::Unknown) => refused(
                RefusalKind::Failed,
                "nobody knows yet whether it was committed: look (`seawall status`) and apply again, which does no harm".to_owned(),
            ),
            Err(error) => refused(RefusalKind::Failed, format!("{error}; nothing was changed")),
        };
        // Ignored: who asked has gone.
        let _ = reply.send(answer);
    }

    /// What the cluster has agreed on is put in force on this node.
    pub fn put_in_force_here(&mut self, new: Config, now: Instant) {
        if let Err(error) = self.shell.table.set_routes(crate::routes::routes(&new, &self.shifts)) {
            tracing::error!(%error, "routes of the cluster's configuration cannot be put in force here");
        }
        let cause = self.shell.new_cause();
        self.put_in_force(new, &cause, now);
    }

    /// A leader that is stopping lets another lead before anything of it ends: somebody must decide who is primary then.
    pub fn hand_over_lead(&self) {
        let Some(members) = self.members.as_ref().filter(|_| self.shell.leads && self.world.is_some()) else { return };
        let own = self.config.node.name.as_str();
        let fit = members.members.iter().filter(|member| member.voter && !member.witness && &*member.name != own);
        let Some(next) = fit.min_by_key(|member| (member.silent, member.lag)) else { return };
        let (store, next) = (self.seat.clone(), next.name.clone());
        tokio::spawn(async move {
            if let Err(error) = store.transfer_leader(&next).await {
                tracing::debug!(%error, %next, "the lead could not be handed over early; it is when the store closes");
            }
        });
    }

    /// A definition did not come up here: the cluster goes back to the one before, unless another has been applied since.
    pub fn take_back(&self, service: &ServiceName, why: &str) {
        let Some(world) = &self.world else { return };
        // All or nothing: what did come up goes back as well.
        let before = world.before.clone().unwrap_or_else(|| recorded(&self.config));
        let txn = txn_of(&before, world.config_at);
        let (store, service, why) = (Arc::clone(&self.shell.store), service.clone(), why.to_owned());
        let cause = self.shell.new_cause();
        let message = format!("{why}; what was in force before is put in force again, on every node");
        self.shell.emit(EventKind::ConfigRejected, Subject::service(&service), &cause, message);
        tokio::spawn(async move {
            match store.txn(txn).await {
                Ok(TxnOutcome::Committed { .. }) => {
                    tracing::warn!(%service, why, "the cluster goes back to the definition before");
                }
                Ok(TxnOutcome::Rejected { .. }) => {
                    tracing::info!(%service, why, "another configuration has been put in force meanwhile");
                }
                other => {
                    tracing::error!(%service, why, ?other, "the cluster could not be told to go back to the definition before: apply one that works");
                }
            }
        });
    }

    /// Makes a token for a new node.
    pub fn make_token(&self, node: String, valid: Duration, reply: oneshot::Sender<Result<JoinToken, Refusal>>) {
        let Some(cluster) = &self.config.cluster else {
            let message = "this machine is in no cluster: see docs/guide/cluster.md".to_owned();
            // Ignored, here and below: who asked has gone.
            let _ = reply.send(Err(Refusal { kind: RefusalKind::Refused, message }));
            return;
        };
        let (store, name, folder) = (self.seat.clone(), cluster.name.clone(), cluster.tls.dir.clone());
        tokio::spawn(async move {
            let made = tokens::make(store, Path::new(&folder), name, node, valid).await;
            let _ = reply.send(made);
        });
    }

    /// Carries out what an operator wants of the members.
    pub fn change_members(&self, change: MemberChange, reply: oneshot::Sender<Result<ClusterView, Refusal>>) {
        if self.config.cluster.is_none() {
            let message = "this machine is in no cluster: see docs/guide/cluster.md".to_owned();
            // Ignored, here and below: who asked has gone.
            let _ = reply.send(Err(Refusal { kind: RefusalKind::Refused, message }));
            return;
        }
        let (store, name) = (self.seat.clone(), self.config.cluster.as_ref().map(|cluster| cluster.name.clone()));
        tokio::spawn(async move {
            let changed = match &change {
                MemberChange::Remove(node) => store.remove_member(node.as_str()).await,
                MemberChange::Lead(node) => store.transfer_leader(node.as_str()).await,
            };
            let answer = match changed {
                Ok(members) => Ok(crate::showing::cluster_view(name.unwrap_or_default(), &members)),
                Err(error) => {
                    let known: Vec<String> =
                        store.members().await.members.iter().map(|member| member.name.to_string()).collect();
                    Err(refusal(&change, &error, &known))
                }
            };
            let _ = reply.send(answer);
        });
    }
}

fn txn_of(record: &ConfigRecord, known: Revision) -> Txn {
    let at = records::key(records::CONFIG);
    let value = serde_json::to_vec(record).expect("a configuration always becomes JSON");
    Txn::put(at.clone(), value).when(Compare::mod_revision(at, known))
}

fn difference(old: &Config, new: &Config) -> Applied {
    let mut applied = Applied { routes: old.routes != new.routes, ..Applied::default() };
    applied.removed = old.services.keys().filter(|name| !new.services.contains_key(*name)).cloned().collect();
    for (name, definition) in &new.services {
        match old.services.get(name) {
            None => applied.added.push(name.clone()),
            Some(known) if crate::applying::would_roll(name, known, definition) => applied.rolled.push(name.clone()),
            Some(known) if known != definition => applied.changed.push(name.clone()),
            Some(_) => {}
        }
    }
    applied
}

fn refusal(change: &MemberChange, error: &StoreError, known: &[String]) -> Refusal {
    let (MemberChange::Remove(node) | MemberChange::Lead(node)) = change;
    if !known.iter().any(|name| name == node.as_str()) {
        let message = format!("no member is called `{node}`; there are: {}", known.join(", "));
        return Refusal { kind: RefusalKind::NotFound, message };
    }
    let message = match error {
        StoreError::Invalid { .. } => {
            format!(
                "{node}: the leader refused it: the last voter with data stays, and a witness is not made the leader"
            )
        }
        StoreError::Unknown => format!("{node}: nobody knows yet whether it was done; see `seawall cluster members`"),
        other => format!("{node}: {other}; nothing was changed"),
    };
    let kind = if matches!(error, StoreError::NotServing(NotServing::NoQuorum { .. } | NotServing::NoLeader)) {
        RefusalKind::Failed
    } else {
        RefusalKind::Refused
    };
    Refusal { kind, message }
}
