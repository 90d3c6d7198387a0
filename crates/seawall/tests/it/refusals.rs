//! Starts that cannot succeed: each ends at once with the exit code, the subject and the cure, and leaves nothing behind.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Seawall, configuration, processes, run, start_failing};

const ONE: &str = "services:\n  demo: { command: [DEMO] }\n";

fn file(folder: &Path, yaml: &str) -> PathBuf {
    let path = folder.join("seawall.yaml");
    std::fs::write(&path, yaml).unwrap();
    path
}

/// Starts and expects exit code and words; nothing runs afterwards.
fn refused(folder: &Path, yaml: &str, data_dir: &Path, code: i32, words: &[&str]) -> String {
    let (exit, err) = start_failing(&file(folder, yaml), data_dir);
    assert_eq!(exit, Some(code), "{err}");
    for word in words {
        assert!(err.contains(word), "`{word}` is missing in: {err}");
    }
    assert_eq!(processes::belonging_to(data_dir), Vec::<u64>::new());
    println!("{}", err.lines().last().unwrap_or_default());
    err
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let gateway = configuration(ONE).replace("listen: [\"127.0.0.1:0\"]", &format!("listen: [\"{address}\"]"));
    refused(
        folder.path(),
        &gateway,
        &folder.path().join("data"),
        1,
        &[&address, "the gateway", "another program has this port"],
    );
    let api =
        configuration(ONE).replace("api: { listen: \"127.0.0.1:0\" }", &format!("api: {{ listen: \"{address}\" }}"));
    refused(
        folder.path(),
        &api,
        &folder.path().join("data"),
        1,
        &[&address, "the API", "another program has this port"],
    );
}

#[test]
fn a_data_directory_in_use_is_left_to_its_owner() {
    let seawall = Seawall::up(&format!("{ONE}routes:\n  - {{ to: {{ service: demo }} }}\n"));
    let folder = tempfile::tempdir().unwrap();
    let yaml = configuration(ONE);
    let (exit, err) = start_failing(&file(folder.path(), &yaml), &seawall.data_dir());
    assert_eq!(exit, Some(1), "{err}");
    let owner = format!("in use by another Seawall (pid {})", seawall.keeper());
    assert!(err.contains(&owner) && err.contains("--data-dir"), "{err}");
    assert_eq!(seawall.get("/").status, 200, "the owner goes on");
    assert_eq!(seawall.instance("demo-0")["restarts"], 0);
}

#[test]
fn a_stop_ends_nothing_of_a_neighbour_whose_directory_begins_with_the_same_letters() {
    let folder = tempfile::tempdir().unwrap();
    let neighbour = folder.path().join("a-neighbour");
    std::fs::create_dir(&neighbour).unwrap();
    let yaml = format!("{ONE}routes:\n  - {{ to: {{ service: demo }} }}\n");
    // `data` and `data-2`: the second one's name begins with the first one's.
    let mut first = Seawall::up(&yaml);
    let second_dir = first.folder().join("data-2");
    let second = file(&neighbour, &configuration(ONE));
    let mut other = Command::new(crate::support::BINARY)
        .args(["up", &second.to_string_lossy(), "--data-dir", &second_dir.to_string_lossy()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let theirs = crate::support::wait("the neighbour's three processes", || {
        Some(processes::belonging_to(&second_dir)).filter(|all| all.len() == 3)
    });
    assert_eq!(first.stop().code(), Some(0));
    let left = theirs.iter().filter(|pid| processes::is_running(**pid)).count();
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(left, 3, "the neighbour's processes were ended, too");
}

#[test]
fn a_data_directory_that_is_no_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    std::fs::write(&data_dir, "a file").unwrap();
    let path = data_dir.to_string_lossy().into_owned();
    refused(
        folder.path(),
        &configuration(ONE),
        &data_dir,
        1,
        &["cannot use the data directory", &path, "a file stands where the directory should be"],
    );
}

/// A file system of this size, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Ignored: a lazy unmount of what was mounted can only fail when somebody else did it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_read_only_data_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = folder.path().join("mounted");
    let Some(_mount) = processes::is_root().then(|| Mount::tmpfs(&mounted, "size=1m,ro")).flatten() else {
        println!("skipped: mounting a read-only file system needs root");
        return;
    };
    let data_dir = mounted.join("data");
    refused(
        folder.path(),
        &configuration(ONE),
        &data_dir,
        1,
        &["cannot use the data directory", "Read-only", "must be writable for this user"],
    );
}

#[test]
fn a_full_data_directory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = folder.path().join("mounted");
    let Some(_mount) = processes::is_root().then(|| Mount::tmpfs(&mounted, "size=64k")).flatten() else {
        println!("skipped: mounting a small file system needs root");
        return;
    };
    // Ignored: it ends with "no space left", which is the point.
    let _ = std::fs::write(mounted.join("ballast"), vec![0; 128 * 1024]);
    let data_dir = mounted.join("data");
    refused(folder.path(), &configuration(ONE), &data_dir, 1, &["the disk is full: free some space"]);
}

#[test]
fn a_disk_with_no_room_for_the_store_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = folder.path().join("mounted");
    let Some(_mount) = processes::is_root().then(|| Mount::tmpfs(&mounted, "size=256k")).flatten() else {
        println!("skipped: mounting a small file system needs root");
        return;
    };
    let data_dir = mounted.join("data");
    refused(
        folder.path(),
        &configuration(ONE),
        &data_dir,
        1,
        &["is full: free at least", "nothing acknowledged is lost"],
    );
}

#[test]
fn every_mistake_of_a_file_is_told_and_nothing_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let yaml = "services:\n  a:\n    comand: [x]\n    replicas: many\nroutes:\n  - { to: { service: b } }\n";
    let err = refused(
        folder.path(),
        yaml,
        &data_dir,
        2,
        &[":3:5", "did you mean `command`?", ":4:15", "nothing was started"],
    );
    assert!(!data_dir.exists(), "{err}");
    let path = file(folder.path(), yaml).to_string_lossy().into_owned();
    let checked = run(&["check", &path], None);
    assert_eq!(checked.status.code(), Some(2));
    let out = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(out.contains(":3:5") && out.contains(":4:15"), "{out}");
}

#[test]
fn a_node_that_cannot_be_reached_is_exit_code_4() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = run(&["--api", &format!("http://{closed}"), "status"], None);
    assert_eq!(output.status.code(), Some(4));
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(err.contains(&closed.to_string()) && err.contains("is `seawall up` running there?"), "{err}");
}
