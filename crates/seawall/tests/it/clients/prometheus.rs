//! Prometheus: the program itself with `http_sd_configs`, and its own discovery, as a program of its own, with
//! `consul_sd_configs`, which Debian's build leaves out. Targets appear as they register, and leave as they go.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::{Ended, Program, fetch, obtained, register, skipped};
use crate::support::pebble::free_addresses;
use crate::support::{Seawall, http, wait};

const MODULE: &str = "github.com/prometheus/prometheus";
const VERSION: &str = "v0.316.0";
const DISCOVERY: &str = include_str!("prometheus/discovery.go");

fn deregister(seawall: &Seawall, id: &str) {
    let gone = seawall.api("PUT", &format!("/v1/agent/service/deregister/{id}"), b"");
    assert_eq!(gone.status, 200, "{}", gone.text());
}

#[test]
fn prometheus_scrapes_what_http_sd_tells_it_and_nothing_else() {
    if let Err(error) = Command::new("prometheus").arg("--version").output() {
        return skipped("prometheus", &format!("{error} (Debian: prometheus)"));
    }
    let seawall = Seawall::up("services: { shop: { command: [DEMO] } }\n");
    let [listen] = free_addresses();
    let file = seawall.folder().join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 1s }}\n\
         scrape_configs:\n\
         - job_name: services\n  \
           http_sd_configs: [{{ url: \"http://{}/api/v1/sd/prometheus\", refresh_interval: 1s }}]\n  \
           relabel_configs: [{{ source_labels: [__meta_seawall_instance_id], target_label: id }}]\n",
        seawall.api
    );
    std::fs::write(&file, text).unwrap();
    let log = std::fs::File::create(seawall.folder().join("prometheus.log")).unwrap();
    let mut prometheus = Command::new("prometheus");
    prometheus.arg(format!("--config.file={}", file.display())).arg(format!("--web.listen-address={listen}"));
    prometheus.arg(format!("--storage.tsdb.path={}", seawall.folder().join("tsdb").display()));
    prometheus.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let _prometheus = Ended(prometheus.spawn().unwrap());
    let (one, two) = (Program::start("one"), Program::start("two"));
    register(&seawall, "web", "web-1", &one);
    register(&seawall, "web", "web-2", &two);
    // Targets by id, with how their last scrape ended.
    let targets = || {
        let answer = http::request(listen, "GET", "/api/v1/targets?state=active", &[], b"").ok()?;
        let found: Value = serde_json::from_slice(&answer.body).ok()?;
        let of = |one: &Value| (one["labels"]["id"].as_str().unwrap_or_default().to_owned(), one["health"] == "up");
        let mut found: Vec<_> = found["data"]["activeTargets"].as_array()?.iter().map(of).collect();
        found.sort_unstable();
        Some(found)
    };
    let up = |id: &str| (id.to_owned(), true);
    wait("all three are scraped", || (targets()? == [up("shop-0"), up("web-1"), up("web-2")]).then_some(()));
    deregister(&seawall, "web-2");
    wait("one has left", || (targets()? == [up("shop-0"), up("web-1")]).then_some(()));
}

fn make(folder: &Path) -> Result<(), String> {
    let go = |arguments: &[&str]| fetch(Command::new("go").args(arguments).current_dir(folder));
    go(&["mod", "init", "clients"])?;
    std::fs::write(folder.join("main.go"), DISCOVERY).map_err(|error| error.to_string())?;
    let (discovery, consul) = (format!("{MODULE}/discovery@{VERSION}"), format!("{MODULE}/discovery/consul@{VERSION}"));
    go(&["get", &discovery, &consul])?;
    go(&["mod", "tidy"])?;
    go(&["build", "-o", "client", "."])
}

#[test]
fn prometheus_own_discovery_finds_targets_as_consul_has_them_and_loses_them() {
    let Some(folder) = obtained(&format!("prometheus-discovery-{}", super::digest(&(DISCOVERY, VERSION))), make) else {
        return;
    };
    let seawall = Seawall::up("");
    let mut discovery = Command::new(folder.join("client"));
    discovery.arg(format!("{{ server: \"{}\", tags: [v1], refresh_interval: 1s }}", seawall.api));
    discovery.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut discovery = Ended(discovery.spawn().unwrap());
    let newest = Arc::new(Mutex::new(Value::Null));
    let (output, told) = (discovery.0.stdout.take().unwrap(), Arc::clone(&newest));
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            *told.lock().unwrap() = serde_json::from_str(&line).unwrap();
        }
    });
    let targets = |wanted: &[&str]| {
        wait(&format!("targets {wanted:?}"), || {
            let all = newest.lock().unwrap().clone();
            let ids: Vec<&str> =
                all.as_array()?.iter().filter_map(|one| one["__meta_consul_service_id"].as_str()).collect();
            (ids == wanted).then_some(all)
        })
    };
    let (one, two) = (Program::start("one"), Program::start("two"));
    register(&seawall, "web", "web-1", &one);
    let found = targets(&["web-1"]);
    for (label, value) in [
        ("__address__", one.address.to_string().as_str()),
        ("__meta_consul_dc", "local"),
        ("__meta_consul_node", "test"),
        ("__meta_consul_service", "web"),
        ("__meta_consul_tags", ",v1,"),
    ] {
        assert_eq!(found[0][label], value, "{label}: {found}");
    }
    register(&seawall, "web", "web-2", &two);
    targets(&["web-1", "web-2"]);
    deregister(&seawall, "web-1");
    targets(&["web-2"]);
    deregister(&seawall, "web-2");
    targets(&[]);
}
