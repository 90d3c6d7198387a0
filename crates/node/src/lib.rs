//! The node process, from its first line to its last: the one place where everything is put together.
//! Start in order: hello -> configuration -> journal -> store -> services and what the keeper still holds -> gateway -> API.
//! Then the controller runs; then everything stops in the opposite order.

mod access_log;
mod acme;
mod applying;
mod breakers;
mod cluster;
mod controller;
mod counting;
mod discovering;
mod entrances;
mod failsafe;
mod files;
mod following;
mod input;
mod instance;
mod lease;
mod link;
mod loading;
pub mod offline;
mod overload;
mod pacing;
mod ports;
mod routes;
mod service;
mod shell;
mod shifts;
mod showing;
mod streams;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use api::view::Status;
use model::config::Config;
use model::{EventKind, Incarnation, ServiceName};
use observe::journal::Journal;
use observe::metrics::ControlMetrics;
use observe::notify::Notifier;
use prometheus_client::registry::Registry;
use runtime::protocol::{Held, Order, Report};

/// The exit code that tells the keeper not to try again.
pub const CANNOT_START: u8 = runtime::protocol::CANNOT_START as u8;

use tokio::sync::{mpsc, watch};

use cluster::seat::Seat;
pub use cluster::{authority, cannot_fail_over, certificates, joining};
use controller::Controller;
pub use discovering::definitions;
use entrances::Entrances;
use input::Input;
use link::Keeper;
use loading::effective;
pub use loading::{Options, load, read, workers};
use ports::Ports;
use service::{Adopted, Service, adopt};
use shell::{Shell, Subject};
use showing::Facts;

/// Inputs that may wait for the controller; more make their senders wait.
const INPUTS: usize = 8192;
/// Requests of the API that may finish when the node stops.
const API_PATIENCE: Duration = Duration::from_secs(2);

/// Why the node cannot start; the keeper must not try again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotStart(String);

/// Runs the node process until the keeper or the operator stops it.
///
/// # Errors
/// What keeps it from starting at all.
pub fn run(options: &Options) -> Result<(), CannotStart> {
    let cannot = |what: &str, error: &dyn std::fmt::Display| CannotStart(format!("{what}: {error}"));
    let hello = link::read_hello().map_err(|error| cannot("the keeper", &error))?;
    platform::thread::answer_soon();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_name("node-blocking")
        .build()
        .map_err(|error| cannot("starting the event loop", &error))?;
    runtime.block_on(async {
        platform::signal::leave_to_keeper().map_err(|error| cannot("signals", &error))?;
        let stopped = Start::new(options, hello)?.run().await;
        if stopped.is_ok() {
            Keeper.order(&Order::Shutdown);
        }
        stopped
    })
}

/// Everything known before the first part is started.
struct Start {
    options: Options,
    config: Config,
    keeper_pid: u32,
    node_starts: u32,
    previous_exit: Option<String>,
    tree_prefix: String,
    api: Vec<String>,
    peers: Vec<String>,
    gateway: Vec<Vec<String>>,
    inventory: Vec<Held>,
}

impl Start {
    fn new(options: &Options, hello: Report) -> Result<Self, CannotStart> {
        let Report::Hello {
            keeper_pid, node_starts, previous_exit, tree_prefix, api, peers, gateway, inventory, ..
        } = hello
        else {
            return Err(CannotStart("the keeper did not say hello".into()));
        };
        let mut config = if node_starts > 1 { effective(options) } else { load(options).map_err(CannotStart) }?;
        if config.cluster.is_some() && node_starts == 1 {
            // The file of one node must not decide what a cluster runs. A process that takes over goes on with what was
            // agreed on when the one before died, until it has read what is now.
            // The same goes for one that was stopped and is started again.
            (config.services, config.routes) = loading::agreed_on(&config);
        }
        Ok(Self {
            options: options.clone(),
            config,
            keeper_pid,
            node_starts,
            previous_exit,
            tree_prefix,
            api,
            peers,
            gateway,
            inventory,
        })
    }

    async fn run(self) -> Result<(), CannotStart> {
        let data_dir = PathBuf::from(&self.config.node.data_dir);
        let journal = Journal::open(&data_dir)
            .map_err(|error| CannotStart(format!("the event journal in {}: {error}", data_dir.display())))?;
        let (seat, peers) = self.open_store(&data_dir)?;
        let store = seat.store();
        let streams = seat.open_streams(&self.config).map_err(CannotStart)?;
        let mut registry = Registry::default();
        let gateway_metrics = gateway::Metrics::register(&mut registry);
        let metrics = ControlMetrics::register(&mut registry);
        metrics.node_starts.set(i64::from(self.node_starts));
        let table = gateway::Table::new(gateway_metrics.clone());
        let shifts = shifts::Shifts::load(&data_dir);
        table.set_routes(routes::routes(&self.config, &shifts)).map_err(|error| CannotStart(error.to_string()))?;
        table.set_overload(overload::policy(&self.config));
        table.set_unknown(self.config.cluster.is_some() && self.config.routes.is_empty());
        let host = cluster::host(&self.config).map_err(CannotStart)?;
        let (inputs, received) = mpsc::channel(INPUTS);
        platform::process::mark_trees(&self.tree_prefix);
        if self.node_starts > 1 {
            let ended = health::prober::end_left_over();
            tracing::debug!(ended, "commands of the node process before this one");
        }
        link::follow(inputs.clone(), self.tree_prefix.clone()).map_err(|error| CannotStart(error.to_string()))?;
        let mut shell = Shell {
            keeper: Keeper,
            inputs: inputs.clone(),
            store: Arc::clone(&store),
            streams: Arc::clone(&streams),
            api: String::new(),
            journal: journal.clone(),
            metrics: metrics.clone(),
            table: Arc::clone(&table),
            node: self.config.node.clone(),
            stopping: false,
            lease_until: None,
            own: self.config.cluster.as_ref().map(|_| self.config.node.name.clone()),
            host,
            leads: false,
            lease: None,
            leases: Vec::new(),
            lease_told: watch::Sender::new(None),
            asked: watch::Sender::new(discovering::Asked::by(&self.config)),
            vouched: BTreeMap::new(),
            born: Incarnation(u64::try_from(jiff::Timestamp::now().as_microsecond()).unwrap_or(0)),
            held_breakers: BTreeMap::new(),
            changed: Cell::new(false),
            answers: RefCell::default(),
            ended_rolls: Vec::new(),
        };
        let (services, ports) = self.services(&shell);
        let (status, shown) = watch::channel(Arc::new(Status::default()));
        let (commands, asked) = mpsc::channel(64);
        let challenges = Arc::default();
        let (orders, acme) = acme::open(&self.config, &challenges);
        let entrances = Entrances::open(&self.config, orders).map_err(CannotStart)?;
        let (api_listener, listeners) = self.sockets(&entrances)?;
        let api_address = address_of(&api_listener);
        shell.api = format!("http://{api_address}");
        let gateway_addresses: Vec<String> = listeners.iter().map(|listener| listener.address.to_string()).collect();
        let authority = Arc::new(self.authority(&data_dir)?);
        let discovering =
            discovering::Discovering::new(&self.config, &store, &data_dir, &authority.token).map_err(CannotStart)?;
        discovering.expect(&table, &self.config);
        let context = api::Context::from(api::Parts {
            status: shown.clone(),
            commands,
            store: Arc::clone(&store),
            save: offline::saving(seat.clone()),
            streams: Arc::clone(&streams),
            journal: journal.clone(),
            registry: Arc::new(RwLock::new(registry)),
            refresh_metrics: counting::refresher(
                Arc::clone(&store),
                Arc::clone(&streams),
                (discovering.registry(), discovering.facts().blocking),
                metrics,
            ),
            logs: data_dir.join("logs"),
            authority,
            discovery: discovering.registry(),
            consul: discovering.facts(),
        });
        tokio::spawn(overload::look(Arc::clone(&table)));
        let gateway = self.start_gateway(listeners, (table, gateway_metrics, challenges), &inputs, &data_dir)?;
        let server = api::serve(api_listener, api::answers(context), platform::limits::raise_open_files())
            .map_err(|error| CannotStart(format!("the API: {error}")))?;
        let dns = discovering.dns(&self.config).map_err(CannotStart)?;
        let facts = Facts {
            dns: dns.as_ref().map(|dns| dns.address().to_string()),
            keeper_pid: self.keeper_pid,
            node_starts: self.node_starts,
            api: api_address,
            gateway: gateway_addresses,
            peers,
            since: observe::now(),
        };
        discovering.start(&shell, shown).await;
        let notifier = Notifier::start(&self.config.notify, &journal, &data_dir);
        applying::save_effective(&self.config);
        seat.hold_to_quotas(&self.config);
        let mut controller = Controller {
            shell,
            config: self.config.clone(),
            services,
            ports,
            applying: None,
            shifts,
            facts,
            status,
            notifier,
            gateway: Some(gateway),
            drained: false,
            reload: Some(self.reloader(inputs.clone())),
            began: Instant::now(),
            resident: (0, Instant::now()),
            pace: pacing::Pace::new(),
            said_alive: None,
            said_ready: false,
            seat: seat.clone(),
            members: None,
            world: cluster::serves(&self.config).then(cluster::world::World::default),
            store_problem: None,
            lease_error: None,
            failsafe: false,
            certificates: entrances.view(),
            own_certificate: None,
        };
        self.say_started(&controller.shell);
        let alone = self.config.cluster.is_none();
        if alone {
            following::catch_up(&mut controller, &inputs).await;
        } else if controller.world.is_some() {
            controller.services.values().for_each(|service| service.begin(&controller.shell));
            tokio::spawn(cluster::world::follow(Arc::clone(&store), inputs.clone()));
        }
        if alone || controller.world.is_some() {
            tokio::spawn(lease::renew(Arc::clone(&store), lease::Without::of(&self.config), inputs.clone()));
        }
        if !alone {
            tokio::spawn(cluster::watch_members(seat, inputs.clone()));
            cluster::keep_certified(&self.config, &controller.seat, &inputs);
        }
        tokio::spawn(entrances.keep_current(inputs.clone()));
        let acme = acme.map(|acme| tokio::spawn(acme.run()));
        tokio::spawn(pass_on(asked, inputs, Input::Command));
        controller.run(received).await;
        if let Some(acme) = acme {
            acme.abort();
        }
        drop(dns);
        server.stop(API_PATIENCE).await;
        if let Err(error) = streams.close().await {
            tracing::warn!(%error, "the streams did not close cleanly; the next start replays their log");
        }
        if let Err(error) = store.close().await {
            tracing::warn!(%error, "the store did not close cleanly; the next start replays its log");
        }
        Ok(())
    }

    /// The store and, in a cluster, the address at which others reach this node.
    fn open_store(&self, data_dir: &Path) -> Result<(Seat, Option<String>), CannotStart> {
        let socket = self.peers.first().map(|exported| import(exported)).transpose()?;
        let (peers, address) = cluster::peers(&self.config, socket).map_err(CannotStart)?.unzip();
        let seat = Seat::open(&self.config, data_dir, peers).map_err(CannotStart)?;
        Ok((seat, address.flatten()))
    }

    /// The services, with what the keeper still holds taken over, and the gateway told of it before it starts.
    fn services(&self, shell: &Shell) -> (BTreeMap<ServiceName, Service>, Ports) {
        let now = Instant::now();
        let mut ports = Ports::new(self.config.node.instance_ports);
        ports.keep_fixed(&self.config);
        let new = |(name, definition): (&ServiceName, &model::Service)| {
            let routed = routes::is_routed(&self.config, name);
            (name.clone(), Service::new(name.clone(), definition.clone(), routed, shell.own.as_ref()))
        };
        let mut services: BTreeMap<ServiceName, Service> = self.config.services.iter().map(new).collect();
        for held in &self.inventory {
            let Some(service) = services.get_mut(&held.tag.service) else {
                discard(held);
                continue;
            };
            match adopt(service, held, shell, &mut ports, now) {
                Adopted::Kept => {}
                Adopted::Ended(exit) => service.exited(shell, &mut ports, &held.id, held.incarnation, &exit, now),
                Adopted::Unwanted => discard(held),
            }
        }
        for service in services.values_mut() {
            service.replace_outdated(shell);
            service.tell_gateway(shell);
        }
        (services, ports)
    }

    fn sockets(&self, entrances: &Entrances) -> Result<(TcpListener, Vec<gateway::Listener>), CannotStart> {
        let api = self
            .api
            .first()
            .map(|exported| import(exported))
            .ok_or_else(|| CannotStart("the keeper has no socket for the API".into()))??;
        let mut listeners = Vec::new();
        for (group, manner) in self.gateway.iter().zip(&entrances.manners) {
            let sockets = group.iter().map(|exported| import(exported)).collect::<Result<Vec<_>, _>>()?;
            let address = sockets
                .first()
                .and_then(|socket| socket.local_addr().ok())
                .ok_or_else(|| CannotStart("the keeper has no socket for the gateway".into()))?;
            listeners.push(gateway::Listener { address, sockets, manner: Arc::clone(manner) });
        }
        Ok((api, listeners))
    }

    /// The token lives as long as the data directory, so that an operator can keep it.
    fn authority(&self, data_dir: &Path) -> Result<api::Authority, CannotStart> {
        let path = data_dir.join("api-token");
        let token = match std::fs::read_to_string(&path).map(|token| token.trim().to_owned()) {
            Ok(token) if token.len() >= 32 => token,
            _ => {
                let token = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
                // Whole or not there: somebody may look for it already.
                platform::identity::replace_private(&path, token.as_bytes())
                    .map_err(|error| CannotStart(format!("{}: {error}", path.display())))?;
                token
            }
        };
        Ok(api::Authority { token, allowed_hosts: self.config.api.allowed_hosts.clone() })
    }

    fn start_gateway(
        &self,
        listeners: Vec<gateway::Listener>,
        (table, metrics, challenges): (Arc<gateway::Table>, gateway::Metrics, Arc<gateway::Challenges>),
        inputs: &mpsc::Sender<Input>,
        data_dir: &Path,
    ) -> Result<gateway::Gateway, CannotStart> {
        let written = &self.config.gateway;
        let access_log = if written.access_log.enabled {
            Some(access_log::start(data_dir).map_err(|error| CannotStart(format!("the access log: {error}")))?)
        } else {
            None
        };
        let options = gateway::Options {
            workers: workers(&self.config),
            max_connections: written.max_connections as usize,
            header_timeout: written.header_timeout,
            idle_timeout: written.idle_timeout,
            connect_timeout: written.connect_timeout,
            stall_timeout: written.stall_timeout,
            tunnel_idle_timeout: written.tunnel_idle_timeout,
            max_connections_per_client: written.max_connections_per_client,
            trusted_proxies: written.trusted_proxies.clone(),
            max_body_bytes: written.max_body_bytes,
            server_timing: written.server_timing,
            error_pages: self.error_pages()?,
            challenges,
            access_log,
            ..gateway::Options::default()
        };
        let (signals, noticed) = mpsc::channel(1024);
        tokio::spawn(pass_on(noticed, inputs.clone(), Input::Noticed));
        gateway::Gateway::start(options, listeners, table, metrics, signals)
            .map_err(|error| CannotStart(format!("the gateway: {error}")))
    }

    /// A node process that takes over from one that died does without pages that cannot be read any more.
    fn error_pages(&self) -> Result<Vec<gateway::ErrorPage>, CannotStart> {
        match files::error_pages(&self.config.gateway) {
            Err(error) if self.node_starts > 1 => {
                tracing::error!(error, "error pages are left out: mend the file and start seawall anew");
                Ok(Vec::new())
            }
            pages => pages.map_err(CannotStart),
        }
    }

    /// Reads the configuration file again whenever it is asked to (SIGHUP).
    fn reloader(&self, inputs: mpsc::Sender<Input>) -> mpsc::Sender<()> {
        let (reload, mut asked) = mpsc::channel(1);
        let options = self.options.clone();
        tokio::spawn(async move {
            while asked.recv().await.is_some() {
                let reading = options.clone();
                let loaded = tokio::task::spawn_blocking(move || load(&reading)).await;
                match loaded {
                    Ok(Ok(config)) => {
                        let (reply, done) = tokio::sync::oneshot::channel();
                        let command = api::Command::Apply { config: Box::new(config), over: None, reply };
                        if inputs.send(Input::Command(command)).await.is_err() {
                            return;
                        }
                        // Events tell how it went.
                        let _ = done.await;
                    }
                    Ok(Err(report)) => {
                        let first = report.lines().next().unwrap_or_default().to_owned();
                        if inputs.send(Input::ReloadRefused(first)).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => tracing::error!(%error, "reading the configuration failed"),
                }
            }
        });
        reload
    }

    fn say_started(&self, shell: &Shell) {
        let cause = shell.new_cause();
        match &self.previous_exit {
            None => shell.emit(
                EventKind::NodeStarted,
                Subject::default(),
                &cause,
                format!("node {} started", self.config.node.name),
            ),
            Some(status) => {
                let message = format!(
                    "the node process had ended ({status}) and is back; {} instances went on",
                    self.inventory.iter().filter(|held| held.exit.is_none()).count()
                );
                shell.emit(EventKind::NodeRecovered, Subject::default(), &cause, message);
            }
        }
    }
}

/// Nothing wants this instance any more.
fn discard(held: &Held) {
    let (id, incarnation) = (held.id.clone(), held.incarnation);
    Keeper.order(&if held.exit.is_some() {
        Order::Forget { id, incarnation }
    } else {
        Order::Stop { id, incarnation, grace_ms: 10_000 }
    });
}

/// Takes a socket over from the keeper.
fn import(exported: &str) -> Result<TcpListener, CannotStart> {
    platform::socket::import(exported)
        .map_err(|error| CannotStart(format!("a socket of the keeper cannot be used: {error}")))
}

fn address_of(listener: &TcpListener) -> String {
    listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
}

async fn pass_on<T>(mut from: mpsc::Receiver<T>, inputs: mpsc::Sender<Input>, wrap: impl Fn(T) -> Input) {
    while let Some(item) = from.recv().await {
        if inputs.send(wrap(item)).await.is_err() {
            return;
        }
    }
}
