//! What a service's keys may take: it is refused beyond that, the others and the control plane are not, and the metrics
//! and the status say how far it is.

use serde_json::Value;

use crate::cluster::Cluster;
use crate::support::{Seawall, http::Answer, service};

/// Two services by name; nobody asks for what they answer.
const SERVICES: &str = "services:\n  ledger: { endpoints: [\"127.0.0.1:9\"], kvQuotaBytes: 65536 }\n  orders: { endpoints: [\"127.0.0.1:9\"] }\n";

fn put(node: &Seawall, key: &str, bytes: usize) -> Answer {
    node.api("PUT", &format!("/api/v1/kv/{key}"), &vec![b'x'; bytes])
}

/// The figure of a metric about a service.
fn metric(node: &Seawall, name: &str, of: &str) -> Option<u64> {
    let text = node.api("GET", "/metrics", b"").text();
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(&format!("service=\"{of}\"")))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_service_fills_its_own_part_of_the_store() {
    let cluster = Cluster::up_with("");
    cluster.node(0).apply(0, SERVICES);
    let limited = |place| {
        let quota = || metric(cluster.node(place), "seawall_store_service_quota_bytes", "ledger");
        cluster.node(place).wait_for("the limit is known", |_| (quota()? == 65536).then_some(()));
    };
    (0..3).for_each(limited);
    for (place, key) in [(0, "a"), (1, "b"), (2, "c")] {
        assert_eq!(put(cluster.node(place), &format!("ledger/{key}"), 20_000).status, 200);
    }
    // Whoever is asked: it is the leader that looks.
    for place in 0..3 {
        let refused = put(cluster.node(place), "ledger/d", 20_000);
        assert_eq!(refused.status, 507, "{}", refused.text());
        let said = refused.json()["error"].as_str().unwrap().to_owned();
        assert!(said.contains("of 65536 bytes are taken"), "{said}");
        assert!(refused.json()["cure"].as_str().unwrap().contains("kvQuotaBytes"));
        assert_eq!(cluster.node(place).api("GET", "/api/v1/kv/ledger/d", b"").status, 404);
    }
    // Others, keys of nobody, and what does not grow.
    assert_eq!(put(cluster.node(0), "orders/a", 200_000).status, 200);
    assert_eq!(put(cluster.node(1), "ledger", 200_000).status, 200);
    assert_eq!(put(cluster.node(2), "ledger/a", 20_000).status, 200);
    let note = |status: &Value| service(status, "ledger")["note"].as_str().map(str::to_owned);
    let note = cluster.node(0).wait_for("status tells it", note);
    assert!(note.contains("of 65536 bytes (92 %)"), "{note}");
    // Room again.
    assert_eq!(cluster.node(1).api("DELETE", "/api/v1/kv/ledger/b", b"").status, 200);
    assert_eq!(put(cluster.node(2), "ledger/d", 20_000).status, 200);
    let used = metric(cluster.node(2), "seawall_store_service_used_bytes", "ledger");
    assert!(used.is_some_and(|used| (60_000..65_536).contains(&used)), "{used:?}");
}

#[test]
fn a_quota_that_cannot_be_meant_is_refused_where_it_stands() {
    let node = Seawall::up_alone("");
    let (_, said) = node.apply(2, "services:\n  ledger:\n    endpoints: [\"127.0.0.1:9\"]\n    kvQuotaBytes: 17\n");
    assert!(said.contains("`kvQuotaBytes: 17` is not from 4096 to 251658240"), "{said}");
}
