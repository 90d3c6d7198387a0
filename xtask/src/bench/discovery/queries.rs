//! Many blocking queries, each on a service of its own, while others change: none of them wakes for nothing, and the one
//! whose service has changed has its answer at once.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::mpsc;

use super::Options;
use super::client::Client;
use crate::bench::process;
use crate::bench::store::members::Cluster;

/// Changes a second of what somebody waits for.
const AWAITED: u64 = 100;
/// Clients that change what nobody waits for.
const CHANGERS: usize = 32;
/// Services that are changed and that nobody waits for.
const OTHERS: usize = 1000;
/// After the last change, for the last answers.
const AFTER: Duration = Duration::from_secs(5);
/// Connections that are made at a time.
const AT_ONCE: usize = 64;

/// When the change of each service that somebody waits for was asked for.
type Asked = Arc<Mutex<HashMap<usize, Instant>>>;

/// What came of the queries.
#[derive(Default)]
struct Woken {
    latencies: Vec<u32>,
    spurious: u64,
}

/// Measures; the lines for the report.
pub fn run(cluster: &Cluster, options: &Options) -> Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (woken, changed, idle_mib, mib) = runtime.block_on(measure(cluster, options))?;
    let mut latencies = woken.latencies;
    latencies.sort_unstable();
    let at = |part: usize| f64::from(latencies[(latencies.len() - 1) * part / 100]) / 1000.0;
    let text = format!(
        "- **Blocking queries**: {} on as many services wait at one member of three, while {changed} changes a second \
         concern none of them, and {AWAITED} a second one of them, for {} s: **{}** woke for nothing; from the change's \
         request to the query's answer p50 {:.1} ms, **p99 {:.1} ms**, longest {:.1} ms; that member has **{mib:.0} MiB** \
         ({idle_mib:.0} before anything was registered).\n",
        options.queries,
        options.seconds,
        woken.spurious,
        at(50),
        at(99),
        at(100),
    );
    print!("{text}");
    Ok(text)
}

async fn measure(cluster: &Cluster, options: &Options) -> Result<(Woken, u64, f64, f64)> {
    let asked = cluster.clients[0];
    let pid = cluster.pid(0);
    let idle_mib = process::resident_mib(&process::family(pid)?)?;
    for (place, kind, count) in [(0, "awaited", options.queries), (1, "other", OTHERS)] {
        register_all(cluster.clients[place], kind, count).await?;
    }
    let times: Asked = Asked::default();
    let (told, mut woken) = mpsc::unbounded_channel();
    let mut connecting = Vec::new();
    for number in 0..options.queries {
        let client = Client::connect(asked).await?;
        connecting.push(tokio::spawn(wait_for_ever(client, number, Arc::clone(&times), told.clone())));
        if number % AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
    }
    drop(told);
    // Each says once that it waits.
    for _ in 0..options.queries {
        ensure!(woken.recv().await.context("no query")?? == Seen::Waits, "a query was answered at once");
    }
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let changers: Vec<_> = (0..CHANGERS)
        .map(|place| {
            let address = cluster.clients[1 + place % 2];
            let each = Duration::from_secs_f64(CHANGERS as f64 / options.changes as f64);
            tokio::spawn(change_others(address, place, each, until))
        })
        .collect();
    let awaited = tokio::spawn(change_awaited(cluster.clients[1], options.queries, Arc::clone(&times), until));
    let mut found = Woken::default();
    let mut take = |seen: Seen| match seen {
        Seen::Waits => {}
        Seen::Woken(latency) => found.latencies.push(latency),
        Seen::Spurious => found.spurious += 1,
    };
    let end = until + AFTER;
    while let Ok(seen) = tokio::time::timeout_at(end.into(), woken.recv()).await {
        take(seen.context("all queries ended")??);
    }
    let mib = process::resident_mib(&process::family(pid)?)?;
    let mut changed = 0;
    for task in changers {
        changed += task.await??;
    }
    let wanted = awaited.await??;
    ensure!(found.latencies.len() as u64 == wanted, "{} of {wanted} changes were told", found.latencies.len());
    connecting.iter().for_each(tokio::task::JoinHandle::abort);
    Ok((found, changed / options.seconds, idle_mib, mib))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Waits,
    Woken(u32),
    Spurious,
}

/// Asks again and again with the index that it knows.
async fn wait_for_ever(mut client: Client, number: usize, times: Asked, told: mpsc::UnboundedSender<Result<Seen>>) {
    let mut asking = async || -> Result<()> {
        let path = format!("/v1/health/service/awaited-{number}");
        let mut index = client.done("GET", &path, "").await?.index;
        told.send(Ok(Seen::Waits))?;
        loop {
            let answer = client.done("GET", &format!("{path}?index={index}&wait=10m"), "").await?;
            let since = times.lock().expect("nobody panics").remove(&number);
            let seen = match since {
                Some(since) if answer.index > index => {
                    Seen::Woken(u32::try_from(since.elapsed().as_micros()).unwrap_or(u32::MAX))
                }
                _ => Seen::Spurious,
            };
            told.send(Ok(seen))?;
            index = answer.index;
        }
    };
    if let Err(error) = asking().await {
        // The measurement may have ended.
        let _ = told.send(Err(error));
    }
}

fn registration(kind: &str, number: usize, version: u64) -> String {
    format!(
        r#"{{"ID":"{kind}-{number}","Name":"{kind}-{number}","Address":"10.1.2.3","Port":80,"Meta":{{"version":"{version}"}}}}"#
    )
}

async fn register_all(address: SocketAddr, kind: &'static str, count: usize) -> Result<()> {
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|place| {
            tokio::spawn(async move {
                let mut client = Client::connect(address).await?;
                for number in (place..count).step_by(AT_ONCE) {
                    client.done("PUT", "/v1/agent/service/register", &registration(kind, number, 0)).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Changes its part of what nobody waits for, one each so long; how often.
async fn change_others(address: SocketAddr, place: usize, each: Duration, until: Instant) -> Result<u64> {
    let mut client = Client::connect(address).await?;
    let mut ticks = tokio::time::interval(each);
    let mut done = 0;
    while Instant::now() < until {
        ticks.tick().await;
        let number = place + CHANGERS * (done as usize % (OTHERS / CHANGERS));
        client.done("PUT", "/v1/agent/service/register", &registration("other", number, done + 1)).await?;
        done += 1;
    }
    Ok(done)
}

/// Changes what somebody waits for, each time another one; how often.
async fn change_awaited(address: SocketAddr, count: usize, times: Asked, until: Instant) -> Result<u64> {
    let mut client = Client::connect(address).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / AWAITED as u32);
    let mut done = 0;
    while Instant::now() < until {
        ticks.tick().await;
        // A walk in an order that is none.
        let number = (done as usize).wrapping_mul(7919) % count;
        let body = format!(
            r#"{{"Node":"far","Address":"10.9.9.9","SkipNodeUpdate":false,"Service":{{"ID":"more-{number}","Service":"awaited-{number}","Port":{}}}}}"#,
            1 + done % 60_000
        );
        times.lock().expect("nobody panics").insert(number, Instant::now());
        client.done("PUT", "/v1/catalog/register", &body).await?;
        done += 1;
    }
    Ok(done)
}
