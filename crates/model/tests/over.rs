//! Another tool's file by itself, over the configuration in force: it says what `include` would have had it say, takes the
//! place of what an earlier one said of the same, and changes nothing else. What it does is tested through the gateway.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use model::config::{Config, Decode as _, Foreign, Loaded, decode_effective, foreign, load, load_over};

const SHOP: &str = "services:
  orders: { command: [orders], versions: { v1: {}, v2: {} }, traffic: { rateLimit: { qps: 900 } } }
  stock: { command: [stock], env: { A: \"1\" }, labels: { tier: back } }
  far: { endpoints: [\"10.0.0.7:80\"] }
routes:
  - { name: web, match: { pathPrefix: /web }, to: { service: orders } }
  - { match: { host: own.test }, to: { service: stock } }
";

/// What is in force after `include` has been read.
fn in_force(include: &str, files: &[(&str, &str)]) -> Config {
    let main = format!("include: {include}\n{SHOP}");
    let loaded = load(Path::new("shop.yaml"), &mut |path| {
        let own = files.iter().find(|(name, _)| path.ends_with(name)).map(|(_, text)| *text);
        Ok(own.unwrap_or(&main).to_owned())
    });
    let config = loaded.config.unwrap_or_else(|| panic!("{}", loaded.diagnostics.render(&loaded.sources)));
    decode_effective(&config.encode().to_string()).unwrap()
}

fn over(in_force: &Config, name: &str, text: &str) -> Loaded {
    let whose = foreign(Path::new(name), text).unwrap_or_else(|| panic!("whose is {name}?\n{text}"));
    load_over(in_force, whose, Path::new(name), text.to_owned())
}

fn taken(in_force: &Config, name: &str, text: &str) -> Config {
    let loaded = over(in_force, name, text);
    let said = loaded.diagnostics.render(&loaded.sources);
    decode_effective(&loaded.config.unwrap_or_else(|| panic!("{said}")).encode().to_string()).unwrap()
}

fn refused(in_force: &Config, name: &str, text: &str) -> String {
    let loaded = over(in_force, name, text);
    assert!(loaded.config.is_none(), "this was meant to be refused: {text}");
    loaded.diagnostics.render(&loaded.sources)
}

const FLOW: &str = r#"[
  {"resource": "orders", "count": 100, "maxQueueingTimeMs": 7, "warmUpPeriodSec": 3},
  {"resource": "orders", "limitApp": "a", "count": 5}, {"resource": "orders", "limitApp": "other", "count": 9},
  {"resource": "orders", "strategy": 1, "refResource": "stock", "count": 2},
  {"resource": "orders", "strategy": 2, "refResource": "web", "grade": 0, "count": 2},
  {"resource": "st.*", "regex": true, "count": 7, "controlBehavior": 2}, {"resource": "stock", "grade": 0, "count": 3}
]"#;
const PARAM: &str = r#"[{"resource": "orders", "paramIdx": 0, "count": 3, "burstCount": 1, "durationInSec": 600},
  {"resource": "stock", "paramIdx": 0, "count": 3, "grade": 0}]"#;
const DEGRADE: &str = r#"[{"resource": "orders", "grade": 0, "count": 50, "timeWindow": 6},
  {"resource": "orders", "grade": 2, "count": 5, "timeWindow": 6}, {"resource": "far", "grade": 1, "count": 0.5, "timeWindow": 6}]"#;
const SYSTEM: &str = r#"[{"qps": 9000, "highestSystemLoad": 4}, {"maxThread": 50}]"#;
const HYSTRIX: &str = "hystrix.command.default.circuitBreaker.sleepWindowInMilliseconds=9000\n\
    hystrix.command.StockCommand.execution.isolation.strategy=SEMAPHORE\n";
const ISTIO: &str = r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: shop, namespace: prod, labels: { a: b }, annotations: {} }
spec:
  hosts: [shop.test, "*.shop.test", "*"]
  http:
    - { name: x, match: [{ uri: { exact: /a } }, { uri: { prefix: /b } }], route: [{ destination: { host: orders, subset: one } }] }
    - { match: [{ uri: { exact: /d } }], directResponse: { status: 404 } }
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: other }
spec:
  hosts: [shop.test, other.test, "*.other.test"]
  http: [{ name: x, match: [{ authority: { exact: other.test } }], route: [{ destination: { host: stock } }] }]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: all }
spec: { hosts: ["*"], http: [{ route: [{ destination: { host: far } }] }] }
---
apiVersion: networking.istio.io/v1beta1
kind: DestinationRule
metadata: { name: orders }
spec:
  host: orders
  subsets: [{ name: one, labels: { version: v1 } }]
  trafficPolicy: { connectionPool: { tcp: { maxConnections: 9 } }, outlierDetection: { consecutive5xxErrors: 3 } }
"#;
const NGINX: &str = "limit_req_zone $binary_remote_addr zone=z:1m rate=5r/s; limit_conn_zone $server_name zone=c:1m;
upstream back_end { server 10.0.0.1:80 weight=2; server 10.0.0.2:80; server 10.0.0.3:80 backup; }
upstream two { server 10.0.0.4:80; server 10.0.0.5:80; least_conn; }
location / { proxy_pass http://back_end; limit_req zone=z burst=3; limit_conn c 9; }
location = /exact { proxy_pass http://two; proxy_next_upstream http_500; }
location ~ \\.gif$ { proxy_pass http://two; }
location ~ \\.png$ { proxy_pass http://two; proxy_next_upstream_tries 1; }
location ^~ /strong { proxy_pass http://two; proxy_next_upstream off; }
location /stock { proxy_pass http://stock; }
";

const INCLUDE: &str = "
  - sentinel: { flow: flow.json, paramFlow: param.json, degrade: degrade.json, system: system.json, origin: { header: X-Client }, parameters: { orders: [{ header: X-User }], stock: [{ query: sku }] } }
  - nginx: [n.conf]
  - istio: [i.yaml]";

/// All of a tool's files are in force by `include`; each of them again changes nothing, in whatever order they come.
#[test]
fn the_same_file_again_changes_nothing() {
    let sentinel = [("flow.json", FLOW), ("param.json", PARAM), ("degrade.json", DEGRADE), ("system.json", SYSTEM)];
    // A service has its places by one tool only.
    let istio = ISTIO.replace("connectionPool: { tcp: { maxConnections: 9 } }, ", "");
    let files = [&sentinel[..], &[("n.conf", NGINX), ("i.yaml", &istio)]].concat();
    let by_include = in_force(INCLUDE, &files);
    for (name, text) in &files {
        assert!(taken(&by_include, name, text) == by_include, "{name} changes something");
    }
    let hystrix = "{ hystrix: { properties: h.properties, commands: { StockCommand: stock } } }";
    let by_include = in_force(hystrix, &[("h.properties", HYSTRIX)]);
    assert!(taken(&by_include, "h.properties", HYSTRIX) == by_include, "hystrix");
    let by_include = in_force("{ istio: [i.yaml] }", &[("i.yaml", ISTIO)]);
    // Each object by itself, which is how they are applied in a cluster.
    for object in ISTIO.split("---").filter(|object| !object.contains("subset: one")) {
        assert!(taken(&by_include, "i.yaml", object) == by_include, "{object}");
    }
}

/// A file that is applied says the same as one that is included, wherever nothing of its kind was there.
#[test]
fn an_applied_file_says_what_an_included_one_does() {
    let names = "[{ sentinel: { origin: { header: X-Client }, parameters: { orders: [{ header: X-User }], stock: [{ query: sku }] } } }";
    for (key, name, text) in [
        ("sentinel: { flow: flow.json }", "flow.json", FLOW),
        ("sentinel: { paramFlow: param.json }", "param.json", PARAM),
        ("sentinel: { degrade: degrade.json }", "degrade.json", DEGRADE),
        ("sentinel: { system: system.json }", "system.json", SYSTEM),
        ("istio: [i.yaml]", "i.yaml", ISTIO),
        ("nginx: [n.conf]", "n.conf", NGINX),
    ] {
        // What stands beside a file is in force where a file by itself is applied.
        let inside = key.strip_prefix("sentinel: { ").map(|rest| rest.trim_end_matches(" }"));
        let with = match inside {
            Some(file) => format!("{}{file}, {}", &names[..15], &names[15..]),
            None => format!("{names}, {{ {key} }}"),
        };
        let included = in_force(&(with + "]"), &[(name, text)]);
        let applied = taken(&in_force(&format!("{names}]"), &[]), name, text);
        let without_include = |config: Config| Config { include: Default::default(), ..config };
        assert!(without_include(applied) == without_include(included), "{name}");
    }
}

#[test]
fn what_is_said_again_is_replaced_and_everything_else_stays() {
    let limits = |config: &Config, service: &str| -> Vec<u32> {
        let traffic = config.services[&service.into()].traffic.as_ref();
        traffic.into_iter().flat_map(|traffic| traffic.rate_limit.0.iter().map(|limit| limit.qps)).collect()
    };
    let before = in_force("[]", &[]);
    let rule = |resource: &str, count: u32| format!(r#"[{{"resource": "{resource}", "count": {count}}}]"#);
    let config = taken(&before, "a.json", &rule("orders", 5));
    let config = taken(&config, "b.json", &rule("stock", 6));
    assert_eq!((limits(&config, "orders"), limits(&config, "stock")), (vec![900, 5], vec![6]), "its own stays");
    let config = taken(&config, "c.json", &rule("orders", 7));
    assert_eq!((limits(&config, "orders"), limits(&config, "stock")), (vec![900, 7], vec![6]));

    // A breaker of another kind of file is not replaced.
    let config = taken(&before, "h.properties", "hystrix.command.stock.execution.timeout.enabled=true\n");
    let timeouts = |config: &Config| -> Vec<Option<u128>> {
        config.routes.iter().map(|route| route.timeout.map(|timeout| timeout.as_millis())).collect()
    };
    assert_eq!(timeouts(&config), [None, Some(1000)]);
    let report = refused(&config, "d.json", r#"[{"resource": "stock", "grade": 2, "count": 5, "timeWindow": 6}]"#);
    assert!(
        report.contains("d.json:1:2") && report.contains("has one already (the configuration in force)"),
        "{report}"
    );
    let off =
        "hystrix.command.stock.circuitBreaker.enabled=false\nhystrix.command.stock.execution.timeout.enabled=false\n";
    let config = taken(&config, "h.properties", off);
    assert!(config == before, "all of it is gone");

    let system = |text: &str| taken(&before, "s.json", text).gateway.overload.map(|overload| overload.qps);
    assert_eq!(system(r#"[{"qps": 5}]"#), Some(Some(5)));
    let loaded = taken(&taken(&before, "s.json", r#"[{"qps": 5}]"#), "s.json", r#"[{"avgRt": 9, "qps": -1}]"#);
    assert_eq!(loaded.gateway.overload.unwrap().qps, None, "the last file is in force as a whole");
}

#[test]
fn an_object_takes_the_place_of_the_one_of_its_name_among_all_others() {
    let object = |name: &str, host: &str, to: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{ name: {name} }}\nspec: {{ hosts: [\"{host}\"], http: [{{ match: [{{ uri: {{ prefix: /x }} }}], route: [{{ destination: {{ host: {to} }} }}] }}] }}\n"
        )
    };
    let ways = |config: &Config| -> Vec<String> {
        let one = |route: &model::config::Route| {
            let host = route.matches.hosts.0.join(",");
            let to = route.to.as_ref().map_or("404", |to| to.0[0].service.as_str());
            format!("{host} {to}")
        };
        config.routes.iter().skip(2).map(one).collect()
    };
    let config = taken(&in_force("[]", &[]), "all.yaml", &object("all", "*", "far"));
    assert_eq!(ways(&config), [" far"]);
    let config = taken(&config, "one.yaml", &object("one", "a.test", "orders"));
    assert_eq!(ways(&config), ["a.test orders", "a.test 404", " far"], "in front, and closed");
    let config = taken(&config, "two.yaml", &object("two", "*.test", "stock"));
    assert_eq!(ways(&config), ["a.test orders", "a.test 404", "*.test stock", "*.test 404", " far"]);
    let config = taken(&config, "one.yaml", &object("one", "b.test", "stock"));
    assert_eq!(
        ways(&config),
        ["b.test stock", "b.test 404", "*.test stock", "*.test 404", " far"],
        "and nothing of a.test"
    );
    let config = taken(&config, "all.yaml", &object("all", "*", "orders"));
    assert_eq!(ways(&config).last().unwrap(), " orders");
    let report = refused(&config, "no.yaml", &object("\"\"", "c.test", "far"));
    assert!(report.contains("no.yaml:3:1") && report.contains("a VirtualService without a name"), "{report}");
    let twice = format!("{}---\n{}", object("a", "c.test", "far"), object("a", "d.test", "far"));
    assert!(refused(&config, "no.yaml", &twice).contains("there are two VirtualServices `a`"));
    // A rule of the service's own that names a route of an object is not left without it.
    let named = object("one", "a.test", "far").replace("{ match: [", "{ name: lane, match: [");
    let limited = r#"[{"resource": "far", "strategy": 2, "refResource": "lane", "count": 2}]"#;
    let config = taken(&taken(&config, "one.yaml", &named), "f.json", limited);
    let report = refused(&config, "one.yaml", &named.replace("lane", "line"));
    assert!(report.contains("there is no route named `lane`"), "{report}");
}

#[test]
fn an_upstream_and_a_location_take_the_places_of_those_of_their_names() {
    let config = taken(&in_force("[]", &[]), "n.conf", NGINX);
    let config = taken(
        &config,
        "two.conf",
        "upstream two { server 10.0.0.4:80; server 10.0.0.5:80; server 10.0.0.6:80 max_fails=1; }\n",
    );
    let attempts = |config: &Config, path: &str| {
        let route = config.routes.iter().find(|route| route.from.as_ref().is_some_and(|from| from.name == path));
        route.unwrap().retry.as_ref().unwrap().attempts
    };
    assert_eq!(config.services[&"two".into()].endpoints.len(), 3);
    let found = ["= /exact", "~ \\.gif$", "~ \\.png$", "^~ /strong"].map(|path| attempts(&config, path));
    assert_eq!(found, [2, 2, 0, 0], "each server once, unless it was said how often");
    let outlier = config.services[&"two".into()].traffic.as_ref().unwrap().outlier.as_ref().unwrap();
    assert!(outlier.server_errors, "its location says so still");
    let weights = NGINX.lines().nth(1).unwrap().replace("weight=2", "weight=9");
    let config = taken(&config, "weights.conf", &weights);
    let back = &config.services[&"back-end".into()];
    assert_eq!(back.endpoint_options["10.0.0.1:80"].weight, 9);
    assert_eq!(back.traffic.as_ref().unwrap().rate_limit.0.len(), 1, "its limits stay");
    let config = taken(
        &config,
        "exact.conf",
        "location = /exact { proxy_pass http://stock; }\nlocation /new { proxy_pass http://far; }\n",
    );
    let order: Vec<&str> = config.routes.iter().filter_map(|route| Some(route.from.as_ref()?.name.as_str())).collect();
    assert_eq!(order, ["= /exact", "^~ /strong", "~ \\.gif$", "~ \\.png$", "/stock", "/new", "/"]);
    assert!(!config.services[&"two".into()].traffic.as_ref().unwrap().outlier.as_ref().unwrap().server_errors);

    let report = refused(&config, "more.conf", "location /more { proxy_pass http://back_end; }\n");
    assert!(
        report.contains("more.conf:1:1") && report.contains("`location /` is in force and leads to `back-end`"),
        "{report}"
    );
    let report = refused(&config, "own.conf", "\nupstream stock { server h; }\n");
    assert!(report.contains("own.conf:2:10") && report.contains("there is a service `stock` already"), "{report}");
    let report = refused(&config, "twice.conf", "upstream two { server h; }\nupstream two { server h; }\n");
    assert!(report.contains("twice.conf:2:10") && report.contains("there is a service `two` already"), "{report}");
    let unlimited = "location / { proxy_pass http://back_end; }\n";
    let config = taken(&config, "free.conf", unlimited);
    assert!(
        config.services[&"back-end".into()].traffic.as_ref().unwrap().rate_limit.0.is_empty(),
        "it says no limit any more"
    );
}

#[test]
fn whose_a_file_is_is_seen_and_what_cannot_be_told_is_asked_for() {
    for (name, text, whose) in [
        ("a.json", " [ {} ]", Some(Foreign::Sentinel)),
        ("a.properties", "# of commands\nhystrix.command.a.b=1", Some(Foreign::Hystrix)),
        ("a.txt", "hystrix.command.a.b=1", Some(Foreign::Hystrix)),
        ("a.yaml", "---\nkind: Gateway\napiVersion: v1", Some(Foreign::Istio)),
        ("a.json", "{ \"apiVersion\": \"networking.istio.io/v1\" }", Some(Foreign::Istio)),
        ("a.txt", "# one\nupstream a {", Some(Foreign::Nginx)),
        ("a", "location / {", Some(Foreign::Nginx)),
        ("nginx.conf", "worker_processes 1;", Some(Foreign::Nginx)),
        ("seawall.conf", SHOP, None),
        ("a.yaml", SHOP, None),
        ("a.yaml", "services: {}\n# kind: b\n", None),
        ("a.yaml", "", None),
    ] {
        assert_eq!(foreign(Path::new(name), text), whose, "{name} {text}");
    }
    let before = in_force("[]", &[]);
    for (text, place, said) in [
        ("[]", "1:1", "nothing in this list says which kind"),
        ("[{\"resource\": \"stock\"}]", "1:1", "nothing in this list says which kind"),
        (
            "[{\"paramIdx\": 0},\n{\"timeWindow\": 1}]",
            "2:2",
            "`timeWindow` is of a DegradeRule, and `paramIdx` (line 1) of a ParamFlowRule",
        ),
        (
            "[{\"resource\": \"stock\", \"paramIdx\": 0, \"count\": 1}]",
            "1:24",
            "nothing says what the parameters of `stock` are",
        ),
        ("[{\"resource\": \"stok\", \"count\": 1}]", "1:3", "there is no `stok`"),
        ("[{\"resource\": \"stock\", \"count\": 1, \"grad\": 1}]", "1:36", "did you mean `grade`?"),
        ("[{\"resource\": \"stock\"", "1:", "not JSON"),
    ] {
        let report = refused(&before, "rules.json", text);
        assert!(report.contains(said) && report.contains(&format!("rules.json:{place}")), "{text}: {report}");
    }
    assert!(refused(&before, "rules.json", "[]").contains("sentinel: { flow: FILE }"));
    assert!(refused(&before, "nginx.conf", "worker_processes 1;").contains("`worker_processes` has no counterpart"));
}
