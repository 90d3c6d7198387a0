//! What other users of the machine may, and what nobody may whatever it calls itself.

use std::process::Command;

use serde_json::{Value, json};

use super::{DENY, call, get, management, ok, put, refused, token, token_that_may};
use crate::support::{Seawall, processes};

const ALLOW: &str = "discovery: { remoteScriptChecks: true, acl: { enabled: true } }\n";

/// A request of another user of this machine: status and body.
fn as_nobody(seawall: &Seawall, method: &str, path: &str, more: &[&str]) -> (u16, String) {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl", "-s", "-w", "\n%{http_code}", "-X", method])
        .args(more)
        .arg(format!("http://{}{path}", seawall.api))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = said.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

#[test]
fn where_everything_is_allowed_another_user_needs_a_token_that_is_a_secret() {
    let seawall = Seawall::up(ALLOW);
    if !processes::is_root() {
        println!("skipped: being another user needs root");
        return;
    }
    let root = management(&seawall);
    ok(&put(&seawall, "", "/v1/kv/secret", &json!("hidden")));
    let (_, plain) = token(&seawall, &json!({ "Description": "without policies" }));
    let called = ["X-Consul-Token: anonymous", "Authorization: Bearer anonymous", "X-Other: 1"];
    for header in called {
        for (method, path) in [
            ("GET", "/v1/kv/secret?raw"),
            ("PUT", "/v1/kv/other"),
            ("PUT", "/v1/agent/service/register"),
            ("GET", "/v1/acl/tokens"),
            ("PUT", "/v1/acl/token"),
            ("GET", "/v1/acl/token/self"),
            ("GET", "/v1/snapshot"),
        ] {
            let (status, said) = as_nobody(&seawall, method, path, &["-H", header, "-d", "{\"Name\":\"a\"}"]);
            assert_eq!((status, said.contains("hidden")), (403, false), "{method} {path}, {header}: {said}");
        }
    }
    assert_eq!(as_nobody(&seawall, "GET", "/v1/kv/secret?raw&token=anonymous", &[]).0, 403);
    let with =
        |secret: &str| as_nobody(&seawall, "GET", "/v1/kv/secret?raw", &["-H", &format!("X-Consul-Token: {secret}")]);
    assert_eq!(with(&plain).1, "\"hidden\"", "what is allowed by default is, with a token");
    // A token that stands in for those without one does not become theirs.
    for stands_in in [&plain, &root] {
        ok(&put(&seawall, &root, "/v1/agent/token/default", &json!({ "Token": stands_in })));
        for path in ["/v1/kv/secret?raw", "/v1/acl/token/self", "/v1/acl/tokens"] {
            let (status, said) = as_nobody(&seawall, "GET", path, &[]);
            assert_eq!((status, said.contains(stands_in.as_str())), (403, false), "{path}: {said}");
        }
    }
}

#[test]
fn nobody_learns_or_leaves_anything_where_nothing_is_allowed() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    ok(&put(&seawall, &root, "/v1/agent/service/register", &json!({ "Name": "planted" })));
    let query = json!({ "Service": { "Service": "planted" } });
    refused(&call(&seawall, "", "POST", "/v1/query", &query), "'query:write'");
    let (_, team) = token_that_may(&seawall, "team", "service \"web\" { policy = \"write\" }");
    let made = ok(&call(&seawall, &team, "POST", "/v1/query", &query));
    let path = format!("/v1/query/{}", made["ID"].as_str().unwrap());
    refused(&call(&seawall, "", "DELETE", &path, &Value::Null), "'query:write'");
    ok(&call(&seawall, &team, "DELETE", &path, &Value::Null));
    // The secret of the token that stands in is for whoever has it.
    ok(&put(&seawall, &root, "/v1/agent/token/default", &json!({ "Token": team })));
    let own = |secret: &str| ok(&get(&seawall, secret, "/v1/acl/token/self"))["SecretID"].as_str().unwrap().to_owned();
    assert_eq!((own("").as_str(), own(&team)), ("<hidden>", team.clone()));
    let recovers = |secret: &str| put(&seawall, &root, "/v1/agent/token/agent_recovery", &json!({ "Token": secret }));
    for (secret, words) in
        [("x", "16 bytes at least"), ("anonymous", "16 bytes at least"), (team.as_str(), "there is already")]
    {
        let answer = recovers(secret);
        assert_eq!((answer.status, answer.text().contains(words)), (400, true), "{}", answer.text());
    }
    ok(&recovers("0c7e2ad3-7d3f-4bd5-9a9c-2f6f2f0e6a11"));
    // Where Consul's tokens do not count, only the user that runs Seawall sees who is there.
    assert_eq!(seawall.status()["registered"][0]["name"], "planted");
    assert_eq!(seawall.api("GET", "/api/v1/sd/prometheus", b"").status, 200);
    if processes::is_root() {
        let (status, said) = as_nobody(&seawall, "GET", "/api/v1/status", &[]);
        assert_eq!((status, said.contains("planted")), (200, false), "{said}");
        assert_eq!(as_nobody(&seawall, "GET", "/api/v1/sd/prometheus", &[]).0, 401);
    }
}

#[test]
fn names_are_not_taken_over_by_writing_them_another_way() {
    let seawall = Seawall::up(DENY);
    let root = management(&seawall);
    let rules = "service_prefix \"\" { policy = \"write\" } service \"pay\" { policy = \"deny\" }";
    let (_, team) = token_that_may(&seawall, "team", rules);
    for name in ["pay", "PAY", "Pay"] {
        refused(&put(&seawall, &team, "/v1/agent/service/register", &json!({ "Name": name })), "service:write");
    }
    ok(&put(&seawall, &team, "/v1/agent/service/register", &json!({ "Name": "Orders" })));
    // A machine with a Seawall writes itself: who may not change machines is not told that all is well.
    let own = json!({ "Node": "test", "Address": "6.6.6.6" });
    refused(&put(&seawall, &team, "/v1/catalog/register", &own), "node:write");
    // Its own check is nobody else's.
    let check = json!({ "Name": "mine", "CheckID": "serfHealth", "TTL": "60s" });
    let answer = put(&seawall, &root, "/v1/agent/check/register", &check);
    assert_eq!((answer.status, answer.text().contains("the node's own check")), (400, true), "{}", answer.text());
    // What is no text is no token, rather than the want of one.
    assert_eq!(get(&seawall, "\u{e9}", "/v1/agent/self").status, 403);
}
