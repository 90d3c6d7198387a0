//! Serves the API on a socket that the keeper bound.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

use crate::authority::Peer;

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

/// Starts serving `router` on `listener`.
///
/// # Errors
/// The operating system's.
pub fn serve(listener: TcpListener, router: Router) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(accept(listener, router, stopped));
    Ok(Server { stop, task })
}

/// Accepts until stopped, then waits for the connections there are.
async fn accept(listener: tokio::net::TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // An error means the server's handle is gone, which is a stop as well.
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, remote)) => {
                let (router, stopped) = (router.clone(), stopped.clone());
                tokio::spawn(async move {
                    connection(stream, remote, router, stopped).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the API could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    let all = u32::try_from(MAX_CONNECTIONS).expect("a small constant");
    // Ignored: nobody closes the semaphore.
    let _ = places.acquire_many(all).await;
}

async fn connection(stream: TcpStream, remote: SocketAddr, router: Router, mut stopped: watch::Receiver<bool>) {
    let peer = Peer::new(stream.local_addr().unwrap_or(remote), remote);
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer.clone()));
        router.clone().oneshot(request)
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).half_close(true);
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
