//! Commands that Seawall runs for an instance (`exec` probes and hooks, `preStop`) and that do not end in time: each is
//! ended with everything it started, and outlives neither a stop nor a crash.

use std::path::Path;

use crate::support::{Seawall, processes, wait};

/// Writes the pid of each of its processes on a line of its own, one of them in a session of its own, and never ends.
const FAMILY: &str = "sleep 1000 & echo $! >> family; setsid sleep 1000 & echo $! >> family; echo $$ >> family; wait";
/// How many processes it has.
const MEMBERS: usize = 3;

/// The pids that families have written so far.
fn members(folder: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(folder.join("family")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

/// Waits until so many families are complete.
fn families(folder: &Path, count: usize) -> Vec<u64> {
    wait("a command that runs", || Some(members(folder)).filter(|all| all.len() >= count * MEMBERS))
}

fn wait_gone(what: &str, pids: &[u64]) {
    wait(what, || pids.iter().all(|pid| !processes::is_running(*pid)).then_some(()));
}

/// A service whose liveness probe hangs for as long as it may.
fn probed(timeout_seconds: u32) -> String {
    format!(
        r#"
services:
  probed:
    command: [DEMO]
    livenessProbe: {{ exec: {{ command: [sh, -c, "{FAMILY}"] }}, periodSeconds: 1, timeoutSeconds: {timeout_seconds}, failureThreshold: 1000 }}
"#
    )
}

#[test]
fn a_probe_that_does_not_end_is_ended_with_everything_it_started() {
    let seawall = Seawall::up(&probed(1));
    let pid = seawall.pids("probed");
    let first = families(seawall.folder(), 1);
    wait_gone("the end of the first probe's family", &first[..MEMBERS]);
    seawall.wait_for("a note that says so", |status| {
        let note = crate::support::instance(status, "probed-0")?["note"].as_str()?.to_owned();
        note.contains("livenessProbe: `sh` did not end within 1000 ms").then_some(())
    });
    // One after the other: nothing of an earlier one is left while the next runs.
    let three = families(seawall.folder(), 3);
    let left = three[..2 * MEMBERS].iter().filter(|pid| processes::is_running(**pid)).count();
    assert_eq!(left, 0, "{three:?}");
    assert_eq!(seawall.pids("probed"), pid, "the threshold was not reached");
}

#[test]
fn a_hook_that_does_not_end_is_ended_with_everything_it_started_and_the_switch_goes_on() {
    let seawall = Seawall::up(&format!(
        r#"
services:
  ledger:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    onDemote: {{ exec: {{ command: [sh, -c, "{FAMILY}"] }}, timeoutSeconds: 1 }}
    restartBackoff: {{ initial: 50ms, max: 100ms }}
routes:
  - {{ to: {{ service: ledger }} }}
"#
    ));
    let old = seawall.service("ledger")["primary"].as_str().unwrap().to_owned();
    seawall.cli_exits(0, &["promote", "ledger", "--wait"]);
    let family = families(seawall.folder(), 1);
    assert_eq!(family.len(), MEMBERS, "it was called once");
    wait_gone("the end of the hook's family", &family);
    let failed = seawall.event("demote-hook-failed", &old);
    assert!(failed["message"].as_str().unwrap().contains("`sh` did not end within 1000 ms"), "{failed}");
    seawall.wait_ready("ledger");
    assert_ne!(seawall.service("ledger")["primary"], old.as_str());
    assert_eq!(seawall.get("/").status, 200);
}

#[test]
fn a_pre_stop_that_does_not_end_costs_the_grace_period_and_leaves_nothing() {
    let mut seawall = Seawall::up(&format!(
        r#"
services:
  slow:
    command: [DEMO]
    replicas: 2
    terminationGracePeriodSeconds: 1
    preStop: {{ exec: {{ command: [sh, -c, "{FAMILY}"] }} }}
"#
    ));
    let before = seawall.pids("slow");
    seawall.cli_exits(0, &["restart", "slow"]);
    let after = seawall.pids("slow");
    assert!(before.iter().all(|pid| !after.contains(pid)), "{before:?} {after:?}");
    let both = families(seawall.folder(), 2);
    wait_gone("the end of both families", &both);
    // The same when everything stops.
    assert_eq!(seawall.stop().code(), Some(0));
    let all = members(seawall.folder());
    assert_eq!(all.len(), 4 * MEMBERS, "each instance was asked once more");
    assert_eq!(all.iter().filter(|pid| processes::is_running(**pid)).count(), 0);
    assert_eq!(seawall.processes(), Vec::<u64>::new());
}

#[test]
fn a_stop_leaves_nothing_of_a_command_under_way() {
    let mut seawall = Seawall::up(&probed(1000));
    let family = families(seawall.folder(), 1);
    assert_eq!(seawall.stop().code(), Some(0));
    let left: Vec<&u64> = family.iter().filter(|pid| processes::is_running(**pid)).collect();
    assert!(left.is_empty(), "{left:?} of {family:?}");
    assert_eq!(seawall.processes(), Vec::<u64>::new());
}

#[test]
fn a_killed_keeper_leaves_nothing_of_a_command_under_way() {
    let mut seawall = Seawall::up(&probed(1000));
    let family = families(seawall.folder(), 1);
    assert!(processes::signal(seawall.keeper(), "KILL"));
    wait_gone("the end of the family", &family);
    seawall.ended();
    wait("the end of everything", || seawall.processes().is_empty().then_some(()));
}

#[test]
fn a_killed_node_process_leaves_nothing_of_a_command_under_way() {
    let seawall = Seawall::up(&probed(1000));
    let pid = seawall.pids("probed");
    let family = families(seawall.folder(), 1);
    assert!(processes::signal(seawall.node(), "KILL"));
    wait_gone("the end of the family", &family[..MEMBERS]);
    seawall.event("node-recovered", "");
    seawall.wait_ready("probed");
    assert_eq!(seawall.pids("probed"), pid, "the instance itself goes on");
}

#[test]
fn commands_of_probes_and_hooks_get_the_variables_of_their_instance() {
    let mut seawall = Seawall::up(
        r#"
services:
  pair:
    mode: primary-standby
    replicas: 2
    command: [DEMO]
    readinessProbe: { exec: { command: [sh, -c, "echo probe $0 $PORT $${PORT:-x} >> seen", "${instance} ${port} ${service} ${index}"] }, periodSeconds: 1 }
    onPromote: { exec: { command: [sh, -c, "echo promote $0 $SEAWALL_EPOCH >> seen", "${instance}"] } }
    onDemote: { exec: { command: [sh, -c, "echo demote $0 $SEAWALL_EPOCH >> seen", "${instance}"] } }
    preStop: { exec: { command: [sh, -c, "echo stop $0 >> seen", "${instance} ${port}"] } }
"#,
    );
    let before = seawall.service("pair");
    let (first, epoch) = (before["primary"].as_str().unwrap().to_owned(), before["epoch"].as_u64().unwrap());
    seawall.cli_exits(0, &["promote", "pair", "--wait"]);
    let after = seawall.service("pair");
    let port = |index: usize| {
        let address = after["instances"][index]["address"].as_str().unwrap();
        address.rsplit(':').next().unwrap().to_owned()
    };
    assert_eq!(seawall.stop().code(), Some(0));
    let seen = std::fs::read_to_string(seawall.folder().join("seen")).unwrap();
    let mut expected: Vec<String> = (0..2)
        .flat_map(|index| {
            let (port, id) = (port(index), format!("pair-{index}"));
            [format!("probe {id} {port} pair {index} {port} {port}"), format!("stop {id} {port}")]
        })
        .collect();
    let second = after["primary"].as_str().unwrap();
    expected.push(format!("promote {first} {epoch}"));
    expected.push(format!("demote {first} {epoch}"));
    expected.push(format!("promote {second} {}", after["epoch"]));
    for line in expected {
        assert!(seen.lines().any(|known| known == line), "`{line}` is missing in:\n{seen}");
    }
}
