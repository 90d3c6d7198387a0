//! What goes wrong in one instance: each fault leads to a defined state, an event that says what happened, and touches
//! nobody else. A healthy service runs beside each and must answer throughout with the same processes.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Seawall, http, processes, wait};

const HEALTHY: &str = r"
services:
  healthy: { command: [DEMO], replicas: 2 }
";

const ROUTES: &str = r"
routes:
  - { match: { pathPrefix: /faulty }, to: { service: faulty } }
  - { to: { service: healthy } }
";

/// A Seawall with a healthy service, to which a faulty one is added.
struct Ward {
    seawall: Seawall,
    healthy: Vec<u64>,
}

impl Ward {
    fn with(faulty: &str) -> Self {
        let seawall = Seawall::up(&format!("{HEALTHY}routes:\n  - {{ to: {{ service: healthy }} }}\n"));
        let healthy = seawall.pids("healthy");
        seawall.apply(0, &format!("{HEALTHY}  faulty: {faulty}\n{ROUTES}"));
        Self { seawall, healthy }
    }

    /// The rest runs on as if nothing had happened.
    fn check_rest(&self) {
        let asked = Instant::now();
        assert_eq!(self.seawall.get("/").status, 200);
        assert!(asked.elapsed() < Duration::from_secs(2), "the healthy service is slow: {:?}", asked.elapsed());
        assert_eq!(self.seawall.pids("healthy"), self.healthy, "healthy instances were restarted");
        assert_eq!(self.seawall.service("healthy")["state"], "ready");
        assert_eq!(self.seawall.status()["node"]["nodeStarts"], 1, "the node process crashed");
    }

    fn says(&self, kind: &str, words: &[&str]) -> Value {
        let event = self.seawall.event(kind, "faulty-0");
        let message = event["message"].as_str().unwrap();
        for word in words {
            assert!(message.contains(word), "`{word}` is missing in: {message}");
        }
        event
    }
}

#[test]
fn a_missing_command_is_named() {
    let ward = Ward::with("{ command: [no-such-program-anywhere], restartBackoff: { initial: 20ms, max: 100ms } }");
    ward.says("instance-start-failed", &["cannot start `no-such-program-anywhere`", "No such file"]);
    ward.says("crash-loop", &["4 times in a row", "seawall logs faulty --instance faulty-0"]);
    assert!(ward.seawall.instance("faulty-0")["note"].as_str().unwrap().contains("starts again in"));
    let (logs, _) = ward.seawall.cli_exits(0, &["logs", "faulty"]);
    assert!(logs.contains("cannot start `no-such-program-anywhere`"), "{logs}");
    ward.check_rest();
}

#[test]
fn a_probe_that_never_passes_restarts_with_back_off() {
    let ward = Ward::with(
        "{ command: [sleep, '1000'], terminationGracePeriodSeconds: 1, restartBackoff: { initial: 20ms, max: 100ms }, livenessProbe: { tcpSocket: { }, periodSeconds: 1, failureThreshold: 1 } }",
    );
    let unhealthy = ward.says("instance-unhealthy", &["livenessProbe", "cannot connect to 127.0.0.1:"]);
    assert!(unhealthy["cause"].as_str().is_some_and(|cause| !cause.is_empty()));
    ward.says("crash-loop", &["4 times in a row"]);
    let metrics = ward.seawall.api("GET", "/metrics", b"").text();
    let restarts =
        metrics.lines().find(|line| line.starts_with("seawall_instance_restarts_total{") && line.contains("faulty-0"));
    assert!(restarts.is_some_and(|line| !line.ends_with(" 0")), "restarts by a probe are counted: {restarts:?}");
    ward.check_rest();
}

#[test]
fn what_a_process_leaves_behind_is_ended() {
    let ward = Ward::with(
        r#"{ command: [sh, -c, "sleep 1000 & setsid sleep 1000 & sleep 0.2; exit 3"], restartBackoff: { initial: 100ms, max: 60s } }"#,
    );
    let first = ward.says("orphans-killed", &["left", "processes behind; they were ended"]);
    ward.says("instance-died", &["exit code 3"]);
    assert!(first["at"].as_str() <= ward.seawall.event("instance-died", "faulty-0")["at"].as_str());
    // In its pause between two starts nothing of it runs.
    ward.seawall.wait_for("a pause", |status| {
        crate::support::instance(status, "faulty-0")
            .filter(|one| one["state"] == "back-off" && one["restarts"].as_u64() >= Some(4))
    });
    let left: Vec<u64> = ward.seawall.processes().into_iter().filter(|pid| is_sleep(*pid)).collect();
    assert_eq!(left, Vec::<u64>::new());
    ward.check_rest();
}

fn is_sleep(pid: u64) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep\0"))
}

#[test]
fn a_process_that_ignores_the_request_to_stop_is_killed_after_its_grace() {
    let ward = Ward::with(
        r#"{ command: [sh, -c, "trap '' TERM; sleep 1000 & while :; do sleep 0.1; done"], terminationGracePeriodSeconds: 1 }"#,
    );
    ward.seawall.event("instance-started", "faulty-0");
    let began = Instant::now();
    ward.seawall.apply(0, &format!("{HEALTHY}routes:\n  - {{ to: {{ service: healthy }} }}\n"));
    ward.says("instance-killed", &["did not stop within its grace period and was killed"]);
    assert!(began.elapsed() >= Duration::from_secs(1), "it had its grace");
    wait("its children's end", || ward.seawall.processes().iter().all(|pid| !is_sleep(*pid)).then_some(()));
    ward.seawall
        .wait_for("it is forgotten", |status| crate::support::instance(status, "faulty-0").is_none().then_some(()));
    ward.check_rest();
}

#[test]
fn a_service_that_lives_on_without_its_port_is_restarted() {
    let ward = Ward::with(
        "{ command: [DEMO], replicas: 2, livenessProbe: { httpGet: { path: /health }, periodSeconds: 1, failureThreshold: 2 } }",
    );
    ward.seawall.wait_ready("faulty");
    let before = ward.seawall.pids("faulty");
    ward.seawall.fault("faulty-0", "close");
    wait("answers meanwhile", || {
        assert_eq!(ward.seawall.get("/faulty").status, 200);
        (ward.seawall.instance("faulty-0")["restarts"] == 1).then_some(())
    });
    ward.says("instance-unhealthy", &["livenessProbe", "refused"]);
    ward.seawall.wait_ready("faulty");
    assert_eq!(ward.seawall.pids("faulty")[1], before[1]);
    ward.check_rest();
}

#[test]
fn garbage_answers_are_kept_from_clients_and_cost_the_instance_its_traffic() {
    let ward = Ward::with(
        "{ command: [DEMO], replicas: 2, readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1, failureThreshold: 1 } }",
    );
    ward.seawall.wait_ready("faulty");
    ward.seawall.fault("faulty-0", "garbage");
    // The instance has seen the request, so nobody may repeat it: until a probe notices, some are answered 502 with
    // the reason, and never with what the instance said.
    wait("answers until it gets no traffic", || {
        let answer = ward.seawall.get("/faulty");
        let told = answer.status == 502 && answer.text().contains("bad-response");
        assert!(answer.status == 200 || told, "{} {}", answer.status, answer.text());
        ward.seawall.events_of("instance-unready").first().cloned()
    });
    ward.says("instance-unready", &["gets no traffic", "readinessProbe"]);
    for _ in 0..20 {
        assert_eq!(ward.seawall.get("/faulty").json()["instance"], "faulty-1");
    }
    ward.check_rest();
}

#[test]
fn a_flood_of_output_is_bounded_and_slows_nobody() {
    let ward = Ward::with(r#"{ command: [sh, -c, "exec yes this is a line of a flood that never ends"] }"#);
    let folder = ward.seawall.data_dir().join("logs").join("faulty");
    let rotated = folder.join("faulty-0.log.2");
    wait("two rotations", || rotated.exists().then_some(()));
    let oldest = std::fs::metadata(&rotated).unwrap().modified().unwrap();
    wait("another rotation", || std::fs::metadata(&rotated).ok()?.modified().ok().filter(|time| *time != oldest));
    let sizes: Vec<u64> =
        std::fs::read_dir(&folder).unwrap().filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).collect();
    let total: u64 = sizes.iter().sum();
    println!("a flood of output: {sizes:?} bytes on disk");
    assert!(sizes.len() <= 3 && total <= 3 * (1 << 20) + 64 * 1024, "{sizes:?}");
    // The keeper still does its work at once: a killed instance is back although the flood goes on.
    processes::signal(ward.healthy[0], "KILL");
    let killed = Instant::now();
    wait("its successor", || {
        let now = ward.seawall.instance("healthy-0");
        (now["state"] == "ready" && now["pid"] != ward.healthy[0]).then_some(())
    });
    println!("a flood of output: an instance killed meanwhile was back after {:?}", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    let (tail, _) = ward.seawall.cli_exits(0, &["logs", "faulty", "-n", "3"]);
    assert_eq!(tail.lines().filter(|line| line.contains("this is a line of a flood")).count(), 3, "{tail}");
    assert_eq!(ward.seawall.get("/").status, 200);
}

#[test]
fn requests_wait_for_a_service_without_instances_as_long_as_its_file_says() {
    let ward = Ward::with(
        "{ command: [DEMO], replicas: 2, hold: { maxWait: 700ms }, restartBackoff: { initial: 5s, max: 5s } }",
    );
    ward.seawall.wait_ready("faulty");
    for pid in ward.seawall.pids("faulty") {
        processes::signal(pid, "KILL");
    }
    let missing = ward.seawall.event("no-ready-instance", "faulty");
    assert!(missing["message"].as_str().unwrap().contains("seawall logs faulty"), "{missing}");
    let asked = Instant::now();
    let answer = ward.seawall.get("/faulty");
    let waited = asked.elapsed();
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(waited >= Duration::from_millis(700) && waited < Duration::from_secs(3), "{waited:?}");
    ward.check_rest();
    ward.seawall.wait_ready("faulty");
    assert_eq!(ward.seawall.get("/faulty").status, 200);
    let back = ward.seawall.event("service-ready", "faulty");
    assert!(back["message"].as_str().unwrap().contains("ready instance again"), "{back}");
}

#[test]
fn a_request_that_waits_is_answered_when_an_instance_is_back() {
    let ward = Ward::with("{ command: [DEMO], restartBackoff: { initial: 500ms, max: 500ms } }");
    ward.seawall.wait_ready("faulty");
    processes::signal(ward.seawall.pids("faulty")[0], "KILL");
    ward.seawall.event("no-ready-instance", "faulty");
    let answers: Vec<_> = (0..8)
        .map(|_| {
            let gateway = ward.seawall.gateway;
            std::thread::spawn(move || http::request(gateway, "GET", "/faulty", &[], b"").unwrap().status)
        })
        .collect();
    for answer in answers {
        assert_eq!(answer.join().unwrap(), 200);
    }
    ward.check_rest();
}

#[test]
fn a_standby_that_refuses_to_be_promoted_is_passed_over() {
    let seawall = Seawall::up(
        r#"
services:
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    onPromote: { exec: { command: [sh, -c, "test ! -e $SEAWALL_INSTANCE.refuses"] } }
    restartBackoff: { initial: 3s, max: 3s }
routes:
  - { to: { service: ledger } }
"#,
    );
    let before = seawall.service("ledger");
    let old = before["primary"].as_str().unwrap().to_owned();
    let standby = if old == "ledger-0" { "ledger-1" } else { "ledger-0" };
    let refusal = seawall.folder().join(format!("{standby}.refuses"));
    std::fs::write(&refusal, "").unwrap();
    processes::signal(seawall.instance(&old)["pid"].as_u64().unwrap(), "KILL");
    let failed = seawall.event("promote-hook-failed", standby);
    assert!(failed["message"].as_str().unwrap().contains("cannot be primary of ledger: onPromote"), "{failed}");
    let after = seawall.wait_ready("ledger");
    assert!(after["epoch"].as_u64() > before["epoch"].as_u64());
    assert_eq!(seawall.get("/").status, 200);
}

#[test]
fn what_cannot_be_started_is_never_ready_also_without_probes() {
    // Nothing leads to them and nothing probes them: all that tells that they run is their process.
    let seawall = Seawall::up(&format!("{HEALTHY}routes:\n  - {{ to: {{ service: healthy }} }}\n"));
    let watching = std::sync::atomic::AtomicBool::new(true);
    let most = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = (0, 0, 0);
            while watching.load(std::sync::atomic::Ordering::SeqCst) {
                let status = seawall.status();
                let of = |name: &str| crate::support::service(&status, name);
                let shown = ["faulty", "pair"]
                    .iter()
                    .flat_map(|name| of(name)["instances"].as_array().cloned().unwrap_or_default())
                    .filter(|one| one["state"] == "ready");
                let ready = |name: &str| of(name)["ready"].as_u64().unwrap_or(0);
                most = (most.0.max(ready("faulty")), most.1.max(ready("pair")), most.2.max(shown.count()));
            }
            most
        });
        seawall.apply(
            0,
            &format!(
                "{HEALTHY}  faulty: {{ command: [no-such-program-anywhere], restartBackoff: {{ initial: 20ms, max: 20ms }} }}\n  \
                 pair: {{ command: [no-such-program-anywhere], mode: primary-standby, replicas: 2, restartBackoff: {{ initial: 20ms, max: 20ms }} }}\n\
                 routes:\n  - {{ to: {{ service: healthy }} }}\n"
            ),
        );
        for id in ["faulty-0", "pair-0", "pair-1"] {
            seawall.event("crash-loop", id);
        }
        watching.store(false, std::sync::atomic::Ordering::SeqCst);
        watcher.join().unwrap()
    });
    assert_eq!(most, (0, 0, 0), "the most that were ready at any moment");
    let of_faulty = |event: &Value| event["service"] == "faulty" || event["service"] == "pair";
    for kind in ["instance-started", "instance-ready", "fenced", "promoted", "routed"] {
        let said: Vec<Value> = seawall.events_of(kind).into_iter().filter(of_faulty).collect();
        assert!(said.is_empty(), "{said:?}");
    }
    assert_eq!(seawall.service("faulty")["state"], "down");
    let pair = seawall.service("pair");
    assert_eq!((&pair["primary"], &pair["epoch"]), (&Value::Null, &Value::Null), "nobody was chosen");
    // The same with a process: ready as soon as it runs.
    seawall.apply(
        0,
        &format!("{HEALTHY}  plain: {{ command: [sleep, '1000'] }}\nroutes:\n  - {{ to: {{ service: healthy }} }}\n"),
    );
    let plain = seawall.wait_ready("plain");
    assert!(plain["instances"][0]["pid"].as_u64().is_some(), "{plain}");
}
