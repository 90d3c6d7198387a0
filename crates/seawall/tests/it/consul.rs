//! Consul's HTTP API: what its clients call, as they call it.

mod acl;
mod checks;
mod faults;
mod keys;
mod table;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::http::{self, Answer};
use crate::support::{Seawall, wait};

const SHOP: &str = "services: { shop: { command: [DEMO], replicas: 2, readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 } } }\n";

fn put(seawall: &Seawall, path: &str, body: &Value) -> Answer {
    seawall.api("PUT", path, body.to_string().as_bytes())
}

fn done(answer: &Answer) {
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn index(answer: &Answer) -> u64 {
    let index = answer.header("x-consul-index").unwrap().parse().unwrap();
    assert_ne!(index, 0);
    index
}

fn ids(answer: &Answer) -> Vec<String> {
    let body = answer.json();
    let list = body.as_array().unwrap_or_else(|| panic!("a list: {body}")).clone();
    list.iter().map(|one| one["Service"]["ID"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn what_seawall_runs_and_what_registers_itself_are_found_in_the_same_way() {
    let seawall = Seawall::up(SHOP);
    let of = |name: &str| seawall.api("GET", &format!("/v1/health/service/{name}?passing"), b"");
    wait("both instances in the catalog", || (ids(&of("shop")) == ["shop-0", "shop-1"]).then_some(()));
    let answer = of("shop");
    for (header, value) in
        [("x-consul-knownleader", "true"), ("x-consul-lastcontact", "0"), ("x-consul-effective-consistency", "leader")]
    {
        assert_eq!(answer.header(header), Some(value), "{header}");
    }
    assert_eq!(answer.json()[0]["Node"]["Node"], "test");
    // In either spelling, and it answers 200 with nothing.
    let answer = put(
        &seawall,
        "/v1/agent/service/register",
        &json!({ "name": "web", "id": "web-1", "port": 80, "tags": ["v1"], "check": { "ttl": "60s" } }),
    );
    done(&answer);
    assert!(answer.body.is_empty());
    let camel = json!({ "Name": "web", "ID": "web-2", "Port": 81, "EnableTagOverride": true, "Check": { "TTL": "60s", "Status": "passing" } });
    done(&put(&seawall, "/v1/agent/service/register", &camel));
    assert_eq!(ids(&of("web")), ["web-2"], "the other one has not spoken up yet");
    done(&seawall.api("PUT", "/v1/agent/check/pass/service:web-1?note=fine", b""));
    assert_eq!(ids(&of("web")), ["web-1", "web-2"]);
    assert_eq!(
        seawall.api("GET", "/v1/catalog/services", b"").json(),
        json!({ "consul": [], "shop": [], "web": ["v1"] })
    );
    // A filter, a tag, maintenance.
    let filtered = seawall.api("GET", "/v1/health/service/web?filter=Service.Port%20%3D%3D%2081", b"");
    assert_eq!(ids(&filtered), ["web-2"]);
    assert_eq!(ids(&seawall.api("GET", "/v1/health/service/web?tag=v1", b"")), ["web-1"]);
    done(&seawall.api("PUT", "/v1/agent/service/maintenance/web-1?enable=true&reason=disk", b""));
    assert_eq!(ids(&of("web")), ["web-2"]);
    done(&seawall.api("PUT", "/v1/agent/service/maintenance/web-1?enable=false", b""));
    for id in ["web-1", "web-2"] {
        done(&seawall.api("PUT", &format!("/v1/agent/service/deregister/{id}"), b""));
    }
    assert!(ids(&of("web")).is_empty());
    // What Seawall runs is its own.
    for path in ["/v1/agent/service/deregister/shop-0", "/v1/agent/service/maintenance/shop-0?enable=true"] {
        let refused = seawall.api("PUT", path, b"");
        assert_eq!(refused.status, 403, "{path}: {}", refused.text());
    }
    let without_type = json!({ "Name": "web", "Check": { "Interval": "5s" } });
    let refused = put(&seawall, "/v1/agent/service/register", &without_type);
    assert_eq!((refused.status, refused.text().contains("a check needs a type")), (400, true), "{}", refused.text());
    let gone = seawall.api("PUT", "/v1/agent/check/pass/service:web-1", b"");
    assert_eq!(gone.status, 404, "{}", gone.text());
}

#[test]
fn an_instance_that_is_not_ready_leaves_the_catalog_and_comes_back() {
    let seawall = Seawall::up(SHOP);
    let passing = || ids(&seawall.api("GET", "/v1/health/service/shop?passing=1", b""));
    wait("both instances", || (passing().len() == 2).then_some(()));
    seawall.fault("shop-1", "unready");
    wait("one instance", || (passing() == ["shop-0"]).then_some(()));
    seawall.fault("shop-1", "none");
    wait("both again", || (passing().len() == 2).then_some(()));
}

#[test]
fn a_blocking_query_wakes_for_its_own_service_and_for_no_other() {
    let seawall = Seawall::up("");
    let register = |name: &str, id: &str| {
        done(&put(&seawall, "/v1/agent/service/register", &json!({ "Name": name, "ID": id })));
    };
    register("web", "web-1");
    let first = seawall.api("GET", "/v1/health/service/web", b"");
    let known = index(&first);
    let api = seawall.api;
    let waiting = std::thread::spawn(move || {
        let began = Instant::now();
        let path = format!("/v1/health/service/web?index={known}&wait=20s");
        (http::request(api, "GET", &path, &[], b"").unwrap(), began.elapsed())
    });
    for n in 0..50 {
        register("other", &format!("other-{n}"));
    }
    assert!(!waiting.is_finished(), "fifty changes of another service are none of its own");
    register("web", "web-2");
    let (answer, took) = waiting.join().unwrap();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(ids(&answer), ["web-1", "web-2"]);
    let after = index(&answer);
    assert!(after > known);
    // Nothing happens: it answers when its time is over, with the index it was asked with.
    let began = Instant::now();
    let same = seawall.api("GET", &format!("/v1/health/service/web?index={after}&wait=500ms"), b"");
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert_eq!(index(&same), after);
    // The last instance goes: the index grows all the same. Spring begins with -1.
    for id in ["web-1", "web-2"] {
        done(&seawall.api("PUT", &format!("/v1/agent/service/deregister/{id}"), b""));
    }
    let gone = seawall.api("GET", &format!("/v1/health/service/web?index={after}&wait=20s"), b"");
    assert!(ids(&gone).is_empty() && index(&gone) > after);
    assert_eq!(seawall.api("GET", "/v1/health/service/web?index=-1", b"").status, 200);
}

#[test]
fn machines_without_a_seawall_are_written_into_the_catalog() {
    let seawall = Seawall::up("");
    let yes = put(
        &seawall,
        "/v1/catalog/register",
        &json!({ "Node": "db-host", "Address": "10.1.1.1", "NodeMeta": { "rack": "a" },
            "Service": { "Service": "db", "Port": 5432, "Tags": ["main"] },
            "Check": { "Name": "db up", "Status": "passing", "ServiceID": "db" } }),
    );
    assert_eq!((yes.status, yes.text().as_str()), (200, "true"));
    let found = seawall.api("GET", "/v1/catalog/service/db?node-meta=rack:a", b"").json();
    assert_eq!((found[0]["Node"].as_str(), found[0]["Address"].as_str()), (Some("db-host"), Some("10.1.1.1")));
    assert_eq!(seawall.api("GET", "/v1/catalog/service/db?node-meta=rack:b", b"").json(), json!([]));
    assert_eq!(ids(&seawall.api("GET", "/v1/health/service/db?passing", b"")), ["db"]);
    assert_eq!(seawall.api("GET", "/v1/health/state/critical", b"").json(), json!([]));
    let nodes = seawall.api("GET", "/v1/catalog/nodes?near=test", b"").json();
    assert_eq!((nodes[0]["Node"].as_str(), nodes[1]["Node"].as_str()), (Some("test"), Some("db-host")));
    // The machine of a Seawall that is alive stays.
    assert_eq!(put(&seawall, "/v1/catalog/deregister", &json!({ "Node": "test" })).status, 403);
    done(&put(&seawall, "/v1/catalog/deregister", &json!({ "Node": "db-host" })));
    assert_eq!(seawall.api("GET", "/v1/catalog/services", b"").json(), json!({ "consul": [] }));
}

#[test]
fn bad_input_changes_nothing_and_is_told_why() {
    let seawall = Seawall::up("");
    let register = "/v1/agent/service/register";
    for (path, body, status, says) in [
        (register, "{".to_owned(), 400, "decode"),
        (register, json!({ "Name": "" }).to_string(), 400, "a service needs a name"),
        (register, json!({ "Name": "a", "Port": 70_000 }).to_string(), 400, "Port"),
        (register, json!({ "Name": "a", "Tags": ["x".repeat(1 << 20)] }).to_string(), 400, "the limit is 65536"),
        (
            register,
            json!({ "Name": "a", "Check": { "HTTP": "http://a/", "Interval": "soon" } }).to_string(),
            400,
            "10s",
        ),
        (register, json!({ "Name": "a", "Check": { "Args": ["id"], "Interval": "5s" } }).to_string(), 400, "disabled"),
        ("/v1/catalog/register", json!({ "Node": "a" }).to_string(), 400, "address"),
        (
            "/v1/catalog/register",
            json!({ "Node": "a", "Address": "b", "Datacenter": "mars" }).to_string(),
            500,
            "No path",
        ),
        ("/v1/agent/check/pass/none", String::new(), 404, "Unknown check"),
        ("/v1/agent/maintenance", String::new(), 400, "enable"),
    ] {
        let answer = seawall.api("PUT", path, body.as_bytes());
        assert_eq!(answer.status, status, "{path} {}: {}", &body[..body.len().min(80)], answer.text());
        assert!(answer.text().contains(says), "{path}: {}", answer.text());
    }
    for (path, status) in [
        ("/v1/health/service/a?filter=x%20%3D", 400),
        ("/v1/health/service/a?index=x", 400),
        ("/v1/health/service/a?wait=x&index=1", 400),
        ("/v1/health/service/a?stale&consistent", 400),
        ("/v1/health/service/a?dc=mars", 500),
        ("/v1/health/state/fine", 400),
        ("/v1/acl/tokens", 401),
        ("/v1/nothing", 404),
    ] {
        assert_eq!(seawall.api("GET", path, b"").status, status, "{path}");
    }
    assert_eq!(seawall.api("GET", "/v1/catalog/services", b"").json(), json!({ "consul": [] }));
    assert_eq!(seawall.api("GET", "/v1/agent/checks", b"").json(), json!({}));
}

#[test]
fn consuls_api_obeys_only_the_user_that_runs_seawall_or_the_token() {
    let seawall = Seawall::up("");
    let ask = |method, path, headers: &[(&str, &str)]| http::request(seawall.api, method, path, headers, b"").unwrap();
    let foreign = [("host", "evil.example")];
    assert_eq!(ask("GET", "/v1/catalog/services", &foreign).status, 403);
    let origin = [("origin", "http://evil.example")];
    assert_eq!(ask("PUT", "/v1/kv/a", &origin).status, 403);
    assert_eq!(ask("GET", "/v1/kv/a", &[("x-consul-token", "guessed")]).status, 403);
    assert_eq!(ask("GET", "/v1/kv/a?token=guessed", &[]).status, 403);
    assert_eq!(ask("PUT", "/v1/agent/maintenance?enable=true", &[("x-consul-token", "guessed")]).status, 403);
    let token = std::fs::read_to_string(seawall.data_dir().join("api-token")).unwrap();
    assert_eq!(ask("GET", "/v1/kv/a", &[("x-consul-token", token.trim())]).status, 404);
    // What shows no more than the status does is open.
    assert_eq!(ask("GET", "/v1/catalog/services", &[("x-consul-token", "guessed")]).status, 200);
}

#[test]
fn what_is_registered_survives_the_node_process_and_the_machine() {
    let seawall = Seawall::up(SHOP);
    done(&put(
        &seawall,
        "/v1/agent/service/register",
        &json!({ "Name": "web", "Port": 1, "Check": { "TTL": "1h", "Status": "passing" } }),
    ));
    let there = |seawall: &Seawall| {
        wait("everything in the catalog", || {
            let shop = seawall.api("GET", "/v1/health/service/shop?passing", b"");
            let web = seawall.api("GET", "/v1/health/service/web?passing", b"");
            (shop.status == 200 && ids(&shop).len() == 2 && ids(&web) == ["web"]).then(|| index(&web))
        })
    };
    let before = there(&seawall);
    let node = seawall.node();
    crate::support::processes::signal(node, "KILL");
    wait("another node process", || (seawall.node() != node).then_some(()));
    assert!(there(&seawall) >= before);
    let again = Seawall::up_beside(seawall.into_folder());
    assert!(there(&again) >= before);
}

#[test]
fn the_status_shows_what_others_run_as_text_and_as_json() {
    let seawall = Seawall::up(SHOP);
    let one = |id: &str, status: &str| json!({ "Name": "web", "ID": id, "Check": { "TTL": "1h", "Status": status } });
    assert!(seawall.status()["registered"].is_null(), "nobody has registered");
    for (id, status) in [("web-1", "passing"), ("web-2", "warning"), ("web-3", "critical")] {
        done(&put(&seawall, "/v1/agent/service/register", &one(id, status)));
    }
    let web = json!([{ "name": "web", "passing": 1, "warning": 1, "critical": 1 }]);
    assert_eq!(seawall.status()["registered"], web);
    let row = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("web ")).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no row: {text}")).split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let (text, _) = seawall.cli_exits(0, &["status"]);
    assert_eq!(row(&text), ["web", "degraded", "1", "1", "1"], "{text}");
    let (text, _) = seawall.cli_exits(0, &["status", "web"]);
    assert!(row(&text).len() == 5 && !text.contains("shop"), "{text}");
    // Each instance, the worst first, with what its checks say.
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("web-")).collect();
    let begins = |at: usize, id: &str, word: &str| lines[at].starts_with(id) && lines[at].contains(word);
    assert!(begins(0, "web-3", " down ") && begins(1, "web-2", " degraded ") && begins(2, "web-1", " ready"), "{text}");
    assert!(lines[0].contains("Service 'web' check is critical"), "{text}");
    let (text, _) = seawall.cli_exits(0, &["status", "web", "-o", "json"]);
    let shown: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&shown["registered"], &shown["services"]), (&web, &json!([])));
    let (_, told) = seawall.cli_exits(2, &["status", "weg"]);
    assert!(told.contains("did you mean `web`"), "{told}");
    for n in 0..250 {
        done(&put(&seawall, "/v1/agent/service/register", &json!({ "Name": format!("many-{n:03}") })));
    }
    let status = seawall.status();
    assert_eq!((status["registered"].as_array().unwrap().len(), &status["registeredMore"]), (200, &json!(51)));
    let (text, _) = seawall.cli_exits(0, &["status"]);
    assert!(text.contains("and 51 more"), "{text}");
}
