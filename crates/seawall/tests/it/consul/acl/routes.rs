//! Every route of the table with nobody's token, where nothing is allowed by default: nothing that was planted is shown, and
//! nothing is changed.

use serde_json::{Value, json};

use super::{DENY, call, management, ok};
use crate::support::Seawall;

const TABLE: &str = include_str!("../../../../../../docs/reference/consul-compatibility.md");
/// In every name that was planted.
const MARK: &str = "planted";

/// What is there for somebody who may see it.
fn plant(seawall: &Seawall, root: &str) -> Planted {
    let put = |path: &str, body: &Value| ok(&call(seawall, root, "PUT", path, body));
    put("/v1/agent/service/register", &json!({ "Name": MARK, "ID": MARK, "Tags": [MARK] }));
    put("/v1/agent/check/register", &json!({ "Name": MARK, "CheckID": MARK, "ServiceID": MARK, "TTL": "600s" }));
    put("/v1/catalog/register", &json!({ "Node": MARK, "Address": "10.0.0.9", "Service": { "Service": MARK } }));
    put(&format!("/v1/kv/{MARK}"), &json!(MARK));
    put(&format!("/v1/event/fire/{MARK}"), &Value::Null);
    put("/v1/acl/policy", &json!({ "Name": MARK }));
    put("/v1/acl/role", &json!({ "Name": MARK }));
    put("/v1/acl/token", &json!({ "Description": MARK }));
    let session = put("/v1/session/create", &json!({ "Name": MARK, "TTL": "600s" }));
    let query = json!({ "Name": MARK, "Service": { "Service": MARK } });
    let query = ok(&call(seawall, root, "POST", "/v1/query", &query));
    let id = |made: &Value| made["ID"].as_str().unwrap().to_owned();
    Planted { session: id(&session), query: id(&query) }
}

struct Planted {
    session: String,
    query: String,
}

/// The path of a route to what was planted.
fn path_of(route: &str, planted: &Planted) -> String {
    let part = |part: &str| match part {
        "{id}" if route.starts_with("/v1/session") => planted.session.clone(),
        "{id}" if route.starts_with("/v1/query") => planted.query.clone(),
        "{node}" if route.starts_with("/v1/session") => "test".to_owned(),
        "{state}" => "any".to_owned(),
        "{kind}" => "default".to_owned(),
        part if part.starts_with('{') => MARK.to_owned(),
        part => part.to_owned(),
    };
    let path = route.split('/').map(part).collect::<Vec<_>>().join("/");
    let more = match route {
        "/v1/kv/{key}" => "?recurse",
        _ if route.ends_with("maintenance") || route.contains("maintenance/") => "?enable=true",
        "/v1/operator/raft/peer" => "?id=test",
        _ => "",
    };
    path + more
}

#[test]
fn no_route_shows_or_changes_anything_without_a_right() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let planted = plant(&seawall, &root);
    let shown = |path: &str| call(&seawall, &root, "GET", path, &Value::Null).text();
    let kept = [
        "/v1/catalog/nodes",
        "/v1/catalog/services",
        "/v1/agent/checks",
        "/v1/session/list",
        "/v1/query",
        "/v1/acl/tokens",
        "/v1/kv/?recurse",
    ];
    let before = kept.map(shown);
    before.iter().for_each(|text| assert!(text.contains(MARK), "{text}"));
    // Whatever a route reads of it.
    let whole = json!({
        "Node": MARK, "Address": "10.0.0.1", "Name": MARK, "ID": MARK, "Service": { "Service": MARK }, "TTL": "600s",
        "Status": "critical", "Token": "x",
    });
    let set = json!([{ "KV": { "Verb": "set", "Key": MARK, "Value": "MQ==" } }]);
    let mut rows = 0;
    for line in TABLE.lines().filter(|line| line.contains("| `/v1/") && !line.contains("| absent |")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (method, route) = (cells[1], cells[2].trim_matches('`'));
        let body = match (method, route) {
            ("GET" | "DELETE", _) => Value::Null,
            (_, "/v1/txn") => set.clone(),
            _ => whole.clone(),
        };
        let path = path_of(route, &planted);
        let answer = call(&seawall, "", method, &path, &body);
        // What is refused may name what was asked for.
        let refused = matches!(answer.status, 400 | 403 | 404 | 409);
        if method == "GET" {
            let told = answer.text().contains(MARK) || answer.text().contains(&planted.session);
            // A query's name is no secret to whoever knows its id; what it finds is.
            let told = told && !route.ends_with("/execute") || answer.text().contains("\"Node\":{");
            assert!(refused || answer.status == 200 && !told, "{method} {path}: {} {}", answer.status, answer.text());
        } else {
            assert!(refused, "{method} {path}: {} {}", answer.status, answer.text());
        }
        rows += 1;
    }
    assert!(rows > 90, "{rows} rows");
    assert_eq!(kept.map(shown), before, "nothing was changed");
}
