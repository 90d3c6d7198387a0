//! One instance in the keeper's hands: its process tree from start to confirmed end, with its log and its deadlines.
//! Part of the failure walk: the report of an end starts it, and a confirmed end lets a promotion go on.

use std::cell::RefCell;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use model::{Incarnation, InstanceId};
use platform::process::Tree;
use runtime::protocol::{Exit, ExitBy, Held, ProcessSpec, Report, Tag};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::log::{LogFile, Stream};

/// After a kill the kernel needs a moment; a tree that is there longer is reported as unkillable.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// A sleep in the system's suspend does not count on the timer's clock, so deadlines are looked at this often.
const DEADLINE_GRAIN: Duration = Duration::from_millis(100);
/// How long a primary lives on after the end of the only process that could replace it, for the next one to take over.
const RECOVERY: Duration = Duration::from_secs(10);

/// What can be asked of a running instance.
#[derive(Debug)]
pub enum Command {
    /// Ask the tree to stop, kill it after this long.
    Stop(Duration),
    /// Kill it now.
    Kill,
    /// Kill it when the clock since boot reaches this; `None` lifts it.
    Deadline {
        /// The moment.
        at: Option<Duration>,
        /// Nobody can choose another primary while no node process runs.
        sole_voter: bool,
    },
    /// The node process has ended. A deadline that only it could have made pointless waits for the next one.
    NodeEnded,
}

type Reporter = Rc<RefCell<mpsc::UnboundedSender<Report>>>;

/// The keeper's handle on one start of an instance.
#[derive(Debug)]
pub struct Instance {
    /// Which start.
    pub incarnation: Incarnation,
    held: Rc<RefCell<Held>>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Instance {
    /// Starts the process; its end, or that it could not be started, is reported.
    pub fn start(
        id: InstanceId,
        incarnation: Incarnation,
        spec: ProcessSpec,
        tag: Tag,
        logs: &Path,
        marker: &str,
        reporter: Reporter,
    ) -> Self {
        let started_unix_ms =
            SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0));
        let held = Held { id: id.clone(), incarnation, pid: 0, started_unix_ms, tag, stopping: false, exit: None };
        let held = Rc::new(RefCell::new(held));
        let (commands, received) = mpsc::unbounded_channel();
        let log = Rc::new(RefCell::new(LogFile::open(logs, &id, spec.log_max_bytes, spec.log_keep)));
        let report = move |report| {
            // Ignored: the receiver lives as long as the keeper.
            let _ = reporter.borrow().send(report);
        };
        let started = spawn(&spec, marker);
        match started {
            Ok(tree) => {
                held.borrow_mut().pid = tree.pid();
                report(Report::Started { id, incarnation, pid: tree.pid() });
                let run = Run {
                    tree,
                    held: Rc::clone(&held),
                    commands: received,
                    log,
                    by: ExitBy::Itself,
                    kill_at: None,
                    deadline: None,
                    sole_voter: false,
                };
                tokio::task::spawn_local(async move { report(run.until_end(&report).await) });
            }
            Err(error) => {
                let program = spec.command.first().map_or("", String::as_str);
                let status = format!("cannot start `{program}` in {}: {error}", spec.working_dir.display());
                log.borrow_mut().line(Stream::Seawall, status.as_bytes());
                let exit = Exit { by: ExitBy::NotStarted, code: None, status, orphans: 0 };
                held.borrow_mut().exit = Some(exit.clone());
                report(Report::Exited { id, incarnation, exit });
            }
        }
        Self { incarnation, held, commands }
    }

    /// What is known of it.
    pub fn held(&self) -> Held {
        self.held.borrow().clone()
    }

    /// Replaces what is remembered for the next node process.
    pub fn remember(&self, tag: Tag) {
        self.held.borrow_mut().tag = tag;
    }

    /// Passes a command on; one that comes after the end is of no use to anybody.
    pub fn command(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

fn spawn(spec: &ProcessSpec, marker: &str) -> std::io::Result<Tree> {
    let (program, arguments) = spec.command.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    let mut command = tokio::process::Command::new(platform::program::locate(program, &spec.working_dir, &spec.env));
    command.args(arguments).envs(&spec.env).current_dir(&spec.working_dir);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Tree::spawn(command, marker)
}

struct Run {
    tree: Tree,
    held: Rc<RefCell<Held>>,
    commands: mpsc::UnboundedReceiver<Command>,
    log: Rc<RefCell<LogFile>>,
    by: ExitBy,
    kill_at: Option<Instant>,
    deadline: Option<Duration>,
    sole_voter: bool,
}

impl Run {
    /// From the start to the confirmed end, which is returned as the report of it.
    async fn until_end(mut self, report: &impl Fn(Report)) -> Report {
        let (_, out, err) = self.tree.pipes();
        let readers = [
            out.map(|out| tokio::task::spawn_local(pump(out, Stream::Out, Rc::clone(&self.log)))),
            err.map(|err| tokio::task::spawn_local(pump(err, Stream::Err, Rc::clone(&self.log)))),
        ];
        let status = self.until_exit(report).await;
        // Its end is reported when all of it is gone, however long that takes: until then nobody may take its place.
        let orphans = loop {
            match self.tree.end(KILL_PATIENCE).await {
                Ok(orphans) => break orphans,
                Err(error) => self.unkillable(report, error.to_string()),
            }
        };
        let exit = match status {
            Ok(status) => {
                Exit { by: self.by, code: status.code(), status: platform::process::describe_exit(status), orphans }
            }
            Err(error) => {
                Exit { by: self.by, code: None, status: format!("its end could not be read: {error}"), orphans }
            }
        };
        let mut held = self.held.borrow_mut();
        held.exit = Some(exit.clone());
        self.log.borrow_mut().line(Stream::Seawall, format!("ended: {}", exit.status).as_bytes());
        let report = Report::Exited { id: held.id.clone(), incarnation: held.incarnation, exit };
        drop(held);
        // What it wrote last is read to its end in the background, so that a promotion never waits for a log.
        drop(readers);
        report
    }

    async fn until_exit(&mut self, report: &impl Fn(Report)) -> std::io::Result<std::process::ExitStatus> {
        let mut warned_at = None;
        loop {
            let pause = self.next_look(warned_at);
            tokio::select! {
                status = self.tree.wait() => return status,
                Some(command) = self.commands.recv() => self.obey(command),
                () = sleep(pause) => {}
            }
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| platform::clock::since_boot() >= deadline)
                && self.by != ExitBy::Deadline
            {
                self.kill(ExitBy::Deadline);
                self.deadline = None;
                warned_at = Some(now + KILL_PATIENCE);
            } else if self.kill_at.is_some_and(|at| now >= at) {
                let by = if self.by == ExitBy::Stop { ExitBy::Grace } else { self.by };
                self.kill(by);
                self.kill_at = None;
                warned_at = Some(now + KILL_PATIENCE);
            } else if warned_at.is_some_and(|at| now >= at) {
                self.unkillable(report, format!("still there {} s after it was killed", KILL_PATIENCE.as_secs()));
                warned_at = None;
            }
        }
    }

    fn next_look(&self, warned_at: Option<Instant>) -> Duration {
        let now = Instant::now();
        let timers = [self.kill_at, warned_at].into_iter().flatten().map(|at| at.saturating_duration_since(now));
        let deadline = self.deadline.map(|at| at.saturating_sub(platform::clock::since_boot()).min(DEADLINE_GRAIN));
        timers.chain(deadline).min().unwrap_or(Duration::from_secs(3600))
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Stop(grace) => {
                self.held.borrow_mut().stopping = true;
                self.by = ExitBy::Stop;
                // Ignored: whatever does not stop is killed after the grace.
                let _ = self.tree.terminate();
                let kill_at = Instant::now() + grace;
                self.kill_at = Some(self.kill_at.map_or(kill_at, |earlier| earlier.min(kill_at)));
            }
            Command::Kill => {
                self.by = ExitBy::Kill;
                self.kill_at = Some(Instant::now());
            }
            Command::Deadline { at, sole_voter } => {
                self.deadline = at;
                self.sole_voter = sole_voter;
            }
            Command::NodeEnded => {
                let extended = platform::clock::since_boot() + RECOVERY;
                self.deadline = self.deadline.map(|at| if self.sole_voter { at.max(extended) } else { at });
            }
        }
    }

    fn kill(&mut self, by: ExitBy) {
        self.by = by;
        self.held.borrow_mut().stopping = true;
        // Ignored: what cannot be killed is reported as such.
        let _ = self.tree.kill();
    }

    fn unkillable(&self, report: &impl Fn(Report), message: String) {
        let held = self.held.borrow();
        report(Report::Unkillable { id: held.id.clone(), incarnation: held.incarnation, message });
    }
}

/// Copies a stream into the log. Reading never stops, or the instance would block on a full pipe.
async fn pump(mut stream: impl AsyncRead + Unpin, name: Stream, log: Rc<RefCell<LogFile>>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => log.borrow_mut().write(name, &buffer[..length]),
        }
        // A flood on one stream must not keep the keeper from its deadlines.
        tokio::task::yield_now().await;
    }
    log.borrow_mut().flush(name);
}
