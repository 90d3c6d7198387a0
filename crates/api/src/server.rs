//! Serves the API on a socket that the keeper bound.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::authority::Peer;
use crate::hot::Answers;

/// The running API.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Connections at a time; a further one waits in the system's backlog. Few: the API is for operators and their tools,
/// and must never take the descriptors that the gateway and the probes need.
const MAX_CONNECTIONS: usize = 512;
/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server allows.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    connections: usize,
    head: Duration,
}

/// Starts serving `answers` on `listener`.
///
/// # Errors
/// The operating system's.
pub fn serve(listener: TcpListener, answers: Answers) -> io::Result<Server> {
    serve_within(listener, answers, Bounds { connections: MAX_CONNECTIONS, head: HEAD_TIMEOUT })
}

fn serve_within(listener: TcpListener, answers: Answers, bounds: Bounds) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(accept(listener, answers, bounds, stopped));
    Ok(Server { stop, task })
}

/// Accepts until stopped, then waits for the connections there are.
async fn accept(
    listener: tokio::net::TcpListener,
    answers: Answers,
    bounds: Bounds,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(bounds.connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error means the server's handle is gone, which is a stop as well.
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let (answers, stopped) = (answers.clone(), stopped.clone());
                tokio::spawn(async move {
                    connection(stream, remote, answers, bounds.head, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let all = u32::try_from(bounds.connections).expect("a small number");
    // Ignored: nobody closes the semaphore.
    let _ = places.acquire_many(all).await;
}

async fn connection(
    stream: TcpStream,
    remote: SocketAddr,
    answers: Answers,
    head: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let peer = Peer::new(stream.local_addr().unwrap_or(remote), remote);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (answers, peer) = (answers.clone(), peer.clone());
        async move { Ok::<_, Infallible>(answers.answer(&peer, request.map(Body::new)).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head).half_close(true);
    let mut served = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // A client that went away or spoke no HTTP is no news.
        _ = served.as_mut() => return,
        _ = stopped.wait_for(|stop| *stop) => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

impl Server {
    /// Stops accepting. Requests under way get `patience`, watches end with the process.
    pub async fn stop(self, patience: Duration) {
        self.stop.send_replace(true);
        let abort = self.task.abort_handle();
        if tokio::time::timeout(patience, self.task).await.is_err() {
            abort.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::time::Duration;

    use axum::Router;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio::time::{Instant, timeout};

    use crate::hot::Answers;

    use super::{Bounds, HEAD_TIMEOUT, MAX_CONNECTIONS, Server};

    /// Nothing that is waited for takes this long; what must not happen is watched for as long as [`MOMENT`].
    const PATIENCE: Duration = Duration::from_secs(20);
    const MOMENT: Duration = Duration::from_millis(200);

    fn start(bounds: Bounds) -> (Server, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        (super::serve_within(listener, Answers::new(router, None), bounds).unwrap(), address)
    }

    /// Connects and sends this.
    async fn send(address: SocketAddr, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// One answer's worth of bytes, or the end of the connection.
    async fn read(stream: &mut TcpStream) -> io::Result<String> {
        let mut bytes = vec![0; 4096];
        let length = stream.read(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    const ASK: &str = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    #[tokio::test]
    async fn so_many_connections_and_no_more_until_one_ends() {
        let (server, address) = start(Bounds { connections: 2, head: PATIENCE });
        let mut first = send(address, ASK).await;
        let mut second = send(address, ASK).await;
        for stream in [&mut first, &mut second] {
            assert!(timeout(PATIENCE, read(stream)).await.unwrap().unwrap().starts_with("HTTP/1.1 200"));
        }
        let mut third = send(address, ASK).await;
        assert!(timeout(MOMENT, read(&mut third)).await.is_err(), "a third one is not served beside the two");
        drop(first);
        let answer = timeout(PATIENCE, read(&mut third)).await.expect("its turn has come").unwrap();
        assert!(answer.ends_with("here"), "{answer}");
        server.stop(MOMENT).await;
    }

    #[tokio::test]
    async fn a_connection_whose_head_does_not_come_is_closed_and_frees_its_place() {
        let head = Duration::from_millis(150);
        let (server, address) = start(Bounds { connections: 1, head });
        for beginning in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: localhost\r\n"] {
            let began = Instant::now();
            let mut slow = send(address, beginning).await;
            // Whatever is said before, the connection ends; a reset is an end, too.
            let ended = async { while read(&mut slow).await.is_ok_and(|text| !text.is_empty()) {} };
            timeout(PATIENCE, ended).await.unwrap_or_else(|_| panic!("{beginning:?} is kept open"));
            assert!(began.elapsed() >= head, "{beginning:?} was cut off after {:?}", began.elapsed());
            let mut next = send(address, ASK).await;
            let answer = timeout(PATIENCE, read(&mut next)).await.expect("the place is free").unwrap();
            assert!(answer.ends_with("here"), "{answer}");
            // An idle connection counts as one whose next head does not come.
            assert_eq!(timeout(PATIENCE, read(&mut next)).await.unwrap().unwrap_or_default(), "");
        }
        server.stop(MOMENT).await;
    }

    #[test]
    fn the_bounds_of_the_product_are_those_of_its_documentation() {
        assert_eq!((MAX_CONNECTIONS, HEAD_TIMEOUT), (512, Duration::from_secs(10)));
    }
}
