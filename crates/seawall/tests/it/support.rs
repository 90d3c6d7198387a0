//! A running Seawall as a test sees it: the real binary with a folder of its own, on ports the system picks.

pub mod http;
pub mod load;
pub mod pebble;
pub mod processes;
pub mod recorder;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;

use http::Answer;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_seawall");
/// Nothing that is waited for takes this long, also on a busy machine; a test that gets here has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A keeper with everything it runs; ended when dropped.
pub struct Seawall {
    keeper: Child,
    folder: tempfile::TempDir,
    file: PathBuf,
    ready: Value,
    _turn: Turn,
    pub api: SocketAddr,
    pub gateway: SocketAddr,
}

/// Tests whose figures are promises run alone, all others side by side.
static QUIET: RwLock<()> = RwLock::new(());

enum Turn {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
    /// Of a test that has another Seawall's turn already.
    Beside,
}

impl Turn {
    fn shared() -> Self {
        Self::Shared { _guard: QUIET.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn alone() -> Self {
        Self::Alone { _guard: QUIET.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// The whole text of a configuration. In `body`, DEMO stands for the demo service's command (a list without its
/// brackets), so that more arguments can follow.
pub fn configuration(body: &str) -> String {
    // Slices of the default range, so that tests running side by side never compete for a port.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let slice = NEXT.fetch_add(1, Ordering::Relaxed) % 160;
    let start = u16::try_from(std::process::id() % 7).unwrap_or(0);
    let first = 20_000 + ((slice + start * 23) % 160) * 60;
    let demo = format!("{BINARY:?}, demo-service, --port, \"${{port}}\"");
    format!(
        "node: {{ name: test, instancePorts: \"{first}-{}\", logMaxMib: 1, logKeep: 2 }}\n\
         api: {{ listen: \"127.0.0.1:0\" }}\n\
         gateway: {{ listen: [\"127.0.0.1:0\"] }}\n{}",
        first + 59,
        body.replace("DEMO", &demo)
    )
}

/// How a start ended that was meant to fail.
pub fn start_failing(file: &Path, data_dir: &Path) -> (Option<i32>, String) {
    let output = run(&["up", &file.to_string_lossy(), "--data-dir", &data_dir.to_string_lossy()], None);
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs the binary to its end, at most [`PATIENCE`].
pub fn run(arguments: &[&str], input: Option<&str>) -> Output {
    use std::io::Write as _;
    let mut child = Command::new(BINARY)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    if let Some(input) = input {
        stdin.write_all(input.as_bytes()).unwrap();
    }
    drop(stdin);
    let pid = u64::from(child.id());
    let (done, watch) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            processes::signal(pid, "KILL");
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    output
}

/// Waits until `found` gives something.
pub fn wait<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Seawall {
    /// Starts it with the services, routes and so on in `body`, and waits for its ready line.
    pub fn up(body: &str) -> Self {
        Self::start(new_folder(body), Turn::shared())
    }

    /// The same with the machine to itself, as far as these tests go.
    pub fn up_alone(body: &str) -> Self {
        Self::start(new_folder(body), Turn::alone())
    }

    /// Starts in a folder that has a `seawall.yaml` already.
    pub fn up_in(folder: tempfile::TempDir) -> Self {
        Self::start(folder, Turn::shared())
    }

    /// The same for another node of a test that has one already.
    pub fn up_beside(folder: tempfile::TempDir) -> Self {
        Self::start(folder, Turn::Beside)
    }

    /// Another one, of a test that has one already.
    pub fn up_beside_with(body: &str) -> Self {
        Self::start(new_folder(body), Turn::Beside)
    }

    /// Starts in such a folder, with a variable in its environment.
    pub fn up_in_with(folder: tempfile::TempDir, (name, value): (&str, &Path)) -> Self {
        Self::start_with(folder, Turn::shared(), Some((name, value)))
    }

    fn start(folder: tempfile::TempDir, turn: Turn) -> Self {
        Self::start_with(folder, turn, None)
    }

    fn start_with(folder: tempfile::TempDir, turn: Turn, variable: Option<(&str, &Path)>) -> Self {
        let file = folder.path().join("seawall.yaml");
        let stderr = File::options().create(true).append(true).open(folder.path().join("stderr")).unwrap();
        let mut keeper = Command::new(BINARY)
            .arg("up")
            .arg(&file)
            .arg("--data-dir")
            .arg(folder.path().join("data"))
            .envs(variable)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let output = keeper.stdout.take().unwrap();
        let (lines, received) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Ignored: the test has ended.
                let _ = lines.send(line);
            }
        });
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut seawall =
            Self { keeper, folder, file, ready: Value::Null, _turn: turn, api: nowhere, gateway: nowhere };
        let line = received.recv_timeout(PATIENCE).expect("no ready line");
        seawall.ready = serde_json::from_str(line.strip_prefix("ready ").expect("a ready line")).unwrap();
        seawall.api = seawall.ready["api"].as_str().unwrap().parse().unwrap();
        seawall.gateway = seawall.ready["gateway"][0].as_str().unwrap().parse().unwrap();
        seawall
    }

    /// What the ready line said.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    pub fn keeper(&self) -> u64 {
        u64::from(self.keeper.id())
    }

    /// The node process of this moment.
    pub fn node(&self) -> u64 {
        wait("a node process", || processes::node_of(self.keeper()))
    }

    /// Everything that belongs to it, itself included.
    pub fn processes(&self) -> Vec<u64> {
        processes::belonging_to(&self.data_dir())
    }

    /// Runs a verb against it.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let api = format!("http://{}", self.api);
        let mut all = vec!["--api", api.as_str()];
        all.extend_from_slice(arguments);
        run(&all, None)
    }

    /// Runs a verb and expects this exit code; gives standard output and error.
    pub fn cli_exits(&self, code: i32, arguments: &[&str]) -> (String, String) {
        let output = self.cli(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "seawall {arguments:?}\n{out}\n{err}");
        (out.into_owned(), err.into_owned())
    }

    /// Puts other services in force through `seawall apply`; the header stays as it is.
    pub fn apply(&self, code: i32, body: &str) -> (String, String) {
        let known = std::fs::read_to_string(&self.file).unwrap();
        let of_node = |line: &&str| ["node:", "cluster:", "api:", "gateway:"].iter().any(|key| line.starts_with(key));
        let header: String = known.lines().take_while(of_node).map(|line| format!("{line}\n")).collect();
        let demo = format!("{BINARY:?}, demo-service, --port, \"${{port}}\"");
        std::fs::write(&self.file, header + &body.replace("DEMO", &demo)).unwrap();
        self.cli_exits(code, &["apply", "-f", &self.file.to_string_lossy()])
    }

    /// A request to the API.
    pub fn api(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        http::request(self.api, method, path, &[], body).unwrap()
    }

    /// A GET through the gateway.
    pub fn get(&self, path: &str) -> Answer {
        http::request(self.gateway, "GET", path, &[], b"").unwrap()
    }

    pub fn status(&self) -> Value {
        self.api("GET", "/api/v1/status", b"").json()
    }

    /// The newest events, oldest first.
    pub fn events(&self) -> Vec<Value> {
        let body = self.api("GET", "/api/v1/events?limit=1000", b"").json();
        body.as_array().unwrap().clone()
    }

    pub fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["kind"] == kind).collect()
    }

    /// Waits for an event of this kind about this instance or service; its message is given.
    pub fn event(&self, kind: &str, about: &str) -> Value {
        wait(&format!("the event {kind} of {about}"), || {
            self.events_of(kind)
                .into_iter()
                .find(|event| about.is_empty() || event["instance"] == about || event["service"] == about)
        })
    }

    /// Waits until `found` gives something for a status.
    pub fn wait_for<T>(&self, what: &str, found: impl Fn(&Value) -> Option<T>) -> T {
        wait(what, || found(&self.status()))
    }

    pub fn service(&self, name: &str) -> Value {
        service(&self.status(), name)
    }

    pub fn instance(&self, id: &str) -> Value {
        instance(&self.status(), id).unwrap_or_else(|| panic!("no instance {id}"))
    }

    /// Waits until every instance of the service is ready and, in primary-standby mode, it has its primary.
    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait_for(&format!("{name} ready"), |status| {
            let service = service(status, name);
            (service["state"] == "ready" && service["ready"] == service["desired"]).then_some(service)
        })
    }

    /// The process ids of a service's instances, in order.
    pub fn pids(&self, name: &str) -> Vec<u64> {
        let service = self.service(name);
        service["instances"].as_array().into_iter().flatten().filter_map(|one| one["pid"].as_u64()).collect()
    }

    /// Sends a fault to one instance of a demo service, past the gateway.
    pub fn fault(&self, id: &str, fault: &str) {
        let address: SocketAddr = self.instance(id)["address"].as_str().unwrap().parse().unwrap();
        // Ignored: a fault may well end the answer, too.
        let _ = http::request(address, "POST", &format!("/fault/{fault}"), &[], b"");
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        processes::signal(self.keeper(), "TERM");
        self.ended()
    }

    /// Waits until the keeper has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let keeper = &mut self.keeper;
        wait("the keeper's end", || keeper.try_wait().unwrap())
    }

    /// Ends it and keeps its folder, for a second start.
    pub fn into_folder(mut self) -> tempfile::TempDir {
        self.end();
        let empty = tempfile::tempdir().unwrap();
        std::mem::replace(&mut self.folder, empty)
    }

    fn end(&mut self) {
        if let Some(node) = processes::node_of(self.keeper()) {
            processes::signal(node, "CONT");
        }
        // Ignored: it may have ended long ago.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.processes().is_empty() {
            if Instant::now() > deadline {
                for pid in self.processes() {
                    processes::signal(pid, "KILL");
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn new_folder(body: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    std::fs::write(folder.path().join("seawall.yaml"), configuration(body)).unwrap();
    folder
}

/// A service in a status.
pub fn service(status: &Value, name: &str) -> Value {
    let services = status["services"].as_array().into_iter().flatten();
    services.into_iter().find(|service| service["name"] == name).cloned().unwrap_or_default()
}

/// An instance in a status.
pub fn instance(status: &Value, id: &str) -> Option<Value> {
    let services = status["services"].as_array().into_iter().flatten();
    services
        .flat_map(|service| service["instances"].as_array().into_iter().flatten())
        .find(|one| one["id"] == id)
        .cloned()
}

impl Drop for Seawall {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stderr = self.stderr();
            let skipped = stderr.lines().count().saturating_sub(80);
            let name = std::thread::current().name().unwrap_or("test").replace("::", "-");
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{}.stderr", std::process::id()));
            // Ignored: the lines below are there all the same.
            let _ = std::fs::write(&kept, &stderr);
            eprintln!("---- the last lines of Seawall's standard error; all of it: {} ----", kept.display());
            for line in stderr.lines().skip(skipped) {
                eprintln!("{line}");
            }
        }
        self.end();
    }
}

/// A reproducible source of chance (SplitMix64).
pub struct Chance(pub u64);

impl Chance {
    /// Seeded by `SEAWALL_TEST_SEED`, or by the clock; the seed is printed.
    pub fn seeded(what: &str) -> Self {
        let given = std::env::var("SEAWALL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let seed = given.unwrap_or_else(clock);
        println!("{what}: seed {seed}; repeat with SEAWALL_TEST_SEED={seed} cargo test -p seawall --test it {what}");
        Self(seed)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}
