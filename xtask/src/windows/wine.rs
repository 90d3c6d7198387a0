//! Programs under Wine, and a running node among them: started on a console of its own, asked over HTTP, stopped by Ctrl+C.
//! Everything waits for a condition with a deadline; ports are free ones.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// Longest wait for anything to become true. A machine that is busy with other things is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One Wine with its own registry and its own server process, ended when dropped.
pub struct Wine {
    prefix: PathBuf,
    programs: PathBuf,
}

impl Wine {
    /// Makes the prefix unless a run before has made it.
    pub fn start(target: &Path, programs: &Path) -> Result<Self> {
        let wine = Self::of(&target.join("wine"), programs);
        wine.boot()?;
        Ok(wine)
    }

    /// A Wine in this prefix, and where the programs are that it finds by name.
    pub fn of(prefix: &Path, programs: &Path) -> Self {
        Self { prefix: prefix.to_owned(), programs: programs.to_owned() }
    }

    /// Makes the prefix, if need be.
    ///
    /// # Errors
    /// There is no Wine, or it fails.
    pub fn boot(&self) -> Result<()> {
        std::fs::create_dir_all(&self.prefix)?;
        let booted = self.command("wineboot", &["--init"]).stdout(Stdio::null()).status().context("starting Wine")?;
        ensure!(booted.success(), "Wine cannot make its prefix in {}: {booted}", self.prefix.display());
        Ok(())
    }

    /// The environment of a program that runs in this Wine.
    pub fn environment<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        environment(&self.prefix, &self.programs, command)
    }

    /// A program to run, without a console and without input.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(LOADER);
        self.environment(&mut command).arg(program).args(arguments).stdin(Stdio::null());
        command
    }

    /// Ends a process by its Windows process id, at once, as the task manager does.
    pub fn kill(&self, pid: u64) -> Result<()> {
        let killed = self.command("taskkill", &["/f", "/pid", &pid.to_string()]).output()?;
        ensure!(killed.status.success(), "taskkill /f /pid {pid}: {}", String::from_utf8_lossy(&killed.stdout));
        Ok(())
    }

    /// Command lines of Seawall and of batch files that run in this Wine, as Linux sees them.
    pub fn processes(&self) -> Vec<String> {
        let own = format!("WINEPREFIX={}", self.prefix.display()).into_bytes();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let folders = entries.map(|entry| entry.path()).filter(|folder| {
            let environment = std::fs::read(folder.join("environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == own)
        });
        let lines = folders.filter_map(|folder| {
            let line = std::fs::read(folder.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let program = line.split(' ').next().unwrap_or_default();
            (program.ends_with("seawall.exe") || program.ends_with("cmd.exe")).then_some(line)
        });
        lines.collect()
    }
}

/// What runs a Windows program.
pub const LOADER: &str = "/usr/lib/wine/wine64";

/// The environment of a program in the Wine of a prefix, which finds the programs of a folder by name.
pub fn environment<'a>(prefix: &Path, programs: &Path, command: &'a mut Command) -> &'a mut Command {
    // `WINEPATH` comes before `PATH` inside, so that a batch file finds the program by name.
    command.env("WINEPREFIX", prefix).env("WINEPATH", programs).env("WINEDEBUG", "-all")
}

impl Drop for Wine {
    fn drop(&mut self) {
        // Ignored: there is nothing more to end. Only this prefix's server hears it.
        let _ = Command::new("/usr/lib/wine/wineserver64").env("WINEPREFIX", &self.prefix).arg("-k").status();
    }
}

/// A node under Wine.
pub struct Node<'a> {
    wine: &'a Wine,
    program: PathBuf,
    folder: PathBuf,
    console: Child,
    keys: ChildStdin,
    /// The API's address.
    pub api: String,
    /// The gateway's address.
    pub gateway: String,
}

impl<'a> Node<'a> {
    /// `seawall up` on a console, once it has said that it is ready. `script` gives the terminal that Wine makes a console of.
    pub fn up(wine: &'a Wine, program: &Path, file: &Path) -> Result<Self> {
        let folder = file.parent().context("a file stands in a folder")?.to_owned();
        let line = format!("exec {LOADER} {} up {} >up.out 2>>up.err", program.display(), file.display());
        let _ = std::fs::remove_file(folder.join("up.out"));
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).current_dir(&folder);
        let mut console = wine.environment(&mut script).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let keys = console.stdin.take().context("its input is a pipe")?;
        let mut node = Self {
            wine,
            program: program.to_owned(),
            folder,
            console,
            keys,
            api: String::new(),
            gateway: String::new(),
        };
        let ready = node.until("the line that says ready", |node| node.ready_line())?;
        node.api = ready["api"].as_str().unwrap_or_default().to_owned();
        node.gateway = ready["gateway"][0].as_str().unwrap_or_default().to_owned();
        Ok(node)
    }

    fn ready_line(&mut self) -> Result<Value> {
        if let Some(status) = self.console.try_wait()? {
            bail!("`up` ended before it was ready: {status}");
        }
        let file = File::open(self.folder.join("up.out"))?;
        for line in BufReader::new(file).lines() {
            if let Some(json) = line?.strip_prefix("ready ") {
                return Ok(serde_json::from_str(json.trim())?);
            }
        }
        bail!("it has not said so yet")
    }

    /// Tries until it succeeds; when it does not, says why it did not the last time, and what the node logged.
    pub fn until<T>(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match condition(self) {
                Ok(value) => return Ok(value),
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => {
                    let log = std::fs::read_to_string(self.folder.join("up.err")).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(40).collect();
                    let tail: Vec<&str> = tail.into_iter().rev().collect();
                    return Err(error.context(format!("waited {PATIENCE:?} for {what}; log:\n{}", tail.join("\n"))));
                }
            }
        }
    }

    /// A verb of the command line, under Wine as well.
    pub fn verb(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.wine.command(&self.program, arguments);
        Ok(command.env("SEAWALL_API", &self.api).current_dir(&self.folder).output()?)
    }

    /// A verb that must succeed; its standard output.
    pub fn done(&self, arguments: &[&str]) -> Result<String> {
        let output = self.verb(arguments)?;
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "seawall {arguments:?}: {}: {out}{errors}", output.status);
        Ok(out.into_owned())
    }

    /// The node's status.
    pub fn status(&self) -> Result<Value> {
        let (status, body) = http(&self.api, "GET", "/api/v1/status", "")?;
        ensure!(status == 200, "status answered {status}");
        Ok(serde_json::from_str(&body)?)
    }

    /// An instance's part of the status.
    pub fn instance(&self, id: &str) -> Result<Value> {
        let status = self.status()?;
        let instances =
            status["services"].as_array().into_iter().flatten().filter_map(|one| one["instances"].as_array());
        instances.flatten().find(|one| one["id"] == id).cloned().with_context(|| format!("{id} is not in the status"))
    }

    /// Presses Ctrl+C, waits for the end, returns the exit code.
    pub fn ctrl_c(mut self) -> Result<i32> {
        self.keys.write_all(b"\x03")?;
        self.end()
    }

    /// Waits for the end, returns the exit code.
    pub fn end(&mut self) -> Result<i32> {
        let status = self.until("the end of `up`", |node| node.console.try_wait()?.context("it still runs"))?;
        status.code().context("`script` was killed")
    }
}

/// One request; its status and body. `header` is one header line or empty.
pub fn http(address: &str, method: &str, path: &str, header: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n{header}\r\n"
    )?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .with_context(|| format!("reading the answer of {address} to {method} {path}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer but {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}
