//! An active-active service loses an instance again and again, and no client notices.

use std::time::Duration;

use crate::support::load::{Load, Options};
use crate::support::{Seawall, instance, processes, wait};

const SHOP: &str = r"
services:
  orders:
    command: [DEMO, --latency-ms, '50']
    replicas: 3
    livenessProbe: { httpGet: { path: /health }, periodSeconds: 1, timeoutSeconds: 5 }
    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1, timeoutSeconds: 5 }
    restartBackoff: { initial: 100ms, max: 800ms }
routes:
  - { to: { service: orders } }
";

/// The pause before restart number `restart`, as the definition says.
fn back_off(restart: u32) -> Duration {
    Duration::from_millis(100 << (restart - 1).min(3))
}

/// From the process's start to its first answered probe, on a machine that is busy.
const START: Duration = Duration::from_secs(3);

#[test]
fn ten_kills_of_one_instance_fail_no_request() {
    let seawall = Seawall::up_alone(SHOP);
    let load = Load::start(
        seawall.gateway,
        &Options { connections: 64, path: "/".into(), timeout: Duration::from_secs(30), pause: Duration::ZERO },
    );
    wait("an answer of each process", || (load.now() > Duration::from_millis(500)).then_some(()));
    let mut slowest = Duration::ZERO;
    for restart in 1..=10_u32 {
        let before = seawall.instance("orders-1")["pid"].as_u64().unwrap();
        let killed = load.now();
        assert!(processes::signal(before, "KILL"));
        let back = wait("orders-1 ready again", || {
            let now = instance(&seawall.status(), "orders-1")?;
            (now["state"] == "ready" && now["pid"] != before).then(|| load.now() - killed)
        });
        assert!(back >= back_off(restart), "restart {restart} came after {back:?}, before its back-off was over");
        assert!(back <= back_off(restart) + START, "restart {restart} took {back:?}");
        slowest = slowest.max(back - back_off(restart));
        // It serves again, too.
        let served = load.now();
        wait("traffic on orders-1", || {
            let now = instance(&seawall.status(), "orders-1")?;
            (now["state"] == "ready" && load.now() - served > Duration::from_millis(100)).then_some(())
        });
    }
    let ledger = load.finish();
    println!("active-active, 10 kills: {}; slowest start besides the back-off {slowest:?}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    assert!(ledger.successes() as f64 / ledger.took.as_secs_f64() >= 1000.0, "too little load: {}", ledger.summary());
    assert_eq!(ledger.pids().len(), 13, "every one of the 3 first and 10 later processes has answered");
    assert_eq!(seawall.instance("orders-1")["restarts"], 10);
    assert_eq!(seawall.events_of("instance-died").len(), 10);
}
