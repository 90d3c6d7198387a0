//! What a start makes of the place it is given.

use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Seawall, configuration};

const ONE: &str = "services:\n  demo: { command: [DEMO] }\n";

#[test]
fn the_data_directory_is_closed_to_other_users() {
    let mode = |seawall: &Seawall| std::fs::metadata(seawall.data_dir()).unwrap().permissions().mode() & 0o7777;
    let fresh = Seawall::up(ONE);
    assert_eq!(mode(&fresh), 0o700, "one that Seawall makes");
    drop(fresh);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("seawall.yaml"), configuration(ONE)).unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755)).unwrap();
    let found = Seawall::up_in(folder);
    assert_eq!(mode(&found), 0o700, "one that was there, as after an upgrade");
}

#[test]
fn a_fixed_port_inside_the_range_is_kept_for_its_service() {
    // Hardly more ports than instances: whoever is given the fixed one leaves its service without. Services start in
    // the order of their names, so the fixed one is the last to ask.
    let folder = tempfile::tempdir().unwrap();
    let header = configuration("");
    let first: u16 = header.split("instancePorts: \"").nth(1).unwrap()[..5].parse().unwrap();
    let (last, fixed) = (first + 7, first + 4);
    let header = header.replace(&format!("{first}-{}", first + 59), &format!("{first}-{last}"));
    let demo = configuration("DEMO").lines().last().unwrap().to_owned();
    let body = format!(
        "services:\n  many: {{ command: [{demo}], replicas: 5 }}\n  one: {{ command: [{demo}], ports: [{fixed}] }}\n"
    );
    std::fs::write(folder.path().join("seawall.yaml"), header + &body).unwrap();
    let seawall = Seawall::up_in(folder);
    assert_eq!(seawall.instance("one-0")["address"], format!("127.0.0.1:{fixed}"));
    for name in ["many", "one"] {
        let service = seawall.wait_ready(name);
        let restarts: u64 =
            service["instances"].as_array().unwrap().iter().filter_map(|one| one["restarts"].as_u64()).sum();
        assert_eq!(restarts, 0, "{service}");
    }
}
