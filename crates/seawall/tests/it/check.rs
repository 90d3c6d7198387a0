//! `seawall check`: what refuses a file is told with its place and its cure, and a file that passes can be started.

use std::path::Path;

use crate::support::{Seawall, configuration, processes, run, start_failing};

/// Exit code and report of a check.
fn check(folder: &Path, body: &str) -> (Option<i32>, String) {
    let file = folder.join("seawall.yaml");
    std::fs::write(&file, configuration(body)).unwrap();
    let output = run(&["check", &file.to_string_lossy()], None);
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn instance_names_that_collide_are_refused_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    // Each pair would have an instance of the same name, and with it the same log file and the same process.
    let cases = [
        ("a: { versions: { v1: { command: [x] } } }", "a-v1: { command: [x] }", "a-v1-0"),
        ("a: { versions: { '1': { command: [x] } } }", "a-1: { command: [x], replicas: 3 }", "a-1-0"),
        ("a: { versions: { b-c: { command: [x] } } }", "a-b: { versions: { c: { command: [x] } } }", "a-b-c-0"),
    ];
    for (one, other, instance) in cases {
        let (code, report) = check(folder.path(), &format!("services:\n  {one}\n  {other}\n"));
        assert_eq!(code, Some(2), "{report}");
        // The header has three lines, then `services:` and the first one.
        assert!(report.contains("seawall.yaml:6:"), "{report}");
        assert!(report.contains(&format!("would both have an instance `{instance}`")), "{report}");
        assert!(report.contains("cure: rename one of the services or the version"), "{report}");
    }
    // Names that only look alike.
    let fine = "services:\n  a: { command: [x], replicas: 12 }\n  a-1: { command: [x], replicas: 2 }\n";
    let (code, report) = check(folder.path(), fine);
    assert_eq!(code, Some(0), "{report}");
}

#[test]
fn a_working_directory_that_does_not_exist_is_told_with_all_other_mistakes() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("run")).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let body = "services:\n  a: { command: [x], workingDir: run }\n  b: { command: [x], workingDir: rnu }\n  c: { command: [x], workingDir: ./file }\n  d: { command: [x], replicsa: 2 }\nroutes:\n  - { match: { pathRegex: '(' }, to: { service: a } }\n";
    let (code, report) = check(folder.path(), body);
    assert_eq!(code, Some(2), "{report}");
    let there_is_none = |name: &str| format!("workingDir: there is no folder {}", folder.path().join(name).display());
    assert!(
        report.contains("seawall.yaml:6:22: error: service `b`") && report.contains(&there_is_none("rnu")),
        "{report}"
    );
    assert!(
        report.contains("seawall.yaml:7:22: error: service `c`") && report.contains(&there_is_none("file")),
        "{report}"
    );
    assert!(report.contains("seawall.yaml:8:22: error: unknown key `replicsa`"), "{report}");
    assert!(report.contains("seawall.yaml:10:16: error: `(` is no regular expression"), "{report}");
    assert_eq!(report.matches("error:").count(), 4, "{report}");
    let fine = body.lines().filter(|line| !line.contains("b: {") && !line.contains("c: {"));
    let fine =
        fine.map(|line| line.replace("replicsa", "replicas").replace("'('", "'/a.*'") + "\n").collect::<String>();
    let (code, report) = check(folder.path(), &fine);
    assert_eq!(code, Some(0), "{report}");
    // The same at a start, and for a node that runs: nothing is changed.
    std::fs::write(folder.path().join("seawall.yaml"), configuration(body)).unwrap();
    let (exit, err) = start_failing(&folder.path().join("seawall.yaml"), &folder.path().join("data"));
    assert!(exit == Some(2) && err.contains(&there_is_none("rnu")), "{err}");
    let seawall = Seawall::up("services:\n  a: { command: [DEMO] }\n");
    let (_, err) = seawall.apply(2, "services:\n  a: { command: [DEMO], workingDir: gone }\n");
    assert!(
        err.contains("seawall.yaml:5:") && err.contains("there is no folder") && err.contains("nothing was changed"),
        "{err}"
    );
    std::fs::create_dir(seawall.folder().join("gone")).unwrap();
    seawall.apply(2, "services:\n  a: { command: [DEMO], workingDir: gone, replicsa: 1 }\n");
    let text = std::fs::read_to_string(seawall.file()).unwrap().replace(", replicsa: 1", "").replace("gone", "away");
    std::fs::write(seawall.file(), text).unwrap();
    processes::signal(seawall.keeper(), "HUP");
    let rejected = seawall.event("config-rejected", "");
    assert!(rejected["message"].as_str().unwrap().contains("there is no folder"), "{rejected}");
}

#[test]
fn two_voters_are_told_that_they_cannot_fail_over_and_three_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let told = |nodes: &str| {
        let dir = folder.path().join(nodes);
        let made = run(&["cluster", "init", "--dir", &dir.to_string_lossy(), "--nodes", nodes], None);
        assert!(made.status.success(), "{made:?}");
        // The others alone, as many write it.
        let body = format!(
            "node: {{ name: n1, peers: {{ listen: \"127.0.0.1:8301\", join: [\"127.0.0.1:8302\", \"127.0.0.1:8303\"] }} }}\n\
             cluster: {{ name: shop, tls: {{ dir: {dir:?} }} }}\n"
        );
        let file = folder.path().join("n1.yaml");
        std::fs::write(&file, body).unwrap();
        let checked = run(&["check", &file.to_string_lossy()], None);
        assert_eq!(checked.status.code(), Some(0), "{checked:?}");
        String::from_utf8_lossy(&checked.stdout).contains("cannot fail over")
    };
    assert_eq!((told("n1,n2"), told("n1,n2,n3")), (true, false));
}
