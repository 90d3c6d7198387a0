//! TCP between nodes, under mutual TLS 1.3 in the product: both sides show a certificate of the cluster's own
//! authority, and its common name is who they are. Files that change are for connections that come later.
//! Deliberately absent: what is said (`peers`), and making certificates (`seawall cluster init`).

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use data::BoxFuture;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{Acceptor, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::door::{self, Door, Fingerprint};
use super::{Accepted, Connection, Transport};
use crate::wal::lock;

/// A DNS name that every node's certificate carries, beside its own name as the common name: whoever connects does not
/// know yet which node answers, only that it must be one.
pub const PEER_NAME: &str = "peer.seawall.internal";

/// Longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// After an accept that failed (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where a node's part of the cluster's certificates is.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority's certificate (PEM).
    pub authority: PathBuf,
    /// This node's certificate (PEM).
    pub certificate: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
}

/// Certificates in force.
pub struct PeerTls {
    files: TlsFiles,
    current: Mutex<Current>,
}

struct Current {
    changed: Changed,
    both: Both,
}

#[derive(Clone)]
struct Both {
    server: Arc<ServerConfig>,
    /// For whoever knocks at the door: the one configuration that asks for no certificate.
    door: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl PeerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn open(files: TlsFiles) -> io::Result<Self> {
        let both = read(&files)?;
        let current = Current { changed: changed(&files), both };
        Ok(Self { files, current: current.into() })
    }

    fn current(&self) -> Both {
        lock(&self.current).both.clone()
    }

    /// Files that have changed are taken over; those that cannot be used leave what is in force.
    fn look(&self) {
        let changed = changed(&self.files);
        let mut current = lock(&self.current);
        if changed == current.changed {
            return;
        }
        current.changed = changed;
        let file = self.files.certificate.display();
        match read(&self.files) {
            Ok(both) => {
                current.both = both;
                tracing::info!(%file, "the node's changed certificate is in force");
            }
            Err(error) => {
                tracing::error!(%error, "the node's changed certificate cannot be used; the old one stays in force until the next start: mend the file");
            }
        }
    }
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerTls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// When each of the files changed.
type Changed = [Option<SystemTime>; 3];

fn changed(files: &TlsFiles) -> Changed {
    [&files.authority, &files.certificate, &files.key].map(|file| std::fs::metadata(file).ok()?.modified().ok())
}

fn read(files: &TlsFiles) -> io::Result<Both> {
    let authority = chain(&files.authority)?;
    let mut roots = RootCertStore::empty();
    for certificate in authority {
        roots.add(certificate).map_err(|error| unusable(&files.authority, &error))?;
    }
    let (roots, shown) = (Arc::new(roots), chain(&files.authority)?);
    let identity = || -> io::Result<_> {
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| unusable(&files.key, &error))?;
        Ok((chain(&files.certificate)?, key))
    };
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|error| unusable(&files.authority, &error))?;
    let only_1_3 = &[&rustls::version::TLS13];
    let (certificates, key) = identity()?;
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(only_1_3)
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .map_err(|error| unusable(&files.certificate, &error))?;
    server.send_tls13_tickets = 0;
    let (certificates, key) = identity()?;
    // The authority is shown, too: who knocks knows its fingerprint only.
    let certificates = certificates.into_iter().chain(shown).collect();
    let mut door = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(only_1_3)
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| unusable(&files.certificate, &error))?;
    door.send_tls13_tickets = 0;
    door.alpn_protocols = vec![door::PROTOCOL.to_vec()];
    let (certificates, key) = identity()?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(only_1_3)
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)
        .map_err(|error| unusable(&files.certificate, &error))?;
    Ok(Both { server: Arc::new(server), door: Arc::new(door), client: Arc::new(client) })
}

/// The fingerprint of the authority whose certificate is in a file.
///
/// # Errors
/// Why the file cannot be used.
pub fn authority_fingerprint(file: &Path) -> io::Result<Fingerprint> {
    let certificates = chain(file)?;
    let first = certificates.first().ok_or_else(|| unusable(file, &"there is no certificate in it"))?;
    Ok(door::fingerprint(first))
}

fn chain(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let certificates: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(file).map_err(|error| unusable(file, &error))?.collect();
    let certificates = certificates.map_err(|error| unusable(file, &error))?;
    if certificates.is_empty() {
        return Err(unusable(file, &"there is no certificate in it"));
    }
    Ok(certificates)
}

fn unusable(file: &Path, error: &dyn fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {error}", file.display()))
}

/// The node that a certificate of the cluster names.
fn name_of(certificates: Option<&[CertificateDer<'_>]>) -> io::Result<Arc<str>> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the other's certificate {what}"));
    let leaf = certificates.and_then(<[_]>::first).ok_or_else(|| invalid("is missing"))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).map_err(|_| invalid("cannot be read"))?;
    let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    name.map(Arc::from).ok_or_else(|| invalid("names no node"))
}

/// Connections over TCP.
#[derive(Debug)]
pub struct TcpTransport {
    /// None of a node that nobody connects to.
    listener: Option<TcpListener>,
    tls: Option<Arc<PeerTls>>,
    door: Arc<Door>,
}

impl TcpTransport {
    /// Takes over a listening socket; without `tls` everything is in the clear and nobody is who they say, which is
    /// for tests and benchmarks alone. Must be called on the runtime that will use it.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub fn new(listener: std::net::TcpListener, tls: Option<PeerTls>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener: Some(TcpListener::from_std(listener)?), tls: tls.map(Arc::new), door: Arc::default() })
    }

    /// The same for a node that only connects to others.
    pub fn outgoing(tls: Option<PeerTls>) -> Self {
        Self { listener: None, tls: tls.map(Arc::new), door: Arc::default() }
    }
}

impl Transport for TcpTransport {
    fn connect<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Connection>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let from = Some(stream.peer_addr()?.ip());
            let Some(tls) = &self.tls else {
                return Ok(Connection { stream: Box::new(stream), proved: None, from });
            };
            let any = ServerName::try_from(PEER_NAME).expect("the name is a DNS name");
            let handshake = TlsConnector::from(tls.current().client).connect(any, stream);
            let stream = within(handshake).await?;
            let proved = Some(name_of(stream.get_ref().1.peer_certificates())?);
            Ok(Connection { stream: Box::new(stream), proved, from })
        })
    }

    fn look(&self) {
        if let Some(tls) = &self.tls {
            tls.look();
        }
    }

    fn door(&self) -> Option<&Door> {
        // In the clear nobody is who they say.
        self.tls.is_some().then_some(&*self.door)
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<Accepted>> {
        Box::pin(async move {
            let Some(listener) = &self.listener else { return Err(io::ErrorKind::NotConnected.into()) };
            let (stream, peer) = loop {
                match listener.accept().await {
                    Ok(accepted) => break accepted,
                    Err(error) => {
                        tracing::warn!(%error, "a connection of another node could not be taken; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            };
            let (tls, door) = (self.tls.as_ref().map(|tls| tls.current()), Arc::clone(&self.door));
            let accepted: Accepted = Box::pin(async move {
                let finished = finish(stream, peer, tls, &door).await;
                finished.map_err(|error| io::Error::new(error.kind(), format!("from {}: {error}", peer.ip())))
            });
            Ok(accepted)
        })
    }
}

async fn finish(stream: TcpStream, peer: SocketAddr, tls: Option<Both>, door: &Door) -> io::Result<Option<Connection>> {
    stream.set_nodelay(true)?;
    let from = Some(peer.ip());
    let Some(tls) = tls else { return Ok(Some(Connection { stream: Box::new(stream), proved: None, from })) };
    let begun = within(LazyConfigAcceptor::new(Acceptor::default(), stream)).await?;
    let knocks = begun.client_hello().alpn().is_some_and(|mut names| names.any(|name| name == door::PROTOCOL));
    if knocks {
        let stream = within(begun.into_stream(tls.door)).await?;
        door.serve(stream).await?;
        return Ok(None);
    }
    let stream = within(begun.into_stream(tls.server)).await?;
    let proved = Some(name_of(stream.get_ref().1.peer_certificates())?);
    Ok(Some(Connection { stream: Box::new(stream), proved, from }))
}

async fn within<T>(handshake: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HANDSHAKE, handshake).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
