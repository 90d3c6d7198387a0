//! Certificates that are ordered, from an authority that checks everything that Let's Encrypt checks: Pebble.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

use crate::support::pebble::{Manner, Pebble, directory_certificate, field, free_addresses};
use crate::support::{Chance, PATIENCE, Seawall, configuration, processes, wait};

const BODY: &str = "services:\n  orders: { command: [DEMO] }\nroutes:\n  - { to: { service: orders } }\n";
const MONTHS: Manner = Manner { validity: 90 * 86_400, external: None };

/// A connection to one name of a listener under TLS.
struct Visit {
    stream: StreamOwned<ClientConnection, TcpStream>,
    shown: CertificateDer<'static>,
}

impl Visit {
    fn to(address: SocketAddr, name: &str, root: &str) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let session = ClientConnection::new(Arc::new(config), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(session, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let shown = stream.conn.peer_certificates().unwrap()[0].clone().into_owned();
        Ok(Self { stream, shown })
    }

    /// One request on the connection, which stays open; the answer's status line.
    fn get(&mut self) -> std::io::Result<String> {
        self.stream.write_all(b"GET /role HTTP/1.1\r\nHost: shop.example\r\n\r\n")?;
        let mut text = String::new();
        while !text.trim_end().ends_with('}') {
            let mut chunk = [0; 4_096];
            let count = self.stream.read(&mut chunk)?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            text.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

/// Writes a configuration whose gateway is `gateway`, without its braces.
fn write(folder: &Path, gateway: &str) {
    let text = configuration(BODY).replace("listen: [\"127.0.0.1:0\"]", gateway);
    std::fs::write(folder.join("seawall.yaml"), text).unwrap();
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap()
}

/// A certificate of the test's own, as files; its PEM.
fn own_files(folder: &Path, name: &str) -> String {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    std::fs::write(folder.join("own.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("own.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.pem()
}

fn shown(seawall: &Seawall) -> Value {
    serde_json::from_str(&seawall.cli_exits(0, &["tls", "-o", "json"]).0).unwrap()
}

fn nth_event(seawall: &Seawall, kind: &str, nth: usize) -> Value {
    wait(&format!("{kind}, number {nth}"), || seawall.events_of(kind).get(nth - 1).cloned())
}

/// Everything under the data directory of which others must not see anything.
fn assert_private(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mode = path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if path.is_dir() {
            assert_private(&path);
        }
    }
}

#[test]
fn a_certificate_is_ordered_served_and_used_again_after_a_restart() {
    let folder = folder();
    let [http, tls] = free_addresses();
    let Some(mut pebble) = Pebble::new(folder.path(), http, tls, &MONTHS) else { return };
    let own = own_files(folder.path(), "own.example");
    let listen = format!(
        "listen: [\"{http}\", {{ address: \"{tls}\", tls: {{ certificates: [{{ certFile: own.pem, keyFile: own.key }}, \
         {{ acme: {{ domains: [shop.example, www.shop.example] }} }}] }} }}], acme: {{ {} }}",
        pebble.acme()
    );
    write(folder.path(), &listen);

    // The authority is away: whoever asks for those names is shown nothing else, everybody else is served.
    let seawall = Seawall::up_in(folder);
    let told = seawall.event("certificate-not-issued", "");
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains("acme:shop.example,www.shop.example was not issued: 127.0.0.1 cannot be asked"),
        "{message}"
    );
    assert!(message.contains("tried again at ") && message.contains("are closed meanwhile"), "{message}");
    assert!(Visit::to(tls, "shop.example", &own).is_err());
    assert_eq!(Visit::to(tls, "own.example", &own).unwrap().get().unwrap(), "HTTP/1.1 200 OK");
    let (table, _) = seawall.cli_exits(0, &["tls"]);
    assert!(table.contains("NOT IN FORCE") && table.contains("not issued: 127.0.0.1 cannot be asked"), "{table}");
    assert!(table.contains("tried again at 20"), "{table}");

    // It comes, and so does a new start.
    pebble.start();
    let seawall = Seawall::up_in(seawall.into_folder());
    let issued = seawall.event("certificate-issued", "");
    assert!(issued["message"].as_str().unwrap().contains("acme:shop.example,www.shop.example is in force"), "{issued}");
    let root = pebble.root();
    let mut first = Visit::to(tls, "shop.example", &root).unwrap();
    assert_eq!(first.get().unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(Visit::to(tls, "www.shop.example", &root).unwrap().shown, first.shown);
    assert_eq!(Visit::to(tls, "own.example", &own).unwrap().get().unwrap(), "HTTP/1.1 200 OK");
    let answer = seawall.get("/.well-known/acme-challenge/token");
    assert_ne!(answer.header("seawall-reason"), Some("acme-challenge"), "nothing is under way any more");
    let metrics = seawall.api("GET", "/metrics", b"").text();
    assert!(metrics.contains("file=\"acme:shop.example,www.shop.example\"} "), "{metrics}");
    assert_eq!(field(&shown(&seawall), "acme:", "names").as_array().unwrap().len(), 2);
    assert_private(&seawall.data_dir().join("acme"));

    // A power cut: what was kept is shown at once, and nobody is asked for anything.
    let seawall = Seawall::up_in(seawall.into_folder());
    let again = Visit::to(tls, "shop.example", &root).unwrap();
    assert_eq!((again.shown, pebble.issued()), (first.shown, 1));
    assert!(field(&shown(&seawall), "acme:", "problem").is_null());
    let said = seawall.stderr();
    assert!(!said.contains("PRIVATE KEY") && !said.contains("MIG"), "{said}");
}

#[test]
fn a_certificate_is_ordered_by_a_visit_under_tls_and_with_an_account_elsewhere() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let folder = folder();
    let [http, tls] = free_addresses();
    let manner = Manner { external: Some(("kid-1", KEY)), ..MONTHS };
    let Some(mut pebble) = Pebble::new(folder.path(), http, tls, &manner) else { return };
    std::fs::write(folder.path().join("hmac"), format!("{KEY}\n")).unwrap();
    // Nothing listens in the clear, so it can be shown under TLS only.
    let listen = format!(
        "listen: [{{ address: \"{tls}\", tls: {{ certificates: [{{ acme: {{ domains: [Shop.example] }} }}] }} }}], \
         acme: {{ {}, externalAccount: {{ keyId: kid-1, hmacKeyFile: hmac }} }}",
        pebble.acme()
    );
    write(folder.path(), &listen);
    pebble.start();
    let seawall = Seawall::up_in(folder);
    seawall.event("certificate-issued", "");
    let root = pebble.root();
    let first = Visit::to(tls, "shop.example", &root).unwrap().shown;
    let seawall = Seawall::up_in(seawall.into_folder());
    assert_eq!((Visit::to(tls, "shop.example", &root).unwrap().shown, pebble.issued()), (first, 1));
    let kept = std::fs::read_to_string(seawall.data_dir().join("effective.json")).unwrap();
    assert!(!kept.contains(KEY) && !seawall.stderr().contains(KEY));
}

/// Version 3, then the serial number: RFC 5280, 4.1.
fn serial_begins_with_zero(certificate: &[u8]) -> bool {
    const VERSION: [u8; 6] = [0xa0, 3, 2, 1, 2, 2];
    let version = certificate.windows(VERSION.len()).position(|window| window == VERSION).unwrap();
    certificate[version + VERSION.len() + 1] == 0
}

#[test]
fn a_certificate_is_renewed_without_a_dropped_connection_and_outlives_its_authority() {
    let folder = folder();
    let [http, tls] = free_addresses();
    let manner = Manner { validity: 60, ..MONTHS };
    let Some(mut pebble) = Pebble::new(folder.path(), http, tls, &manner) else { return };
    let listen = format!(
        "listen: [\"{http}\", {{ address: \"{tls}\", tls: {{ certificates: [{{ acme: {{ domains: [shop.example] }} }}] }} \
         }}], acme: {{ {}, renewBefore: 1h, challenge: tls-alpn-01 }}",
        pebble.acme()
    );
    write(folder.path(), &listen);
    pebble.start();
    let seawall = Seawall::up_in(folder);
    nth_event(&seawall, "certificate-issued", 1);
    let root = pebble.root();
    let mut before = Visit::to(tls, "shop.example", &root).unwrap();
    assert_eq!(before.get().unwrap(), "HTTP/1.1 200 OK");
    // Renewed with a quarter of its lifetime used, as `renewBefore` is longer than all of it.
    nth_event(&seawall, "certificate-issued", 2);
    let after = Visit::to(tls, "shop.example", &root).unwrap();
    assert_ne!(after.shown, before.shown);
    assert_eq!(before.get().unwrap(), "HTTP/1.1 200 OK", "the connection made before");
    // Pebble does not find a certificate again whose serial number begins with a zero in DER.
    let found = usize::from(!serial_begins_with_zero(&before.shown));
    assert_eq!((pebble.issued(), pebble.said("is a replacement of")), (2, found));

    pebble.stop();
    let told = nth_event(&seawall, "certificate-not-issued", 1);
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("cannot be asked") && message.contains("the one in force lasts until 20"), "{message}");
    let shown = shown(&seawall);
    assert!(field(&shown, "acme:", "problem").as_str().unwrap().contains("cannot be asked"), "{shown}");
    let next = field(&shown, "acme:", "next").as_str().unwrap().to_owned();
    assert!(next.as_str() > told["at"].as_str().unwrap(), "tried again later: {next}");
    let still = Visit::to(tls, "shop.example", &root).unwrap();
    assert_eq!(still.shown, after.shown);
    assert_eq!(before.get().unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(seawall.events_of("certificate-not-issued").len(), 1, "it waits before it tries again");
}

/// An authority that has no time for anybody; Pebble always has.
fn busy_authority(folder: &Path) -> SocketAddr {
    use rustls::pki_types::PrivateKeyDer;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let chain = CertificateDer::from_pem_file(folder.join("directory-cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("directory-key.pem")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let config = Arc::new(config);
    // Ends with the test's process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let session = rustls::ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(session, stream);
            let mut chunk = [0; 4_096];
            if stream.read(&mut chunk).is_ok_and(|count| count > 0) {
                let _ = stream.write_all(
                    b"HTTP/1.1 503 Busy\r\nRetry-After: 7200\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\
                      Connection: close\r\n\r\n",
                );
            }
        }
    });
    address
}

#[test]
fn an_authority_that_asks_for_patience_gets_it() {
    let folder = folder();
    directory_certificate(folder.path());
    let address = busy_authority(folder.path());
    let listen = format!(
        "listen: [\"127.0.0.1:0\", {{ address: \"127.0.0.1:0\", tls: {{ certificates: [{{ acme: {{ domains: \
         [shop.example] }} }}] }} }}], acme: {{ directory: \"https://{address}/dir\", caFile: directory-ca.pem, \
         termsOfServiceAgreed: true }}"
    );
    write(folder.path(), &listen);
    let seawall = Seawall::up_in(folder);
    let told = seawall.event("certificate-not-issued", "");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("127.0.0.1 answers 503"), "{message}");
    // The first pause of our own would be a minute.
    let second = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second();
    let shown = shown(&seawall);
    let pause = second(field(&shown, "acme:", "next").as_str().unwrap()) - second(told["at"].as_str().unwrap());
    assert!((7190..=7210).contains(&pause), "{pause} s: {shown}");
}

#[test]
fn what_the_authority_has_against_a_name_is_told() {
    let folder = folder();
    let [http, tls] = free_addresses();
    let Some(mut pebble) = Pebble::new(folder.path(), http, tls, &MONTHS) else { return };
    let listen = format!(
        "listen: [\"{http}\", {{ address: \"{tls}\", tls: {{ certificates: [{{ acme: {{ domains: [away.example] }} }}, \
         {{ acme: {{ domains: [blocked.example] }} }}, {{ acme: {{ domains: [shop.example] }} }}] }} }}], acme: {{ {} }}",
        pebble.acme()
    );
    write(folder.path(), &listen);
    // This name leads to an address where nobody listens.
    pebble.lead("away.example", "127.0.0.2");
    pebble.start();
    let seawall = Seawall::up_in(folder);
    let told = [1, 2].map(|nth| nth_event(&seawall, "certificate-not-issued", nth)["message"].to_string());
    assert!(told[0].contains("away.example: ") && told[0].contains("connection"), "{}", told[0]);
    assert!(told[0].contains("127.0.0.2") || told[0].contains("refused"), "{}", told[0]);
    assert!(told[1].contains("blocked.example") && told[1].contains("(rejectedIdentifier)"), "{}", told[1]);
    // The third one is none the worse for it.
    seawall.event("certificate-issued", "");
    assert_eq!(Visit::to(tls, "shop.example", &pebble.root()).unwrap().get().unwrap(), "HTTP/1.1 200 OK");
    let (table, _) = seawall.cli_exits(0, &["tls"]);
    assert!(table.contains("acme:away.example not issued: away.example: "), "{table}");
    assert!(table.contains("acme:blocked.example not issued: "), "{table}");
    let tasks = seawall.status()["tasks"].clone();
    let acme = tasks.as_array().unwrap().iter().find(|task| task["name"] == "acme").cloned().unwrap();
    assert!(acme["lastError"].as_str().is_some_and(|error| error.contains("away.example")), "{acme}");
}

#[test]
fn a_node_process_that_is_killed_while_it_orders_gets_its_certificate_all_the_same() {
    const KILLS: usize = 6;
    let folder = folder();
    let [http, tls] = free_addresses();
    let Some(mut pebble) = Pebble::new(folder.path(), http, tls, &MONTHS) else { return };
    let listen = format!(
        "listen: [\"{http}\", {{ address: \"{tls}\", tls: {{ certificates: [{{ acme: {{ domains: [shop.example] }} }}] }} \
         }}], acme: {{ {} }}",
        pebble.acme()
    );
    write(folder.path(), &listen);
    pebble.start();
    let mut chance = Chance::seeded("a_node_process_that_is_killed_while_it_orders");
    let seawall = Seawall::up_in(folder);
    for _ in 0..KILLS {
        let node = seawall.node();
        // Anywhere between its first line and the certificate.
        std::thread::sleep(std::time::Duration::from_millis(chance.below(1200)));
        processes::signal(node, "KILL");
        wait("another node process", || processes::node_of(seawall.keeper()).filter(|other| *other != node));
    }
    let root = pebble.root();
    let visit = wait("the certificate", || Visit::to(tls, "shop.example", &root).ok());
    // The last one that came is kept whole: it is what a new start shows.
    let seawall = Seawall::up_in(seawall.into_folder());
    assert_eq!(Visit::to(tls, "shop.example", &root).unwrap().shown, visit.shown);
    assert!(pebble.issued() <= 1 + KILLS, "{}", pebble.issued());
    drop(seawall);
}
