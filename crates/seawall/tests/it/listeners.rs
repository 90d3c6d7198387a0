//! Listeners that are more than an address: TLS with certificates that change, TCP, and what a route changes on the way.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::support::{PATIENCE, Seawall, configuration, processes, run, start_failing, wait};

/// Writes `cert.pem` and `key.pem` for `127.0.0.1` into the folder, signed by an authority of its own; a client that
/// trusts it.
pub fn new_certificate(folder: &Path) -> ureq::Agent {
    new_certificate_named(folder, "", 2035)
}

/// The same in files whose names begin with `prefix`, until the begin of a year.
fn new_certificate_named(folder: &Path, prefix: &str, ends: i32) -> ureq::Agent {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "shop.local".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.not_after = rcgen::date_time_ymd(ends, 1, 1);
    let leaf = params.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join(format!("{prefix}key.pem")), key.serialize_pem()).unwrap();
    std::fs::write(folder.join(format!("{prefix}cert.pem")), leaf.pem()).unwrap();
    std::fs::write(folder.join(format!("{prefix}ca.pem")), authority.pem()).unwrap();
    let trusted = ureq::tls::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let roots = ureq::tls::RootCerts::new_with_certs(&[trusted.to_owned()]);
    let tls = ureq::tls::TlsConfig::builder().root_certs(roots).build();
    ureq::Agent::config_builder().tls_config(tls).timeout_global(Some(PATIENCE)).build().new_agent()
}

pub fn with_listeners(body: &str, listeners: &str) -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let text = configuration(body).replace("listen: [\"127.0.0.1:0\"]", &format!("listen: [{listeners}]"));
    std::fs::write(folder.path().join("seawall.yaml"), text).unwrap();
    folder
}

pub fn listener(seawall: &Seawall, index: usize) -> SocketAddr {
    seawall.ready()["gateway"][index].as_str().unwrap().parse().unwrap()
}

pub const UNDER_TLS: &str = "\"127.0.0.1:0\", { address: \"127.0.0.1:0\", \
    tls: { certificates: [{ certFile: cert.pem, keyFile: key.pem }] } }";

#[test]
fn certificates_that_change_are_taken_over_and_bad_ones_are_not() {
    let folder = with_listeners(
        "services:\n  orders: { command: [DEMO] }\nroutes:\n  - { to: { service: orders } }\n",
        UNDER_TLS,
    );
    let before = new_certificate(folder.path());
    let seawall = Seawall::up_in(folder);
    let url = format!("https://{}/", listener(&seawall, 1));
    let status = |agent: &ureq::Agent| agent.get(&url).call().map(|answer| answer.status().as_u16()).ok();
    assert_eq!(status(&before), Some(200));
    let (shown, _) = seawall.cli_exits(0, &["tls", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown[0]["names"], serde_json::json!(["127.0.0.1", "shop.local"]), "{shown}");
    let metrics = seawall.api("GET", "/metrics", b"").text();
    assert!(metrics.contains("seawall_tls_certificate_expiry_timestamp_seconds{"), "{metrics}");

    let after = new_certificate(seawall.folder());
    seawall.event("certificate-reloaded", "");
    assert_eq!((status(&after), seawall.get("/").status), (Some(200), 200));

    std::fs::write(seawall.folder().join("key.pem"), "no key").unwrap();
    let refused = seawall.event("certificate-refused", "");
    let message = refused["message"].as_str().unwrap();
    assert!(message.contains("key.pem") && message.contains("goes on with what it has"), "{message}");
    assert_eq!(status(&after), Some(200));
    let (table, _) = seawall.cli_exits(0, &["tls"]);
    assert!(table.contains("shop.local") && table.contains("not taken over"), "{table}");

    // The node process dies while the file is bad: that listener serves nobody, everything else goes on.
    assert!(processes::signal(seawall.node(), "KILL"));
    seawall.event("node-recovered", "");
    assert_eq!((seawall.get("/").status, status(&after)), (200, None));
    let (table, _) = seawall.cli_exits(0, &["tls"]);
    assert!(table.contains("NOT IN FORCE"), "{table}");
    let mended = new_certificate(seawall.folder());
    wait("the mended files", || (status(&mended) == Some(200)).then_some(()));
}

#[test]
fn one_bad_certificate_holds_back_no_other_and_an_expired_one_replaces_nothing() {
    let listeners =
        UNDER_TLS.replace("keyFile: key.pem }", "keyFile: key.pem }, { certFile: b-cert.pem, keyFile: b-key.pem }");
    let folder = with_listeners(
        "services:\n  orders: { command: [DEMO] }\nroutes:\n  - { to: { service: orders } }\n",
        &listeners,
    );
    new_certificate_named(folder.path(), "b-", 2035);
    new_certificate(folder.path());
    let seawall = Seawall::up_in(folder);
    let url = format!("https://{}/", listener(&seawall, 1));
    let status = |agent: &ureq::Agent| agent.get(&url).call().map(|answer| answer.status().as_u16()).ok();
    // Both change before anybody looks: one to what can be used, one to what cannot.
    std::fs::write(seawall.folder().join("b-cert.pem"), "nonsense").unwrap();
    let changed = new_certificate(seawall.folder());
    let about = |kind: &str, file: &str| {
        wait(&format!("{kind} of {file}"), || {
            let told = |event: &serde_json::Value| event["message"].as_str().is_some_and(|text| text.contains(file));
            seawall.events_of(kind).into_iter().find(told)
        })
    };
    about("certificate-refused", "b-cert.pem");
    about("certificate-reloaded", "/cert.pem");
    assert_eq!(status(&changed), Some(200));

    let expired = new_certificate_named(seawall.folder(), "", 2020);
    let refused = about("certificate-refused", "ended on 2020-01-01");
    assert!(refused["message"].as_str().unwrap().contains("in force lasts until 2035-01-01"), "{refused}");
    assert_eq!((status(&changed), status(&expired)), (Some(200), None));
    let (table, _) = seawall.cli_exits(0, &["tls"]);
    assert_eq!(table.matches("not taken over").count(), 2, "{table}");
}

#[test]
fn files_that_cannot_be_used_are_named_before_anything_starts_all_at_once() {
    let body = "services:\n  a:\n    endpoints: [\"127.0.0.1:1\"]\n    tls:\n      caFile: ca.pem\n      certFile: cert.pem\n      \
                keyFile: key.pem\n  b: { endpoints: [\"127.0.0.1:1\"], tls: { caFile: b-ca.pem } }\n";
    let with_auth = UNDER_TLS.replace("keyFile: key.pem }]", "keyFile: key.pem }], clientAuth: { caFile: who.pem }");
    let folder = with_listeners(body, &format!("{with_auth}], errorPages: {{ 5xx: busy.html }}, trustedProxies: ["));
    let file = folder.path().join("seawall.yaml");
    let check = |all: &[&str]| {
        let output = run(&["check", &file.to_string_lossy()], None);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        for one in all {
            assert!(told.contains(one), "{one} not in {told}");
        }
        assert_eq!(told.matches("error: ").count(), all.len(), "{told}");
        assert_eq!(told.matches("cure: ").count(), all.len(), "{told}");
        told
    };
    let missing = "cannot be read: No such file";
    let told = check(&[
        &format!("cert.pem {missing}"),
        &format!("who.pem {missing}"),
        &format!("busy.html {missing}"),
        &format!("service `a`: {}", folder.path().join("ca.pem").display()),
        &format!("service `a`: {}", folder.path().join("cert.pem").display()),
        "service `b`",
    ]);
    for line in ["seawall.yaml:3:", "seawall.yaml:8:7", "seawall.yaml:9:7", "seawall.yaml:11:"] {
        assert!(told.contains(line), "{line} not in {told}");
    }
    // The same for `up`.
    let (code, err) = start_failing(&file, &folder.path().join("data"));
    assert_eq!((code, err.matches("error: ").count() >= 6), (Some(2), true), "{err}");

    std::fs::write(folder.path().join("busy.html"), "<p>busy</p>").unwrap();
    new_certificate_named(folder.path(), "b-", 2035);
    new_certificate(folder.path());
    std::fs::copy(folder.path().join("ca.pem"), folder.path().join("who.pem")).unwrap();
    let output = run(&["check", &file.to_string_lossy()], None);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    std::fs::write(folder.path().join("who.pem"), "-----BEGIN NONSENSE-----").unwrap();
    std::fs::copy(folder.path().join("b-key.pem"), folder.path().join("key.pem")).unwrap();
    let mismatch = "the key does not belong to the certificate";
    check(&["who.pem: the authorities' file cannot be read", &format!("key.pem: {mismatch}"), "service `a`"]);
}

#[test]
fn an_instance_that_is_not_trusted_is_told_once_and_answered_at_once() {
    let folder = with_listeners("services: {}\n", UNDER_TLS);
    new_certificate(folder.path());
    let instance = Seawall::up_in(folder);
    let address = listener(&instance, 1);
    let body = format!(
        "services:\n  s: {{ endpoints: [\"{address}\"], tls: {{ caFile: ca.pem }} }}\nroutes:\n  - {{ to: {{ service: s }} }}\n"
    );
    let folder = with_listeners(&body, "\"127.0.0.1:0\"");
    new_certificate(folder.path());
    let seawall = Seawall::up_in(folder);
    for _ in 0..5 {
        let answer = seawall.get("/");
        let reason = "instance-tls:certificate-not-trusted";
        assert_eq!((answer.status, answer.header("seawall-reason")), (502, Some(reason)));
    }
    let told = seawall.stderr().lines().filter(|line| line.contains("no TLS with the instance")).count();
    assert_eq!(told, 1, "{}", seawall.stderr());
}

/// One request on a connection that stays open; the answer's text.
fn ask(stream: &mut TcpStream) -> Option<String> {
    stream.write_all(b"GET /role HTTP/1.1\r\nHost: h\r\n\r\n").ok()?;
    let mut text = String::new();
    while !text.ends_with('}') && !text.ends_with("}\n") {
        let mut chunk = [0; 4_096];
        match stream.read(&mut chunk) {
            Ok(count @ 1..) => text.push_str(&String::from_utf8_lossy(&chunk[..count])),
            _ => return None,
        }
    }
    Some(text)
}

#[test]
fn a_tcp_connection_ends_with_its_primary_and_the_next_one_reaches_the_new() {
    let body = "services:\n  ledger:\n    mode: primary-standby\n    replicas: 2\n    command: [DEMO]\n    \
                onPromote: { httpPost: { path: /promote } }\n";
    let folder = with_listeners(body, "\"127.0.0.1:0\", { address: \"127.0.0.1:0\", tcp: { service: ledger } }");
    let seawall = Seawall::up_in(folder);
    let before = seawall.wait_ready("ledger");
    let connect = || {
        let stream = TcpStream::connect(listener(&seawall, 1)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let mut first = connect();
    let answer = ask(&mut first).unwrap();
    assert!(answer.contains("\"role\":\"primary\""), "{answer}");
    let primary = before["primary"].as_str().unwrap().to_owned();
    assert!(processes::signal(seawall.instance(&primary)["pid"].as_u64().unwrap(), "KILL"));
    assert_eq!(ask(&mut first), None, "the connection ends with the primary");
    // A process that ends closes what it opened last first: its listener may have taken one more connection, and taken
    // it along. Who connects after its end waits for the new primary.
    seawall.event("instance-died", &primary);
    let answer = ask(&mut connect()).unwrap();
    assert!(answer.contains("\"role\":\"primary\"") && !answer.contains(&format!("\"{primary}\"")), "{answer}");

    // A planned switch ends connections, too: nothing must be said to a primary that is stepping down.
    let second = seawall.wait_ready("ledger");
    let mut held = connect();
    ask(&mut held).unwrap();
    let target = primary;
    seawall.cli_exits(0, &["promote", "ledger", &target, "--wait"]);
    assert_ne!(second["primary"], seawall.service("ledger")["primary"]);
    wait("the end of the connection to the old primary", || ask(&mut held).is_none().then_some(()));
}

#[test]
fn a_node_process_that_takes_over_does_without_a_page_that_is_gone() {
    let body = "services:\n  gone: { endpoints: [\"127.0.0.1:1\"], hold: { maxWait: 0 } }\n\
                routes:\n  - { to: { service: gone } }\n";
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let listen = "listen: [\"127.0.0.1:0\"]";
    let text = configuration(body).replace(listen, &format!("{listen}, errorPages: {{ 5xx: busy.html }}"));
    std::fs::write(folder.path().join("seawall.yaml"), text).unwrap();
    std::fs::write(folder.path().join("busy.html"), "<p>busy</p>").unwrap();
    let seawall = Seawall::up_in(folder);
    assert_eq!(seawall.get("/").text(), "<p>busy</p>");
    std::fs::remove_file(seawall.folder().join("busy.html")).unwrap();
    assert!(processes::signal(seawall.node(), "KILL"));
    seawall.event("node-recovered", "");
    let answer = seawall.get("/");
    assert!(answer.status >= 500 && !answer.text().contains("busy"), "{} {}", answer.status, answer.text());
}

#[test]
fn routes_redirect_and_rewrite() {
    let seawall = Seawall::up(
        r"
services:
  orders: { command: [DEMO] }
routes:
  - match: { pathPrefix: /old }
    redirect: { prefix: /orders, status: 301 }
  - match: { pathPrefix: /orders }
    to: { service: orders }
    rewrite: { prefix: / }
    responseHeaders: { set: { X-Frame-Options: DENY } }
",
    );
    let moved = seawall.get("/old/7?x=1");
    let location = format!("http://{}/orders/7?x=1", seawall.gateway);
    assert_eq!((moved.status, moved.header("location")), (301, Some(location.as_str())));
    let answer = seawall.get("/orders/health");
    assert_eq!((answer.status, answer.header("x-frame-options")), (200, Some("DENY")));
}
