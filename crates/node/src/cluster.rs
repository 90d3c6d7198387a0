//! The node as a member of its cluster: its store opened among peers, the members watched, changed when an operator
//! wants it. Deliberately absent: consensus (`data/raft`), and services, which a cluster does not run yet.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::view::ClusterView;
use api::{MemberChange, Refusal, RefusalKind};
use data::{NotServing, StoreError};
use data_raft::{PeerOptions, PeerTls, Peers, RaftStore, TcpTransport, TlsFiles, Transport};
use model::Config;
use tokio::sync::{mpsc, oneshot};

use crate::controller::Controller;
use crate::input::Input;

/// How often the members are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Entries kept in the log for members that are a little behind.
pub const ENTRIES_BEHIND_SNAPSHOT: u64 = 20_000;
/// Names of the nodes that form the cluster together, one a line; made by `seawall cluster init`.
const FOUNDERS: &str = "founders";

/// The other nodes, as the configuration says; `None` for a machine by itself.
///
/// # Errors
/// Which file cannot be used, and why.
pub fn peers(config: &Config, socket: Option<TcpListener>) -> Result<Option<(Peers, String)>, String> {
    let (Some(cluster), Some(written), Some(socket)) = (&config.cluster, &config.node.peers, socket) else {
        return Ok(None);
    };
    let folder = Path::new(&cluster.tls.dir);
    let name = config.node.name.as_str();
    let files = TlsFiles {
        authority: folder.join("ca.pem"),
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    let cure = "`seawall cluster init` makes these files, `seawall cluster issue` those of one node";
    let tls = PeerTls::open(files).map_err(|error| format!("{error}; {cure}"))?;
    let founders = match std::fs::read_to_string(folder.join(FOUNDERS)) {
        Ok(text) => text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect(),
        // A node that joins a cluster has no need of it.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(format!("{}: {error}", folder.join(FOUNDERS).display())),
    };
    let bound = socket.local_addr().map_err(|error| format!("the socket for other nodes: {error}"))?;
    let advertise = advertised(config.node.advertise.as_deref(), bound);
    let options = PeerOptions {
        cluster: cluster.name.clone(),
        name: name.to_owned(),
        advertise: advertise.clone(),
        join: written.join.clone(),
        founders,
        voter: true,
    };
    let transport =
        move || -> std::io::Result<Arc<dyn Transport>> { Ok(Arc::new(TcpTransport::new(socket, Some(tls))?)) };
    let peers = Peers::start(options, transport).map_err(|error| format!("connections to other nodes: {error}"))?;
    Ok(Some((peers, advertise)))
}

fn advertised(host: Option<&str>, bound: SocketAddr) -> String {
    match host {
        None => bound.to_string(),
        // An IPv6 address needs its brackets.
        Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{host}]:{}", bound.port()),
        Some(host) => format!("{host}:{}", bound.port()),
    }
}

/// Looks at the members until the node ends.
pub async fn watch_members(store: Arc<RaftStore>, inputs: mpsc::Sender<Input>) {
    loop {
        let members = store.members().await;
        if inputs.send(Input::Members(members)).await.is_err() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Controller {
    /// Carries out what an operator wants of the members.
    pub fn change_members(&self, change: MemberChange, reply: oneshot::Sender<Result<ClusterView, Refusal>>) {
        if self.config.cluster.is_none() {
            let message = "this machine is in no cluster: see docs/guide/cluster.md".to_owned();
            // Ignored, here and below: who asked has gone.
            let _ = reply.send(Err(Refusal { kind: RefusalKind::Refused, message }));
            return;
        }
        let (store, name) = (Arc::clone(&self.raft), self.config.cluster.as_ref().map(|cluster| cluster.name.clone()));
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

fn refusal(change: &MemberChange, error: &StoreError, known: &[String]) -> Refusal {
    let (MemberChange::Remove(node) | MemberChange::Lead(node)) = change;
    if !known.iter().any(|name| name == node.as_str()) {
        let message = format!("no member is called `{node}`; there are: {}", known.join(", "));
        return Refusal { kind: RefusalKind::NotFound, message };
    }
    let message = match error {
        StoreError::Invalid { .. } => format!("{node}: the leader refused it; is it the last voter?"),
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
