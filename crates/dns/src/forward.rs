//! Questions about what is not ours, passed on to other servers: over UDP what came so and over TCP the rest, one server
//! after the other, the one that answered last first. An answer counts when it has the id that was sent, which nobody else
//! knows, from the server that was asked, about the same question. Deliberately absent: a cache, and asking the root.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use crate::answer::Transport;

/// Questions under way; further ones are answered SERVFAIL at once.
const AT_ONCE: usize = 512;
/// A server has so long for its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a header.
const HEAD: usize = 12;

/// Where questions are passed on to.
#[derive(Debug)]
pub(crate) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// The one that answered last.
    first: AtomicUsize,
    places: Semaphore,
}

impl Forwarder {
    /// To these; at least one.
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers, first: AtomicUsize::new(0), places: Semaphore::new(AT_ONCE) }
    }

    /// The answer of the first server that has one; SERVFAIL when none has.
    pub(crate) async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let asked = Message::from_vec(question).ok()?;
        let failed = || {
            let mut failed = Message::error_msg(asked.metadata.id, asked.metadata.op_code, ResponseCode::ServFail);
            failed.metadata.recursion_desired = true;
            failed.metadata.recursion_available = true;
            failed.add_queries(asked.queries.iter().cloned());
            failed.to_vec().ok()
        };
        let Ok(_place) = self.places.try_acquire() else { return failed() };
        let first = self.first.load(Ordering::Relaxed);
        for turn in 0..self.servers.len() {
            let number = (first + turn) % self.servers.len();
            let Some(server) = self.servers.get(number) else { break };
            let answered = match transport {
                Transport::Udp => tokio::time::timeout(PATIENCE, by_datagram(*server, question, &asked)).await,
                Transport::Tcp => tokio::time::timeout(PATIENCE, by_connection(*server, question, &asked)).await,
            };
            match answered {
                Ok(Ok(answer)) => {
                    self.first.store(number, Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%server, %error, "a DNS server that questions are passed on to"),
                Err(_) => tracing::debug!(%server, "a DNS server that questions are passed on to does not answer"),
            }
        }
        failed()
    }
}

/// The same question under an id that nobody can guess, and that id.
fn renamed(question: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let [one, two, ..] = uuid::Uuid::new_v4().into_bytes();
    let id = [one, two];
    let mut question = question.to_vec();
    question.get_mut(..2).ok_or(io::ErrorKind::InvalidInput)?.copy_from_slice(&id);
    Ok((question, id))
}

/// With the client's id again, if it is an answer to this.
fn checked(mut answer: Vec<u8>, id: [u8; 2], asked: &Message) -> Option<Vec<u8>> {
    let is_answer = answer.len() >= HEAD && answer[..2] == id && answer[2] & 0x80 != 0;
    let read = Message::from_vec(&answer).ok().filter(|_| is_answer)?;
    let same = |(one, other): (&hickory_proto::op::Query, &hickory_proto::op::Query)| {
        one.name == other.name && one.query_type == other.query_type && one.query_class == other.query_class
    };
    if read.queries.len() != asked.queries.len() || !read.queries.iter().zip(&asked.queries).all(same) {
        return None;
    }
    answer[..2].copy_from_slice(&asked.metadata.id.to_be_bytes());
    Some(answer)
}

async fn by_datagram(server: SocketAddr, question: &[u8], asked: &Message) -> io::Result<Vec<u8>> {
    let (question, id) = renamed(question)?;
    // From a port that the system draws, and only from that server.
    let own: SocketAddr =
        if server.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(server).await?;
    socket.send(&question).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Somebody guesses, or an answer comes late: the right one may still come.
        if let Some(answer) = checked(buffer[..length].to_vec(), id, asked) {
            return Ok(answer);
        }
    }
}

async fn by_connection(server: SocketAddr, question: &[u8], asked: &Message) -> io::Result<Vec<u8>> {
    let (question, id) = renamed(question)?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    checked(answer, id, asked).ok_or_else(|| io::Error::other("its answer is about something else"))
}
