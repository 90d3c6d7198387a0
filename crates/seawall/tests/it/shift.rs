//! Versions side by side, and requests moved from one to another, seen from outside.

use crate::support::{Seawall, http};

const SHARED: &str = r#"
services:
  orders:
    command: [DEMO]
    versions: { v1: { replicas: 2 }, v2: { env: { COLOUR: green }, labels: { track: canary } } }
routes:
  - { match: { pathPrefix: /v2 }, to: { service: orders, version: v2 } }
  - match: { pathPrefix: /sticky }
    to: [ { service: orders, version: v1 }, { service: orders, version: v2 } ]
    sticky: { header: X-User }
  - to: [ { service: orders, version: v1, weight: 80 }, { service: orders, version: v2, weight: 20 } ]
"#;

/// Which version answered.
fn version(answer: &http::Answer) -> String {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let instance = body["instance"].as_str().unwrap().to_owned();
    instance.split('-').nth(1).unwrap().to_owned()
}

#[test]
fn versions_share_a_route_by_weight_and_status_names_them() {
    let seawall = Seawall::up(SHARED);
    seawall.wait_ready("orders");
    let shown = seawall.instance("orders-v2-0");
    assert_eq!(
        (shown["version"].as_str(), seawall.instance("orders-v1-1")["version"].as_str()),
        (Some("v2"), Some("v1"))
    );
    let seen = (0..100).filter(|_| version(&seawall.get("/")) == "v2").count();
    assert_eq!(seen, 20);
    assert!((0..10).all(|_| version(&seawall.get("/v2")) == "v2"));
    let ask = |user: &str| {
        let answer = http::request(seawall.gateway, "GET", "/sticky", &[("X-User", user)], b"").unwrap();
        version(&answer)
    };
    let users: Vec<String> = (0..40).map(|user| format!("user-{user}")).collect();
    let first: Vec<String> = users.iter().map(|user| ask(user)).collect();
    let second: Vec<String> = users.iter().map(|user| ask(user)).collect();
    assert_eq!(first, second);
    assert!(first.contains(&"v1".to_owned()) && first.contains(&"v2".to_owned()), "{first:?}");
}
