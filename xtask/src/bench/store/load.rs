//! The clients: each sends its next request when it has its last answer. HTTP/1.1 to the product, a connection for each
//! client, or HTTP/2 shared among ten; gRPC to the peer, whose own measurements share a connection among ten. All on one
//! thread of this process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::etcd;
use super::members::{Cluster, Make, Used};

/// Keys that are written and read.
const KEYS: u64 = 10_000;
/// Clients that write them before they are read.
const FILLERS: usize = 100;
/// Clients that share a connection of HTTP/2, as the peer's own `benchmark --conns 100 --clients 1000` has it.
const SHARING: usize = 10;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Load before the window that counts.
const WARM_UP: Duration = Duration::from_secs(1);

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A value at a key.
    Write,
    /// The newest value of a key.
    Read,
}

/// What clients saw in a window.
#[derive(Debug)]
pub struct Seen {
    /// Answers that were a success.
    pub answered: u64,
    /// Answers that were none.
    pub failed: u64,
    /// How long it was.
    pub elapsed: Duration,
    /// What all members used meanwhile.
    pub used: Used,
    /// From request to answer, in microseconds, sorted.
    latencies: Vec<u32>,
}

impl Seen {
    /// A quantile in microseconds.
    pub fn quantile(&self, at: f64) -> f64 {
        let place = (self.latencies.len().saturating_sub(1) as f64 * at) as usize;
        self.latencies.get(place).copied().map_or(0.0, f64::from)
    }
}

/// Puts load on a cluster.
pub fn run(
    cluster: &Cluster,
    asked: Asked,
    (clients, shared): (usize, bool),
    bytes: usize,
    seconds: Duration,
) -> Result<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connections = connect(cluster, clients, shared).await?;
        let begin = Instant::now() + WARM_UP;
        let (until, keys) = (begin + seconds, Arc::new(AtomicU64::new(0)));
        let tasks: Vec<_> = connections
            .into_iter()
            .map(|connection| {
                let client = Client { connection, asked, value: vec![b'x'; bytes], keys: Arc::clone(&keys) };
                tokio::spawn(client.run(begin, until))
            })
            .collect();
        tokio::time::sleep_until(begin.into()).await;
        let before = cluster.used()?;
        tokio::time::sleep_until(until.into()).await;
        let used = cluster.used()?.since(&before);
        let (mut latencies, mut failed) = (Vec::new(), 0);
        for task in tasks {
            let (own, own_failed) = task.await??;
            latencies.extend(own);
            failed += own_failed;
        }
        latencies.sort_unstable();
        Ok(Seen { answered: latencies.len() as u64, failed, elapsed: seconds, used, latencies })
    })
}

/// Writes every key once, so that what is read has so many bytes.
pub fn fill(cluster: &Cluster, bytes: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let keys = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = connect(cluster, FILLERS, false)
            .await?
            .into_iter()
            .map(|connection| {
                let client =
                    Client { connection, asked: Asked::Write, value: vec![b'x'; bytes], keys: Arc::clone(&keys) };
                tokio::spawn(client.fill())
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        Ok(())
    })
}

/// One write through each member.
pub fn probe(cluster: &Cluster) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for mut connection in connect(cluster, cluster.clients.len(), false).await? {
            ensure!(connection.ask(Asked::Write, "probe", b"x").await?, "a write was refused");
        }
        Ok(())
    })
}

/// A connection for each client, in turn to each member.
async fn connect(cluster: &Cluster, clients: usize, shared: bool) -> Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(clients);
    let members = &cluster.clients;
    if clients == 1 {
        // One client goes round: whoever leads must not matter.
        let mut round = Vec::new();
        for address in members {
            round.push(Connection::open(cluster.make, *address, shared).await?);
        }
        return Ok(vec![Connection::Round(round, 0)]);
    }
    let sharing = if (shared || cluster.make == Make::Etcd) && clients > members.len() { SHARING } else { 1 };
    for place in 0..clients.div_ceil(sharing) {
        let first = Connection::open(cluster.make, members[place % members.len()], shared).await?;
        for _ in 1..sharing {
            connections.extend(first.shared());
        }
        connections.push(first);
    }
    connections.truncate(clients);
    Ok(connections)
}

struct Client {
    connection: Connection,
    asked: Asked,
    value: Vec<u8>,
    keys: Arc<AtomicU64>,
}

impl Client {
    async fn fill(mut self) -> Result<()> {
        loop {
            let number = self.keys.fetch_add(1, Ordering::Relaxed);
            if number >= KEYS {
                return Ok(());
            }
            ensure!(self.connection.ask(self.asked, &key(number), &self.value).await?, "a write was refused");
        }
    }

    async fn run(mut self, begin: Instant, until: Instant) -> Result<(Vec<u32>, u64)> {
        let (mut latencies, mut failed) = (Vec::new(), 0);
        loop {
            let sent = Instant::now();
            if sent >= until {
                return Ok((latencies, failed));
            }
            // A walk over all keys in an order that is none.
            let key = key(self.keys.fetch_add(1, Ordering::Relaxed).wrapping_mul(7_919) % KEYS);
            let asked = self.connection.ask(self.asked, &key, &self.value);
            let done = tokio::time::timeout(PATIENCE, asked).await.context("no answer in time")??;
            if sent >= begin && Instant::now() <= until {
                failed += u64::from(!done);
                latencies.push(u32::try_from(sent.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
        }
    }
}

fn key(number: u64) -> String {
    format!("bench/{number:08}")
}

/// To one member, or in turn to several.
enum Connection {
    Http1 { stream: TcpStream, buffer: Vec<u8> },
    Http2 { calls: SendRequest<Bytes>, host: SocketAddr },
    Grpc { calls: SendRequest<Bytes>, host: SocketAddr },
    Round(Vec<Connection>, usize),
}

impl Connection {
    async fn open(make: Make, address: SocketAddr, shared: bool) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        if make == Make::Seawall && !shared {
            return Ok(Self::Http1 { stream, buffer: Vec::with_capacity(4096) });
        }
        let (calls, connection) = h2::client::handshake(stream).await?;
        // It ends with the runtime.
        tokio::spawn(connection);
        Ok(if make == Make::Seawall {
            Self::Http2 { calls, host: address }
        } else {
            Self::Grpc { calls, host: address }
        })
    }

    /// Another client's use of the same connection.
    fn shared(&self) -> Option<Self> {
        match self {
            Self::Grpc { calls, host } => Some(Self::Grpc { calls: calls.clone(), host: *host }),
            Self::Http2 { calls, host } => Some(Self::Http2 { calls: calls.clone(), host: *host }),
            _ => None,
        }
    }

    /// Asks and waits; whether it was a success.
    async fn ask(&mut self, asked: Asked, key: &str, value: &[u8]) -> Result<bool> {
        match self {
            Self::Http1 { stream, buffer } => http1(stream, buffer, asked, key, value).await,
            Self::Http2 { calls, host } => http2(calls, *host, asked, key, value).await,
            Self::Grpc { calls, host } => grpc(calls, *host, asked, key, value).await,
            Self::Round(connections, next) => {
                *next = (*next + 1) % connections.len();
                Box::pin(connections[*next].ask(asked, key, value)).await
            }
        }
    }
}

async fn http1(stream: &mut TcpStream, buffer: &mut Vec<u8>, asked: Asked, key: &str, value: &[u8]) -> Result<bool> {
    let (method, body) = match asked {
        Asked::Write => ("PUT", value),
        Asked::Read => ("GET", &b""[..]),
    };
    buffer.clear();
    let length = body.len();
    buffer.extend_from_slice(
        format!("{method} /api/v1/kv/{key} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {length}\r\n\r\n").as_bytes(),
    );
    buffer.extend_from_slice(body);
    stream.write_all(buffer).await?;
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the connection ended");
        }
        let Some(head) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
        let line = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = line.context("an answer without a length")?.trim().parse()?;
        if buffer.len() >= head + 4 + length {
            return Ok(text.starts_with("http/1.1 200"));
        }
    }
}

async fn http2(calls: &SendRequest<Bytes>, host: SocketAddr, asked: Asked, key: &str, value: &[u8]) -> Result<bool> {
    let request = http::Request::builder().uri(format!("http://{host}/api/v1/kv/{key}"));
    let mut ready = calls.clone().ready().await?;
    let answer = match asked {
        Asked::Read => ready.send_request(request.body(())?, true)?.0,
        Asked::Write => {
            let (answer, mut body) =
                ready.send_request(request.method("PUT").header("content-length", value.len()).body(())?, false)?;
            body.send_data(Bytes::copy_from_slice(value), true)?;
            answer
        }
    };
    let answer = answer.await?;
    let status = answer.status().as_u16();
    let mut body = answer.into_body();
    while let Some(chunk) = body.data().await {
        let length = chunk?.len();
        body.flow_control().release_capacity(length)?;
    }
    Ok(status == 200)
}

async fn grpc(calls: &mut SendRequest<Bytes>, host: SocketAddr, asked: Asked, key: &str, value: &[u8]) -> Result<bool> {
    let (path, message) = match asked {
        Asked::Write => (etcd::PUT, etcd::put(key, value)),
        Asked::Read => (etcd::RANGE, etcd::range(key)),
    };
    let request = http::Request::post(format!("http://{host}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut ready = calls.clone().ready().await?;
    let (answer, mut body) = ready.send_request(request, false)?;
    body.send_data(message.into(), true)?;
    let mut answer = answer.await?.into_body();
    while let Some(chunk) = answer.data().await {
        let length = chunk?.len();
        answer.flow_control().release_capacity(length)?;
    }
    let trailers = answer.trailers().await?.context("an answer without trailers")?;
    Ok(trailers.get("grpc-status").is_some_and(|status| status == "0"))
}
