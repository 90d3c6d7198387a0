//! Two servers and a witness: services run on servers only, the loss of any one is survived, and what the lost server shared
//! with the witness alone is at the other afterwards.

use std::collections::BTreeSet;

use super::{Cluster, name};
use crate::placed::SHOP;
use crate::support::{service, start_failing, wait};

const WITNESS: usize = 2;

fn settled(cluster: &Cluster, seen_from: usize) {
    cluster.node(seen_from).wait_for("all of the shop is ready", |status| {
        let ready = |name| (service(status, name)["state"] == "ready").then_some(());
        ready("orders").and(ready("ledger"))
    });
}

fn nodes_of(cluster: &Cluster, seen_from: usize, of: &str) -> BTreeSet<String> {
    let shown = service(&cluster.node(seen_from).status(), of);
    shown["instances"].as_array().unwrap().iter().map(|one| one["node"].as_str().unwrap().to_owned()).collect()
}

/// The place of the node with the primary of `ledger`.
fn primary(cluster: &Cluster, seen_from: usize) -> Option<usize> {
    let shown = service(&cluster.node(seen_from).status(), "ledger");
    let instances = shown["instances"].as_array()?;
    let node = instances.iter().find(|instance| instance["id"] == shown["primary"])?["node"].as_str()?;
    (0..3).find(|place| name(*place) == node)
}

fn put(cluster: &Cluster, through: usize, key: &str) {
    wait(key, || (cluster.put(through, key, "1").status == 200).then_some(()));
}

#[test]
fn services_run_on_two_servers_and_the_loss_of_any_of_three_is_survived() {
    let mut cluster = Cluster::up_as("", Some(WITNESS));
    assert_ne!(cluster.leader(), WITNESS);
    let roles = cluster.node(0).wait_for("the leader knows all roles", |status| {
        let members = status["cluster"]["members"].as_array()?;
        members.iter().map(|member| Some(member["role"].as_str()?.to_owned())).collect::<Option<Vec<_>>>()
    });
    assert_eq!(roles, ["server", "server", "witness"]);
    let (_, err) = cluster.node(WITNESS).apply(1, &SHOP.replace("replicas: 3", "replicas: 4"));
    assert!(err.contains("n3 is a witness") && err.contains("ask another node (n1, n2)"), "{err}");
    let (_, err) = cluster.node(0).cli_exits(1, &["cluster", "transfer", "n3"]);
    assert!(err.contains("a witness is not made the leader"), "{err}");
    cluster.node(0).apply(0, &SHOP.replace("replicas: 3", "replicas: 4"));
    for place in 0..2 {
        settled(&cluster, place);
        for of in ["orders", "ledger"] {
            assert_eq!(nodes_of(&cluster, place, of), BTreeSet::from(["n1".to_owned(), "n2".to_owned()]), "{of}");
        }
    }
    put(&cluster, WITNESS, "through-the-witness");
    assert_eq!(cluster.get(WITNESS, "through-the-witness").as_deref(), Some("1"), "it asks the leader");

    cluster.kill(WITNESS);
    put(&cluster, 0, "without-the-witness");
    cluster.start(WITNESS);

    let lost = primary(&cluster, 0).expect("all of the shop is ready");
    let other = 1 - lost;
    cluster.kill(lost);
    wait("another primary", || (primary(&cluster, other) == Some(other)).then_some(()));
    assert_eq!(cluster.node(other).get("/ledger").status, 200);
    put(&cluster, other, "shared-with-the-witness-alone");

    // Now the one that has it is lost, and the one that lacks it comes back.
    cluster.kill(other);
    cluster.start(lost);
    wait("it has what the other server and the witness had", || {
        cluster.get(lost, "shared-with-the-witness-alone").filter(|value| value == "1")
    });
    put(&cluster, lost, "later");
    // What status says of the leader is a second old at most.
    wait("the witness has handed over", || (cluster.leader() == lost).then_some(()));
    cluster.start(other);
    wait("both servers have everything", || cluster.get(other, "later"));
    settled(&cluster, other);
    assert_eq!(cluster.node(WITNESS).status()["services"].as_array().map(Vec::len), Some(0));
}

#[test]
fn a_node_whose_role_was_changed_is_told_what_to_do() {
    let mut cluster = Cluster::up_as("", Some(WITNESS));
    cluster.kill(WITNESS);
    let folder = cluster.down.remove(&WITNESS).expect("it was killed");
    cluster.witness = None;
    cluster.write(WITNESS, folder.path());
    let (exit, err) = start_failing(&folder.path().join("seawall.yaml"), &folder.path().join("data"));
    assert_eq!(exit, Some(1), "{err}");
    for words in ["holds the data of a witness", "Set node.role back to witness", "seawall cluster remove"] {
        assert!(err.contains(words), "`{words}` is missing in: {err}");
    }
}
