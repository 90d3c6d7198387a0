//! Process trees on Unix: a process group, a parent-death signal, a child subreaper, and a marker in the environment
//! by which processes are found that left the group.

use std::os::unix::process::ExitStatusExt;

use process_wrap::tokio::{ChildWrapper, CommandWrap, ProcessGroup};
use rustix::process::{Pid, Signal, WaitOptions};

use super::{Command, Duration, ExitStatus, Pipes, TREE_MARKER, io};

pub const MAX_PIPE_THREADS: usize = 8;

/// The first process of a tree, leader of a process group.
#[derive(Debug)]
pub struct Root(Box<dyn ChildWrapper>);

impl Root {
    pub fn spawn(mut command: Command) -> io::Result<Self> {
        dies_with_parent(&mut command);
        let mut wrap = CommandWrap::from(command);
        wrap.wrap(ProcessGroup::leader());
        wrap.spawn().map(Self)
    }

    pub fn id(&self) -> Option<u32> {
        self.0.id()
    }

    pub fn pipes(&mut self) -> Pipes {
        (self.0.stdin().take(), self.0.stdout().take(), self.0.stderr().take())
    }

    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.0.inner_mut().wait().await
    }

    pub fn kill(&mut self) -> io::Result<()> {
        self.0.start_kill()
    }

    /// Living members of the group, and marked processes that left it.
    pub fn leftovers(&self, root: u32, marker: &str) -> Vec<u32> {
        reap(root);
        let mut left = marked(marker);
        let group_lives = pid(root).is_some_and(|group| rustix::process::test_kill_process_group(group).is_ok());
        if group_lives && left.is_empty() {
            left.push(root);
        }
        left
    }
}

fn dies_with_parent(command: &mut Command) {
    signalled_with_parent(command, Signal::KILL);
}

/// A stopped process would not notice that its parent has gone: this wakes it, so that it can end what is to be ended.
pub fn wakes_with_parent(command: &mut Command) {
    signalled_with_parent(command, Signal::CONT);
}

fn signalled_with_parent(command: &mut Command, signal: Signal) {
    #[cfg(target_os = "linux")]
    {
        let parent = rustix::process::getpid();
        let hook = move || {
            rustix::process::set_parent_process_death_signal(Some(signal))?;
            // The parent may have died before the line above: then nobody would send the signal.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::other("the keeper is gone"));
            }
            Ok(())
        };
        // SAFETY: between fork and exec the hook makes two system calls and allocates only on its error path,
        // where the child exits anyway; it touches no lock and no memory shared with other threads.
        unsafe { command.pre_exec(hook) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (command, signal);
}

fn pid(raw: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(raw).ok()?)
}

pub fn terminate(root: u32) -> io::Result<()> {
    let Some(group) = pid(root) else { return Ok(()) };
    match rustix::process::kill_process_group(group, Signal::TERM) {
        Err(error) if error != rustix::io::Errno::SRCH => Err(error.into()),
        _ => Ok(()),
    }
}

/// Collects ended members of the group that became ours when their parent ended.
pub fn reap(root: u32) {
    let Some(group) = pid(root) else { return };
    while let Ok(Some(_)) = rustix::process::waitpgid(group, WaitOptions::NOHANG) {}
}

pub fn kill_marked(prefix: &str) -> usize {
    let strays = marked(prefix);
    for stray in &strays {
        if let Some(pid) = pid(*stray) {
            // Ignored: it may have ended by itself meanwhile.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
    strays.len()
}

/// Living processes of this user whose environment carries a marker starting with `prefix`.
fn marked(prefix: &str) -> Vec<u32> {
    let wanted = format!("{TREE_MARKER}={prefix}");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            // A zombie's environment reads as empty, so the dead never count.
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(wanted.as_bytes()))
        })
        .collect()
}

pub fn adopt_descendants() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

pub fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Behind the program's name, which may contain anything: the 14th and 15th field of proc(5).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let (user, system) = (ticks()?, ticks()?);
    Some(Duration::from_millis((user + system) * 1000 / rustix::param::clock_ticks_per_second().max(1)))
}

pub fn describe_exit(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(number)) => {
            let name = match number {
                1 => " (HUP)",
                2 => " (INT)",
                6 => " (ABRT)",
                9 => " (KILL)",
                11 => " (SEGV)",
                15 => " (TERM)",
                _ => "",
            };
            format!("signal {number}{name}")
        }
        (None, None) => "an unknown status".into(),
    }
}
