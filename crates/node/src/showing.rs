//! The node as `seawall status` shows it: the seven layers in order, as far as this version has them.

use std::time::Duration;

use api::view::{ClusterView, Layer, MemberView, Node, ServiceView, Status, StoreView, StreamsView, Task};
use data::OwnerBytes;
use model::{NodeName, ServiceName};

use crate::cluster::world::World;
use crate::controller::Controller;
use crate::service::{CLOSED, Service};

/// A service whose keys take this part of what they may, in percent, is told of.
const NEARLY_FULL: u64 = 80;

/// That a service's keys have little room left.
fn nearly_full(owners: &[(String, OwnerBytes)], name: &ServiceName) -> Option<String> {
    let (_, OwnerBytes { used, quota }) = owners.iter().find(|(owner, _)| owner == name.as_str())?;
    let percent = used * 100 / quota.max(&1);
    (percent >= NEARLY_FULL).then(|| {
        format!(
            "its keys take {used} of {quota} bytes ({percent} %): beyond that writes are refused, see `kvQuotaBytes`"
        )
    })
}

/// What does not change about this node process.
#[derive(Debug, Default)]
pub struct Facts {
    /// The keeper's process id.
    pub keeper_pid: u32,
    /// Node processes of this keeper.
    pub node_starts: u32,
    /// The API's address.
    pub api: String,
    /// The gateway's addresses.
    pub gateway: Vec<String>,
    /// The address for other nodes, in a cluster.
    pub peers: Option<String>,
    /// The address of DNS, if it is served.
    pub dns: Option<String>,
    /// When this process began to serve.
    pub since: String,
}

impl Controller {
    /// The status of this moment.
    pub fn view(&self) -> Status {
        let owners = self.shell.store.metrics().owners;
        let shown = |service: &Service| {
            let mut view = service.view(&self.shell);
            view.shift = self.shifts.view(&service.name);
            let note = view.shift.as_ref().map(crate::shifts::note);
            let automatic = view.shift.as_ref().is_some_and(|shift| shift.automatic);
            view.note = if automatic { note } else { view.note.or(note) };
            view.note = view.note.or_else(|| nearly_full(&owners, &service.name));
            view
        };
        let services: Vec<_> = self.services.values().map(shown).collect();
        let store = self.shell.store.status();
        let streams = self.shell.streams.not_serving();
        let own = std::process::id();
        Status {
            node: Node {
                name: self.node().clone(),
                region: self.config.node.region.clone(),
                state: self.state_word().to_owned(),
                pid: own,
                keeper_pid: self.facts.keeper_pid,
                node_starts: self.facts.node_starts,
                since: self.facts.since.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                data_dir: self.config.node.data_dir.clone(),
                api: self.facts.api.clone(),
                gateway: self.facts.gateway.clone(),
                peers: self.facts.peers.clone(),
                overload: crate::overload::view(&self.shell.table),
                // Rounded, so that status does not change with every page.
                resident_bytes: self.resident.0 >> 20 << 20,
            },
            layers: self.layers(&services),
            store: StoreView {
                serving: store.not_serving.is_none(),
                problem: store.not_serving.map(|problem| problem.to_string()),
                revision: store.revision.0,
                durability: store.durability.to_string(),
                wal_bytes: store.wal_bytes,
                streams: StreamsView {
                    serving: streams.is_none(),
                    problem: streams.map(|problem| problem.to_string()),
                },
            },
            cluster: self.members.as_ref().map(|members| {
                let name = self.config.cluster.as_ref().map(|cluster| cluster.name.clone());
                let mut view = cluster_view(name.unwrap_or_default(), members);
                view.members.extend(self.world.iter().flat_map(|world| world.agents.shown()));
                view
            }),
            services,
            tasks: self.tasks(),
            certificates: self.certificates.iter().chain(&self.own_certificate).cloned().collect(),
            // Added where it is asked for: the registry knows.
            registered: Vec::new(),
            registered_more: 0,
        }
    }

    /// What to try, for somebody who has just started it: an address for each route, what to kill, where to look.
    pub fn hints(&self) -> Vec<String> {
        let http = |listen: &&model::config::Listen| listen.0.tcp.is_none();
        let listeners = self.config.gateway.listen.iter().zip(&self.facts.gateway);
        let Some((listen, gateway)) = listeners.clone().find(|(listen, _)| http(listen)).or(listeners.clone().next())
        else {
            return Vec::new();
        };
        let scheme = if listen.0.tls.is_some() { "https" } else { "http" };
        let api = &self.facts.api;
        let other_api = if api == "127.0.0.1:8500" { String::new() } else { format!(" --api {api}") };
        let mut hints = vec![String::new()];
        for route in &self.config.routes {
            let written = &route.matches;
            let path = written.path.as_ref().or(written.path_prefix.as_ref()).or(written.path_start.as_ref());
            let path = path.map_or("/", String::as_str);
            let host = written.hosts.0.first();
            let host = host.map_or_else(String::new, |host| format!(" -H 'Host: {}'", host.replace('*', "any")));
            let first = route.to.as_ref().and_then(|to| to.0.first());
            let goal = first.map_or(if route.respond.is_some() { "a fixed answer" } else { "a redirect" }, |to| {
                to.service.as_str()
            });
            hints.push(format!("  try    curl{host} {scheme}://{gateway}{path}    ({goal})"));
        }
        let running = |service: &Service| {
            let primary = service
                .promotion
                .as_ref()
                .and_then(|promotion| promotion.routed_primary())
                .map(|(holder, _)| holder.instance.clone());
            let victim = service
                .instances
                .values()
                .find(|instance| primary.as_ref().is_none_or(|primary| primary == instance.id()))?;
            let role = if primary.is_some() { "the primary" } else { "one instance" };
            Some(format!(
                "  kill   kill -9 {}    ({role} of {}: {})",
                victim.process.as_ref()?.pid?,
                service.name,
                victim.id()
            ))
        };
        hints.extend(self.services.values().filter_map(running));
        hints.push(format!(
            "  kill   kill -9 {}    (Seawall's own node process: nothing is refused, nothing restarts)",
            std::process::id()
        ));
        hints.push(format!("  look   seawall{other_api} status    seawall{other_api} events --follow"));
        hints.push(String::new());
        hints
    }

    fn state_word(&self) -> &'static str {
        match (self.shell.stopping, self.said_ready) {
            (true, _) => "stopping",
            (false, true) => "serving",
            (false, false) => "starting",
        }
    }

    fn layers(&self, services: &[ServiceView]) -> Vec<Layer> {
        let layer = |name: &str, state: &str, detail: String| Layer { name: name.into(), state: state.into(), detail };
        let instances = || self.services.values().flat_map(|service| service.instances.values());
        let (total, ready) = (instances().count(), instances().filter(|instance| instance.is_ready()).count());
        let looping = instances().filter(|instance| instance.streak.is_loop() && !instance.is_ready()).count();
        let state = |good: bool| if good { "ok" } else { "degraded" };
        let standing: Vec<&Service> = self.services.values().filter(|service| service.promotion.is_some()).collect();
        let primaries = standing
            .iter()
            .filter(|service| service.promotion.as_ref().is_some_and(|promotion| promotion.routed_primary().is_some()))
            .count();
        let health = if standing.is_empty() {
            format!("{ready} of {total} instances ready")
        } else {
            format!("{ready} of {total} instances ready, {primaries} of {} services have their primary", standing.len())
        };
        let store = self.shell.store.status();
        let votes_only = self.config.cluster.is_some() && self.world.is_none();
        let lost = self.members.as_ref().and_then(|members| members.no_failover.clone());
        let data = match (&store.not_serving, lost, self.shell.streams.not_serving()) {
            (Some(problem), ..) => layer("data", "down", problem.to_string()),
            (None, Some(lost), _) => layer("data", "degraded", lost),
            (None, None, Some(problem)) => layer("data", "degraded", format!("the streams: {problem}")),
            (None, None, None) if votes_only => layer("data", "ok", "a witness: keeps the log, and no data".to_owned()),
            (None, None, None) if store.role == data::RaftRole::Remote => {
                layer("data", "ok", format!("an agent: asks servers, revision {}", store.revision))
            }
            (None, None, None) => {
                layer("data", "ok", format!("revision {}, durability {}", store.revision, store.durability))
            }
        };
        vec![
            layer(
                "runtime",
                state(looping == 0),
                if looping == 0 {
                    format!("{total} instances")
                } else {
                    format!("{looping} of {total} instances in a crash loop")
                },
            ),
            guard(services),
            layer("discovery", "ok", format!("{} services, {} routes", self.services.len(), self.config.routes.len())),
            layer("health", state(ready == total && primaries == standing.len()), health),
            data,
            layer("traffic", "ok", format!("gateway on {}", self.facts.gateway.join(", "))),
            self.region(),
        ]
    }

    /// Members that should be there and are not.
    fn missing<'w>(&self, world: &'w World) -> Vec<&'w str> {
        let members = || self.members.iter().flat_map(|members| &members.members);
        let awaited = |name: &str| members().any(|member| &*member.name == name) || world.agents.misses(name);
        world.missing().filter(|name| awaited(name)).collect()
    }

    fn region(&self) -> Layer {
        let region = &self.config.node.region;
        let (state, detail) = match &self.world {
            None if self.config.cluster.is_some() => ("ok", format!("{region}, a witness: votes and runs nothing")),
            None => ("ok", format!("{region}, alone")),
            Some(world) => match self.missing(world) {
                missing if missing.is_empty() => ("ok", format!("{region}, {} nodes there", world.nodes.len())),
                missing => (
                    "degraded",
                    format!("{region}, {} nodes there, missing: {}", world.nodes.len(), missing.join(", ")),
                ),
            },
        };
        Layer { name: "region".into(), state: state.into(), detail }
    }

    /// Those that are ordered, or those that are not.
    fn kept_current(&self, ordered: bool) -> (usize, Option<String>) {
        let all = self.certificates.iter().filter(|certificate| certificate.next.is_some() == ordered);
        (all.clone().count(), all.clone().find_map(|certificate| certificate.problem.clone()))
    }

    fn tasks(&self) -> Vec<Task> {
        let task =
            |name: &str, state: String, last_error: Option<String>| Task { name: name.into(), state, last_error };
        let (files, ordered) = (self.kept_current(false), self.kept_current(true));
        let rolls: Vec<&str> = self
            .services
            .values()
            .filter(|service| service.roll.is_some())
            .map(|service| service.name.as_str())
            .collect();
        let mut tasks = vec![
            task("store", self.shell.store.status().role.to_string(), self.store_problem.clone()),
            task(
                "lease",
                if self.lease_error.is_none() { "good".into() } else { "failing".into() },
                self.lease_error.clone(),
            ),
            task("certificates", format!("{} watched", files.0), files.1),
            task(
                "own certificate",
                self.own_certificate.as_ref().map_or("none", |_| "watched").into(),
                self.own_certificate.as_ref().and_then(|own| own.problem.clone()),
            ),
            task("rolls", if rolls.is_empty() { "none".into() } else { rolls.join(", ") }, None),
            task("notices", format!("{} webhooks", self.config.notify.len()), None),
        ];
        if self.config.gateway.overload.is_some() {
            tasks.push(task("load", "measured each second".into(), None));
        }
        if self.config.gateway.acme.is_some() {
            tasks.push(task("acme", format!("{} kept current", ordered.0), ordered.1));
        }
        tasks
    }
}

fn guard(services: &[ServiceView]) -> Layer {
    let held: u64 = services.iter().map(|service| u64::from(service.held)).sum();
    let breakers = services.iter().filter_map(|service| service.traffic.as_ref()?.breaker.as_ref());
    let open = breakers.filter(|breaker| breaker.state != CLOSED).count();
    let detail = match open {
        0 => format!("{held} requests held"),
        1 => format!("{held} requests held, 1 breaker open"),
        open => format!("{held} requests held, {open} breakers open"),
    };
    let state = if held == 0 && open == 0 { "ok" } else { "degraded" };
    Layer { name: "guard".into(), state: state.into(), detail }
}

/// The cluster as its leader sees it.
pub fn cluster_view(name: String, members: &data_raft::Members) -> ClusterView {
    /// A member that has not answered the leader for so long is missing.
    const MISSING: Duration = Duration::from_secs(1);
    let member = |member: &data_raft::Member| {
        let leads = members.leader.as_deref() == Some(&*member.name);
        let state = match (&members.leader, member.silent) {
            (None, _) => "unknown",
            (Some(_), _) if leads => "leader",
            (Some(_), Some(silent)) if silent < MISSING => "follower",
            (Some(_), _) => "missing",
        };
        MemberView {
            name: NodeName::from(&*member.name),
            role: match (member.voter, member.witness) {
                (true, false) => "server",
                (true, true) => "witness",
                (false, _) => "learner",
            }
            .to_owned(),
            state: state.to_owned(),
            lag: member.lag,
            address: member.address.to_string(),
        }
    };
    ClusterView {
        name,
        leader: members.leader.as_deref().map(NodeName::from),
        term: members.term,
        members: members.members.iter().map(member).collect(),
        no_failover: members.no_failover.clone(),
    }
}
