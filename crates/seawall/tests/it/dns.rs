//! DNS: every form of a name, over both transports, as a client sees it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::json;

use crate::support::{Seawall, wait};

const CONFIG: &str = "dns: { listen: \"127.0.0.1:0\" }\n";

fn server(seawall: &Seawall) -> SocketAddr {
    seawall.ready()["dns"].as_str().expect("an address in the ready line").parse().unwrap()
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn udp(at: SocketAddr, name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
    let mut answer = [0; 65_535];
    // A datagram may be lost, as every client knows.
    let length = wait(name, || {
        socket.send_to(&question(name, kind, edns), at).unwrap();
        socket.recv(&mut answer).ok()
    });
    Message::from_vec(&answer[..length]).unwrap()
}

fn tcp(at: SocketAddr, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect(at).unwrap();
    let bytes = question(name, kind, None);
    stream.write_all(&u16::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

/// What a name comes to by UDP, of whatever type it has.
pub fn answers(seawall: &Seawall, name: &str) -> Vec<String> {
    let kind = if name.ends_with("arpa") { RecordType::PTR } else { RecordType::A };
    data(&udp(server(seawall), name, kind, None))
}

/// The data of all answers, sorted.
fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<String> = message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort_unstable();
    data
}

/// The addresses of a name, sorted; none if it is not there.
pub fn addresses(at: SocketAddr, name: &str) -> Vec<String> {
    data(&udp(at, name, RecordType::A, None))
}

fn register(seawall: &Seawall, id: &str, address: &str, tags: &[&str], status: &str) {
    let body = json!({ "Name": "web", "ID": id, "Address": address, "Port": 80, "Tags": tags, "Check": { "TTL": "1h", "Status": status } });
    let answer = seawall.api("PUT", "/v1/agent/service/register", body.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn every_form_of_a_name_is_answered() {
    let seawall = Seawall::up(CONFIG);
    let at = server(&seawall);
    register(&seawall, "web-1", "10.0.0.1", &["v1"], "passing");
    register(&seawall, "web-2", "10.0.0.2", &["v2"], "passing");
    register(&seawall, "web-3", "10.0.0.3", &["v2"], "critical");
    register(&seawall, "web-6", "fd00::6", &["v6"], "passing");
    let query = json!({ "Name": "newest", "Service": { "Service": "web", "Tags": ["v2"] }, "DNS": { "TTL": "7s" } });
    assert_eq!(seawall.api("POST", "/v1/query", query.to_string().as_bytes()).status, 200);
    for (name, expected) in [
        ("web.service.consul.", vec!["10.0.0.1", "10.0.0.2"]),
        ("WEB.Service.Local.CONSUL.", vec!["10.0.0.1", "10.0.0.2"]),
        ("v2.web.service.consul.", vec!["10.0.0.2"]),
        ("_web._v1.service.consul.", vec!["10.0.0.1"]),
        ("_web._tcp.service.consul.", vec!["10.0.0.1", "10.0.0.2"]),
        ("test.node.consul.", vec!["127.0.0.1"]),
        ("0a000001.addr.local.consul.", vec!["10.0.0.1"]),
        ("newest.query.consul.", vec!["10.0.0.2"]),
        ("ns.consul.", vec!["127.0.0.1"]),
    ] {
        let answer = udp(at, name, RecordType::A, None);
        assert_eq!(
            (answer.metadata.response_code, data(&answer)),
            (ResponseCode::NoError, expected.iter().map(|one| (*one).to_owned()).collect()),
            "{name}"
        );
        assert!(answer.metadata.authoritative);
        assert_eq!(data(&tcp(at, name, RecordType::A)), data(&answer), "{name}");
    }
    assert_eq!(udp(at, "newest.query.consul.", RecordType::A, None).answers[0].ttl, 7);
    assert_eq!(data(&udp(at, "web.service.consul.", RecordType::AAAA, None)), ["fd00::6"]);
    // SRV: names that resolve, with their addresses beside them.
    let srv = udp(at, "_web._v2.service.consul.", RecordType::SRV, None);
    let RData::SRV(found) = &srv.answers[0].data else { panic!("{srv:?}") };
    assert_eq!((found.port, found.target.to_ascii().as_str()), (80, "0a000002.addr.local.consul."));
    assert_eq!(srv.additionals[0].data.to_string(), "10.0.0.2");
    assert_eq!(data(&udp(at, &found.target.to_ascii(), RecordType::A, None)), ["10.0.0.2"]);
    // What is not there, and what has nothing of the type.
    let soa = |message: &Message| matches!(message.authorities[0].data, RData::SOA(_));
    for (name, kind, code) in [
        ("none.service.consul.", RecordType::A, ResponseCode::NXDomain),
        ("web.service.mars.consul.", RecordType::A, ResponseCode::NXDomain),
        ("none.node.consul.", RecordType::A, ResponseCode::NXDomain),
        ("v9.web.service.consul.", RecordType::A, ResponseCode::NXDomain),
        ("test.node.consul.", RecordType::AAAA, ResponseCode::NoError),
        ("consul.", RecordType::A, ResponseCode::NoError),
    ] {
        let answer = udp(at, name, kind, None);
        assert_eq!(answer.metadata.response_code, code, "{name}");
        assert!(answer.answers.is_empty() && soa(&answer), "{name}: {answer:?}");
    }
    assert!(matches!(udp(at, "consul.", RecordType::SOA, None).answers[0].data, RData::SOA(_)));
    assert!(matches!(udp(at, "consul.", RecordType::NS, None).answers[0].data, RData::NS(_)));
    assert_eq!(udp(at, "example.com.", RecordType::A, None).metadata.response_code, ResponseCode::Refused);
}

#[test]
fn a_long_answer_is_cut_over_udp_and_whole_over_tcp() {
    let seawall = Seawall::up(CONFIG);
    let at = server(&seawall);
    for n in 0..100 {
        register(&seawall, &format!("web-{n}"), &format!("10.0.1.{n}"), &[], "passing");
    }
    let name = "web.service.consul.";
    let cut = udp(at, name, RecordType::A, None);
    assert!(cut.metadata.truncation && cut.answers.len() == 3, "{} answers", cut.answers.len());
    assert_eq!(data(&tcp(at, name, RecordType::A)).len(), 100);
    let larger = udp(at, name, RecordType::A, Some(4096));
    assert!(larger.edns.is_some() && !larger.metadata.truncation);
    assert_eq!(larger.answers.len(), 100);
    let between = udp(at, name, RecordType::A, Some(1232));
    assert!(between.metadata.truncation && between.answers.len() > 50);
    assert!(between.to_vec().unwrap().len() <= 1232);
    // Every instance has its turn.
    let mut seen = std::collections::BTreeSet::new();
    wait("many different answers", || {
        seen.extend(data(&udp(at, name, RecordType::A, None)));
        (seen.len() > 50).then_some(())
    });
    // Floods and rubbish do not stop it.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for n in 0..2000_u32 {
        let rubbish: Vec<u8> = (0..n % 97).map(|byte| (byte * 31 + n) as u8).collect();
        socket.send_to(&rubbish, at).unwrap();
    }
    assert_eq!(udp(at, name, RecordType::A, Some(4096)).answers.len(), 100);
}

/// A DNS server that answers every question with one address, after a datagram that pretends to be the answer.
fn other_server() -> SocketAddr {
    let (socket, listener, at) = wait("a port that is free in both protocols", || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        Some((socket, std::net::TcpListener::bind(at).ok()?, at))
    });
    let answer = |question: &[u8]| {
        let asked = Message::from_vec(question).unwrap();
        let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
        answer.metadata.recursion_available = true;
        let name = asked.queries[0].name.clone();
        answer.add_queries(asked.queries);
        let address = hickory_proto::rr::rdata::A::new(192, 0, 2, 7);
        answer.add_answer(hickory_proto::rr::Record::from_rdata(name, 60, RData::A(address)));
        answer.to_vec().unwrap()
    };
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let right = answer(&bytes[..length]);
            let mut guessed = right.clone();
            guessed[1] ^= 1;
            socket.send_to(&guessed, from).unwrap();
            socket.send_to(&right, from).unwrap();
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let right = answer(&question);
            stream.write_all(&u16::try_from(right.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&right).unwrap();
        }
    });
    at
}

#[test]
fn names_of_others_are_asked_of_the_servers_that_are_configured() {
    let other = other_server();
    // The first of them is not there, and no test's socket ever is.
    let gone = "127.0.0.1:1";
    let seawall = Seawall::up(&format!("dns: {{ listen: \"127.0.0.1:0\", forward: [ \"{gone}\", \"{other}\" ] }}\n"));
    let at = server(&seawall);
    register(&seawall, "web-1", "10.0.0.1", &["v1"], "passing");
    assert_eq!(addresses(at, "web.service.consul."), ["10.0.0.1"], "its own names are its own");
    for name in ["www.example.com.", "9.2.0.192.in-addr.arpa."] {
        assert_eq!(addresses(at, name), ["192.0.2.7"], "{name}");
        assert_eq!(data(&tcp(at, name, RecordType::A)), ["192.0.2.7"], "{name} over TCP");
    }
    let known = udp(at, "1.0.0.10.in-addr.arpa.", RecordType::PTR, None);
    assert!(known.metadata.authoritative && known.metadata.recursion_available, "{known:?}");
    // Nobody is there: said so.
    let alone = Seawall::up(&format!("dns: {{ listen: \"127.0.0.1:0\", forward: [ \"{gone}\" ] }}\n"));
    let failed = tcp(server(&alone), "www.example.com.", RecordType::A);
    assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn what_seawall_runs_is_found_by_name_and_leaves_when_it_is_not_ready() {
    let seawall = Seawall::up(&format!(
        "{CONFIG}services: {{ shop: {{ command: [DEMO], replicas: 2, readinessProbe: {{ httpGet: {{ path: /ready }}, periodSeconds: 1 }} }} }}\n"
    ));
    let at = server(&seawall);
    let ports = || {
        let answer = udp(at, "shop.service.consul.", RecordType::SRV, Some(4096));
        answer
            .answers
            .iter()
            .filter_map(|record| if let RData::SRV(srv) = &record.data { Some(srv.port) } else { None })
            .collect::<Vec<_>>()
    };
    wait("both instances", || (ports().len() == 2).then_some(()));
    seawall.fault("shop-0", "unready");
    wait("one instance", || (ports().len() == 1).then_some(()));
}

#[test]
fn dig_reads_the_answers() {
    let version = Command::new("dig").arg("-v").output();
    if version.is_err() {
        let _ = writeln!(std::io::stderr(), "skipped: dig is not here (Debian: dnsutils)");
        return;
    }
    let seawall = Seawall::up(CONFIG);
    let at = server(&seawall);
    register(&seawall, "web-1", "10.0.0.1", &["v1"], "passing");
    register(&seawall, "web-6", "fd00::6", &["v6"], "passing");
    register(&seawall, "web-x", "10.0.0.9", &["v1"], "critical");
    for n in 0..20 {
        let body = json!({ "Name": "many", "ID": format!("many-{n}"), "Address": format!("10.0.2.{n}"), "Port": 80 });
        assert_eq!(seawall.api("PUT", "/v1/agent/service/register", body.to_string().as_bytes()).status, 200);
    }
    let query = json!({ "Name": "newest", "Service": { "Service": "web", "Tags": ["v1"] }, "DNS": { "TTL": "7s" } });
    assert_eq!(seawall.api("POST", "/v1/query", query.to_string().as_bytes()).status, 200);
    let dig = |arguments: &[&str]| {
        let output = Command::new("dig")
            .args([&format!("@{}", at.ip()), "-p", &at.port().to_string(), "+tries=3", "+time=5"])
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && !text.contains("malformed") && !text.contains("Warning:"),
            "{arguments:?}: {text}"
        );
        text
    };
    let six = format!("fd00{}0006.addr.local.consul.", "0".repeat(24));
    for transport in ["+notcp", "+tcp"] {
        for (question, kind, answer) in [
            ("web.service.consul", "A", "10.0.0.1"),
            ("web.service.local.consul", "A", "10.0.0.1"),
            ("web.service.consul", "AAAA", "fd00::6"),
            ("v1.web.service.consul", "A", "10.0.0.1"),
            ("v6.web.service.local.consul", "AAAA", "fd00::6"),
            ("v1.web.service.consul", "SRV", "1 1 80 0a000001.addr.local.consul."),
            ("_web._v1.service.consul", "SRV", "1 1 80 0a000001.addr.local.consul."),
            ("_web._v6.service.local.consul", "SRV", &format!("1 1 80 {six}")),
            ("0a000001.addr.local.consul", "A", "10.0.0.1"),
            (&six, "AAAA", "fd00::6"),
            ("test.node.consul", "A", "127.0.0.1"),
            ("test.node.local.consul", "A", "127.0.0.1"),
            ("newest.query.consul", "A", "10.0.0.1"),
            ("newest.query.local.consul", "SRV", "1 1 80 0a000001.addr.local.consul."),
            ("consul.service.consul", "A", "127.0.0.1"),
            ("consul", "NS", "ns.consul."),
            ("1.0.0.10.in-addr.arpa", "PTR", "web.service.consul."),
            ("1.0.0.127.in-addr.arpa", "PTR", "test.node.local.consul."),
        ] {
            assert_eq!(dig(&[transport, "+short", kind, question]).trim(), answer, "{transport} {kind} {question}");
        }
        assert_eq!(dig(&[transport, "+short", "-x", "fd00::6"]).trim(), "web.service.consul.");
        // Who does not exist, and who has nothing of the type.
        for (question, kind, status) in [
            ("none.service.consul", "A", "NXDOMAIN"),
            ("v9.web.service.consul", "SRV", "NXDOMAIN"),
            ("none.node.consul", "A", "NXDOMAIN"),
            ("web.service.mars.consul", "A", "NXDOMAIN"),
            ("none.query.consul", "A", "NXDOMAIN"),
            ("9.0.0.11.in-addr.arpa", "PTR", "NXDOMAIN"),
            ("test.node.consul", "AAAA", "NOERROR"),
            ("web.service.consul", "MX", "NOERROR"),
        ] {
            let none = dig(&[transport, kind, question]);
            assert!(none.contains(&format!("status: {status}")) && none.contains("ANSWER: 0, AUTHORITY: 1"), "{none}");
            assert!(none.contains("SOA\tns.consul. hostmaster.consul."), "{none}");
        }
        assert!(dig(&[transport, "example.com"]).contains("status: REFUSED"));
    }
    // Times to live; a cut answer over UDP, which dig then asks for over TCP; EDNS.
    let answer = dig(&["newest.query.consul"]);
    assert!(answer.contains("newest.query.consul.\t7\tIN\tA\t10.0.0.1"), "{answer}");
    assert!(dig(&["web.service.consul"]).contains("web.service.consul.\t0\tIN\tA\t10.0.0.1"));
    let cut = dig(&["+noedns", "+ignore", "many.service.consul"]);
    assert!(cut.contains("flags: qr aa tc rd;") && cut.contains("ANSWER: 3,"), "{cut}");
    let whole = dig(&["+noedns", "many.service.consul"]);
    assert!(whole.contains("Truncated, retrying in TCP mode") && whole.contains("ANSWER: 20,"), "{whole}");
    let edns = dig(&["+edns=0", "+bufsize=4096", "many.service.consul"]);
    assert!(edns.contains("EDNS: version: 0, flags:; udp: 4096") && edns.contains("ANSWER: 20,"), "{edns}");
    let newer = dig(&["+edns=1", "+noednsneg", "web.service.consul"]);
    assert!(newer.contains("status: BADVERS"), "{newer}");
}

/// Whoever asks rightly is answered while others send as fast as they can what is no question, and half a question.
#[test]
fn rubbish_and_floods_keep_nobody_from_his_answer() {
    let seawall = Seawall::up(CONFIG);
    let at = server(&seawall);
    register(&seawall, "web-1", "10.0.0.1", &["v1"], "passing");
    let before = crate::support::processes::resident(seawall.node());
    let (flooding, mut chance) = (UdpSocket::bind("127.0.0.1:0").unwrap(), crate::support::Chance(7));
    let good = question("web.service.consul.", RecordType::ANY, Some(4096));
    let mut flood = || {
        for _ in 0..1000 {
            let mut bytes = good.clone();
            for _ in 0..=chance.below(4) {
                let place = chance.below(bytes.len() as u64) as usize;
                bytes[place] = chance.below(256) as u8;
            }
            bytes.truncate(chance.below(bytes.len() as u64 + 1) as usize);
            // Ignored: what does not fit into the system's queue is lost, as it would be.
            let _ = flooding.send_to(&bytes, at);
        }
    };
    // More connections than there are places, each with the beginning of a question.
    let half: Vec<TcpStream> = (0..300)
        .filter_map(|_| {
            let mut stream = TcpStream::connect(at).ok()?;
            stream.write_all(&[0, 40, 1]).ok()?;
            Some(stream)
        })
        .collect();
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..200 {
        // What is asked now stands behind all of these, or finds no room and is asked again.
        flood();
        let began = std::time::Instant::now();
        assert_eq!(addresses(at, "web.service.consul."), ["10.0.0.1"]);
        slowest = slowest.max(began.elapsed());
    }
    println!("200 answers among 200,000 bent questions, the slowest after {slowest:?}");
    // The half questions are given up after a while, and TCP is served again.
    assert_eq!(data(&tcp(at, "web.service.consul.", RecordType::A)), ["10.0.0.1"]);
    drop(half);
    let grown = crate::support::processes::resident(seawall.node()).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more");
}
