//! Accepting connections: from a socket per worker, or from one whose connections go to the least-loaded worker.
//! First step of the request walk. Sockets come bound from outside and may be shared with another process.
//! Deliberately absent: binding.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;

use crate::entry::Manner;
use crate::worker::{Admission, Listening, Phase, Worker};

/// An address and the sockets bound to it: one per worker (`SO_REUSEPORT`) or any other number.
#[derive(Debug)]
pub struct Listener {
    /// What it is bound to.
    pub address: SocketAddr,
    /// Bound and listening.
    pub sockets: Vec<TcpListener>,
    /// How its connections are treated.
    pub manner: Arc<Manner>,
}

/// One socket with what its acceptor needs.
#[derive(Debug)]
pub(crate) struct Entrance {
    pub(crate) socket: TcpListener,
    pub(crate) listener: Arc<Listening>,
    /// Whether connections stay with the worker that accepts them.
    pub(crate) own: bool,
}

/// Pause after an error such as "too many open files", which another attempt at once would only repeat.
const PAUSE: Duration = Duration::from_millis(50);

/// Told to a client that is one too many.
const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nSeawall-Reason: too-many-connections\r\n\
    Retry-After: 1\r\nContent-Type: text/plain\r\nContent-Length: 21\r\nConnection: close\r\n\r\ntoo many connections\n";

/// Most connections that are taken from a socket's line when draining begins.
const LAST: usize = 4_096;

/// Accepts until draining begins. Then whoever stands in line is let in, and from there on nobody is: a client that is
/// refused goes elsewhere at once, one in a line that is not served waits for nothing and is cut off in the end.
pub(crate) async fn accept(worker: Rc<Worker>, entrance: Entrance, mut phase: watch::Receiver<Phase>) {
    let socket = match tokio::net::TcpListener::from_std(entrance.socket) {
        Ok(socket) => socket,
        Err(error) => return tracing::error!(%error, "listening socket not usable"),
    };
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = phase.wait_for(|phase| *phase != Phase::Run) => break,
        };
        match accepted {
            Ok((stream, peer)) => admit(&worker, &entrance.listener, entrance.own, stream, peer),
            Err(error) if is_of_one_connection(error.kind()) => {}
            Err(error) => {
                tracing::error!(%error, "accept failed");
                worker.metrics.refused("accept-failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    if *phase.borrow() == Phase::Drain {
        close(&worker, (&entrance.listener, entrance.own), socket);
    }
}

/// The line is emptied by asking the system itself: the reactor may not have seen the last ones yet.
fn close(worker: &Rc<Worker>, entrance: (&Arc<Listening>, bool), socket: tokio::net::TcpListener) {
    let Ok(socket) = socket.into_std() else { return };
    for _ in 0..LAST {
        let Ok((stream, peer)) = socket.accept() else { break };
        let accepted = stream.set_nonblocking(true).and_then(|()| tokio::net::TcpStream::from_std(stream));
        if let Ok(stream) = accepted {
            admit(worker, entrance.0, entrance.1, stream, peer);
        }
    }
    // The socket is another process's, too, so that closing this handle would leave it open. Where a listening socket
    // cannot be shut down (Windows) it goes with that process.
    let _ = socket2::SockRef::from(&socket).shutdown(std::net::Shutdown::Read);
}

fn admit(worker: &Rc<Worker>, listener: &Arc<Listening>, own: bool, stream: tokio::net::TcpStream, peer: SocketAddr) {
    let target = if own { worker.index } else { least_loaded(worker) };
    let Some(admission) = Admission::ask(&worker.shared, listener, target) else {
        worker.metrics.refused("too-many-connections");
        let speaks_http1 = listener.manner.tls.is_none() && listener.manner.tcp.is_none();
        return if speaks_http1 {
            refuse(stream)
        };
    };
    if target == worker.index {
        return worker.serve(stream, peer, admission);
    }
    let handed = stream.into_std().map(|stream| worker.doors[target].sender.try_send((stream, peer, admission)));
    if !matches!(handed, Ok(Ok(()))) {
        worker.metrics.refused("hand-over-failed");
    }
}

fn least_loaded(worker: &Worker) -> usize {
    let loads = worker.doors.iter().map(|door| door.load.load(Ordering::Relaxed)).enumerate();
    loads.min_by_key(|(_, load)| *load).map_or(worker.index, |(index, _)| index)
}

/// Best effort: a fresh socket's buffer takes so few bytes at once.
fn refuse(stream: tokio::net::TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write_all(REFUSAL);
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
}

/// Errors of a connection that ended while it waited to be accepted.
fn is_of_one_connection(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}
