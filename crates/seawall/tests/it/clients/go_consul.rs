//! Go's `hashicorp/consul/api`, on which Nomad, Vault, Traefik and most others rest: every group of its calls (`main.go`).

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{fetch, obtained, run};
use crate::support::Seawall;

const MODULE: &str = "github.com/hashicorp/consul/api@v1.34.5";
const MAIN: &str = include_str!("go_consul/main.go");

/// Built where its sources are fetched; under a name that changes with the program.
fn make(folder: &Path) -> Result<(), String> {
    let go = |arguments: &[&str]| fetch(Command::new("go").args(arguments).current_dir(folder));
    go(&["mod", "init", "clients"])?;
    std::fs::write(folder.join("main.go"), MAIN).map_err(|error| error.to_string())?;
    go(&["get", MODULE])?;
    go(&["build", "-o", "client", "."])
}

#[test]
fn what_programs_in_go_do_with_consuls_own_client_works() {
    let Some(folder) = obtained(&format!("go-consul-api-{}", super::digest(&(MAIN, MODULE))), make) else { return };
    let seawall = Seawall::up("");
    let mut client = Command::new(folder.join("client"));
    client.arg(seawall.api.to_string());
    let (passed, said) = run(&mut client, Duration::from_secs(90)).unwrap();
    assert!(passed, "{said}");
    println!("{MODULE}\n{said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("passed ")).count(), 9, "{said}");
}
