//! ACLs of a cluster: what one node has acknowledged counts on every node, whoever leads.

use serde_json::{Value, json};

use super::Cluster;
use crate::support::http::{self, Answer};
use crate::support::wait;

/// More of the file than of `cluster`, which ends before it.
const WITH_ACLS: &str = " }\ndiscovery: { acl: { enabled: true, defaultPolicy: deny }";

fn call(cluster: &Cluster, place: usize, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let header = [("x-consul-token", token)];
    let headers = if token.is_empty() { &[][..] } else { &header[..] };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    http::request(cluster.node(place).api, method, path, headers, body.as_bytes()).unwrap()
}

/// The management token of a node is its own.
fn management(cluster: &Cluster, place: usize) -> String {
    std::fs::read_to_string(cluster.node(place).data_dir().join("api-token")).unwrap().trim().to_owned()
}

fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap_or(Value::Null)
}

#[test]
fn a_token_that_one_node_has_made_counts_on_every_node_also_after_the_leader_is_lost() {
    let mut cluster = Cluster::up_with(WITH_ACLS);
    let rules = "key_prefix \"app/\" { policy = \"write\" }";
    let root = management(&cluster, 0);
    ok(&call(&cluster, 0, &root, "PUT", "/v1/acl/policy", &json!({ "Name": "team", "Rules": rules })));
    let made = ok(&call(&cluster, 0, &root, "PUT", "/v1/acl/token", &json!({ "Policies": [{ "Name": "team" }] })));
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    let (accessor, team) = (text("AccessorID"), text("SecretID"));
    // At once, on every node, and nobody else.
    for place in 0..3 {
        ok(&call(&cluster, place, &team, "PUT", &format!("/v1/kv/app/{place}"), &json!(place)));
        assert_eq!(call(&cluster, place, &team, "PUT", "/v1/kv/other", &json!(1)).status, 403);
        assert_eq!(call(&cluster, place, "", "GET", "/v1/kv/app/0", &Value::Null).status, 403);
    }
    // The token of another node's file is a stranger here.
    let stranger = management(&cluster, 1);
    assert_eq!(call(&cluster, 0, &stranger, "GET", "/v1/acl/tokens", &Value::Null).text(), "ACL not found");
    let leader = cluster.leader();
    cluster.kill(leader);
    cluster.leader();
    for place in cluster.up_places() {
        wait("keys through those who are left", || {
            let answer = call(&cluster, place, &team, "PUT", "/v1/kv/app/x", &json!(1));
            assert_ne!(answer.status, 403, "{}", answer.text());
            (answer.status == 200).then_some(())
        });
    }
    // Taken away by one, it is gone on every node, also on the one that was not there.
    let other = cluster.up_places()[0];
    let root = management(&cluster, other);
    ok(&call(&cluster, other, &root, "DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null));
    cluster.start(leader);
    for place in 0..3 {
        wait("the token is gone", || {
            let answer = call(&cluster, place, &team, "GET", "/v1/kv/app/x", &Value::Null);
            (answer.status == 403 && answer.text() == "ACL not found").then_some(())
        });
    }
}
