//! Another tool's file given to `apply` or `check` by itself: what is seen through the gateway is what the file says, beside
//! all that was in force before. What each file takes the place of is tested in the model's own tests.

use std::path::Path;

use serde_json::Value;

use crate::cluster::Cluster;
use crate::support::recorder::Recorder;
use crate::support::{Seawall, http, processes, run, wait};

const SHOP: &str = "
services:
  orders: { command: [DEMO], versions: { v1: {}, v2: {} } }
  stock: { command: [DEMO] }
routes:
  - { match: { pathPrefix: /stock }, to: { service: stock } }
  - { match: { host: own.test }, to: { service: orders } }
";

/// The source document's, for services of these names.
const ROUTE: &str = "apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: { name: product-route }
spec:
  hosts: [product.example.com]
  http:
    - route:
        - { destination: { host: orders, subset: v1 }, weight: 80 }
        - { destination: { host: orders, subset: v2 }, weight: 20 }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: orders }
spec: { host: orders, trafficPolicy: { connectionPool: { tcp: { maxConnections: 40 } } } }
";

struct Files<'s>(&'s Seawall);

impl Files<'_> {
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.folder().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Applies a file that is written for it; what is said on standard output and standard error.
    fn apply(&self, code: i32, name: &str, text: &str) -> (String, String) {
        let path = self.write(name, text);
        self.0.cli_exits(code, &["apply", "-f", &path])
    }
}

fn instance(seawall: &Seawall) -> String {
    let host = [("Host", "product.example.com")];
    let answer = http::request(seawall.gateway, "GET", "/", &host, b"").unwrap();
    answer.json()["instance"].as_str().unwrap().to_owned()
}

fn config(seawall: &Seawall) -> Value {
    seawall.api("GET", "/api/v1/config", b"").json()
}

#[test]
fn every_tools_file_is_put_over_what_is_in_force() {
    let far = Recorder::start("far");
    let seawall = Seawall::up(SHOP);
    seawall.wait_ready("orders");
    seawall.wait_ready("stock");
    let pids = (seawall.pids("orders"), seawall.pids("stock"));
    let files = Files(&seawall);

    let (out, _) = files.apply(0, "route.yaml", ROUTE);
    assert!(out.contains("routes: changed") && out.contains("orders: changed in place"), "{out}");
    let shares = || {
        let all: Vec<String> = (0..50).map(|_| instance(&seawall)).collect();
        all.iter().filter(|instance| instance.contains("-v1-")).count()
    };
    assert_eq!(shares(), 40);
    assert_eq!(seawall.service("orders")["traffic"]["concurrency"]["max"], 40);

    let (out, _) = files.apply(0, "flow.json", r#"[{"resource": "stock", "grade": 1, "count": 1}]"#);
    assert!(out.contains("stock: changed in place") && !out.contains("orders") && !out.contains("routes"), "{out}");
    wait("one a second", || (seawall.get("/stock").status == 429).then_some(()));
    files.apply(0, "flow.json", r#"[{"resource": "stock", "grade": 1, "count": 100000}]"#);
    assert!((0..20).all(|_| seawall.get("/stock").status == 200), "the new rule is instead of the old one");

    let timeout = "hystrix.command.stock.execution.isolation.thread.timeoutInMilliseconds=150\n";
    files.apply(0, "commands.properties", timeout);
    seawall.fault("stock-0", "slow?ms=60000");
    assert_eq!(seawall.get("/stock").status, 504);
    seawall.fault("stock-0", "none");

    let upstream =
        format!("upstream far {{ server {}; }}\nlocation /far/ {{ proxy_pass http://far/; }}\n", far.address);
    let (out, _) = files.apply(0, "far.conf", &upstream);
    assert!(out.contains("far: added"), "{out}");
    seawall.wait_ready("far");
    assert_eq!(seawall.get("/far/x").header("x-answered-by"), Some("far"));
    assert_eq!(far.take()[0].target, "/x");

    // Each of them again changes nothing, and all of them are in force, also for the next node process.
    let before = config(&seawall);
    for file in ["route.yaml", "flow.json", "commands.properties", "far.conf"] {
        let path = seawall.folder().join(file);
        let (out, err) = seawall.cli_exits(0, &["apply", "-f", &path.to_string_lossy()]);
        let said = format!("applied {}: no service and no route changed\n", path.display());
        assert_eq!((out, err), (said, String::new()), "{file}");
    }
    assert_eq!(config(&seawall), before);
    let node = seawall.node();
    processes::signal(node, "KILL");
    wait("another node process", || (seawall.node() != node).then_some(()));
    wait("it serves", || http::request(seawall.gateway, "GET", "/far/x", &[], b"").ok().filter(|it| it.status == 200));
    assert_eq!(config(&seawall), before);
    assert_eq!((shares(), (seawall.pids("orders"), seawall.pids("stock"))), (40, pids), "no instance was touched");

    // A file of Seawall's own is in force as a whole, as ever.
    let (out, _) = seawall.apply(0, SHOP);
    assert!(out.contains("far: removed") && out.contains("routes: changed"), "{out}");
    let answer = http::request(seawall.gateway, "GET", "/", &[("Host", "product.example.com")], b"").unwrap();
    assert_eq!(answer.status, 404);
}

#[test]
fn a_tools_file_with_mistakes_changes_nothing() {
    let seawall = Seawall::up(SHOP);
    seawall.wait_ready("orders");
    let (files, before) = (Files(&seawall), config(&seawall));
    let events = seawall.events_of("config-applied").len();
    for (name, text, place, said) in [
        ("route.yaml", ROUTE.replace("subset: v2", "subset: v9"), "9:42", "`orders` has no version `v9`"),
        ("route.yaml", ROUTE.replace("weight: 20", "wait: 20"), "9:56", "unknown key `wait`"),
        ("route.yaml", ROUTE.replace("kind: Des", "kind: Gateway #"), "12:1", "an object of kind `Gateway`"),
        (
            "flow.json",
            "[{\"resource\": \"orders\",\n\"count\": 1, \"clusterMode\": true}]".into(),
            "2:13",
            "`clusterMode: true`",
        ),
        ("rules.json", "[{\"resource\": \"orders\"}]".into(), "1:1", "which kind of Sentinel's rules"),
        (
            "h.properties",
            "\nhystrix.command.order.circuitBreaker.enabled=true".into(),
            "2:1",
            "command `order` is no service",
        ),
        ("far.conf", "location / { proxy_pass http://none; }".into(), "1:25", "there is no upstream `none`"),
    ] {
        let (out, err) = files.apply(2, name, &text);
        assert!(out.is_empty() && err.contains(said) && err.contains(&format!("{name}:{place}: error")), "{err}");
        let (out, _) = seawall.cli_exits(2, &["check", &files.write(name, &text)]);
        assert!(out.contains(said) && out.contains(&format!("{name}:{place}: error")), "{out}");
        // Whoever asks the API without looking first is told the same.
        let path = Path::new("/elsewhere").join(name);
        let body = serde_json::json!({ "main": path, "files": { path.to_str().unwrap(): text } });
        let answer = seawall.api("POST", "/api/v1/apply", body.to_string().as_bytes());
        assert_eq!(answer.status, 422);
        assert!(answer.json()["report"].as_str().unwrap().contains(&format!("{name}:{place}: error")), "{answer:?}");
    }
    assert_eq!((config(&seawall), seawall.events_of("config-applied").len()), (before, events));

    let route = files.write("route.yaml", ROUTE);
    let (out, _) = seawall.cli_exits(0, &["check", &route]);
    assert!(out.contains("route.yaml: ok, 2 services, 3 routes"), "{out}");
    let (out, err) = seawall.cli_exits(2, &["check", &seawall.file().to_string_lossy(), "--over", &route]);
    assert!(out.is_empty() && err.contains("is no file of another tool"), "{err}");
    // Where no node runs, it is checked over a file.
    let main = seawall.file().to_string_lossy().into_owned();
    let checked = |file: &str| run(&["--api", "127.0.0.1:1", "check", file, "--over", &main], None);
    let good = checked(&route);
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    let bad = checked(&files.write("bad.yaml", &ROUTE.replace("host: orders, subset: v2", "host: order")));
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stdout).contains("host `order` is no service"), "{bad:?}");
    assert_eq!(run(&["--api", "127.0.0.1:1", "check", &route], None).status.code(), Some(4), "nobody says over what");
}

#[test]
fn in_a_cluster_it_is_in_force_in_every_gateway() {
    let cluster = Cluster::up_with("");
    cluster.node(1).apply(0, "services:\n  orders: { command: [DEMO], versions: { v1: {}, v2: {} } }\n");
    cluster.node(1).wait_ready("orders");
    let file = cluster.node(2).folder().join("route.yaml");
    std::fs::write(&file, ROUTE).unwrap();
    for _ in 0..2 {
        cluster.node(2).cli_exits(0, &["apply", "-f", &file.to_string_lossy()]);
    }
    for place in 0..3 {
        let host = [("Host", "product.example.com")];
        let ask = || http::request(cluster.node(place).gateway, "GET", "/", &host, b"").ok();
        wait(&format!("the route at node {place}"), || ask().filter(|answer| answer.status == 200));
    }
    let system = cluster.node(2).folder().join("system.json");
    std::fs::write(&system, r#"[{"qps": 5}]"#).unwrap();
    let (_, err) = cluster.node(2).cli_exits(2, &["apply", "-f", &system.to_string_lossy()]);
    assert!(err.contains("system.json: error: what a gateway bears is each machine's own in a cluster"), "{err}");
}
