//! Three members of one make on this machine: started, ready, and what they use.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::load;
use crate::bench::process::{self, Running};

/// Members of a cluster.
const MEMBERS: usize = 3;
/// How long a cluster may take to serve.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long bare flushes are counted.
const FLUSHING: Duration = Duration::from_millis(500);

/// Whose members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Make {
    /// The product: HTTP/1.1.
    Seawall,
    /// The peer: gRPC.
    Etcd,
}

/// A running cluster; it ends with this.
pub struct Cluster {
    /// Whose.
    pub make: Make,
    /// Where clients reach each member.
    pub clients: Vec<SocketAddr>,
    running: Vec<Running>,
}

/// Processor time of all members, and the memory of the largest.
#[derive(Clone, Copy, Default, Debug)]
pub struct Used {
    /// Seconds, user and system.
    pub cpu_seconds: f64,
    /// MiB, resident.
    pub member_mib: f64,
}

impl Used {
    /// Between then and now; memory is that of now.
    pub fn since(self, before: &Self) -> Self {
        Self { cpu_seconds: self.cpu_seconds - before.cpu_seconds, ..self }
    }
}

impl Cluster {
    /// The product's.
    pub fn of_seawall(program: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let mut init = Command::new(program);
        init.args(["cluster", "init", "--nodes", "n1,n2,n3", "--dir"]).arg(folder.join("pki"));
        crate::run(&mut init)?;
        let (clients, peers) = (ports()?, ports()?);
        let join: Vec<String> = peers.iter().map(|peer| format!("\"{peer}\"")).collect();
        let join = join.join(", ");
        let mut running = Vec::new();
        for (place, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let name = format!("n{}", place + 1);
            let file = folder.join(format!("{name}.yaml"));
            let text = format!(
                "node: {{ name: {name}, dataDir: {:?}, peers: {{ listen: \"{peer}\", join: [{join}] }} }}\n\
                 cluster: {{ name: bench, tls: {{ dir: {:?} }} }}\napi: {{ listen: \"{client}\" }}\n\
                 gateway: {{ listen: [\"127.0.0.1:0\"] }}\n",
                folder.join(&name),
                folder.join("pki"),
            );
            fs::write(&file, text)?;
            let mut command = bound(program)?;
            command.arg("up").arg(&file);
            running.push(Running::start(command, folder.join(format!("{name}.log")))?);
        }
        Self { make: Make::Seawall, clients, running }.ready()
    }

    /// The peer's.
    pub fn of_etcd(program: &Path, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let (clients, peers) = (ports()?, ports()?);
        let all: Vec<String> =
            peers.iter().enumerate().map(|(place, peer)| format!("n{}=http://{peer}", place + 1)).collect();
        let mut running = Vec::new();
        for (place, (client, peer)) in clients.iter().zip(&peers).enumerate() {
            let name = format!("n{}", place + 1);
            let mut command = bound(program)?;
            command.args(["--name", &name, "--data-dir"]).arg(folder.join(&name));
            for (option, address) in [("client", client), ("peer", peer)] {
                let url = format!("http://{address}");
                let advertise = match option {
                    "client" => "--advertise-client-urls",
                    _ => "--initial-advertise-peer-urls",
                };
                command.args([&format!("--listen-{option}-urls"), &url, advertise, &url]);
            }
            command.args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"]);
            command.args(["--log-level", "warn"]);
            running.push(Running::start(command, folder.join(format!("{name}.log")))?);
        }
        Self { make: Make::Etcd, clients, running }.ready()
    }

    /// Once a write through every member succeeds.
    fn ready(mut self) -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        for (client, running) in self.clients.iter().zip(&mut self.running) {
            running.wait_listening(*client)?;
        }
        while let Err(error) = load::probe(&self) {
            if Instant::now() > until {
                let said: Vec<String> = self.running.iter().map(|member| process::tail(&member.output())).collect();
                bail!("{} does not serve ({error}); its members said:\n{}", self.name(), said.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(self)
    }

    /// Whose it is.
    pub fn name(&self) -> &'static str {
        match self.make {
            Make::Seawall => "seawall",
            Make::Etcd => "etcd",
        }
    }

    /// A member's process, the keeper.
    pub fn pid(&self, place: usize) -> u32 {
        self.running[place].pid()
    }

    /// So far.
    pub fn used(&self) -> Result<Used> {
        let mut used = Used::default();
        for member in &self.running {
            let family = process::family(member.pid())?;
            used.cpu_seconds += process::cpu_seconds(&family)?;
            used.member_mib = used.member_mib.max(process::resident_mib(&family)?);
        }
        Ok(used)
    }
}

/// A command with as many files as it may have, that ends with this process.
fn bound(program: &Path) -> Result<Command> {
    let files = process::most_files()?;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "prlimit", &format!("--nofile={files}:{files}")]).arg(program);
    Ok(command)
}

/// Ports that nobody has now.
fn ports() -> Result<Vec<SocketAddr>> {
    // Held together, so that none is found twice.
    let held: Vec<TcpListener> = (0..MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    held.iter().map(|listener| listener.local_addr().context("a bound port has an address")).collect()
}

/// How often a small append can be flushed on this disk now, one after the other.
pub fn bare_flushes(folder: &Path) -> Result<f64> {
    let path = folder.join("flushes");
    let mut file = File::create(&path)?;
    let (begun, mut count) = (Instant::now(), 0_u32);
    while begun.elapsed() < FLUSHING {
        file.write_all(&[7; 512])?;
        file.sync_data()?;
        count += 1;
    }
    fs::remove_file(&path)?;
    Ok(f64::from(count) / begun.elapsed().as_secs_f64())
}
