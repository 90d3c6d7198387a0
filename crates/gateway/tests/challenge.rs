//! An authority's visits (ACME): answered while they are expected, on the listeners where they come, and unnoticed by
//! everybody else. The other side is rustls driven by this file.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use common::{Client, Instance, PATIENCE, Rig, endpoints_of};
use gateway::tls::{Certificate, ClientAuth, MinVersion, ServerTls, Tickets};
use gateway::{Challenges, Manner, Options};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// A certificate that is its own authority.
struct Own {
    pem: String,
    der: CertificateDer<'static>,
    read: Certificate,
}

fn own(name: &str) -> Own {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let read = Certificate::read(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    Own { pem: made.cert.pem(), der: made.cert.der().clone(), read }
}

fn options(challenges: &Arc<Challenges>) -> Options {
    Options { workers: 1, challenges: challenges.clone(), ..Options::default() }
}

/// A handshake that asks for `name`; the certificate shown and the connection, or what went wrong.
fn shake(
    rig: &Rig,
    name: &str,
    alpn: &str,
    trusted: &CertificateDer<'static>,
) -> std::io::Result<(CertificateDer<'static>, StreamOwned<ClientConnection, TcpStream>)> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let session = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let stream = TcpStream::connect(rig.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
    Ok((shown, stream))
}

fn get(client: &mut Client, path: &str) -> (u16, String) {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
    let response = client.response();
    (response.status, response.text())
}

#[test]
fn a_file_is_answered_in_the_clear_before_any_route_and_only_while_it_is_expected() {
    let instance = Instance::answering("routed");
    let challenges = Arc::new(Challenges::default());
    let rig = Rig::with(options(&challenges), endpoints_of(&[&instance]), None);
    let path = "/.well-known/acme-challenge/token";
    let mut client = rig.client();
    assert_eq!(get(&mut client, path), (200, "routed".to_owned()));
    let under_way = challenges.answer("token", "token.thumbprint");
    client.send(format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
    let answer = client.response();
    answer.assert_reason(200, "acme-challenge");
    assert_eq!(answer.body, b"token.thumbprint");
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    // On the same connection: everything else goes its way.
    for other in ["/.well-known/acme-challenge/other", "/.well-known/acme-challenge/", "/"] {
        assert_eq!(get(&mut client, other), (200, "routed".to_owned()), "{other}");
    }
    client.send(format!("POST {path} HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(client.response().text(), "routed");
    drop(under_way);
    assert_eq!(get(&mut client, path), (200, "routed".to_owned()));
}

#[test]
fn a_file_is_not_answered_under_tls() {
    let (instance, shop) = (Instance::answering("routed"), own("shop.test"));
    let challenges = Arc::new(Challenges::default());
    let offered =
        ServerTls::new(&[shop.read], &[], MinVersion::Tls12, &ClientAuth::None, &Tickets::new().unwrap()).unwrap();
    let manner = Manner { tls: Some(ArcSwapOption::from_pointee(offered)), ..Manner::default() };
    let rig = Rig::mannered(manner, options(&challenges), endpoints_of(&[&instance]));
    let _under_way = challenges.answer("token", "token.thumbprint");
    let (_, mut stream) = shake(&rig, "shop.test", "http/1.1", &shop.der).unwrap();
    let path = "/.well-known/acme-challenge/token";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.ends_with("routed"), "{text}");
}

#[test]
fn a_certificate_made_for_a_visit_can_be_read_with_its_own_key_only() {
    // Its extension is critical and unknown to whoever reads certificates (RFC 8737, 3).
    let mut params = rcgen::CertificateParams::new(["new.test".to_owned()]).unwrap();
    params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    let (key, other) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
    let pem = params.self_signed(&key).unwrap().pem();
    let read = |key: &rcgen::KeyPair| Certificate::read(pem.as_bytes(), key.serialize_pem().as_bytes());
    assert_eq!(read(&key).unwrap().names, ["new.test"]);
    assert_eq!(read(&other).unwrap_err().to_string(), "the key does not belong to the certificate");
}

#[test]
fn a_certificate_is_shown_to_who_speaks_nothing_else_and_the_connection_ends() {
    let (instance, shop, visit) = (Instance::answering("routed"), own("shop.test"), own("new.test"));
    let challenges = Arc::new(Challenges::default());
    // Nobody enters without a certificate, except the authority, which sees what it came for and is let go.
    let auth = ClientAuth::Required(shop.pem.clone().into_bytes());
    let offered =
        ServerTls::new(std::slice::from_ref(&shop.read), &[], MinVersion::Tls13, &auth, &Tickets::new().unwrap())
            .unwrap();
    let manner = Arc::new(Manner { tls: Some(ArcSwapOption::from_pointee(offered)), ..Manner::default() });
    let rig = Rig::sharing(manner.clone(), options(&challenges), endpoints_of(&[&instance]));
    assert!(shake(&rig, "new.test", "acme-tls/1", &visit.der).is_err(), "nothing is under way");
    let under_way = challenges.show("NEW.test", &visit.read).unwrap();
    let (shown, mut stream) = shake(&rig, "new.test", "acme-tls/1", &visit.der).unwrap();
    assert_eq!((shown, stream.conn.alpn_protocol()), (visit.der.clone(), Some(b"acme-tls/1".as_slice())));
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: new.test\r\n\r\n");
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    assert_eq!((said.as_slice(), instance.accepted()), (b"".as_slice(), 0));
    // Another name, and clients: as ever.
    assert!(shake(&rig, "other.test", "acme-tls/1", &visit.der).is_err());
    assert_eq!(shake(&rig, "shop.test", "http/1.1", &shop.der).unwrap().0, shop.der);
    // The listener's very first certificate is ordered in the same way.
    manner.tls.as_ref().unwrap().store(None);
    assert_eq!(shake(&rig, "new.test", "acme-tls/1", &visit.der).unwrap().0, visit.der);
    assert!(shake(&rig, "shop.test", "http/1.1", &shop.der).is_err());
    rig.expect_metric("connections_refused_total{reason=\"no-certificate\"} 1");
    drop(under_way);
    assert!(shake(&rig, "new.test", "acme-tls/1", &visit.der).is_err());
}

#[test]
fn a_name_whose_certificate_is_awaited_is_shown_no_other_one() {
    let (instance, shop) = (Instance::answering("routed"), own("shop.test"));
    let awaited = ["new.test".to_owned()];
    let offered =
        ServerTls::new(&[shop.read], &awaited, MinVersion::Tls12, &ClientAuth::None, &Tickets::new().unwrap()).unwrap();
    let manner = Manner { tls: Some(ArcSwapOption::from_pointee(offered)), ..Manner::default() };
    let rig = Rig::mannered(manner, options(&Arc::default()), endpoints_of(&[&instance]));
    let refused = shake(&rig, "new.test", "http/1.1", &shop.der).unwrap_err().to_string();
    assert!(refused.contains("AccessDenied"), "{refused}");
    rig.expect_metric("tls_handshakes_failed_total{reason=\"no-certificate\"} 1");
    let other = shake(&rig, "unknown.test", "http/1.1", &shop.der).unwrap_err().to_string();
    assert!(other.contains("not valid for name"), "{other}");
    assert_eq!(shake(&rig, "shop.test", "http/1.1", &shop.der).unwrap().0, shop.der);
}
