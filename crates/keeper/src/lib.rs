//! The keeper: the parent process. It opens the listening sockets, starts the node process and starts it again when it dies,
//! owns the instances with their process trees and log files, and holds their stop deadlines.
//! Small and single-threaded on purpose: no store, no decisions, no network traffic of its own, so that there is next to
//! nothing in it that can fail. Everything it knows that the node needs after a crash goes into the node's first line.

mod instance;
pub mod log;
mod node;
mod start;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use model::{Incarnation, InstanceId};
use platform::signal::{Request, Requests};
use runtime::protocol::{Order, Report};
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep_until};

use instance::{Command, Instance};
use node::{NodeEvent, NodeProcess, SILENCE};
pub use start::{Options, StartError, lock};

/// How long instances get when the keeper has to stop them itself.
const LAST_GRACE: Duration = Duration::from_secs(5);

/// Runs the keeper until everything is stopped. Must be called on the process's main thread: the parent-death signal
/// of everything it starts is tied to the calling thread.
///
/// # Errors
/// What kept it from starting: a port taken, a data directory that is locked, read-only or full.
pub fn run(options: Options) -> Result<(), StartError> {
    platform::thread::answer_soon();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(platform::process::MAX_PIPE_THREADS)
        .build()
        .map_err(|reason| StartError::System { what: "starting the event loop", reason })?;
    let ran = LocalSet::new().block_on(&runtime, async {
        let ground = start::prepare(options)?;
        Keeper::new(ground)?.run().await
    });
    // Whatever still waits on a pipe must not keep the keeper from ending.
    runtime.shutdown_background();
    ran
}

struct Keeper {
    ground: start::Ground,
    requests: Requests,
    node: NodeProcess,
    node_events: mpsc::Receiver<NodeEvent>,
    instances: BTreeMap<InstanceId, Instance>,
    reports: mpsc::UnboundedReceiver<Report>,
    reporter: Rc<RefCell<mpsc::UnboundedSender<Report>>>,
    ready_printed: bool,
    stopping: Option<Instant>,
    /// When the next node process is to be started, and how the one before ended.
    due: Option<(Instant, String)>,
}

impl Keeper {
    fn new(ground: start::Ground) -> Result<Self, StartError> {
        let system = |what| move |reason| StartError::System { what, reason };
        let requests = Requests::listen().map_err(system("listening for signals"))?;
        let (node, node_events) = NodeProcess::start(&ground).map_err(system("starting the node process"))?;
        let (reporter, reports) = mpsc::unbounded_channel();
        let reporter = Rc::new(RefCell::new(reporter));
        Ok(Self {
            ground,
            requests,
            node,
            node_events,
            instances: BTreeMap::new(),
            reports,
            reporter,
            ready_printed: false,
            stopping: None,
            due: None,
        })
    }

    async fn run(mut self) -> Result<(), StartError> {
        loop {
            let silent_at = self.node.silent_at();
            let stop_at = self.stopping.unwrap_or_else(|| Instant::now() + self.ground.stop_patience);
            let due_at = self.due.as_ref().map(|(at, _)| *at);
            tokio::select! {
                // In this order: what the node has said counts before its silence does, also after a pause of this process.
                biased;
                event = self.node_events.recv() => match event {
                    Some(NodeEvent::Order(Order::Shutdown)) => {
                        self.shut_down().await;
                        return Ok(());
                    }
                    Some(NodeEvent::Order(order)) => self.order(order),
                    Some(NodeEvent::Exited { .. }) if self.stopping.is_some() => {
                        self.shut_down().await;
                        return Ok(());
                    }
                    // While instances run, giving up would stop them: the next node process may find the cause removed.
                    Some(NodeEvent::Exited { cannot_start: true, .. }) if self.instances.is_empty() => {
                        self.shut_down().await;
                        return Err(StartError::Node);
                    }
                    Some(NodeEvent::Exited { status, .. }) => {
                        say(&format!("seawall: the node process ended ({status}); starting it again, instances keep running"));
                        self.due = Some((Instant::now() + self.node.pause(), status));
                        for held in self.instances.values() {
                            held.command(Command::NodeEnded);
                        }
                    }
                    None => unreachable!("the node's handle keeps a sender"),
                },
                Some(report) = self.reports.recv() => self.report(report),
                request = self.requests.next() => match request {
                    Request::Reload => self.node.tell(&Report::ReloadRequested),
                    // No node process is there to stop things in good order.
                    Request::Stop if self.due.is_some() => {
                        self.shut_down().await;
                        return Ok(());
                    }
                    Request::Stop if self.stopping.is_none() => {
                        self.stopping = Some(Instant::now() + self.ground.stop_patience);
                        self.node.tell(&Report::StopRequested);
                    }
                    Request::Stop => {
                        say("seawall: asked to stop a second time: ending everything now");
                        self.shut_down().await;
                        return Ok(());
                    }
                },
                () = sleep_until(due_at.unwrap_or(stop_at)), if due_at.is_some() => self.restart_node(),
                () = sleep_until(silent_at.unwrap_or(stop_at)), if silent_at.is_some() => {
                    say(&format!("seawall: the node process has been silent for {} s: ending it, instances keep running", SILENCE.as_secs()));
                    self.node.kill();
                }
                () = sleep_until(stop_at), if self.stopping.is_some() => {
                    say(&format!("seawall: the node did not stop within {} s: ending everything now", self.ground.stop_patience.as_secs()));
                    self.shut_down().await;
                    return Ok(());
                }
            }
        }
    }

    /// Starts the node process that is due; one that cannot be started is tried again.
    fn restart_node(&mut self) {
        let Some((_, status)) = self.due.take() else { return };
        let inventory = self.instances.values().map(Instance::held).collect();
        if let Err(error) = self.node.restart(&self.ground, &status, inventory) {
            say(&format!("seawall: cannot start the node process: {error}; trying again in 1 s"));
            self.due = Some((Instant::now() + Duration::from_secs(1), status));
        }
    }

    fn order(&mut self, order: Order) {
        match order {
            Order::Start { id, incarnation, spec, tag } => {
                let busy = self.instances.get(&id).is_some_and(|held| held.held().exit.is_none());
                if busy {
                    // The node orders by its view of the world; the keeper never runs an id twice.
                    say(&format!("seawall: {id} is still running and cannot be started a second time"));
                    return;
                }
                let log = self.ground.data_dir.join("logs").join(tag.service.as_str());
                let marker = format!("{}{id}:{}", self.ground.tree_prefix, incarnation.0);
                let started =
                    Instance::start(id.clone(), incarnation, spec, tag, &log, &marker, Rc::clone(&self.reporter));
                self.instances.insert(id, started);
            }
            Order::Stop { id, incarnation, grace_ms } => {
                self.command(&id, incarnation, Command::Stop(Duration::from_millis(grace_ms)));
            }
            Order::Kill { id, incarnation } => self.command(&id, incarnation, Command::Kill),
            Order::Deadline { id, incarnation, at_boot_ms, sole_voter } => {
                let at = at_boot_ms.map(Duration::from_millis);
                self.command(&id, incarnation, Command::Deadline { at, sole_voter });
            }
            Order::Remember { id, incarnation, tag } => {
                if let Some(held) = self.instances.get(&id).filter(|held| held.incarnation == incarnation) {
                    held.remember(tag);
                }
            }
            Order::Forget { id, incarnation } => {
                let dealt_with = |held: &Instance| held.incarnation == incarnation && held.held().exit.is_some();
                if self.instances.get(&id).is_some_and(dealt_with) {
                    self.instances.remove(&id);
                }
            }
            Order::Ready { line, hints } => {
                if !std::mem::replace(&mut self.ready_printed, true) {
                    // Whoever was reading may have gone: that must not end the keeper.
                    let _ = writeln!(std::io::stdout(), "{line}");
                    for hint in hints {
                        say(&hint);
                    }
                }
            }
            Order::Alive => self.node.heard(),
            Order::Shutdown => {}
        }
    }

    fn command(&self, id: &InstanceId, incarnation: Incarnation, command: Command) {
        if let Some(held) = self.instances.get(id).filter(|held| held.incarnation == incarnation) {
            held.command(command);
        }
    }

    fn report(&mut self, report: Report) {
        self.node.tell(&report);
    }

    /// Ends what is left: politely for a moment, then by force; the node process last.
    async fn shut_down(mut self) {
        for held in self.instances.values() {
            held.command(Command::Stop(LAST_GRACE));
        }
        let all_ended =
            |instances: &BTreeMap<InstanceId, Instance>| instances.values().all(|held| held.held().exit.is_some());
        let deadline = Instant::now() + LAST_GRACE + Duration::from_secs(6);
        while !all_ended(&self.instances) && Instant::now() < deadline {
            // Every end is reported; the node may be gone, so nobody else reads.
            let _ = tokio::time::timeout_at(deadline, self.reports.recv()).await;
        }
        self.node.end().await;
        platform::process::kill_strays(&self.ground.tree_prefix);
    }
}

/// A line on standard error. Nobody may be reading any more, and that must not end the keeper as `eprintln!` would.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The folder of instance logs under a data directory.
pub fn logs_folder(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("logs")
}
