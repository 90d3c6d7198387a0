//! TLS around a question to an instance: whom its certificate must be for, and who vouches for it: the authorities of this
//! machine, as they are when the first question is asked (`SSL_CERT_FILE` and `SSL_CERT_DIR` are in place of them).
//! Deliberately absent: certificates of our own, and TLS that serves (the gateway's).

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

/// What a question travels on.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Connection for T {}

/// What is agreed on in the handshake.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Whom the certificate must be for: a host name or an address.
    pub name: &'a str,
    /// The certificate is not looked at.
    pub skip_verify: bool,
    /// The only protocol that will do (ALPN); any when empty.
    pub protocol: &'static [u8],
}

/// Makes the handshake. The caller bounds the time.
///
/// # Errors
/// In one line: no TLS there, a certificate that is not to be trusted, or another protocol.
pub async fn wrap(stream: impl Connection, terms: Terms<'_>) -> Result<impl Connection, String> {
    let name = ServerName::try_from(terms.name.to_owned())
        .map_err(|_| format!("TLS: {:?} is no name that a certificate can be for", terms.name))?;
    let config = config(terms).await?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = connected.map_err(|error| format!("TLS with {}: {error}", terms.name))?;
    if !terms.protocol.is_empty() && stream.get_ref().1.alpn_protocol() != Some(terms.protocol) {
        let wanted = String::from_utf8_lossy(terms.protocol);
        return Err(format!("TLS with {}: it does not agree to speak {wanted}", terms.name));
    }
    Ok(stream)
}

async fn config(terms: Terms<'_>) -> Result<ClientConfig, String> {
    let known = Arc::new(provider::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = if terms.skip_verify {
        Arc::new(Anybody(Arc::clone(&known)))
    } else {
        let roots = match KNOWN.get() {
            Some(roots) => Arc::clone(roots),
            None => tokio::task::spawn_blocking(authorities).await.map_err(|error| error.to_string())?,
        };
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&known))
            .build()
            .map_err(|_| "TLS: this machine knows no authorities: install them (ca-certificates)".to_owned())?
    };
    let mut config = ClientConfig::builder_with_provider(known)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // A name is asked for, an address is not (RFC 6066, section 3).
    config.enable_sni = terms.name.parse::<IpAddr>().is_err();
    if !terms.protocol.is_empty() {
        config.alpn_protocols = vec![terms.protocol.to_vec()];
    }
    Ok(config)
}

/// Whom this machine trusts, once it was asked.
static KNOWN: OnceLock<Arc<RootCertStore>> = OnceLock::new();

/// Reads the disk, the first time.
fn authorities() -> Arc<RootCertStore> {
    let read = || {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    };
    Arc::clone(KNOWN.get_or_init(read))
}

/// Takes every certificate. That the other side has its key is proved all the same.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, crypto::ring as provider};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_rustls::TlsAcceptor;

    use super::{Terms, wrap};
    use crate::prober::{grpc_check, h2_ping};

    /// A gRPC server that is SERVING, under TLS with a certificate that nobody has signed; HTTP/2 or nothing.
    async fn serve(protocol: &'static [u8]) -> std::net::SocketAddr {
        let made = rcgen::generate_simple_self_signed(["shop.local".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Who does not like the certificate has gone.
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                tokio::spawn(answer(stream));
            }
        });
        address
    }

    async fn answer(stream: impl super::Connection) {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let asked = request.uri().to_string();
            assert!(
                asked.starts_with("https://127.0.0.1:") && asked.ends_with("/grpc.health.v1.Health/Check"),
                "{asked}"
            );
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false).unwrap();
            body.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect()).unwrap();
        }
    }

    fn terms(skip_verify: bool) -> Terms<'static> {
        Terms { name: "shop.local", skip_verify, protocol: b"h2" }
    }

    #[tokio::test]
    async fn grpc_and_pings_go_over_tls_to_whoever_is_not_looked_at() {
        let address = serve(b"h2").await;
        let stream = wrap(TcpStream::connect(address).await.unwrap(), terms(true)).await.unwrap();
        assert_eq!(grpc_check(stream, &format!("https://{address}"), "").await, Ok(()));
        let stream = wrap(TcpStream::connect(address).await.unwrap(), terms(true)).await.unwrap();
        assert_eq!(h2_ping(stream).await, Ok(()));
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_signed_and_another_protocol_are_refused() {
        let refused = async |address, terms| {
            let stream = TcpStream::connect(address).await.unwrap();
            wrap(stream, terms).await.err().expect("it was refused")
        };
        let why = refused(serve(b"h2").await, terms(false)).await;
        assert!(why.starts_with("TLS"), "{why}");
        let why = refused(serve(b"http/1.1").await, terms(true)).await;
        assert!(why.starts_with("TLS with shop.local: "), "{why}");
        let why = refused(serve(b"h2").await, Terms { name: "a b", ..terms(true) }).await;
        assert!(why.contains("no name that a certificate can be for"), "{why}");
    }
}
