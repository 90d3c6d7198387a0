//! The node process as the keeper sees it: started with the sockets, told reports on its standard input,
//! obeyed on its standard output, started again when it dies. Its standard error is the keeper's.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use runtime::protocol::{CANNOT_START, Held, MAX_LINE, Order, Report, VERSION};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::say;
use crate::start::Ground;

/// A node process that lived shorter than this was broken: the next one waits a moment.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// The longest pause before a node process is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A node process that has been at work and says nothing for so long hangs.
pub const SILENCE: Duration = Duration::from_secs(10);
/// Reports that may wait for a node that does not read; more are dropped, and the next node gets the inventory anyway.
const UNREAD_REPORTS: usize = 4096;

/// What comes from the node.
#[derive(Debug)]
pub enum NodeEvent {
    /// An order.
    Order(Order),
    /// Its process ended.
    Exited {
        /// How, in words.
        status: String,
        /// It cannot start, and said why.
        cannot_start: bool,
    },
}

/// The running node process.
#[derive(Debug)]
pub struct NodeProcess {
    events: mpsc::Sender<NodeEvent>,
    reports: mpsc::Sender<String>,
    kill: Option<tokio::sync::oneshot::Sender<()>>,
    ended: Option<tokio::task::JoinHandle<()>>,
    starts: u32,
    started: Instant,
    short_lives: u32,
    heard: Option<Instant>,
}

impl NodeProcess {
    /// Starts the first node process.
    pub fn start(ground: &Ground) -> io::Result<(Self, mpsc::Receiver<NodeEvent>)> {
        let (events, received) = mpsc::channel(1024);
        let (reports, _) = mpsc::channel(1);
        let mut node = Self {
            events,
            reports,
            kill: None,
            ended: None,
            starts: 0,
            started: Instant::now(),
            short_lives: 0,
            heard: None,
        };
        node.spawn(ground, None, Vec::new())?;
        Ok((node, received))
    }

    /// How long to wait before another one is started: not at all, unless they keep dying young.
    pub fn pause(&mut self) -> Duration {
        self.heard = None;
        self.short_lives = if self.started.elapsed() < SHORT_LIFE { self.short_lives + 1 } else { 0 };
        if self.short_lives <= 3 {
            return Duration::ZERO;
        }
        let pause = Duration::from_millis(100 << (self.short_lives - 3).min(10)).min(LONGEST_PAUSE);
        say(&format!("seawall: the node process keeps ending; next start in {} ms", pause.as_millis()));
        pause
    }

    /// Starts another one after `previous` ended.
    pub fn restart(&mut self, ground: &Ground, previous: &str, inventory: Vec<Held>) -> io::Result<()> {
        self.spawn(ground, Some(previous.to_owned()), inventory)
    }

    fn spawn(&mut self, ground: &Ground, previous_exit: Option<String>, inventory: Vec<Held>) -> io::Result<()> {
        self.starts += 1;
        self.started = Instant::now();
        self.heard = None;
        let mut command = Command::new(platform::program::own()?);
        command.args(&ground.node_arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        platform::process::wakes_with_parent(&mut command);
        for sockets in [&ground.api, &ground.peers].into_iter().chain(&ground.gateway) {
            platform::socket::inherit(&mut command, sockets);
        }
        let mut child = command.spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        let export = |sockets: &Vec<std::net::TcpListener>| {
            sockets.iter().map(|socket| platform::socket::export(socket, pid)).collect::<io::Result<Vec<_>>>()
        };
        let hello = Report::Hello {
            version: VERSION,
            keeper_pid: std::process::id(),
            node_starts: self.starts,
            previous_exit,
            tree_prefix: ground.tree_prefix.clone(),
            api: export(&ground.api)?,
            peers: export(&ground.peers)?,
            gateway: ground.gateway.iter().map(export).collect::<io::Result<_>>()?,
            inventory,
        };
        let input = child.stdin.take().expect("its input is a pipe");
        let output = child.stdout.take().expect("its output is a pipe");
        let (reports, lines) = mpsc::channel(UNREAD_REPORTS);
        self.reports = reports;
        self.tell(&hello);
        tokio::task::spawn_local(write_reports(input, lines));
        let (kill, killed) = tokio::sync::oneshot::channel();
        self.kill = Some(kill);
        self.ended = Some(tokio::task::spawn_local(watch(child, output, killed, self.events.clone())));
        Ok(())
    }

    /// Sends a report. One that does not fit is dropped: the node is hung, and its successor gets the inventory.
    pub fn tell(&self, report: &Report) {
        let line = serde_json::to_string(report).expect("reports always become JSON");
        // Ignored for the reason above.
        let _ = self.reports.try_send(line);
    }

    /// It is at work.
    pub fn heard(&mut self) {
        self.heard = Some(Instant::now());
    }

    /// When it counts as hung; never before it has once been at work, as replaying a long log takes its time.
    pub fn silent_at(&self) -> Option<Instant> {
        self.heard.map(|heard| heard + SILENCE)
    }

    /// Ends the node process; its end is an event like any other.
    pub fn kill(&mut self) {
        self.heard = None;
        if let Some(kill) = self.kill.take() {
            // Ignored: it ended by itself.
            let _ = kill.send(());
        }
    }

    /// Ends the node process and waits until it is gone.
    pub async fn end(&mut self) {
        self.kill();
        if let Some(ended) = self.ended.take() {
            let _ = ended.await;
        }
    }
}

async fn write_reports(mut input: ChildStdin, mut lines: mpsc::Receiver<String>) {
    while let Some(mut line) = lines.recv().await {
        line.push('\n');
        if input.write_all(line.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// Reads orders until the process ends, then says so.
async fn watch(
    mut child: Child,
    output: ChildStdout,
    mut killed: tokio::sync::oneshot::Receiver<()>,
    events: mpsc::Sender<NodeEvent>,
) {
    let reading = tokio::task::spawn_local(read_orders(output, events.clone()));
    let status = tokio::select! {
        status = child.wait() => status,
        _ = &mut killed => {
            // Ignored: it ended meanwhile.
            let _ = child.start_kill();
            child.wait().await
        }
    };
    // Orders it had still written count: they were decided before it died.
    let _ = tokio::time::timeout(Duration::from_secs(1), reading).await;
    let cannot_start = status.as_ref().is_ok_and(|status| status.code() == Some(CANNOT_START));
    let status = status.map_or_else(|error| error.to_string(), platform::process::describe_exit);
    // Ignored: the keeper itself is ending.
    let _ = events.send(NodeEvent::Exited { status, cannot_start }).await;
}

async fn read_orders(output: ChildStdout, events: mpsc::Sender<NodeEvent>) {
    let mut reader = BufReader::new(output);
    let mut line = String::new();
    loop {
        line.clear();
        let limit = u64::try_from(MAX_LINE).expect("a small constant");
        match (&mut reader).take(limit).read_line(&mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match serde_json::from_str(&line) {
            Ok(order) => {
                if events.send(NodeEvent::Order(order)).await.is_err() {
                    return;
                }
            }
            Err(error) => say(&format!("seawall: an order of the node that the keeper does not understand: {error}")),
        }
    }
}
