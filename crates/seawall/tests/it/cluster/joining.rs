//! Nodes that come with a token, and certificates that are renewed while everything goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

use super::{Cluster, name};
use crate::support::{Seawall, http, run, wait};

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn join(code: i32, token: &str, dir: &Path) -> (String, String) {
    let output = run(&["cluster", "join", token, "--dir", &text(dir)], None);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "join\n{out}\n{err}");
    (out.into_owned(), err.into_owned())
}

/// A folder for each of the three, as on machines of their own; the first alone has the authority's key.
fn apart(cluster: &mut Cluster) -> Vec<PathBuf> {
    let shared = cluster.pki.path().join("pki");
    let mut folders = Vec::new();
    for place in 0..3 {
        let folder = cluster.pki.path().join(name(place));
        std::fs::create_dir(&folder).unwrap();
        let own = [format!("{}.pem", name(place)), format!("{}.key", name(place))];
        let mut files = vec!["ca.pem", "founders", &own[0], &own[1]];
        if place == 0 {
            files.push("ca.key");
        }
        for file in files {
            std::fs::copy(shared.join(file), folder.join(file)).unwrap();
        }
        folders.push(folder);
    }
    folders
}

#[test]
fn a_token_lets_one_node_in_once() {
    let cluster = Cluster::up();
    let dir = cluster.pki.path().join("pki");
    assert_eq!(cluster.put(1, "before", "1").status, 200);
    let token = |node: &str, more: &[&str]| {
        let (out, _) = cluster.node(1).cli_exits(0, &[&["cluster", "token", node], more].concat());
        out.trim().to_owned()
    };
    cluster.node(1).cli_exits(1, &["cluster", "token", "not/a/name"]);
    cluster.node(1).cli_exits(1, &["cluster", "token", "n4", "--valid", "25h"]);
    cluster.node(1).cli_exits(2, &["cluster", "token", "n4", "--valid", "soon"]);

    // Through any member: here the one that has been asked first.
    let good = token("n4", &[]);
    let stored = cluster.node(0).api("GET", "/api/v1/kv?prefix=true", b"").text();
    assert!(!stored.contains("token"), "tokens are control state: {stored}");
    let new = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let pki = new.path().join("pki");
    let (out, _) = join(0, &good, &pki);
    assert!(out.contains("name: n4") && out.contains("name: shop"), "{out}");
    for file in ["ca.pem", "n4.pem", "n4.key"] {
        assert!(pki.join(file).is_file(), "{file}");
    }
    let (_, err) = join(1, &good, &new.path().join("again"));
    assert!(err.contains("this token is not good: it was used"), "{err}");
    assert!(!new.path().join("again").join("n4.key").exists(), "no key is left behind");
    let (_, err) = join(2, &good, &pki);
    assert!(err.contains("has files of n4 already"), "{err}");
    join(2, "seawall1.nonsense", &new.path().join("again"));

    let short = token("n5", &["--valid", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    let (_, err) = join(1, &short, &new.path().join("late"));
    assert!(err.contains("has expired"), "{err}");

    // It joins as any other.
    cluster.write_as(3, new.path(), "shop", &pki);
    let checked = run(&["check", &text(&new.path().join("seawall.yaml"))], None);
    let shown = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(shown.contains("n4.pem: the node's certificate ends at"), "{shown}");
    let fourth = Seawall::up_beside(new);
    fourth.wait_for("a vote", |status| {
        let members = status["cluster"]["members"].as_array()?;
        members.iter().find(|member| member["name"] == "n4" && member["role"] == "server").map(drop)
    });
    assert_eq!(fourth.api("GET", "/api/v1/kv/before", b"").text(), "1");
    // Without the authority's key anywhere, a token is not made, and says what to do.
    std::fs::rename(dir.join("ca.key"), dir.join("elsewhere")).unwrap();
    let (_, err) = cluster.node(1).cli_exits(1, &["cluster", "token", "n6"]);
    assert!(err.contains("no member that can be reached has the authority's key"), "{err}");
}

#[test]
fn a_token_is_for_its_name_and_reaches_whoever_can_sign() {
    let mut cluster = Cluster::up();
    let folders = apart(&mut cluster);
    for (place, folder) in folders.iter().enumerate() {
        cluster.stop(place);
        let written = cluster.down[&place].path().to_owned();
        cluster.write_as(place, &written, "shop", folder);
        cluster.start(place);
        if place == 0 {
            cluster.first = cluster.node(0).ready()["peers"].as_str().unwrap().to_owned();
        }
    }
    let leader = cluster.leader();
    // Asked of one that cannot sign itself.
    let asked = if leader == 1 { 2 } else { 1 };
    let made = wait("somebody can sign", || {
        let output = cluster.node(asked).cli(&["cluster", "token", "n4"]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    });
    // Only addresses of members without the key are left in it, and another name.
    let body = made.strip_prefix("seawall1.").unwrap();
    let mut token: serde_json::Value = serde_json::from_slice(&decoded(body)).unwrap();
    token["addresses"] = serde_json::json!([cluster.node(1).ready()["peers"], cluster.node(2).ready()["peers"]]);
    token["node"] = "n5".into();
    let new = tempfile::tempdir().unwrap();
    let other = format!("seawall1.{}", encoded(token.to_string().as_bytes()));
    let (_, err) = join(1, &other, &new.path().join("n5"));
    assert!(err.contains("this token is for a node called `n4`, not `n5`"), "{err}");
    token["authority"] = "00".repeat(32).into();
    token["node"] = "n4".into();
    let strange = format!("seawall1.{}", encoded(token.to_string().as_bytes()));
    let (_, err) = join(4, &strange, &new.path().join("strange"));
    assert!(err.contains("no member answers"), "{err}");
    token["authority"] = serde_json::from_slice::<serde_json::Value>(&decoded(body)).unwrap()["authority"].clone();
    let relayed = format!("seawall1.{}", encoded(token.to_string().as_bytes()));
    join(0, &relayed, &new.path().join("n4"));
}

/// base64url without padding.
fn encoded(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0_u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for digit in 0..=three.len() {
            text.push(char::from(DIGITS[(word >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

fn decoded(text: &str) -> Vec<u8> {
    let digit = |character: u8| match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'-' => 62,
        _ => 63,
    };
    let mut bytes = Vec::new();
    for four in text.as_bytes().chunks(4) {
        let word = four.iter().fold(0_u32, |word, character| word << 6 | u32::from(digit(*character)));
        let word = word << (6 * (4 - four.len()));
        bytes.extend_from_slice(&word.to_be_bytes()[1..four.len()]);
    }
    bytes
}

/// Replaces a node's certificate by one that began 100 s ago and ends in so many.
pub fn shorten(folder: &Path, node: &str, authority: &Path, left: Duration) {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let issuer = KeyPair::from_pem(&read(authority.join("ca.key"))).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read(authority.join("ca.pem")), issuer).unwrap();
    let key = KeyPair::from_pem(&read(folder.join(format!("{node}.key")))).unwrap();
    let mut parameters = CertificateParams::new(vec!["peer.seawall.internal".to_owned()]).unwrap();
    parameters.distinguished_name.push(DnType::CommonName, node);
    let now = SystemTime::now();
    parameters.not_before = (now - Duration::from_secs(100)).into();
    parameters.not_after = (now + left).into();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join(format!("{node}.pem")), certificate.pem()).unwrap();
}

#[test]
fn certificates_are_renewed_under_load_without_a_failed_request() {
    let mut cluster = Cluster::up();
    let folders = apart(&mut cluster);
    let shared = cluster.pki.path().join("pki");
    let left = Duration::from_secs(40);
    for place in 0..3 {
        cluster.stop(place);
    }
    let ends = std::time::Instant::now() + left;
    for (place, folder) in folders.iter().enumerate() {
        shorten(folder, &name(place), &shared, left);
        let written = cluster.down[&place].path().to_owned();
        cluster.write_as(place, &written, "shop", folder);
        cluster.start(place);
        if place == 0 {
            cluster.first = cluster.node(0).ready()["peers"].as_str().unwrap().to_owned();
        }
    }
    cluster.leader();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|place| {
            let (stop, api) = (Arc::clone(&stop), cluster.node(place).api);
            std::thread::spawn(move || {
                let (mut done, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match http::request(api, "PUT", &format!("/api/v1/kv/w{place}"), &[], b"1") {
                        Ok(answer) if answer.status == 200 => done += 1,
                        other => failed.push(format!("{other:?}")),
                    }
                }
                (done, failed)
            })
        })
        .collect();
    for place in 0..3 {
        let node = cluster.node(place);
        wait("it is renewed", || (!node.events_of("node-certificate-renewed").is_empty()).then_some(()));
        let (shown, _) = node.cli_exits(0, &["tls"]);
        assert!(shown.contains(&format!("{}.pem", name(place))) && shown.contains("members"), "{shown}");
        wait("it is in force", || node.stderr().contains("the node's changed certificate is in force").then_some(()));
    }
    // The old ones have ended: new connections show the new ones.
    while std::time::Instant::now() < ends + Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    stop.store(true, Ordering::Relaxed);
    let mut done = 0;
    for writer in writers {
        let (count, failed) = writer.join().unwrap();
        assert_eq!(failed, Vec::<String>::new());
        done += count;
    }
    println!("writes while all three certificates were renewed: {done}, 0 failed");
    assert!(done > 100, "{done}");
    cluster.stop(2);
    cluster.start(2);
    wait("who starts now is let in", || (cluster.put(2, "after", "1").status == 200).then_some(()));
}

#[test]
fn a_certificate_that_nobody_renews_is_told_of() {
    let mut cluster = Cluster::up();
    let shared = cluster.pki.path().join("pki");
    let place = 2;
    cluster.stop(place);
    shorten(&shared, &name(place), &shared, Duration::from_secs(15));
    std::fs::remove_file(shared.join("ca.key")).unwrap();
    cluster.start(place);
    let node = cluster.node(place);
    let told = wait("it is told", || node.events_of("node-certificate-expires").into_iter().next());
    let message = told["message"].as_str().unwrap();
    assert!(
        message.contains("n3.pem") && message.contains("no member that can be reached has the authority's key"),
        "{message}"
    );
}
