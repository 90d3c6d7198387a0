//! Keys, sessions, locks, transactions, events and prepared queries, as Consul's clients use them.

use std::time::Duration;

use serde_json::{Value, json};

use super::{done, ids, index, put};
use crate::support::http;
use crate::support::{Seawall, wait};

fn yes(seawall: &Seawall, method: &str, path: &str, body: &str) -> bool {
    let answer = seawall.api(method, path, body.as_bytes());
    assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
    match answer.text().as_str() {
        "true" => true,
        "false" => false,
        other => panic!("{method} {path} answered {other}"),
    }
}

fn key(seawall: &Seawall, path: &str) -> Value {
    let answer = seawall.api("GET", &format!("/v1/kv/{path}"), b"");
    if answer.status == 404 { Value::Null } else { answer.json()[0].clone() }
}

fn session(seawall: &Seawall, body: &Value) -> String {
    let answer = put(seawall, "/v1/session/create", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["ID"].as_str().unwrap().to_owned()
}

#[test]
fn keys_are_the_users_and_control_keys_are_out_of_reach() {
    let seawall = Seawall::up("");
    assert!(yes(&seawall, "PUT", "/v1/kv/a/b?flags=42", "one"));
    let shown = key(&seawall, "a/b");
    assert_eq!(
        (shown["Value"].as_str(), shown["Flags"].as_u64(), shown["Key"].as_str()),
        (Some("b25l"), Some(42), Some("a/b"))
    );
    assert_eq!(seawall.api("GET", "/api/v1/kv/a/b", b"").text(), "one");
    assert_eq!(seawall.api("GET", "/v1/kv/a/b?raw", b"").text(), "one");
    // Written over by another way, what hung on it stays; made anew, it is a new one.
    seawall.api("PUT", "/api/v1/kv/a/b", b"two");
    assert_eq!(key(&seawall, "a/b")["Flags"], 42);
    seawall.api("DELETE", "/api/v1/kv/a/b", b"");
    seawall.api("PUT", "/api/v1/kv/a/b", b"three");
    assert_eq!(key(&seawall, "a/b")["Flags"], 0);
    // Compared.
    let at = key(&seawall, "a/b")["ModifyIndex"].as_u64().unwrap();
    assert!(!yes(&seawall, "PUT", "/v1/kv/a/b?cas=0", "x"));
    assert!(!yes(&seawall, "PUT", &format!("/v1/kv/a/b?cas={}", at - 1), "x"));
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/a/b?cas={at}"), "four"));
    assert!(!yes(&seawall, "DELETE", &format!("/v1/kv/a/b?cas={at}"), ""));
    // Listed.
    for name in ["a/c/d", "a/c/e", "b"] {
        assert!(yes(&seawall, "PUT", &format!("/v1/kv/{name}"), ""));
    }
    let list = |path: &str| seawall.api("GET", path, b"").json();
    assert_eq!(list("/v1/kv/a/?keys&separator=/"), json!(["a/b", "a/c/"]));
    assert_eq!(list("/v1/kv/?keys"), json!(["a/b", "a/c/d", "a/c/e", "b"]));
    assert_eq!(list("/v1/kv/a?recurse").as_array().unwrap().len(), 3);
    assert!(yes(&seawall, "DELETE", "/v1/kv/a?recurse", ""));
    let gone = seawall.api("GET", "/v1/kv/a?recurse", b"");
    assert_eq!((gone.status, gone.body.len()), (404, 0));
    index(&gone);
    // Everything there is are the users' keys.
    assert_eq!(list("/v1/kv/?keys"), json!(["b"]));
    for control in ["control/config", "registry/node/test", "../control/config"] {
        assert_eq!(key(&seawall, control), Value::Null, "{control}");
        assert!(yes(&seawall, "PUT", &format!("/v1/kv/{control}"), "mine"));
    }
    assert_eq!(seawall.api("GET", "/v1/catalog/nodes", b"").json()[0]["Node"], "test");
    let large = seawall.api("PUT", "/v1/kv/large", &vec![0; 512 * 1024 + 1]);
    assert_eq!(large.status, 413);
}

#[test]
fn a_blocking_query_of_a_key_wakes_for_that_key() {
    let seawall = Seawall::up("");
    assert!(yes(&seawall, "PUT", "/v1/kv/a", "1"));
    let known = index(&seawall.api("GET", "/v1/kv/a", b""));
    let api = seawall.api;
    let waiting = std::thread::spawn(move || {
        http::request(api, "GET", &format!("/v1/kv/a?index={known}&wait=20s"), &[], b"").unwrap()
    });
    for n in 0..50 {
        assert!(yes(&seawall, "PUT", &format!("/v1/kv/b{n}"), ""));
    }
    assert!(!waiting.is_finished());
    assert!(yes(&seawall, "DELETE", "/v1/kv/a", ""));
    let answer = waiting.join().unwrap();
    assert_eq!(answer.status, 404);
    let after = index(&answer);
    assert!(after > known);
    let same = seawall.api("GET", &format!("/v1/kv/a?index={after}&wait=100ms"), b"");
    assert_eq!(index(&same), after);
}

#[test]
fn a_lock_has_one_holder_and_is_free_when_its_session_ends() {
    let seawall = Seawall::up("");
    let one = session(&seawall, &json!({ "Name": "one", "LockDelay": "0s" }));
    let other = session(&seawall, &json!({ "TTL": "10s", "Behavior": "delete", "LockDelay": "0s" }));
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={one}"), "one"));
    assert!(!yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={other}"), "other"));
    let held = key(&seawall, "lock");
    assert_eq!((held["Session"].as_str(), held["LockIndex"].as_u64()), (Some(one.as_str()), Some(1)));
    assert!(!yes(&seawall, "PUT", &format!("/v1/kv/lock?release={other}"), ""));
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?release={one}"), "free"));
    assert!(key(&seawall, "lock")["Session"].is_null());
    // Held again, and whoever waits for the key is woken when the session ends.
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={one}"), "one"));
    let known = index(&seawall.api("GET", "/v1/kv/lock", b""));
    let api = seawall.api;
    let waiting = std::thread::spawn(move || {
        http::request(api, "GET", &format!("/v1/kv/lock?index={known}&wait=20s"), &[], b"").unwrap()
    });
    assert!(yes(&seawall, "PUT", &format!("/v1/session/destroy/{one}"), ""));
    let freed = waiting.join().unwrap().json();
    assert!(freed[0]["Session"].is_null(), "{freed}");
    // A key goes with a session of the other behaviour.
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={other}"), "other"));
    assert_eq!(key(&seawall, "lock")["LockIndex"], 3);
    assert_eq!(seawall.api("PUT", &format!("/v1/session/renew/{other}"), b"").json()[0]["TTL"], "10s");
    assert!(yes(&seawall, "PUT", &format!("/v1/session/destroy/{other}"), ""));
    assert_eq!(key(&seawall, "lock"), Value::Null);
    let invalid = seawall.api("PUT", &format!("/v1/kv/lock?acquire={other}"), b"");
    assert_eq!(invalid.status, 500);
    assert!(invalid.text().contains("invalid session"), "{}", invalid.text());
    assert_eq!(seawall.api("PUT", &format!("/v1/session/renew/{other}"), b"").status, 404);
    assert_eq!(seawall.api("GET", "/v1/session/list", b"").json(), json!([]));
    for wrong in [json!({ "TTL": "1s" }), json!({ "TTL": "x" }), json!({ "Behavior": "keep" })] {
        assert_eq!(put(&seawall, "/v1/session/create", &wrong).status, 400, "{wrong}");
    }
}

#[test]
fn a_session_hangs_on_checks_of_services_that_must_be_there_and_well() {
    let seawall = Seawall::up("");
    let checked = json!({ "Name": "web", "Check": { "TTL": "60s", "Status": "passing" } });
    assert_eq!(put(&seawall, "/v1/agent/service/register", &checked).status, 200);
    let on = json!({ "ServiceChecks": [{ "ID": "service:web", "Namespace": "" }], "LockDelay": "0s" });
    let holder = session(&seawall, &on);
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={holder}"), ""));
    assert_eq!(seawall.api("PUT", "/v1/agent/check/fail/service:web", b"").status, 200);
    wait("the lock is free", || key(&seawall, "lock")["Session"].is_null().then_some(()));
    for (body, why) in
        [(on, "is in critical state"), (json!({ "Checks": ["nope"] }), "Missing check 'nope' registration")]
    {
        let refused = put(&seawall, "/v1/session/create", &body);
        assert_eq!((refused.status, refused.text().contains(why)), (500, true), "{}", refused.text());
    }
}

#[test]
fn a_lock_is_not_given_to_the_next_before_its_delay_is_over() {
    let seawall = Seawall::up("");
    let one = session(&seawall, &json!({ "LockDelay": "2s" }));
    let other = session(&seawall, &json!({}));
    let acquire = format!("/v1/kv/lock?acquire={other}");
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={one}"), ""));
    assert!(yes(&seawall, "PUT", &format!("/v1/session/destroy/{one}"), ""));
    let ended = std::time::Instant::now();
    assert!(!yes(&seawall, "PUT", &acquire, ""));
    wait("the delay's end", || yes(&seawall, "PUT", &acquire, "").then_some(()));
    assert!(ended.elapsed() > Duration::from_millis(1500), "{:?}", ended.elapsed());
}

#[test]
fn a_session_that_is_not_renewed_ends_with_its_time() {
    let seawall = Seawall::up("");
    let id = session(&seawall, &json!({ "TTL": "10s", "LockDelay": "0s" }));
    assert!(yes(&seawall, "PUT", &format!("/v1/kv/lock?acquire={id}"), "held"));
    // Its time is over, and whoever leads has cleaned up.
    wait("a free lock", || {
        let shown = key(&seawall, "lock");
        (shown["Session"].is_null() && shown["Value"] == "aGVsZA==").then_some(())
    });
    assert_eq!(seawall.api("GET", &format!("/v1/session/info/{id}"), b"").json(), json!([]));
}

#[test]
fn a_transaction_registers_whole_or_not_at_all() {
    let seawall = Seawall::up("");
    let txn = |ops: Value| put(&seawall, "/v1/txn", &ops);
    let node = json!({ "Node": "printer", "Address": "10.0.0.9", "Meta": { "floor": "2" } });
    let service = json!({ "ID": "lpd-1", "Service": "lpd", "Port": 515 });
    let check =
        json!({ "Node": "printer", "CheckID": "paper", "Name": "Paper", "Status": "warning", "ServiceID": "lpd-1" });
    // A check of an instance that nobody has: nothing of the rest is there either.
    let failed =
        txn(json!([{ "Node": { "Verb": "set", "Node": node } }, { "Check": { "Verb": "set", "Check": check } }]));
    assert_eq!(failed.status, 409, "{}", failed.text());
    let error = failed.json()["Errors"][0].clone();
    assert_eq!((error["OpIndex"].as_u64(), error["What"].as_str()), (Some(1), Some("Missing service registration")));
    assert_eq!(seawall.api("GET", "/v1/catalog/node/printer", b"").json(), Value::Null);
    let done = txn(json!([
        { "Node": { "Verb": "cas", "Node": node } },
        { "Service": { "Verb": "set", "Node": "printer", "Service": service } },
        { "Check": { "Verb": "set", "Check": check } },
        { "Check": { "Verb": "get", "Check": { "Node": "printer", "CheckID": "paper" } } },
        { "KV": { "Verb": "set", "Key": "printers", "Value": "MQ==" } },
    ]));
    assert_eq!(done.status, 200, "{}", done.text());
    let results = done.json()["Results"].clone();
    assert_eq!(results.as_array().unwrap().len(), 5, "{results}");
    assert_eq!(
        (&results[0]["Node"]["Meta"]["floor"], &results[3]["Check"]["ServiceName"]),
        (&json!("2"), &json!("lpd"))
    );
    let found = seawall.api("GET", "/v1/health/service/lpd", b"").json();
    assert_eq!(found[0]["Service"]["ModifyIndex"], results[1]["Service"]["ModifyIndex"], "{found}");
    assert_eq!(
        (&found[0]["Checks"][0]["Status"], &found[0]["Node"]["Address"]),
        (&json!("warning"), &json!("10.0.0.9"))
    );
    assert_eq!(seawall.api("GET", "/v1/kv/printers?raw", b"").text(), "1");

    let at = results[1]["Service"]["ModifyIndex"].as_u64().unwrap();
    let cas = |verb: &str, index: u64| {
        let service = json!({ "ID": "lpd-1", "Service": "lpd", "Port": 516, "ModifyIndex": index });
        txn(json!([{ "Service": { "Verb": verb, "Node": "printer", "Service": service } }]))
    };
    for verb in ["cas", "delete-cas"] {
        let stale = cas(verb, at - 1);
        assert_eq!(stale.status, 409);
        assert!(stale.text().contains("index is stale"), "{}", stale.text());
    }
    assert_eq!(cas("cas", at).json()["Results"][0]["Service"]["Port"], 516);
    // With the machine goes what is on it, also for what comes later in the same transaction.
    let gone = txn(json!([
        { "Node": { "Verb": "delete", "Node": { "Node": "printer" } } },
        { "Service": { "Verb": "get", "Node": "printer", "Service": { "ID": "lpd-1" } } },
    ]));
    assert!(gone.text().contains("doesn't exist"), "{}", gone.text());
    let gone = txn(json!([{ "Node": { "Verb": "delete", "Node": { "Node": "printer" } } }]));
    assert_eq!((gone.status, gone.json()["Results"].clone()), (200, json!([])));
    assert_eq!(seawall.api("GET", "/v1/health/service/lpd", b"").json(), json!([]));
    // What Seawall writes itself stays.
    let own = seawall.api("GET", "/v1/agent/self", b"").json()["Config"]["NodeName"].clone();
    for verb in ["set", "delete"] {
        let refused = txn(json!([{ "Node": { "Verb": verb, "Node": { "Node": own, "Address": "10.0.0.9" } } }]));
        assert_eq!(refused.status, 409, "{}", refused.text());
    }
}

#[test]
fn a_transaction_happens_whole_or_not_at_all() {
    let seawall = Seawall::up("");
    let txn = |ops: Value| put(&seawall, "/v1/txn", &ops);
    let answer = txn(json!([
        { "KV": { "Verb": "set", "Key": "a", "Value": "b25l", "Flags": 7 } },
        { "KV": { "Verb": "get", "Key": "a" } },
        { "KV": { "Verb": "check-not-exists", "Key": "b" } },
    ]));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["Results"][1]["KV"]["Value"], "b25l", "{body}");
    let at = key(&seawall, "a")["ModifyIndex"].clone();
    assert_eq!(body["Results"][0]["KV"]["ModifyIndex"], at);
    let failed = txn(json!([
        { "KV": { "Verb": "set", "Key": "b", "Value": "b25l" } },
        { "KV": { "Verb": "cas", "Key": "a", "Index": 1, "Value": "" } },
        { "KV": { "Verb": "get", "Key": "none" } },
    ]));
    assert_eq!(failed.status, 409);
    let errors = failed.json()["Errors"].clone();
    assert_eq!((errors[0]["OpIndex"].as_u64(), errors[1]["OpIndex"].as_u64()), (Some(1), Some(2)), "{errors}");
    assert_eq!(key(&seawall, "b"), Value::Null);
    let moved = txn(json!([
        { "KV": { "Verb": "cas", "Key": "a", "Index": at, "Value": "dHdv" } },
        { "KV": { "Verb": "set", "Key": "c/1", "Value": "" } },
        { "KV": { "Verb": "get-tree", "Key": "c/" } },
        { "KV": { "Verb": "delete", "Key": "none" } },
    ]));
    assert_eq!(moved.status, 200, "{}", moved.text());
    assert_eq!(seawall.api("GET", "/v1/kv/a?raw", b"").text(), "two");
    assert_eq!(txn(json!([{ "Node": { "Verb": "set" } }])).status, 400);
    assert_eq!(txn(json!([{ "Other": { "Verb": "set" } }])).status, 400);
    let many: Vec<Value> = (0..65).map(|n| json!({ "KV": { "Verb": "get", "Key": format!("{n}") } })).collect();
    assert_eq!(txn(many.into()).status, 413);
}

#[test]
fn events_and_prepared_queries_are_kept_and_carried_out() {
    let seawall = Seawall::up("");
    let fired = seawall.api("PUT", "/v1/event/fire/deploy?service=web", b"v2").json();
    let listed = seawall.api("GET", "/v1/event/list?name=deploy", b"");
    let shown = listed.json();
    assert_eq!((&shown[0]["ID"], shown[0]["Payload"].as_str()), (&fired["ID"], Some("djI=")));
    index(&listed);
    for (id, tag) in [("web-1", "v1"), ("web-2", "v2")] {
        done(&put(&seawall, "/v1/agent/service/register", &json!({ "Name": "web", "ID": id, "Tags": [tag] })));
    }
    let query = json!({ "Name": "newest", "Service": { "Service": "web", "Tags": ["!v1"], "OnlyPassing": true }, "DNS": { "TTL": "5s" } });
    let answer = seawall.api("POST", "/v1/query", query.to_string().as_bytes());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let id = answer.json()["ID"].as_str().unwrap().to_owned();
    let carried_out = |name: &str| {
        let answer = seawall.api("GET", &format!("/v1/query/{name}/execute"), b"");
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let body = answer.json();
        body["Nodes"].as_array().unwrap().iter().map(|one| one["Service"]["ID"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(carried_out("newest"), ["web-2"]);
    assert_eq!(carried_out(&id), ["web-2"]);
    // A template: the longest beginning, its parts filled in.
    let template = json!({ "Name": "geo-", "Template": { "Type": "name_prefix_match" }, "Service": { "Service": "${name.suffix}", "Tags": ["v1"] } });
    done(&seawall.api("POST", "/v1/query", template.to_string().as_bytes()));
    assert_eq!(carried_out("geo-web"), ["web-1"]);
    let explained = seawall.api("GET", "/v1/query/geo-web/explain", b"").json();
    assert_eq!(explained["Query"]["Service"]["Service"], "web");
    assert_eq!(seawall.api("POST", "/v1/query", query.to_string().as_bytes()).status, 500, "the name is taken");
    // Nobody here, and sites that are not known: none was asked, as with a Consul that knows no other.
    let elsewhere = json!({ "Name": "away", "Service": { "Service": "away", "Failover": { "NearestN": 2, "Datacenters": ["east", "west"] } } });
    done(&seawall.api("POST", "/v1/query", elsewhere.to_string().as_bytes()));
    let body = seawall.api("GET", "/v1/query/away/execute", b"").json();
    assert_eq!((&body["Nodes"], &body["Failovers"]), (&json!([]), &json!(0)), "{body}");
    done(&seawall.api("DELETE", &format!("/v1/query/{id}"), b""));
    assert_eq!(seawall.api("GET", "/v1/query/newest/execute", b"").status, 404);
    assert!(ids(&seawall.api("GET", "/v1/health/service/none", b"")).is_empty());
}
