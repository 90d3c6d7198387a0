//! How bytes get from node to node: the seam below everything that peers say to each other.
//! Two implementations: TCP, under TLS in the product, and a network in memory whose cables tests can cut.
//! Deliberately absent: frames, who may speak, and when to try again (`peers`).

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use data::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

mod door;
mod memory;
mod tcp;

pub use door::{CertificateAnswer, CertificateRequest, Certifier, Door, Fingerprint, knock};
pub use memory::{MemoryNetwork, MemoryTransport};
pub use tcp::{PEER_NAME, PeerTls, TcpTransport, TlsFiles, authority_fingerprint};

/// Bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection between two nodes.
pub struct Connection {
    /// Its bytes.
    pub stream: Box<dyn Stream>,
    /// The other's name, where the transport has proved it (by a certificate).
    pub proved: Option<Arc<str>>,
    /// The other's IP address, where there is one.
    pub from: Option<std::net::IpAddr>,
}

/// Makes and takes connections.
pub trait Transport: Debug + Send + Sync + 'static {
    /// Connects to an address as nodes tell it to each other (`host:port`).
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>>;

    /// Looks at the files it rests on, if it rests on any, and takes changed ones over.
    fn look(&self) {}

    /// The door for nodes that have no certificate yet, where there are certificates.
    fn door(&self) -> Option<&Door> {
        None
    }

    /// The next connection that somebody else made. What fails before the connection is usable (a handshake) is an
    /// error of that connection alone; `ErrorKind::NotConnected` means that no more will come.
    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>>;
}

/// A connection whose handshake may still be under way, so that a slow one holds up nobody. There is none if somebody
/// came to the door and has had an answer.
pub type Accepted = BoxFuture<'static, io::Result<Option<Connection>>>;
