//! A primary dies, hangs, or is replaced on purpose: by exactly one, quickly, and without failing an idempotent request.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use crate::support::load::{Load, Options, percentile};
use crate::support::{Seawall, http, processes, service, wait};

const LEDGER: &str = r"
services:
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    livenessProbe: { httpGet: { path: /health }, periodSeconds: 1, timeoutSeconds: 1, failureThreshold: 2 }
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
    restartBackoff: { initial: 50ms, max: 100ms }
routes:
  - { to: { service: ledger } }
";

pub fn load(seawall: &Seawall, connections: usize) -> Load {
    let pause = Duration::from_millis(5);
    Load::start(seawall.gateway, &Options { connections, path: "/".into(), timeout: Duration::from_secs(30), pause })
}

fn primary(status: &Value) -> Option<(String, u64, u64)> {
    let ledger = service(status, "ledger");
    let id = ledger["primary"].as_str()?.to_owned();
    let instance = ledger["instances"].as_array()?.iter().find(|one| one["id"] == id.as_str())?;
    Some((id, instance["pid"].as_u64()?, ledger["epoch"].as_u64()?))
}

/// The events of one cause, in order of kind.
fn chain(events: &[Value], cause: &str) -> Vec<String> {
    let of = events.iter().filter(|event| event["cause"] == cause);
    of.map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn fifty_kills_of_the_primary_under_load() {
    const KILLS: usize = 50;
    let seawall = Seawall::up_alone(LEDGER);
    let load = load(&seawall, 8);
    let mut killed_at = Vec::new();
    let mut epoch = 0;
    for kill in 0..KILLS {
        let (pid, now) = wait("a primary with a ready standby", || {
            let status = seawall.status();
            let (_, pid, now) = primary(&status)?;
            (now > epoch && service(&status, "ledger")["ready"] == 2).then_some((pid, now))
        });
        epoch = now;
        killed_at.push(load.now());
        assert!(processes::signal(pid, "KILL"), "kill {kill}");
    }
    seawall.wait_ready("ledger");
    let ledger = load.finish();
    let epochs = ledger.check_epochs();
    let mut gaps: Vec<Duration> =
        killed_at.iter().flat_map(|at| ledger.gaps(*at, *at + Duration::from_millis(50))).collect();
    gaps.sort();
    let (p50, p99, max) = (percentile(&gaps, 50), percentile(&gaps, 99), gaps.last().copied().unwrap());
    println!("primary, {KILLS} kills: gap seen by clients p50 {p50:?}, p99 {p99:?}, max {max:?}; {}", ledger.summary());
    for (index, at) in killed_at.iter().enumerate() {
        let gaps = ledger.gaps(*at, *at + Duration::from_millis(50));
        if gaps.iter().max() > Some(&Duration::from_millis(300)) {
            println!("switch {index}, {at:?} into the load: {gaps:?}");
        }
    }
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    // A term that ended as soon as it began may have answered nobody.
    assert!(epochs.len() > KILLS * 4 / 5, "clients have seen only {} terms", epochs.len());
    assert!(p99 <= Duration::from_millis(300), "p99 of the gap is {p99:?}");

    let events = seawall.events();
    let lost: Vec<&Value> = events.iter().filter(|event| event["kind"] == "primary-lost").collect();
    assert_eq!(lost.len(), KILLS);
    let mut last_epoch = 0;
    for loss in lost {
        let cause = loss["cause"].as_str().unwrap();
        let kinds = chain(&events, cause);
        let walk: Vec<&str> = kinds
            .iter()
            .map(String::as_str)
            .filter(|kind| {
                ["instance-died", "primary-lost", "fenced", "fence-confirmed", "promoted", "routed"].contains(kind)
            })
            .collect();
        assert_eq!(walk, ["instance-died", "primary-lost", "fenced", "fence-confirmed", "promoted", "routed"]);
        let routed = events.iter().find(|event| event["cause"] == cause && event["kind"] == "routed").unwrap();
        let epoch = routed["epoch"].as_u64().unwrap();
        assert!(epoch > last_epoch, "epoch {epoch} after {last_epoch}");
        last_epoch = epoch;
    }
}

#[test]
fn a_stopped_primary_is_replaced_within_its_probe_budget() {
    let seawall = Seawall::up_alone(LEDGER);
    let load = load(&seawall, 4).under_way();
    let (id, pid, epoch) = primary(&seawall.status()).unwrap();
    let stopped = load.now();
    assert!(processes::signal(pid, "STOP"));
    let took = wait("another primary", || {
        let (now, _, newer) = primary(&seawall.status())?;
        (now != id && newer > epoch).then(|| load.now() - stopped)
    });
    // Two failures a second apart, the second one's timeout, and a second for everything else.
    assert!(took <= Duration::from_secs(2 + 1 + 1), "replaced after {took:?}");
    assert!(!processes::is_running(pid), "the stopped primary was killed before another took over");
    seawall.wait_ready("ledger");
    let ledger = load.finish();
    println!("primary stopped by SIGSTOP: replaced after {took:?}; {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    assert_eq!(ledger.check_epochs().len(), 2);
    let unhealthy = seawall.event("instance-unhealthy", &id);
    let kinds = chain(&seawall.events(), unhealthy["cause"].as_str().unwrap());
    for kind in ["primary-lost", "fenced", "fence-confirmed", "promoted", "routed"] {
        assert!(kinds.iter().any(|known| known == kind), "{kind} in {kinds:?}");
    }
}

#[test]
fn a_planned_promotion_fails_nothing_and_the_old_primary_lives_on() {
    let seawall = Seawall::up(LEDGER);
    let load = load(&seawall, 16).under_way();
    let pids: BTreeMap<String, u64> = ids_and_pids(&seawall);
    let mut last = primary(&seawall.status()).unwrap();
    for _ in 0..10 {
        let (out, _) = seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
        let now = primary(&seawall.status()).unwrap();
        assert!(now.0 != last.0 && now.2 > last.2, "{out}: {last:?} to {now:?}");
        assert!(out.contains(&format!("{} is primary of ledger, epoch {}", now.0, now.2)), "{out}");
        last = now;
    }
    let ledger = load.finish();
    println!("planned, 10 switches: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    assert_eq!(ledger.check_epochs().len(), 11);
    assert_eq!(ids_and_pids(&seawall), pids, "both processes live on");
    assert_eq!(seawall.events_of("primary-lost").len(), 0, "nothing was lost");
    assert_eq!(seawall.events_of("demoted").len(), 10);
}

fn ids_and_pids(seawall: &Seawall) -> BTreeMap<String, u64> {
    let ledger = seawall.service("ledger");
    let of = |one: &Value| Some((one["id"].as_str()?.to_owned(), one["pid"].as_u64()?));
    ledger["instances"].as_array().unwrap().iter().filter_map(of).collect()
}

#[test]
fn a_primary_without_a_ready_standby_is_missed_and_comes_back() {
    let seawall = Seawall::up(&LEDGER.replace(
        "restartBackoff: { initial: 50ms, max: 100ms }",
        "restartBackoff: { initial: 500ms, max: 500ms }\n    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1, failureThreshold: 1 }",
    ));
    let (id, pid, epoch) = primary(&seawall.status()).unwrap();
    let standby = if id == "ledger-0" { "ledger-1" } else { "ledger-0" };
    seawall.fault(standby, "unready");
    seawall.event("instance-unready", standby);
    let load = load(&seawall, 4);
    processes::signal(pid, "KILL");
    let missing = seawall.event("no-candidate", "ledger");
    assert!(missing["message"].as_str().unwrap().contains("no ready standby"), "{missing}");
    // The dead one comes back first: it is the only one that can be promoted.
    let back = wait("a primary again", || primary(&seawall.status()).filter(|now| now.2 > epoch));
    assert_eq!(back.0, id);
    let ledger = load.finish();
    println!("no candidate for a while: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "requests waited: {}", ledger.summary());
    ledger.check_epochs();
    assert_eq!(missing["cause"], seawall.event("primary-lost", &id)["cause"]);
}

#[test]
fn promotions_that_would_break_something_are_refused_with_the_reason() {
    let seawall = Seawall::up(&format!(
        "{}\n  shop: {{ command: [DEMO], replicas: 2 }}\nroutes:\n  - {{ match: {{ pathPrefix: /shop }}, to: {{ service: shop }} }}\n  - {{ to: {{ service: ledger }} }}\n",
        LEDGER.split("\nroutes:").next().unwrap().replace(
            "restartBackoff",
            "readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1, failureThreshold: 1 }\n    restartBackoff"
        )
    ));
    let (id, _, epoch) = primary(&seawall.status()).unwrap();
    let standby = if id == "ledger-0" { "ledger-1" } else { "ledger-0" };
    let refused = |code: i32, arguments: &[&str], reason: &str| {
        let (_, err) = seawall.cli_exits(code, arguments);
        assert!(err.contains(reason), "{arguments:?}: {err}");
    };
    refused(1, &["promote", "shop"], "active-active");
    refused(2, &["promote", "legder"], "did you mean `ledger`");
    refused(2, &["promote", "ledger", "ledger-7"], "has no instance `ledger-7`");
    refused(1, &["promote", "ledger", &id], "is the primary already");
    seawall.fault(standby, "unready");
    seawall.event("instance-unready", standby);
    refused(1, &["promote", "ledger", standby], "is not ready");
    refused(1, &["promote", "ledger"], "has no ready standby");
    let (now, _, unchanged) = primary(&seawall.status()).unwrap();
    assert_eq!((now, unchanged), (id, epoch), "nothing was changed");
}

#[test]
fn a_write_in_an_old_epoch_is_refused_and_roles_are_told() {
    let seawall = Seawall::up(LEDGER);
    seawall.wait_ready("ledger");
    let primary = || {
        let service = seawall.service("ledger");
        (service["primary"].as_str().unwrap().to_owned(), service["epoch"].as_u64().unwrap())
    };
    let write = |epoch: &str, value: &[u8]| {
        let headers = [("Seawall-Service", "ledger"), ("Seawall-Epoch", epoch)];
        http::request(seawall.api, "PUT", "/api/v1/kv/balance", &headers, value).unwrap()
    };
    let (old, first) = primary();
    assert_eq!(write(&first.to_string(), b"1").status, 200);
    let role = |id: &str| seawall.api("GET", &format!("/api/v1/role?instance={id}"), b"").json();
    assert_eq!((&role(&old)["role"], &role(&old)["epoch"]), (&"primary".into(), &first.into()));
    let mut told = http::Sent::open(seawall.api, &format!("/api/v1/role?instance={old}&watch=true")).unwrap();
    assert_eq!(told.next().unwrap().1["role"], "primary");
    seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
    let (new, second) = primary();
    assert!(new != old && second > first);
    let late = write(&first.to_string(), b"2");
    assert_eq!(
        (late.status, late.header("seawall-epoch")),
        (409, Some(second.to_string().as_str())),
        "{}",
        late.text()
    );
    assert_eq!(late.json()["epoch"], second);
    assert_eq!(seawall.api("GET", "/api/v1/kv/balance", b"").text(), "1", "nothing was written");
    assert_eq!(write(&second.to_string(), b"3").status, 200);
    assert_eq!(write(&(second + 1).to_string(), b"4").status, 409, "a term that nobody has begun");
    // A standby that lost its place hears of it.
    let heard = std::iter::from_fn(|| told.next().ok()).find(|(_, role)| role["role"] == "standby").unwrap().1;
    assert_eq!(heard["instance"], old.as_str());
    assert_eq!(role(&new)["role"], "primary");
    let nobody = [("Seawall-Service", "nobody"), ("Seawall-Epoch", "0")];
    let refused = http::request(seawall.api, "PUT", "/api/v1/kv/balance", &nobody, b"4").unwrap();
    assert_eq!(refused.status, 409, "nobody writes in the name of a service without a term");
    // Half of it, or none, is not taken for none.
    for headers in [vec![("Seawall-Epoch", "1")], vec![("Seawall-Service", "ledger")]] {
        assert_eq!(http::request(seawall.api, "PUT", "/api/v1/kv/balance", &headers, b"5").unwrap().status, 400);
    }
    assert_eq!(write("soon", b"5").status, 400);
    // What the request itself compares still does.
    let headers = [("Seawall-Service", "ledger"), ("Seawall-Epoch", &*second.to_string())];
    let compared = http::request(seawall.api, "PUT", "/api/v1/kv/balance?cas=1", &headers, b"6").unwrap();
    assert!(compared.status == 409 && compared.text().contains("was changed meanwhile"), "{}", compared.text());
    assert_eq!(seawall.api("GET", "/api/v1/role?instance=nobody", b"").status, 404);
}
