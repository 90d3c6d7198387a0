//! The operating system's view of what Seawall runs: from `/proc`, not from Seawall's own words.

use std::path::Path;
use std::process::Command;

/// Sends `signal` ("KILL", "TERM", "STOP" ...) to `pid`; false when it is gone.
pub fn signal(pid: u64, signal: &str) -> bool {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).output();
    status.is_ok_and(|output| output.status.success())
}

/// Whether `pid` runs; a zombie does not.
pub fn is_running(pid: u64) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// Whether every thread of `pid` has stopped: the signal reaches them one after the other.
pub fn is_stopped(pid: u64) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| stat_at(&thread.path().join("stat")).is_some_and(|(state, _)| state == 'T'))
}

/// State and parent of a process.
fn stat(pid: u64) -> Option<(char, u64)> {
    stat_at(format!("/proc/{pid}/stat").as_ref())
}

fn stat_at(path: &Path) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(path).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn all() -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The living children of `pid`.
pub fn children(pid: u64) -> Vec<u64> {
    all()
        .into_iter()
        .filter(|child| is_running(*child) && stat(*child).is_some_and(|(_, parent)| parent == pid))
        .collect()
}

/// The node process of a keeper, if there is one at this moment.
pub fn node_of(keeper: u64) -> Option<u64> {
    children(keeper).into_iter().find(|child| {
        let line = std::fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"node")
    })
}

/// Living processes that were started, directly or not, for the data directory `data_dir`: they carry its mark in
/// their environment, or its path in their command line.
pub fn belonging_to(data_dir: &Path) -> Vec<u64> {
    let wanted = std::fs::read(data_dir.join("keeper.id")).unwrap_or_default();
    let argument = data_dir.display().to_string().into_bytes();
    let mark = |pid: &u64| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|one| {
            one.strip_prefix(b"SEAWALL_TREE=").is_some_and(|value| !wanted.is_empty() && value.starts_with(&wanted))
        }) || line.split(|byte| *byte == 0).any(|one| one == argument)
    };
    all().into_iter().filter(|pid| is_running(*pid)).filter(mark).collect()
}

/// Resident memory in bytes.
pub fn resident(pid: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Whether this test may do what only root can.
pub fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(1) == Some("0"))
}
