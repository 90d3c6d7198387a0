//! The door for nodes without a certificate: what can be said there, what cannot, and that it weakens nothing else.
#![allow(clippy::unwrap_used, reason = "a test may panic, in its helpers too")]

#[path = "support/cluster.rs"]
mod cluster;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cluster::{PATIENCE, eventually};
use data::Store as _;
use data_raft::{
    CertificateAnswer, CertificateRequest, Certifier, Options, PEER_NAME, PeerOptions, PeerTls, Peers, RaftStore,
    TcpTransport, TlsFiles, Transport, authority_fingerprint, knock,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An authority and certificates of these nodes, in a folder.
fn pki(folder: &Path, nodes: &[&str]) {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, "authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    for node in nodes {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(vec![PEER_NAME.to_owned()]).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, *node);
        let certificate = parameters.signed_by(&key, &authority).unwrap();
        std::fs::write(folder.join(format!("{node}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{node}.key")), key.serialize_pem()).unwrap();
    }
}

struct Node {
    store: Arc<RaftStore>,
    address: SocketAddr,
}

fn start(folder: &Path, name: &str, founders: &[&str], join: &[SocketAddr]) -> Node {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let options = PeerOptions {
        cluster: "test".into(),
        name: name.into(),
        advertise: address.to_string(),
        join: join.iter().map(ToString::to_string).collect(),
        founders: founders.iter().map(ToString::to_string).collect(),
        voter: true,
        witness: false,
        agent: false,
    };
    let files = TlsFiles {
        authority: folder.join("ca.pem"),
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    let tls = PeerTls::open(files).unwrap();
    let make = move || -> io::Result<Arc<dyn Transport>> { Ok(Arc::new(TcpTransport::new(socket, Some(tls))?)) };
    let peers = Some(Peers::start(options, make).unwrap());
    let options = Options { peers, segment_bytes: 64 * 1024, reserve_bytes: 0, ..Options::new(folder.join(name)) };
    Node { store: RaftStore::open(options).unwrap(), address }
}

/// Keeps what it is asked, and signs it.
fn certifier(asked: &Arc<Mutex<Vec<String>>>) -> Certifier {
    let asked = Arc::clone(asked);
    Arc::new(move |request| {
        let what = match request {
            CertificateRequest::Can => "can".to_owned(),
            CertificateRequest::Renewal { name, request } => format!("renewal {name} {}", request.len()),
            CertificateRequest::Joining { secret, name, request, relayed } => {
                format!("joining {secret} {name} {} {relayed}", request.len())
            }
        };
        asked.lock().unwrap().push(what);
        Box::pin(async { CertificateAnswer::Signed { certificate: "c".into(), authority: "a".into() } })
    })
}

/// A client without a certificate, which trusts the cluster's authority. What the other says until it ends; an error if
/// it does not get that far.
async fn speak(folder: &Path, address: SocketAddr, protocols: &[&[u8]], words: &[u8]) -> io::Result<Vec<u8>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("ca.pem")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let mut config = builder.unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let all = async {
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from(PEER_NAME).unwrap();
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(words).await?;
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.map(|_| heard)
    };
    tokio::time::timeout(PATIENCE, all).await.expect("it is not left waiting")
}

/// A frame of a greeting, as far as its header: kind 1, no payload.
fn greeting() -> Vec<u8> {
    let mut frame = vec![0, 0, 0, 0, 1, 1, 0, 0];
    frame.extend_from_slice(&[0; 12]);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_a_certificate_gets_one_answer_at_the_door_and_nothing_anywhere_else() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path(), &["n1"]);
    let node = start(folder.path(), "n1", &["n1"], &[]);
    let (address, authority) = (node.address, authority_fingerprint(&folder.path().join("ca.pem")).unwrap());
    let text = address.to_string();
    let ask = |authority, size| {
        let text = text.clone();
        async move { knock(&text, authority, ("secret", "n4"), &vec![7; size]).await }
    };
    assert_eq!(ask(authority, 100).await.unwrap(), CertificateAnswer::Elsewhere, "nobody stands behind it yet");
    let asked = Arc::default();
    node.store.certify_with(certifier(&asked));
    assert!(matches!(ask(authority, 100).await.unwrap(), CertificateAnswer::Signed { .. }));
    assert_eq!(*asked.lock().unwrap(), ["joining secret n4 100 false"]);
    // Whoever is not the member that the token means does not get to see the secret.
    let wrong = ask([9; 32], 100).await;
    assert!(wrong.is_err(), "{wrong:?}");
    let large = ask(authority, 20_000).await;
    assert!(large.is_err(), "{large:?}");

    // The conversation of members wants a certificate, whatever else is named in the handshake.
    for protocols in [&[][..], &[b"h2".as_slice()], &[b"seawall-join/2".as_slice()]] {
        let refused = speak(folder.path(), address, protocols, &greeting()).await;
        assert!(refused.is_err(), "{protocols:?}: {refused:?}");
    }
    // At the door, it is not spoken: whatever begins like it is cut off without a word.
    for protocols in [&[b"seawall-join/1".as_slice()][..], &[b"h2".as_slice(), b"seawall-join/1".as_slice()]] {
        let beyond = [&100_000_u32.to_le_bytes()[..], &[1; 64]].concat();
        for words in [greeting(), beyond, b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
            let heard = speak(folder.path(), address, protocols, &words).await.unwrap_or_default();
            assert!(heard.is_empty(), "{heard:?}");
        }
    }
    assert_eq!(asked.lock().unwrap().len(), 1, "none of that reached whoever signs");
    eventually("the store serves as ever", async || node.store.status().not_serving.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_door_is_not_held_open_by_those_who_say_nothing() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path(), &["n1"]);
    let node = start(folder.path(), "n1", &["n1"], &[]);
    node.store.certify_with(certifier(&Arc::default()));
    let path = folder.path().to_owned();
    // Half a message each, more of them than have a place.
    let silent: Vec<_> = (0..12)
        .map(|_| {
            let (path, address) = (path.clone(), node.address);
            tokio::spawn(async move { speak(&path, address, &[b"seawall-join/1"], &[10, 0, 0, 0, 1]).await })
        })
        .collect();
    for one in silent {
        let heard = one.await.unwrap().unwrap_or_default();
        assert!(heard.is_empty(), "{heard:?}");
    }
    let authority = authority_fingerprint(&folder.path().join("ca.pem")).unwrap();
    let text = node.address.to_string();
    let answered = knock(&text, authority, ("secret", "n4"), b"request").await;
    assert!(matches!(answered, Ok(CertificateAnswer::Signed { .. })), "{answered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_members_certificate_is_renewed_for_the_name_that_its_present_one_proves() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path(), &["n1", "n2"]);
    let first = start(folder.path(), "n1", &["n1", "n2"], &[]);
    let second = start(folder.path(), "n2", &["n1", "n2"], &[first.address]);
    eventually("both serve", async || [&first, &second].iter().all(|node| node.store.status().not_serving.is_none()))
        .await;
    let asked = Arc::default();
    let renewal = CertificateRequest::Renewal { name: Arc::from("n1"), request: vec![7; 10] };
    assert_eq!(second.store.certificate(&renewal).await, CertificateAnswer::Elsewhere, "nobody signs yet");
    first.store.certify_with(certifier(&asked));
    let signed = tokio::time::timeout(Duration::from_secs(20), second.store.certificate(&renewal)).await.unwrap();
    assert!(matches!(signed, CertificateAnswer::Signed { .. }), "{signed:?}");
    assert_eq!(*asked.lock().unwrap(), ["renewal n2 10"], "not the name it says");
    let joining = CertificateRequest::Joining {
        secret: "secret".into(),
        name: "n4".into(),
        request: vec![7; 10],
        relayed: false,
    };
    second.store.certificate(&joining).await;
    assert_eq!(asked.lock().unwrap()[1], "joining secret n4 10 true", "it is passed on once, not in circles");
}
