//! The way back from the worst: a snapshot in a file, and a cluster whose majority is lost for good.

use std::path::Path;

use super::{Cluster, name};
use crate::support::{Seawall, configuration, run, wait};

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn cli(code: i32, arguments: &[&str]) -> (String, String) {
    let output = run(arguments, None);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "seawall {arguments:?}\n{out}\n{err}");
    (out.into_owned(), err.into_owned())
}

#[test]
fn two_of_three_are_lost_for_good_and_one_goes_on() {
    let mut cluster = Cluster::up();
    for place in 0..3 {
        assert_eq!(cluster.put(place, &format!("from-{place}"), "1").status, 200);
    }
    wait("the streams are served", || {
        let answer = cluster.node(2).api("POST", "/api/v1/streams/s?producer=p&seq=1", b"entry");
        (answer.status == 200).then_some(())
    });
    // It has followed whatever the others acknowledged.
    wait("it holds everything", || {
        let answer = cluster.node(2).api("GET", "/api/v1/kv/from-1?stale=true", b"");
        (answer.status == 200).then_some(())
    });
    let data_dir = text(&cluster.node(2).data_dir());
    (0..2).for_each(|place| cluster.kill(place));
    let (_, err) = cli(1, &["cluster", "recover", "--data-dir", &data_dir, "--yes"]);
    assert!(err.contains("in use by another Seawall"), "{err}");
    cluster.kill(2);
    let (out, err) = cli(2, &["cluster", "recover", "--data-dir", &data_dir]);
    assert!(out.contains("store: kept up to index") && out.contains("streams: kept up to index"), "{out}");
    assert!(out.contains("n3 would be the only voter, without n1, n2") && err.contains("--yes"), "{out}\n{err}");
    let (out, _) = cli(0, &["cluster", "recover", "--data-dir", &data_dir, "--yes"]);
    assert!(out.contains("n3 is the only voter now"), "{out}");
    cli(2, &["cluster", "recover", "--data-dir", &data_dir, "--yes"]);

    cluster.start(2);
    assert_eq!(cluster.leader(), 2);
    for place in 0..3 {
        assert_eq!(cluster.get(2, &format!("from-{place}")).as_deref(), Some("1"));
    }
    wait("the streams go on", || {
        let answer = cluster.node(2).api("POST", "/api/v1/streams/s?producer=p&seq=2", b"next");
        (answer.status == 200).then(|| assert_eq!(answer.json()["offset"], 1))
    });
    // One comes back as it was, one with an empty data directory.
    cluster.first = cluster.node(2).ready()["peers"].as_str().unwrap().to_owned();
    for place in 0..2 {
        let folder = cluster.down[&place].path().to_owned();
        cluster.write(place, &folder);
    }
    std::fs::remove_dir_all(cluster.down[&1].path().join("data")).unwrap();
    cluster.start(1);
    wait("it is a voter", || {
        let members = cluster.node(2).status()["cluster"]["members"].as_array()?.clone();
        (members.len() == 2 && members.iter().all(|member| member["role"] == "server")).then_some(())
    });
    wait("it holds everything again", || cluster.get(1, "from-0"));
    // The others know nothing of where it is: it is none of theirs.
    cluster.start_somewhere(0);
    cluster.node(0).wait_for("it is told what to do", |status| {
        let problem = status["store"]["problem"].as_str()?;
        problem.contains("n1 was removed from the cluster: wipe its data directory").then_some(())
    });
    assert_eq!(cluster.put(0, "old", "1").status, 503);
    let names: Vec<String> = cluster.node(2).status()["cluster"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, [name(1), name(2)]);
}

#[test]
fn a_snapshot_is_saved_checked_and_started_from() {
    let cluster = Cluster::up();
    for number in 0..200 {
        assert_eq!(cluster.put(number % 3, &format!("key-{number}"), &"x".repeat(2000)).status, 200);
    }
    for seq in 1..4 {
        let path = format!("/api/v1/streams/ledger?producer=p&seq={seq}");
        assert_eq!(cluster.node(seq % 3).api("POST", &path, format!("entry {seq}").as_bytes()).status, 200);
    }
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let file = text(&folder.path().join("shop.snapshot"));
    let follower = cluster.node((cluster.leader() + 1) % 3);
    let (out, _) = follower.cli_exits(0, &["snapshot", "save", &file]);
    assert!(out.contains("of        cluster shop, saved from n"), "{out}");
    assert!(out.contains("n1 (127.0.0.1:") && out.contains("not in it: logs"), "{out}");
    assert!(out.contains("streams   1, with 3 entries"), "{out}");
    let (_, err) = follower.cli_exits(2, &["snapshot", "save", &file]);
    assert!(err.contains("exists; --force replaces it"), "{err}");
    follower.cli_exits(0, &["snapshot", "save", &file, "--force"]);
    let (whole, _) = cli(0, &["snapshot", "verify", &file]);
    assert!(whole.contains("whole") && whole.contains("revision  "), "{whole}");

    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = text(&folder.path().join("damaged"));
    std::fs::write(&damaged, &bytes).unwrap();
    let (_, err) = cli(1, &["snapshot", "verify", &damaged]);
    assert!(err.contains("is damaged at offset "), "{err}");
    let data_dir = text(&folder.path().join("data"));
    cli(1, &["snapshot", "restore", &damaged, "--data-dir", &data_dir]);
    assert!(!folder.path().join("data").exists(), "nothing is made of a damaged one");
    cli(2, &["snapshot", "verify", &text(&folder.path().join("nowhere"))]);

    let (out, _) = cli(0, &["snapshot", "restore", &file, "--data-dir", &data_dir]);
    assert!(out.contains("next: `seawall up FILE"), "{out}");
    let (_, err) = cli(2, &["snapshot", "restore", &file, "--data-dir", &data_dir]);
    assert!(err.contains("is not empty"), "{err}");
    std::fs::write(folder.path().join("seawall.yaml"), configuration("")).unwrap();
    let alone = Seawall::up_beside(folder);
    for number in [0, 99, 199] {
        assert_eq!(alone.api("GET", &format!("/api/v1/kv/key-{number}"), b"").text().len(), 2000);
    }
    assert_eq!(alone.api("PUT", "/api/v1/kv/after", b"1").status, 200);
    let entries = alone.api("GET", "/api/v1/streams/ledger?from=0", b"").text();
    assert!(entries.lines().count() == 3 && entries.contains("entry 3"), "{entries}");
    let append = |seq: u64| {
        let answer = alone.api("POST", &format!("/api/v1/streams/ledger?producer=p&seq={seq}"), b"entry");
        answer.json()["offset"].as_u64()
    };
    assert_eq!((append(3), append(4)), (Some(2), Some(3)), "what a producer has sent is known");
}

#[test]
fn what_consuls_clients_save_is_unpacked_by_others_and_restored() {
    let saved = Seawall::up("");
    assert_eq!(saved.api("PUT", "/v1/kv/color", b"red").status, 200);
    let answer = saved.api("GET", "/v1/snapshot", b"");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/x-gzip")));
    let elsewhere = saved.api("GET", "/v1/snapshot?dc=elsewhere", b"");
    assert_eq!(elsewhere.status, 500, "{}", elsewhere.text());
    let refused = saved.api("PUT", "/v1/snapshot", &answer.body);
    assert!(refused.status == 501 && refused.text().contains("seawall snapshot restore"), "{}", refused.text());
    let folder = tempfile::Builder::new().prefix("seawall-it-").tempdir().unwrap();
    let file = text(&folder.path().join("backup.tgz"));
    std::fs::write(&file, &answer.body).unwrap();
    let there = std::fs::read_dir(saved.data_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(there.into_iter().all(|name| !name.to_string_lossy().contains("archive")), "what was between is gone");

    let unpacked = folder.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    let done = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).current_dir(&unpacked).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    done("tar", &["-xzf", &file]);
    done("sha256sum", &["--check", "--strict", "SHA256SUMS"]);
    let (whole, _) = cli(0, &["snapshot", "verify", &file]);
    assert!(whole.contains("backup.tgz: whole") && whole.contains("revision  "), "{whole}");
    let cut = text(&folder.path().join("cut.tgz"));
    std::fs::write(&cut, &answer.body[..answer.body.len() / 2]).unwrap();
    let (_, err) = cli(1, &["snapshot", "verify", &cut]);
    assert!(err.contains("cut.tgz") && err.contains("breaks off"), "{err}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3, "nothing is left of what was unpacked");

    let data_dir = text(&folder.path().join("data"));
    cli(0, &["snapshot", "restore", &file, "--data-dir", &data_dir]);
    std::fs::write(folder.path().join("seawall.yaml"), configuration("")).unwrap();
    let restored = Seawall::up_beside(folder);
    assert_eq!(restored.api("GET", "/v1/kv/color?raw", b"").text(), "red");
}
