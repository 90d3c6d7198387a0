//! Planned switches that do not go as planned: a standby that refuses to be primary costs a moment, never the service,
//! and who has stepped down is left alone.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::load::{Load, Options};
use crate::support::{Seawall, processes, wait};

/// An instance whose file `ID.refuses` exists when it starts answers 409 to every promotion of its life.
const LEDGER: &str = r#"
services:
  ledger:
    mode: primary-standby
    replicas: 2
    command: [sh, -c, 'test ! -e $SEAWALL_INSTANCE.refuses || set -- "$@" --refuse-promotion; exec "$@"', sh, DEMO]
    readinessProbe: { httpGet: { path: /ready }, periodSeconds: 1 }
    onPromote: { httpPost: { path: /promote } }
    onDemote: { httpPost: { path: /demote } }
    restartBackoff: { initial: 50ms, max: 100ms }
routes:
  - { to: { service: ledger } }
"#;

struct Term {
    primary: String,
    standby: String,
    epoch: u64,
}

fn term(seawall: &Seawall) -> Term {
    let ledger = seawall.wait_ready("ledger");
    let primary = ledger["primary"].as_str().unwrap().to_owned();
    let standby = if primary == "ledger-0" { "ledger-1" } else { "ledger-0" }.to_owned();
    Term { primary, standby, epoch: ledger["epoch"].as_u64().unwrap() }
}

fn pid(seawall: &Seawall, id: &str) -> u64 {
    seawall.instance(id)["pid"].as_u64().unwrap()
}

/// From its next start on it refuses to be promoted.
fn let_refuse(seawall: &Seawall, id: &str) {
    std::fs::write(seawall.folder().join(format!("{id}.refuses")), "").unwrap();
}

fn load(seawall: &Seawall) -> Load {
    let pause = Duration::from_millis(5);
    Load::start(seawall.gateway, &Options { connections: 8, path: "/".into(), timeout: Duration::from_secs(30), pause })
}

/// The terms that were begun, each with its own epoch.
fn epochs(seawall: &Seawall) -> Vec<u64> {
    seawall.events_of("promoted").iter().map(|event| event["epoch"].as_u64().unwrap()).collect()
}

#[test]
fn a_switch_to_a_standby_that_refuses_falls_back_to_the_old_primary() {
    let seawall = Seawall::up(LEDGER);
    let before = term(&seawall);
    let first = pid(&seawall, &before.standby);
    let_refuse(&seawall, &before.standby);
    processes::signal(first, "KILL");
    wait("a standby that refuses", || {
        let now = seawall.instance(&before.standby);
        (now["state"] == "ready" && now["pid"] != first).then_some(())
    });
    let terms = epochs(&seawall).len();
    let primary_pid = pid(&seawall, &before.primary);
    let load = load(&seawall).under_way();

    let (_, err) = seawall.cli_exits(1, &["promote", "ledger", &before.standby, "--wait"]);
    assert!(err.contains(&format!("{} could not take over", before.standby)), "{err}");
    assert!(err.contains(&format!("{} is primary of ledger", before.primary)), "{err}");
    let after = term(&seawall);
    assert_eq!(after.primary, before.primary);
    assert!(after.epoch > before.epoch);
    assert_eq!(pid(&seawall, &before.primary), primary_pid, "the old primary was only asked to step down");
    let answer = seawall.get("/").json();
    assert_eq!(
        (&answer["instance"], &answer["role"], answer["epoch"].as_u64()),
        (&Value::from(before.primary.as_str()), &Value::from("primary"), Some(after.epoch))
    );
    let ledger = load.finish();
    println!("a switch to a standby that refuses: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    ledger.check_epochs();
    // One term for the standby that refused, one for the old primary: nobody was asked in turns.
    let begun = epochs(&seawall);
    assert_eq!(begun.len(), terms + 2, "{begun:?}");
    let failed = seawall.event("promote-hook-failed", &before.standby);
    assert!(failed["message"].as_str().unwrap().contains("onPromote: POST /promote answered 409"), "{failed}");
    // It comes back as a standby. Nobody is moved for one that has just refused, unless it is asked for by name; and
    // once it does not refuse any more, it takes over.
    let (_, err) = seawall.cli_exits(1, &["promote", "ledger", "--wait"]);
    assert!(err.contains(&format!("{} refused to be primary of ledger just now", before.standby)), "{err}");
    assert_eq!((term(&seawall).epoch, epochs(&seawall).len()), (after.epoch, terms + 2));
    std::fs::remove_file(seawall.folder().join(format!("{}.refuses", before.standby))).unwrap();
    let refusing = pid(&seawall, &before.standby);
    processes::signal(refusing, "KILL");
    wait("a standby that does not refuse", || {
        let now = seawall.instance(&before.standby);
        (now["state"] == "ready" && now["pid"] != refusing).then_some(())
    });
    seawall.cli_exits(0, &["promote", "ledger", &before.standby, "--wait"]);
    assert_eq!(term(&seawall).primary, before.standby);
}

#[test]
fn a_restart_whose_new_primary_refuses_is_given_up_and_the_old_one_serves_on() {
    let seawall = Seawall::up(LEDGER);
    let before = term(&seawall);
    let primary_pid = pid(&seawall, &before.primary);
    // What is started from now on refuses: the standby is replaced first, and then asked.
    let_refuse(&seawall, &before.standby);
    let terms = epochs(&seawall).len();
    let load = load(&seawall).under_way();
    let (_, err) = seawall.cli_exits(1, &["restart", "ledger"]);
    assert!(err.contains("the restart was given up"), "{err}");
    assert!(err.contains(&format!("{} refused to be primary (onPromote failed)", before.standby)), "{err}");
    let after = term(&seawall);
    let ledger = load.finish();
    println!("a restart whose new primary refuses: {}", ledger.summary());
    assert_eq!(ledger.failures().len(), 0, "{}", ledger.summary());
    ledger.check_epochs();
    assert_eq!((&after.primary, pid(&seawall, &after.primary)), (&before.primary, primary_pid));
    assert_eq!(seawall.get("/").json()["epoch"].as_u64(), Some(after.epoch));
    let begun = epochs(&seawall);
    assert_eq!(begun.len(), terms + 2, "{begun:?}");
    let aborted = seawall.event("roll-aborted", "ledger");
    assert!(aborted["message"].as_str().unwrap().contains("refused to be primary"), "{aborted}");
    assert_eq!(seawall.service("ledger")["state"], "ready", "no roll is left under way");
    // Mended at once, and restarted at once: what a process refused is not held against its successor.
    std::fs::remove_file(seawall.folder().join(format!("{}.refuses", before.standby))).unwrap();
    seawall.cli_exits(0, &["restart", "ledger"]);
    assert_eq!(term(&seawall).primary, before.standby);
    assert!(!processes::is_running(primary_pid));
}

#[test]
fn who_stepped_down_is_not_held_to_a_deadline_any_more() {
    // A primary that is not heard of is ended when its lease runs out, 1.8 s at most after the last renewal.
    // The standby that it has become must not be. That nothing happens has no condition to wait for: it is watched
    // for nearly twice that time.
    const WATCHED: Duration = Duration::from_millis(3500);
    let seawall = Seawall::up(LEDGER);
    let before = term(&seawall);
    let old = pid(&seawall, &before.primary);
    seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
    let switched = Instant::now();
    while switched.elapsed() < WATCHED {
        assert!(processes::is_running(old), "the old primary was ended {:?} after the switch", switched.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = term(&seawall);
    assert_eq!((&after.primary, pid(&seawall, &before.primary)), (&before.standby, old));
    assert_eq!(seawall.events_of("instance-died").len(), 0);
    // It may be primary again, and then the deadline counts again.
    seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
    assert_eq!(term(&seawall).primary, before.primary);
    assert_eq!(pid(&seawall, &before.primary), old);
    processes::signal(seawall.node(), "STOP");
    wait("the end of a primary that nobody vouches for", || (!processes::is_running(old)).then_some(()));
}
