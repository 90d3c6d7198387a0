//! Asks an instance one question and waits for the answer, at most the probe's timeout. No counting: see [`crate::detect`].
//! What is said is bounded: an instance that answers gigabytes or nothing at all costs a timeout and a few kilobytes.

mod exec;
mod grpc;
mod h2ping;
mod http;
mod tls;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use model::config::validate::expand;
use model::config::{ExecAction, HttpAction, Probe};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub use exec::{end_left_over, judge as judge_command, run as run_command};
pub use grpc::check as grpc_check;
pub use h2ping::check as h2_ping;
pub use http::{Answer, request, request_with};
pub use tls::{Connection, Terms, wrap as over_tls};

/// To end a command that did not end by itself.
pub const ENDING: Duration = Duration::from_secs(3);

/// What is probed.
#[derive(Clone, Debug)]
pub struct Target {
    /// The instance's own address.
    pub address: SocketAddr,
    /// For `exec`: the instance's environment.
    pub env: BTreeMap<String, String>,
    /// For `exec`: the instance's working directory.
    pub working_dir: PathBuf,
    /// For `exec`: the values of `${port}` and its like.
    pub variables: BTreeMap<String, String>,
}

impl Target {
    /// Runs `exec` as a process of the instance would run: in its folder, with its environment and variables.
    ///
    /// # Errors
    /// In one line, why it was no success.
    pub async fn run(&self, exec: &ExecAction, env: &BTreeMap<String, String>, limit: Duration) -> Result<(), String> {
        let filled = |text: &String| expand(text, |name| self.variables.get(name).cloned());
        let command: Result<Vec<String>, String> = exec.command.iter().map(filled).collect();
        let command = command.map_err(|name| format!("`${{{name}}}` has no value here"))?;
        run_command(&command, env, &self.working_dir, limit).await
    }
}

/// Asks once. An error says in one line why the answer counts as a failure.
pub async fn probe(probe: &Probe, target: &Target) -> Result<(), String> {
    let limit = probe.timeout();
    // A command has its own limit inside, and needs a moment more to be ended with its whole tree.
    let patience = if probe.exec.is_some() { limit + ENDING } else { limit };
    let asked = timeout(patience, ask(probe, target, limit)).await;
    asked.unwrap_or_else(|_| Err(format!("no answer within {} s", probe.timeout_seconds)))
}

async fn ask(probe: &Probe, target: &Target, limit: Duration) -> Result<(), String> {
    if let Some(http) = &probe.http_get {
        return http_get(http, target).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        return connect(tcp.host.as_deref(), tcp.port, target).await.map(drop);
    }
    if let Some(exec) = &probe.exec {
        return target.run(exec, &target.env, limit).await;
    }
    if let Some(grpc) = &probe.grpc {
        let stream = connect(None, grpc.port, target).await?;
        return grpc::check(stream, &format!("http://{}", target.address), &grpc.service).await;
    }
    Err("the probe has no handler".into())
}

/// An HTTP GET; 200 to 399 is a success, redirects are not followed.
pub async fn http_get(http: &HttpAction, target: &Target) -> Result<(), String> {
    let stream = connect(http.host.as_deref(), http.port, target).await?;
    let headers: Vec<(&str, &str)> =
        http.http_headers.iter().map(|header| (header.name.as_str(), header.value.as_str())).collect();
    let answer = request(stream, "GET", &http.path, target.address, &headers).await?;
    if (200..400).contains(&answer.status) {
        Ok(())
    } else {
        Err(format!("GET {} answered {}", http.path, answer.status))
    }
}

/// A page of an instance, at most `most` bytes of it. The caller bounds the time.
///
/// # Errors
/// In one line: nobody listens, the connection broke, or the answer was not 200.
pub async fn page(address: SocketAddr, path: &str, most: usize) -> Result<String, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("cannot connect to {address}: {error}"))?;
    let answer = http::request_within(stream, "GET", path, address, &[], most).await?;
    match answer.status {
        200 => Ok(String::from_utf8_lossy(&answer.body).into_owned()),
        status => Err(format!("GET {path} answered {status}")),
    }
}

/// Opens a connection to the instance, or to the host and port a probe names instead.
pub async fn connect(host: Option<&str>, port: Option<u16>, target: &Target) -> Result<TcpStream, String> {
    let port = port.unwrap_or(target.address.port());
    let connected = match host {
        Some(host) => TcpStream::connect((host, port)).await,
        None => TcpStream::connect((target.address.ip(), port)).await,
    };
    connected.map_err(|error| {
        format!(
            "cannot connect to {}:{port}: {error}",
            host.map_or_else(|| target.address.ip().to_string(), str::to_owned)
        )
    })
}
