//! Processes of a measurement: held to one core, and what the kernel says they used.
//! Below the proxies, the backend and the load generators. Linux only: everything is read from `/proc`.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Proxies run here.
pub const PROXY_CORE: usize = 0;
/// The backend and the load generator run here.
pub const LOAD_CORE: usize = 1;
/// How long a proxy may take to listen, and to stop.
const PATIENCE: Duration = Duration::from_secs(20);
/// Linux counts processor time for user space in these, on every machine that Rust knows.
const TICKS_PER_SECOND: f64 = 100.0;

/// A process that is stopped, politely first, when it goes out of scope. Its output is in a file.
pub struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// Starts `command`; `log` takes what it prints. Its input ends when this process does.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        Ok(Self { child, log })
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `found` finds something in what the process prints.
    pub fn wait_for<T>(&mut self, what: &str, found: impl Fn(&str) -> Option<T>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = found(&self.output()) {
                return Ok(found);
            }
            self.still_alive()?;
            if Instant::now() > until {
                bail!("no {what} within {PATIENCE:?}; it said:\n{}", tail(&self.output()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until somebody accepts at `address`.
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.wait_for("open port", |_| TcpStream::connect(address).ok()).map(drop)
    }

    fn still_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("does not start ({status}):\n{}", tail(&self.output()));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGTERM, which std cannot send: nginx's master would leave its worker behind if it were killed.
        let _ = Command::new("kill").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        let until = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command held to `core`, with as many open files as it may have, that does not outlive this process.
pub fn pinned(core: usize, program: &Path) -> Result<Command> {
    let files = most_files()?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "prlimit", &format!("--nofile={files}:{files}")]);
    command.args(["taskset", "-c", &core.to_string()]).arg(program);
    Ok(command)
}

/// The most files a process may open here without more rights than it has.
pub fn most_files() -> Result<u64> {
    let limits = fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit of open files")?;
    let hard = line.split_whitespace().nth(4).context("no hard limit of open files")?;
    Ok(hard.parse().unwrap_or(1 << 20))
}

/// A port nobody has now, below those that the system takes for outgoing connections: not even one that is just ending
/// stands on it.
pub fn free_port() -> Result<SocketAddr> {
    let first = 10_000 + std::process::id() % 9_000;
    let found = (first..20_000).find_map(|port| TcpListener::bind(("127.0.0.1", u16::try_from(port).ok()?)).ok());
    Ok(found.context("no free port below 20000")?.local_addr()?)
}

/// A process and all that descend from it.
pub fn family(pid: u32) -> Result<Vec<u32>> {
    let mut members = vec![pid];
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Ok(fields) = stat(child) {
            parents.push((child, fields[1].parse::<u32>()?));
        }
    }
    let mut next = 0;
    while next < members.len() {
        let parent = members[next];
        members.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(child, _)| *child));
        next += 1;
    }
    Ok(members)
}

/// Seconds of processor time, user and system, of all threads there are and were.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    let mut ticks = 0;
    for &pid in pids {
        let fields = stat(pid)?;
        ticks += fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

/// Resident memory in MiB, summed; pages that processes share count in each.
pub fn resident_mib(pids: &[u32]) -> Result<f64> {
    let mut kib = 0;
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("no VmRSS")?;
        kib += line.split_whitespace().nth(1).context("no VmRSS")?.parse::<u64>()?;
    }
    Ok(kib as f64 / 1024.0)
}

/// How many threads of a process have a name that begins so.
pub fn threads_named(pid: u32, prefix: &str) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let name = fs::read_to_string(entry?.path().join("comm")).unwrap_or_default();
        count += usize::from(name.starts_with(prefix));
    }
    Ok(count)
}

/// The load average of the last minute.
pub fn load_average() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').next().context("no load average")?.parse()?)
}

/// The fields of `/proc/PID/stat` from the state on: the name before them may contain anything.
fn stat(pid: u32) -> Result<Vec<String>> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/stat"))
        .and_then(|mut file| file.read_to_string(&mut text))
        .with_context(|| format!("process {pid} is gone"))?;
    let fields = text.rsplit(')').next().unwrap_or_default();
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

/// The last lines of a log.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
