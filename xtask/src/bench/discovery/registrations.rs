//! Many instances registered through all members at once: how many a second, and whether every member shows them all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Options;
use super::client::Client;
use crate::bench::store::members::Cluster;

/// Instances of each service.
const OF_A_SERVICE: usize = 10;

/// Measures; the lines for the report.
pub fn run(cluster: &Cluster, options: &Options) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = cluster.used()?;
    let (seconds, mut latencies) = runtime.block_on(register(cluster, options.instances, options.clients))?;
    let used = cluster.used()?.since(&before);
    latencies.sort_unstable();
    let p99 = latencies[(latencies.len() - 1) * 99 / 100];
    let names = options.instances.div_ceil(OF_A_SERVICE);
    for address in &cluster.clients {
        runtime.block_on(shown(*address, names, options))?;
    }
    let text = format!(
        "- **Registrations**: {} instances of {names} services, by {} clients through three members: **{:.0} a second** \
         (p99 {:.1} ms, {:.3} ms of processor time of all members each); every member shows all of them, with {:.0} MiB \
         in the largest.\n",
        options.instances,
        options.clients,
        options.instances as f64 / seconds,
        f64::from(p99) / 1000.0,
        used.cpu_seconds * 1000.0 / options.instances as f64,
        cluster.used()?.member_mib,
    );
    print!("{text}");
    Ok(text)
}

/// Registers them; how long that took, and each one's microseconds.
pub async fn register(cluster: &Cluster, instances: usize, clients: usize) -> Result<(f64, Vec<u32>)> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut connections = Vec::new();
    for place in 0..clients {
        connections.push(Client::connect(cluster.clients[place % cluster.clients.len()]).await?);
    }
    let begun = Instant::now();
    let tasks: Vec<_> =
        connections.into_iter().map(|client| tokio::spawn(one(client, Arc::clone(&next), instances))).collect();
    let mut latencies = Vec::with_capacity(instances);
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok((begun.elapsed().as_secs_f64(), latencies))
}

async fn one(mut client: Client, next: Arc<AtomicUsize>, instances: usize) -> Result<Vec<u32>> {
    let mut latencies = Vec::new();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= instances {
            return Ok(latencies);
        }
        let (name, port) = (number / OF_A_SERVICE, 1024 + number % 60_000);
        let body = format!(
            r#"{{"ID":"service-{name}-{number}","Name":"service-{name}","Tags":["v1","blue"],"Address":"10.0.{}.{}","Port":{port},"Meta":{{"zone":"a"}}}}"#,
            number / 250 % 250,
            number % 250,
        );
        let sent = Instant::now();
        client.done("PUT", "/v1/agent/service/register", &body).await?;
        latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

/// Whether a member shows all of them.
async fn shown(address: SocketAddr, names: usize, options: &Options) -> Result<()> {
    let mut client = Client::connect(address).await?;
    let answer = client.done("GET", "/v1/catalog/services", "").await?;
    let services: Value = serde_json::from_slice(&answer.body)?;
    let of_us = services.as_object().context("an object")?.keys().filter(|name| name.starts_with("service-"));
    ensure!(of_us.count() == names, "{address} does not show {names} services");
    for name in [0, names / 2, names - 1] {
        let answer = client.done("GET", &format!("/v1/health/service/service-{name}?passing"), "").await?;
        let found: Value = serde_json::from_slice(&answer.body)?;
        let wanted = OF_A_SERVICE.min(options.instances - name * OF_A_SERVICE);
        let count = found.as_array().context("a list")?.len();
        ensure!(count == wanted, "{address} shows {count} of {wanted} instances of service-{name}");
    }
    Ok(())
}
