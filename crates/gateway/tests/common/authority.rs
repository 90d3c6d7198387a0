//! An authority of a test's own, a listener that shows its certificate for `localhost`, and clients that trust it.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use gateway::Manner;
use gateway::tls::{Certificate, ClientAuth, MinVersion, ServerTls, Tickets};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Signs one certificate.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// A listener under TLS.
    pub fn manner(&self) -> Manner {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let chain = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap().pem();
        let certificate = Certificate::read(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
        let offered = ServerTls::new(
            &[certificate],
            &[],
            MinVersion::default(),
            &ClientAuth::default(),
            &Tickets::new().unwrap(),
        );
        Manner { tls: Some(ArcSwapOption::from_pointee(offered.unwrap())), ..Manner::default() }
    }

    /// Connects as a client that offers one protocol.
    pub async fn connect(&self, address: SocketAddr, protocol: &str) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.issuer.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}
