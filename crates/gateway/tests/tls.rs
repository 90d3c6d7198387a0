//! TLS towards clients and instances: whose certificate is shown, which versions are spoken, who is let in, and that
//! a new certificate disturbs nobody. The other side is rustls driven by this file.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use common::{Instance, PATIENCE, Rig, endpoint, endpoints_of, ok};
use gateway::tls::{Certificate, ClientAuth, ClientTls, MinVersion, ServerTls, Tickets, Trust};
use gateway::{Endpoints, Manner, Options, Upstream};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// An authority of this test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A chain and its key, as PEM.
type Pair = (String, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, names: &[&str]) -> Pair {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client that trusts this authority.
    fn client(&self, alpn: &[&str], identity: Option<&Pair>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain_of(chain), key_of(key)).unwrap(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

fn chain_of(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect()
}

fn key_of(pem: &str) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn read((chain, key): &Pair) -> Certificate {
    Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap()
}

fn offer(pairs: &[&Pair], min_version: MinVersion, auth: &ClientAuth) -> ServerTls {
    let certificates: Vec<_> = pairs.iter().map(|pair| read(pair)).collect();
    ServerTls::new(&certificates, &[], min_version, auth, &Tickets::new().unwrap()).unwrap()
}

fn rig(offered: ServerTls, instance: &Instance) -> Rig {
    let manner = Manner { tls: Some(ArcSwapOption::from_pointee(offered)), ..Manner::default() };
    Rig::mannered(manner, Options { workers: 1, ..Options::default() }, endpoints_of(&[instance]))
}

async fn connect(address: SocketAddr, name: &str, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn get(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await?;
    let mut text = String::new();
    while !text.ends_with("answer") {
        let mut chunk = [0; 4_096];
        let count = tokio::time::timeout(PATIENCE, stream.read(&mut chunk)).await??;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        text.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
    }
    Ok(text)
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[test]
fn the_certificate_shown_is_the_one_asked_for() {
    let authority = Authority::new();
    let (first, exact, wild) =
        (authority.issue(&["first.test"]), authority.issue(&["shop.test"]), authority.issue(&["*.shop.test"]));
    let instance = Instance::answering("answer");
    let rig = rig(offer(&[&first, &exact, &wild], MinVersion::Tls12, &ClientAuth::None), &instance);
    runtime().block_on(async {
        for (name, wanted) in
            [("shop.test", &exact), ("SHOP.test", &exact), ("a.shop.test", &wild), ("first.test", &first)]
        {
            let mut stream = connect(rig.address, name, authority.client(&["http/1.1"], None)).await.unwrap();
            assert_eq!(shown(&stream), chain_of(&wanted.0)[0], "{name}");
            assert!(get(&mut stream).await.unwrap().starts_with("HTTP/1.1 200"), "{name}");
        }
        // Too deep for the wildcard: the first certificate, which such a client refuses.
        assert!(connect(rig.address, "a.b.shop.test", authority.client(&[], None)).await.is_err());
    });
    rig.expect_metric("tls_handshakes_total{version=\"1.3\",resumed=\"no\"} 4");
    let head = String::from_utf8(instance.seen()).unwrap();
    assert!(head.contains("X-Forwarded-Proto: https\r\n"), "{head}");
}

#[test]
fn alpn_chooses_the_version_of_http() {
    let authority = Authority::new();
    let pair = authority.issue(&["shop.test"]);
    let instance = Instance::answering("answer");
    let rig = rig(offer(&[&pair], MinVersion::Tls12, &ClientAuth::None), &instance);
    runtime().block_on(async {
        let stream = connect(rig.address, "shop.test", authority.client(&["h2", "http/1.1"], None)).await.unwrap();
        let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = http::Request::get("https://shop.test/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        assert_eq!(tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 200);
        let mut stream = connect(rig.address, "shop.test", authority.client(&[], None)).await.unwrap();
        assert!(get(&mut stream).await.unwrap().starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn old_versions_and_plain_text_are_refused() {
    let authority = Authority::new();
    let pair = authority.issue(&["shop.test"]);
    let instance = Instance::answering("answer");
    let rig = rig(offer(&[&pair], MinVersion::Tls13, &ClientAuth::None), &instance);
    runtime().block_on(async {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let old = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        assert!(connect(rig.address, "shop.test", old).await.is_err());
    });
    rig.expect_metric("tls_handshakes_failed_total{reason=\"nothing-in-common\"} 1");
    let mut plain = rig.client();
    plain.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    plain.until_end();
    rig.expect_metric("tls_handshakes_failed_total{reason=\"not-tls\"} 1");
    assert_eq!(instance.accepted(), 0);
}

#[test]
fn clients_show_a_certificate_where_they_must() {
    let (authority, other) = (Authority::new(), Authority::new());
    let pair = authority.issue(&["shop.test"]);
    let (known, unknown) = (authority.issue(&["client"]), other.issue(&["client"]));
    let instance = Instance::answering("answer");
    let pem = authority.pem().into_bytes();
    for (auth, nobody_enters) in [(ClientAuth::Required(pem.clone()), false), (ClientAuth::Optional(pem), true)] {
        let rig = rig(offer(&[&pair], MinVersion::Tls12, &auth), &instance);
        runtime().block_on(async {
            for (identity, enters) in [(Some(&known), true), (Some(&unknown), false), (None, nobody_enters)] {
                // With TLS 1.3 a client learns of the refusal with its first read.
                let got = match connect(rig.address, "shop.test", authority.client(&[], identity)).await {
                    Ok(mut stream) => get(&mut stream).await,
                    Err(error) => Err(error),
                };
                assert_eq!(got.is_ok(), enters, "{auth:?}: {got:?}");
            }
        });
    }
}

#[test]
fn a_new_certificate_is_for_new_connections_and_sessions_are_resumed() {
    let authority = Authority::new();
    let (old, new) = (authority.issue(&["shop.test"]), authority.issue(&["shop.test"]));
    let tickets = Tickets::new().unwrap();
    let make = |pair| ServerTls::new(&[read(pair)], &[], MinVersion::Tls12, &ClientAuth::None, &tickets).unwrap();
    let instance = Instance::answering("answer");
    let manner = Arc::new(Manner { tls: Some(ArcSwapOption::from_pointee(make(&old))), ..Manner::default() });
    let rig = Rig::sharing(manner.clone(), Options { workers: 1, ..Options::default() }, endpoints_of(&[&instance]));
    runtime().block_on(async {
        let config = authority.client(&[], None);
        let mut before = connect(rig.address, "shop.test", config.clone()).await.unwrap();
        get(&mut before).await.unwrap();
        manner.tls.as_ref().unwrap().store(Some(Arc::new(make(&new))));
        let mut after = connect(rig.address, "shop.test", authority.client(&[], None)).await.unwrap();
        assert_eq!(shown(&after), chain_of(&new.0)[0]);
        get(&mut after).await.unwrap();
        get(&mut before).await.unwrap();
        let mut resumed = connect(rig.address, "shop.test", config).await.unwrap();
        get(&mut resumed).await.unwrap();
        assert_eq!(resumed.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    });
    rig.expect_metric("tls_handshakes_total{version=\"1.3\",resumed=\"yes\"} 1");
}

#[test]
fn a_client_that_never_greets_is_let_go() {
    let authority = Authority::new();
    let pair = authority.issue(&["shop.test"]);
    let manner = Manner {
        tls: Some(ArcSwapOption::from_pointee(offer(&[&pair], MinVersion::Tls12, &ClientAuth::None))),
        ..Manner::default()
    };
    let options = Options { workers: 1, header_timeout: Duration::from_millis(50), ..Options::default() };
    let rig = Rig::mannered(manner, options, Endpoints::default());
    rig.client().assert_closed();
    rig.expect_metric("tls_handshakes_failed_total{reason=\"timeout\"} 1");
}

#[test]
fn mistakes_in_files_are_named() {
    let authority = Authority::new();
    let (one, two) = (authority.issue(&["one.test", "10.0.0.1"]), authority.issue(&["two.test"]));
    let message = |chain: &str, key: &str| Certificate::read(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string();
    assert_eq!(message(&one.0, &two.1), "the key does not belong to the certificate");
    assert!(message(&one.1, &one.1).contains("no PEM block `CERTIFICATE`"));
    assert!(message(&one.0, &one.0).starts_with("the key cannot be read"));
    assert!(message("", "").starts_with("the certificate cannot be read"));
    let read = read(&one);
    assert_eq!(read.names, ["one.test", "10.0.0.1"]);
    assert!(read.expires_unix > 1_700_000_000, "{}", read.expires_unix);
}

/// An instance under TLS that speaks HTTP/1.1, with a certificate for `names`.
async fn instance_under_tls(authority: &Authority, names: &[&str]) -> SocketAddr {
    let (chain, key) = authority.issue(names);
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain_of(&chain), key_of(&key))
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut chunk = [0; 4_096];
                while stream.read(&mut chunk).await.is_ok_and(|count| count > 0) {
                    stream.write_all(ok("answer").as_bytes()).await.unwrap();
                }
            });
        }
    });
    address
}

/// The same on a thread of its own.
fn start_under_tls(authority: &Arc<Authority>, names: &'static [&'static str]) -> SocketAddr {
    let (sender, address) = std::sync::mpsc::channel();
    let issuer = authority.clone();
    std::thread::spawn(move || {
        runtime().block_on(async move {
            sender.send(instance_under_tls(&issuer, names).await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    address.recv().unwrap()
}

fn trusting(trust: &Trust, name: Option<&str>) -> Upstream {
    Upstream { tls: Some(ClientTls::new(trust, name, None).unwrap()), ..Upstream::default() }
}

#[test]
fn an_instance_must_be_whom_it_should_be() {
    let (authority, other) = (Arc::new(Authority::new()), Authority::new());
    let address = start_under_tls(&authority, &["instance.test", "127.0.0.1"]);
    let own = || Trust::Authorities(authority.pem().into_bytes());
    let wrong_name = "instance-tls:certificate-of-another-name";
    for (trust, name, refusal) in [
        (own(), None, None),
        (own(), Some("instance.test"), None),
        (own(), Some("other.test"), Some(wrong_name)),
        (Trust::Authorities(other.pem().into_bytes()), None, Some("instance-tls:certificate-not-trusted")),
        (Trust::Anybody, Some("other.test"), None),
    ] {
        let upstream = trusting(&trust, name);
        let rig = Rig::new(Endpoints { endpoints: vec![endpoint("s-0", address)], upstream, ..Endpoints::default() });
        let mut client = rig.client();
        for _ in 0..3 {
            client.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
            match refusal {
                None => assert_eq!(client.response().status, 200, "{trust:?} {name:?}"),
                Some(reason) => client.response().assert_reason(502, reason),
            }
        }
        if refusal.is_none() {
            rig.expect_metric("pool_connections{service=\"s\",instance=\"s-0\",state=\"idle\"} 1");
        }
    }
}

#[test]
fn an_instance_that_is_not_trusted_is_no_reason_to_wait_and_another_one_is_tried() {
    let (authority, other) = (Arc::new(Authority::new()), Arc::new(Authority::new()));
    let (good, bad) = (start_under_tls(&authority, &["127.0.0.1"]), start_under_tls(&other, &["127.0.0.1"]));
    let plain = Instance::start(|mut conn| {
        conn.some();
        conn.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let upstream = trusting(&Trust::Authorities(authority.pem().into_bytes()), None);
    // A wait would be longer than any client of this test listens.
    let hold = Some(gateway::HoldPolicy { max_wait: PATIENCE * 10, max_requests: 9 });
    let endpoints = |all: &[(&str, SocketAddr)]| Endpoints {
        endpoints: all.iter().map(|(id, address)| endpoint(id, *address)).collect(),
        upstream: upstream.clone(),
        hold,
        ..Endpoints::default()
    };
    let mut rig = Rig::new(endpoints(&[("s-0", bad)]));
    for _ in 0..3 {
        rig.get("/").assert_reason(502, "instance-tls:certificate-not-trusted");
    }
    rig.expect_metric("instance_tls_failed_total{service=\"s\",instance=\"s-0\",reason=\"certificate-not-trusted\"} 3");
    // Whichever is asked first, one other is asked, with a body as well.
    rig.service.set_endpoints(endpoints(&[("s-0", bad), ("s-1", good)])).unwrap();
    for _ in 0..20 {
        assert_eq!(rig.get("/").status, 200);
        let mut client = rig.client();
        client.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(client.response().status, 200);
    }
    rig.service.set_endpoints(endpoints(&[("s-0", bad), ("s-2", plain.address)])).unwrap();
    let reason = rig.get("/").header("seawall-reason").unwrap().to_owned();
    assert!(reason == "instance-tls:not-tls" || reason == "instance-tls:certificate-not-trusted", "{reason}");
    // Health hears nothing: such an instance lives.
    while let Ok(signal) = rig.signals.try_recv() {
        assert!(!matches!(signal, gateway::Signal::ConnectFailed { .. }), "{signal:?}");
    }
}

#[test]
fn a_tcp_client_of_an_instance_that_is_not_trusted_is_let_go() {
    let (authority, other) = (Arc::new(Authority::new()), Arc::new(Authority::new()));
    let (good, bad) = (start_under_tls(&authority, &["127.0.0.1"]), start_under_tls(&other, &["127.0.0.1"]));
    let upstream = trusting(&Trust::Authorities(authority.pem().into_bytes()), None);
    let hold = Some(gateway::HoldPolicy { max_wait: PATIENCE * 10, max_requests: 9 });
    let to = |endpoints| Endpoints { endpoints, upstream: upstream.clone(), hold, ..Endpoints::default() };
    let manner = Manner { tcp: Some("s".into()), ..Manner::default() };
    let rig = Rig::mannered(manner, Options { workers: 1, ..Options::default() }, to(vec![endpoint("s-0", bad)]));
    rig.client().assert_closed();
    rig.service.set_endpoints(to(vec![endpoint("s-0", bad), endpoint("s-1", good)])).unwrap();
    for _ in 0..10 {
        assert_eq!(rig.get("/").status, 200);
    }
}
