//! Pebble, the small authority that Let's Encrypt tests clients with, on loopback: built once with Go, each test starts its
//! own with ports of its own. Names are resolved by its companion, which leads every name to 127.0.0.1 unless told
//! otherwise.

use std::fs::File;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use super::{PATIENCE, wait};

const VERSION: &str = "v2.10.1";
const PROGRAMS: [&str; 2] = ["pebble", "pebble-challtestsrv"];

/// The programs, built if they are not there yet; `None`, and one line that says why, where they cannot be had.
fn programs() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = FOLDER.get_or_init(|| match build() {
        Ok(folder) => Some(folder),
        Err(why) => {
            // Past the capture of the test's output: nobody must take a test that did not run for one that passed.
            let _ = writeln!(std::io::stderr(), "skipped: tests of ACME need Pebble, which is built with Go: {why}");
            None
        }
    });
    built.as_deref()
}

fn build() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("pebble-{VERSION}"));
    if PROGRAMS.iter().all(|program| folder.join(program).exists()) {
        return Ok(folder);
    }
    Command::new("go").arg("version").output().map_err(|error| format!("go: {error}"))?;
    // Elsewhere first: a build that was interrupted must not look finished.
    let fresh = folder.with_extension(format!("new-{}", std::process::id()));
    std::fs::create_dir_all(&fresh).map_err(|error| error.to_string())?;
    let packages = PROGRAMS.map(|program| format!("github.com/letsencrypt/pebble/v2/cmd/{program}@{VERSION}"));
    let go = Command::new("go").arg("install").args(packages).env("GOBIN", &fresh).output();
    let go = go.map_err(|error| format!("go: {error}"))?;
    if !go.status.success() {
        // Ignored: an empty folder that is left disturbs nobody.
        let _ = std::fs::remove_dir(fresh);
        let said = String::from_utf8_lossy(&go.stderr);
        return Err(said.lines().last().unwrap_or("go install failed").to_owned());
    }
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    for program in PROGRAMS {
        std::fs::rename(fresh.join(program), folder.join(program)).map_err(|error| error.to_string())?;
    }
    // Ignored: an empty folder that is left disturbs nobody.
    let _ = std::fs::remove_dir(fresh);
    Ok(folder)
}

/// Addresses that are free at this moment, all different, for programs that cannot say which they got. Below the range
/// that the system uses for outgoing connections and port 0, and below that of instances: nobody else takes them soon.
pub fn free_addresses<const N: usize>() -> [SocketAddr; N] {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 10_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    [(); N].map(|()| {
        wait("a free port", || {
            let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(FIRST + offset).unwrap()));
            (TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()).then_some(address)
        })
    })
}

/// How an authority behaves.
pub struct Manner {
    /// How long its certificates last, in seconds.
    pub validity: u64,
    /// The account elsewhere that new ones must be bound to: id and key.
    pub external: Option<(&'static str, &'static str)>,
}

/// An authority that may run. Ended when dropped.
pub struct Pebble {
    folder: PathBuf,
    directory: SocketAddr,
    management: SocketAddr,
    names: Child,
    names_management: SocketAddr,
    names_server: SocketAddr,
    running: Option<Child>,
    agent: ureq::Agent,
}

impl Pebble {
    /// Prepares one in a folder of the test's, where it leaves `directory-ca.pem`; it looks for names at these ports. It
    /// does not run yet. `None` where it cannot be had.
    pub fn new(folder: &Path, http: SocketAddr, tls: SocketAddr, manner: &Manner) -> Option<Self> {
        let programs = programs()?;
        let [directory, management, names_server, names_management] = free_addresses();
        let agent = directory_certificate(folder);
        let keys = manner.external.map(|(id, key)| json!({ id: key })).unwrap_or_default();
        let config = json!({ "pebble": {
            "listenAddress": directory.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": folder.join("directory-cert.pem"),
            "privateKey": folder.join("directory-key.pem"),
            "httpPort": http.port(),
            "tlsPort": tls.port(),
            "externalAccountBindingRequired": manner.external.is_some(),
            "externalAccountMACKeys": keys,
            "domainBlocklist": ["blocked.example"],
            "retryAfter": { "authz": 1, "order": 1 },
            "profiles": { "default": { "description": "the only one", "validityPeriod": manner.validity } },
        } });
        std::fs::write(folder.join("pebble.json"), config.to_string()).unwrap();
        let names = Command::new(programs.join(PROGRAMS[1]))
            .args(["-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", ""])
            .args(["-dnsserver", &names_server.to_string(), "-management", &names_management.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let folder = folder.to_owned();
        let running = None;
        Some(Self { folder, directory, management, names, names_management, names_server, running, agent })
    }

    /// Starts it and waits until it answers. What it knew before is forgotten.
    pub fn start(&mut self) {
        let log = File::options().create(true).append(true).open(self.folder.join("pebble.log")).unwrap();
        let program = programs().unwrap().join(PROGRAMS[0]);
        let pebble = Command::new(program)
            .arg("-config")
            .arg(self.folder.join("pebble.json"))
            .args(["-dnsserver", &self.names_server.to_string()])
            .envs([("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0"), ("PEBBLE_WFE_NONCEREJECT", "10")])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.running = Some(pebble);
        wait("Pebble's directory", || self.agent.get(self.directory_url()).call().ok().map(drop));
    }

    /// Ends it, as by a power cut.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().unwrap();
            running.wait().unwrap();
        }
    }

    pub fn directory_url(&self) -> String {
        format!("https://{}/dir", self.directory)
    }

    /// The PEM authority behind its certificates, new with each start.
    pub fn root(&self) -> String {
        let url = format!("https://{}/roots/0", self.management);
        self.agent.get(url).call().unwrap().body_mut().read_to_string().unwrap()
    }

    /// Leads a name elsewhere.
    pub fn lead(&self, name: &str, address: &str) {
        let url = format!("http://{}/add-a", self.names_management);
        let body = json!({ "host": name, "addresses": [address] }).to_string();
        wait("Pebble's names", || ureq::post(&url).send(body.as_str()).ok().map(drop));
    }

    /// How many certificates it has issued since it was first started.
    pub fn issued(&self) -> usize {
        self.said("Issued certificate serial")
    }

    /// How many lines of its log have this in them.
    pub fn said(&self, what: &str) -> usize {
        let log = std::fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(what)).count()
    }

    /// `gateway.acme` for it, without its braces.
    pub fn acme(&self) -> String {
        format!(
            "directory: {:?}, caFile: directory-ca.pem, termsOfServiceAgreed: true, email: ops@shop.example",
            self.directory_url()
        )
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        // Ignored: it may have ended by itself.
        let _ = self.names.kill();
        let _ = self.names.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.folder.join("pebble.log")).unwrap_or_default());
        }
    }
}

/// A certificate for the directory itself, from an authority that nobody knows; a client that does.
pub fn directory_certificate(folder: &Path) -> ureq::Agent {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("directory-key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("directory-cert.pem"), leaf.pem()).unwrap();
    std::fs::write(folder.join("directory-ca.pem"), authority.pem()).unwrap();
    let trusted = ureq::tls::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let roots = ureq::tls::RootCerts::new_with_certs(&[trusted.to_owned()]);
    let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
    ureq::Agent::config_builder().tls_config(tls).timeout_global(Some(PATIENCE)).build().new_agent()
}

/// One field of a certificate in what `seawall tls -o json` shows.
pub fn field<'a>(shown: &'a Value, name: &str, field: &str) -> &'a Value {
    let all = shown.as_array().unwrap();
    let one = all.iter().find(|one| one["file"].as_str().is_some_and(|file| file.contains(name)));
    &one.unwrap_or_else(|| panic!("no {name} in {shown}"))[field]
}
