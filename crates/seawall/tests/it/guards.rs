//! What guards a service's requests, seen from outside: the file, the gateway, `seawall status`, events, the breaker by hand.
//! What each setting means is tested in the gateway's own tests.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::support::{Seawall, http, processes, wait};

const SHOP: &str = r#"
services:
  orders:
    command: [DEMO]
    traffic:
      circuitBreaker: { errorRatio: 50%, comparator: ">=", window: 60s, minRequests: 4, openFor: 500ms, probes: 1 }
      fallback: { status: 200, body: '{"degraded":true}', headers: { content-type: application/json } }
      concurrency: { max: 50, pending: 10 }
  plain: { command: [DEMO] }
routes:
  - { match: { pathPrefix: /plain }, to: { service: plain } }
  - { to: { service: orders } }
"#;

fn breaker(seawall: &Seawall) -> Value {
    seawall.service("orders")["traffic"]["breaker"].clone()
}

#[test]
fn a_service_that_fails_is_given_a_rest_and_its_clients_the_fallback() {
    let seawall = Seawall::up(SHOP);
    assert_eq!(breaker(&seawall)["state"], "closed");
    assert_eq!(seawall.service("orders")["traffic"]["concurrency"]["max"], 50);
    assert_eq!(seawall.service("plain")["traffic"], Value::Null, "it has none");
    seawall.fault("orders-0", "fail");
    let answer = wait("the fallback", || Some(seawall.get("/")).filter(|answer| answer.status == 200));
    assert_eq!(
        (answer.header("seawall-reason"), answer.text().as_str()),
        (Some("breaker-open"), "{\"degraded\":true}")
    );
    let opened = seawall.event("breaker-opened", "orders");
    let message = opened["message"].as_str().unwrap();
    assert!(message.contains("4 of 4 requests failed (>= 50%)") && message.contains("the fallback"), "{message}");
    seawall.fault("orders-0", "none");
    wait("an instance answers", || {
        let answer = seawall.get("/");
        answer.header("seawall-reason").is_none().then_some(())
    });
    let closed = seawall.event("breaker-closed", "orders");
    let half = seawall.event("breaker-half-open", "orders");
    assert!(closed["cause"] == opened["cause"] && half["cause"] == opened["cause"], "one chain");
    assert_eq!(breaker(&seawall)["state"], "closed");
    let metrics = seawall.api("GET", "/metrics", b"").text();
    assert!(
        metrics.contains("seawall_gateway_fallbacks_total{service=\"orders\",reason=\"breaker-open\"}"),
        "{metrics}"
    );
}

#[test]
fn a_breaker_by_hand_stands_until_it_is_taken_back_whatever_dies() {
    let seawall = Seawall::up(SHOP);
    let (out, _) = seawall.cli_exits(0, &["breaker", "orders", "open"]);
    assert!(out.contains("open by hand"), "{out}");
    assert_eq!(seawall.get("/").header("seawall-reason"), Some("breaker-open"));
    assert_eq!(
        (breaker(&seawall)["forced"].clone(), breaker(&seawall)["state"].clone()),
        ("open".into(), "open".into())
    );
    let (table, _) = seawall.cli_exits(0, &["status"]);
    let since = breaker(&seawall)["since"].as_str().unwrap()[..19].to_owned();
    let note = format!("held open by hand since {since}Z: `seawall breaker orders auto` ends that");
    assert!(table.contains(&note) && table.contains("1 breaker open"), "{table}");
    seawall.event("breaker-forced", "orders");

    let node = seawall.node();
    processes::signal(node, "KILL");
    wait("another node process", || (seawall.node() != node).then_some(()));
    wait("it is open still", || {
        let answer = http::request(seawall.gateway, "GET", "/", &[], b"").ok()?;
        (answer.header("seawall-reason") == Some("breaker-open")).then_some(())
    });
    let (out, _) = seawall.cli_exits(0, &["breaker", "orders", "auto", "-o", "json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["state"], "closed");
    assert_eq!(seawall.get("/").header("seawall-reason"), None);

    let (_, problem) = seawall.cli_exits(1, &["breaker", "plain", "open"]);
    assert!(problem.contains("has no circuit breaker"), "{problem}");
    let (_, problem) = seawall.cli_exits(2, &["breaker", "order", "open"]);
    assert!(problem.contains("did you mean `orders`"), "{problem}");
    assert_eq!(seawall.cli(&["breaker", "orders", "ajar"]).status.code(), Some(2));
    let wrong = seawall.api("POST", "/api/v1/services/orders/breaker", b"{\"state\":\"ajar\"}");
    assert_eq!(wrong.status, 400);
}

const STORM: &str = r#"
services:
  orders:
    command: [DEMO]
    replicas: 3
    traffic:
      outlier: { consecutiveErrors: 3, ejectFor: 1s }
      retryBudget: { part: 50%, minConcurrency: 2 }
  slow: { command: [DEMO], traffic: { rateLimit: { qps: 1, burst: 1, key: { header: X-Client } } } }
routes:
  - { match: { pathPrefix: /slow }, to: { service: slow } }
  - { to: { service: orders } }
"#;

#[test]
fn an_instance_that_fails_is_left_alone_and_a_client_that_comes_too_often_refused() {
    let seawall = Seawall::up(STORM);
    seawall.wait_ready("orders");
    seawall.fault("orders-1", "fail");
    let ejected = wait("it is ejected", || {
        seawall.get("/");
        let ejected = seawall.service("orders")["traffic"]["ejected"][0].clone();
        (!ejected.is_null()).then_some(ejected)
    });
    assert_eq!(ejected["instance"], "orders-1");
    assert!(ejected["why"].as_str().unwrap().contains("3 failures in a row"), "{ejected}");
    assert!((0..20).all(|_| seawall.get("/").status == 200));
    let note = wait("a note", || seawall.instance("orders-1")["note"].as_str().map(str::to_owned));
    assert!(note.contains("gets no requests until"), "{note}");
    seawall.fault("orders-1", "none");
    let gone = seawall.event("instance-ejected", "orders-1");
    let back = seawall.event("instance-returned", "orders-1");
    assert_eq!(gone["cause"], back["cause"]);

    assert_eq!(seawall.get("/slow").status, 200);
    let refused = seawall.get("/slow");
    assert_eq!((refused.status, refused.header("ratelimit-limit")), (429, Some("1")));
    let limit = wait("status tells", || {
        let limit = seawall.service("slow")["traffic"]["rateLimit"].clone();
        (limit["refused"] == 1).then_some(limit)
    });
    assert_eq!(limit["refusing"]["why"], "more than 1 a second of one key");
    let note = format!("requests are refused since {}Z", &limit["refusing"]["since"].as_str().unwrap()[..19]);
    let (table, _) = seawall.cli_exits(0, &["status"]);
    assert!(table.contains(&note), "{table}");
    let other = http::request(seawall.gateway, "GET", "/slow", &[("X-Client", "b")], b"").unwrap();
    assert_eq!(other.status, 200, "another key");
}

const DEGRADED: &str = r#"
services:
  orders:
    command: [DEMO]
    replicas: 3
    traffic: { circuitBreaker: { per: instance, errorRatio: 50%, comparator: ">=", window: 60s, minRequests: 2, openFor: 300s } }
  pages:
    command: [DEMO]
    traffic:
      circuitBreaker: { errorRatio: 50%, comparator: ">=", window: 60s, minRequests: 4, openFor: 300s }
      fallback: { cached: 1h, service: archive }
      concurrency: { pending: 10, adaptive: { min: 4 } }
  archive: { command: [DEMO] }
routes:
  - { match: { pathPrefix: /pages }, to: { service: pages }, priority: critical }
  - { to: { service: orders } }
"#;

#[test]
fn one_instance_has_a_rest_and_the_others_none() {
    let seawall = Seawall::up(DEGRADED);
    seawall.wait_ready("orders");
    seawall.fault("orders-1", "fail");
    let of_one = |seawall: &Seawall| {
        let breaker = seawall.service("orders")["traffic"]["instanceBreakers"]["orders-1"].clone();
        (!breaker.is_null()).then_some(breaker)
    };
    let open = wait("its breaker is open", || {
        seawall.get("/");
        of_one(&seawall).filter(|one| one["state"] == "open")
    });
    assert!(open["why"].as_str().unwrap().contains("requests failed") && open["since"].is_string(), "{open}");
    assert!((0..30).all(|_| seawall.get("/").status == 200), "who fails gets none");
    let opened = seawall.event("breaker-opened", "orders-1");
    assert_eq!(opened["service"], "orders");
    // A new process begins anew.
    seawall.cli_exits(0, &["restart", "orders"]);
    wait("it is closed", || of_one(&seawall).is_none_or(|one| one["state"] == "closed").then_some(()));
}

#[test]
fn what_was_answered_before_or_another_service_stands_in() {
    let seawall = Seawall::up(DEGRADED);
    for service in ["pages", "archive"] {
        seawall.wait_ready(service);
    }
    let concurrency = seawall.service("pages")["traffic"]["concurrency"].clone();
    assert!(concurrency["max"].as_u64().unwrap() >= 4, "{concurrency}");
    let fresh = seawall.get("/pages/kept");
    assert_eq!((fresh.status, fresh.header("seawall-reason")), (200, None));
    seawall.fault("pages-0", "fail");
    let reason = || Some(seawall.get("/pages/kept")).filter(|answer| answer.header("seawall-reason").is_some());
    let kept = wait("the kept answer", reason);
    assert_eq!((kept.status, kept.header("seawall-reason")), (200, Some("breaker-open")));
    assert_eq!(kept.text(), fresh.text(), "the last good answer");
    assert!(kept.header("age").is_some() && kept.header("warning").unwrap().starts_with("110 "), "{:?}", kept.headers);
    let other = seawall.get("/pages/never-asked");
    assert_eq!((other.status, other.header("seawall-reason")), (200, Some("breaker-open")));
    assert!(other.text().contains("archive-0"), "{}", other.text());
}

#[test]
fn a_breaker_held_through_one_node_is_held_in_every_gateway() {
    let cluster = Cluster::up_with("");
    cluster.node(1).apply(0, SHOP);
    let reason = |place: usize| {
        let answer = http::request(cluster.node(place).gateway, "GET", "/", &[], b"").ok()?;
        Some((answer.status, answer.header("seawall-reason").map(str::to_owned)))
    };
    let all = |what: &str, wanted: Option<&str>| {
        for place in 0..3 {
            let says = || reason(place).filter(|(status, reason)| *status == 200 && reason.as_deref() == wanted);
            wait(&format!("{what} at node {place}"), says);
        }
    };
    all("an instance answers", None);
    cluster.node(0).cli_exits(0, &["breaker", "orders", "open"]);
    all("the fallback", Some("breaker-open"));
    cluster.node(2).cli_exits(0, &["breaker", "orders", "auto"]);
    all("an instance answers again", None);
}

const REPEATED: &str = r#"
services:
  orders: { command: [DEMO], replicas: 2 }
routes:
  - { match: { path: /once }, to: { service: orders } }
  - { to: { service: orders }, timeout: 2s, retry: { attempts: 2, on: [connect, reset, 5xx], backoff: 1ms } }
"#;

#[test]
fn what_a_route_names_is_repeated_with_another_instance() {
    let seawall = Seawall::up(REPEATED);
    seawall.wait_ready("orders");
    seawall.fault("orders-0", "fail");
    let bad = |path: &str| (0..40).filter(|_| seawall.get(path).status != 200).count();
    assert!(bad("/once") > 0, "half of the instances fail");
    assert_eq!(bad("/"), 0);
    let metrics = seawall.api("GET", "/metrics", b"").text();
    assert!(metrics.contains("seawall_gateway_retries_total{service=\"orders\",reason=\"status\"}"), "{metrics}");
}
