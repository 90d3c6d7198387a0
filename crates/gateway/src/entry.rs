//! From an accepted socket to a client that is served: PROXY header, TLS, which HTTP it speaks.
//! Between accept and the request walk. All of it counts inside the time a client has for its first head.
//! Deliberately absent: what is done with requests.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use model::ServiceName;
use tokio::net::TcpStream;

use crate::carrier::Carrier;
use crate::challenge::Greeted;
use crate::connection::{self, Origin};
use crate::handshake;
use crate::http2;
use crate::proxy_protocol;
use crate::tcp;
use crate::tls::ServerTls;
use crate::worker::Worker;

/// The versions of HTTP a listener speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Protocols {
    /// Told apart by ALPN under TLS, by the first bytes in the clear.
    #[default]
    Both,
    /// HTTP/1.0 and HTTP/1.1: the preface of HTTP/2 is answered 505.
    Http1,
    /// HTTP/2: a connection that does not begin with its preface is closed (RFC 9113, 3.4).
    Http2,
}

/// How a listener treats its connections.
#[derive(Debug, Default)]
pub struct Manner {
    /// Under TLS; what is put in later is for connections that come later. While nothing is in it connections are
    /// closed: they are never served in the clear instead.
    pub tls: Option<ArcSwapOption<ServerTls>>,
    /// Each connection begins with a PROXY protocol header (version 1 or 2) that names the client; one without it is
    /// closed.
    pub proxy_protocol: bool,
    /// The versions of HTTP spoken.
    pub protocols: Protocols,
    /// Not HTTP: bytes go to an instance of this service as they come.
    pub tcp: Option<ServiceName>,
}

/// Connections by client address, over all workers and listeners.
#[derive(Debug, Default)]
pub(crate) struct Clients(Mutex<HashMap<IpAddr, u32>>);

/// One of a client's connections.
struct Counted<'a> {
    clients: &'a Clients,
    address: IpAddr,
}

impl Clients {
    fn add(&self, address: IpAddr, most: u32) -> Option<Counted<'_>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted { clients: self, address })
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut counts = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Serves one connection from its first byte to its last. A task is as large as the largest of its ways, and most
/// clients wait on the plain one: what is rarer or passes soon is in boxes.
pub(crate) async fn enter(worker: &Rc<Worker>, mut stream: TcpStream, peer: SocketAddr, manner: &Manner) {
    let mut origin = Origin::new(peer);
    if manner.proxy_protocol {
        match within(worker, proxy_protocol::read(&mut stream)).await {
            Ok(Some(client)) => origin = Origin::new(client),
            // `LOCAL` and `UNKNOWN`: the proxy itself, as when it checks health.
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%peer, %error, "no PROXY header");
                return worker.metrics.refused("no-proxy-header");
            }
        }
    }
    origin.trusted = worker.options.trusted_proxies.iter().any(|network| network.contains(origin.peer.ip()));
    let most = worker.options.max_connections_per_client;
    let counted = if most == 0 { None } else { worker.clients.add(origin.peer.ip().to_canonical(), most) };
    if most != 0 && counted.is_none() {
        return worker.metrics.refused("too-many-connections-of-client");
    }
    let mut speaks_http2 = false;
    let carrier = match &manner.tls {
        None => Carrier::Plain(stream),
        Some(tls) => {
            let usual = tls.load_full().map(|tls| tls.0.clone());
            let greeted = match (worker.options.challenges.visits(), usual) {
                (Some(visits), usual) => Box::pin(within(worker, visits.accept(stream, usual))).await,
                (None, Some(usual)) => {
                    let accept = async { tokio_rustls::TlsAcceptor::from(usual).accept(stream).await };
                    Box::pin(within(worker, accept)).await.map(|stream| Greeted::Client(Box::new(stream.into())))
                }
                (None, None) => Ok(Greeted::Nobody),
            };
            match greeted {
                Ok(Greeted::Visit) => return tracing::debug!(peer = %origin.peer, "challenge answered under TLS"),
                Ok(Greeted::Nobody) => return worker.metrics.refused("no-certificate"),
                Ok(Greeted::Client(accepted)) => {
                    let session = accepted.get_ref().1;
                    speaks_http2 = session.alpn_protocol() == Some(b"h2");
                    let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
                    worker.metrics.tls_handshake(session.protocol_version(), resumed);
                    origin.scheme = "https";
                    Carrier::Tls(accepted)
                }
                Err(error) => {
                    tracing::debug!(peer = %origin.peer, %error, "TLS handshake failed");
                    return worker.metrics.tls_failed(handshake::with_client(&error));
                }
            }
        }
    };
    match &manner.tcp {
        Some(service) => Box::pin(tcp::serve(worker, carrier, origin, service)).await,
        None if speaks_http2 || manner.protocols == Protocols::Http2 => {
            Box::pin(http2::serve(worker, carrier, origin)).await
        }
        None => connection::serve(worker, carrier, origin, manner.protocols).await,
    }
}

async fn within<T>(worker: &Worker, step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limit = worker.options.header_timeout;
    tokio::time::timeout(limit, step).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::enter;

    /// Ten thousand idle clients are ten thousand of these.
    #[test]
    fn a_connection_at_rest_is_small() {
        fn size<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size::<&'static _, _, _, &'static _, _>(enter);
        assert!(bytes <= 3_584, "{bytes} bytes");
    }
}
