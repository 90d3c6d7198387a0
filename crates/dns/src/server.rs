//! The two sockets: datagrams on a thread of their own, which nothing else holds up, connections on the event loop, a bounded
//! number of them for a bounded time.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use discovery::Registry;
use discovery::acl::Identity;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::Zone;
use crate::answer::{Transport, is_for_others, respond_to};
use crate::forward::Forwarder;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// Between two questions on a connection, and for each to come whole.
const IDLE: Duration = Duration::from_secs(10);
/// Questions on one connection.
const MAX_QUESTIONS: usize = 1000;
/// A stop is noticed within this time.
const LOOK: Duration = Duration::from_millis(200);
/// Another port is tried so often where any will do, and its twin is taken.
const ATTEMPTS: usize = 16;

/// The running server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.accepting.abort();
    }
}

/// Serves on `listen`, UDP and TCP. Questions about names of others go on to `servers`, if there are any.
///
/// # Errors
/// The operating system's: the port is taken, or needs rights.
pub fn serve(listen: SocketAddr, zone: Zone, servers: Vec<SocketAddr>, registry: Arc<Registry>) -> io::Result<Server> {
    let (udp, tcp) = bind(listen)?;
    let address = udp.local_addr()?;
    udp.set_read_timeout(Some(LOOK))?;
    tcp.set_nonblocking(true)?;
    let tcp = tokio::net::TcpListener::from_std(tcp)?;
    let forwarder = Forwarder::new(servers);
    let answers = Arc::new(Answers { zone, registry, forwarder, chance: AtomicU64::new(0) });
    let stop = Arc::new(AtomicBool::new(false));
    let (ending, answering) = (Arc::clone(&stop), Arc::clone(&answers));
    let (udp, runtime) = (Arc::new(udp), Handle::current());
    std::thread::Builder::new().name("dns".into()).spawn(move || datagrams(&udp, &answering, &ending, &runtime))?;
    let accepting = tokio::spawn(accept(tcp, answers));
    Ok(Server { address, stop, accepting })
}

/// The same port twice.
fn bind(listen: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempts = 0;
    loop {
        let tcp = TcpListener::bind(listen)?;
        match UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) if listen.port() != 0 || attempts >= ATTEMPTS => return Err(error),
            Err(_) => attempts += 1,
        }
    }
}

struct Answers {
    zone: Zone,
    registry: Arc<Registry>,
    forwarder: Forwarder,
    chance: AtomicU64,
}

impl Answers {
    fn to(&self, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let chance = self.chance.fetch_add(0x9e37_79b9, Ordering::Relaxed);
        let clock = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::from(since.subsec_nanos()));
        let chance = chance ^ clock;
        let Some(guard) = self.registry.guard() else {
            let catalog = self.registry.read();
            return respond_to(&self.zone, &catalog, catalog.revision(), bytes, transport, (chance, None));
        };
        // Before the catalog is held: that is looked into for it. Whoever is not recognized sees nothing.
        let who = guard.dns(&self.registry).unwrap_or_else(|| Arc::new(Identity::nobody()));
        let catalog = self.registry.read();
        respond_to(&self.zone, &catalog, catalog.revision(), bytes, transport, (chance, Some(&who)))
    }
}

fn datagrams(socket: &Arc<UdpSocket>, answers: &Arc<Answers>, stop: &AtomicBool, runtime: &Handle) {
    // A question is small; what is longer is cut off, and then malformed.
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                let question = &buffer[..length];
                if let Some(answer) = answers.to(question, Transport::Udp) {
                    if is_for_others(&answers.zone, question, &answer) {
                        let (socket, answers, question) = (Arc::clone(socket), Arc::clone(answers), question.to_vec());
                        runtime.spawn(async move {
                            if let Some(answer) = answers.forwarder.ask(&question, Transport::Udp).await {
                                // Ignored: as below.
                                let _ = socket.send_to(&answer, from);
                            }
                        });
                        continue;
                    }
                    // Ignored: who asked may have gone, and asks again if not.
                    let _ = socket.send_to(&answer, from);
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            // Some systems tell here that an answer before could not be delivered.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            Err(error) => {
                tracing::debug!(%error, "a DNS question could not be read");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, answers: Arc<Answers>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    // Ignored: a client that goes away is no news.
                    let _ = connection(stream, &answers).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a DNS connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Questions with their length in front (RFC 1035, 4.2.2).
async fn connection(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    for _ in 0..MAX_QUESTIONS {
        let question = async {
            let length = stream.read_u16().await?;
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await?;
            io::Result::Ok(bytes)
        };
        let bytes = tokio::time::timeout(IDLE, question).await??;
        let Some(mut answer) = answers.to(&bytes, Transport::Tcp) else { return Ok(()) };
        if is_for_others(&answers.zone, &bytes, &answer) {
            let Some(theirs) = answers.forwarder.ask(&bytes, Transport::Tcp).await else { return Ok(()) };
            answer = theirs;
        }
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut message = length.to_be_bytes().to_vec();
        message.extend_from_slice(&answer);
        tokio::time::timeout(IDLE, stream.write_all(&message)).await??;
    }
    Ok(())
}
