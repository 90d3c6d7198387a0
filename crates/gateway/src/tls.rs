//! TLS on both sides: which certificate a client is shown, which versions are spoken, whom an instance must be.
//! Used where a connection begins, before the request walk. Handshakes are rustls' with ring; this file only says
//! what they may do. Deliberately absent: reading files and noticing that they changed (the composition root does).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};

use crate::entry::Protocols;

/// Why certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text is no PEM, or the wrong kind.
    #[error("{what} cannot be read: {reason}")]
    Unreadable {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// The key does not belong to the certificate.
    #[error("the key does not belong to the certificate")]
    Mismatch,
    /// What rustls says.
    #[error("{0}")]
    Refused(String),
}

/// A chain with its key, and what the first certificate says of itself.
#[derive(Clone, Debug)]
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// DNS names (perhaps `*.example.com`) and IP addresses it is for.
    pub names: Vec<String>,
    /// When it begins, in seconds since the Unix epoch.
    pub begins_unix: i64,
    /// When it ends, in seconds since the Unix epoch.
    pub expires_unix: i64,
    /// Who signed it.
    pub issuer: String,
}

impl TlsError {
    /// Whether the key is at fault, or at least as much as the certificate.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::Mismatch | Self::Unreadable { what: "the key", .. })
    }
}

impl Certificate {
    /// Reads a PEM chain, leaf first, and its PEM key (PKCS#1, PKCS#8 or SEC1).
    ///
    /// # Errors
    /// Either cannot be read, or they do not belong together.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain = read_chain(chain, "the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| TlsError::Unreadable { what: "the key", reason: error.to_string() })?;
        let key = ring::sign::any_supported_type(&key)
            .map_err(|error| TlsError::Unreadable { what: "the key", reason: error.to_string() })?;
        facts(Arc::new(CertifiedKey::new(chain, key)))
    }
}

impl Certificate {
    /// The certificate itself, without those that vouch for it.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.key.cert[0]
    }

    /// A server that shows this to everybody and speaks one protocol, for a visit of an authority.
    pub(crate) fn shown_alone(&self, protocol: &[u8]) -> Result<ServerConfig, TlsError> {
        let by_name = ByName::new(std::slice::from_ref(self), &[])?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(MinVersion::Tls12.versions())
            .map_err(refused)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(by_name));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn read_chain(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unreadable = |reason| TlsError::Unreadable { what, reason };
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| unreadable(error.to_string()))?;
    if chain.is_empty() { Err(unreadable("no PEM block `CERTIFICATE` in it".into())) } else { Ok(chain) }
}

/// A chain and its key, if they belong together, with what the leaf says of itself.
fn facts(key: Arc<CertifiedKey>) -> Result<Certificate, TlsError> {
    use x509_parser::extensions::GeneralName;
    let unreadable = |reason: String| TlsError::Unreadable { what: "the certificate", reason };
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&key.cert[0]).map_err(|error| unreadable(error.to_string()))?;
    // Not rustls' own comparison: it reads no certificate with an extension that it does not know, as that of a challenge.
    if key.key.public_key().is_some_and(|public| *public != *parsed.public_key().raw) {
        return Err(TlsError::Mismatch);
    }
    let alternatives = parsed.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let named = alternatives.into_iter().flat_map(|names| &names.value.general_names);
    let names = named.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
        },
        _ => None,
    });
    let (names, issuer) = (names.collect(), parsed.issuer().to_string());
    let (begins_unix, expires_unix) =
        (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    Ok(Certificate { key, names, begins_unix, expires_unix, issuer })
}

/// The oldest version spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum MinVersion {
    /// TLS 1.2, with forward secrecy and authenticated ciphers only.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => &BOTH[..1],
        }
    }
}

/// Whether clients show a certificate.
#[derive(Clone, Debug, Default)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    None,
    /// They may; one that is not signed by these authorities (PEM) is refused.
    Optional(Vec<u8>),
    /// They must.
    Required(Vec<u8>),
}

impl ClientAuth {
    /// Whether its authorities can be used.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn check(&self) -> Result<(), TlsError> {
        self.verifier().map(drop)
    }

    fn verifier(&self) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let (Self::Optional(authorities) | Self::Required(authorities)) = self else { return Ok(None) };
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(read_roots(authorities)?), provider());
        let verifier = match self {
            Self::Optional(_) => verifier.allow_unauthenticated(),
            _ => verifier,
        };
        verifier.build().map(Some).map_err(|error| TlsError::Refused(error.to_string()))
    }
}

/// Whether PEM authorities can be used.
///
/// # Errors
/// They cannot be read.
pub fn check_authorities(pem: &[u8]) -> Result<(), TlsError> {
    read_roots(pem).map(drop)
}

/// What a listener offers under TLS. Cloning shares it.
#[derive(Clone, Debug)]
pub struct ServerTls(pub(crate) Arc<ServerConfig>);

/// What stays the same when a listener's certificates are replaced: the keys of its session tickets, so that clients
/// can resume sessions begun before.
#[derive(Clone, Debug)]
pub struct Tickets(Arc<dyn rustls::server::ProducesTickets>);

impl Tickets {
    /// New keys, which change by themselves every six hours.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new() -> Result<Self, TlsError> {
        ring::Ticketer::new().map(Self).map_err(refused)
    }
}

impl ServerTls {
    /// The first certificate is shown to clients that name none of the others' names, except those in `awaited`, for
    /// which there will be one: their handshakes fail.
    ///
    /// # Errors
    /// The authorities cannot be read; no certificate is given.
    pub fn new(
        certificates: &[Certificate],
        awaited: &[String],
        min_version: MinVersion,
        client_auth: &ClientAuth,
        tickets: &Tickets,
    ) -> Result<Self, TlsError> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(min_version.versions())
            .map_err(refused)?;
        let builder = match client_auth.verifier()? {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName::new(certificates, awaited)?));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.ticketer = tickets.0.clone();
        // Session ids (TLS 1.2 without tickets) would be kept per listener; tickets keep nothing.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        Ok(Self(Arc::new(config)))
    }

    /// Offers these versions of HTTP alone.
    #[must_use]
    pub fn speaking(mut self, protocols: Protocols) -> Self {
        let offered: &[&[u8]] = match protocols {
            Protocols::Both => &[b"h2", b"http/1.1"],
            Protocols::Http1 => &[b"http/1.1"],
            Protocols::Http2 => &[b"h2"],
        };
        Arc::make_mut(&mut self.0).alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        self
    }
}

/// Certificates by the name a client asks for.
#[derive(Debug)]
struct ByName {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By what stands behind `*`, with its dot.
    wild: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// Names that nobody is shown another certificate for.
    awaited: HashSet<String>,
    first: Arc<CertifiedKey>,
}

impl ByName {
    fn new(certificates: &[Certificate], awaited: &[String]) -> Result<Self, TlsError> {
        let first = certificates.first().ok_or_else(|| TlsError::Refused("no certificate is given".into()))?;
        let awaited = awaited.iter().cloned().collect();
        let mut by_name = Self { exact: HashMap::new(), wild: HashMap::new(), awaited, first: first.key.clone() };
        for certificate in certificates {
            for name in &certificate.names {
                let (map, name) = match name.strip_prefix('*') {
                    Some(suffix) => (&mut by_name.wild, suffix),
                    None => (&mut by_name.exact, name.as_str()),
                };
                map.entry(name.to_owned()).or_default().push(certificate.key.clone());
            }
        }
        Ok(by_name)
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let named = hello.server_name().map(str::to_ascii_lowercase);
        let found = named.as_deref().and_then(|name| {
            let behind_first_label = name.find('.').map(|dot| &name[dot..]);
            self.exact.get(name).or_else(|| self.wild.get(behind_first_label?))
        });
        // Of several for one name (RSA and ECDSA), the first that the client can verify.
        let verifiable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        let chosen = found.and_then(|keys| keys.iter().find(verifiable).or(keys.first()));
        match (chosen, named) {
            (None, Some(name)) if self.awaited.contains(&name) => None,
            (chosen, _) => Some(chosen.unwrap_or(&self.first).clone()),
        }
    }
}

/// How an instance is spoken to under TLS. Equal only to itself and its clones.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub(crate) http1: Arc<ClientConfig>,
    pub(crate) http2: Arc<ClientConfig>,
    /// Asked for and verified; the instance's address when absent.
    pub(crate) server_name: Option<ServerName<'static>>,
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.http1, &other.http1)
    }
}

impl Eq for ClientTls {}

/// Whom an instance must be.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Signed by one of these authorities (PEM).
    Authorities(Vec<u8>),
    /// Whoever it says it is: encrypted, but not verified.
    Anybody,
}

impl ClientTls {
    /// `identity` is the PEM chain and key shown to instances that ask for one.
    ///
    /// # Errors
    /// The authorities, the identity or the name cannot be read.
    pub fn new(trust: &Trust, server_name: Option<&str>, identity: Option<(&[u8], &[u8])>) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(MinVersion::Tls12.versions())
            .map_err(refused)?;
        let builder = match trust {
            Trust::Authorities(pem) => builder.with_root_certificates(read_roots(pem)?),
            Trust::Anybody => builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(provider()))),
        };
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let chain = read_chain(chain, "the client certificate")?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| TlsError::Unreadable { what: "the client key", reason: error.to_string() })?;
                builder.with_client_auth_cert(chain, key).map_err(refused)?
            }
        };
        let server_name = server_name
            .map(|name| ServerName::try_from(name.to_owned()))
            .transpose()
            .map_err(|error| TlsError::Refused(format!("the server name: {error}")))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = Arc::new(config.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { http1, http2: Arc::new(config), server_name })
    }
}

fn read_roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in read_chain(pem, "the authorities' file")? {
        roots.add(authority).map_err(refused)?;
    }
    Ok(roots)
}

/// Takes any certificate, but no forged handshake.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn refused(error: rustls::Error) -> TlsError {
    TlsError::Refused(error.to_string())
}
