//! The cluster that is measured: three machines in namespaces, and what is asked of them between two measurements.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::root;
use crate::rounds::machine::{Machine, Making};
use crate::rounds::network::Network;
use crate::rounds::scribe::{route, service};

/// How many.
pub const NODES: usize = 3;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Machines and their network.
pub struct Field {
    pub machines: Vec<Machine>,
    pub network: Network,
}

/// The primary of a service.
#[derive(Clone, Debug)]
pub struct Primary {
    pub instance: String,
    pub place: usize,
    pub pid: u32,
    pub epoch: u64,
}

impl Field {
    /// A cluster that serves.
    pub fn begin(binary: &Path) -> Result<Self> {
        let folder = root().join("target/bench-failover");
        // What an earlier run left.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder)?;
        let mut init = Command::new(binary);
        init.args(["cluster", "init", "--nodes", "n1,n2,n3", "--dir"]).arg(folder.join("pki"));
        let made = init.output().with_context(|| format!("cannot run {init:?}"))?;
        ensure!(made.status.success(), "{init:?}: {}", String::from_utf8_lossy(&made.stderr));
        let network = Network::make("failover", NODES)?;
        let mut machines = Vec::new();
        for (place, namespace) in network.open()?.into_iter().enumerate() {
            let making =
                Making { binary, folder: &folder, nodes: NODES, small_disk: false, clock: None, windows: None };
            machines.push(Machine::make(place, namespace, &making)?);
        }
        machines.iter_mut().try_for_each(Machine::start)?;
        let field = Self { machines, network };
        field.whole()?;
        Ok(field)
    }

    /// Waits until `found` gives something.
    pub fn wait<T>(&self, what: &str, mut found: impl FnMut(&Self) -> Option<T>) -> Result<T> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = found(self) {
                return Ok(value);
            }
            if Instant::now() > until {
                bail!("waited {PATIENCE:?} in vain: {what}; see target/bench-failover");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn status(&self, place: usize) -> Option<Value> {
        self.machines[place].get("/api/v1/status", ANSWER)
    }

    /// Waits until everybody follows one leader without lag; its place.
    pub fn whole(&self) -> Result<usize> {
        self.led(true)
    }

    /// The same under load, when somebody is always a little behind.
    pub fn leader(&self) -> Result<usize> {
        self.led(false)
    }

    fn led(&self, without_lag: bool) -> Result<usize> {
        self.wait("everybody follows one leader", |field| {
            let status = (0..NODES).map(|place| field.status(place)).collect::<Option<Vec<Value>>>()?;
            let leader = status[0]["cluster"]["leader"].as_str()?.to_owned();
            let members = status[0]["cluster"]["members"].as_array()?;
            let there = members.len() == NODES
                && members.iter().all(|one| {
                    one["state"] != "missing" && one["role"] == "server" && (one["lag"] == 0 || !without_lag)
                });
            let agreed = status.iter().all(|one| {
                let missing = one["layers"].as_array().into_iter().flatten().any(|layer| layer["state"] == "down");
                one["cluster"]["leader"] == leader.as_str() && one["store"]["serving"] == true && !missing
            });
            let place = leader.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)?;
            (there && agreed).then_some(place)
        })
    }

    /// Puts two services in force: `plain`, and `ledger`, which keeps its balance in a stream.
    pub fn services(&self) -> Result<()> {
        let text = format!(
            "services:\n{}{}routes:\n{}{}",
            service("plain", ""),
            service("ledger", "    stream: { name: ledger }\n"),
            route("ledger"),
            route("plain"),
        );
        self.machines[0].verb_done(&["apply", "-f"], Some(&text))?;
        self.settled("plain")?;
        self.settled("ledger").map(drop)
    }

    /// The primary of a service as one node sees it.
    pub fn primary(&self, seen_from: usize, service: &str) -> Option<Primary> {
        let status = self.status(seen_from)?;
        let service = status["services"].as_array()?.iter().find(|one| one["name"] == service)?.clone();
        let instance = service["primary"].as_str()?.to_owned();
        let one = service["instances"].as_array()?.iter().find(|one| one["id"] == instance.as_str())?;
        let place = one["node"].as_str()?.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)?;
        let pid = u32::try_from(one["pid"].as_u64()?).ok()?;
        Some(Primary { instance, place, pid, epoch: service["epoch"].as_u64()? })
    }

    /// Waits until every node shows the service ready, with the same primary.
    pub fn settled(&self, service: &str) -> Result<Primary> {
        self.wait(&format!("{service} is ready"), |field| {
            for place in 0..NODES {
                let status = field.status(place)?;
                let found = status["services"].as_array()?.iter().find(|one| one["name"] == service)?.clone();
                (found["state"] == "ready" && found["ready"] == found["desired"]).then_some(())?;
            }
            let primary = field.primary(0, service)?;
            (1..NODES)
                .all(|place| field.primary(place, service).is_some_and(|seen| seen.epoch == primary.epoch))
                .then_some(primary)
        })
    }
}
