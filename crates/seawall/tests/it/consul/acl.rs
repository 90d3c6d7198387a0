//! ACLs: what each token may, what is kept from it, and for how long.

mod login;
mod others;
mod routes;

use serde_json::{Value, json};

use crate::support::http::{self, Answer};
use crate::support::{Seawall, wait};

const DENY: &str = "discovery: { acl: { enabled: true, defaultPolicy: deny } }\n";
const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";

/// A request with a token; without one, it is nobody's.
pub fn call(seawall: &Seawall, token: &str, method: &str, path: &str, body: &Value) -> Answer {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let header = [("x-consul-token", token)];
    let headers = if token.is_empty() { &[][..] } else { &header[..] };
    http::request(seawall.api, method, path, headers, body.as_bytes()).unwrap()
}

fn get(seawall: &Seawall, token: &str, path: &str) -> Answer {
    call(seawall, token, "GET", path, &Value::Null)
}

fn put(seawall: &Seawall, token: &str, path: &str, body: &Value) -> Answer {
    call(seawall, token, "PUT", path, body)
}

pub fn ok(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap_or(Value::Null)
}

fn refused(answer: &Answer, words: &str) {
    assert_eq!((answer.status, answer.text().contains(words)), (403, true), "{}", answer.text());
}

/// The node's own management token.
pub fn management(seawall: &Seawall) -> String {
    std::fs::read_to_string(seawall.data_dir().join("api-token")).unwrap().trim().to_owned()
}

/// A policy with these rules; its id.
fn policy(seawall: &Seawall, name: &str, rules: &str) -> String {
    let made = ok(&put(seawall, &management(seawall), "/v1/acl/policy", &json!({ "Name": name, "Rules": rules })));
    made["ID"].as_str().unwrap().to_owned()
}

/// A token as it was made: by its accessor, with its secret.
fn token(seawall: &Seawall, asked: &Value) -> (String, String) {
    let made = ok(&put(seawall, &management(seawall), "/v1/acl/token", asked));
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    (text("AccessorID"), text("SecretID"))
}

/// A token with a policy of its own.
fn token_that_may(seawall: &Seawall, name: &str, rules: &str) -> (String, String) {
    policy(seawall, name, rules);
    token(seawall, &json!({ "Policies": [{ "Name": name }] }))
}

const TEAM: &str = r#"
    service "web" { policy = "write" }
    node_prefix "" { policy = "read" }
    key_prefix "app/" { policy = "write" }
    key_prefix "app/secret" { policy = "deny" }
    session_prefix "" { policy = "write" }
    event "deploy" { policy = "write" }
    query_prefix "web" { policy = "write" }
"#;

#[test]
fn a_token_may_what_its_policies_say_and_sees_nothing_else() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let (accessor, team) = token_that_may(&seawall, "team", TEAM);
    // Registering.
    let web = json!({ "Name": "web", "ID": "web-1", "Check": { "TTL": "60s" } });
    let db = json!({ "Name": "db", "ID": "db-1", "Check": { "TTL": "60s" } });
    ok(&put(&seawall, &team, "/v1/agent/service/register", &web));
    let text =
        format!("Permission denied: token with AccessorID '{accessor}' lacks permission 'service:write' on \"db\"");
    refused(&put(&seawall, &team, "/v1/agent/service/register", &db), &text);
    let nobody = "Permission denied: anonymous token lacks permission 'service:write' on \"web\". The anonymous token is used implicitly when a request does not specify a token.";
    refused(&put(&seawall, "", "/v1/agent/service/register", &web), nobody);
    ok(&put(&seawall, &root, "/v1/agent/service/register", &db));
    ok(&put(&seawall, &team, "/v1/agent/check/pass/service:web-1", &Value::Null));
    refused(&put(&seawall, &team, "/v1/agent/check/pass/service:db-1", &Value::Null), "'service:write' on \"db\"");
    refused(&put(&seawall, &team, "/v1/agent/service/deregister/db-1", &Value::Null), "'service:write' on \"db\"");
    // Another service cannot be taken over by its id.
    let stolen = json!({ "Name": "web", "ID": "db-1" });
    refused(&put(&seawall, &team, "/v1/agent/service/register", &stolen), "'service:write' on \"db\"");
    let its_check = json!({ "Name": "web", "Check": { "CheckID": "service:db-1", "TTL": "60s" } });
    refused(&put(&seawall, &team, "/v1/agent/service/register", &its_check), "'service:write' on \"db\"");
    // Lists leave out what it may not see, and say so.
    let listed = get(&seawall, &team, "/v1/catalog/services");
    assert_eq!(ok(&listed), json!({ "web": [] }));
    assert_eq!(listed.header("x-consul-results-filtered-by-acls"), Some("true"));
    assert_eq!(listed.header("x-consul-default-acl-policy"), Some("deny"));
    let whole = get(&seawall, &root, "/v1/catalog/services");
    assert_eq!(ok(&whole), json!({ "consul": [], "db": [], "web": [] }));
    assert_eq!(whole.header("x-consul-results-filtered-by-acls"), None);
    let nobodys = get(&seawall, "", "/v1/catalog/services");
    let told = nobodys.header("x-consul-results-filtered-by-acls");
    assert_eq!((ok(&nobodys), told), (json!({}), None), "whoever shows no token is not told that there is more");
    assert_eq!(ok(&get(&seawall, &team, "/v1/health/service/db")), json!([]));
    assert_eq!(ok(&get(&seawall, &team, "/v1/health/service/web"))[0]["Service"]["ID"], "web-1");
    // Keys.
    ok(&put(&seawall, &team, "/v1/kv/app/a", &json!(1)));
    refused(&put(&seawall, &team, "/v1/kv/other", &json!(1)), "'key:write' on \"other\"");
    refused(&put(&seawall, &team, "/v1/kv/app/secret", &json!(1)), "'key:write' on \"app/secret\"");
    ok(&put(&seawall, &root, "/v1/kv/app/secret", &json!(1)));
    refused(&get(&seawall, &team, "/v1/kv/app/secret"), "'key:read' on \"app/secret\"");
    assert_eq!(ok(&get(&seawall, &team, "/v1/kv/?keys")), json!(["app/a"]));
    refused(&call(&seawall, &team, "DELETE", "/v1/kv/app/?recurse", &Value::Null), "'key:write' on \"app/\"");
    // Sessions, events, queries, transactions.
    ok(&put(&seawall, &team, "/v1/session/create", &json!({ "TTL": "60s" })));
    refused(&put(&seawall, "", "/v1/session/create", &json!({ "TTL": "60s" })), "'session:write'");
    assert_eq!(ok(&get(&seawall, "", "/v1/session/list")), json!([]));
    ok(&put(&seawall, &team, "/v1/event/fire/deploy", &Value::Null));
    refused(&put(&seawall, &team, "/v1/event/fire/other", &Value::Null), "'event:write' on \"other\"");
    let query = |name: &str| json!({ "Name": name, "Service": { "Service": "db" } });
    let made = ok(&call(&seawall, &team, "POST", "/v1/query", &query("web-db")));
    refused(&call(&seawall, &team, "POST", "/v1/query", &query("db")), "'query:write' on \"db\"");
    let run = ok(&get(&seawall, &team, &format!("/v1/query/{}/execute", made["ID"].as_str().unwrap())));
    assert_eq!(run["Nodes"], json!([]), "it shows what its caller may see");
    let set = |key: &str| json!({ "KV": { "Verb": "set", "Key": key, "Value": "MQ==" } });
    ok(&put(&seawall, &team, "/v1/txn", &json!([set("app/b")])));
    let both = put(&seawall, &team, "/v1/txn", &json!([set("app/c"), set("other")]));
    assert_eq!(both.status, 409);
    assert_eq!(
        (&both.json()["Errors"][0]["OpIndex"], both.text().contains("'key:write' on \\\"other\\\"")),
        (&json!(1), true)
    );
    assert_eq!(get(&seawall, &root, "/v1/kv/app/c").status, 404, "nothing of it was done");
    // The node, the cluster, ACLs.
    refused(&get(&seawall, &team, "/v1/agent/self"), "'agent:read' on \"test\"");
    refused(&get(&seawall, &team, "/v1/operator/raft/configuration"), "'operator:read'");
    refused(&get(&seawall, &team, "/v1/snapshot"), "'acl:write'");
    refused(&get(&seawall, &team, "/v1/acl/tokens"), "'acl:read'");
    assert_eq!(ok(&get(&seawall, &team, "/v1/acl/token/self"))["AccessorID"], *accessor);
    // A token in each of its places; an unknown one is nobody's.
    let bearer = format!("Bearer {team}");
    let header = [("authorization", bearer.as_str())];
    let answer = http::request(seawall.api, "GET", "/v1/kv/app/a?raw", &header, b"").unwrap();
    assert_eq!(answer.text(), "1");
    assert_eq!(get(&seawall, "", &format!("/v1/kv/app/a?raw&token={team}")).text(), "1");
    refused(&get(&seawall, "no-such-token", "/v1/status/leader"), "ACL not found");
    // A policy that is changed counts at once, and so does the end of a token.
    let id = ok(&get(&seawall, &root, "/v1/acl/policy/name/team"))["ID"].as_str().unwrap().to_owned();
    let narrower = json!({ "Name": "team", "Rules": "key_prefix \"app/\" { policy = \"read\" }" });
    ok(&put(&seawall, &root, &format!("/v1/acl/policy/{id}"), &narrower));
    refused(&put(&seawall, &team, "/v1/kv/app/a", &json!(2)), "'key:write'");
    assert_eq!(get(&seawall, &team, "/v1/kv/app/a?raw").text(), "1");
    ok(&call(&seawall, &root, "DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null));
    refused(&get(&seawall, &team, "/v1/kv/app/a?raw"), "ACL not found");
    // No secret is told in any log.
    for secret in [&team, &root] {
        assert!(!seawall.stderr().contains(secret.as_str()));
    }
}

#[test]
fn a_blocking_query_is_not_woken_by_what_its_token_may_not_see() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let rules = "service_prefix \"web\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" } key_prefix \"a/\" { policy = \"read\" }";
    let (_, reader) = token_that_may(&seawall, "reader", rules);
    let (api, secret) = (seawall.api, reader.clone());
    let waiting = |path: &'static str| {
        let at = get(&seawall, &reader, path);
        let (index, secret) = (at.header("x-consul-index").unwrap().to_owned(), secret.clone());
        std::thread::spawn(move || {
            let sign = if path.contains('?') { '&' } else { '?' };
            let header = [("x-consul-token", secret.as_str())];
            let path = format!("{path}{sign}index={index}&wait=60s");
            http::request(api, "GET", &path, &header, b"").unwrap()
        })
    };
    let (services, keys) = (waiting("/v1/catalog/services"), waiting("/v1/kv/?keys"));
    // Whoever asks for services when some have changed already is answered at once: nobody knows what it has seen of that.
    wait("it waits", || (super::faults::waiting(&seawall) >= 1.0).then_some(()));
    for n in 0..20 {
        ok(&put(&seawall, &root, "/v1/agent/service/register", &json!({ "Name": format!("db-{n}") })));
        ok(&put(&seawall, &root, &format!("/v1/kv/b/{n}"), &json!(n)));
    }
    assert!(!services.is_finished() && !keys.is_finished(), "what was changed is kept from it");
    ok(&put(&seawall, &root, "/v1/agent/service/register", &json!({ "Name": "web" })));
    ok(&put(&seawall, &root, "/v1/kv/a/1", &json!(1)));
    // Whoever is woken too early shows an answer without these.
    assert_eq!(ok(&services.join().unwrap()), json!({ "web": [] }));
    assert_eq!(ok(&keys.join().unwrap()), json!(["a/1"]));
}

#[test]
fn a_waiting_query_tells_nothing_to_a_token_that_is_gone() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let (accessor, reader) = token_that_may(&seawall, "reader", "key_prefix \"\" { policy = \"read\" }");
    let index = get(&seawall, &reader, "/v1/kv/a").header("x-consul-index").unwrap().to_owned();
    let api = seawall.api;
    let waiting = std::thread::spawn(move || {
        let header = [("x-consul-token", reader.as_str())];
        http::request(api, "GET", &format!("/v1/kv/a?index={index}&wait=60s"), &header, b"").unwrap()
    });
    ok(&call(&seawall, &root, "DELETE", &format!("/v1/acl/token/{accessor}"), &Value::Null));
    ok(&put(&seawall, &root, "/v1/kv/a", &json!("for others")));
    refused(&waiting.join().unwrap(), "ACL not found");
}

#[test]
fn a_token_whose_time_is_over_is_refused_and_goes() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    policy(&seawall, "keys", "key_prefix \"\" { policy = \"write\" }");
    // Long enough that it is there for a while on a slow machine, too.
    let asked = json!({ "Policies": [{ "Name": "keys" }], "ExpirationTTL": "8s", "Description": "short" });
    let (accessor, short) = token(&seawall, &asked);
    ok(&put(&seawall, &short, "/v1/kv/a", &json!(1)));
    let shown = ok(&get(&seawall, &root, &format!("/v1/acl/token/{accessor}")));
    assert!(shown["ExpirationTime"].as_str().unwrap() > shown["CreateTime"].as_str().unwrap(), "{shown}");
    wait("the token's end", || (get(&seawall, &short, "/v1/kv/a").status == 403).then_some(()));
    refused(&get(&seawall, &short, "/v1/kv/a"), "ACL not found");
    let accessors = || ok(&get(&seawall, &root, "/v1/acl/tokens")).to_string();
    assert!(!accessors().contains(&accessor));
    for (asked, why) in [
        (json!({ "ExpirationTTL": "25h" }), "ExpirationTime must be between"),
        (json!({ "ExpirationTime": "2001-01-01T00:00:00Z" }), "ExpirationTime must be between"),
        (json!({ "ExpirationTime": "tomorrow" }), "ExpirationTime"),
        (json!({ "Policies": [{ "Name": "none" }] }), "No such ACL policy with name \"none\""),
        (json!({ "SecretID": "short" }), "not a valid UUID"),
        (json!({ "AccessorID": ANONYMOUS }), "reserved"),
        (json!({ "ServiceIdentities": [{ "ServiceName": "Web" }] }), "ServiceIdentities[0].ServiceName"),
    ] {
        let answer = put(&seawall, &root, "/v1/acl/token", &asked);
        assert_eq!((answer.status, answer.text().contains(why)), (400, true), "{asked}: {}", answer.text());
    }
    for (rules, why) in [
        ("service \"web\" {\n  policy = \"wirte\"\n}", "line 2, column 3: read, write or deny is expected"),
        ("servce \"web\" { policy = \"read\" }", "did you mean `service`?"),
    ] {
        let answer = put(&seawall, &root, "/v1/acl/policy", &json!({ "Name": "p", "Rules": rules }));
        assert_eq!((answer.status, answer.text().contains(why)), (400, true), "{}", answer.text());
    }
}

#[test]
fn a_restart_keeps_everything_and_the_node_was_never_open_meanwhile() {
    let seawall = Seawall::up(DENY);
    let (accessor, team) = token_that_may(&seawall, "team", TEAM);
    let role =
        json!({ "Name": "ops", "ServiceIdentities": [{ "ServiceName": "api" }], "Policies": [{ "Name": "team" }] });
    ok(&put(&seawall, &management(&seawall), "/v1/acl/role", &role));
    let (_, of_role) = token(&seawall, &json!({ "Roles": [{ "Name": "ops" }] }));
    ok(&put(&seawall, &team, "/v1/kv/app/a", &json!(1)));
    let root = management(&seawall);
    let before = ok(&get(&seawall, &root, "/v1/acl/tokens"));
    let seawall = Seawall::up_in(seawall.into_folder());
    refused(&get(&seawall, "", "/v1/kv/app/a"), "anonymous token lacks permission");
    assert_eq!(get(&seawall, &team, "/v1/kv/app/a?raw").text(), "1");
    ok(&put(&seawall, &of_role, "/v1/agent/service/register", &json!({ "Name": "api" })));
    ok(&put(&seawall, &of_role, "/v1/kv/app/b", &json!(1)));
    assert_eq!(management(&seawall), root);
    assert_eq!(ok(&get(&seawall, &root, "/v1/acl/tokens")), before);
    // Those who may read ACLs see no secrets, and nobody but its holder sees the one that also opens `/api/v1`.
    let (_, reads) = token(&seawall, &json!({ "Policies": [{ "Name": "builtin/global-read-only" }] }));
    let list = get(&seawall, &reads, "/v1/acl/tokens");
    assert!(!list.text().contains(&team) && !list.text().contains(&root) && list.text().contains(&accessor));
    let (_, all) = token(&seawall, &json!({ "Policies": [{ "Name": "global-management" }] }));
    let list = get(&seawall, &all, "/v1/acl/tokens");
    assert!(list.text().contains(&team) && !list.text().contains(&root));
    // ACLs are no way into the rest of the API.
    let header = [("authorization", format!("Bearer {all}"))];
    let header = [(header[0].0, header[0].1.as_str())];
    assert_eq!(http::request(seawall.api, "GET", "/api/v1/config", &header, b"").unwrap().status, 401);
}

#[test]
fn tokens_are_copied_found_by_what_they_have_and_lose_what_is_taken_away() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let id = policy(&seawall, "keys", "key_prefix \"\" { policy = \"read\" }");
    let asked = json!({
        "Policies": [{ "ID": id }], "Description": "first",
        "ServiceIdentities": [{ "ServiceName": "web", "Datacenters": ["local"] }, { "ServiceName": "far", "Datacenters": ["far"] }],
        "NodeIdentities": [{ "NodeName": "n9", "Datacenter": "local" }],
        "TemplatedPolicies": [{ "TemplateName": "builtin/service", "TemplateVariables": { "Name": "db" } }],
    });
    let (accessor, first) = token(&seawall, &asked);
    let copied =
        ok(&put(&seawall, &root, &format!("/v1/acl/token/{accessor}/clone"), &json!({ "Description": "second" })));
    let second = copied["SecretID"].as_str().unwrap().to_owned();
    for secret in [&first, &second] {
        for name in ["web", "db", "web-sidecar-proxy"] {
            ok(&put(&seawall, secret, "/v1/agent/service/register", &json!({ "Name": name })));
        }
        refused(&put(&seawall, secret, "/v1/agent/service/register", &json!({ "Name": "far" })), "'service:write'");
        let node = json!({ "Node": "n9", "Address": "10.0.0.9" });
        ok(&put(&seawall, secret, "/v1/catalog/register", &node));
        let node = json!({ "Node": "n8", "Address": "10.0.0.8" });
        refused(&put(&seawall, secret, "/v1/catalog/register", &node), "'node:write' on \"n8\"");
    }
    let found = |filter: &str| ok(&get(&seawall, &root, &format!("/v1/acl/tokens?{filter}"))).as_array().unwrap().len();
    assert_eq!(
        (found(&format!("policy={id}")), found("servicename=web"), found("servicename=none"), found("role=x")),
        (2, 2, 0, 0)
    );
    ok(&call(&seawall, &root, "DELETE", &format!("/v1/acl/policy/{id}"), &Value::Null));
    refused(&get(&seawall, &first, "/v1/kv/a"), "'key:read'");
    assert_eq!(get(&seawall, &root, &format!("/v1/acl/policy/{id}")).status, 404);
    // What is there without being made stays.
    for path in [
        format!("/v1/acl/token/{ANONYMOUS}"),
        "/v1/acl/policy/00000000-0000-0000-0000-000000000001".into(),
        format!("/v1/acl/token/{}", ok(&get(&seawall, &root, "/v1/acl/token/self"))["AccessorID"].as_str().unwrap()),
    ] {
        assert_eq!(call(&seawall, &root, "DELETE", &path, &Value::Null).status, 403, "{path}");
    }
    refused(&put(&seawall, "", "/v1/acl/bootstrap", &Value::Null), "ACL bootstrap no longer allowed");
}

#[test]
fn the_anonymous_token_and_the_nodes_own_tokens_stand_in_for_requests_and_dns_without_one() {
    let seawall = Seawall::up(&format!("{DENY}dns: {{ listen: \"127.0.0.1:0\" }}\n"));
    let root = management(&seawall);
    ok(&put(
        &seawall,
        &root,
        "/v1/agent/service/register",
        &json!({ "Name": "web", "Address": "10.0.0.1", "Port": 80 }),
    ));
    let shows = |name: &str| {
        let answer = crate::dns::answers(&seawall, name);
        (!answer.is_empty()).then_some(())
    };
    for name in ["web.service.consul", "test.node.consul", "1.0.0.10.in-addr.arpa"] {
        assert!(shows(name).is_none(), "{name} is kept from whoever asks by DNS");
    }
    let rules = "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" }";
    let (accessor, reader) = token_that_may(&seawall, "reader", rules);
    // By a token for DNS alone,
    ok(&put(&seawall, &root, "/v1/agent/token/dns", &json!({ "Token": reader })));
    shows("web.service.consul").unwrap();
    assert_eq!(ok(&get(&seawall, "", "/v1/catalog/services")), json!({}));
    // by one for all that have none,
    ok(&put(&seawall, &root, "/v1/agent/token/dns", &json!({ "Token": "" })));
    assert!(shows("web.service.consul").is_none());
    ok(&put(&seawall, &root, "/v1/agent/token/default", &json!({ "Token": reader })));
    shows("test.node.consul").unwrap();
    assert_eq!(ok(&get(&seawall, "", "/v1/acl/token/self"))["AccessorID"], *accessor);
    ok(&put(&seawall, &root, "/v1/agent/token/default", &json!({ "Token": "" })));
    refused(&put(&seawall, &reader, "/v1/agent/token/default", &json!({ "Token": reader })), "'agent:write'");
    // One for recovery may change the node, and nothing else.
    ok(&put(&seawall, &root, "/v1/agent/token/agent_recovery", &json!({ "Token": "break-glass-in-emergencies" })));
    ok(&get(&seawall, "break-glass-in-emergencies", "/v1/agent/self"));
    refused(&get(&seawall, "break-glass-in-emergencies", "/v1/kv/a"), "'key:read'");
    // and by what everybody may.
    let open = json!({ "Policies": [{ "Name": "reader" }] });
    ok(&put(&seawall, &root, &format!("/v1/acl/token/{ANONYMOUS}"), &open));
    shows("web.service.consul").unwrap();
    assert_eq!(ok(&get(&seawall, "", "/v1/health/service/web")).as_array().unwrap().len(), 1);
}

#[test]
fn what_is_open_by_default_is_open_to_the_user_of_the_node_and_rules_take_from_it() {
    let seawall = Seawall::up("discovery: { acl: { enabled: true } }\n");
    ok(&put(&seawall, "", "/v1/kv/a", &json!(1)));
    assert_eq!(get(&seawall, "", "/v1/kv/a").header("x-consul-default-acl-policy"), Some("allow"));
    let (_, less) =
        token_that_may(&seawall, "less", "key_prefix \"\" { policy = \"read\" } service \"db\" { policy = \"deny\" }");
    refused(&put(&seawall, &less, "/v1/kv/a", &json!(2)), "'key:write'");
    refused(&put(&seawall, &less, "/v1/agent/service/register", &json!({ "Name": "db" })), "'service:write'");
    ok(&put(&seawall, &less, "/v1/agent/service/register", &json!({ "Name": "web" })));
    for path in ["/v1/acl/tokens", "/v1/acl/policies", "/v1/snapshot"] {
        refused(&get(&seawall, "", path), "'acl:");
    }
    // They are not turned off by a file that does not speak of them.
    let (_, err) = seawall.apply(1, "");
    assert!(err.contains("`discovery.acl` cannot be changed while running"), "{err}");
}
