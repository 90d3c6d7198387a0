//! The door for nodes that have no certificate yet: on the peers' port, for whoever names its protocol in the handshake,
//! without a certificate. Exactly one thing can be said there, a token with a request for a certificate, and one answer
//! comes back; then the connection ends. It never becomes a connection between nodes: nothing else is reached through it.
//! Deliberately absent: what a token is worth (`Certifier`, which the node supplies), and files.

use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use data::BoxFuture;
use ring::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::PEER_NAME;
use crate::peers::certify::CertifiedV1;
use crate::wire::{self, Bin};

/// The protocol that is named in the handshake (ALPN).
pub(super) const PROTOCOL: &[u8] = b"seawall-join/1";
/// Longest message in either direction.
const MOST_BYTES: usize = 16 * 1024;
/// Who is served at once; a further one is turned away.
const AT_ONCE: usize = 4;
/// Longest time for one who knocks, from connecting to the answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// SHA-256 of a certificate.
pub type Fingerprint = [u8; 32];

/// What a certificate is asked for with.
#[derive(Clone, PartialEq, Eq)]
pub enum CertificateRequest {
    /// Only whether this node can sign.
    Can,
    /// Another certificate for the node that asks, whose name its present one has proved.
    Renewal {
        /// The proved name.
        name: Arc<str>,
        /// A certificate signing request (DER).
        request: Vec<u8>,
    },
    /// The first certificate of a node, for a token.
    Joining {
        /// The token's secret.
        secret: String,
        /// The name it wants.
        name: String,
        /// A certificate signing request (DER).
        request: Vec<u8>,
        /// Another member passed it on, which cannot sign itself.
        relayed: bool,
    },
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CertificateAnswer {
    /// It can sign.
    Can,
    /// Signed.
    Signed {
        /// The node's certificate (PEM).
        certificate: String,
        /// The authority's (PEM).
        authority: String,
    },
    /// The authority's key is not here.
    Elsewhere,
    /// No, and why.
    Refused(String),
}

/// Signs, or says why not.
pub type Certifier = Arc<dyn Fn(CertificateRequest) -> BoxFuture<'static, CertificateAnswer> + Send + Sync>;

/// The door of one node; shut until a certifier stands behind it.
pub struct Door {
    certifier: OnceLock<Certifier>,
    places: Semaphore,
}

impl Default for Door {
    fn default() -> Self {
        Self { certifier: OnceLock::new(), places: Semaphore::new(AT_ONCE) }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("open", &self.certifier.get().is_some()).finish_non_exhaustive()
    }
}

/// All that can be said at the door.
#[derive(Serialize, Deserialize)]
struct JoiningV1 {
    secret: String,
    name: String,
    request: Bin,
}

impl Door {
    /// Opens it, once.
    pub(crate) fn open(&self, certifier: Certifier) {
        // A second one changes nothing.
        let _ = self.certifier.set(certifier);
    }

    pub(crate) async fn certify(&self, request: CertificateRequest) -> CertificateAnswer {
        match self.certifier.get() {
            Some(certifier) => certifier(request).await,
            None => CertificateAnswer::Elsewhere,
        }
    }

    /// Serves one that knocked. The caller bounds the time.
    pub(super) async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let Ok(_place) = self.places.try_acquire() else {
            return Err(io::Error::other("too many nodes ask for a certificate at once"));
        };
        let JoiningV1 { secret, name, request } = receive(&mut stream).await?;
        let request = CertificateRequest::Joining { secret, name, request: request.0.to_vec(), relayed: false };
        let answer = self.certify(request).await;
        send(&mut stream, &CertifiedV1::from(answer)).await?;
        stream.shutdown().await
    }
}

/// Asks the member at `address` for a node's first certificate. Only a member whose authority has this fingerprint gets
/// to see the secret.
///
/// # Errors
/// Nobody answers there in time, or somebody else does.
pub async fn knock(
    address: &str,
    authority: Fingerprint,
    (secret, name): (&str, &str),
    request: &[u8],
) -> io::Result<CertificateAnswer> {
    let asked = JoiningV1 { secret: secret.to_owned(), name: name.to_owned(), request: Bin(request.to_vec().into()) };
    let all = async {
        let stream = TcpStream::connect(address).await?;
        let member = ServerName::try_from(PEER_NAME).expect("the name is a DNS name");
        let mut stream = TlsConnector::from(Arc::new(client(authority)?)).connect(member, stream).await?;
        send(&mut stream, &asked).await?;
        receive::<CertifiedV1>(&mut stream).await.map(CertificateAnswer::from)
    };
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| Err(late()))
}

/// SHA-256 of a certificate, by which it is known again.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Fingerprint {
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest(&SHA256, certificate).as_ref());
    fingerprint
}

fn client(authority: Fingerprint) -> io::Result<ClientConfig> {
    let provider = Arc::new(provider::default_provider());
    let pinned = Arc::new(Pinned { authority, provider: provider.clone() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// Trusts the one authority of this fingerprint, which the other shows beside its own certificate; everything else is
/// checked as ever.
#[derive(Debug)]
struct Pinned {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|shown| fingerprint(shown) == self.authority);
        let authority = authority.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is spoken here, nothing older".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

async fn send<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), value: &T) -> io::Result<()> {
    let bytes = wire::encode(value);
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_le_bytes(), &bytes[..]].concat()).await?;
    stream.flush().await
}

async fn receive<T: for<'de> Deserialize<'de>>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32_le().await? as usize;
    if length > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message is longer than any"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    wire::decode(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
