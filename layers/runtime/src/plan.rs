//! From a service's definition to the instances that should run, and the exact process each of them is.
//! An instance keeps its id (`order-service-0`, with versions `order-service-v1-0`) and its port for life.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use model::config::NodeConfig;
use model::config::validate::{VARIABLES, expand};
use model::{InstanceId, Service, ServiceName, VersionName};

use crate::protocol::ProcessSpec;

/// An instance that should run.
#[derive(Clone, PartialEq, Debug)]
pub struct Instance {
    /// Its id.
    pub id: InstanceId,
    /// Its service.
    pub service: ServiceName,
    /// Its version, where the service has versions.
    pub version: Option<VersionName>,
    /// Its index within the service or version, from 0.
    pub index: u32,
    /// Its fixed port, if the definition names one.
    pub port: Option<u16>,
    /// The service's labels with the version's.
    pub labels: BTreeMap<String, String>,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    working_dir: PathBuf,
}

/// The instances of a service: those that Seawall runs, or one for each of its `endpoints`.
pub fn instances(name: &ServiceName, service: &Service) -> Vec<Instance> {
    let working_dir = PathBuf::from(service.working_dir.as_deref().unwrap_or_default());
    let mut planned = Vec::new();
    let mut add = |version: Option<&VersionName>, index: u32, command: &[String], env, labels| {
        let id = match version {
            Some(version) => format!("{name}-{version}-{index}"),
            None => format!("{name}-{index}"),
        };
        let port = service.ports.get(planned.len()).copied();
        let (id, version, working_dir) = (InstanceId::new(id), version.cloned(), working_dir.clone());
        planned.push(Instance {
            id,
            service: name.clone(),
            version,
            index,
            port,
            labels,
            command: command.to_vec(),
            env,
            working_dir,
        });
    };
    if service.versions.is_empty() {
        let count = if service.endpoints.is_empty() { service.replicas } else { service.total_replicas() };
        for index in 0..count {
            add(None, index, &service.command, service.env.clone(), service.labels.clone());
        }
    }
    for (version_name, version) in &service.versions {
        let command = if version.command.is_empty() { &service.command } else { &version.command };
        for index in 0..version.replicas.unwrap_or(service.replicas) {
            let env = merged(&service.env, &version.env);
            add(Some(version_name), index, command, env, merged(&service.labels, &version.labels));
        }
    }
    if let Some(stream) = &service.stream {
        for instance in &mut planned {
            // Part of what the process is: one that was started with another must be replaced.
            instance.env.insert("SEAWALL_STREAM".into(), stream.name.clone());
        }
    }
    planned
}

fn merged(base: &BTreeMap<String, String>, over: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut all = base.clone();
    all.extend(over.clone());
    all
}

impl Instance {
    /// The process this instance is, listening on `address`; `api` is the URL of its node's API.
    pub fn process(&self, address: SocketAddr, api: &str, node: &NodeConfig) -> ProcessSpec {
        ProcessSpec {
            command: self.command.iter().map(|text| self.filled(text, address)).collect(),
            env: self.environment(address, api),
            working_dir: self.working_dir.clone(),
            log_max_bytes: u64::from(node.log_max_mib.max(1)) << 20,
            log_keep: node.log_keep,
        }
    }

    /// Its environment; also that of its exec probes and hooks.
    pub fn environment(&self, address: SocketAddr, api: &str) -> BTreeMap<String, String> {
        let mut env: BTreeMap<String, String> =
            self.env.iter().map(|(name, text)| (name.clone(), self.filled(text, address))).collect();
        env.insert("PORT".into(), address.port().to_string());
        env.insert("SEAWALL_INSTANCE".into(), self.id.to_string());
        env.insert("SEAWALL_SERVICE".into(), self.service.to_string());
        env.insert("SEAWALL_API".into(), api.to_owned());
        env
    }

    /// Where it runs.
    pub fn working_dir(&self) -> &Path {
        &self.working_dir
    }

    /// What `${port}` and its like stand for.
    pub fn variables(&self, address: SocketAddr) -> BTreeMap<String, String> {
        let value = |name: &str| match name {
            "port" => address.port().to_string(),
            "address" => address.ip().to_string(),
            "instance" => self.id.to_string(),
            "service" => self.service.to_string(),
            "index" => self.index.to_string(),
            other => unreachable!("`{other}` is a new variable without a value"),
        };
        VARIABLES.into_iter().map(|name| (name.to_owned(), value(name))).collect()
    }

    fn filled(&self, text: &str, address: SocketAddr) -> String {
        let variables = self.variables(address);
        expand(text, |name| variables.get(name).cloned()).expect("variables were checked with the configuration")
    }

    /// Changes exactly when the process would be a different one: then the instance must be restarted.
    pub fn fingerprint(&self) -> u64 {
        let parts = (&self.command, &self.env, &self.working_dir, &self.port, &self.version);
        let text = serde_json::to_vec(&parts).expect("strings, maps and numbers always become JSON");
        // FNV-1a: stable over builds, as the value outlives the process that computed it.
        text.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
    }
}
