//! Process trees: started so that they die with the keeper, ended as a whole, and checked to be gone.
//! Linux: a process group, a parent-death signal, a child subreaper, and a marker in the environment by which strays are found.
//! Windows: a job object for each tree, and one around the keeper that ends everything when its last handle closes.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::{ChildStderr, ChildStdin, ChildStdout, Command};

#[cfg(unix)]
#[path = "process/unix.rs"]
mod imp;
#[cfg(windows)]
#[path = "process/windows.rs"]
mod imp;

/// Environment variable by which strays of an instance, or of a keeper, are found again.
pub const TREE_MARKER: &str = "SEAWALL_TREE";

/// Threads that an event loop must allow for the pipes of the processes it runs. Linux needs none of its own; on Windows
/// each pipe that is read or written keeps one waiting, and a loop that runs out of them stands still.
pub const MAX_PIPE_THREADS: usize = imp::MAX_PIPE_THREADS;

/// Standard input, output and error of a root, as far as they were asked for and not taken yet.
pub type Pipes = (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>);

/// One started process and everything it starts.
#[derive(Debug)]
pub struct Tree {
    root: imp::Root,
    marker: String,
    pid: u32,
    ended: bool,
}

impl Tree {
    /// Starts `command` as the root of a tree that dies with the calling process. `marker` must be unique to this start.
    ///
    /// # Errors
    /// The operating system's: no such program, no permission, no memory.
    pub fn spawn(mut command: Command, marker: &str) -> io::Result<Self> {
        command.env(TREE_MARKER, marker);
        let root = imp::Root::spawn(command)?;
        let pid = root.id().ok_or_else(|| io::Error::other("the process ended before it had a pid"))?;
        Ok(Self { root, marker: marker.to_owned(), pid, ended: false })
    }

    /// The root's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The root's pipes, as far as they were asked for; each can be taken once.
    pub fn pipes(&mut self) -> Pipes {
        self.root.pipes()
    }

    /// Waits until the root has ended. Its children may live on: see [`Tree::end`].
    ///
    /// # Errors
    /// The operating system's.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.root.wait().await
    }

    /// Asks the whole tree to stop: SIGTERM, or Ctrl+Break on Windows.
    ///
    /// # Errors
    /// The operating system's; a tree that is already gone is no error.
    pub fn terminate(&mut self) -> io::Result<()> {
        imp::terminate(self.pid)
    }

    /// Ends the whole tree at once.
    ///
    /// # Errors
    /// The operating system's.
    pub fn kill(&mut self) -> io::Result<()> {
        let ended = self.root.kill();
        imp::kill_marked(&self.marker);
        ended
    }

    /// After the root has ended: ends what it left behind and returns how many processes that were.
    /// Waits at most `patience` for them to be gone; an error means some still live.
    ///
    /// # Errors
    /// `TimedOut` when a process of the tree could not be ended.
    pub async fn end(&mut self, patience: Duration) -> io::Result<usize> {
        let left = self.root.leftovers(self.pid, &self.marker);
        if left.is_empty() {
            self.ended = true;
            return Ok(0);
        }
        let count = left.len();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            // Ignored: a group that has just become empty cannot be signalled, which is what we want.
            let _ = self.root.kill();
            imp::kill_marked(&self.marker);
            imp::reap(self.pid);
            if self.root.leftovers(self.pid, &self.marker).is_empty() {
                self.ended = true;
                return Ok(count);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{count} processes of the tree could not be ended"),
                ));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

static PREFIX: std::sync::OnceLock<String> = std::sync::OnceLock::new();

/// What markers of this process's trees begin with from now on, so that [`kill_strays`] finds them; the first call counts.
pub fn mark_trees(prefix: &str) {
    // Ignored: a second call would only repeat the first.
    let _ = PREFIX.set(prefix.to_owned());
}

/// What was given to [`mark_trees`].
pub fn tree_prefix() -> &'static str {
    PREFIX.get().map_or("", String::as_str)
}

/// A tree that nobody waits for any more, as when a probe is given up, must not live on.
impl Drop for Tree {
    fn drop(&mut self) {
        if !self.ended {
            // Ignored: it may have ended by itself.
            let _ = self.kill();
        }
    }
}

/// How often strays are looked for at most, and the pause between two looks.
const STRAY_LOOKS: u32 = 20;
const STRAY_PAUSE: Duration = Duration::from_millis(2);

/// Ends every process whose tree marker starts with `prefix`: what a keeper that was killed may have left. Returns how many.
/// Blocks for a few milliseconds: a process that is forked while the list is read is only in the next one.
pub fn kill_strays(prefix: &str) -> usize {
    let mut most = 0;
    for _ in 0..STRAY_LOOKS {
        let found = imp::kill_marked(prefix);
        if found == 0 {
            break;
        }
        most = most.max(found);
        std::thread::sleep(STRAY_PAUSE);
    }
    most
}

/// Has what `command` starts notice the end of this process even while it is stopped (SIGSTOP). Must be started from the
/// main thread, whose end counts as the process's.
pub fn wakes_with_parent(command: &mut Command) {
    imp::wakes_with_parent(command);
}

/// Makes this process the one whose end ends every tree it started, strays included. Call once, before any tree.
///
/// # Errors
/// The operating system's.
pub fn adopt_descendants() -> io::Result<()> {
    imp::adopt_descendants()
}

/// Resident memory of process `pid` in bytes, if it can be known.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    imp::resident_bytes(pid)
}

/// How long process `pid` has used processors in all, its own threads alone, if it can be known.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    imp::cpu_time(pid)
}

/// How `status` reads to an operator: `exit code 1`, `signal 9 (KILL)`, `exit code 0xC0000005 (access violation)`.
pub fn describe_exit(status: ExitStatus) -> String {
    imp::describe_exit(status)
}
