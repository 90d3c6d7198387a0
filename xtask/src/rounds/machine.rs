//! One machine of a round: a keeper with its node process in a namespace, its folder, and what can be done to them. It may
//! be a Windows one under Wine, whose processes are told by its prefix: Wine's parents are not Linux's.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::http::{API, Connection};
use super::network::{address, enter, tool};
use crate::bench::process::family;
use crate::windows::program;
use crate::windows::wine::{LOADER, Wine, environment};

/// A data directory that can be filled has so many bytes.
const SMALL_DISK: &str = "128m";
/// Longest wait for a status.
const GLANCE: Duration = Duration::from_millis(300);

/// A machine.
pub struct Machine {
    pub place: usize,
    binary: PathBuf,
    namespace: File,
    folder: PathBuf,
    small_disk: bool,
    /// A library that fakes the clock, and the file that says how far.
    clock: Option<PathBuf>,
    windows: Option<Windows>,
    keeper: Option<Child>,
    /// Commands that were started and are not waited for.
    helpers: Vec<Child>,
}

/// What a machine is made with.
pub struct Making<'a> {
    pub binary: &'a Path,
    pub folder: &'a Path,
    pub nodes: usize,
    pub small_disk: bool,
    pub clock: Option<&'a Path>,
    pub windows: Option<&'a Windows>,
}

/// A Windows build and the Wine it runs in; one machine at a time.
#[derive(Clone)]
pub struct Windows {
    pub program: PathBuf,
    pub prefix: PathBuf,
}

impl Machine {
    /// Its folder and file; nothing is started.
    pub fn make(place: usize, namespace: File, making: &Making<'_>) -> Result<Self> {
        let folder = making.folder.join(format!("n{}", place + 1));
        let data = folder.join("data");
        fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        if making.small_disk {
            let size = format!("size={SMALL_DISK}");
            tool("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &data.to_string_lossy()])?;
        }
        let join: Vec<String> = (0..making.nodes).map(|place| format!("\"{}:8300\"", address(place))).collect();
        let text = format!(
            "node:\n  name: n{}\n  dataDir: {:?}\n  peers: {{ listen: \"{}:8300\", join: [{}] }}\n\
             cluster: {{ name: rounds, tls: {{ dir: {:?} }} }}\n\
             api: {{ listen: \"{API}\" }}\n\
             gateway: {{ listen: [\"127.0.0.1:8080\"] }}\n",
            place + 1,
            data,
            address(place),
            join.join(", "),
            making.folder.join("pki"),
        );
        fs::write(folder.join("seawall.yaml"), text)?;
        let machine = Self {
            place,
            binary: making.binary.to_owned(),
            namespace,
            folder,
            small_disk: making.small_disk,
            clock: making.clock.filter(|_| making.windows.is_none()).map(Path::to_owned),
            windows: making.windows.cloned(),
            keeper: None,
            helpers: Vec::new(),
        };
        machine.set_clock(0)?;
        Ok(machine)
    }

    fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Starts the keeper; it ends with this thread.
    pub fn start(&mut self) -> Result<()> {
        enter(&self.namespace)?;
        let log = |name: &str| File::options().create(true).append(true).open(self.folder.join(name));
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).current_dir(&self.folder);
        let program = match &self.windows {
            None => {
                // Services are started by the program's name, which every system finds for itself.
                let folder = self.binary.parent().unwrap_or(Path::new("."));
                let path = std::env::var_os("PATH").unwrap_or_default();
                let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
                command.env("PATH", std::env::join_paths(folders)?);
                &self.binary
            }
            Some(windows) => {
                environment(&windows.prefix, windows.programs(), &mut command);
                command.arg(LOADER);
                &windows.program
            }
        };
        command.arg(program).arg("up").arg(self.folder.join("seawall.yaml"));
        command.stdin(Stdio::null()).stdout(log("stdout")?).stderr(log("stderr")?);
        if let Some(library) = &self.clock {
            command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", self.folder.join("clock"));
            command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        self.keeper = Some(command.spawn().with_context(|| format!("cannot run {command:?}"))?);
        Ok(())
    }

    /// It is started with this from now on.
    pub fn upgrade(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// Whether it is started with this.
    pub fn is_of(&self, binary: &Path) -> bool {
        self.is_windows() || self.binary == binary
    }

    /// Whether signals to its services go through Wine, so that their ids are not Linux's.
    pub fn is_windows(&self) -> bool {
        self.windows.is_some()
    }

    /// Where its API's token is, if a client of this system needs it: Wine does not tell who calls.
    pub fn token(&self) -> Option<PathBuf> {
        self.windows.as_ref().map(|_| self.data().join("api-token"))
    }

    /// What a verb of the product is given besides its words.
    fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match self.token().and_then(|file| fs::read_to_string(file).ok()) {
            Some(token) => command.env("SEAWALL_TOKEN", token.trim()),
            None => command,
        }
    }

    /// Everything of it that runs, the keeper first.
    fn processes(&self) -> Vec<u32> {
        match (&self.windows, &self.keeper) {
            (Some(windows), _) => windows.processes(),
            (None, Some(keeper)) => family(keeper.id()).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }

    /// Whether there is a keeper.
    pub fn is_up(&self) -> bool {
        self.keeper.is_some()
    }

    /// Kills the keeper, and with it everything, and waits until nothing of it runs.
    pub fn kill(&mut self) {
        let dying = self.begin_kill();
        end_kill(&dying);
    }

    /// Kills the keeper and its node process at once; the processes that end now.
    pub fn begin_kill(&mut self) -> Vec<u32> {
        let all = self.processes();
        let Some(mut keeper) = self.keeper.take() else { return Vec::new() };
        // Ignored: it may have ended by itself, which `start` after it does not mind.
        let _ = keeper.kill();
        all.iter().filter(|pid| **pid != keeper.id()).for_each(|pid| signal(*pid, "KILL"));
        let _ = keeper.wait();
        all
    }

    /// Asks the keeper to stop everything in good order.
    pub fn stop(&self) {
        if let Some(keeper) = &self.keeper {
            signal(keeper.id(), "TERM");
        }
    }

    /// The node process of this moment.
    pub fn node(&self) -> Option<u32> {
        let keeper = self.keeper.as_ref()?.id();
        self.processes().into_iter().filter(|pid| *pid != keeper).find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"node")
        })
    }

    /// Sends its node process a signal; the process it went to.
    pub fn signal_node(&self, name: &str) -> Option<u32> {
        let pid = self.node()?;
        signal(pid, name);
        Some(pid)
    }

    /// Everything in the data directory is gone; the machine is down.
    pub fn wipe(&self) -> Result<()> {
        let data = self.data();
        for entry in fs::read_dir(&data).with_context(|| data.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Takes all the space of its disk that is left.
    pub fn fill_disk(&self) -> Result<()> {
        let mut file = File::create(self.data().join("filler"))?;
        let block = vec![0; 64 * 1024];
        let mut size = block.len();
        while size > 0 {
            // No space for as much: less, down to the last byte.
            if file.write_all(&block[..size]).is_err() {
                size /= 2;
            }
        }
        Ok(())
    }

    /// Gives back what `fill_disk` took.
    pub fn free_disk(&self) -> Result<()> {
        fs::remove_file(self.data().join("filler")).context("the filler")
    }

    /// Its clock is so far ahead from now on, if it can be set.
    pub fn set_clock(&self, seconds: i64) -> Result<()> {
        fs::write(self.folder.join("clock"), format!("{seconds:+}\n"))?;
        Ok(())
    }

    /// Lets the next flush of each thread of the node process fail; ended by `signal`ling what it gives.
    pub fn fail_flushes(&mut self) -> Result<u32> {
        let pid = self.node().context("no node process")?.to_string();
        let mut command = Command::new("strace");
        command.args(["-f", "-p", &pid, "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
        command.args(["-e", "inject=fdatasync,fsync:error=EIO:when=1"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let strace = child.id();
        self.helpers.push(child);
        Ok(strace)
    }

    /// Runs a verb of the product against this node; how it ends is written to its log.
    pub fn verb(&mut self, words: &[&str]) -> Result<()> {
        self.reap();
        enter(&self.namespace)?;
        let log = File::options().create(true).append(true).open(self.folder.join("verbs"))?;
        let mut command = Command::new(&self.binary);
        self.environment(&mut command).args(["--api", &format!("http://{API}")]).args(words);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.helpers.push(command.spawn()?);
        Ok(())
    }

    /// Runs a verb of the product against this node to its end, with a file for it if there is a text.
    ///
    /// # Errors
    /// It did not succeed; its words.
    pub fn verb_done(&self, words: &[&str], file: Option<&str>) -> Result<()> {
        enter(&self.namespace)?;
        let path = self.folder.join("given.yaml");
        let mut command = Command::new(&self.binary);
        self.environment(&mut command).args(["--api", &format!("http://{API}")]).args(words).stdin(Stdio::null());
        if let Some(text) = file {
            fs::write(&path, text)?;
            command.arg(&path);
        }
        let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
        anyhow::ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    fn reap(&mut self) {
        self.helpers.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// What the node says of itself, if it answers soon.
    pub fn status(&self) -> Option<Value> {
        self.get("/api/v1/status", GLANCE)
    }

    /// A document of the API.
    pub fn get(&self, path: &str, patience: Duration) -> Option<Value> {
        enter(&self.namespace).ok()?;
        let mut connection = Connection::open(patience).ok()?.with_token(self.token().as_deref()).ok()?;
        let answer = connection.send("GET", path, b"").ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    /// An answer of the API that is one JSON object a line.
    pub fn lines(&self, path: &str, patience: Duration) -> Option<Vec<Value>> {
        enter(&self.namespace).ok()?;
        let mut connection = Connection::open(patience).ok()?.with_token(self.token().as_deref()).ok()?;
        let answer = connection.send("GET", path, b"").ok()?;
        let text = String::from_utf8(answer.body).ok().filter(|_| answer.status == 200)?;
        text.lines().map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What the processes printed.
    pub fn printed(&self) -> String {
        ["stdout", "stderr"].map(|name| fs::read_to_string(self.folder.join(name)).unwrap_or_default()).concat()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        for child in &mut self.helpers {
            // Ignored: it may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.small_disk {
            // Ignored: it is in a folder that is kept for its logs only.
            let _ = tool("umount", &["-l", &self.data().to_string_lossy()]);
        }
    }
}

impl Windows {
    /// Built for the profile of `cargo xtask windows`, which makes it.
    pub fn of(place: &Path) -> Self {
        Self { program: program(), prefix: place.join("wine") }
    }

    fn programs(&self) -> &Path {
        self.program.parent().unwrap_or(Path::new("."))
    }

    /// Makes its Wine, if it is not there yet; nothing of it runs afterwards.
    ///
    /// # Errors
    /// There is no Wine, or the program was not built.
    pub fn prepare(&self) -> Result<()> {
        anyhow::ensure!(self.program.exists(), "{}: build it first, `cargo xtask windows`", self.program.display());
        if !self.prefix.join("system.reg").exists() {
            Wine::of(&self.prefix, self.programs()).boot()?;
        }
        let left = self.processes();
        left.iter().for_each(|pid| signal(*pid, "KILL"));
        end_kill(&left);
        Ok(())
    }

    /// Every process of this Wine, its server too: that holds the sockets, in the namespace it was started in.
    fn processes(&self) -> Vec<u32> {
        let own = format!("WINEPREFIX={}", self.prefix.display()).into_bytes();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_own = |pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == own)
        };
        pids.filter(is_own).collect()
    }
}

/// Waits until no thread of these runs any more: the last one closes the files. A dead process that nobody has buried yet
/// runs no more.
pub fn end_kill(dying: &[u32]) {
    let is_alive = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !matches!(rest.trim_start().chars().next(), None | Some('Z' | 'X')))
    };
    let runs = |pid: &u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().any(is_alive);
    for _ in 0..2_000 {
        if !dying.iter().any(runs) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal, which std cannot. At once: a process that is started for it takes as long as what is measured.
#[cfg(target_os = "linux")]
pub fn signal(pid: u32, name: &str) {
    use rustix::process::{Pid, Signal, kill_process};

    let signal = match name {
        "KILL" => Signal::KILL,
        "TERM" => Signal::TERM,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        other => unreachable!("nobody sends {other}"),
    };
    // Ignored: whoever is gone needs none.
    let _ = i32::try_from(pid).ok().and_then(Pid::from_raw).map(|pid| kill_process(pid, signal));
}

/// There are no network namespaces either, so nobody gets here.
#[cfg(not(target_os = "linux"))]
pub fn signal(_: u32, _: &str) {}
